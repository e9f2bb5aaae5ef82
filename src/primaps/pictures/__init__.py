"""Pictures of label maps, of scores, of how masks come about."""
