"""The cache of a collection: features, augmented views and masks of each image, computed once.

An :class:`ArrayCache` holds arrays of one shape under keys, in memory or on disk. On disk it is a
folder with ``rows.bin``, the arrays one after the other, and ``rows.txt``, one line
``key checksum`` per array, written after the array. If a key has several rows, its line is
``key checksum first count``. A process can be killed at any moment: the next writer cuts off a row
without a line and an incomplete line, and a row with a wrong checksum counts as missing. Files are
only appended to, so other processes can read them meanwhile, and they are memory-mapped.

A :class:`FeatureCache` holds the array caches of one backbone and image size. Their folder names
contain everything that an array depends on besides the image (backbone, precision, size, mask
options); the key is the SHA-256 of the image file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Float16, Integer, UInt8
from torch import Tensor

from primaps.backbones.backbone import Backbone, both_features, image_features, mean_of_both
from primaps.features.augmentation import augmented, view_chances
from primaps.features.training_data import (
    EXTRA_COLUMNS,
    ImageArrays,
    MaskTable,
    mask_rows,
    table_of,
)
from primaps.utils.distributed import processes, rank
from primaps.utils.errors import InputError
from primaps.utils.files import cache_dir, locked, named, write_json

logger = logging.getLogger("primaps")
FORMAT = 1
"""Version of the cached arrays; increase it when features or masks change their meaning."""
MEMORY_LIMIT = 2e9
"""With ``auto``, smaller caches stay in memory. In bytes."""
SHORTENED = (
    "{} was shortened by another program while it was in use; run the command again, which "
    "computes the missing features"
)
MASKS = 256
"""Mask numbers of an 8-bit mask map: 0 = ignore, 1..255."""
EXPECTED_MASKS = 6
"""Approximate number of masks per image, to estimate the size of the cache."""


class MappedRows(Sequence[np.ndarray]):
    """Rows of a memory-mapped file, which may be shortened by another program.

    Reading behind the end of a mapped file ends the process by SIGBUS. The size of the file is
    therefore checked at each access.

    Args:
        path: File of the rows.
        row: Shape of a row, and its type.
        places: Row, or rows, of each item.
    """

    def __init__(
        self, path: Path, row: tuple[tuple[int, ...], np.dtype], places: Sequence[slice | int]
    ) -> None:
        self.path, self.places = path, places
        self._shape, self._dtype = row
        self._row_bytes = math.prod(self._shape) * self._dtype.itemsize
        self._file = path.open("rb")  # the mapped file, also after another one has its name
        self._count = os.fstat(self._file.fileno()).st_size // self._row_bytes
        self._rows: np.ndarray | None = None
        if self._count:
            mapped = (self._count, *self._shape)
            with suppress(OSError):  # a file system without memory maps: rows are read
                self._rows = np.memmap(self._file, self._dtype, "r", shape=mapped).view(np.ndarray)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        """Return an item.

        Raises:
            InputError: The file was shortened.
        """
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = self.places[index]
        stop = place.stop if isinstance(place, slice) else place + 1
        size = min(os.fstat(self._file.fileno()).st_size, self._count * self._row_bytes)
        if size < stop * self._row_bytes:
            raise InputError(SHORTENED.format(self.path))
        return self._read(place) if self._rows is None else self._rows[place]

    def _read(self, place: slice | int) -> np.ndarray:
        where = place if isinstance(place, slice) else slice(place, place + 1)
        first, count = where.start * self._row_bytes, where.stop - where.start
        data = os.pread(self._file.fileno(), count * self._row_bytes, first)
        rows = np.frombuffer(data, self._dtype).reshape(count, *self._shape)
        return rows if isinstance(place, slice) else rows[0]

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class ArrayCache:
    r"""Arrays under keys, in memory or in a folder.

    Args:
        shape: shape of a row.
        dtype: data type of a row.
        folder: folder of the cache; None keeps the rows in memory.
        several: each key has an array (n, \*shape) with any number n of rows instead of one row.

    Examples:
        >>> cache = ArrayCache((2,), np.float16)
        >>> cache.append(["a", "b"], np.ones((2, 2)))
        >>> cache.missing(["a", "c"])
        ['c']
        >>> len(cache.rows(["b", "a", "b"]))
        3
        >>> several = ArrayCache((2,), np.float16, several=True)
        >>> several.append(["a", "b"], [np.ones((3, 2)), np.ones((0, 2))])
        >>> [len(rows) for rows in several.rows(["b", "a"]).arrays]
        [0, 3]
    """

    def __init__(
        self,
        shape: Sequence[int],
        dtype: type[np.generic],
        folder: str | Path | None = None,
        several: bool = False,
    ) -> None:
        self.shape, self.dtype, self.several = tuple(shape), np.dtype(dtype), several
        self.row_bytes = math.prod(self.shape) * self.dtype.itemsize
        self.folder = None if folder is None else Path(folder)
        self._lock = RLock()  # batches are computed on several threads
        self._memory: dict[str, np.ndarray] = {}
        self._count = 0  # rows
        self._intact: dict[str, slice] = {}  # key -> rows
        self._unverified: dict[str, tuple[slice, int]] = {}  # key -> rows and checksum
        if self.folder is not None:
            self._read_journal()

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return those ``keys`` that have no intact row, each once."""
        with self._lock:
            wanted = list(dict.fromkeys(keys))
            self._forget_lost(wanted)
            unverified = [key for key in wanted if key in self._unverified]
            if unverified:
                rows = self._mapped([self._unverified[key][0] for key in unverified])
                with ThreadPoolExecutor(2) as pool:
                    sums = pool.map(lambda row: zlib.crc32(row.data), rows)
                    for key, found in zip(unverified, sums, strict=True):
                        where, checksum = self._unverified.pop(key)
                        if found == checksum:
                            self._intact[key] = where
            return [key for key in wanted if key not in self._intact]

    def append(self, keys: Sequence[str], rows: Sequence[np.ndarray] | np.ndarray) -> None:
        """Add the rows of each key; a key that exists gets the new rows.

        Raises:
            OSError: the disk is full or not writable; rows that were cached before stay intact.
            InputError: the file was shortened.
        """
        values = [np.ascontiguousarray(row, self.dtype) for row in rows]
        shapes = {value.shape[1:] if self.several else value.shape for value in values}
        if len(values) != len(keys) or shapes - {self.shape}:
            raise InputError(
                f"got {len(keys)} keys and rows of shapes {shapes} for a cache of {self.shape}"
            )
        counts = [len(value) if self.several else 1 for value in values]
        firsts = [self._count + sum(counts[:i]) for i in range(len(counts))]
        if self.folder is None:
            self._memory |= {key: row.copy() for key, row in zip(keys, values, strict=True)}
        else:
            with named(self.folder / "rows.bin"), (self.folder / "rows.bin").open("ab") as file:
                if file.tell() < self._count * self.row_bytes:
                    raise InputError(SHORTENED.format(self.folder / "rows.bin"))
                for value in values:
                    file.write(value.tobytes())
            lines = []
            for key, value, first, count in zip(keys, values, firsts, counts, strict=True):
                where = f" {first} {count}" if self.several else ""
                lines.append(f"{key} {zlib.crc32(value.data):08x}{where}\n")
            path = self.folder / "rows.txt"
            with named(path), path.open("a") as journal:  # the rows count from here on
                journal.write("".join(lines))
        with self._lock:
            self._count += sum(counts)
            self._intact |= {
                key: slice(first, first + count)
                for key, first, count in zip(keys, firsts, counts, strict=True)
            }

    def rows(self, keys: Sequence[str]) -> ImageArrays:
        """Return the rows of ``keys`` in their order.

        Raises:
            KeyError: a key has no intact row.
            InputError: the file was shortened.
        """
        if not keys:
            return ImageArrays(np.empty((0, *self.shape), self.dtype))
        with self._lock:
            stops = [self._intact[key].stop for key in keys if key in self._intact]
            if self.folder is not None and max(stops, default=0) > self._rows_on_disk():
                raise InputError(SHORTENED.format(self.folder / "rows.bin"))
            self.missing(keys)
            if self.folder is None:
                return ImageArrays([self._memory[key] for key in keys])
            places = [self._intact[key] for key in keys]
            return ImageArrays(
                self._mapped(places if self.several else [where.start for where in places])
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the cache for appending and cut off incomplete rows; a second writer waits."""
        if self.folder is None:
            yield
            return
        with locked(self.folder, self.folder / "lock"):
            self._read_journal(repair=True)
            yield

    def _mapped(self, places: Sequence[slice | int]) -> MappedRows:
        """Map rows on disk into memory."""
        assert self.folder is not None
        return MappedRows(self.folder / "rows.bin", (self.shape, self.dtype), places)

    def _rows_on_disk(self) -> int:
        assert self.folder is not None
        data = self.folder / "rows.bin"
        return data.stat().st_size // self.row_bytes if data.is_file() else 0

    def _forget_lost(self, keys: Iterable[str]) -> None:
        """Forget rows that the file on disk has no more; they are computed again."""
        if self.folder is None:
            return
        rows = self._rows_on_disk()
        for key in keys:
            if key in self._intact and self._intact[key].stop > rows:
                del self._intact[key]
            if key in self._unverified and self._unverified[key][0].stop > rows:
                del self._unverified[key]

    def _read_journal(self, repair: bool = False) -> None:
        """Find the rows that both files have; with ``repair``, cut off the incomplete ones."""
        assert self.folder is not None
        data, journal = self.folder / "rows.bin", self.folder / "rows.txt"
        lines = journal.read_bytes().split(b"\n")[:-1] if journal.is_file() else []
        rows_on_disk = self._rows_on_disk()
        self._count, self._intact, self._unverified = 0, {}, {}
        read = valid = 0  # bytes of the journal, and up to the last line whose rows exist
        for line in lines:
            read += len(line) + 1
            key, *rest = line.decode("ascii", "replace").split(" ")
            # A damaged line loses only its own rows.
            checksum, first, count = None, self._count, int(not self.several)
            try:
                found, *where = int(rest[0], 16), *map(int, rest[1:])
                first, count = where if self.several else (first, count)
                checksum = found
            except (ValueError, IndexError):
                pass
            if not 0 <= first <= first + count <= rows_on_disk:
                continue
            valid, self._count = read, max(self._count, first + count)
            if checksum is not None:
                self._unverified[key] = (slice(first, first + count), checksum)
        if repair:
            with journal.open("ab") as file:
                file.truncate(valid)
            with data.open("ab") as file:
                file.truncate(self._count * self.row_bytes)


@dataclass(frozen=True)
class MaskMaker:
    """A function that computes masks, and the options that its result depends on.

    Attributes:
        make: features (B, C, h, w) and 8-bit images (B, 3, H, W) to masks (B, H, W), 0 = ignore.
        options: everything else that the masks depend on; names their folder in the cache.
    """

    make: Callable[[Tensor, Tensor], Tensor]
    options: dict[str, Any]


Computed = tuple[ArrayCache, Sequence[np.ndarray]]
"""A cache and one new array for each image of a batch."""


class FeatureCache:
    """All that training reads of the images of a collection, for one backbone and image size.

    Args:
        images: approximate number of images, to choose between memory and disk.
        views: augmented feature maps per image; ``fresh`` caches the images instead, to augment
            them again in every step.
        masks: how to compute masks; None for no masks.
        full: keys of the images whose feature maps are cached; of the other images only the
            features of their masks are. None caches the feature maps and masks of all images.
        root: folder of all caches; ``auto`` is memory below 2 GB and the cache folder otherwise;
            None is memory.

    Attributes:
        shape: (C, h, w) of the features of an image.
        features: (2, C, h, w) in half precision, of the image and the flipped image.
        views: (C, h, w) in half precision, one cache per view.
        images: (3, size, size) 8-bit, if views are computed again in every step.
        masks: (size, size) 8-bit, 0 = ignore.
        table: :func:`primaps.features.training_data.mask_rows`, instead of ``masks``.
    """

    def __init__(
        self,
        backbone: Backbone,
        size: int,
        images: int,
        views: int | Literal["fresh"] = 0,
        masks: MaskMaker | None = None,
        root: str | Path | None = "auto",
        full: Collection[str] | None = None,
    ) -> None:
        self.backbone, self.size, self.maker, self.full = backbone, size, masks, full
        blank = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        self.shape = tuple(image_features(backbone, blank).shape[1:])
        if root == "auto":
            count = None if full is None else len(full)
            need = cache_bytes(self.shape, size, images, views, masks is not None, count)
            root = None if need < MEMORY_LIMIT else cache_dir() / "features"
        self.folder = backbone_folder(backbone, size, root)
        half, cached = np.float16, range(0 if views == "fresh" else views)
        options = masks and _short_digest(masks.options)
        self.features = self._cache("features", (2, *self.shape), half)
        self.views = [self._cache(f"view-{view}", self.shape, half) for view in cached]
        self.images = self._cache("images", (3, size, size), np.uint8) if views == "fresh" else None
        self.masks = self.table = None
        if masks and full is None:
            self.masks = self._cache(f"masks-{options}", (size, size), np.uint8, masks)
        elif masks:
            columns = self.shape[0] + EXTRA_COLUMNS
            self.table = self._cache(f"table-{options}", (columns,), np.float32, masks)
        others = [cache for cache in (self.images, self.masks, self.table) if cache is not None]
        self.all = [self.features, *self.views, *others]

    def _cache(
        self,
        name: str,
        shape: tuple[int, ...],
        dtype: type[np.generic],
        masks: MaskMaker | None = None,
    ) -> ArrayCache:
        folder = self.folder and self.folder / name
        if folder and masks:
            _describe(folder, masks.options)
        return ArrayCache(shape, dtype, folder, several=name.startswith("table-"))

    @contextmanager
    def writing(self, keys: Sequence[str]) -> Iterator[None]:
        """Lock all caches for appending; a complete cache is not locked and can be read-only."""
        if not self.missing(keys):
            yield
            return
        with ExitStack() as stack:
            for cache in self.all:
                stack.enter_context(cache.writing())
            yield

    def missing(self, keys: Sequence[str]) -> set[str]:
        """Return those images that are missing in at least one cache."""
        return set().union(*(cache.missing(self._wanted(cache, keys)) for cache in self.all))

    def compute(self, images: UInt8[Tensor, "b 3 H W"], keys: Sequence[str]) -> list[Computed]:
        """Compute the missing arrays of a batch of images, for :meth:`add`; thread-safe.

        Masks are computed from features in half precision, as they are cached. They are the same
        whether the features are new or were cached before.
        """
        if not self.missing(keys):
            return []
        images = images.to(self.backbone.device)
        both = self._both_features(images, keys)
        computed: list[tuple[ArrayCache, Iterable[Tensor]]] = [(self.features, both)]
        for number, cache in enumerate(self.views):
            if cache.missing(keys):
                chances = torch.stack([view_chances(number, key) for key in keys])
                view = augmented(self.backbone, images, chances[:, 0] < 0.5, chances[:, 1:])
                computed.append((cache, view))
        if self.images:
            computed.append((self.images, images))
        if self.masks and self.masks.missing(keys):
            computed.append((self.masks, self._make_masks(both[:, 0], images)))
        if self.table and self.table.missing(keys):
            masks = self._make_masks(both[:, 0], images)
            means = mean_of_both(both.float())
            computed.append((self.table, list(map(mask_rows, means, masks))))
        return [(cache, [array.cpu().numpy() for array in arrays]) for cache, arrays in computed]

    def add(self, computed: Sequence[Computed], keys: Sequence[str]) -> None:
        """Cache the results of :meth:`compute`, each image once."""
        for cache, arrays in computed:
            missing = cache.missing(self._wanted(cache, keys))
            if missing:
                cache.append(missing, [arrays[keys.index(key)] for key in missing])

    def _wanted(self, cache: ArrayCache, keys: Sequence[str]) -> Sequence[str]:
        if self.full is None or cache is not self.features:
            return keys
        return [key for key in keys if key in self.full]

    def _both_features(
        self, images: UInt8[Tensor, "b 3 H W"], keys: Sequence[str]
    ) -> Float16[Tensor, "b 2 c h w"]:
        """Compute or read the features of images and flipped images."""
        if not self.features.missing(keys):  # cached by a fit with other masks
            rows = self.features.rows(keys)
            return rows.take(torch.arange(len(rows))).to(images.device)
        # The cache of a CPU core holds one image; an accelerator is faster with a whole batch.
        together = 1 if images.device.type == "cpu" else len(images)
        parts = [both_features(self.backbone, part).half() for part in images.split(together)]
        return torch.cat(parts)

    def _make_masks(
        self, features: Float[Tensor, "b c h w"], images: UInt8[Tensor, "b 3 H W"]
    ) -> Integer[Tensor, "b H W"]:
        assert self.maker is not None
        numbers = self.maker.make(features.to(images.device).float(), images)
        # Mask maps are 8-bit. Masks beyond 255 are single patch tokens, proposed last: ignored.
        return torch.where(numbers < MASKS, numbers, 0)

    def mask_table(self, keys: Sequence[str]) -> MaskTable | None:
        """Return the table of the masks of images on the backbone's device; None if not cached."""
        if self.table is None:
            return None
        rows = self.table.rows(keys).arrays
        table = table_of(
            (torch.from_numpy(np.array(array)) for array in rows), [len(array) for array in rows]
        )
        return table.to(self.backbone.device)


def backbone_folder(backbone: Backbone, size: int, root: str | Path | None) -> Path | None:
    """Return the folder for a backbone, precision, size and, under torchrun, process.

    Args:
        root: folder of all caches; None is memory.

    Returns:
        None if arrays stay in memory, as those of a backbone whose weights are unknown do.
    """
    if root is None or backbone.digest is None:
        if root is not None:
            logger.info(
                "%s has no weights that identify it: features stay in memory", backbone.name
            )
        return None
    description = {
        "format": FORMAT,
        "backbone": backbone.digest,
        "precision": backbone.arithmetic,
        "size": size,
    }
    share = f"part-{rank()}-of-{processes()}" if processes() > 1 else ""
    name = f"{backbone.name.replace('/', '--')}-{size}-{_short_digest(description)}"
    folder = Path(root).expanduser() / name / share
    _describe(folder, {"name": backbone.name, **description})
    return folder


def cache_bytes(
    shape: tuple[int, ...],
    size: int,
    images: int,
    views: int | Literal["fresh"] = 0,
    masks: bool = True,
    full: int | None = None,
) -> int:
    """Estimate the bytes of the cache of a number of images.

    Args:
        shape: (C, h, w) of the features of an image.
        full: number of images whose feature maps are cached, if only the features of masks are
            cached of the others; None is all images, with masks as maps.

    Examples:
        >>> cache_bytes((384, 23, 23), 322, 10**6) / 1e9
        916.228
        >>> cache_bytes((384, 23, 23), 322, 10**6, full=3000) / 1e9
        11.701632
    """
    half = 2 * math.prod(shape)
    if full is not None:
        return images * EXPECTED_MASKS * 4 * (shape[0] + EXTRA_COLUMNS) + full * 2 * half
    more = 3 * size**2 if views == "fresh" else views * half
    return images * (2 * half + more + masks * size**2)


def _describe(folder: Path, description: dict[str, Any]) -> None:
    """Write ``about.json``, which describes the content of the folder."""
    path = folder / "about.json"
    try:
        if json.loads(path.read_text("utf-8")) == description:
            return
    except (OSError, ValueError, RecursionError):
        pass
    write_json(path, description)


def _short_digest(options: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(options, sort_keys=True).encode()).hexdigest()[:12]
