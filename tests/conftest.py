"""Shared fixtures. Shapes in signatures of the core packages are checked while tests run."""

import os
import re
import signal
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # each worker has one core
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import numpy as np
import pytest
from jaxtyping import install_import_hook

import tests.shapes  # noqa: F401 (the hook names it)

# Packages whose functions take tensors. Modules that numba compiles cannot be decorated.
SOURCE = Path(__file__).parents[1] / "src"
CORE = {"backbones", "classes", "crf", "em", "evaluation", "features", "inference", "model"}
CORE |= {"projections", "proposals"}


def takes_tensors(path: Path) -> bool:
    """Whether a module is in a core package and has no functions that numba compiles."""
    package = path.relative_to(SOURCE / "primaps").with_suffix("").parts[0]
    compiled = re.search(r"^@(compiled|intrinsic)", path.read_text("utf-8"), re.MULTILINE)
    return package in CORE and path.stem != "__init__" and not compiled


CHECKED = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in SOURCE.rglob("*.py")
    if takes_tensors(path)
]
install_import_hook(CHECKED, "tests.shapes.checked")

import torch  # noqa: E402
from PIL import Image  # noqa: E402

from primaps.utils.compiled import _folder  # noqa: E402

# A shell that starts the tests in the background lets them, and what they start, ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)

_folder()  # chosen once per process: tests with a cache of their own do not compile anew


@pytest.fixture
def unchecked():
    """No check of signatures: wrong shapes and types reach the functions, which refuse them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of real labeled images (camvid, coco200, aerial260): $PRIMAPS_DATA."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("PRIMAPS_DATA", default))
    if not (root / "camvid").is_dir():
        pytest.skip("no labeled images: set PRIMAPS_DATA to the folder that holds camvid/")
    return root


@pytest.fixture(scope="session")
def dinov2():
    """The real DINOv2 ViT-S/14."""
    from primaps.backbones.load import load_backbone
    from primaps.backbones.weights import WeightsError

    try:
        return load_backbone("dinov2-vits14", device="cpu")
    except WeightsError as error:
        pytest.skip(f"no weights: {error}")


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a small random ViT of patch 8."""
    from primaps.backbones.weights import write_folder
    from tests.backbones.test_backbones import original_names

    return str(write_folder(tmp_path_factory.mktemp("vit"), original_names(patch=8, dinov2=False)))


class Colors(torch.nn.Module):
    """A backbone of 8-pixel patches whose features are colors: classes that can be checked."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.mix = torch.nn.Conv2d(3, 16, 8, 8, bias=False)
        weight = torch.randn(16, 3, 1, 1, generator=generator) / 64
        self.mix.weight.data = weight.expand(16, 3, 8, 8).clone()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.mix(images)


@pytest.fixture
def colors() -> Colors:
    return Colors()


def painted(seed: int, width: int = 64, height: int = 64) -> tuple[Image.Image, np.ndarray]:
    """A picture of three colors in blocks, and its label map."""
    generator = np.random.default_rng(seed)
    label = generator.integers(0, 3, (4, 4)).repeat(height // 4, 0).repeat(width // 4, 1)
    shades = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200]])
    noise = generator.integers(-10, 10, (*label.shape, 3))
    return Image.fromarray((shades[label] + noise).astype(np.uint8)), label.astype(np.uint8)


@pytest.fixture
def painted_folder(tmp_path: Path) -> Path:
    """``images`` and ``labels`` of eight painted pictures, with classes.json."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for seed in range(8):
        image, label = painted(seed)
        image.save(tmp_path / "images" / f"{seed}.png")
        Image.fromarray(label).save(tmp_path / "labels" / f"{seed}.png")
    text = '{"classes": ["red", "green", "blue"], "ignore_index": 255}'
    (tmp_path / "labels" / "classes.json").write_text(text)
    return tmp_path
