"""Version of the package, importable without any other module."""

VERSION = "0.1.0"
