"""The status page. Its figures are sent as events. The page itself has none, so it needs no token."""
