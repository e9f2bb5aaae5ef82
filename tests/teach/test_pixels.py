"""The pixel level: features, trees, and models that use them."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from sklearn.ensemble import HistGradientBoostingClassifier

from primaps.model import PriMaPsEM
from primaps.persistence import ModelError
from primaps.scenes.predict import predict_image
from primaps.teach import pixels
from primaps.teach.pixels import (
    PixelClassifier,
    PixelExamples,
    blur,
    feature_count,
    learn_pixels,
    pixel_examples,
    pixel_features,
)
from primaps.utils.errors import InputError
from tests.conftest import painted
from tests.teach.test_model import accuracy, clicks, fitted, images, label_maps  # noqa: F401


def table(count: int, classes: int, seed: int = 0) -> PixelExamples:
    """Features of which two decide the class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(count, feature_count(classes), generator=generator)
    y = ((x[:, 0] * 2 + x[:, 3]) * classes / 3).long().clamp_max(classes - 1)
    return PixelExamples(x, y, torch.arange(count) % 4)


def test_a_blur_is_that_of_scipy():
    values = torch.rand(1, 2, 40, 50)
    for sigma in (1.0, 3.5):
        expected = gaussian_filter(values[0, 1].numpy(), sigma, mode="nearest", truncate=3.2)
        np.testing.assert_allclose(blur(values, sigma)[0, 1], expected, atol=2e-3)


def test_features_have_the_number_and_size_that_is_declared():
    for size in ((48, 64), (21, 35)):
        batch = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        found = pixel_features(torch.randn(2, 5, 6, 8), batch)
        assert found.shape == (2, feature_count(5), (size[0] + 1) // 2, (size[1] + 1) // 2)
        assert found.isfinite().all()
    flat = torch.full((1, 3, 32, 32), 100, dtype=torch.uint8)
    found = pixel_features(torch.zeros(1, 2, 4, 4), flat)[0]
    colors = found[:3, 8, 8]
    for first in (3, 8, 13, 18):
        torch.testing.assert_close(found[first : first + 3, 8, 8], colors, atol=1e-4, rtol=0)
        assert found[first + 3 : first + 5].abs().max() < 2e-3  # no gradient and no contrast


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_trees_as_arrays_are_those_of_scikit_learn(classes):
    examples = table(600, classes)
    shift = torch.zeros(classes)
    count = 1 if classes == 2 else classes
    iterations = min(pixels.ITERATIONS[1], max(pixels.ITERATIONS[0], pixels.TREES // count))
    reference = HistGradientBoostingClassifier(
        max_iter=iterations, learning_rate=min(0.5, pixels.STEP / iterations), max_leaf_nodes=16,
        class_weight="balanced", early_stopping=False, random_state=3,
    ).fit(examples.features.numpy(), examples.classes.numpy())  # fmt: skip
    new = table(300, classes, seed=1).features
    expected = reference.predict_proba(new.numpy())
    found = learn_pixels(examples, shift, seed=3).classify(new).softmax(1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_class_without_pixels_keeps_its_probability_of_the_tokens():
    examples = table(600, 3)
    some = examples[examples.classes != 1]
    log_p = torch.tensor([[0.5, 0.3, 0.2], [0.02, 0.97, 0.01]]).log()
    rows = torch.cat([examples.features[:2, :-3], log_p], 1)
    p = learn_pixels(some, torch.zeros(3)).classify(rows).softmax(1)
    torch.testing.assert_close(p[:, 1], torch.tensor([0.3, 0.97]))
    torch.testing.assert_close(p.sum(1), torch.ones(2))


def test_tensors_make_the_same_classifier_and_bad_ones_are_refused():
    trees = learn_pixels(table(400, 3), torch.zeros(3))
    again = PixelClassifier.from_tensors(trees.tensors(), 3, "file")
    x = table(50, 3).features
    assert torch.equal(trees.classify(x), again.classify(x))
    assert again.reject is None
    for name, change in (
        ("pixels.children", lambda t: torch.zeros_like(t)),  # a node that is its own child
        ("pixels.feature", lambda t: t + 1000),
        ("pixels.value", lambda t: t[:-1]),
        ("pixels.baseline", lambda t: t[:2]),
    ):
        tensors = trees.tensors()
        tensors[name] = change(tensors[name])
        with pytest.raises(InputError, match="file"):
            PixelClassifier.from_tensors(tensors, 3, "file")


def test_pixels_are_sampled_evenly_by_class():
    labels = np.full((20, 20), -1)
    labels[:10], labels[10, :4] = 0, 2
    found = pixel_examples(torch.rand(4, 20, 20), labels, 60, 0, "a")
    assert found.classes.bincount().tolist() == [30, 0, 4]


def test_a_pixel_model_is_saved_and_predicts_the_same_everywhere(
    fitted, images, colors, tmp_path  # noqa: F811
):  # fmt: skip
    taught = fitted.teach(images, label_maps(range(4)), level="pixels")
    assert taught.taught_.level == "pixels"
    assert accuracy(taught) > 0.98
    assert {"tokens", "pixels"} == taught.taught_.scores.keys()
    again = fitted.teach(images, label_maps(range(4)), level="pixels")
    assert again.prediction_digest() == taught.prediction_digest()
    taught.save_pretrained(tmp_path)
    loaded = PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    image, _ = painted(100)
    for options in ({}, {"crf": False}, {"reject": True}, {"level": "tokens"}):
        assert torch.equal(taught.predict(image, **options), loaded.predict(image, **options))
    tiled = predict_image(loaded, image, size=64)
    assert (tiled == loaded.predict(image).numpy()).mean() > 0.97
    tokens = fitted.teach(images, label_maps(range(4)), level="tokens")
    assert tokens.prediction_digest() != loaded.prediction_digest()
    plain, level = tokens.predict(image), loaded.predict(image, level="tokens")
    assert torch.equal(plain, level)
    with pytest.raises(InputError, match="level is 'pixels', but the model was not taught"):
        tokens.predict(image, level="pixels")
    with pytest.raises(InputError, match="level is 'tokens', but the model was not taught"):
        fitted.predict(image, level="tokens")


def test_auto_takes_tokens_without_regions_or_gain(fitted, images):  # noqa: F811
    assert fitted.teach(images, clicks()).taught_.level == "tokens"
    found = fitted.teach(images, label_maps(range(4))).taught_
    better = found.scores["pixels"] >= found.scores["tokens"] + 0.01
    assert found.level == ("pixels" if better else "tokens")
    one = [c for c in clicks() if c.name == "brick"]
    points = fitted.teach(images, clicks(), level="pixels")  # points are annotated pixels too
    assert points.taught_.pixels is not None
    assert len(one) > 1


def test_a_file_without_its_trees_is_refused(fitted, images, colors, tmp_path):  # noqa: F811
    from safetensors.torch import load_file, save_file

    taught = fitted.teach(images, label_maps(range(3)), level="pixels")
    taught.save_pretrained(tmp_path)
    path = tmp_path / "taught.safetensors"
    from primaps.utils.inputs import read_tensors

    _, note = read_tensors(path)
    tensors = {k: v for k, v in load_file(path).items() if not k.startswith("pixels.")}
    save_file(tensors, path, note)
    with pytest.raises(ModelError, match="the trees of the pixel level are missing"):
        PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
