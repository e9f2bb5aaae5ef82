"""Proposals against a float64 eigendecomposition, on stored features of real images."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from primaps.proposals.batched import propose_torch
from primaps.proposals.compiled import propose_cpu
from primaps.proposals.eigenvectors import dominant
from primaps.proposals.image_size import image_masks, mask_logits
from primaps.proposals.principal_masks import propose


@pytest.fixture(autouse=True)
def one_thread():
    """Use one thread: on busy cores threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def features() -> torch.Tensor:
    stored = np.load(Path(__file__).parents[1] / "data" / "features.npz")["dinov2_vits14"]
    return torch.from_numpy(stored.astype(np.float32))


@pytest.fixture(scope="module")
def large(features) -> torch.Tensor:
    """Features of 41 x 37 tokens: more tokens than channels for several masks."""
    maps = F.interpolate(features, size=(41, 37), mode="bicubic")
    noise = torch.randn(maps.shape, generator=torch.Generator().manual_seed(0))
    return maps + 0.3 * maps.std() * noise


def principal(x):
    """Return variances and directions (rows), largest first."""
    x = x - x.mean(0)
    wide = len(x) < x.shape[1]
    values, v = torch.linalg.eigh(x @ x.T if wide else x.T @ x)
    v = F.normalize(x.T @ v if wide else v, dim=0)
    return values.flip(0).clamp_min(0), v.T.flip(0)


def exact(f, threshold=0.4, coverage=0.95, anchor=True, iterative=True):
    """Eq. 2-8 in float64; masks, anchors and the component and its share for each mask."""
    shape = f.shape[1:]
    x = f.flatten(1).T.double()
    unit = F.normalize(x, dim=1)
    mask = torch.zeros(len(x), dtype=torch.int64)
    every = principal(x)
    anchors, components, shares = [], [], []
    for step in range(len(x)):
        free = mask == 0
        if (~free).sum() >= coverage * len(x):
            break
        variances, v = principal(x[free]) if iterative else every
        z = 0 if iterative else step
        cosine = unit @ v[z]
        best = cosine.abs().masked_fill(~free, -1).argmax()
        v = v[z] * cosine[best].sign()
        similarity = unit @ (unit[best] if anchor else v)
        similarity = similarity.masked_fill(~free, -2)
        taken = similarity > threshold * similarity.max()
        if similarity.max() <= 0:
            continue
        anchors.append(int(best))
        mask[taken] = len(anchors)
        components.append(v)
        shares.append(float(variances[z] / variances.sum()))
    return mask.view(shape), anchors, components, shares


def both_paths(maps, threshold=0.4, coverage=0.95, anchor=True):
    flat = maps.flatten(2)
    return (
        propose_cpu(flat, threshold, coverage, anchor),
        propose_torch(flat, threshold, coverage, anchor, True),
    )


@pytest.mark.parametrize("anchor", [True, False])
@pytest.mark.parametrize("which", ["features", "large"])
def test_both_paths_equal_the_eigendecomposition(which, anchor, request):
    maps = request.getfixturevalue(which)
    for found in both_paths(maps, anchor=anchor):
        for f, (mask, values, anchors, shares) in zip(maps, found, strict=True):
            truth, expected, _, explained = exact(f, anchor=anchor)
            assert (mask.view(truth.shape) == truth).float().mean() >= 0.99
            assert anchors.tolist() == expected
            assert shares.tolist() == pytest.approx(explained, rel=1e-3)
            assert ((values > 0) == (mask > 0)).all()
            assert values.max() <= 1


def test_dominant_eigenvector_on_real_features(features):
    for f in features:
        x = (f.flatten(1) - f.flatten(1).mean(1, keepdim=True)).numpy()
        for matrix in (x @ x.T, x[:, :64].T @ x[:, :64]):
            value, vector = dominant(matrix, len(matrix))
            values, vectors = np.linalg.eigh(matrix.astype(np.float64))
            assert abs(vectors[:, -1] @ vector) > 0.9999
            assert value == pytest.approx(values[-1], rel=1e-5)


@pytest.mark.parametrize("ratio", [0.999, 0.9, 0.5, 0.0])
def test_dominant_eigenvector_with_a_small_gap(ratio):
    generator = np.random.default_rng(0)
    q = np.linalg.qr(generator.standard_normal((60, 60)))[0]
    spectrum = np.concatenate([[1, ratio], ratio * np.linspace(1, 0, 58)])
    matrix = ((q * spectrum) @ q.T).astype(np.float32)
    _, vector = dominant(matrix, 60)
    assert abs(q[:, 0] @ vector) > 0.9999


