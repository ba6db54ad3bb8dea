"The preset `dreamda_released` beside an independent transcription of the released algorithm."

from functools import partial

import numpy as np
import pytest
import torch

from dreamda.data.datasets import load_data
from dreamda.data.splits import scarce_split
from dreamda.diffusion.generate import generate
from dreamda.diffusion.methods import METHODS, get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.diffusion.unet import count_rows
from dreamda.diffusion.variants import sample_variants

torch.set_num_threads(1)
STEPS, STRENGTH, GUIDANCE, SIGMA = 10, 0.8, 7.5, 3.0


def embed(pipe, text):
    tokens = pipe.tokenizer([text], padding='max_length', return_tensors='pt').input_ids
    return pipe.text_encoder(tokens).last_hidden_state


def step_mean(x, eps, a_t, a_prev, sigma):
    clean = (x - (1 - a_t).sqrt() * eps) / a_t.sqrt()
    return a_prev.sqrt() * clean + (1 - a_prev - sigma**2).sqrt() * eps


@torch.no_grad()
def transcription(pipe, image, prompt, generator):
    """One variant, written from the description of the released code, with diffusers only.

    CycleDiffusion's source path and the target are computed side by side, four rows a step. The
    target's rows have noise of their own on the mid block's output, and the perturbed prediction
    is used in both places of the DDIM step. All noise of the path is drawn first."""
    vae, unet, scheduler = pipe.vae, pipe.unet, pipe.scheduler
    scheduler.set_timesteps(STEPS)
    timesteps = scheduler.timesteps[-int(STEPS * STRENGTH) :].tolist()
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    x0 = vae.encode(pixels).latent_dist.mean * vae.config.scaling_factor
    path = [torch.randn(x0.shape[1:], generator=generator)[None] for _ in timesteps]
    empty = embed(pipe, '')
    text = torch.cat([empty, empty, empty, embed(pipe, prompt)])
    a = [scheduler.alphas_cumprod[t].double() for t in timesteps]
    a.append(scheduler.final_alpha_cumprod.double())
    source = target = (a[0].sqrt() * x0 + (1 - a[0]).sqrt() * path[0]).float()

    def perturb(module, args, h):
        noise = torch.randn(2, *h.shape[1:], generator=generator)
        return torch.cat([h[:2], h[2:] + SIGMA * noise])

    handle = unet.mid_block.register_forward_hook(perturb)
    for i, t in enumerate(timesteps):
        mean = partial(step_mean, a_t=a[i], a_prev=a[i + 1])
        sigma = ((1 - a[i + 1]) / (1 - a[i]) * (1 - a[i] / a[i + 1])).sqrt()
        rows = torch.cat([source, source, target, target])
        su, sc, tu, tc = unet(rows, t, encoder_hidden_states=text).sample.double().chunk(4)

        previous = x0
        if i + 1 < len(timesteps):
            e = (source - a[i].sqrt() * x0) / (1 - a[i]).sqrt()
            direction = (1 - a[i + 1] - sigma**2).sqrt() * e
            previous = a[i + 1].sqrt() * x0 + direction + sigma * path[i + 1]
        z = (previous - mean(source, su + GUIDANCE * (sc - su), sigma=sigma)) / sigma
        target = (mean(target, tu + GUIDANCE * (tc - tu), sigma=sigma) + sigma * z).float()
        source = previous.float()
    handle.remove()
    return vae.decode(target / vae.config.scaling_factor).sample.clamp(-1, 1)


def setup():
    pipe = load_pipeline('tiny', device='cpu')
    images, _ = scarce_split(load_data('digits'), 1)
    images = images.subset([0, 1])
    method = get_method('dreamda_released', num_inference_steps=STEPS)
    variants = sample_variants(method, images, [(0, 0), (0, 1), (1, 0)])
    return pipe, images, method, variants


def test_settings():
    "The settings of the released code"
    method = METHODS['dreamda_released']
    sampler, perturbation = method.sampler, method.perturbation
    assert (sampler.num_inference_steps, sampler.strength, sampler.eta) == (100, 0.8, 1.0)
    assert (perturbation.site, perturbation.sigma, perturbation.relative) == (
        'bottleneck',
        3.0,
        False,
    )
    assert not perturbation.asymmetric and not perturbation.share_cfg_noise
    assert method.start.path_per_variant and method.start.source_template == ''
    assert method.conditioning.guidance_scale == 7.5


def test_is_the_transcription():
    pipe, images, method, variants = setup()
    ours = generate(pipe, method, images, variants)
    for row, v in zip(ours, variants):
        theirs = transcription(pipe, images[v.image][0], v.prompt, v.generator.clone_state())
        assert (row - theirs[0]).abs().max() < 5e-3
    assert (ours[0] - ours[1]).abs().max() > 0.1


@pytest.mark.parametrize(
    'name, encoder, decoder', [('dreamda_released', 3.0, 3.0), ('dreamda_paper', 2.2, 4.5)]
)
def test_rows(name, encoder, decoder):
    """Rows of each step and image: the released code has 4, ours 3, as its empty source prompt
    needs no guidance. The paper's Eq. 6 has 2 (encoder) and 4 (decoder) and a source path for
    each seed, here of 2 variants, which also share the first step: 8 of 10 steps are run."""
    pipe, images, _, _ = setup()
    method = get_method(name, num_inference_steps=STEPS)
    variants = sample_variants(method, images, [(0, 0), (0, 1)])
    with count_rows(pipe.unet) as rows:
        generate(pipe, method, images, variants)
    per_step = {half: n / 2 / 8 for half, n in rows.items()}
    if name == 'dreamda_paper':
        # Half a source row a step; in the first of 8 steps the seed's rows serve both variants.
        encoder, decoder = 0.5 + 2 - 1 / 8, 0.5 + 4 - 1 / 8
    assert per_step == dict(encoder=encoder, decoder=decoder)
