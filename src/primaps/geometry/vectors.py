"""Label maps as polygons on a map: georeference, GeoPackage and GeoJSON, with the extra ``geo``."""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer

from primaps.utils.errors import InputError, MissingPackageError
from primaps.utils.inputs import read_bytes

METERS_PER_DEGREE = 111_320.0
MAX_SIDE_FILE = 64 << 20
"""Maximum size of an ``.aux.xml`` in bytes."""
PLACE_MARKS = (b"<GeoTransform", b"<SRS", b"<GCPList", b"<NoDataValue")
"""Elements of an ``.aux.xml`` that place an image or mask its pixels."""
BATCH = 10_000
"""Polygons that are written at once."""


def geo_module(name: str) -> Any:
    """Import a module of the extra ``geo``: of rasterio, shapely or pyogrio.

    Raises:
        MissingPackageError: The package is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise MissingPackageError(
            f'georeferenced images and polygons on a map need {package}: pip install "primaps[geo]"'
        ) from None


@dataclass(frozen=True)
class Georeference:
    """Position of an image on a map.

    Attributes:
        transform: ``rasterio.Affine`` from (column, row) of pixel corners to (x, y) of the map; the
            best fit to the ground control points, if there are any.
        crs: ``rasterio.crs.CRS`` of the map; None if unknown.
        gcps: ``rasterio.control.GroundControlPoint`` that place the image; empty if the transform
            does.
        rpcs: ``rasterio.rpc.RPC``, coefficients that place the image on the ground together with an
            elevation model; None if something else does.
    """

    transform: Any
    crs: Any = None
    gcps: tuple[Any, ...] = ()
    rpcs: Any = None

    def profile(self) -> dict[str, Any]:
        """Return the keywords of ``rasterio.open`` that write this georeference."""
        if self.rpcs is not None:
            return {"rpcs": self.rpcs}
        if self.gcps:
            return {"gcps": list(self.gcps), "crs": self.crs}
        return {"transform": self.transform, "crs": self.crs}

    def on_map(self, polygon: Any) -> Any:
        """Move a ``shapely`` geometry from (column, row) of pixel corners to the map.

        Raises:
            InputError: the image is placed by RPCs, or its ground control points do not suffice.
        """
        if self.rpcs is not None:
            raise InputError(
                "the image is placed by rational polynomial coefficients (RPC), which polygons do "
                "not support; orthorectify it, such as: gdalwarp -rpc scene.tif ortho.tif"
            )
        if not self.gcps:
            place = self.transform
            matrix = [place.a, place.b, place.d, place.e, place.c, place.f]
            return geo_module("shapely.affinity").affine_transform(polygon, matrix)
        transformer = self._gcp_transformer

        def move(corners: np.ndarray) -> np.ndarray:
            x, y = transformer.xy(corners[:, 1], corners[:, 0], offset="ul")
            return np.stack([x, y], 1)

        return geo_module("shapely").transform(polygon, move)

    @cached_property
    def _gcp_transformer(self) -> Any:
        """Transformer of GDAL: a polynomial whose order depends on the number of points."""
        return geo_module("rasterio.transform").GCPTransformer(list(self.gcps))

    @property
    def pixel_area(self) -> float:
        """Area of a pixel in square units of the map; a mean if ground control points place the
        image."""
        a, b, _, d, e, _ = self.transform[:6]
        return float(abs(np.linalg.det([[a, b], [d, e]])))

    @property
    def epsg(self) -> int:
        """EPSG code of the CRS; 0 if it has none."""
        return (self.crs.to_epsg() or 0) if self.crs else 0

    def meters_per_pixel(self, height: int, width: int) -> float | None:
        """Return the side of a pixel on the ground, in the middle of an image.

        Args:
            height: Height of the image in pixels.
            width: Width of the image in pixels.

        Returns:
            Meters, or None if the CRS is unknown.
        """
        side = math.sqrt(self.pixel_area)
        if self.crs and self.crs.is_projected:
            return side * float(self.crs.linear_units_factor[1])
        if self.crs and self.crs.is_geographic:
            _, _, _, d, e, f = self.transform[:6]
            latitude = d * width / 2 + e * height / 2 + f
            return side * METERS_PER_DEGREE * math.sqrt(max(0, math.cos(math.radians(latitude))))
        return None


def dataset_georeference(dataset: Any) -> Georeference | None:
    """Return the georeference of an open rasterio dataset, or None if it has none.

    Raises:
        InputError: The transform or a ground control point has NaN or infinity, or the ground
            control points do not determine a transform.
    """
    transform, crs = dataset.transform, dataset.crs
    if transform.is_identity and dataset.gcps[0]:
        return _gcp_georeference(dataset)
    if transform.is_identity and crs is None:
        return Georeference(transform, rpcs=dataset.rpcs) if dataset.rpcs is not None else None
    if not all(map(math.isfinite, transform)):
        raise InputError(f"{dataset.name}: the georeference has NaN or infinity; correct its tags")
    return Georeference(transform, crs)


def _gcp_georeference(dataset: Any) -> Georeference:
    gcps, crs = dataset.gcps
    values = np.array([(one.row, one.col, one.x, one.y) for one in gcps], float)
    if not np.isfinite(values).all():
        raise InputError(
            f"{dataset.name}: a ground control point has NaN or infinity; correct its tags"
        )
    # Without a spread in both directions there is no transform, or one without an area.
    if len(gcps) < 3 or np.linalg.matrix_rank(values[:, :2] - values[0, :2]) < 2:
        raise InputError(
            f"{dataset.name}: {len(gcps)} ground control points do not determine a place; at least "
            "3 that are not on a line are needed"
        )
    fit = geo_module("rasterio.transform").from_gcps(gcps)
    return Georeference(fit, crs or dataset.crs, tuple(gcps))


def has_side_file(path: Path) -> bool:
    """Return whether a file next to an image gives its place, mask or nodata, as GDAL reads it.

    These are world files (``.tfw``, ``.jgw``, ``.pgw``, ``.wld``, ...), ``.tab`` of MapInfo,
    rational polynomials (``.RPB``, ``_RPC.TXT``), masks (``.tif.msk``), and ``.aux.xml``, unless it
    only has statistics or names.
    """
    suffix = path.suffix[1:].lower()
    ends = ["wld", "tab", "rpb"] + ([f"{suffix[0]}{suffix[-1]}w", f"{suffix}w"] if suffix else [])
    if any(_is_file(path.with_suffix(f".{name}")) for end in ends for name in (end, end.upper())):
        return True
    others = (f"{path.name}.msk", f"{path.stem}_RPC.TXT", f"{path.stem}_rpc.txt")
    if any(_is_file(path.with_name(name)) for name in others):
        return True
    auxiliary = path.with_name(f"{path.name}.aux.xml")
    if not _is_file(auxiliary):
        return False
    try:
        content = read_bytes(auxiliary, MAX_SIDE_FILE)
    except OSError as error:
        raise InputError(f"{auxiliary} cannot be read ({error.strerror})") from None
    return any(mark in content for mark in PLACE_MARKS)


def _is_file(path: Path) -> bool:
    """Return whether a file exists; none has a name that is too long."""
    try:
        return path.is_file()
    except OSError:
        return False


def side_georeference(path: Path) -> Georeference | None:
    """Return the georeference that a file next to an image gives; None without such a file.

    Raises:
        InputError: The file cannot be read.
        MissingPackageError: There is such a file, and rasterio is not installed.
    """
    return read_georeference(path) if has_side_file(path) else None


def read_georeference(path: Path) -> Georeference | None:
    """Return the georeference of an image file, or None if it has none.

    Raises:
        InputError: The file cannot be read or its transform has NaN or infinity.
        MissingPackageError: rasterio is not installed.
    """
    rasterio = geo_module("rasterio")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
            with rasterio.open(path) as dataset:
                return dataset_georeference(dataset)
    except rasterio.errors.RasterioIOError as error:
        raise InputError(f"{path}: rasterio cannot read the georeference ({error})") from None


@dataclass(frozen=True)
class LabelPolygon:
    """A connected region of a label map.

    Attributes:
        label: Value of all its pixels.
        pixels: Number of its pixels.
        polygon: ``shapely.Polygon`` along the sides of pixels, the outer ring counter-clockwise.
    """

    label: int
    pixels: int
    polygon: Any


def label_polygons(
    labels: Integer[np.ndarray, "h w"] | Path,
    nothing: int,
    georeference: Georeference | None = None,
) -> Iterator[LabelPolygon]:
    """Yield the connected regions of a label map as polygons, with holes and without loss.

    Args:
        labels: Label map, or the path of a TIFF, which is read line by line.
        nothing: Value of pixels without a label.
        georeference: Without one, coordinates are columns and negated rows, which is where QGIS
            shows an image without a georeference.

    Raises:
        MissingPackageError: rasterio or shapely is not installed.

    Examples:
        >>> labels = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.uint8)
        >>> for found in label_polygons(labels, 0):
        ...     print(found.label, found.pixels, found.polygon.bounds, len(found.polygon.interiors))
        1 8 (0.0, -3.0, 3.0, 0.0) 1
    """
    features, geometry = geo_module("rasterio.features"), geo_module("shapely.geometry")
    place = georeference or Georeference(geo_module("rasterio").Affine.scale(1, -1))
    with ExitStack() as files:
        mask, source = None, labels
        if isinstance(labels, Path):
            # Without its georeference GDAL returns pixel coordinates, which are exact.
            rasterio = geo_module("rasterio")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
                dataset = files.enter_context(rasterio.open(labels, GEOREF_SOURCES="NONE"))
            source = rasterio.band(dataset, 1)
        else:
            mask = labels != nothing
        for shape, value in features.shapes(source, mask, connectivity=4):
            if value != nothing:
                polygon = geometry.shape(shape)
                on_map = geometry.polygon.orient(place.on_map(polygon))
                yield LabelPolygon(int(value), round(polygon.area), on_map)


def write_polygons(
    path: Path,
    layer: str,
    columns: Mapping[str, Any],
    rows: Iterable[tuple[Any, ...]],
    crs: Any = None,
    description: str = "",
) -> None:
    """Write polygons to a layer of a GeoPackage, or to a GeoJSON file.

    A layer of this name in the file is extended. The same polygons give identical bytes.

    Args:
        path: File with the suffix ``.gpkg`` or ``.geojson``.
        layer: Name of the layer.
        columns: Names and numpy types of the columns; text has the type ``object``.
        rows: A ``shapely.Polygon`` and the values of the columns each, consumed in batches.
        crs: ``rasterio.crs.CRS`` of the coordinates.
        description: Text that :func:`layer_description` returns.

    Raises:
        MissingPackageError: pyogrio or shapely is not installed.
    """
    pyogrio, shapely = geo_module("pyogrio"), geo_module("shapely")
    wkt = crs.to_wkt() if crs else None
    options = {"DESCRIPTION": description} if description else {}
    rows = iter(rows)
    while True:
        batch = list(islice(rows, BATCH))
        polygons = np.array([shapely.to_wkb(row[0]) for row in batch], object)
        values = [
            np.array([row[i] for row in batch], kind)
            for i, kind in enumerate(columns.values(), start=1)
        ]
        with _fixed_date(pyogrio), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided")
            pyogrio.raw.write(
                path, polygons, values, list(columns), layer=layer, geometry_type="Polygon",
                crs=wkt, append=path.exists(), layer_options=options,
            )  # fmt: skip
        if len(batch) < BATCH:
            return


@contextmanager
def _fixed_date(pyogrio: Any) -> Iterator[None]:
    """Write a fixed date into GeoPackages instead of the current one."""
    name = "OGR_CURRENT_DATE"
    before = pyogrio.get_gdal_config_option(name)
    pyogrio.set_gdal_config_options({name: "2000-01-01T00:00:00.000Z"})
    try:
        yield
    finally:
        pyogrio.set_gdal_config_options({name: before})


def layer_description(path: Path) -> str | None:
    """Return the description of the only layer of a GeoPackage, or None if there is no such text.

    Raises:
        MissingPackageError: pyogrio is not installed.
    """
    pyogrio = geo_module("pyogrio")
    try:
        with warnings.catch_warnings():
            # GDAL warns about files of other programs.
            warnings.simplefilter("ignore", RuntimeWarning)
            metadata = pyogrio.read_info(path)["layer_metadata"] or {}
    except (pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError):
        return None
    return metadata.get("DESCRIPTION")
