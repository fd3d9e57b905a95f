"""The commands of ``warmroute``."""
