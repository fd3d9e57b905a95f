"""The router in a terminal: what its admin port tells, for people who are logged in somewhere and have no browser."""
