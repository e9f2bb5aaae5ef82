"""A collection with known classes: 5 directions with 4 leaves each."""

import pytest
import torch
import torch.nn.functional as F

from primaps.classes.tree import grow


@pytest.fixture(scope="session")
def made():
    """Mask features, their classes and leaves, and the prototypes of 5 classes of 4 leaves."""
    random = torch.Generator().manual_seed(0)
    prototypes = F.normalize(torch.randn(5, 16, generator=random), dim=1)
    centers = prototypes.repeat_interleave(4, 0) + 0.12 * torch.randn(20, 16, generator=random)
    parts = torch.arange(20).repeat_interleave(30)
    noise = 0.015 * torch.randn(600, 16, generator=random)
    features = F.normalize(F.normalize(centers, dim=1)[parts] + noise, dim=1)
    return features, (features @ prototypes.T).argmax(1), parts, prototypes


@pytest.fixture(scope="session")
def tree(made):
    features, assigned, _, prototypes = made
    return grow(features, assigned, prototypes, leaves=20)
