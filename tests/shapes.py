"""The check of shapes and types in signatures that runs while tests run."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""A whole number is taken for a float, as type checkers take it."""
