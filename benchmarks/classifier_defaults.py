"""The defaults of a pretrained classifier, chosen on validation images of two sets of photographs.

    python benchmarks/classifier_defaults.py caltech101 clothing10   # folders of class folders
    python benchmarks/classifier_defaults.py ... --tune full last    # the ways that take long

Writes results/classifier_defaults/TUNE.csv: for each way to train, image size, learning rate and
number of updates the accuracy on validation images and the seconds of processor time that it took.
From each class five images are trained on and up to ten are validation images; both are taken from
those of the train part whose key has an odd hash, so that the test part plays no role.
"""

import argparse
import hashlib
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from dreamda.classify.config import TrainConfig, classifier_for
from dreamda.classify.models import PACKAGED_MODEL
from dreamda.classify.prediction import accuracy, predict
from dreamda.classify.training import fit
from dreamda.data.datasets import load_data
from dreamda.data.images import Images
from dreamda.measure.provenance import results_dir

PER_CLASS, VALIDATION, CLASSES = 5, 10, 20
GRIDS = {  # image sizes, peak learning rates, updates
    "frozen": ((96, 128, 160), (1e-3, 3e-3, 1e-2, 3e-2), (100, 300)),
    "last": ((128,), (3e-4, 1e-3, 3e-3), (60,)),
    "full": ((128,), (3e-4, 1e-3, 3e-3), (60,)),
}


def is_odd(key):
    """Whether the hash of an image's key is odd."""
    return int(hashlib.sha256(key.encode()).hexdigest(), 16) % 2 == 1


def draw(images, seed):
    """Return images to train on and validation images, of at most CLASSES classes."""
    rng = np.random.default_rng(seed)
    chosen = sorted(rng.permutation(len(images.classes))[:CLASSES].tolist())
    train, validation = [], []
    for c in chosen:
        members = [i for i, t in enumerate(images.targets) if t == c and is_odd(images.keys[i])]
        members = rng.permutation(members).tolist()
        train += members[:PER_CLASS]
        validation += members[PER_CLASS : PER_CLASS + VALIDATION]
    return take(images, train, chosen), take(images, validation, chosen)


def take(images, indices, chosen):
    """Return some images, with no other classes than the chosen ones."""
    return Images(
        [images.items[i] for i in indices],
        [images.keys[i] for i in indices],
        [chosen.index(images.targets[i]) for i in indices],
        [images.classes[c] for c in chosen],
    )


def measure(train, validation, config, seed):
    """Return a row of the table."""
    start = time.process_time()
    model = classifier_for(config, len(train.classes), seed)
    model = fit(model, train, None, config, seed=seed, device="cpu")
    score = accuracy(predict(model, validation, device="cpu"), validation.targets)
    return {
        "image_size": config.image_size,
        "lr": config.lr,
        "updates": config.updates,
        "seed": seed,
        "train_images": len(train),
        "validation_images": len(validation),
        "accuracy": score,
        "seconds": time.process_time() - start,
    }


def run(folders, tune, seeds):
    """Return the table of one way to train."""
    rows = []
    base = TrainConfig(PACKAGED_MODEL, pretrained=True, tune=tune, weight_decay=0.05)
    batch_size = 64 if tune == "frozen" else 32
    cases = list(product(folders, range(seeds), *GRIDS[tune]))
    for folder, seed, size, lr, updates in tqdm(cases, desc=tune):
        config = replace(base, image_size=size, lr=lr, updates=updates, batch_size=batch_size)
        row = measure(*draw(load_data(folder).train, seed), config, seed)
        rows.append({"data": Path(folder).name, "tune": tune, **row})
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="sets of photographs, see load_data")
    parser.add_argument("--tune", nargs="+", default=list(GRIDS), choices=GRIDS)
    parser.add_argument("--seeds", type=int, default=2, help="draws of images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    for tune in args.tune:
        table = run(args.folders, tune, args.seeds)
        table.to_csv(results_dir("classifier_defaults") / f"{tune}.csv", index=False)
        best = table.groupby(["image_size", "lr", "updates"])[["accuracy", "seconds"]].mean()
        print(best.sort_values("accuracy").to_string())
