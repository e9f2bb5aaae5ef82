"""The paper's tables and figures, run again: ``primaps reproduce``."""

from primaps.reproduction.plan import plan_lines
from primaps.reproduction.registry import NAMES, PAPER, TABLES, experiment
from primaps.reproduction.reproduction import Reproduction
from primaps.reproduction.rows import Experiment, TableRow
from primaps.reproduction.run import reproduce

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
