"""One dashboard a module, from top to bottom as it is read."""
