import pytest
import torch

import primaps
from primaps.backbones.weights import to_hub_names
from primaps.projections import (
    Projection,
    ProjectionError,
    as_projection,
    convert_projection,
    load_projection,
    read_checkpoint,
)
from tests.backbones.test_backbones import original_names, reference_vit
from tests.projections.originals import vit_shapes, write_hp, write_stego


def reference_codes(state, features, prefix=""):
    """cluster1(f) + cluster2(f) in double precision, written out."""
    weights = {k.removeprefix(prefix): v.double().squeeze() for k, v in state.items()}
    x = features.double().permute(0, 2, 3, 1)

    def layer(x, name):
        return torch.einsum("bhwc,dc->bhwd", x, weights[f"{name}.weight"]) + weights[f"{name}.bias"]

    nonlinear = layer(layer(x, "cluster2.0").clamp_min(0), "cluster2.2")
    return (layer(x, "cluster1.0") + nonlinear).permute(0, 3, 1, 2)


@pytest.mark.parametrize(("width", "dim", "classes"), [(768, 100, 27), (768, 70, 27), (384, 70, 3)])
def test_stego_files_with_real_shapes_give_the_codes_of_an_independent_computation(
    tmp_path, width, dim, classes
):
    state = write_stego(tmp_path / "stego.ckpt", width, dim, classes)
    checkpoint = read_checkpoint("stego", tmp_path / "stego.ckpt")
    features = torch.randn(2, width, 5, 4)
    expected = reference_codes(state, features, "net.")
    torch.testing.assert_close(
        checkpoint.projection(features).double(), expected, rtol=1e-4, atol=1e-4
    )
    assert torch.equal(checkpoint.projection.clusters, state["cluster_probe.clusters"])
    assert {k: tuple(v.shape) for k, v in checkpoint.backbone.items()} == vit_shapes(width)
    assert to_hub_names(checkpoint.backbone)[1]["num_attention_heads"] == width // 64
    assert checkpoint.projection.about["method"] == "stego"


@pytest.mark.parametrize(("width", "dim", "classes"), [(384, 512, 27), (768, 256, 3)])
def test_hp_files_with_real_shapes_give_the_codes_of_the_head_not_of_its_moving_average(
    tmp_path, width, dim, classes
):
    state = write_hp(tmp_path / "hp.pth", width, dim, classes)
    checkpoint = read_checkpoint("hp", tmp_path / "hp.pth")
    features = torch.randn(2, width, 5, 4)
    torch.testing.assert_close(
        checkpoint.projection(features).double(),
        reference_codes(state, features),
        rtol=1e-4,
        atol=1e-4,
    )
    assert torch.equal(checkpoint.projection.clusters, state["cluster.clusters"])
    assert {k: tuple(v.shape) for k, v in checkpoint.backbone.items()} == vit_shapes(width)


@pytest.mark.parametrize("write", [write_stego, write_hp])
def test_converted_folders_hold_the_same_projection_and_a_backbone_that_loads(tmp_path, write):
    vit = original_names(depth=2, width=64, patch=8, dinov2=False)
    write(tmp_path / "file", width=64, dim=16, vit=vit)
    out = convert_projection(tmp_path / "file", tmp_path / "out")
    original, converted = load_projection(None, tmp_path / "file"), load_projection(None, out)
    features = torch.randn(1, 64, 3, 3)
    assert torch.equal(original(features), converted(features))
    assert converted.digest == original.digest
    assert converted.about == original.about

    backbone = primaps.load_backbone(out / "backbone", device="cpu")
    images = torch.rand(1, 3, 32, 32)
    expected = reference_vit(vit, (images - backbone.mean) / backbone.std, 8)
    torch.testing.assert_close(backbone(images), expected, rtol=1e-4, atol=1e-4)


def change(path, part, **changes):
    content = torch.load(path, weights_only=True)
    for key, value in changes.items():
        key = key.replace("__", ".")
        if value is None:
            del content[part][key]
        else:
            content[part][key] = value
    torch.save(content, path)


