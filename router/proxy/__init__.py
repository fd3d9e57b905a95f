"""One request, top to bottom: ``dispatch`` is its way, ``admission`` and ``tenant_limits`` let it in, ``selection`` ranks the
workers, ``delivery`` is one attempt, ``resumption`` continues a stream whose worker died."""
