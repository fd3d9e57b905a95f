"""The table of routes, a request, its record, and how attempts fail. Pure."""
