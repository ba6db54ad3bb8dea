"""The golden record: hashes and small arrays of what the package computes, kept in golden.json.

It holds through a change of names, modules and structure. Only the adapters, the functions in the
first part of this file, call the package; they follow such a change, the recorded values do not.

With the processor and the library versions of the record, the SHA-256 of each item must be equal.
Elsewhere floating-point results differ a little, so the small arrays are compared instead, with
the tolerances in `TOLERANCES`, and pytest shows a warning. Splits and folds must be equal anywhere.

    python tests/test_golden.py --record              # write golden.json anew
    python tests/test_golden.py --record amst         # only the items of one group
    python tests/test_golden.py --record images/sd    # only one item
    python tests/test_golden.py                       # compare, print one line per item

All items take about 48 s on one core, of which 20 s are imports. Results do not depend on the order
or the choice of the items.
"""

import argparse
import hashlib
import json
import platform
import sys
import tempfile
import time
import warnings
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dreamda.classify.amst import train_amst
from dreamda.classify.augment import POLICIES
from dreamda.classify.batches import MIXINGS
from dreamda.classify.labelling import LABELLERS, train
from dreamda.classify.models import create_classifier
from dreamda.classify.prediction import predict
from dreamda.classify.softmatch import fit_softmatch
from dreamda.classify.training import fit
from dreamda.data.datasets import load_data
from dreamda.data.images import Images
from dreamda.data.splits import folds, scarce_split
from dreamda.diffusion.finetune import finetune
from dreamda.diffusion.methods import METHODS, method_for_model
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.expansion.expand import expand_images
from dreamda.expansion.record import read_metadata

# ---------------------------------------------------------------------------- adapters: data

CLASSES = ("three", "eight")


@cache
def load_digits():
    """Return the digits with their train and validation parts."""
    return load_data("digits")


def split_digits(per_class, seed=0, part="test"):
    """Return the given and the held-out images of a scarce split of the digits."""
    return scarce_split(load_digits(), per_class, seed, part)


def split_into_folds(images, count, seed):
    """Return for each fold the indices of the images that it leaves out."""
    return folds(images, count, seed)


def keep_classes(images, names):
    """Return the images of some classes, as a dataset that has only these."""
    kept = [i for i, target in enumerate(images.targets) if images.classes[target] in names]
    images = images.subset(kept)
    targets = [names.index(images.classes[target]) for target in images.targets]
    return Images(images.items, images.keys, targets, list(names))


def load_seeds():
    """Return two images of each of two of the ten classes, to make variants of."""
    given, _ = split_digits(2)
    wanted = [given.classes.index(name) for name in CLASSES]
    return given.subset([i for i, target in enumerate(given.targets) if target in wanted])


def load_labelled():
    """Return 20 real images, and 40 others, every fifth mislabelled, in place of synthetic ones."""
    real, _ = split_digits(2)
    other, _ = split_digits(4, part="validation")
    targets = [(t + (i % 5 == 0)) % len(other.classes) for i, t in enumerate(other.targets)]
    return real, Images(other.items, other.keys, targets, other.classes)


def load_three_classes():
    """Return 18 real images of three classes, and 48 others in place of synthetic ones."""
    real, _ = split_digits(6)
    other, _ = split_digits(16, part="validation")
    names = ("three", "six", "eight")
    return keep_classes(real, names), keep_classes(other, names)


# ---------------------------------------------------------------------------- adapters: images

INFERENCE_STEPS = 6
LEARNING = {"di": {"steps": 3}, "da_fusion": {"steps": 3}}
PLAIN = ("sd", "sdedit", "dreamda", "dreamda_paper")  # with the paper's template
VARIANTS = {"bot": 3, "da_fusion": 4}  # as many as the method has kinds of variants; else 2
PROMPTS = {name: [f"a bold {name}", f"the {name}", f"a thin {name}"] for name in CLASSES}


@cache
def load_tiny():
    """Return the bundled pipeline."""
    return load_pipeline("tiny", device="cpu")


