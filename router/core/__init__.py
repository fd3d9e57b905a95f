"""Pure values and rules. Nothing here knows a clock, a socket or a random number."""
