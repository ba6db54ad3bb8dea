"Fine-tuning by two processes"

import json

import torch

from dreamda.diffusion.pipeline import load_pipeline

TRAIN = """
import os, sys, torch
from accelerate import PartialState
from dreamda.data import load_data, scarce_split
from dreamda.finetune import finetune
from dreamda.models import load_pipeline
torch.set_num_threads(1)
state = PartialState(cpu=True)
seeds, _ = scarce_split(load_data('digits'), 1, part='validation')
tuned = finetune(load_pipeline('tiny', device='cpu'), seeds.subset(range(4)), 2, 1e-4, 4, val_every=2, accumulate=2, prior=1, cache='cache')
torch.save([tuned.finetune_losses, tuned.unet.state_dict(), state.num_processes], f'{sys.argv[1]}{state.process_index}.pt')
"""


def test_as_many_processes_as_one_likes(run, tmp_path):
    "Two processes share the batches of a step, and end with the weights that one ends with"
    (tmp_path / 'train.py').write_text(TRAIN)
    env = dict(
        OMP_NUM_THREADS='1', TQDM_DISABLE='1', ACCELERATE_USE_CPU='true', CUDA_VISIBLE_DEVICES=''
    )
    run(
        'python',
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        2,
        'train.py',
        'two',
        **env,
    )
    (folder,) = (tmp_path / 'cache').iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ['losses.json', 'unet']
    (tmp_path / 'cache').rename(tmp_path / 'other')
    run('python', 'train.py', 'one', **env)
    (losses, one, n), *two = (
        torch.load(tmp_path / f'{p}.pt', weights_only=True) for p in ('one0', 'two0', 'two1')
    )
    assert (
        n == 1
        and losses[1][1] < losses[0][1]
        and json.loads((tmp_path / 'other' / folder.name / 'losses.json').read_text())
        == [list(l) for l in two[0][0]]
    )
    base, apart = (
        load_pipeline('tiny', device='cpu').unet.state_dict(),
        lambda a, b: sum((a[k] - b[k]).abs().sum() for k in one),
    )
    for other, weights, n in two:
        assert n == 2 and other == two[0][0] and all(weights[k].equal(two[0][1][k]) for k in one)
        torch.testing.assert_close(torch.tensor(other), torch.tensor(losses), atol=1e-6, rtol=0)
        assert apart(weights, one) < 0.01 * apart(one, base)
