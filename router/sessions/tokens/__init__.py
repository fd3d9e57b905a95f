"""How many tokens a text is, by the model that reads it."""