def make_variants(name, prompts=None):
    """Return uint8 images (N,32,32,3) of a method, ordered by seed image and variant."""
    settings = {"num_inference_steps": INFERENCE_STEPS, **LEARNING.get(name, {})}
    if name in PLAIN:
        settings["template"] = "A photo of a {class}"
    method = method_for_model(name, "tiny", **settings)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        count = VARIANTS.get(name, 2)
        expand_images(load_seeds(), out, load_tiny(), method, count, name=name, prompts=prompts)
        lines = sorted(read_metadata(out), key=lambda line: (line["seed_image"], line["variant"]))
        return np.stack([np.array(Image.open(out / line["file_name"])) for line in lines])


def tune(learn, lr, **settings):
    """Return the U-Net's and the text encoder's weights after fine-tuning, and the losses."""
    settings |= {"learn": learn, "lr": lr, "batch_size": 4, "val_every": 5}
    images = keep_classes(split_digits(3)[0], CLASSES)
    tuned = finetune(load_tiny(), images, steps=5, **settings)
    losses = [loss for _, loss in tuned.finetuned["losses"]]
    return tuned.unet.state_dict(), tuned.text_encoder.state_dict(), losses


# ---------------------------------------------------------------------------- adapters: classifiers

TRAINING = {"updates": 10, "batch_size": 16, "seed": 0, "device": "cpu", "num_workers": 0}
CONFIDENCE = {"threshold": 0.1}  # accepts about half of the synthetic images
SELF_TRAINING = {**TRAINING, "lr": 0.005, "seed": 7}


def new_classifier(num_classes=10):
    """Return the small classifier with its starting weights."""
    return create_classifier("resnet_tiny", num_classes=num_classes, image_size=32, seed=0)


def train_on_seed_labels(policy="original", mixing="ratio"):
    """Return a classifier trained on real and synthetic images."""
    real, synthetic = load_labelled()
    origins = [real.targets.index(target) for target in synthetic.targets]
    mix = {"mixing": mixing, "origins": origins}
    return fit(new_classifier(), real, synthetic, policy=policy, **mix, **TRAINING), None


def train_amst_in_rounds():
    """Return a classifier after two rounds of self-training, and the table of labels."""
    settings = {**SELF_TRAINING, "label_settings": {"rounds": 2, "auxiliary": True}}
    return train_amst(new_classifier(3), *load_three_classes(), **settings)


def train_with_labeller(name):
    """Return a classifier trained by one of the labellers, and the table of labels."""
    if name.startswith("amst"):
        model, images, settings = new_classifier(3), load_three_classes(), {**SELF_TRAINING}
    else:
        model, images, settings = new_classifier(), load_labelled(), {**TRAINING}
        settings["label_settings"] = CONFIDENCE if name == "confidence" else {}
    return train(name, model, *images, **settings)


def train_semi_supervised():
    """Return a classifier trained by SoftMatch."""
    real, unlabelled = load_labelled()
    settings = {**TRAINING, "batch_size": 8, "unlabelled_ratio": 2}
    return fit_softmatch(new_classifier(), real, unlabelled, **settings), None


def predict_digits(model):
    """Return the class probabilities (4,C) of four digits that were not trained on."""
    _, held_out = split_digits(2)
    return predict(model, held_out.subset(range(4)), device="cpu")


# ---------------------------------------------------------------------------- items of the record

# Largest difference of one value, on another processor or with other versions. With AVX2 in place
# of AVX-512, images differed by up to 0.1, trainings by 0.001, that with soft labels by 0.014.
TOLERANCES = {
    "images": 1.0,  # levels of 0 to 255, of means over 4 x 4 pixels
    "finetune": 1e-4,  # losses and weights
    "fit": 0.01,  # logarithms of probabilities, as are those that follow
    "softmatch": 0.01,
    "amst": 0.01,
    "labels": 0.01,
    "labels/soft": 0.05,
}
ROUNDED = {"amst/rounds", "labels/amst"}  # their last digits differ between runs of one machine


def make_item(parts, values, digits=None):
    """Return an entry of the record: the hash of all parts, and a few values to compare."""
    sha256 = hashlib.sha256()
    for part in parts:
        sha256.update(part if isinstance(part, bytes) else part.tobytes())
    rounded = values if digits is None else [round(float(value), digits) for value in values]
    return {"sha256": sha256.hexdigest(), "values": rounded}


