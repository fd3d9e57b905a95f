"""Settings by groups of sections, where they come from, and the checks across them."""
