"""Dashboards and alerts. ``python -m grafana.generate`` writes ``dashboards/``; ``rules/`` is written by hand."""
