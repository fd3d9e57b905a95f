"""From what was noted of a request to spans at a collector of OpenTelemetry.

``tracer`` begins and ends traces, ``spans`` makes spans of them (pure), ``queue`` sends them beside the requests, ``otlp``
alone knows OpenTelemetry's packages, and ``opening`` joins these.
"""
