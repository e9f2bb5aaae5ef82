"""Classes of a fitted model: tree, names and edits, stability, and their number."""
