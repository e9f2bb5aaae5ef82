"""The dense CRF (fully connected conditional random field), usable on its own.

:func:`dense_crf` refines label probabilities to the edges of an image; :class:`DenseCRF` is the
same with its parameters bound. :func:`build_lattice` filters any points with a Gaussian of any
dimension, and :func:`mean_field` runs the inference on kernels of your own.
"""

from primaps.crf.inference import CLASS_CRF, DenseCRF, dense_crf
from primaps.crf.lattice import Lattice, build_lattice
from primaps.crf.mean_field import Kernel, mean_field
from primaps.crf.parameters import CRFParameters

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
