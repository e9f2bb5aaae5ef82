"""Overlays of label maps, charts of scores, figures of mask proposals, and the report."""
