"""Towards workers: ``exchange`` is one request, ``connection`` and ``relay`` carry it, ``pool`` keeps connections,
``health_check`` and ``load`` watch the workers, ``discovery`` and ``fleet_sync`` find them."""
