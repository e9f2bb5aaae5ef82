"""How an experiment is run here: data, seeds, device, and what differs from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primaps.config import EM_STEPS, Config, Positions, Resize
from primaps.reproduction import paper
from primaps.reproduction.registry import experiment
from primaps.reproduction.rows import METHODS, Experiment, TableRow
from primaps.reproduction.tables import FOLDER
from primaps.utils.errors import InputError
from primaps.utils.validation import validate

Protocol = Literal["paper", "program"]


@dataclass(frozen=True)
class Reproduction:
    """How experiments are run.

    Attributes:
        out: folder of results, models and reports.
        roots: folders of data sets by name.
        dataset: the only one to run on; ``folder`` for a folder with labels.
        backbones: instead of those of the paper.
        seeds: one run each.
        projections: checkpoints by ``STEGO`` or ``HP``, or by ``HP/cityscapes/dinov2-vitb14`` where
            a run needs several.
        options: fields of :class:`primaps.Config` for all rows; a row's own come first.
        protocol: ``paper``, or ``program``: images and labels are resized at evaluation, the moving
            average is ramped up, and positions are scaled as in the authors' program.
        device: ``auto``, ``cpu``, ``cuda``, ...
        cache: folder that keeps features and masks; None keeps nothing.
        budget: seconds; a row that would go beyond is not begun.
    """

    out: Path
    roots: Mapping[str, Path] = field(default_factory=dict)
    dataset: str | None = None
    backbones: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    projections: Mapping[str, Path] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    protocol: Protocol = "paper"
    device: str = "auto"
    cache: Path | None = None
    budget: float | None = None

    def __post_init__(self) -> None:
        validate(self.protocol, Protocol, "protocol")

    def experiment(self, name: str) -> Experiment:
        """The rows of a table or figure on these data sets and backbones."""
        return experiment(name, self.dataset, self.backbones)

    @property
    def views(self) -> int | str:
        """Augmented views: new ones in every step, as the paper, unless it is a folder."""
        return self.options.get("views", Config.views if self.dataset == FOLDER else "fresh")

    def config(self, row: TableRow, seed: int) -> dict[str, Any]:
        """Fields of :class:`primaps.Config` of a run of a row, without classes and backbone.

        The decay of Eq. 11 is constant on the paper's data sets; on a folder, whose few steps would
        hardly move the average then, it is ramped up as in the program.
        """
        usual = {
            "epochs": paper.EPOCHS.get(row.dataset, 50),
            "views": self.views,
            "momentum_ramp": self.protocol == "program" or row.dataset == FOLDER,
        }
        given = {"recipe": "paper", **usual, **self.options, **METHODS[row.kind], **row.options}
        if given["recipe"] != "paper" and "method" not in given:
            given = {name: value for name, value in given.items() if name not in EM_STEPS}
        return {**given, "seed": seed}

    @property
    def resize(self) -> Resize:
        """Of images and labels that are scored."""
        return "tensor" if self.protocol == "program" else "pillow"

    @property
    def positions(self) -> Positions:
        """Of the backbones."""
        return "scaled" if self.protocol == "program" else "exact"

    def seeds_of(self, row: TableRow) -> tuple[int, ...]:
        """An oracle has nothing random: one run."""
        return self.seeds[:1] if row.kind == "oracle" else self.seeds

    def projection(self, row: TableRow) -> Path | None:
        """The checkpoint that a row is on top of, if it was given."""
        full = f"{row.projection}/{row.dataset}/{row.backbone}"
        return self.projections.get(full, self.projections.get(row.projection))

    def trains(self, row: TableRow) -> bool:
        """Whether a row's projection is trained on the images, as no checkpoint was given."""
        return bool(row.projection) and row.dataset == FOLDER and self.projection(row) is None

    def codes(self, row: TableRow) -> str:
        """What prototypes are fitted to, in words."""
        if not row.projection:
            return "features"
        if self.trains(row):
            return f"codes of {row.projection} trained here"
        return f"codes of {row.projection}'s checkpoint"

    def lacking(self, row: TableRow) -> str:
        """Why a row cannot run here, weights of its backbone apart; nothing if it can."""
        if row.dataset not in self.roots:
            return f"no data: give --root {row.dataset}=FOLDER"
        if not row.projection or self.trains(row):
            return ""
        path = self.projection(row)
        if path is None:
            full = f"{row.projection}/{row.dataset}/{row.backbone}"
            return f"no checkpoint of {row.projection}: give --projection {full}=PATH"
        if not path.exists():
            return f"there is no checkpoint {path}"
        return ""


def read_roots(given: Sequence[str], experiments: Sequence[Experiment]) -> dict[str, Path]:
    """Folders of data sets from ``FOLDER`` or ``NAME=FOLDER``.

    Raises:
        InputError: there are several data sets, and a folder does not say which it is.

    Examples:
        >>> read_roots(["cityscapes=a"], [experiment("table5")])
        {'cityscapes': PosixPath('a')}
        >>> read_roots(["a"], [experiment("table1")])
        {'cityscapes': PosixPath('a')}
    """
    known = list(dict.fromkeys(row.dataset for each in experiments for row in each.rows))
    roots = {}
    for text in given:
        name, separator, folder = text.partition("=")
        if not (separator and name in known):
            if len(known) > 1:
                raise InputError(
                    f"--root {text}: say of which data set, {known[0]}=FOLDER; there are "
                    f"{', '.join(known)}"
                )
            name, folder = known[0], text
        roots[name] = Path(folder).expanduser()
    return roots


def read_pairs(given: Sequence[str], option: str) -> dict[str, Path]:
    """Paths by name from ``NAME=PATH``.

    Raises:
        InputError: it does not read like this.

    Examples:
        >>> read_pairs(["HP=hp.pt"], "--projection")
        {'HP': PosixPath('hp.pt')}
    """
    pairs = {}
    for text in given:
        name, separator, path = text.partition("=")
        if not separator or name.split("/")[0] not in ("STEGO", "HP"):
            raise InputError(f"{option} is {text!r}; it must be STEGO=PATH or HP=PATH")
        pairs[name] = Path(path).expanduser()
    return pairs


def read_seeds(text: str) -> tuple[int, ...]:
    """Seeds from ``0,1,2``.

    Raises:
        InputError: they are no numbers, or one is there twice.

    Examples:
        >>> read_seeds("0,1,2")
        (0, 1, 2)
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds is {text!r}; it must be numbers like 0,1,2")
    return seeds
