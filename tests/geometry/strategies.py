"""Small label maps and masks."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
label_maps = arrays(np.uint8, sizes, elements=st.sampled_from([0, 1, 2, 255]))
masks = arrays(np.bool_, sizes)
