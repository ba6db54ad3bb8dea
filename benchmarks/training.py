"""What training costs, beside training on a constant batch and beside self-training (AMST).

    python benchmarks/training.py                   # writes results/benchmarks/training.json
    python benchmarks/training.py --folder photos   # the 96-pixel cases on photographs, not digits

A constant batch in memory needs no loading, so it shows what loading costs. Each round runs every
way once, in an order that rotates; ratios are taken within rounds and their median is given, as the
machine is shared. Seconds are of processor time where a single thread does everything (a CPU, no
worker processes), of the clock elsewhere. A rate counts from the second update to the last, without
decoding, which happens once.

Self-training is measured by stage. No synthetic image is accepted, so that each one has its second
view made and looked at: the most that self-training can cost. `stages_over_plain` has seconds per
update, in stage 2 per `batch_size` images, over those of `fit`. `amst_over_plain` is for half of
the updates in stage 1, half in stage 3, and one synthetic image labelled in stage 2 for each 50
images trained on (500 in 400 updates of 64, as in nbs/labels.ipynb).
"""

import argparse
import json
import time
import warnings
from statistics import median

import torch
import torch.nn.functional as F
from torch.utils.data import Dataset
from tqdm import tqdm

from dreamda.classify.amst import train_amst
from dreamda.classify.loop import optimize
from dreamda.classify.models import create_classifier
from dreamda.classify.training import fit
from dreamda.data.datasets import load_data
from dreamda.measure.provenance import provenance, results_dir

SYNTHETIC = 256  # images
CASES = dict(
    cpu=[('resnet_tiny', 32), ('resnet_tiny', 96), ('mobilenetv2_100', 32)],
    cuda=[('resnet_tiny', 32), ('wrn_37_2', 96), ('resnet50', 96)],
)


class Constant(Dataset):
    "The same batch, whatever is asked for"

    def __init__(self, *batch):
        self.batch = batch

    def __getitems__(self, indices):
        return self.batch


def constant(model, images, updates, batch_size, device):
    "What `fit` does, on one batch"
    batch = (
        torch.randn(batch_size, *model.pretrained_cfg['input_size']),
        torch.randint(len(images.classes), (batch_size,)),
    )
    optimize(
        model,
        lambda x, y: F.cross_entropy(model(x).float(), y),
        Constant(*batch),
        [[0]] * updates,
        device=device,
        num_workers=0,
    )


def amst(model, images, updates, batch_size, device, num_workers):
    "Self-training; the first `SYNTHETIC` images play the synthetic ones"
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that none is accepted
        train_amst(
            model,
            images,
            images.subset(range(SYNTHETIC)),
            label_settings={'tau': -1.0},
            updates=updates,
            batch_size=batch_size,
            device=device,
            num_workers=num_workers,
        )


def ways(images, updates, batch_size, device, num_workers):
    "name -> a function that trains a model for so many updates"
    return {
        'plain': lambda model: fit(
            model,
            images,
            updates=updates,
            batch_size=batch_size,
            device=device,
            num_workers=num_workers,
        ),
        'constant': lambda model: constant(model, images, updates, batch_size, device),
        'amst': lambda model: amst(model, images, updates, batch_size, device, num_workers),
    }


def passes(train, model, clock):
    "When each pass with gradient began, of which there is one in each update"
    times = []

    def note(module, args):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if torch.is_grad_enabled():
            times.append(clock())

    handle = model.register_forward_pre_hook(note)
    train(model)
    handle.remove()
    return times


def per_update(times):
    return (times[-1] - times[1]) / (len(times) - 2)


def stages(times):
    "Seconds per update in stages 1 and 3, per image in stage 2"
    first, third = times[: len(times) // 2], times[len(times) // 2 :]
    return dict(
        stage1=per_update(first),
        stage2=(third[0] - first[-1] - per_update(first)) / SYNTHETIC,
        stage3=per_update(third),
    )


def measure(name, size, images, device, rounds, updates, batch_size, num_workers):
    "One record: seconds per update of each way, and the ratios"
    all_ways = ways(images, updates, batch_size, device, num_workers)
    each = {}
    alone = device == 'cpu' and not num_workers and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    for r in tqdm(range(rounds), desc=f'{name}, {size} px'):
        names = list(all_ways)
        for way in names[r % len(names) :] + names[: r % len(names)]:
            model = create_classifier(name, len(images.classes), size)
            each.setdefault(way, []).append(passes(all_ways[way], model, clock))
    return summarize(name, size, images, batch_size, each) | {
        'device': describe_device(device),
        'updates': updates,
        'rounds': rounds,
        'num_workers': num_workers,
        'clock': clock.__name__,
    }


def describe_device(device):
    if device == 'cuda':
        return torch.cuda.get_device_name()
    return f'CPU, {torch.get_num_threads()} threads'


def ratio(a, b):
    return median(x / y for x, y in zip(a, b))


def summarize(name, size, images, batch_size, each):
    "Rates and ratios of one case"
    plain = [per_update(t) for t in each['plain']]
    fixed = [per_update(t) for t in each['constant']]
    amst_stages = [stages(t) for t in each['amst']]
    trained = [
        s['stage1'] / 2 + s['stage3'] / 2 + s['stage2'] * batch_size / 50 for s in amst_stages
    ]
    per_batch = {'stage1': 1, 'stage2': batch_size, 'stage3': 1}
    seconds = {'plain': plain, 'constant': fixed, 'amst': trained}
    return {
        'model': name,
        'image_size': size,
        'images': len(images),
        'batch_size': batch_size,
        'images_per_second': {k: batch_size / median(v) for k, v in seconds.items()},
        'throughput_fraction': ratio(fixed, plain),
        'amst_over_plain': ratio(trained, plain),
        'stages_over_plain': {
            k: ratio([s[k] * n for s in amst_stages], plain) for k, n in per_batch.items()
        },
    }


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--folder', help='a folder of class folders, for the cases at 96 pixels')
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--updates', type=int, default=24, help='even')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--num-workers', type=int, help='as in `fit`')
    parser.add_argument('--threads', type=int, default=1, help='of a CPU')
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    digits = load_data('digits').train
    photos = load_data(args.folder).train if args.folder else digits
    records = [
        measure(
            name,
            size,
            photos if size == 96 else digits,
            device,
            args.rounds,
            args.updates,
            args.batch_size,
            args.num_workers,
        )
        for name, size in CASES[device]
    ]
    path = results_dir('benchmarks') / 'training.json'
    path.write_text(
        json.dumps(
            dict(
                records=records,
                command='python benchmarks/training.py' + ' --folder photos' * bool(args.folder),
                **provenance(),
            ),
            indent=1,
        )
        + '\n'
    )
    for r in records:
        rate = r['images_per_second']['plain']
        print(
            f'{r["model"]:16} {r["image_size"]:4} px {rate:8.0f} images/s, '
            f'{r["throughput_fraction"]:.0%} of those on a constant batch; '
            f'self-training takes {r["amst_over_plain"]:.2f} times as long'
        )