@pytest.mark.parametrize("coverage", [0.5, 0.95, 1.0])
@pytest.mark.parametrize("threshold", [0.2, 0.4, 0.6])
def test_threshold_and_coverage(features, threshold, coverage):
    masks = propose(features, threshold=threshold, coverage=coverage)
    for f, mask in zip(features, masks, strict=True):
        assert (mask > 0).float().mean() >= coverage
        last = mask == mask.max()
        assert ((mask > 0) & ~last).float().mean() < coverage  # none too many
        assert torch.equal(mask, exact(f, threshold, coverage)[0])


def test_non_iterative(features):
    found = propose(features, iterative=False, return_details=True)
    for i, f in enumerate(features):
        truth, anchors, _, shares = exact(f, iterative=False)
        # The reference goes on where three directions in a row add nothing.
        agree = found.masks[i] == truth
        assert agree.float().mean() >= 0.95
        count = len(found.explained[i])
        rows = [int(row) * 23 + int(column) for row, column in found.anchors[i]]
        assert rows == anchors[:count]
        assert found.explained[i].tolist() == pytest.approx(shares[:count], rel=1e-3)


def test_result_does_not_depend_on_batch_or_run(features, large):
    for maps in (features, large):
        together = propose(maps.repeat(3, 1, 1, 1))
        for i in range(3 * len(maps)):
            alone = propose(maps[i % len(maps)][None])[0]
            assert torch.equal(alone, together[i])
    one = propose(features.repeat(3, 1, 1, 1))
    torch.set_num_threads(2)
    assert torch.equal(propose(features.repeat(3, 1, 1, 1)), one)


def test_torch_path_lets_images_stop_at_different_times(features):
    constant = torch.ones_like(features[:1])
    maps = torch.cat([constant, features])
    together = propose_torch(maps.flatten(2), 0.4, 0.95, True, True)
    alone = propose_torch(features[:1].flatten(2), 0.4, 0.95, True, True)[0]
    assert len(together[0][2]) == 1
    assert (together[1][0] == alone[0]).float().mean() >= 0.999


def test_details_are_consistent(features):
    found = propose(features, return_details=True)
    assert torch.equal(found.masks, propose(features))
    unit = F.normalize(features, dim=1)
    for i, maps in enumerate(found.similarities):
        count = int(found.masks[i].max())
        assert maps.shape == (count, 23, 23)
        assert found.anchors[i].shape == (count, 2)
        assert found.explained[i].shape == (count,)
        assert torch.allclose(maps.flatten(1).amax(1), torch.ones(count))
        for z, (row, column) in enumerate(found.anchors[i].tolist()):
            inside = found.masks[i] == z + 1
            assert inside[row, column]
            cosine = torch.einsum("chw,c->hw", unit[i], unit[i, :, row, column])
            assert torch.allclose(maps[z][inside], cosine[inside], atol=1e-5)
            assert (maps[z][~inside] == 0).all()


@pytest.mark.parametrize("scale", [1e-30, 1e-4, 3.0, 1e15])
def test_scale_does_not_matter(features, scale):
    same = propose(features * scale) == propose(features)
    assert same.float().mean() >= 0.999


def test_masks_after_outliers_are_accurate(features, large):
    """Subtracting features that are much larger cancels all digits in float32."""
    for maps in (features, large):
        maps = maps.clone()
        maps[:, :, 0, :5] *= 3e4
        for found in both_paths(maps):
            for f, (mask, *_) in zip(maps, found, strict=True):
                assert (mask.view(f.shape[1:]) == exact(f)[0]).float().mean() >= 0.99


def test_half_precision_and_other_layouts(features):
    half = features.half()
    assert torch.equal(propose(half), propose(half.float()))
    strided = features.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert torch.equal(propose(strided), propose(features))
    wide = propose(features[:, :, :9])
    assert wide.shape == (3, 9, 23)
    assert torch.equal(wide[0], exact(features[0, :, :9])[0])


@pytest.mark.parametrize("iterative", [True, False])
@pytest.mark.parametrize("anchor", [True, False])
def test_degenerate_images(anchor, iterative):
    options = {"anchor": anchor, "iterative": iterative}
    assert propose(torch.randn(2, 5, 1, 1), **options).tolist() == [[[1]], [[1]]]
    assert (propose(torch.full((1, 5, 3, 4), 0.3), **options) == 1).all()
    assert (propose(torch.zeros(1, 5, 3, 4), **options) == 0).all()
    assert propose(torch.randn(0, 5, 3, 4), **options).shape == (0, 3, 4)
    details = propose(torch.zeros(1, 5, 3, 4), return_details=True, **options)
    assert details.similarities[0].shape == (0, 3, 4)
    assert details.anchors[0].shape == (0, 2)
    few = propose(torch.randn(1, 50, 1, 3), **options)  # fewer positions than components
    assert few.shape == (1, 1, 3)
    narrow = propose(torch.randn(1, 2, 7, 9), **options)  # more masks than channels
    assert narrow.shape == (1, 7, 9)


