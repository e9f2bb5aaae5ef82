"""Evaluation with labels: matching, scores, the protocol, the oracle; and the audit."""
