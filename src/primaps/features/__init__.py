"""Features, masks and labels of a collection, computed once: what training reads."""
