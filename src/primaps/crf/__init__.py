"""The dense CRF (fully connected conditional random field), which can be used on its own.

:func:`dense_crf` refines label probabilities to the edges of an image; :class:`DenseCRF` is the
same with fixed parameters. :func:`build_lattice` filters points in any dimension with a Gaussian,
and :func:`mean_field` runs mean-field inference with other kernels.
"""

from primaps.crf.inference import CLASS_CRF, DenseCRF, dense_crf
from primaps.crf.inputs import CRFParameters
from primaps.crf.lattice import Lattice, build_lattice
from primaps.crf.mean_field import Kernel, mean_field

__all__ = [
    "CLASS_CRF",
    "CRFParameters",
    "DenseCRF",
    "Kernel",
    "Lattice",
    "build_lattice",
    "dense_crf",
    "mean_field",
]
