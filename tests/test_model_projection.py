"""PriMaPs-EM on codes: masks from features, prototypes in code space."""

import pytest
import torch

from primaps.model import PriMaPsEM
from primaps.model_folder import ModelError
from primaps.projections import Head, Projection
from tests.conftest import painted
from tests.test_model import QUICK, agreement


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


@pytest.mark.parametrize("options", [{}, {"recipe": "orthogonal"}, {"method": "kmeans"}])
def test_prototypes_live_in_code_space(colours, head, images, options):
    model = PriMaPsEM(3, backbone=colours, projection=Projection(head), **options, **QUICK)
    model.fit(images)
    assert model.prototypes_.direction.shape == (3, 6)
    assert agreement(model, 100) > 0.9


def test_masks_stay_those_of_the_features(colours, head, images):
    model = PriMaPsEM(3, backbone=colours, projection=Projection(head), **QUICK)
    plain = PriMaPsEM(3, backbone=colours, **QUICK)
    picture = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    features = plain.backbone(picture.float() / 255)
    assert torch.equal(model.masks(features, picture), plain.masks(features, picture))
    assert model.mask_maker().options == plain.mask_maker().options


def test_an_identity_as_projection_changes_nothing(colours, images):
    plain = PriMaPsEM(3, backbone=colours, **QUICK).fit(images)
    codes = Projection(lambda features: features)
    model = PriMaPsEM(3, backbone=colours, projection=codes, **QUICK).fit(images)
    assert torch.equal(model.prototypes_.direction, plain.prototypes_.direction)


def test_em_starts_from_the_clusters_of_the_projection(colours, head, images, caplog):
    clusters = torch.randn(3, 6)
    projection = Projection(head, clusters)
    own = PriMaPsEM(3, backbone=colours, projection=projection, method="kmeans", **QUICK)
    own.fit(images)
    assert torch.equal(own.prototypes_.direction.data, clusters)  # the row of STEGO or HP itself
    assert (own.prototypes_.scale == 1).all()
    model = PriMaPsEM(3, backbone=colours, projection=projection, **QUICK).fit(images)
    assert {line["stage"] for line in model.history_} == {"EM"}
    PriMaPsEM(4, backbone=colours, projection=projection, **QUICK).fit(images)
    assert "3 clusters and 4 classes are wanted" in caplog.text


def test_the_projection_is_saved_with_the_model(colours, head, images, tmp_path):
    model = PriMaPsEM(3, backbone=colours, projection=Projection(head), **QUICK).fit(images)
    model.save_pretrained(tmp_path)
    loaded = PriMaPsEM.from_pretrained(tmp_path, backbone=colours, device="cpu")
    image, _ = painted(5)
    assert torch.equal(loaded.predict(image), model.predict(image))
    assert loaded.prediction_digest() == model.prediction_digest()


def test_a_callable_projection_is_asked_for_again(colours, images, tmp_path):
    def halves(features):
        return features[:, ::2]

    model = PriMaPsEM(3, backbone=colours, projection=halves, **QUICK).fit(images)
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="fitted on codes of your .*halves"):
        PriMaPsEM.from_pretrained(tmp_path, backbone=colours, device="cpu")
    loaded = PriMaPsEM.from_pretrained(tmp_path, backbone=colours, device="cpu", projection=halves)
    image, _ = painted(5)
    assert torch.equal(loaded.predict(image), model.predict(image))


def test_a_probe_on_codes(colours, head, painted_folder):
    model = PriMaPsEM(
        3, backbone=colours, projection=Projection(head), method="probe",
        **{**QUICK, "min_steps": 200},
    )  # fmt: skip
    model.fit(painted_folder / "images", painted_folder / "labels")
    image, label = painted(100)
    assert (model.predict(image).numpy() == label).mean() > 0.9
