"""What a person knows: annotations, a classifier that learns from them, and questions to ask."""
