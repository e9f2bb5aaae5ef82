"""What becomes of the K classes of a model: a tree of them, names and edits, trust, an audit."""
