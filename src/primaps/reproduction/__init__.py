"""The tables and figures of the paper: ``primaps reproduce``."""

from primaps.reproduction.plan import plan_lines
from primaps.reproduction.registry import NAMES, PAPER, TABLES, Experiment, TableRow, experiment
from primaps.reproduction.run import reproduce
from primaps.reproduction.settings import Reproduction

__all__ = [
    "NAMES",
    "PAPER",
    "TABLES",
    "Experiment",
    "Reproduction",
    "TableRow",
    "experiment",
    "plan_lines",
    "reproduce",
]
