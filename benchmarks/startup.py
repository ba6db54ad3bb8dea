"""The seconds that each command takes to start: to load what it needs, without doing its work.

    python benchmarks/startup.py              # this checkout
    python benchmarks/startup.py ROOT ...     # and other checkouts, such as an older one

A command is started with arguments that end it right after its imports: a folder that does not
exist. The fastest of three starts is printed, since a busy machine only adds time.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    'help': ['--help'],
    'datasets': ['datasets'],
    'preview': ['preview', 'none'],
    'expand': ['expand', 'none', 'out'],
    'label': ['label', 'none', 'out'],
    'train': ['train', 'none', 'out', 'model'],
    'measure': ['measure', 'none', 'out'],
    'report': ['report', 'out'],
}


def module_of(root):
    "The module of the command line in a checkout"
    app = Path(root) / 'dreamda' / 'app' / 'cli.py'
    return 'dreamda.app.cli' if app.exists() else 'dreamda.cli'


def seconds(root, args):
    "The time of one start"
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, 'PYTHONPATH': str(Path(root).resolve()), 'HF_HUB_OFFLINE': '1'}
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, '-m', module_of(root), *args],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - start


if __name__ == '__main__':
    roots = sys.argv[1:] or [Path(__file__).parent.parent]
    print(f'{"command":10}' + ''.join(f'{Path(root).resolve().name:>14}' for root in roots))
    for name, args in COMMANDS.items():
        best = [min(seconds(root, args) for _ in range(3)) for root in roots]
        print(f'{name:10}' + ''.join(f'{value:13.1f}s' for value in best), flush=True)
