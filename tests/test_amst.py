"""Self-training repairs wrong seed labels, and weighs its own targets from the start."""

import numpy as np
import pandas as pd

from dreamda.classify.amst import train_amst
from dreamda.classify.models import create_classifier
from dreamda.classify.prediction import accuracy, predict
from dreamda.classify.training import fit
from dreamda.data.datasets import load_data
from dreamda.data.splits import scarce_split

WRONG = 5  # every fifth seed label is wrong


def mislabelled_digits():
    """Return ten real digits a class, others with wrong labels, their classes, and a test set."""
    real, held_out = scarce_split(load_data("digits"), 10, part="validation")
    synthetic = held_out.subset(range(0, len(held_out), 2))
    truth = list(synthetic.targets)
    wrong = [(t + 1 + i % 3) % 10 if i % WRONG == 0 else t for i, t in enumerate(truth)]
    synthetic.targets = wrong
    return real, synthetic, truth, held_out.subset(range(1, len(held_out), 2))


def test_amst_beats_inherited_labels():
    real, synthetic, truth, test = mislabelled_digits()
    settings = {"updates": 300, "batch_size": 32, "flip": False, "device": "cpu"}
    inherited = fit(create_classifier(), real, synthetic, **settings)
    half = {"stage1": 0.5}  # of so few updates the first stage needs half
    model, table = train_amst(create_classifier(), real, synthetic, label_settings=half, **settings)

    right = table.label.to_numpy() == np.array(real.classes)[truth]
    assert right[table.accepted].mean() > 1 - 1 / WRONG + 0.03
    assert right[~table.accepted].mean() > 1 - 1 / WRONG
    gain = accuracy(predict(model, test), test.targets)
    gain -= accuracy(predict(inherited, test), test.targets)
    assert gain > 0.01

    history = pd.DataFrame(table.attrs["history"])
    assert 0.3 < table.accepted.mean() < 0.9
    assert history.weight[: len(history) // 10].mean() < 0.95
