"""Labels of pydensecrf on what the pipeline feeds to the CRF: real proposals and predictions."""

import pytest
import torch

from primaps.config import Config
from primaps.crf import dense_crf
from primaps.em.kmeans import fit_kmeans, pca_init
from primaps.features.training_data import ImageArrays, Views
from primaps.proposals.image_size import mask_logits
from primaps.proposals.principal_masks import propose
from primaps.utils.bilinear import upsample
from tests.crf.test_parity import PHOTOS, agreement, photo, reference


@pytest.fixture(scope="module")
def features(dinov2):
    """Feature maps of four images and of their flipped images."""
    images = torch.stack([photo(name, 322, 322) for name in PHOTOS]) / 255
    return torch.stack([dinov2(images), dinov2(images.flip(-1))])


@pytest.mark.parametrize("size", [(320, 320), (240, 372)])
def test_masks_of_real_proposals(features, size):
    found = propose(features[0], return_details=True)
    for name, logits in zip(PHOTOS, mask_logits(found.similarities), strict=True):
        image = photo(name, *size)
        probabilities = upsample(logits[None], size)[0].softmax(0)
        expected = reference(image, probabilities)
        assert agreement(dense_crf(image, probabilities), expected) >= 0.999
        assert agreement(expected, probabilities) < 0.999  # the CRF has something to do


@pytest.mark.parametrize("classes", [3, 12, 27])
def test_classes_of_real_predictions(features, classes):
    views = Views(ImageArrays(features.transpose(0, 1).half()))
    prototypes = fit_kmeans(views, pca_init(views, classes), 30, Config(classes))
    with torch.no_grad():
        logits = prototypes(features[0])
    for name, small in zip(PHOTOS, logits, strict=True):
        image = photo(name)
        probabilities = upsample(small[None], (320, 320))[0].softmax(0)
        expected = reference(image, probabilities)
        assert agreement(dense_crf(image, probabilities), expected) >= 0.999
