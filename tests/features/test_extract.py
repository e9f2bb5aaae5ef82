import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from primaps.backbones.backbone import flip_average
from primaps.backbones.load import load_backbone
from primaps.data import ImageError, ImageFile, find_images
from primaps.features.extract import extract, restart_sample
from primaps.features.feature_cache import MaskMaker
from primaps.model import PriMaPsEM
from primaps.utils.memory import release_memory
from tests.conftest import painted


class Counting(torch.nn.Module):
    """A network that counts its images."""

    def __init__(self, network):
        super().__init__()
        self.network, self.seen = network, 0

    def forward(self, images):
        self.seen += len(images)
        return self.network(images)


@pytest.fixture
def folder(tmp_path):
    for seed in range(11):
        painted(seed)[0].save(tmp_path / f"{seed:02}.png")
    return tmp_path


@pytest.fixture
def counting(colors):
    return load_backbone(Counting(colors), device="cpu", patch_size=8)


def halves(features, images):
    """Return mask 1 for the left half and mask 2 for the right half of each image."""
    masks = torch.ones(len(images), *images.shape[2:], dtype=torch.int64)
    masks[:, :, 32:] = 2
    return masks


MAKER = MaskMaker(halves, {"kind": "halves"})


def everything(rows):
    return rows.take(torch.arange(len(rows)))


def test_mean_over_flipped_images_is_flipped_with_the_image(colors):
    backbone = load_backbone(colors, device="cpu", patch_size=8)
    images = torch.randint(0, 256, (2, 3, 32, 40), dtype=torch.uint8)
    turned = flip_average(backbone, images.flip(-1))
    torch.testing.assert_close(turned.flip(-1), flip_average(backbone, images))


def test_features_are_those_of_the_image_and_its_flipped_image(folder, counting):
    found = extract(find_images(folder), counting, 64, views=2, masks=MAKER, cache=None)
    image = torch.from_numpy(np.asarray(Image.open(folder / "03.png")).copy()).permute(2, 0, 1)
    inputs = image[None].float() / 255
    clean = everything(found.views.clean)
    torch.testing.assert_close(clean[3, 0], counting(inputs)[0].half(), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        clean[3, 1], counting(inputs.flip(-1))[0].half(), rtol=1e-2, atol=1e-3
    )
    for view, flipped in zip(found.views.augmented, found.views.flipped, strict=True):
        blurred, flag = everything(view).float(), flipped.long()
        like = clean[torch.arange(11), flag].float()
        unlike = clean[torch.arange(11), 1 - flag].float()
        near = (blurred - like).norm(dim=1).flatten(1).mean(1)
        assert (near < (blurred - unlike).norm(dim=1).flatten(1).mean(1)).float().mean() > 0.9
    assert found.views.flipped.float().mean() not in (0, 1)
    assert everything(found.masks)[0, 0, [0, 63]].tolist() == [1, 2]
    assert len(found.samples) == 6
    assert torch.equal(found.samples[2], image)  # at even distances: 0, 1, 3, 5, ...


def test_nothing_is_computed_twice(folder, counting, tmp_path_factory):
    store, files = tmp_path_factory.mktemp("store"), find_images(folder)
    network = counting.features

    def passes(**options):
        network.seen = 0
        options = {"views": 1, "masks": MAKER, "cache": store, **options}
        found = extract(files, counting, 64, **options)
        return network.seen - 1, found  # one tells the shape of the features

    first, whole = passes()
    assert first == 11 * 3  # image, flipped image and view
    again, kept = passes()
    assert again == 0
    assert torch.equal(everything(whole.views.clean), everything(kept.views.clean))
    assert torch.equal(everything(whole.masks), everything(kept.masks))
    assert whole.content_digest == kept.content_digest
    assert passes(views=3)[0] == 11 * 2  # the new views alone
    assert passes(masks=MaskMaker(halves, {"kind": "other"}))[0] == 0  # masks from kept features
    assert passes(seed=5)[0] == 0  # fits with other seeds share the views
    painted(99)[0].save(folder / "03.png")
    changed, found = passes()
    assert 0 < changed <= 8 * 3  # those that go through the backbone with the changed image
    assert found.content_digest != whole.content_digest
    painted(7)[0].save(folder / "later.png")
    files = find_images(folder)
    assert passes()[0] == 0  # known by its content under another name


