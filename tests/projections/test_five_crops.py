import torch

from primaps.projections.training import five_crops


def test_five_crops_are_the_quarters_and_the_center_enlarged():
    images = torch.zeros(2, 3, 8, 12, dtype=torch.uint8)
    values = torch.tensor([[10, 20], [30, 40]], dtype=torch.uint8)
    images[1] = values.repeat_interleave(4, 0).repeat_interleave(6, 1)
    found = five_crops(images)
    assert found.shape == (10, 3, 8, 12)
    assert (found[:5] == 0).all()
    for crop, value in zip(found[5:9], (10, 20, 30, 40), strict=True):
        assert (crop == value).all()
    center = found[9, 0]  # the four meet in its middle
    assert center[[0, 0, -1, -1], [0, -1, 0, -1]].tolist() == [10, 20, 30, 40]
