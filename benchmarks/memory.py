"""Does memory grow with the number of images? The peak while few, and many, seeds are expanded.

    python benchmarks/memory.py 100 10000    # writes results/benchmarks/memory.json and .png

`tiny` on one CPU thread, one variant of each seed by one step. The seeds are files. The memory
before the run (libraries and model) is the same for all.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import psutil
import torch
from PIL import Image

from dreamda.data.folders import load_folder
from dreamda.diffusion.methods import get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.expansion.expand import expand_images
from dreamda.measure.provenance import results_dir, save_results


def one(folder, out):
    "Resident bytes over time, of this process"
    torch.set_num_threads(1)
    pipe, images, process = (
        load_pipeline('tiny', device='cpu'),
        load_folder(folder),
        psutil.Process(),
    )
    start, trace, stop = time.time(), [], threading.Event()

    def watch():
        while not stop.wait(0.05):
            trace.append((time.time() - start, process.memory_info().rss))

    before, thread = process.memory_info().rss, threading.Thread(target=watch)
    thread.start()
    made = expand_images(
        images,
        out,
        pipe,
        get_method('sdedit', num_inference_steps=2, strength=0.5, guidance_scale=1.0),
        expansion=1,
    )
    stop.set()
    thread.join()
    return dict(
        seed_images=len(images),
        made=len(made),
        seconds=time.time() - start,
        before_bytes=before,
        peak_bytes=max(b for _, b in trace),
        trace=trace[:: max(1, len(trace) // 200)],
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('counts', type=int, nargs='*', default=[100, 10000], help='seed images')
    parser.add_argument('--one', nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(one(*args.one)))
        sys.exit()
    records = []
    for n in args.counts:
        with tempfile.TemporaryDirectory() as tmp:
            (Path(tmp) / 'seeds' / 'noise').mkdir(parents=True)
            for i in range(n):
                Image.fromarray(
                    np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)
                ).save(Path(tmp) / 'seeds' / 'noise' / f'{i:06d}.png')
            records.append(
                json.loads(
                    subprocess.run(
                        [sys.executable, __file__, '--one', f'{tmp}/seeds', f'{tmp}/out'],
                        check=True,
                        stdout=subprocess.PIPE,
                    ).stdout
                )
            )
        print({k: v for k, v in records[-1].items() if k != 'trace'}, flush=True)
    fig, ax = plt.subplots(figsize=(6, 3.5), layout='constrained')
    for r in records:
        ax.plot(
            *zip(*[(t / r['trace'][-1][0], b / 2**20) for t, b in r['trace']]),
            label=f"{r['seed_images']:,} seed images",
        )
    ax.set(xlabel='part of the run', ylabel='resident memory (MiB)', ylim=(0, None))
    ax.legend()
    save_results(
        results_dir('benchmarks') / 'memory',
        figure=fig,
        command=' '.join(['python benchmarks/memory.py', *map(str, args.counts)]),
        records=[{k: v for k, v in r.items() if k != 'trace'} for r in records],
        peak_ratio=records[-1]['peak_bytes'] / records[0]['peak_bytes'],
    )
