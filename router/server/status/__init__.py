"""The status page: what it shows is sent as events, and the page itself holds no figure, so that it needs no token."""
