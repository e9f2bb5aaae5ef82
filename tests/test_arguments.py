"""Public functions with invalid arguments, and with other default settings of torch."""

import contextlib

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import primaps
from primaps.config import EM_STEPS
from primaps.utils import memory
from primaps.utils.errors import InputError, PrimapsError
from primaps.utils.memory import check_memory
from tests.conftest import painted

QUICK = {"patch_size": 8, "size": 64, "epochs": 1, "min_steps": 5, "min_init_steps": 10}
QUICK |= {"batch_size": 4, "device": "cpu", "recipe": "paper"}
FEATURES = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
IMAGE = np.zeros((6, 6, 3), np.uint8)
PIXELS = IMAGE[None].transpose(0, 3, 1, 2)
POOL = torch.nn.AvgPool2d(8)
ODD = ("no", 1.5, None, [1], object(), float("nan"), -(10**30))


def model(**options):
    return primaps.PriMaPsEM(3, backbone=POOL, **{**QUICK, **options})


CALLS = {
    "size is 0": lambda: model(size=0),
    "size is -14": lambda: model(size=-14),
    "size is 14000000": lambda: model(size=14_000_000),
    "seed is 'x'": lambda: model(seed="x"),
    "mask_crf is 'no'": lambda: model(mask_crf="no"),
    "epochs is 1.5": lambda: model(epochs=1.5),
    "learning_rate is inf": lambda: model(learning_rate=float("inf")),
    "views is 1000000": lambda: model(views=1_000_000),
    "classes is 2.5": lambda: primaps.PriMaPsEM(2.5, backbone=POOL, patch_size=8),
    "patch_size is 0": lambda: primaps.PriMaPsEM(3, backbone=POOL, patch_size=0),
    "backbone must be a name, a path or a callable, got 3": lambda: primaps.load_backbone(3),
    "unknown backbone ''": lambda: primaps.load_backbone(""),
    "unknown backbone 'a/b/c'": lambda: primaps.load_backbone("a/b/c"),
    "device 'mps' is not": lambda: primaps.load_backbone(POOL, "mps", 8),
    "device '3.5' is not": lambda: primaps.load_backbone(POOL, 3.5, 8),
    "precision is 16": lambda: primaps.load_backbone(POOL, "cpu", 8, 16),
    "an input is 3": lambda: model().fit(3),
    "an input is None": lambda: primaps.find_images(None),
    "no input was given": lambda: model().fit([]),
    "labels is 3": lambda: model(method="probe").fit("images", 3),
    "int is not an image; give a path": lambda: model().predict(3),
    "threshold is nan": lambda: primaps.propose(FEATURES, threshold=float("nan")),
    "threshold is '0.4'": lambda: primaps.propose(FEATURES, threshold="0.4"),
    "anchor is 'yes'": lambda: primaps.propose(FEATURES, anchor="yes"),
    "features: expected": lambda: primaps.propose("features"),
    "features must be (B": lambda: primaps.propose([[1.0, 2.0]]),
    "differ in shape": lambda: primaps.propose([np.zeros((4, 3, 3)), np.zeros((4, 2, 3))]),
    "crf is 'no'; it must be 'dense'": lambda: primaps.image_masks(FEATURES, PIXELS, crf="no"),
    "gain is 0": lambda: primaps.image_masks(FEATURES, PIXELS, gain=0),
    "iterations is 1.5": lambda: primaps.DenseCRF(iterations=1.5),
    "iterations is 10000000000": lambda: primaps.DenseCRF(iterations=10**10),
    "theta_alpha is 'x'": lambda: primaps.DenseCRF(theta_alpha="x"),
    "exact is 'no'": lambda: primaps.DenseCRF(exact="no"),
    "compatibility: expected": lambda: primaps.DenseCRF(compatibility="potts"),
    "images: expected": lambda: primaps.dense_crf([3], np.ones((2, 6, 6))),
    "logits: expected": lambda: primaps.dense_crf(IMAGE, logits=[object()]),
    "an input is 7": lambda: primaps.propose_files([7], "out", backbone=model().backbone),
    "size is 0; it": lambda: primaps.propose_files("x", "out", backbone="dinov2-vits14", size=0),
    "out is 3": lambda: primaps.propose_files("x", 3),
    "matching is 3": lambda: primaps.evaluate(model(), "images", "labels", matching=3),
    "ignore_index is 2000000000": lambda: primaps.evaluate(
        model(), "images", "labels", ignore_index=2_000_000_000
    ),
    "size is -1": lambda: primaps.evaluate(model(), "images", "labels", size=-1),
    "name is 3": lambda: primaps.load_dataset(3, "root"),
    "steps is -1": lambda: primaps.train_projection(None, "stego", classes=3, steps=-1),
    "method is 'magic'; it must be": lambda: primaps.train_projection(None, "magic"),
    "kind is 'magic'; it must be": lambda: primaps.load_projection("magic", "file"),
    "path is 3": lambda: primaps.load_projection(None, 3),
}  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("words", CALLS)
def test_invalid_arguments_raise_one_sentence(words):
    with pytest.raises(PrimapsError) as raised:
        CALLS[words]()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("unchecked")
def test_numbers_and_booleans_of_public_functions_are_validated():
    """Options whose default is a number or a boolean are validated by their type."""
    functions = {
        "propose": lambda **given: primaps.propose(FEATURES, **given),
        "dense_crf": lambda **given: primaps.dense_crf(IMAGE, np.ones((2, 6, 6)), **given),
        "DenseCRF": lambda **given: primaps.DenseCRF(**given),
        "propose_files": lambda **given: primaps.propose_files("nothing", "out", **given),
        "evaluate": lambda **given: primaps.evaluate(None, "nothing", "nothing", **given),
    }
    import inspect

    seen = 0
    for name, call in functions.items():
        for option in inspect.signature(getattr(primaps, name)).parameters.values():
            if not isinstance(option.default, bool | int | float):
                continue
            for value in ODD:
                if value == 1.5 and type(option.default) is float:
                    continue
                seen += 1
                with pytest.raises(PrimapsError, match=option.name):
                    call(**{option.name: value})
    assert seen > 100


