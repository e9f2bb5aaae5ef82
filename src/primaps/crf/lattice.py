"""High-dimensional Gaussian filtering on the permutohedral lattice (Adams et al., 2010).

A Gaussian filter over N points with positions ``p`` (N, d) and values ``v`` (N, C),

    out_i = sum_j exp(-|p_i - p_j|^2 / 2) v_j,

costs N^2 operations. The lattice reduces this to linear cost. Every point lies in one simplex of a
regular tiling of d-space. It adds its value to the d + 1 corners of this simplex (splat). Every
corner is blurred with its two neighbors along each of the d + 1 lattice directions (blur). Every
point reads the corners of its simplex (slice). All three steps are sparse linear maps,

    out = S^T B_d ... B_1 B_0 S v,

whose indices and weights are in :class:`Lattice`. Only corners of occupied simplices exist; a
missing neighbor counts as zero. The result is the Gaussian filter up to a constant factor (about
0.92, 0.88, 0.82 and 0.66 for d = 1, 2, 3, 5), which cancels in normalized kernels.

This module uses torch operations and runs on any device; :mod:`primaps.crf.compiled` is the version
for CPUs.

Reference: A. Adams, J. Baek, A. Davis, "Fast High-Dimensional Filtering Using the Permutohedral
Lattice", Computer Graphics Forum 29(2), 2010.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from primaps.utils.errors import InputError

LARGEST = 2.0**20
"""Maximum lattice coordinate: beyond it float32 does not resolve positions in a simplex."""

_TOO_FAR = (
    "positions: {} axes spread over too many standard deviations; "
    "divide them by larger standard deviations"
)


@dataclass(frozen=True)
class Lattice:
    """The sparse maps of N positions in d dimensions, with M lattice points.

    Attributes:
        vertices: lattice points at the corners of the simplex of each position, 0..M-1.
        weights: barycentric weights of these corners, in [0, 1]; each row sums to 1.
        neighbors: previous and next point of each lattice point in each direction; M if missing.
    """

    vertices: Int[Tensor, "n corners"]
    weights: Float[Tensor, "n corners"]
    neighbors: Int[Tensor, "corners 2 m"]

    def __len__(self) -> int:
        """Return the number of lattice points M."""
        return self.neighbors.shape[-1]

    def filter(self, values: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        """Filter values with the Gaussian of unit standard deviation in position space.

        Args:
            values: one row per position; columns are filtered independently.

        Returns:
            The filtered values, in the dtype of ``values``.
        """
        weights = self.weights.to(values.dtype)
        corners = weights.shape[1]

        # Splat. The extra last row represents missing neighbors and stays zero.
        points = values.new_zeros(len(self) + 1, values.shape[1])
        for corner in range(corners):
            points.index_add_(0, self.vertices[:, corner], values * weights[:, corner, None])

        # Blur along each direction with (1/2, 1, 1/2).
        for back, ahead in self.neighbors:
            points[:-1] += 0.5 * (points[back] + points[ahead])

        # Slice, with the constant of the implementation of Adams et al.
        out = torch.zeros_like(values)
        for corner in range(corners):
            out += points[self.vertices[:, corner]] * weights[:, corner, None]
        return out / (1 + 2.0 ** -(corners - 1))

    def repeat(self, blocks: int) -> Lattice:
        """Return the lattice of ``blocks`` independent copies of the positions."""
        if blocks == 1:
            return self
        m = len(self)
        block = torch.arange(blocks, device=self.vertices.device)
        vertices = self.vertices + m * block[:, None, None]
        neighbors = self.neighbors[:, :, None] + m * block[:, None]
        neighbors[(self.neighbors == m)[:, :, None].expand_as(neighbors)] = m * blocks
        return Lattice(vertices.flatten(0, 1), self.weights.repeat(blocks, 1), neighbors.flatten(2))


def build_lattice(positions: Float[Tensor, "n d"], *, blocks: int = 1) -> Lattice:
    """Build the lattice that filters with ``exp(-|p_i - p_j|^2 / 2)``.

    Args:
        positions: one point per row, divided by the standard deviation of each axis. Memory and
            accuracy are suitable for d up to about 6.
        blocks: number of independent point sets of equal length in the rows, for a batch.

    Returns:
        The lattice on the device of ``positions``.

    Raises:
        InputError: the positions are not finite, or spread over so many standard deviations that
            lattice keys overflow.

    Example:
        >>> x = torch.arange(50.0)[:, None] / 5  # 5 points per standard deviation
        >>> step = (x > 5).float()
        >>> lattice = build_lattice(x)
        >>> smooth = lattice.filter(step) / lattice.filter(torch.ones(50, 1))
        >>> [round(v, 1) for v in smooth[::7, 0].tolist()]
        [0.0, 0.0, 0.0, 0.2, 0.7, 1.0, 1.0, 1.0]
    """
    keys, weights = embed(positions)
    n, corners, d = keys.shape
    packed, steps, size = _pack(keys.reshape(-1, d), blocks)
    packed.view(blocks, -1).add_(torch.arange(blocks, device=packed.device)[:, None] * size)
    unique, vertices = torch.unique(packed, return_inverse=True)

    neighbors = torch.empty(corners, 2, len(unique), dtype=torch.long, device=positions.device)
    for direction, step in enumerate(steps):
        for side, offset in enumerate((-step, step)):
            wanted = unique + offset
            found = torch.searchsorted(unique, wanted).clamp_(max=len(unique) - 1)
            neighbors[direction, side] = torch.where(unique[found] == wanted, found, len(unique))
    return Lattice(vertices.view(n, corners), weights, neighbors)


def embed(
    positions: Float[Tensor, "n d"],
) -> tuple[Int[Tensor, "n corners d"], Float[Tensor, "n corners"]]:
    """Find the simplex that encloses each position, and the barycentric weights of its corners.

    The lattice is the projection of (d+1) Z^(d+1) onto the plane whose coordinates sum to zero
    (Adams et al., section 3). The coordinates of a lattice point have the same remainder r modulo
    d + 1, and every simplex has exactly one corner of each remainder 0..d. The last coordinate
    follows from the others; the key of a point is d integers.

    Args:
        positions: in units of the standard deviation.

    Returns:
        keys: the first d coordinates of the corners, ordered by remainder.
        weights: barycentric weights of the corners.

    Raises:
        InputError: positions are not finite, or too many standard deviations from zero.
    """
    n, d = positions.shape
    if not torch.isfinite(positions).all():
        raise InputError("positions: expected finite values, found NaN or infinity")

    # Scale positions: the blur has unit standard deviation in position space.
    scale = [math.sqrt(2 / 3) * (d + 1) / math.sqrt((i + 1) * (i + 2)) for i in range(d)]
    scaled = positions * torch.tensor(scale, dtype=positions.dtype, device=positions.device)

    # Elevate onto the plane: coordinate j is the sum of scaled axes j.. minus j times axis j-1.
    elevated = scaled.new_empty(n, d + 1)
    total = scaled.new_zeros(n)
    for j in range(d, 0, -1):
        elevated[:, j] = total - j * scaled[:, j - 1]
        total = total + scaled[:, j - 1]
    elevated[:, 0] = total
    if n and elevated.abs().max() >= LARGEST:
        raise InputError(_TOO_FAR.format(d))

    # Round each coordinate to remainder 0; the result can lie off the plane.
    rounded = torch.round(elevated / (d + 1))
    excess = rounded.sum(1, keepdim=True).to(torch.int32)
    base = rounded.to(torch.int32) * (d + 1)
    offset = elevated - base

    # Rank coordinates by offset, largest first; on ties the later coordinate is first.
    rank = torch.zeros_like(base)
    for i in range(d):
        for j in range(i + 1, d + 1):
            below = (offset[:, i] < offset[:, j]).to(torch.int32)
            rank[:, i] += below
            rank[:, j] += 1 - below
    # Return to the plane: the coordinates that were rounded most move by one lattice cell.
    rank += excess
    wrap = (rank < 0).to(torch.int32) - (rank > d).to(torch.int32)
    rank += wrap * (d + 1)
    base += wrap * (d + 1)

    # Barycentric weights are differences of the sorted offsets.
    offset = (elevated - base) / (d + 1)
    ordered = torch.empty_like(offset).scatter_(1, rank.long(), offset)  # descending
    weights = torch.empty_like(offset)
    weights[:, 1:] = (ordered[:, :-1] - ordered[:, 1:]).flip(1)
    weights[:, 0] = 1 + ordered[:, d] - ordered[:, 0]

    remainder = torch.arange(d + 1, dtype=torch.int32, device=positions.device)[:, None]
    key_rank = rank[:, None, :d]
    keys = base[:, None, :d] + remainder - (d + 1) * (key_rank > d - remainder).to(torch.int32)
    return keys, weights


def _pack(keys: Int[Tensor, "p d"], blocks: int) -> tuple[Int[Tensor, " p"], list[int], int]:
    """Pack each key into one int64, in which a lattice step is one addition.

    Returns the packed keys, the packed step of every direction, and the range of packed keys.
    ``blocks`` ranges must fit into an int64.
    """
    d = keys.shape[1]
    low = keys.amin(0).tolist()
    # With a margin of d on both sides, a step does not carry into the next digit.
    radix = [high - lo + 1 + 2 * d for high, lo in zip(keys.amax(0).tolist(), low, strict=True)]
    size = math.prod(radix)
    if size * blocks >= 2**62:
        raise InputError(_TOO_FAR.format(d))
    place = [math.prod(radix[i + 1 :]) for i in range(d)]
    packed = torch.zeros(len(keys), dtype=torch.int64, device=keys.device)
    for i in range(d):
        packed += (keys[:, i].long() - (low[i] - d)) * place[i]
    # Direction j steps by +1 in every coordinate but j, where it steps by -d.
    steps = [sum(place) - (place[j] * (d + 1) if j < d else 0) for j in range(d + 1)]
    return packed, steps, size
