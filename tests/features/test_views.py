import torch

from primaps.features.training_data import ImageArrays, Views, batch_indices

CLEAN = torch.arange(10 * 2 * 3).view(10, 2, 3, 1, 1).half()


def test_batches_cover_each_epoch_once_without_the_incomplete_one():
    found = [batch_indices(step, 10, 4, "EM", 0) for step in range(1, 6)]
    assert [len(index) for index in found] == [4] * 5
    assert len(set(torch.cat(found[:2]).tolist())) == 8
    assert len(set(torch.cat(found[2:4]).tolist())) == 8
    assert torch.cat(found[:2]).tolist() != torch.cat(found[2:4]).tolist()


def test_fewer_images_than_a_batch():
    assert sorted(batch_indices(2, 3, 32, "EM", 0).tolist()) == [0, 1, 2]


def test_a_batch_depends_on_its_step_and_seed_alone():
    views, index = Views(ImageArrays(CLEAN)), torch.arange(10)
    first, again = views.batch(index, 5, seed=0), views.batch(index, 5, seed=0)
    assert torch.equal(first.clean, again.clean)
    others = [views.batch(index, 6, seed=0), views.batch(index, 5, seed=1)]
    assert all(not torch.equal(first.flip, other.flip) for other in others)
    expected = CLEAN[index, first.flip.long()].float()
    assert torch.equal(first.clean, expected)


def test_each_image_uses_a_random_view_and_its_flip():
    flags = torch.rand(3, 10) < 0.5
    kept = tuple(ImageArrays(torch.full((10, 3, 1, 1), float(v)).half()) for v in range(3))
    batch = Views(ImageArrays(CLEAN), augmented=kept, flipped=flags).batch(torch.arange(10), 1, 0)
    view = batch.augmented[:, 0, 0, 0].long()
    assert len(view.unique()) == 3
    assert torch.equal(batch.flip, flags[view, torch.arange(10)])
    assert torch.equal(batch.clean, CLEAN[torch.arange(10), batch.flip.long()].float())


def test_processes_divide_the_batch_of_a_single_process():
    whole = Views(ImageArrays(CLEAN)).batch(torch.arange(10), 3, 0)
    index = torch.arange(10)
    for rank in range(2):
        place = torch.where(index % 2 == rank, index // 2, -1)
        part = Views(ImageArrays(CLEAN[rank::2]), row_of=place).batch(index, 3, 0)
        assert torch.equal(part.clean, whole.clean[rank::2])
        assert torch.equal(part.flip, whole.flip[rank::2])