def test_a_resumed_extraction_writes_the_same_bytes(folder, counting, tmp_path_factory):
    stopped, whole = tmp_path_factory.mktemp("stopped"), tmp_path_factory.mktemp("whole")
    files, network = find_images(folder), counting.features

    def dying(features, images):
        if len(images) < 8:
            raise KeyboardInterrupt
        return halves(features, images)

    maker = MaskMaker(dying, MAKER.options)
    with pytest.raises(KeyboardInterrupt):
        extract(files, counting, 64, views=1, masks=maker, cache=stopped)
    network.seen = 0
    extract(files, counting, 64, views=1, masks=MAKER, cache=stopped)
    assert network.seen - 1 == 3 * 3  # the last three were not there: both features, one view
    extract(files, counting, 64, views=1, masks=MAKER, cache=whole)
    names = sorted(path.relative_to(whole) for path in whole.rglob("rows.*"))
    assert len(names) == 6
    for name in names:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_damaged_features_are_computed_again(folder, counting, tmp_path_factory):
    store, files = tmp_path_factory.mktemp("store"), find_images(folder)
    before = everything(extract(files, counting, 64, cache=store).views.clean)
    (path,) = store.rglob("features/rows.bin")
    with path.open("r+b") as file:
        file.seek(5 * path.stat().st_size // 11 + 3)
        file.write(b"\xff\xff")
    after = everything(extract(files, counting, 64, cache=store).views.clean)
    assert torch.equal(before, after)


def test_another_precision_or_backbone_shares_nothing(folder, colors, tmp_path_factory):
    store, files = tmp_path_factory.mktemp("store"), find_images(folder)
    for precision in ("float32", "bfloat16"):
        extract(files, load_backbone(colors, "cpu", 8, precision), 64, cache=store)
    colors.mix.weight.data += 1
    extract(files, load_backbone(colors, "cpu", 8), 64, cache=store)
    assert len(list(store.iterdir())) == 3


def test_a_backbone_without_weights_keeps_features_in_memory(folder, tmp_path_factory):
    store = tmp_path_factory.mktemp("store")
    pool = load_backbone(torch.nn.AvgPool2d(8), device="cpu", patch_size=8)
    extract(find_images(folder), pool, 64, cache=store)
    assert not list(store.iterdir())


def test_fresh_augmentation_differs_between_steps_and_repeats_with_them(folder, counting):
    found = extract(find_images(folder), counting, 64, views="fresh", cache=None)
    index = torch.tensor([4, 0])
    first, again = found.views.batch(index, 7, 0), found.views.batch(index, 7, 0)
    assert torch.equal(first.augmented, again.augmented)
    assert not torch.equal(first.augmented, first.clean)
    later = found.views.fresh(first.rows, first.flip, 8)
    assert not torch.equal(first.augmented, later)


def test_unreadable_images_are_reported_every_time(folder, counting, tmp_path_factory):
    (folder / "05.png").write_bytes(b"no image")
    store = tmp_path_factory.mktemp("store")
    for _ in range(2):
        problems = []
        found = extract(find_images(folder), counting, 64, cache=store, log=problems.append)
        assert len(problems) == 1
        assert "05.png" in problems[0]
        assert len(found.keys) == len(found.views) == 10
    for path in folder.glob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(ImageError, match="none of the 11 images"):
        extract(find_images(folder), counting, 64, cache=store, log=problems.append)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.usefixtures("unchecked")
def test_memory_does_not_grow_with_the_collection(tmp_path):
    """Over half a gigabyte of features goes through the store and training; an eighth may stay:
    the features of masks, which the tree of classes grows from, are among it."""
    network = torch.nn.Conv2d(3, 256, 4, 4)
    model = PriMaPsEM(
        3, backbone=network, patch_size=4, size=64, mask_crf=False, device="cpu",
        recipe="paper", epochs=1, min_steps=10, min_init_steps=10,
    )  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (2600, 4, 4, 3), np.uint8)
    files = [ImageFile(Image.fromarray(n).resize((64, 64)), str(i)) for i, n in enumerate(noise)]

    def anonymous():
        release_memory()  # what the C library keeps for later is not ours
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) * 1024

    peak = 0

    def progress(*_):
        nonlocal peak
        peak = max(peak, anonymous())

    model.fit(files[:64], cache=tmp_path / "warm")
    before = anonymous()
    model.fit(files, cache=tmp_path / "store", progress=progress)
    stored = sum(path.stat().st_size for path in (tmp_path / "store").rglob("rows.bin"))
    assert stored > 5e8
    assert peak - before < stored / 8