def list_weights(state):
    """Return the names and the fp32 arrays of a state_dict, by name."""
    parts = []
    for name, tensor in sorted(state.items()):
        parts += [name.encode(), tensor.float().numpy()]
    return parts


def measure_images(make):
    """Return the entry of uint8 images: their bytes, and the first four at 8 x 8 pixels."""
    images = make()
    small = images[:4].reshape(-1, 8, 4, 8, 4, 3).mean((2, 4))
    return make_item([images], small.flatten(), digits=1)


def measure_tuning(make):
    """Return the entry of a fine-tuned pipeline: its weights, and losses and some weights."""
    unet, text_encoder, losses = make()
    some = unet["conv_out.bias"].tolist() + unet["conv_out.weight"].flatten()[::32].tolist()
    return make_item(list_weights(unet) + list_weights(text_encoder), losses + some, digits=6)


def measure_training(make):
    """Return the entry of a trained classifier: weights, table of labels, and some predictions."""
    model, table = make()
    probabilities = predict_digits(model)
    parts = [*list_weights(model.state_dict()), probabilities.numpy()]
    if table is not None:
        parts += [json.dumps(table[["label", "accepted"]].values.tolist()).encode()]
        parts += [table[column].to_numpy(np.float64) for column in ("agreement", "uncertainty")]
    return make_item(parts, probabilities.log().flatten(), digits=4)


def measure_split(per_class, seed, part):
    """Return the entry of a scarce split: the keys of both parts."""
    given, held_out = split_digits(per_class, seed, part)
    return make_item([json.dumps([given.keys, held_out.keys]).encode()], given.keys)


def measure_folds(seed):
    """Return the entry of five folds: the keys of the images that each leaves out."""
    images, _ = split_digits(6, seed)
    keys = [[images.keys[i] for i in fold] for fold in split_into_folds(images, 5, seed)]
    return make_item([json.dumps(keys).encode()], keys[0])


def list_items():
    """Return the function that computes each item, by the item's name."""
    trainings = {f"fit/{policy}": partial(train_on_seed_labels, policy) for policy in POLICIES}
    for mixing in MIXINGS[1:]:  # the first is that of the policies
        trainings[f"fit/mixing-{mixing}"] = partial(train_on_seed_labels, mixing=mixing)
    trainings["amst/rounds"] = train_amst_in_rounds
    trainings |= {f"labels/{name}": partial(train_with_labeller, name) for name in LABELLERS}
    trainings["softmatch/softmatch"] = train_semi_supervised

    items = {f"images/{name}": partial(make_variants, name) for name in METHODS}
    items["images/dreamda-prompts"] = partial(make_variants, "dreamda", PROMPTS)
    items = {name: partial(measure_images, make) for name, make in items.items()}
    items["finetune/unet"] = partial(measure_tuning, partial(tune, "unet", 1e-4))
    lora = partial(tune, "lora+text", 1e-3, rank=2, accumulate=2, prior=1)
    items["finetune/lora+text"] = partial(measure_tuning, lora)
    items |= {name: partial(measure_training, make) for name, make in trainings.items()}
    for seed in (0, 1):
        for part in ("test", "validation"):
            items[f"split/{part}-{seed}"] = partial(measure_split, 2, seed, part)
        items[f"folds/{seed}"] = partial(measure_folds, seed)
    return items


# ---------------------------------------------------------------------------- the record

RECORD = Path(__file__).with_name("golden.json")
ITEMS = list_items()
LIBRARIES = "torch torchvision diffusers transformers timm numpy pillow scikit-learn".split()
PROCESSOR = "vendor_id, cpu family, model, model name, CPU implementer, CPU part".split(", ")


def describe_processor():
    """Return what tells one processor from another, as far as arithmetic may depend on it."""
    about = {"machine": platform.machine(), "capability": torch.backends.cpu.get_cpu_capability()}
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return about | {"name": platform.processor()}
    first = cpuinfo.read_text().split("\n\n")[0]
    fields = [line.split(":", 1) for line in first.splitlines() if ":" in line]
    fields = {name.strip(): value.strip() for name, value in fields}
    return about | {name: fields[name] for name in PROCESSOR if name in fields}


