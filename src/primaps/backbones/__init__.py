"""Frozen backbones, which map images to feature maps."""
