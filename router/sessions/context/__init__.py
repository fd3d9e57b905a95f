"""How a history becomes a prompt. Pure: no I/O, no clock, no chance."""
