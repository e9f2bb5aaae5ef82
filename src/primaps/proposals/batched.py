"""Principal mask proposals in torch operations, batched: what runs on an accelerator.

One step finds one mask in every image that still needs one; the only value read back per step is
which images those are. The covariance is summed anew in every step, which costs an accelerator
less than book-keeping. Also the path of the non-iterative variant of Table 4a.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from primaps.proposals.image_proposals import ImageProposals

FLAT = 1e-10  # variance below this share of the energy is rounding
TIE = 1 - 1e-6  # cosines this close to the largest are equal: the first one counts
TOLERANCE = 1e-5  # residual of an eigenvector relative to its eigenvalue
STEPS, ROUNDS = 24, 6  # Krylov steps between two looks at the residual, and looks
TINY = 1e-30
PATIENCE = 3  # successive directions in a row that may add nothing


def propose_torch(
    features: Float[Tensor, "b c n"],
    threshold: float,
    coverage: float,
    anchor: bool,
    iterative: bool,
) -> list[ImageProposals]:
    """Per image: masks, their similarities, anchors (as positions) and shares of variance."""
    with torch.no_grad(), _full_precision(features.device):
        return _propose(features, threshold, coverage, anchor, iterative)


def _propose(
    f: Tensor, threshold: float, coverage: float, anchor: bool, iterative: bool
) -> list[ImageProposals]:
    b, _, n = f.shape
    x = f.transpose(1, 2).contiguous()
    norms = x.norm(dim=2).clamp_min(TINY)
    masks = torch.zeros(b, n, dtype=torch.int64, device=f.device)
    values = torch.zeros(b, n, device=f.device)
    stop = math.floor((1 - coverage) * n + 1e-9)  # so many may stay unassigned
    count = torch.zeros(b, dtype=torch.int64, device=f.device)
    idle = torch.zeros_like(count)  # steps in a row that added nothing
    patience = 1 if iterative else PATIENCE
    steps: list[tuple[Tensor, ...]] = []
    directions = None if iterative else _all_directions(x)
    rows = torch.arange(b, device=f.device)
    while True:
        # Eq. 7: until enough is assigned; what stays 0 is ignored (Eq. 8).
        at_work = ((masks[rows] == 0).sum(1) > stop) & (idle[rows] < patience)
        chosen = at_work.nonzero()[:, 0]
        if len(chosen) < len(rows):  # let go of the images that are done
            rows, x, norms = rows[chosen], x[chosen], norms[chosen]
            if directions is not None:
                directions = (directions[0][chosen], directions[1][chosen])
        if len(rows) == 0 or (directions is not None and len(steps) == directions[1].shape[1]):
            break
        free = masks[rows] == 0
        if directions is None:
            direction, share = _principal(x, norms, free)  # Eq. 2 and 3
        else:
            direction, share = directions[0][:, :, len(steps)], directions[1][:, len(steps)]
        cosines = (x @ direction[:, :, None])[..., 0] / norms
        size = (cosines.abs() * free).amax(1, keepdim=True)
        first = ((cosines.abs() >= TIE * size) & free).int().argmax(1)  # Eq. 4
        cosines = cosines * torch.where(cosines.gather(1, first[:, None]) < 0, -1.0, 1.0)
        if anchor:
            index = first[:, None, None].expand(-1, 1, x.shape[2])
            cosines = (x @ x.gather(1, index).transpose(1, 2))[..., 0]  # Eq. 5
            cosines = cosines / (norms * norms.gather(1, first[:, None]))
        top = cosines.masked_fill(~free, -math.inf).amax(1, keepdim=True)
        taken = free & (cosines > threshold * top) & (top > 0)  # Eq. 6
        new = taken.any(1)
        count[rows] += new
        idle[rows] = torch.where(new, 0, idle[rows] + 1)
        masks[rows] = torch.where(taken, count[rows][:, None], masks[rows])
        values[rows] = torch.where(taken, cosines / top.clamp_min(TINY), values[rows])
        steps.append((rows, new, first, share))
    return _by_image(masks, values, steps)


def _by_image(
    masks: Tensor, values: Tensor, steps: list[tuple[Tensor, ...]]
) -> list[ImageProposals]:
    anchors: list[list[int]] = [[] for _ in masks]
    shares: list[list[float]] = [[] for _ in masks]
    for step in steps:
        for row, new, first, share in zip(*(part.tolist() for part in step), strict=True):
            if new:
                anchors[row].append(first)
                shares[row].append(share)
    device = masks.device
    return [
        ImageProposals(
            masks[i],
            values[i],
            torch.tensor(anchors[i], dtype=torch.int64, device=device),
            torch.tensor(shares[i], dtype=torch.float32, device=device),
        )
        for i in range(len(masks))
    ]


def _principal(
    x: Float[Tensor, "b n c"], norms: Float[Tensor, "b n"], free: Bool[Tensor, "b n"]
) -> tuple[Float[Tensor, "b c"], Float[Tensor, " b"]]:
    """First principal component of the free features (Eq. 2 and 3) and its share of variance."""
    weight = free.to(x.dtype)
    mean = (weight[:, None] @ x)[:, 0] / weight.sum(1, keepdim=True)
    centered = (x - mean[:, None]) * weight[..., None]
    # The smaller of scatter and Gram matrix has the same eigenvalues.
    small = x.shape[1] < x.shape[2]
    flipped = centered.transpose(1, 2)
    matrix = centered @ flipped if small else flipped @ centered
    variance = matrix.diagonal(dim1=1, dim2=2).sum(1)
    value, v = _dominant(matrix)
    if small:
        v = (flipped @ v[:, :, None])[..., 0]
    flat = variance <= FLAT * (norms.square() * weight).sum(1)
    direction = torch.where(flat[:, None], mean, v)
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(TINY)
    return direction, torch.where(flat, 0.0, value / variance.clamp_min(TINY))


def _dominant(m: Float[Tensor, "b p p"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b p"]]:
    """Largest eigenvalue and its eigenvector: Rayleigh-Ritz on a Krylov space, restarted."""
    p = m.shape[1]
    # Fixed and without structure, the same for every image.
    start = torch.frac(torch.arange(1, p + 1, device=m.device) * 0.6180339887498949) - 0.5
    v = (start / start.norm()).to(m.dtype).expand(len(m), p)
    scale = m.diagonal(dim1=1, dim2=2).sum(1, keepdim=True).clamp_min(TINY)
    for _ in range(ROUNDS):
        basis = v[:, None]
        for _ in range(min(STEPS, p) - 1):
            w = (m @ basis[:, -1, :, None])[..., 0] / scale
            for _ in range(2):
                w = w - ((basis @ w[..., None]).transpose(1, 2) @ basis)[:, 0]
            length = w.norm(dim=1, keepdim=True)
            # A zero row, which is harmless, once the space is exhausted.
            w = torch.where(length > 1e-7, w / length.clamp_min(TINY), 0.0)
            basis = torch.cat([basis, w[:, None]], 1)
        small = basis @ m @ basis.transpose(1, 2)
        value, weights = torch.linalg.eigh((small + small.transpose(1, 2)) / 2)
        v = (weights[:, None, :, -1] @ basis)[:, 0]
        v = v / v.norm(dim=1, keepdim=True).clamp_min(TINY)
        value = value[:, -1]
        residual = ((m @ v[..., None])[..., 0] - value[:, None] * v).norm(dim=1)
        if bool((residual <= TOLERANCE * value).all()):
            break
    return value, v


def _all_directions(
    x: Float[Tensor, "b n c"],
) -> tuple[Float[Tensor, "b c z"], Float[Tensor, "b z"]]:
    """Every principal direction of all features, largest share first (non-iterative variant)."""
    mean = x.mean(1, keepdim=True)
    centered = (x - mean).double()
    _, sizes, directions = torch.linalg.svd(centered, full_matrices=False)
    squares = sizes.square()
    variance = squares.sum(1, keepdim=True)
    flat = variance <= FLAT * x.double().square().sum((1, 2))[:, None]
    directions = torch.where(flat[..., None], mean.double(), directions)
    directions = directions / directions.norm(dim=2, keepdim=True).clamp_min(TINY)
    shares = torch.where(flat, 0.0, squares / variance.clamp_min(TINY))
    return directions.transpose(1, 2).to(x.dtype), shares.to(x.dtype)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """No TF32 and no autocast: their 10 bits are too few for a covariance."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
