"""Labels of pydensecrf on what the pipeline feeds to the CRF: real proposals and predictions."""

import pytest
import torch

from primaps.config import Config
from primaps.crf import dense_crf
from primaps.em.kmeans import fit_kmeans, pca_start
from primaps.em.pixels import upsample
from primaps.features.store import Rows
from primaps.features.views import Views
from primaps.proposals.image_size import mask_logits
from primaps.proposals.principal_masks import propose
from tests.crf.test_parity import PHOTOGRAPHS, agreement, photograph, reference


@pytest.fixture(scope="module")
def features(dinov2):
    """Feature maps of four photographs and of their mirror images."""
    images = torch.stack([photograph(name, 322, 322) for name in PHOTOGRAPHS]) / 255
    return torch.stack([dinov2(images), dinov2(images.flip(-1))])


@pytest.mark.parametrize("size", [(320, 320), (240, 372)])
def test_masks_of_real_proposals(features, size):
    found = propose(features[0], return_details=True)
    for name, logits in zip(PHOTOGRAPHS, mask_logits(found.similarities), strict=True):
        image = photograph(name, *size)
        probabilities = upsample(logits[None], size)[0].softmax(0)
        expected = reference(image, probabilities)
        assert agreement(dense_crf(image, probabilities), expected) >= 0.999
        assert agreement(expected, probabilities) < 0.999  # the CRF has something to do


@pytest.mark.parametrize("classes", [3, 12, 27])
def test_classes_of_real_predictions(features, classes):
    views = Views(Rows(features.transpose(0, 1).half()))
    prototypes = fit_kmeans(views, pca_start(views, classes), 30, Config(classes))
    with torch.no_grad():
        logits = prototypes(features[0])
    for name, small in zip(PHOTOGRAPHS, logits, strict=True):
        image = photograph(name)
        probabilities = upsample(small[None], (320, 320))[0].softmax(0)
        expected = reference(image, probabilities)
        assert agreement(dense_crf(image, probabilities), expected) >= 0.999
