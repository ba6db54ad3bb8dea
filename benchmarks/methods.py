"""What every method costs for an image, beside text-to-image: seconds, and rows of the U-Net.

    python benchmarks/methods.py            # writes results/benchmarks/methods.json

Twice: every method with its published number of steps, and all with 10. Each round runs every
method once, in an order that rotates; the median of the ratios to text-to-image within a round is
given, as the machine is shared. Seconds include the VAE, encoding, inversion and GIF's guided step.
What DI and DA-Fusion learn comes once for each seed or class, before the first image: it is timed
apart for a few steps, and given for the published number of steps. The model is `tiny`, where the
fixed costs of a call weigh more than in a large one; rows do not depend on the model.
"""

import argparse
import json
import time
from dataclasses import asdict, replace
from statistics import median

import torch
from tqdm import tqdm

from dreamda.data.datasets import load_data
from dreamda.data.splits import scarce_split
from dreamda.diffusion.embedding_training import learn_embeddings
from dreamda.diffusion.generate import generate
from dreamda.diffusion.methods import METHODS, get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.diffusion.unet import count_rows
from dreamda.diffusion.variants import sample_variants
from dreamda.measure.provenance import provenance, results_dir

LEARNED = 5  # steps, to time


def rounds_of(pipe, images, methods, variants, rounds):
    "name -> rows through encoder and decoder, and for each round the seconds, of an image"
    pairs, given, rows, seconds = (
        [(i, v) for i in range(len(images)) for v in range(variants)],
        {},
        {},
        {k: [] for k in methods},
    )
    for k, m in methods.items():
        if how := m.conditioning.learned:
            given[k] = learn_embeddings(pipe, replace(how, steps=1), images)

    def make(k):
        drawn = sample_variants(methods[k], images, pairs)
        return generate(pipe, methods[k], images, drawn, learned=given.get(k))

    for k in tqdm(methods, desc='counting'):  # this warms up, too
        with count_rows(pipe.unet) as counted:
            make(k)
        rows[k] = {half: n / len(pairs) for half, n in counted.items()}
    order = list(methods)
    for r in tqdm(range(rounds), desc='rounds'):
        for k in order[r % len(order) :] + order[: r % len(order)]:
            start = time.perf_counter()
            make(k)
            seconds[k].append((time.perf_counter() - start) / len(pairs))
    return rows, seconds


def learning(pipe, images, m, variants, rounds):
    "Rows forwards (as many go backwards) and seconds of learning, for each image that is made"
    steps, took, share = (
        m.conditioning.learned.steps,
        [],
        len(m.conditioning.learned.owners(images)) / (len(images) * variants),
    )
    for _ in range(rounds):
        start = time.perf_counter()
        learn_embeddings(pipe, replace(m.conditioning.learned, steps=LEARNED), images)
        took.append((time.perf_counter() - start) / (len(images) * variants) / LEARNED * steps)
    return dict(
        learning_steps=steps,
        learning_rows=steps * m.conditioning.learned.batch_size * share,
        learning_seconds=median(took),
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--variants', type=int, default=10, help='of each seed')
    parser.add_argument('--threads', type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe, (images, _) = load_pipeline('tiny', device='cpu'), scarce_split(load_data('digits'), 2)
    images = images.subset(
        [i for i, t in enumerate(images.targets) if t < 2]
    )  # two of each of two classes
    images.classes = images.classes[:2]
    names, records = [k for k in METHODS if k != 'reconstruction'], []
    learned = {
        k: learning(pipe, images, METHODS[k], args.variants, args.rounds)
        for k in names
        if METHODS[k].conditioning.learned
    }
    for what, methods in (
        ('published', {k: METHODS[k] for k in names}),
        ('10 steps', {k: get_method(k, num_inference_steps=10) for k in names}),
    ):
        rows, seconds = rounds_of(pipe, images, methods, args.variants, args.rounds)
        for k, m in methods.items():
            records.append(
                dict(
                    settings=what,
                    method=k,
                    steps=m.num_inference_steps,
                    encoder_rows=rows[k]['encoder'],
                    decoder_rows=rows[k]['decoder'],
                    seconds_per_image=median(seconds[k]),
                    ratio_to_sd=median(a / b for a, b in zip(seconds[k], seconds['sd'])),
                    **learned.get(k, {}),
                )
            )
    path = results_dir('benchmarks') / 'methods.json'
    path.write_text(
        json.dumps(
            dict(
                records=records,
                model='tiny',
                device=f'CPU, {args.threads} threads',
                seeds=len(images),
                variants=args.variants,
                rounds=args.rounds,
                methods={k: asdict(METHODS[k]) for k in names},
                command='python benchmarks/methods.py',
                **provenance(),
            ),
            indent=1,
        )
        + '\n'
    )
    for r in records:
        print(
            f'{r["settings"]:10} {r["method"]:15} {r["steps"]:4} steps {r["encoder_rows"]:7.1f} '
            f'{r["decoder_rows"]:7.1f} rows {r["seconds_per_image"]:7.3f} s '
            f'{r["ratio_to_sd"]:6.2f} x SD',
            f"and learning {r['learning_seconds']:.1f} s" if 'learning_seconds' in r else '',
        )
