"""What tests/fuzz.py changes: small files of every kind that is read, and who reads them."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save
from scipy.io import savemat

from primaps.backbones.load import load_backbone
from primaps.backbones.vit import load_vit
from primaps.backbones.weights import read_pth, to_hub_names
from primaps.classes.stability import ClassStability
from primaps.classes.summary import ClassSummary
from primaps.classes.tree import grow
from primaps.config import Config
from primaps.data import load_dataset, load_image, load_label
from primaps.data.check import check_dataset
from primaps.data.cocostuff import prepare_cocostuff
from primaps.data.images import image_size, label_mode, read_mat
from primaps.em.kmeans import Prototypes
from primaps.em.training import Recorder
from primaps.evaluation.audit import Audit, AuditRecord, Question
from primaps.exchange.classes import Classes, read_classes
from primaps.exchange.formats import FORMATS
from primaps.exchange.transfer import export_labels, import_labels
from primaps.features.feature_cache import ArrayCache
from primaps.geometry.vectors import read_georeference
from primaps.model import PriMaPsEM
from primaps.persistence import (
    BackboneRecord,
    SavedModel,
    TrainingRecord,
    model_card,
    read_class_summary,
    read_edits,
    read_model,
    write_model,
)
from primaps.projections import Head, Projection, read_checkpoint
from primaps.results import OutputFolder
from primaps.scenes.readers import open_scene
from primaps.scenes.source import Box
from primaps.scenes.view import stretch_limits
from primaps.utils.errors import PrimapsError
from primaps.utils.files import sha256, write_json
from tests.backbones.test_backbones import original_names
from tests.exchange.samples import blocks, collection, drawn_files
from tests.fuzz import Target
from tests.projections.originals import write_hp, write_stego
from tests.scenes.conftest import geotiff
from tests.trees import cocostuff_tree, labeled_tree, potsdam_tree

Read = Callable[[Path], Any]


def target(name: str, folder: Path) -> Target:
    """One kind by its name; its files are made in an empty folder, and kept in memory."""
    if name not in KINDS:
        return _exchange(folder, name)
    make, read = KINDS[name]
    return _files(folder, make, read)


def _files(folder: Path, make: Callable[[Path], Any], read: Read) -> Target:
    folder.mkdir(parents=True, exist_ok=True)
    make(folder)
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return Target({p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}, read)


def _images(folder: Path) -> None:
    generator = np.random.default_rng(0)
    array = generator.integers(0, 255, (24, 32, 3), np.uint8)
    image = Image.fromarray(array)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x829A] = 6, "maker", 0.5
    for end in ("png", "jpg", "webp", "avif", "gif", "bmp", "ppm", "tif", "jp2"):
        options = {"exif": exif} if end in ("png", "jpg", "webp", "avif", "tif") else {}
        image.save(folder / f"a.{end}", **options)
    Image.fromarray(generator.random((24, 32)).astype(np.float32) * 1e30).save(folder / "f.tif")
    Image.fromarray(array[..., 0].astype(np.int32) << 20).save(folder / "i.tif")
    Image.fromarray(array[..., 0].astype(np.uint16) * 200).save(folder / "w.png")
    image.convert("P").save(folder / "p.png", transparency=3)
    image.convert("RGBA").save(folder / "t.png")
    image.convert("CMYK").save(folder / "c.jpg")
    image.save(folder / "packed.tif", compression="tiff_lzw")
    geo = {33550: (1.0, 1.0, 0.0), 33922: (0.0, 0.0, 0.0, 5.0, 6.0, 0.0)}
    image.save(folder / "geo.tif", tiffinfo=geo)


def _read_images(folder: Path) -> None:
    for path in folder.iterdir():  # the others are as they should be
        image_size(path)
        if path.suffix == ".tif":
            read_georeference(path)
        assert load_image(path).mode == "RGB"


def _labels(folder: Path) -> None:
    label = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(label).save(folder / "a.png")
    Image.fromarray(label).convert("P").save(folder / "p.png")
    Image.fromarray(label.astype(np.uint16) * 9).save(folder / "w.png")
    Image.fromarray(label).save(folder / "a.tif")
    Image.fromarray(label > 9).save(folder / "b.png")
    savemat(folder / "a.mat", {"gt": label, "img": np.dstack([label] * 4)})
    savemat(folder / "c.mat", {"gt": label, "img": np.dstack([label] * 3)}, do_compression=True)
    savemat(folder / "d.mat", {"gt": label.astype(float)}, format="4")


def _read_labels(folder: Path) -> None:
    for path in folder.iterdir():
        if path.suffix == ".mat":
            if path.stem != "d":
                load_image(path)
            read_mat(path, "gt")
        else:
            label_mode(path)
            load_label(path)


def _checkpoints(folder: Path) -> None:
    small = original_names(1, 64, 8, 2, dinov2=False)
    write_stego(folder / "a.ckpt", width=64, dim=4, classes=3, vit=small)
    write_hp(folder / "a.pth", width=64, dim=4)
    torch.save(small, folder / "vit.pth")


def _read_checkpoints(folder: Path) -> None:
    for name in ("a.ckpt", "a.pth"):
        read_checkpoint(None, folder / name)
    to_hub_names(read_pth(folder / "vit.pth"))


def _model(folder: Path) -> None:
    random = torch.Generator().manual_seed(0)
    direction = torch.nn.functional.normalize(torch.randn(3, 16, generator=random), dim=1)
    features = direction.repeat(40, 1) + 0.1 * torch.randn(120, 16, generator=random)
    features = torch.nn.functional.normalize(features, dim=1)
    tree = grow(features, torch.arange(120) % 3, direction, leaves=8)
    stability = tuple(ClassStability(0.9, 0.3, 5, 1, 0.4) for _ in range(3))
    summary = ClassSummary(tree, stability, tuple([1 / len(tree)] * len(tree)))
    config = Config(3, backbone="callable:pool", size=64)
    lines = [{"stage": "em", "epoch": 1, "step": 3, "loss": 0.5, "empty": [2]}]
    backbone, training = BackboneRecord("callable:pool", None, 8), TrainingRecord(9, 1, 2, False)
    prototypes = Prototypes(direction)
    saved = SavedModel(config, backbone, None, prototypes, lines, training, summary)
    write_model(folder, saved)
    edits = [{"rename": "0", "to": "car"}, {"merge": ["1", "2"]}, {"color": "0", "to": "#112233"}]
    write_json(folder / "edits.json", {"format": 1, "edits": edits})
    Projection(Head(16, 4, 8), torch.randn(3, 4, generator=random), "own").save(folder)


def _read_model(folder: Path) -> None:
    read_model(folder)
    summary = read_class_summary(folder)
    if summary is not None:
        read_edits(folder, summary.tree)
    Projection.load(folder)
    read_classes(folder)
    model_card(folder, "a/b")
    PriMaPsEM.from_pretrained(folder, _pool, "cpu", projection=None)


def _read_weights(folder: Path) -> None:
    """As of somebody who knows that ``config.json`` has the digest of the weights."""
    forged = folder.parent / "forged"
    shutil.copytree(folder, forged)
    try:
        about = json.loads((forged / "config.json").read_bytes())
        about["weights"] = sha256(forged / "model.safetensors")
        (forged / "config.json").write_text(json.dumps(about))
    except (ValueError, TypeError, RecursionError):
        return
    _read_model(forged)


def _pool(images: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(images, 8).repeat(1, 6, 1, 1)[:, :16]


def _backbone(folder: Path) -> None:
    tensors, config = to_hub_names(original_names(1, 64, 8, 2, dinov2=False))
    (folder / "model.safetensors").write_bytes(save(tensors, {"format": "pt"}))
    write_json(folder / "config.json", config)


def _read_backbone(folder: Path) -> None:
    load_vit(str(folder), local=True)
    load_backbone(folder, "cpu")


def _network() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    return network, torch.optim.Adam(network.parameters())


def _state(folder: Path) -> None:
    network, optimizer = _network()
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    recorder = Recorder(2, folder=folder, fingerprint="a")
    recorder.record("em", 1, 4, {"loss": torch.tensor(0.5)}, lambda sums, steps: {})
    recorder.save("em", 4, 4, network, optimizer)


def _read_state(folder: Path) -> None:
    Recorder(2, folder=folder, fingerprint="a").restore("em", *_network())


def _reads(name: str, split: str) -> Read:
    def read(folder: Path) -> None:
        for finding in check_dataset(name, folder):
            assert "\n" not in finding.text
        data = load_dataset(name, folder, split)
        for sample in data.samples:
            load_image(sample.source)
            if sample.label is not None:
                data.label(sample)

    return read


def _potsdam(folder: Path) -> None:
    potsdam_tree(folder, side=8)


def _archives(folder: Path) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.full((400, 400), 157, np.uint8)).save(picture, "png")
    for name, member in (("val2017.zip", "1.jpg"), ("stuffthingmaps_trainval2017.zip", "1.png")):
        with zipfile.ZipFile(folder / name, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr(f"val2017/{member}", picture.getvalue())


def _read_archives(folder: Path) -> None:
    out = folder.parent / "out"
    prepare_cocostuff(folder, out, make_lists=True, log=lambda sentence: None)


def _output(folder: Path) -> None:
    output = OutputFolder(folder, {"primaps": "1", "command": "x"}, [], ["a.txt"])
    output.write("digest", {"a.txt": lambda path: path.write_text("mask")})


def _read_output(folder: Path) -> None:
    again = folder.parent / "again"  # where options may be written
    shutil.copytree(folder, again)
    try:
        output = OutputFolder(again, {"primaps": "1", "command": "x"}, [], ["a.txt"])
        assert (again / "a.txt").read_bytes() == b"mask"
        output.finished("digest", ["a.txt"])
    finally:
        assert (again / "a.txt").read_bytes() == (folder / "a.txt").read_bytes()


def _audit(folder: Path) -> None:
    questions = [[Question(strip, 0, "a.png", 1, 2, 0, "x")] for strip in range(3)]
    record = AuditRecord(1, ["x"], [2, 0, 1], questions, [1, 0, 0], [True, None, None])
    Audit(folder, record).save()


def _store(folder: Path) -> None:
    store = ArrayCache((4, 3), np.float16, folder)
    store.append(["a", "b"], np.ones((2, 4, 3)))


def _read_store(folder: Path) -> None:
    store = ArrayCache((4, 3), np.float16, folder)
    missing = store.missing(["a", "b"])
    kept = [key for key in ("a", "b") if key not in missing]
    for key in kept:
        assert (np.asarray(store.rows([key]).arrays[0]) == 1).all()


def _result(folder: Path) -> None:
    collection(folder, {"a.png": blocks(0, 12, 14, 3, block=4)}, Classes(("x", "y", "z")))
    about = {"primaps": "1", "command": "predict", "names": ["x", "y", "z"]}
    (folder / "result" / "primaps.json").write_text(json.dumps(about))


def _read_result(folder: Path) -> None:
    out = folder.parent / "out"
    export_labels(folder / "result", folder / "images", "coco", out / "coco")
    export_labels(folder / "result", folder / "images", "geojson", out / "geojson")


def _exchange(folder: Path, name: str) -> Target:
    folder.mkdir(parents=True, exist_ok=True)
    form = name.removeprefix(DRAWN)

    def read(source: Path) -> None:
        out = source.parent / "out"
        try:
            import_labels(source, form, out, log=lambda sentence: None)
        except PrimapsError:
            assert not out.exists()
            raise

    if name.startswith(DRAWN):
        return Target(drawn_files()[form], read)
    data = collection(folder, {"a.png": blocks(0, 12, 14, 3, block=4)}, Classes(("x", "y", "z")))
    export_labels(data.result, data.images, name, folder / "out")
    paths = [p for p in sorted((folder / "out").rglob("*")) if p.is_file()]
    files = {p.relative_to(folder / "out").as_posix(): p.read_bytes() for p in paths}
    return Target(files, read)


def _scenes(folder: Path) -> None:
    random = np.random.default_rng(0)
    values = random.integers(0, 255, (3, 70, 90), np.uint8)
    deep = values.astype(np.uint16) * 200
    geotiff(folder / "a.tif", values, compress="deflate")
    geotiff(folder / "deep.tif", deep, nodata=0)
    geotiff(folder / "gray.tif", values[:1].astype(np.float32), tiled=False)
    geotiff(folder / "plain.tif", values, crs=None, transform=None)
    (folder / "plain.tfw").write_text("0.5\n0\n0\n-0.5\n400000\n5800000\n")
    tifffile = pytest.importorskip("tifffile")
    rows = values.transpose(1, 2, 0)
    tifffile.imwrite(folder / "strips.tif", rows, photometric="rgb", compression="zlib")
    tifffile.imwrite(folder / "planes.tif", deep, photometric="rgb", planarconfig="separate")
    with tifffile.TiffWriter(folder / "pyramid.svs") as file:
        options = {"photometric": "rgb", "tile": (16, 16), "compression": "zlib"}
        file.write(rows, subifds=1, **options)
        file.write(rows[::2, ::2], subfiletype=1, **options)


def _read_scenes(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.suffix == ".tfw":
            continue
        with closing(open_scene(path)) as scene:
            stretch_limits(scene)
            for level, (height, width) in enumerate(scene.sizes):
                high, wide = min(height, 32), min(width, 32)
                for box in (Box(0, high, 0, wide), Box(height - high, height, width - wide, width)):
                    values, valid = scene.read(level, box)
                    assert values.shape[1:] == valid.shape == box.shape


KINDS: dict[str, tuple[Read, Read]] = {
    "images": (_images, _read_images),
    "labels": (_labels, _read_labels),
    "checkpoints": (_checkpoints, _read_checkpoints),
    "model": (_model, _read_model),
    "weights": (_model, _read_weights),
    "backbone": (_backbone, _read_backbone),
    "state": (_state, _read_state),
    "folder": (labeled_tree, _reads("folder", "train")),
    "cocostuff": (cocostuff_tree, _reads("cocostuff", "val")),
    "potsdam": (_potsdam, _reads("potsdam", "val")),
    "archives": (_archives, _read_archives),
    "output": (_output, _read_output),
    "audit": (_audit, Audit.load),
    "store": (_store, _read_store),
    "result": (_result, _read_result),
    "scenes": (_scenes, _read_scenes),
}
DRAWN = "drawn-"
"""Files of other tools with every shape that a person can draw."""
NAMES = [*KINDS, *(name for name, row in FORMATS.items() if row.read)]
NAMES += [f"{DRAWN}{name}" for name in drawn_files()]
