"""Where on a map the pixels of a GeoTIFF lie, read from its tags."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from primaps.data.reading import ImageError, opened
from primaps.exchange.source import one_sentence

_SCALE, _TIE, _MATRIX, _KEYS = 33550, 33922, 34264, 34735
_RASTER_TYPE, _GEOGRAPHIC, _PROJECTED = 1025, 2048, 3072
_USER_DEFINED = 32767


@dataclass(frozen=True)
class Georeference:
    """The affine map from pixels to a map.

    Attributes:
        matrix: x, y of the map = matrix @ (column, row, 1).
        code: EPSG code of the CRS; 0 if there is none, or it has none.
    """

    matrix: Float[np.ndarray, "2 3"]
    code: int = 0

    @property
    def urn(self) -> str:
        """Name of the CRS as GeoJSON writes it; x first."""
        return (
            f"urn:ogc:def:crs:EPSG::{self.code}"
            if self.code != 4326
            else "urn:ogc:def:crs:OGC:1.3:CRS84"
        )

    @property
    def srs(self) -> int:
        """Number of the CRS in a GeoPackage; -1 is a plane that is none of them."""
        return self.code or -1

    def to_map(self, points: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 2"]:
        """Corners of pixels (column, row) to x, y on the map."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]


PIXELS = Georeference(np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]))
"""Of an image without tags: its pixels, with rows counted downwards from 0."""


def georeference(file: Path | None) -> Georeference:
    """Of an image file; ``PIXELS`` if it is no GeoTIFF.

    Examples:
        >>> georeference(None).to_map(np.array([[2.0, 3.0]])).tolist()
        [[2.0, -3.0]]
    """
    if file is None or file.suffix.lower() not in (".tif", ".tiff"):
        return PIXELS
    with one_sentence(), opened(file) as image:
        tags: Any = getattr(image, "tag_v2", {})
        found = from_tags(tags)
        if not np.isfinite(found.matrix).all():
            raise ImageError("its place on a map has NaN or infinity")
        return found


def from_tags(tags: Any) -> Georeference:
    """Of the tags of a TIFF: a matrix, or a scale and a point that it is tied to."""
    directory = tags.get(_KEYS, ())
    keys = {directory[i]: directory[i + 3] for i in range(4, len(directory) - 3, 4)}
    code = next((keys[one] for one in (_PROJECTED, _GEOGRAPHIC) if one in keys), 0)
    code = 0 if code == _USER_DEFINED else int(code)
    if len(tags.get(_MATRIX, ())) == 16:
        matrix = np.array(tags[_MATRIX], np.float64).reshape(4, 4)[:2, [0, 1, 3]]
    elif len(tags.get(_SCALE, ())) >= 2 and len(tags.get(_TIE, ())) >= 6:
        (sx, sy), (i, j, _, x, y, _) = tags[_SCALE][:2], tags[_TIE][:6]
        matrix = np.array([[sx, 0.0, x - i * sx], [0.0, -sy, y + j * sy]])
    else:
        return PIXELS
    if keys.get(_RASTER_TYPE) == 2:  # tied to centers of pixels, not to corners
        matrix = matrix.copy()
        matrix[:, 2] -= matrix[:, :2] @ [0.5, 0.5]
    return Georeference(matrix, code)
