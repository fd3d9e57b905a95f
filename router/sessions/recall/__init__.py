"""Indexes of the items of sessions, by words and by meaning: items that left the context window stay searchable."""