def describe_machine():
    """Return the processor and the library versions, within which hashes are equal."""
    versions = {name: version(name) for name in LIBRARIES}
    return {"processor": describe_processor(), "versions": versions}


def compute(name):
    """Return an item, computed by one thread."""
    torch.set_num_threads(1)
    return ITEMS[name]()


def largest_difference(found, expected):
    """Return the largest difference of two lists of numbers, infinity if they do not compare."""
    try:
        difference = np.subtract(found["values"], expected["values"])
    except (TypeError, ValueError):  # no numbers, or other lengths
        return 0.0 if found["values"] == expected["values"] else float("inf")
    return float(np.nan_to_num(np.abs(difference), nan=np.inf).max())


def find_fault(name, found, record):
    """Return what is wrong with an item, an empty string if nothing is."""
    expected = record["items"][name]
    difference = largest_difference(found, expected)
    tolerance = TOLERANCES.get(name, TOLERANCES.get(name.split("/")[0]))
    same_machine = describe_machine() == record["machine"] and name not in ROUNDED
    if tolerance is None or same_machine:
        equal = found["sha256"] == expected["sha256"]
        return "" if equal else f"{name}: another hash; the values differ by up to {difference:g}"
    if difference <= tolerance:
        return ""
    return f"{name}: the values differ by up to {difference:g}, which is over {tolerance:g}"


def save_record(names):
    """Write the record, or only some of its items into the one that is there."""
    record = {"machine": describe_machine(), "items": {}}
    if set(names) != set(ITEMS):
        kept = json.loads(RECORD.read_text())
        if kept["machine"] != record["machine"]:
            sys.exit("golden.json is from another processor or other versions: record all items")
        record["items"] = kept["items"]
    record["items"] |= {name: compute(name) for name in names}
    lines = [f"  {json.dumps(n)}: {json.dumps(record['items'][n])}" for n in ITEMS]
    machine = json.dumps(record["machine"])
    text = ",\n".join(lines)
    RECORD.write_text(f'{{"machine": {machine},\n "items": {{\n{text}\n }}}}\n')


# ---------------------------------------------------------------------------- tests and command


@pytest.fixture(scope="module")
def record():
    """Return the golden record; warn if this machine compares with a tolerance."""
    record = json.loads(RECORD.read_text())
    if describe_machine() != record["machine"]:
        warnings.warn(
            "golden.json is from another processor or other versions: tolerances hold", stacklevel=1
        )
    return record


@pytest.mark.parametrize("name", ITEMS)
def test_golden(name, record):
    """Each item is what was recorded."""
    fault = find_fault(name, compute(name), record)
    assert not fault, fault


def test_record_is_complete(record):
    """The record has an entry for each item, and no other ones."""
    assert list(record["items"]) == list(ITEMS)


def select_items(wanted):
    """Return the names of items, given by name or by group; all, if none is given."""
    names = [n for n in ITEMS if not wanted or n in wanted or n.split("/")[0] in wanted]
    if unknown := [w for w in wanted if not any(w in (n, n.split("/")[0]) for n in names)]:
        sys.exit(f"no item {unknown[0]!r}: one of {', '.join(ITEMS)}")
    return names


def compare(names):
    """Print each item with its time in seconds and what is wrong; exit with 1 if anything is."""
    record, faults = json.loads(RECORD.read_text()), []
    for name in names:
        start = time.perf_counter()
        faults.append(find_fault(name, compute(name), record))
        seconds = time.perf_counter() - start
        print(f"{seconds:5.1f}  {faults[-1] or name}", flush=True)
    sys.exit(any(faults))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Compare with the golden record, or write it.")
    parser.add_argument("--record", action="store_true", help="write golden.json")
    parser.add_argument("names", nargs="*", help="items or groups of them; default: all")
    options = parser.parse_args()
    (save_record if options.record else compare)(select_items(options.names))
