"""Frozen backbones: images in, features out. Names, hub ids, folders, files, or yours."""
