"""The version, in a module of its own so that whoever needs it imports nothing else."""

VERSION = "0.1.0"
