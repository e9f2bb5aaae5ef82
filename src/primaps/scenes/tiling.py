"""How a network looks at scenes: crops, scale, bands."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Gt

from primaps.backbones.backbone import Backbone, image_side
from primaps.config import CrfTile, Size
from primaps.scenes.crops import Crops, plan_crops
from primaps.scenes.source import Scene
from primaps.scenes.stretch import stretch_limits
from primaps.scenes.view import View, view_scale
from primaps.utils.errors import InputError
from primaps.utils.parallel import lane_count
from primaps.utils.validation import validate_fields

Bands = list[Annotated[int, Ge(1)]]
Limits = tuple[float, float]


@dataclass(frozen=True)
class TilingOptions:
    """How a network looks at a scene.

    Attributes:
        size: side of the crops that the network sees one by one, in pixels, rounded to patches;
            None is the size that the model was fitted at.
        tile_overlap: of neighboring crops in such pixels; None is an eighth of the size.
        crf_tile: side of the tiles that the CRF refines, in such pixels: a
            matter of memory, which classes hardly depend on. None is 840 for up to 12 classes, and
            less for more.
        scale: pixels of the scene, per side, that one pixel of the network covers; None is 1.
        mpp: the same as a ground size: meters that one pixel of the network covers.
        bands: those shown as red, green and blue, counted from 1; None leaves it to the file.
        stretch: values of bands that become black and white; None is the 2nd and 98th percentile of
            the scene, and leaves 8-bit bands as they are.

    Raises:
        InputError: a value is out of its range.

    Examples:
        >>> TilingOptions(size=322, tile_overlap=42).to_dict()["tile_overlap"]
        42
    """

    size: Size | None = None
    tile_overlap: Annotated[int, Ge(0)] | None = None
    crf_tile: CrfTile | None = None
    scale: Annotated[float, Gt(0)] | None = None
    mpp: Annotated[float, Gt(0)] | None = None
    bands: Bands | None = None
    stretch: Limits | None = None

    def __post_init__(self) -> None:
        validate_fields(self)
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

    def crops(self, view: View, network: Backbone, size: int, classes: int = 1) -> Crops:
        """Where crops lie; ``size`` is that of the model.

        Raises:
            InputError: crops take more memory than there is, or overlap by more than half.
        """
        side = image_side(network, self.size or size, lane_count(network.device), classes)
        overlap = side // 8 if self.tile_overlap is None else self.tile_overlap
        return plan_crops(view.height, view.width, network.patch_size, side, overlap)


def is_scene(inputs: list[str], out: Path) -> bool:
    """Whether a command is about one scene: a single file, and a TIFF to write.

    Examples:
        >>> is_scene(["images"], Path("out")), is_scene([__file__], Path("a.TIF"))
        (False, True)
    """
    single = len(inputs) == 1 and not Path(inputs[0]).expanduser().is_dir()
    return single and out.suffix.lower() in (".tif", ".tiff")
