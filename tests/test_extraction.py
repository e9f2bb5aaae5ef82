import torch

from primaps.backbones import load_backbone
from primaps.extraction import mirrored_mean, photometric


def test_augmentation_follows_its_generator_and_keeps_colours_in_range():
    images = torch.rand(24, 3, 40, 32, generator=torch.Generator().manual_seed(0))
    first, again, other = (
        photometric(images, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.min() >= 0
    assert first.max() <= 1


def test_augmentation_blurs_all_and_recolours_some():
    images = torch.rand(200, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    images[:, 1:] = images[:, :1] * torch.tensor([0.7, 0.4]).view(1, 2, 1, 1)  # one hue
    found = photometric(images, torch.Generator().manual_seed(0))
    assert (found.std((1, 2, 3)) < images.std((1, 2, 3)) + 0.05).all()
    grey = (found[:, 0] - found[:, 2]).abs().amax((1, 2)) < 1e-5
    assert 0 < grey.sum() < 30  # one in twenty
    ratio = (found[:, 1] / found[:, 0].clamp_min(1e-3)).mean((1, 2))
    jittered = ((ratio - 0.7).abs() > 1e-3) & ~grey
    assert 10 < jittered.sum() < 60  # three in twenty


def test_mean_over_mirror_images_is_mirrored_with_the_image(colours):
    backbone = load_backbone(colours, device="cpu", patch_size=8)
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    turned = mirrored_mean(backbone, images.flip(-1))
    torch.testing.assert_close(turned.flip(-1), mirrored_mean(backbone, images))
