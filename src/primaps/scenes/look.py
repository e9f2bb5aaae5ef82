"""How a network looks at scenes: windows, scale, bands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from primaps.scenes.source import Scene
from primaps.scenes.stretch import stretch_limits
from primaps.scenes.view import View, view_scale
from primaps.scenes.windows import Windows, plan_windows
from primaps.support.errors import InputError
from primaps.support.typed import Range, check_fields

Bands = list[Annotated[int, Range(1)]]
Limits = tuple[float, float]


@dataclass(frozen=True)
class Look:
    """How a network looks at a scene.

    Attributes:
        window: side of windows in pixels that the network sees; None is the size that the model was
            fitted at.
        overlap: of neighbouring windows in such pixels; None is an eighth of the window.
        scale: pixels of the scene, per side, that one pixel of the network covers; None is 1.
        mpp: the same as a ground size: metres that one pixel of the network covers.
        bands: those shown as red, green and blue, counted from 1; None leaves it to the file.
        stretch: values of bands that become black and white; None is the 2nd and 98th percentile of
            the scene, and leaves 8-bit bands as they are.

    Raises:
        InputError: a value is out of its range.

    Examples:
        >>> Look(window=322, overlap=42).to_dict()["overlap"]
        42
    """

    window: Annotated[int, Range(1, 16384)] | None = None
    overlap: Annotated[int, Range(0)] | None = None
    scale: Annotated[float, Range(above=0)] | None = None
    mpp: Annotated[float, Range(above=0)] | None = None
    bands: Bands | None = None
    stretch: Limits | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.stretch is not None and not self.stretch[0] < self.stretch[1]:
            low, high = self.stretch
            raise InputError(f"stretch {low:g},{high:g} must rise from black to white")

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def view(self, scene: Scene, seed: int = 0) -> View:
        """A scene as the network sees it."""
        scale = view_scale(scene, self.scale, self.mpp)
        return View(scene, scale, stretch_limits(scene, seed, self.stretch))

    def windows(self, view: View, patch: int, size: int) -> Windows:
        """Where windows lie; ``size`` is that of the model."""
        window = self.window or size
        overlap = window // 8 if self.overlap is None else self.overlap
        return plan_windows(view.height, view.width, patch, window, overlap)


def is_scene(inputs: list[str], out: Path) -> bool:
    """Whether a command is about one scene: a single file, and a TIFF to write.

    Examples:
        >>> is_scene(["photographs"], Path("out")), is_scene([__file__], Path("a.TIF"))
        (False, True)
    """
    single = len(inputs) == 1 and not Path(inputs[0]).expanduser().is_dir()
    return single and out.suffix.lower() in (".tif", ".tiff")
