import pytest
import torch
import torch.nn.functional as F

from primaps.features import training_data
from primaps.features.training_data import ImageArrays, Views, sample_tokens

MAPS = torch.randn(9, 2, 4, 2, 3, generator=torch.Generator().manual_seed(0)).half()


def directions(maps: torch.Tensor) -> torch.Tensor:
    """Return all tokens of images and flipped images: (n, 2 h w, c), of length 1."""
    return F.normalize(maps.float(), dim=2).permute(0, 1, 3, 4, 2).flatten(1, 3).half()


@pytest.mark.parametrize("projection", [None, lambda features: features.cumsum(-1)])
def test_tokens_are_sampled_from_images_and_flipped_images_without_replacement(
    monkeypatch, projection
):
    monkeypatch.setattr(training_data, "MAX_TOKENS", 9 * 7)
    seen = MAPS if projection is None else projection(MAPS.float())  # one that sees neighbors
    found = sample_tokens(Views(ImageArrays(MAPS), projection=projection), 2, seed=0)
    assert found.directions.shape == (9, 7, 4)
    for drawn, every in zip(found.directions, directions(seen), strict=True):
        same = (drawn[:, None] == every).all(2)
        assert (same.sum(1) == 1).all()
        assert same.sum(0).max() == 1
    flipped = [(d[:, None] == every[6:]).all(2).any(1).sum() for d, every in
                zip(found.directions, directions(seen), strict=True)]  # fmt: skip
    assert all(0 < count < 7 for count in flipped)


def test_number_of_sampled_tokens(monkeypatch):
    monkeypatch.setattr(training_data, "MAX_TOKENS", 20)
    for least, expected in ((1, 2), (5, 5), (99, 12)):
        assert sample_tokens(Views(ImageArrays(MAPS)), least, 0).directions.shape[1] == expected


def test_sampled_tokens_depend_on_the_seed_and_differ_between_images():
    maps = torch.arange(12.0).view(1, 2, 1, 2, 3).expand(5, 2, 1, 2, 3)
    maps = torch.cat([maps.cos(), maps.sin()], 2).half()
    views = Views(ImageArrays(maps))
    one, again, other = (sample_tokens(views, 4, seed).directions for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])


def test_processes_have_the_tokens_of_their_images():
    whole, index = sample_tokens(Views(ImageArrays(MAPS)), 3, 0), torch.tensor([8, 1, 0, 3])
    cells = torch.tensor([2, 0])
    rows, here = whole.local_rows(index)
    every = whole.features(rows, cells)
    assert here.all()
    assert every.shape == (1, 4, 1, 8)
    assert torch.equal(every[0, :, 0].T.view(4, 2, 4), whole.directions[index][:, cells].float())
    for rank in range(2):
        # Two processes; each has an image before its own that is of no use to this collection.
        place = torch.where(torch.arange(9) % 2 == rank, 1 + torch.arange(9) // 2, -1)
        clean = torch.cat([torch.zeros_like(MAPS[:1]), MAPS[rank::2]])
        part = sample_tokens(Views(ImageArrays(clean), row_of=place), 3, 0)
        rows, here = part.local_rows(index)
        assert here.tolist() == (index % 2 == rank).tolist()
        assert torch.equal(part.directions, whole.directions[rank::2])
        assert torch.equal(part.directions[rows], whole.directions[index[here]])


def test_a_process_without_images_has_no_tokens():
    place = torch.full((9,), -1)
    none = sample_tokens(Views(ImageArrays(MAPS), row_of=place), 3, 0)
    assert len(none) == 9
    assert len(none.local_rows(torch.arange(9))[0]) == 0
