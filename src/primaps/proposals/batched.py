"""Principal mask proposals in batched torch operations, for accelerators.

One iteration finds one mask in every unfinished image. Only the list of unfinished images is read
back per iteration. The covariance is computed again each time, which is cheaper on an accelerator
than updating it. The non-iterative variant of Table 4a also runs here.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FLAT = 1e-10  # variance below this share of the energy is rounding error
TIE = 1 - 1e-6  # cosines within this factor of the largest are equal; the first one is taken
TOLERANCE = 1e-5  # residual of an eigenvector relative to its eigenvalue
STEPS, ROUNDS = 24, 6  # Krylov steps between two checks of the residual, and number of checks
TINY = 1e-30
PATIENCE = 3  # the non-iterative variant stops after so many directions without a new mask


class ImageProposals(NamedTuple):
    """Masks of one image with N patch tokens.

    Attributes:
        masks: mask number of each token, 0 = ignore.
        similarities: cosine of each token with the anchor of its mask, divided by the maximum.
        anchors: token index of the anchor of each mask.
        shares: share of the variance that the component of each mask explains.
    """

    masks: Int[Tensor, " n"]
    similarities: Float[Tensor, " n"]
    anchors: Int[Tensor, " z"]
    shares: Float[Tensor, " z"]


def propose_torch(
    features: Float[Tensor, "b c n"],
    threshold: float,
    coverage: float,
    anchor: bool,
    iterative: bool,
) -> list[ImageProposals]:
    """Return the proposals of each image; see :func:`primaps.propose`."""
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
    max_free = math.floor((1 - coverage) * n + 1e-9)  # tokens that may stay unassigned
    count = torch.zeros(b, dtype=torch.int64, device=f.device)
    idle = torch.zeros_like(count)  # consecutive iterations without a new mask
    patience = 1 if iterative else PATIENCE
    steps: list[tuple[Tensor, ...]] = []
    directions = None if iterative else _all_directions(x)
    rows = torch.arange(b, device=f.device)
    while True:
        # Eq. 7: continue with the unassigned tokens until enough are assigned. Tokens that stay
        # 0 are ignored (Eq. 8).
        unfinished = ((masks[rows] == 0).sum(1) > max_free) & (idle[rows] < patience)
        chosen = unfinished.nonzero()[:, 0]
        if len(chosen) < len(rows):
            rows, x, norms = rows[chosen], x[chosen], norms[chosen]
            if directions is not None:
                directions = (directions[0][chosen], directions[1][chosen])
        if len(rows) == 0 or (directions is not None and len(steps) == directions[1].shape[1]):
            break
        free = masks[rows] == 0
        # Eq. 2 and 3: first principal component of the unassigned features.
        if directions is None:
            direction, share = _principal(x, norms, free)
        else:
            direction, share = directions[0][:, :, len(steps)], directions[1][:, len(steps)]
        # Eq. 4: the anchor is the unassigned feature with the largest absolute cosine.
        cosines = (x @ direction[:, :, None])[..., 0] / norms
        size = (cosines.abs() * free).amax(1, keepdim=True)
        first = ((cosines.abs() >= TIE * size) & free).int().argmax(1)
        cosines = cosines * torch.where(cosines.gather(1, first[:, None]) < 0, -1.0, 1.0)
        # Eq. 5: cosine similarity of all features with the anchor.
        if anchor:
            index = first[:, None, None].expand(-1, 1, x.shape[2])
            cosines = (x @ x.gather(1, index).transpose(1, 2))[..., 0]
            cosines = cosines / (norms * norms.gather(1, first[:, None]))
        # Eq. 6: the mask is where the similarity exceeds threshold times its maximum.
        top = cosines.masked_fill(~free, -math.inf).amax(1, keepdim=True)
        taken = free & (cosines > threshold * top) & (top > 0)
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
    """Regroup the anchors and shares of all iterations by image."""
    anchors: list[list[int]] = [[] for _ in masks]
    shares: list[list[float]] = [[] for _ in masks]
    for step in steps:
        for row, new, first, share in zip(*(each.tolist() for each in step), strict=True):
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
    """Return the first principal component of the free features (Eq. 2 and 3) and its share."""
    weight = free.to(x.dtype)
    mean = (weight[:, None] @ x)[:, 0] / weight.sum(1, keepdim=True)
    centered = (x - mean[:, None]) * weight[..., None]
    # Eq. 2: the scatter or the Gram matrix, whichever is smaller; their eigenvalues are equal.
    use_gram = x.shape[1] < x.shape[2]
    transposed = centered.transpose(1, 2)
    matrix = centered @ transposed if use_gram else transposed @ centered
    variance = matrix.diagonal(dim1=1, dim2=2).sum(1)
    # Eq. 3: its first eigenvector. Features without variance are represented by their mean.
    value, v = _dominant(matrix)
    if use_gram:
        v = (transposed @ v[:, :, None])[..., 0]
    flat = variance <= FLAT * (norms.square() * weight).sum(1)
    direction = torch.where(flat[:, None], mean, v)
    direction = direction / direction.norm(dim=1, keepdim=True).clamp_min(TINY)
    return direction, torch.where(flat, 0.0, value / variance.clamp_min(TINY))


def _dominant(m: Float[Tensor, "b p p"]) -> tuple[Float[Tensor, " b"], Float[Tensor, "b p"]]:
    """Return the largest eigenvalue and its eigenvector by a restarted Krylov method."""
    p = m.shape[1]
    # A fixed start vector without structure, the same for every image.
    start = torch.frac(torch.arange(1, p + 1, device=m.device) * 0.6180339887498949) - 0.5
    v = (start / start.norm()).to(m.dtype).expand(len(m), p)
    scale = m.diagonal(dim1=1, dim2=2).sum(1, keepdim=True).clamp_min(TINY)
    for _ in range(ROUNDS):
        basis = v[:, None]
        for _ in range(min(STEPS, p) - 1):
            w = (m @ basis[:, -1, :, None])[..., 0] / scale
            for _ in range(2):  # Gram-Schmidt twice
                w = w - ((basis @ w[..., None]).transpose(1, 2) @ basis)[:, 0]
            length = w.norm(dim=1, keepdim=True)
            # Once the space is exhausted, w is rounding error and becomes a row of zeros.
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
    """Return all principal directions, largest share of variance first (non-iterative variant)."""
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
    """Disable TF32 and autocast: their 10-bit mantissa is too short for a covariance."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)
