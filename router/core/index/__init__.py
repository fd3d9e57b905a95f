"""Fingerprints of prompts, and which worker likely holds which of their blocks. Pure."""
