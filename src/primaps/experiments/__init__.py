"""The paper's tables and figures, run again: ``primaps reproduce``."""

from primaps.experiments.costs import plan_lines
from primaps.experiments.reproduction import Reproduction
from primaps.experiments.run import reproduce
from primaps.experiments.tables import NAMES, TABLES, Experiment, TableRow, experiment

__all__ = [
    "NAMES",
    "TABLES",
    "Experiment",
    "Reproduction",
    "TableRow",
    "experiment",
    "plan_lines",
    "reproduce",
]
