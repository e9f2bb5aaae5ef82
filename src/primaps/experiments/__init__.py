"""The paper's tables and figures, run again: ``primaps reproduce``."""

from primaps.experiments.contents import NAMES, PAPER, TABLES, experiment
from primaps.experiments.plan import plan_lines
from primaps.experiments.reproduction import Reproduction
from primaps.experiments.rows import Experiment, TableRow
from primaps.experiments.run import reproduce

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
