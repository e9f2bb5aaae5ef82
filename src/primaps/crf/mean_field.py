"""Mean-field inference in a fully connected CRF (Krähenbühl & Koltun 2011).

The energy of a labeling ``x`` of N pixels with K labels is (their Eq. 1-3)

    E(x) = sum_i psi_u(x_i) + sum_{i<j} mu(x_i, x_j) sum_m w_m k_m(f_i, f_j),

with Gaussian kernels ``k_m``. Its mean-field marginals are the fixed point of (their Eq. 4)

    Q_i(l) = 1/Z_i exp( -psi_u(l) - sum_l' mu(l, l') sum_m w_m sum_j k_m(f_i, f_j) Q_j(l') ),

which :func:`mean_field` iterates. As in the implementation of the authors, kernels are normalized
symmetrically, ``k~ = D^(-1/2) k D^(-1/2)`` with ``D = diag(k 1)``, and the sum over j includes i.

Reference: P. Krähenbühl, V. Koltun, "Efficient Inference in Fully Connected CRFs with Gaussian
Edge Potentials", NeurIPS 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Filter = Callable[[Tensor], Tensor]
"""Linear map from values (N, C) to filtered values (N, C): ``v -> k v``."""


@dataclass(frozen=True)
class Kernel:
    """A weighted, symmetrically normalized pairwise kernel ``w D^(-1/2) k D^(-1/2)``.

    Attributes:
        filter: the kernel k as a linear map.
        weight: w.
        norm: D^(-1/2).
    """

    filter: Filter
    weight: float
    norm: Float[Tensor, "n 1"]

    @classmethod
    def normalized(cls, kernel: Filter, weight: float, like: Float[Tensor, "n k"]) -> Kernel:
        """Compute D by filtering ones of the length, dtype and device of ``like``."""
        degree = kernel(torch.ones_like(like[:, :1]))
        return cls(kernel, weight, (degree + 1e-20).rsqrt())

    def __call__(self, values: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        return self.weight * self.norm * self.filter(self.norm * values)


def mean_field(
    log_unary: Float[Tensor, "n k"],
    kernels: Sequence[Kernel],
    *,
    compatibility: Float[Tensor, "k k"] | None = None,
    iterations: int = 10,
    tolerance: float | None = None,
    blocks: int = 1,
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "blocks updates"]]:
    """Iterate the mean-field update from ``Q = softmax(log_unary)``.

    Args:
        log_unary: ``-psi_u``, one row per pixel, up to a constant per row.
        kernels: the weighted, normalized kernels.
        compatibility: ``mu``; None is Potts, ``mu(l, l') = [l != l']``.
        iterations: number of updates.
        tolerance: stop after an update whose mean absolute change of Q is below this value; None
            runs all iterations.
        blocks: number of images of equal size in the rows.

    Returns:
        The marginals Q, and the mean absolute change of Q in each update of each block.

    Example:
        >>> log_unary = torch.log(torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]]))
        >>> kernel = Kernel(lambda v: v.mean(0).expand_as(v), 3.0, torch.ones(3, 1))
        >>> marginals, changes = mean_field(log_unary, [kernel])
        >>> marginals.argmax(1).tolist(), changes.shape[1]
        ([0, 0, 0], 10)
    """
    marginals = log_unary.softmax(1)
    changes: list[Tensor] = []
    for _ in range(iterations):
        messages = torch.zeros_like(marginals)
        for kernel in kernels:
            messages += kernel(marginals)
        # With Potts the penalty is sum_l' m(l') - m(l); the sum is the same for every l.
        penalty = -messages if compatibility is None else messages @ compatibility.T
        updated = (log_unary - penalty).softmax(1)
        changes.append((updated - marginals).abs_().view(blocks, -1).mean(1))
        marginals = updated
        if tolerance is not None and bool((changes[-1] < tolerance).all()):
            break
    return marginals, torch.stack(changes, 1) if changes else log_unary.new_zeros(blocks, 0)
