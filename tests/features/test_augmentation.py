import torch

from primaps.features.augmentation import CHANCES, photometric


def chances(count: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, CHANCES, generator=torch.Generator().manual_seed(seed))


def test_augmentation_depends_on_its_random_numbers_and_keeps_colors_in_range():
    images = torch.rand(24, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    first, again, other = (photometric(images, chances(24, seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_augmentation_does_not_depend_on_the_batch():
    images = torch.rand(6, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    together, numbers = photometric(images, chances(6)), chances(6)
    alone = torch.cat([photometric(images[i : i + 1], numbers[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(together, alone)


def test_augmentation_blurs_all_and_recolors_some():
    images = torch.rand(200, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    images[:, 1:] = images[:, :1] * torch.tensor([0.7, 0.4]).view(1, 2, 1, 1)  # one hue
    found = photometric(images, chances(200))
    assert (found.std((1, 2, 3)) < images.std((1, 2, 3)) + 0.05).all()
    gray = (found[:, 0] - found[:, 2]).abs().amax((1, 2)) < 1e-5
    assert 0 < gray.sum() < 30  # one in twenty
    ratio = (found[:, 1] / found[:, 0].clamp_min(1e-3)).mean((1, 2))
    jittered = ((ratio - 0.7).abs() > 1e-3) & ~gray
    assert 10 < jittered.sum() < 60  # three in twenty
