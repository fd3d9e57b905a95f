"""Sessions: the history lives here, and a client sends its newest message."""