@pytest.mark.parametrize(
    ("part", "changes", "words"),
    [
        ("net_model_state_dict", {"cluster1__0__bias": None}, "lacks cluster1.0.bias"),
        ("net_model_state_dict", {"cluster3__w": torch.ones(1)}, "has surplus cluster3.w"),
        (
            "net_model_state_dict",
            {"cluster1__0__bias": torch.ones(3)},
            "floating point of shape (16,)",
        ),
        ("net_model_state_dict", {"cluster1__0__bias": 5}, "is not a tensor"),
        ("cluster_model_state_dict", {"clusters": None}, "lacks the clusters"),
        (
            "cluster_model_state_dict",
            {"clusters": torch.ones(3, 7)},
            "it must be floating point of shape (any, 16)",
        ),
        ("net_model_state_dict", {"model__norm__bias": None}, "lacks norm.bias"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_sentence(tmp_path, part, changes, words):
    write_hp(tmp_path / "hp.pth", width=64, dim=16)
    change(tmp_path / "hp.pth", part, **changes)
    with pytest.raises(ProjectionError) as error:
        convert_projection(tmp_path / "hp.pth", tmp_path / "out")
    assert words in str(error.value)
    assert str(tmp_path / "hp.pth") in str(error.value)
    assert not (tmp_path / "out").exists()


def test_the_kind_is_checked_and_guessed(tmp_path):
    write_hp(tmp_path / "hp.pth", width=64, dim=16)
    assert load_projection(None, tmp_path / "hp.pth").name == "hp"
    with pytest.raises(ProjectionError, match="is a checkpoint of hp, not of stego"):
        load_projection("stego", tmp_path / "hp.pth")
    with pytest.raises(ValueError, match="kind is 'dino'; it must be 'stego' or 'hp'"):
        load_projection("dino", tmp_path / "hp.pth")
    with pytest.raises(ProjectionError, match="does not exist"):
        load_projection("hp", tmp_path / "none.pth")
    torch.save({"state_dict": {"a": torch.ones(1)}}, tmp_path / "other.pth")
    with pytest.raises(ProjectionError, match="is neither a checkpoint of STEGO"):
        load_projection(None, tmp_path / "other.pth")


def test_a_native_projection_comes_back_the_same(tmp_path):
    from primaps.projections import Head

    projection = Projection(Head(8, 3, 5), torch.randn(4, 3), "mine", {"steps": 7})
    projection.save(tmp_path)
    again = Projection.load(tmp_path)
    features = torch.randn(2, 8, 3, 3)
    assert torch.equal(again(features), projection(features))
    assert (again.name, again.about, again.digest) == ("mine", {"steps": 7}, projection.digest)
    without = Projection(Head(8, 3, 5), name="mine")
    without.save(tmp_path)
    assert Projection.load(tmp_path).clusters is None
    assert without.digest != projection.digest


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    from primaps.projections import Head

    Projection(Head(8, 3)).save(tmp_path)
    text = (tmp_path / "projection.json").read_text()
    Projection(Head(8, 3)).save(tmp_path)
    (tmp_path / "projection.json").write_text(text)
    with pytest.raises(ProjectionError, match="do not belong together"):
        Projection.load(tmp_path)
    (tmp_path / "projection.json").write_text("{")
    with pytest.raises(ProjectionError, match="cannot be read"):
        Projection.load(tmp_path)
    (tmp_path / "projection.safetensors").unlink()
    (tmp_path / "projection.json").write_text(text)
    with pytest.raises(ProjectionError, match="no projection.safetensors"):
        Projection.load(tmp_path)


def test_a_callable_is_a_projection_but_cannot_be_saved(tmp_path):
    def halves(features):
        return features[:, ::2]

    projection = Projection(halves, clusters=None)
    assert projection(torch.ones(1, 4, 2, 2)).shape == (1, 2, 2, 2)
    assert projection.digest is None
    with pytest.raises(ValueError, match="halves is a callable and cannot be saved"):
        projection.save(tmp_path)


def test_a_projection_may_be_given_as_itself_a_file_a_folder_or_a_callable(tmp_path):
    write_hp(tmp_path / "hp.pth", width=64, dim=16)
    from_file = as_projection(tmp_path / "hp.pth")
    from_folder = as_projection(str(convert_projection(tmp_path / "hp.pth", tmp_path / "out")))
    assert from_file.digest == from_folder.digest
    assert as_projection(from_file) is from_file
    assert as_projection(torch.nn.Identity()).name == "Identity"


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (lambda f: f.flatten(2), "returned \\(2, 8, 9\\)"),
        (lambda f: f[:1], "returned \\(1, 8, 3, 3\\)"),
        (lambda f: None, "returned NoneType"),
    ],
)
def test_a_callable_that_returns_something_else_is_told(codes, words):
    with pytest.raises(ValueError, match=words):
        Projection(codes)(torch.randn(2, 8, 3, 3))


def test_features_of_another_backbone_are_refused():
    from primaps.projections import Head

    with pytest.raises(ValueError, match="takes 8 channels, but the features have 9"):
        Projection(Head(8, 3), name="stego")(torch.randn(1, 9, 2, 2))


def saved_head(**changes):
    """The tensors of a projection of 8 channels to 3, some of them others."""
    from primaps.projections import Head

    state = {f"codes.{name}": value for name, value in Head(8, 3).state_dict().items()}
    return state | {name.replace("__", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (  # a file of 8 MB that would be a head of 10^12 numbers
            {
                "codes.linear.weight": torch.zeros(1, 10**6),
                "codes.branch.0.weight": torch.zeros(10**6, 1),
            },
            r"x: tensor codes.linear.bias is missing",
        ),
        (
            saved_head() | {"codes.branch.0.weight": torch.zeros(10**6, 1)},
            r"codes.branch.0.weight is .* \(1000000, 1\); it must be .* \(1000000, 8\)",
        ),
        (saved_head() | {"codes.linear.bias": torch.full((3,), torch.nan)}, "has NaN or infinity"),
        (saved_head() | {"clusters": torch.zeros(4, 3).long()}, "clusters is torch.int64"),
        (saved_head() | {"more": torch.zeros(1)}, "more"),
        ({}, "x: tensor codes.linear.weight is missing"),
    ],
)
def test_tensors_that_are_no_head_are_named(tensors, words):
    from primaps.projections.projection import from_tensors

    with pytest.raises(ProjectionError, match=words):
        from_tensors(tensors, "x", "name", {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": 2}, 'field "format" is 2; it must be 1'),
        ({"name": None}, 'field "name" is None; it must be a string'),
        ({"about": []}, r'field "about" is \[\]; it must be an object'),
        ({"digest": 7}, 'field "digest" is 7; it must be a string'),
        ({"more": 1}, 'field "more" is unknown'),
    ],
)
def test_a_description_of_other_types_is_named(tmp_path, change, words):
    import json

    from primaps.projections import Head

    Projection(Head(8, 3)).save(tmp_path)
    path = tmp_path / "projection.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ProjectionError, match=f"projection.json: .*{words}"):
        Projection.load(tmp_path)
