"""The paper's tables and figures, run again: ``primaps reproduce``."""

from primaps.experiments.plan import plan_lines
from primaps.experiments.rows import NAMES, TABLES, Experiment, Row, experiment
from primaps.experiments.run import reproduce
from primaps.experiments.settings import Settings

__all__ = [
    "NAMES",
    "TABLES",
    "Experiment",
    "Row",
    "Settings",
    "experiment",
    "plan_lines",
    "reproduce",
]