@settings(max_examples=40, deadline=None)
@given(
    channels=st.integers(1, 12),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    levels=st.integers(1, 4),
    seed=st.integers(0, 1000),
)
def test_any_features_end_in_masks(channels, h, w, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    # Few levels: repeated features, zeros, ties and exact symmetry.
    maps = torch.randint(-levels, levels + 1, (2, channels, h, w), generator=generator).float()
    nothing = maps.norm(dim=1) == 0
    for found in both_paths(maps, coverage=1.0):
        for i, (mask, values, anchors, shares) in enumerate(found):
            mask = mask.view(h, w)
            assert ((mask == 0) == nothing[i]).all()
            assert sorted(set(mask[mask > 0].tolist())) == list(range(1, len(anchors) + 1))
            assert values.isfinite().all()
            assert ((shares >= 0) & (shares <= 1.001)).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.0}, "threshold"),
        ({"threshold": -0.1}, "threshold"),
        ({"coverage": 0.0}, "coverage"),
        ({"coverage": 1.1}, "coverage"),
        ({"features": torch.zeros(3, 4, 5)}, "must be"),
        ({"features": torch.zeros(1, 4, 0, 5)}, "must be"),
        ({"features": torch.zeros(1, 4, 5, 5, dtype=torch.int64)}, "floating point"),
        ({"features": torch.tensor([0.0, torch.nan]).view(2, 1, 1, 1)}, "image 1 .*NaN"),
        ({"features": torch.tensor([torch.inf, 0.0]).view(2, 1, 1, 1)}, "image 0 .*infinity"),
    ],
)
def test_errors(change, message):
    options = {"features": torch.ones(1, 4, 2, 2), **change}
    with pytest.raises(ValueError, match=message):
        propose(options.pop("features"), **options)


def test_mask_logits(features):
    found = propose(features, return_details=True)
    scipy = pytest.importorskip("scipy.ndimage")
    for median, gain in ((True, 10.0), (False, 10.0), (True, 1.0)):
        for maps, logits in zip(
            found.similarities,
            mask_logits(found.similarities, median=median, gain=gain),
            strict=True,
        ):
            smooth = maps.numpy().astype(np.float64)
            if median:  # "mirror" of scipy is "reflect" of torch
                smooth = np.stack([scipy.median_filter(m, 3, mode="mirror") for m in smooth])
            smooth = np.clip(gain * smooth, 0, 1)
            background = np.clip(smooth[smooth > 0].mean() - smooth.sum(0), 0, 1)
            raw = np.concatenate([background[None], smooth])
            expected = raw - np.log(np.exp(raw).sum(0))
            assert np.allclose(logits.numpy(), expected, atol=1e-5)
    assert mask_logits([]) == []
    assert torch.equal(mask_logits([torch.zeros(0, 1, 3)])[0], torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="gain"):
        mask_logits(found.similarities, gain=0)


@pytest.mark.usefixtures("unchecked")
def test_image_masks(features):
    images = torch.randint(0, 256, (3, 3, 46, 46), dtype=torch.uint8)
    plain = image_masks(features, images, crf=None)
    assert plain.shape == (3, 46, 46)
    # Twice the size: the masks are those at feature resolution, but for their borders.
    coarse = propose(features).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert (plain == coarse).float().mean() > 0.75
    options = {"threshold": 0.6, "coverage": 0.5, "anchor": False, "iterative": False}
    for name, value in {**options, "median": False, "gain": 1.0}.items():
        assert not torch.equal(image_masks(features, images, crf=None, **{name: value}), plain)

    def shifted(given, probabilities):
        assert given is images
        assert all(torch.allclose(p.sum(0), torch.ones(46, 46)) for p in probabilities)
        return [p.roll(1, 0) for p in probabilities]

    assert not torch.equal(image_masks(features, images, crf=shifted), plain)
    with pytest.raises(ValueError, match="uint8"):
        image_masks(features, images.float())
    with pytest.raises(ValueError, match="3 feature maps for 2"):
        image_masks(features, images[:2])


def test_dense_crf_follows_the_image(features):
    images = torch.zeros(3, 3, 46, 46, dtype=torch.uint8)
    images[..., 20:] = 200
    refined = image_masks(features, images)
    assert refined.shape == (3, 46, 46)
    assert not torch.equal(refined, image_masks(features, images, crf=None))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_agrees(features, large):
    for maps in (features, large):
        same = propose(maps.cuda()).cpu() == propose(maps)
        assert same.float().mean() >= 0.999