def test_a_size_that_exceeds_memory_is_refused_before_allocation(monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda device=None: 10**9)
    with pytest.raises(InputError, match="size 16384 needs at least .* GB of memory"):
        model(size=16384)
    assert model(size=64).size == 64


@given(st.integers(0, 10**20), st.one_of(st.none(), st.integers(0, 10**14)))
def test_only_sizes_that_exceed_memory_are_refused(need, there):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available_memory", lambda device=None: there)
        fits = there is None or need <= there
        with contextlib.nullcontext() if fits else pytest.raises(InputError, match="an image"):
            check_memory(need, "an image")


SHAPES = arrays.array_shapes(min_dims=4, max_dims=4, min_side=1, max_side=4)
QUIET = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@QUIET
@given(arrays.arrays(st.sampled_from([np.float16, np.float32, np.float64]), SHAPES,
                     elements=st.floats(-8, 8, width=16)))  # fmt: skip
def test_proposals_of_tensors_arrays_and_lists_are_identical(maps):
    expected = primaps.propose(torch.tensor(maps))
    for given_as in (maps, list(maps), maps.tolist(), [torch.tensor(one) for one in maps]):
        exact = maps.dtype == np.float64 or not isinstance(given_as[0], list)
        found = primaps.propose(given_as)
        assert found.shape == expected.shape
        assert not exact or torch.equal(found, expected)


@QUIET
@given(st.integers(0, 3), st.integers(1, 4), st.integers(2, 7), st.integers(2, 7),
       st.integers(0, 99))  # fmt: skip
def test_the_crf_accepts_tensors_arrays_lists_and_empty_batches(batch, labels, h, w, seed):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (batch, h, w, 3), np.uint8)
    values = random.random((batch, labels, h, w), np.float32)
    first = torch.tensor(images).permute(0, 3, 1, 2)
    expected = primaps.dense_crf(first, torch.tensor(values))
    assert expected.shape == values.shape
    whole = primaps.dense_crf(images, values)
    assert isinstance(whole, np.ndarray)
    assert np.array_equal(whole, expected.numpy())
    several = primaps.dense_crf([Image.fromarray(one) for one in images], list(values))
    assert all(np.array_equal(a, b) for a, b in zip(several, expected, strict=True))
    _, changes = primaps.dense_crf(list(images), list(values), return_changes=True)
    assert changes.shape == (batch, 10)
    if batch:
        nested = primaps.dense_crf(images[0].tolist(), values[0].astype(np.float64).tolist())
        assert torch.equal(nested, expected[0])


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


SURROUNDINGS = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
}


def everything(colors, images, method="em", **options):
    """Return the weights of a fit and its predictions."""
    options = {**QUICK, **options}
    if options["recipe"] == "orthogonal":
        options = {name: value for name, value in options.items() if name not in EM_STEPS}
    fitted = primaps.PriMaPsEM(3, backbone=colors, method=method, **options)
    fitted.fit(images)
    found = {name: value.clone() for name, value in fitted.prototypes_.state_dict().items()}
    found["labels"] = fitted.predict(images[0])
    found["masks"] = primaps.propose(fitted.backbone(torch.zeros(1, 3, 64, 64) + 0.5))
    logits = fitted.segmenter.logits(FEATURES.repeat(1, 4, 3, 3))[0, :, :8, :8]
    logits = logits.repeat_interleave(8, 1).repeat_interleave(8, 2)
    refined = primaps.dense_crf(images[0], logits=logits)
    return {**found, "refined": refined}


@pytest.mark.parametrize("name", SURROUNDINGS)
@pytest.mark.parametrize("options", [{}, {"recipe": "orthogonal"}], ids=["paper", "orthogonal"])
def test_results_do_not_depend_on_the_defaults_of_torch(colors, name, options):
    images = [painted(seed)[0] for seed in range(5)]
    expected = everything(colors, images, **options)
    with SURROUNDINGS[name]():
        before = torch.get_default_dtype(), torch.is_grad_enabled()
        found = everything(colors, images, **options)
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == before
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key].dtype == value.dtype, key
        assert torch.equal(found[key], value), key


def test_a_projection_is_trained_where_gradients_are_disabled():
    from primaps.features.training_data import ImageArrays

    rows = ImageArrays(torch.randn(6, 2, 8, 5, 5, generator=torch.Generator().manual_seed(1)))
    options = {"classes": 2, "steps": 2}
    expected = primaps.train_projection(rows, "stego", **options).digest
    for surroundings in SURROUNDINGS.values():
        with surroundings():
            assert primaps.train_projection(rows, "stego", **options).digest == expected


def test_a_network_of_double_precision_is_accepted(colors):
    double = torch.nn.Conv2d(3, 4, 8, 8).double()
    backbone = primaps.load_backbone(double, "cpu", 8)
    assert backbone(torch.rand(1, 3, 16, 16)).dtype == torch.float32


def test_kmeans_runs_its_epochs_without_initialization_epochs(colors):
    images = [painted(seed)[0] for seed in range(4)]
    options = {**QUICK, "min_init_steps": 0, "init_epochs": 0}
    fitted = primaps.PriMaPsEM(3, backbone=colors, method="kmeans", **options).fit(images)
    assert {line["stage"] for line in fitted.history_} == {"k-means"}
    assert fitted.predict(images[0]).shape == (64, 64)
