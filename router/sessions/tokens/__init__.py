"""Counts the tokens of texts, as the model that reads them does."""
