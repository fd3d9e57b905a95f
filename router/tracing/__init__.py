"""From the notes on a request to spans at a collector of OpenTelemetry.

``tracer`` begins and ends traces, ``spans`` makes spans of them (pure), ``otlp`` sends them beside the requests, and ``build``
joins these. ``tracer`` and ``otlp`` need the extra ``otel``, and are imported only where tracing is on.
"""
