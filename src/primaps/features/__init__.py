"""Features, masks and labels of a collection: everything that training reads, computed once."""
