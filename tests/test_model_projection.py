"""PriMaPs-EM on codes: masks from features, prototypes in code space."""

import shutil

import pytest
import torch
from PIL import Image

from primaps.backbones.backbone import image_side
from primaps.backbones.load import load_backbone
from primaps.backbones.weights import write_folder
from primaps.inference import Segmenter
from primaps.model import PriMaPsEM
from primaps.persistence import ModelError
from primaps.projections import Head, Projection, convert_projection
from primaps.projections.projection import encoder
from primaps.utils.errors import InputError
from tests.backbones.test_backbones import original_names
from tests.conftest import painted
from tests.projections.originals import write_hp
from tests.projections.test_checkpoints import reference_codes
from tests.test_model import OWN, QUICK, agreement


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = Head(channels=16, dim=6)
    for layer in (head.branch[0], head.branch[2]):
        layer.weight.data *= 0.1
    return head


@pytest.fixture
def images(painted_folder):
    return painted_folder / "images"


@pytest.mark.parametrize("options", [QUICK, OWN, {**QUICK, "method": "kmeans"}])
def test_prototypes_live_in_code_space(colors, head, images, options):
    model = PriMaPsEM(3, backbone=colors, projection=Projection(head), **options)
    model.fit(images)
    assert model.prototypes_.direction.shape == (3, 6)
    assert agreement(model, 100) > 0.9


def test_masks_stay_those_of_the_features(colors, head, images):
    model = PriMaPsEM(3, backbone=colors, projection=Projection(head), **QUICK)
    plain = PriMaPsEM(3, backbone=colors, **QUICK)
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    features = plain.backbone(picture.float() / 255)
    assert torch.equal(model.masks(features, picture), plain.masks(features, picture))
    assert model.mask_maker().options == plain.mask_maker().options


def test_an_identity_as_projection_changes_nothing(colors, images):
    plain = PriMaPsEM(3, backbone=colors, **QUICK).fit(images)
    codes = Projection(lambda features: features)
    model = PriMaPsEM(3, backbone=colors, projection=codes, **QUICK).fit(images)
    assert torch.equal(model.prototypes_.direction, plain.prototypes_.direction)


def test_em_starts_from_the_clusters_of_the_projection(colors, head, images, caplog):
    clusters = torch.randn(3, 6)
    projection = Projection(head, clusters)
    own = PriMaPsEM(3, backbone=colors, projection=projection, method="kmeans", **QUICK)
    own.fit(images)
    assert torch.equal(own.prototypes_.direction.data, clusters)  # the row of STEGO or HP itself
    assert (own.prototypes_.scale == 1).all()
    model = PriMaPsEM(3, backbone=colors, projection=projection, **QUICK).fit(images)
    assert {line["stage"] for line in model.history_} == {"EM"}
    PriMaPsEM(4, backbone=colors, projection=projection, **QUICK).fit(images)
    assert "has 3 clusters, but 4 classes are requested" in caplog.text


def test_the_projection_is_saved_with_the_model(colors, head, images, tmp_path):
    model = PriMaPsEM(3, backbone=colors, projection=Projection(head), **QUICK).fit(images)
    model.save_pretrained(tmp_path)
    loaded = PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    image, _ = painted(5)
    assert torch.equal(loaded.predict(image), model.predict(image))
    assert loaded.prediction_digest() == model.prediction_digest()


def test_a_callable_projection_is_asked_for_again(colors, images, tmp_path):
    def halves(features):
        return features[:, ::2]

    model = PriMaPsEM(3, backbone=colors, projection=halves, **QUICK).fit(images)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="fitted on codes of your .*halves"):
        PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu")
    loaded = PriMaPsEM.from_pretrained(tmp_path, backbone=colors, device="cpu", projection=halves)
    image, _ = painted(5)
    assert torch.equal(loaded.predict(image), model.predict(image))


