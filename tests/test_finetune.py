"Fine-tuning by two processes, and of a pipeline with two text encoders"

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from test_pipelines import photos, small

from dreamda.data.folders import load_folder
from dreamda.diffusion.clip import fill_template
from dreamda.diffusion.embeddings import encode_prompts
from dreamda.diffusion.finetune import finetune
from dreamda.diffusion.generate import generate
from dreamda.diffusion.methods import get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.diffusion.variants import sample_variants

torch.set_num_threads(1)
SETTINGS = dict(steps=2, lr=1e-4, batch_size=4, val_every=2, accumulate=2, prior=1)
TRAIN = f"""
import torch
from accelerate import PartialState
from dreamda.data.folders import load_folder
from dreamda.diffusion.finetune import finetune
from dreamda.diffusion.pipeline import load_pipeline
torch.set_num_threads(1)
state = PartialState(cpu=True)
images = load_folder('digits')
tuned = finetune(load_pipeline('tiny', device='cpu'), images, cache='two', **{SETTINGS})
result = [tuned.finetuned['losses'], tuned.unet.state_dict(), state.num_processes]
torch.save(result, f'two{{state.process_index}}.pt')
"""


def difference(a, b):
    return sum((a[k] - b[k]).abs().sum() for k in a)


def test_number_of_processes(run, tmp_path):
    "Two processes share the batches of a step, and end with the weights that one ends with"
    (tmp_path / 'train.py').write_text(TRAIN)
    for name, pixels in zip(('zero', 'one', 'two', 'three'), load_digits().images):
        (tmp_path / 'digits' / name).mkdir(parents=True)
        digit = Image.fromarray((pixels * 15.9).astype(np.uint8).repeat(4, 0).repeat(4, 1))
        digit.save(tmp_path / 'digits' / name / '0.png')
    env = dict(
        OMP_NUM_THREADS='1', TQDM_DISABLE='1', ACCELERATE_USE_CPU='true', CUDA_VISIBLE_DEVICES=''
    )
    launch = ['-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', 2]
    run('python', *launch, 'train.py', **env)
    base, images = load_pipeline('tiny', device='cpu'), load_folder(tmp_path / 'digits')
    tuned = finetune(base, images, cache=tmp_path / 'one', **SETTINGS)
    losses, one = tuned.finetuned['losses'], tuned.unet.state_dict()
    two = [torch.load(tmp_path / f'two{rank}.pt', weights_only=True) for rank in range(2)]
    assert losses[1][1] < losses[0][1]
    (folder,) = (tmp_path / 'two').iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ['losses.json', 'unet']
    assert json.loads((folder / 'losses.json').read_text()) == two[0][0]
    assert [p.name for p in (tmp_path / 'one').iterdir()] == [folder.name]
    for other, weights, processes in two:
        assert processes == 2 and other == two[0][0]
        assert all(weights[k].equal(two[0][1][k]) for k in one)
        torch.testing.assert_close(torch.tensor(other), torch.tensor(losses), atol=1e-6, rtol=0)
        assert difference(one, weights) < 0.01 * difference(one, base.unet.state_dict())


TOKEN = 'A photo of a <{class}>'


@pytest.fixture(scope='module')
def sdxl():
    pipe = small('sdxl')
    pipe.set_progress_bar_config(disable=True)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, pipe.text_encoder_2):
        part.requires_grad_(False).eval()
    return pipe


@pytest.mark.parametrize('learn', ['unet', 'lora+text', 'token'])
def test_two_text_encoders(learn, sdxl, tmp_path):
    "What learns changes, in both text encoders; it is found again in the cache and generates"
    template = TOKEN if learn == 'token' else 'A photo of a {class}'
    settings = dict(steps=2, lr=0.01, val_every=1, batch_size=2, learn=learn, template=template)
    tuned, again = (finetune(sdxl, photos(), cache=tmp_path, **settings) for _ in range(2))
    prompt = [fill_template(template, photos().classes[0])]
    own, found, old = (encode_prompts(p, prompt) for p in (tuned, again, sdxl))
    assert own.embeds.equal(found.embeds)
    # The projection's memory layout changes when it is saved, which rounds differently.
    torch.testing.assert_close(own.pooled, found.pooled, rtol=0, atol=1e-6)
    # A new token is none for the old tokenizer, so it changes the embeddings untrained too.
    changed = learn == 'token' or 'text' in learn and tuned.finetuned['differs_from_prior']
    for part in (lambda c: c.embeds[..., :32], lambda c: c.embeds[..., 32:], lambda c: c.pooled):
        assert part(own).equal(part(old)) != changed
    assert difference(tuned.unet.state_dict(), again.unet.state_dict()) == 0
    method, seeds = get_method('sd', num_inference_steps=2, template=template), photos()
    images = generate(tuned, method, seeds, sample_variants(method, seeds, [(0, 0)]))
    assert images.isfinite().all()


def test_without_unet():
    "A flow transformer gets an error that says so"
    with pytest.raises(ValueError, match='no U-Net and cannot be fine-tuned'):
        finetune(SimpleNamespace(transformer=torch.nn.Linear(1, 1)), photos())
