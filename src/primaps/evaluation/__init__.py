"""What predictions and masks are worth, by labels: matching, scores, the protocol, the oracle."""
