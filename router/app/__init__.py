"""Composition: ``serve`` starts and stops a router, ``data_plane``, ``sessions`` and ``ports`` build its parts."""
