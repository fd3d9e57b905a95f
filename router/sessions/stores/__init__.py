"""Where sessions are kept: ``contract`` is what every store promises; SQLite, Redis, and what may stand before them."""