@pytest.mark.parametrize("store", [True, False])
def test_features_of_masks_alone_are_those_of_features_and_masks(
    folder, counting, tmp_path_factory, monkeypatch, store
):
    """Feature maps are only cached for the images that k-means restarts read."""
    monkeypatch.setattr("primaps.features.extract.RESTART_IMAGES", 4)
    (folder / "04.png").write_bytes(b"no image")
    files, kept = find_images(folder), tmp_path_factory.mktemp("kept")

    def found(keep, root):
        return extract(
            files, counting, 64, masks=MAKER, cache=root if store else None,
            cache_content=keep, log=lambda sentence: None,
        )  # fmt: skip

    whole, alone = found("features", kept / "features"), found("masks", kept / "masks")
    assert alone.masks is None
    assert len(whole.views) == 10
    assert 3 <= len(alone.views) == len(alone.restart_views) == len(whole.restart_views) <= 4
    with pytest.raises(ValueError, match="needs masks"):
        extract(files, counting, 64, cache_content="masks")
    expected, table = whole.mask_table(), alone.mask_table()
    for name in ("features", "areas", "images", "numbers"):
        assert torch.equal(getattr(table, name), getattr(expected, name)), name
    for one, other in zip(whole.restart_views.chunks(), alone.restart_views.chunks(), strict=True):
        assert torch.equal(one, other)
    index = torch.arange(len(alone.restart_views))
    assert torch.equal(
        whole.restart_views.batch(index, 1, 0).clean, alone.restart_views.batch(index, 1, 0).clean
    )
    if store:
        names = {path.parent.name.partition("-")[0] for path in (kept / "masks").rglob("rows.bin")}
        assert names == {"features", "table"}
        seen = counting.features.seen
        again = found("masks", kept / "masks")
        assert torch.equal(again.mask_table().features, table.features)
        found("masks", kept / "features")  # what is there already does not go through the backbone
        assert counting.features.seen == seen + 2  # blank images, for the shape


def test_the_same_image_in_many_batches_is_cached_once(counting, tmp_path, monkeypatch):
    """Batches with the same image are computed at the same time, also if it is cached."""
    monkeypatch.setattr("primaps.features.extract.RESTART_IMAGES", 1)
    pictures = [painted(seed % 3)[0] for seed in range(64)]
    files = [ImageFile(picture, f"{n:02}") for n, picture in enumerate(pictures)]
    extract(files, counting, 64, masks=MAKER, cache=tmp_path)
    for keep in ("masks", "features", "masks"):
        found = extract(files, counting, 64, masks=MAKER, cache=tmp_path, cache_content=keep)
        table = found.mask_table()
        assert table.numbers.tolist() == [1, 2] * 64
        assert torch.equal(table.features[:6], table.features[6:12])
    for path in tmp_path.rglob("rows.txt"):
        assert len(path.read_text().splitlines()) == 3, path


def test_the_mask_table_is_bit_identical_with_and_without_feature_maps():
    """With the channels of a ViT, a product is divided among threads."""
    network = load_backbone(torch.nn.Conv2d(3, 384, 14, 14), device="cpu", patch_size=14)
    files = [ImageFile(painted(seed, 322, 322)[0], str(seed)) for seed in range(16)]
    stripes = (torch.arange(322) // 60 + 1).expand(322, 322)
    maker = MaskMaker(
        lambda features, images: stripes.expand(len(images), 322, 322), {"kind": "stripes"}
    )
    tables = [
        extract(files, network, 322, masks=maker, cache_content=keep, cache=None).mask_table()
        for keep in ("features", "masks")
    ]
    assert torch.equal(tables[0].features, tables[1].features)


def test_a_resumed_extraction_of_masks_writes_the_same_bytes(folder, counting, tmp_path):
    def dying(features, images):
        if len(images) < 8:
            raise KeyboardInterrupt
        return halves(features, images)

    files, options = find_images(folder), {"cache_content": "masks"}
    with pytest.raises(KeyboardInterrupt):
        extract(files, counting, 64, masks=MaskMaker(dying, MAKER.options),
                cache=tmp_path / "stopped", **options)  # fmt: skip
    for name in ("stopped", "whole"):
        extract(files, counting, 64, masks=MAKER, cache=tmp_path / name, **options)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"
    names = sorted(path.relative_to(whole) for path in whole.rglob("rows.*"))
    assert len(names) == 4
    for name in names:
        assert (stopped / name).read_bytes() == (whole / name).read_bytes()


def test_a_few_more_images_change_little_of_the_restart_sample(monkeypatch):
    monkeypatch.setattr("primaps.features.extract.RESTART_IMAGES", 100)
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(1000)]
    before, after = restart_sample(digests[:990]), restart_sample(digests)
    assert len(before) == len(after) == 100
    assert len(before & after) >= 90
    assert restart_sample(digests[::-1]) == after