def test_a_probe_on_codes(colors, head, painted_folder):
    model = PriMaPsEM(
        3, backbone=colors, projection=Projection(head), method="probe",
        **{**QUICK, "min_steps": 200},
    )  # fmt: skip
    model.fit(painted_folder / "images", painted_folder / "labels")
    image, label = painted(100)
    assert (model.predict(image).numpy() == label).mean() > 0.9


def test_codes_come_from_the_network_of_the_checkpoint_and_masks_from_the_backbone(
    vit, tmp_path, monkeypatch, images
):
    """STEGO's and HP's ViT-S/8 are another DINO than the hub's."""
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    inside = original_names(depth=1, width=64, patch=8, side=8, dinov2=False)
    state = write_hp(tmp_path / "hp.pth", width=64, dim=16, classes=3, vit=inside)
    model = PriMaPsEM(3, backbone=vit, projection=tmp_path / "hp.pth", **QUICK)
    own = write_folder(tmp_path / "own", inside)
    other = load_backbone(own, "cpu")
    assert model.network.weights == other.weights != model.backbone.weights
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    pixels = picture.float() / 255
    seen = []
    model.fit(images)
    monkeypatch.setattr(
        Segmenter, "logits", lambda self, codes: (seen.append(codes), codes[:, :3])[1]
    )
    model.segment(Image.fromarray(picture[0].permute(1, 2, 0).numpy()), crf=False)
    expected = reference_codes(state, other(pixels)).float()
    torch.testing.assert_close(seen[0], expected, rtol=1e-4, atol=1e-4)
    made = model.mask_maker()
    assert torch.equal(
        made.make(other(pixels), picture), model.masks(model.backbone(pixels), picture)
    )
    assert made.options != PriMaPsEM(3, backbone=vit, **QUICK).mask_maker().options

    monkeypatch.undo()
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "hp.pth").unlink()
    loaded = PriMaPsEM.from_pretrained(tmp_path / "model", device="cpu")
    image, _ = painted(5)
    assert torch.equal(loaded.predict(image), model.predict(image))


def test_a_projection_made_for_the_backbone_itself_carries_nothing(vit, tmp_path, monkeypatch):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    same = original_names(patch=8, dinov2=False)
    write_hp(tmp_path / "hp.pth", width=64, dim=16, classes=3, vit=same)
    model = PriMaPsEM(3, backbone=vit, projection=tmp_path / "hp.pth", **QUICK)
    assert model.network is model.backbone
    model.fit([painted(i)[0] for i in range(4)]).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "backbone").exists()


def test_a_projection_of_another_backbone_that_it_does_not_carry_is_refused(
    vit, tmp_path, monkeypatch
):
    monkeypatch.setenv("PRIMAPS_CACHE", str(tmp_path / "cache"))
    inside = original_names(depth=1, width=64, patch=8, dinov2=False)
    write_hp(tmp_path / "hp.pth", width=64, dim=16, classes=3, vit=inside)
    folder = convert_projection(tmp_path / "hp.pth", tmp_path / "hp")
    shutil.rmtree(folder / "backbone")
    with pytest.raises(InputError, match="was made for the weights .* convert the checkpoint"):
        PriMaPsEM(3, backbone=vit, projection=folder, **QUICK)
    write_folder(folder / "backbone", original_names(depth=3, width=64, patch=8, dinov2=False))
    with pytest.raises(InputError, match="does not have the weights for which the projection hp"):
        PriMaPsEM(3, backbone=vit, projection=folder, **QUICK)


def test_the_memory_check_of_a_network_holds_for_codes_of_it():
    network = torch.nn.AvgPool2d(8)
    network.bytes_per_token = 10**12
    backbone = load_backbone(network, "cpu", patch_size=8)
    codes = encoder(backbone, Projection(lambda features: features))
    for each in (backbone, codes):
        with pytest.raises(InputError, match="size 512"):
            image_side(each, 512)
