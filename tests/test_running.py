"Every notebook runs, in small sizes under IN_TEST, the long ones first"

import sys
from pathlib import Path

import pytest
from nbdev.test import test_nb as run_notebook

ROOT = Path(__file__).parent.parent
LONG = (  # seconds fall along this list
    'photos ablation tiny_world accuracy labels photo_world crossval pretrain cli backbones '
    'similarity steps compare quickstart finetune training methods generate tuning record amst'
).split()


def rank(path):
    stem = path.stem.split('_', 1)[1] if path.stem[0].isdigit() else path.stem
    return LONG.index(stem) if stem in LONG else len(LONG)


NOTEBOOKS = sorted((ROOT / 'nbs').rglob('*.ipynb'), key=lambda p: (rank(p), p.name))


@pytest.mark.notebook
@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook(path, monkeypatch, capfd):
    "As `nbdev_test` runs it; processes are shared with the other tests, so imports are paid once"
    monkeypatch.setenv('IN_TEST', '1')
    monkeypatch.setitem(sys.modules, '__main__', sys.modules['__main__'])
    monkeypatch.setattr(sys, 'path', [*sys.path])
    passed, _ = run_notebook(path, skip_flags=['notest'], basepath=ROOT)
    assert passed, capfd.readouterr().err[-3000:]
