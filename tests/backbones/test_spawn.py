"""What is documented as picklable computes the same in a spawned process.

``spawn`` is the default of ``multiprocessing`` on macOS and Windows.
"""

from __future__ import annotations

import importlib.util
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from primaps import Predictor, PriMaPsEM, Proposer, load_backbone
from tests.test_model import QUICK


def computed(pickled: bytes, pixels: np.ndarray, without_openvino: bool) -> dict[str, object]:
    """Run every object of the pickle on an image; an error is returned as its text."""
    if without_openvino:
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: (
            None if name == "openvino" else find(name, *rest)
        )
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    for name, item in pickle.loads(pickled).items():
        try:
            if isinstance(item, PriMaPsEM):
                found[name] = item.predict(Image.fromarray(pixels)).numpy()
            elif isinstance(item, Predictor | Proposer):
                found[name] = item({"image": pixels[None]})[item.output][0]
            else:
                image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
                found[name] = item(image).numpy()
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def spawned(items: dict[str, object], pixels: np.ndarray, without_openvino: bool = False):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(computed, (pickle.dumps(items), pixels, without_openvino))


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)


@pytest.fixture
def items(vit, painted_folder, tmp_path, pixels):
    """Everything public that is documented as picklable."""
    model = PriMaPsEM(3, backbone=vit, **QUICK).fit(painted_folder / "images")
    model.save_pretrained(tmp_path / "model")
    codes = PriMaPsEM(
        2, backbone=torch.nn.AvgPool2d(8), projection=torch.nn.Conv2d(3, 2, 1), patch_size=8,
        device="cpu", size=64, min_init_steps=2, mask_crf=False,
    ).fit([Image.fromarray(pixels)] * 4, cache=None)  # fmt: skip
    folder = str(tmp_path / "model")
    return {
        "backbone": model.backbone,
        "bfloat16": load_backbone(model.backbone, precision="bfloat16"),
        "model": model,
        "cut": model.cut(2),
        "projection": codes,
        "predictor": Predictor(model),
        "predictor of a folder": Predictor(folder, device="cpu", precision="float32"),
        "proposer": Proposer(model.backbone, size=64),
        "proposer of a name": Proposer(vit, size=64, device="cpu", mask_crf=False),
    }


def assert_same(found: dict[str, object], items: dict[str, object], pixels: np.ndarray) -> None:
    threads = torch.get_num_threads()
    try:
        expected = computed(pickle.dumps(items), pixels, False)
    finally:
        torch.set_num_threads(threads)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert isinstance(found[name], np.ndarray), f"{name}: {found[name]}"
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_everything_picklable_computes_the_same_in_a_spawned_process(items, pixels):
    if importlib.util.find_spec("openvino") is not None:
        vit = items["proposer of a name"].backbone
        items["openvino"] = load_backbone(vit, "cpu", engine="openvino")
        items["proposer by openvino"] = Proposer(vit, size=64, device="cpu", engine="openvino")
    assert_same(spawned(items, pixels), items, pixels)


def test_a_process_without_openvino_says_so_and_computes_the_rest(vit, pixels):
    pytest.importorskip("openvino")
    items = {"torch": load_backbone(vit, "cpu")}
    by_openvino = {"openvino": load_backbone(vit, "cpu", engine="openvino")}
    found = spawned(items | by_openvino, pixels, without_openvino=True)
    error = found.pop("openvino")
    assert_same(found, items, pixels)
    assert error == (
        "MissingPackageError: the backbone was loaded with engine openvino, which is not installed "
        "here: pip install 'primaps[openvino]', or load it with engine torch"
    )
