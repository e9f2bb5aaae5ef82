# mypy: disable-error-code="no-untyped-def"
# (numba infers the types of compiled functions)
"""Batches on the CPU: which thread works on what."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from primaps.crf import compiled, compiled_lattice, compiled_rows, compiled_unary, inputs
from primaps.crf.features import spatial_features
from primaps.crf.parameters import CRFParameters
from primaps.utils.compiled import compiled_in_order

MEMORY = 4 * 2**30
"""Bytes that the images worked on at the same time may take together, by estimate."""
_IDLE: list[compiled_rows.Workspace] = []
"""Workspaces for the next images: as many as were worked on at the same time."""


def solve(
    crf: CRFParameters,
    images: list[Tensor],
    name: str,
    values: list[Tensor],
    out: list[Tensor],
    changes: Float[Tensor, "b iterations"],
    measure: bool,
) -> None:
    """Fill ``out`` and ``changes`` for a list of images.

    With at least as many images as threads every thread takes whole images; otherwise the images
    take turns, each on all threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads, max(1, MEMORY // max(map(_footprint, out))))
    apart = 1 < workers <= len(values)

    def work(i: int) -> None:
        try:
            workspace = _IDLE.pop()
        except IndexError:
            workspace = compiled_rows.Workspace()
        change = _solve_one(
            crf,
            _unary(name, values[i], (out[i].shape[1], out[i].shape[2])),
            images[i].cpu().numpy(),
            out[i].numpy(),
            measure,
            1 if apart else threads,
            workspace,
        )
        if workspace.small:
            _IDLE.append(workspace)
        changes[i, : len(change)] = torch.tensor(change)

    if not apart:
        for i in range(len(values)):
            work(i)
        return
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(work, range(len(values))))


def _unary(
    name: str, values: Float[Tensor, "k h w"], size: tuple[int, int]
) -> compiled_unary.Unary:
    if values.shape[1:] == size:
        return compiled_unary.of_planes(inputs.log_unary_numpy(name, values))
    logits = values.detach().float().contiguous().numpy()
    inputs.checked_top(name, logits)
    return compiled_unary.of_logits(logits, size)


def _solve_one(
    crf: CRFParameters,
    unary: compiled_unary.Unary,
    image: NDArray[np.uint8],
    out: NDArray[np.float32],
    measure: bool,
    threads: int,
    workspace: compiled_rows.Workspace,
) -> list[float]:
    kernels = _kernels(crf, image, threads)
    if kernels is None:
        rows = compiled_rows.Rows(unary, 0.0, workspace)
        rows.begin(0, unary.pixels)
        rows.end(out.reshape(unary.labels, -1), 0, unary.pixels)
        return [0.0] * crf.iterations
    penalties = None
    if crf.compatibility is not None:
        penalties = torch.as_tensor(crf.compatibility, dtype=torch.float32).cpu().numpy()
    return compiled.mean_field(
        unary,
        kernels,
        out.reshape(unary.labels, -1),
        compatibility=penalties,
        iterations=crf.iterations,
        tolerance=crf.tolerance,
        negligible=crf.negligible,
        measure=measure,
        threads=threads,
        workspace=workspace,
    )


def _kernels(
    crf: CRFParameters, image: NDArray[np.uint8], threads: int
) -> compiled.SparseMap | None:
    """Both kernels as one sparse map, if their weights are not 0."""
    _, height, width = image.shape
    lattices, weights = [], []
    if crf.bilateral_weight:
        features = _bilateral_features(
            image, np.float32(crf.theta_alpha), np.float32(crf.theta_beta)
        )
        with ThreadPoolExecutor(threads) as pool:
            lattices.append(compiled_lattice.build(features, pool.map if threads > 1 else map))
        weights.append(crf.bilateral_weight)
    if crf.gaussian_weight:
        lattices.append(_spatial_lattice(height, width, crf.theta_gamma))
        weights.append(crf.gaussian_weight)
    return compiled.join(lattices, weights) if lattices else None


@compiled_in_order
def _bilateral_features(image, theta_alpha, theta_beta):
    """``features.bilateral_features``."""
    channels, height, width = image.shape
    features = np.empty((height * width, 2 + channels), np.float32)
    for y in range(height):
        for x in range(width):
            i = y * width + x
            features[i, 0] = np.float32(x) / theta_alpha
            features[i, 1] = np.float32(y) / theta_alpha
            for c in range(channels):
                features[i, 2 + c] = np.float32(image[c, y, x]) / theta_beta
    return features


@lru_cache(maxsize=8)
def _spatial_lattice(height: int, width: int, theta: float) -> compiled_lattice.SparseLattice:
    """The lattice of the Gaussian kernel, which depends on the image size alone."""
    return compiled_lattice.build(spatial_features(height, width, theta).numpy())


def _footprint(values: Tensor) -> int:
    """Bytes for one image: unary, marginals and about four lattice points to a pixel."""
    labels, height, width = values.shape
    row = 4 * compiled_unary.row_layout(labels)[0]
    return height * width * (6 * row + 200)
