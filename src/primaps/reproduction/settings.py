"""Settings of a reproduction: data, seeds, device, and differences from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from primaps.config import EM_STEPS, Config, Positions, Resize
from primaps.reproduction import paper
from primaps.reproduction.registry import FOLDER, METHODS, Experiment, TableRow, experiment
from primaps.utils.errors import InputError
from primaps.utils.validation import validate

Protocol = Literal["paper", "program"]


@dataclass(frozen=True)
class Reproduction:
    """Settings of a reproduction.

    Attributes:
        out: output folder of results, models and reports.
        roots: folders of the data sets, by name.
        dataset: run on this data set only; ``folder`` is a labeled folder.
        backbones: backbones instead of those of the paper.
        seeds: random seeds, one run each.
        projections: checkpoints of STEGO and HP, with the key ``STEGO`` or ``HP``, or
            ``HP/cityscapes/dinov2-vitb14`` if a run needs several.
        options: fields of :class:`primaps.Config` for all rows. Options of a row take precedence.
        protocol: ``paper``, or ``program`` to resize at evaluation, ramp the moving average and
            scale position embeddings as the authors' program does.
        device: ``auto``, ``cpu``, ``cuda``, ...
        cache: folder of cached features and masks; None disables the cache.
        budget: time limit in seconds. A row that would exceed it is not started.
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
        """Return a table or figure with the rows for these data sets and backbones."""
        return experiment(name, self.dataset, self.backbones)

    @property
    def views(self) -> int | str:
        """Augmented views per image: ``fresh`` as in the paper, or the default for a folder."""
        return self.options.get("views", Config.views if self.dataset == FOLDER else "fresh")

    def config(self, row: TableRow, seed: int) -> dict[str, Any]:
        """Return the fields of :class:`primaps.Config` for a run, without classes and backbone.

        The decay of Eq. 11 is constant on the data sets of the paper. A folder has few steps, in
        which a constant decay would hardly move the average, so its decay is ramped.
        """
        defaults = {
            "epochs": paper.EPOCHS.get(row.dataset, 50),
            "views": self.views,
            "momentum_ramp": self.protocol == "program" or row.dataset == FOLDER,
        }
        given = {"recipe": "paper", **defaults, **self.options, **METHODS[row.kind], **row.options}
        if given["recipe"] != "paper" and "method" not in given:
            given = {name: value for name, value in given.items() if name not in EM_STEPS}
        return {**given, "seed": seed}

    @property
    def resize(self) -> Resize:
        """Resizing of the images and labels that are scored."""
        return "tensor" if self.protocol == "program" else "pillow"

    @property
    def positions(self) -> Positions:
        """Interpolation of the position embeddings."""
        return "scaled" if self.protocol == "program" else "exact"

    def seeds_of(self, row: TableRow) -> tuple[int, ...]:
        """Return the seeds of a row. An oracle is deterministic and runs once."""
        return self.seeds[:1] if row.kind == "oracle" else self.seeds

    def projection(self, row: TableRow) -> Path | None:
        """Return the checkpoint of a row, or None if none was given."""
        full = f"{row.projection}/{row.dataset}/{row.backbone}"
        return self.projections.get(full, self.projections.get(row.projection))

    def trains(self, row: TableRow) -> bool:
        """Return whether the projection of a row is trained here, without a checkpoint."""
        return bool(row.projection) and row.dataset == FOLDER and self.projection(row) is None

    def codes(self, row: TableRow) -> str:
        """Describe the space of the prototypes."""
        if not row.projection:
            return "features"
        if self.trains(row):
            return f"codes of {row.projection} trained here"
        return f"codes of {row.projection}'s checkpoint"

    def lacking(self, row: TableRow) -> str:
        """Return why a row cannot run, or an empty string. Weights of backbones are not checked."""
        if row.dataset not in self.roots:
            return f"no data: add --root {row.dataset}=FOLDER"
        if not row.projection or self.trains(row):
            return ""
        path = self.projection(row)
        if path is None:
            full = f"{row.projection}/{row.dataset}/{row.backbone}"
            return f"no checkpoint of {row.projection}: add --projection {full}=PATH"
        if not path.exists():
            return f"the checkpoint {path} does not exist"
        return ""


def read_roots(given: Sequence[str], experiments: Sequence[Experiment]) -> dict[str, Path]:
    """Parse folders of data sets from ``FOLDER`` or ``NAME=FOLDER``.

    Raises:
        InputError: the experiments use several data sets, and a folder has no name.

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
                    f"--root {text} has no name of a data set; write {known[0]}=FOLDER (names: "
                    f"{', '.join(known)})"
                )
            name, folder = known[0], text
        roots[name] = Path(folder).expanduser()
    return roots


def read_pairs(given: Sequence[str], option: str) -> dict[str, Path]:
    """Parse paths of checkpoints from ``NAME=PATH``.

    Raises:
        InputError: a text is not ``NAME=PATH``.

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
    """Parse seeds from ``0,1,2``.

    Raises:
        InputError: a seed is not an integer, or occurs twice.

    Examples:
        >>> read_seeds("0,1,2")
        (0, 1, 2)
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds is {text!r}; it must be distinct integers such as 0,1,2")
    return seeds
