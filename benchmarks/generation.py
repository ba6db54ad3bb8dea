"""Cost of generation: text-to-image, DreamDA, and the authors' released algorithm, on one model.

    python benchmarks/generation.py            # writes results/benchmarks/generation.json

Each round runs every method once, in an order that rotates. Ratios are taken within rounds and
their median is given, as the machine is shared. Seconds include the VAE and, for DreamDA, encoding
and inversion. On a GPU the model has Stable Diffusion 1.5's shape at 512x512 in bf16; on a CPU it
is `tiny`, and a quarter of that width. Weights but `tiny`'s are random, as cost does not depend on
them.
"""

import argparse
import gc
import json
import threading
import time
from contextlib import contextmanager
from statistics import median

import numpy as np
import psutil
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreamda.data.images import Images
from dreamda.diffusion.checkpoints import TINY
from dreamda.diffusion.ddim import ddim_std, ddim_step, to_prediction
from dreamda.diffusion.embeddings import encode_prompts
from dreamda.diffusion.generate import generate
from dreamda.diffusion.inversion import sdedit_start
from dreamda.diffusion.latents import decode_latents, encode_images, to_tensor
from dreamda.diffusion.methods import get_method
from dreamda.diffusion.perturbation import Perturbation
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.diffusion.pretrain_models import build_scheduler
from dreamda.diffusion.sampler import InitialState, denoise, make_generator, sample_noise
from dreamda.diffusion.schedule import alphas, get_timesteps
from dreamda.diffusion.starts import DPMEncoder
from dreamda.diffusion.unet import count_rows
from dreamda.diffusion.variants import sample_variants
from dreamda.measure.provenance import provenance, results_dir

GUIDANCE, KIND = 7.5, 'cat'


def sd15(width, side, device, dtype):  # width 320 is the real one; `side` in pixels
    "A pipeline of Stable Diffusion 1.5's shape with random weights"
    torch.manual_seed(0)
    tokenizer, w = CLIPTokenizer.from_pretrained(TINY / 'tokenizer'), width
    unet = UNet2DConditionModel(
        sample_size=side // 8,
        block_out_channels=(w, 2 * w, 4 * w, 4 * w),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        norm_num_groups=min(32, w // 4),
    )
    vae = AutoencoderKL(
        block_out_channels=tuple(w * k // 5 * 2 for k in (1, 2, 4, 4)),
        layers_per_block=2,
        norm_num_groups=min(32, w // 10),
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        sample_size=side,
    )
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    pipe = StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        text_encoder=text,
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).to(device, dtype)
    for m in (pipe.unet, pipe.vae, pipe.text_encoder):
        m.requires_grad_(False).eval()
    if device == 'cuda':
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def released(pipe, image, name, steps, strength, generator):
    """One variant of one image as the authors' released code makes it.

    CycleDiffusion's source path, with an empty source prompt, is computed anew for every variant
    beside the target's, so the U-Net gets four rows a step. Absolute noise on the mid block's
    output of the target's rows; the perturbed prediction is used in both places of the step."""
    ts = get_timesteps(pipe, steps, strength)

    def noise(like):
        return sample_noise([generator], like.shape[1:], like)

    x0 = encode_images(pipe, image).float()
    empty, prompt = (encode_prompts(pipe, [p]).embeds for p in ('', f'A photo of a {name}'))
    # (unconditional, conditional) of the source, then of the target
    text = torch.cat([empty, empty, empty, prompt]).to(pipe.unet.dtype)
    source = target = sdedit_start(pipe, x0, [generator], ts).latents

    def disturb(module, args, h):
        return torch.cat([h[:2], h[2:] + 3 * noise(h[2:].flatten(0, 1)[None]).view_as(h[2:])])

    handle = pipe.unet.mid_block.register_forward_hook(disturb)
    try:
        for t, (a_t, a_prev) in zip(ts, alphas(pipe, ts)):
            su, sc, tu, tc = pipe.unet(
                torch.cat([source, source, target, target]).to(pipe.unet.dtype),
                t,
                encoder_hidden_states=text,
            ).sample.float()[:, None]
            eps = (source - a_t**0.5 * x0) / (1 - a_t) ** 0.5
            source_prev = ddim_step(eps, x0, a_t, a_prev, 1.0, noise(x0)) if t != ts[-1] else x0
            mean = ddim_step(
                *to_prediction(pipe, su + GUIDANCE * (sc - su), source, a_t), a_t, a_prev, 1.0
            )
            z = (source_prev - mean) / ddim_std(a_t, a_prev, 1.0)
            target = ddim_step(
                *to_prediction(pipe, tu + GUIDANCE * (tc - tu), target, a_t), a_t, a_prev, 1.0, z
            )
            source = source_prev
    finally:
        handle.remove()
    return decode_latents(pipe, target)


def ways(pipe, seeds, variants, steps, batch_size):
    "name, strength -> a function that makes all images"
    side = pipe.vae.config.sample_size
    pixels = np.random.default_rng(0).integers(0, 256, (seeds, side, side, 3), np.uint8)
    images = Images(list(pixels), [str(s) for s in range(seeds)], [0] * seeds, [KIND])
    pairs = [(s, v) for s in range(seeds) for v in range(variants)]

    def gens():
        return [make_generator(0, str(s), v) for s, v in pairs]

    def text_to_image():
        for part in torch.arange(len(pairs)).split(batch_size):
            pipe(
                [f'A photo of a {KIND}'] * len(part),
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                height=side,
                width=side,
                output_type='pt',
                generator=[gens()[i] for i in part],
            )

    def dreamda(strength, asymmetric, **start):
        m = get_method(
            'dreamda',
            guidance_scale=GUIDANCE,
            num_inference_steps=steps,
            strength=strength,
            asymmetric=asymmetric,
            **start,
        )
        drawn = sample_variants(m, images, pairs)
        return lambda: generate(pipe, m, images, drawn, batch_size=batch_size)

    def one_by_one(strength):
        return lambda: [
            released(pipe, to_tensor([images[s][0]], side), KIND, steps, strength, g)
            for (s, _), g in zip(pairs, gens())
        ]

    found = {('text-to-image', 1.0): text_to_image}
    # The start of the released code, but once for a seed.
    encoded = dict(start=DPMEncoder(source_template=''), eta=1.0)
    for s in (1.0, 0.8):
        found |= {
            ('dreamda symmetric', s): dreamda(s, False),
            ('dreamda symmetric, DPM-encoder', s): dreamda(s, False, **encoded),
            ('dreamda Eq. 6', s): dreamda(s, True),
            ('released', s): one_by_one(s),
        }
    return found


@contextmanager
def peak_memory(device):
    "A list of one number: after the block, its peak memory, of the device or of the process"
    out, stop, process = [0], threading.Event(), psutil.Process()
    if device == 'cuda':
        torch.cuda.reset_peak_memory_stats()

    def watch():
        while not stop.wait(0.01):
            out[0] = max(out[0], process.memory_info().rss)

    thread = threading.Thread(target=watch, daemon=True)
    if device != 'cuda':
        thread.start()
    yield out
    stop.set()
    if device == 'cuda':
        out[0] = torch.cuda.max_memory_allocated()


def wait(device):
    if device == 'cuda':
        torch.cuda.synchronize()


def matrix_rate(device, dtype, n=None):
    "Floating-point operations per second of a large matrix product, the best of several"
    n = n or (8192 if device == 'cuda' else 1536)
    a, best = torch.randn(n, n, device=device, dtype=dtype), 0.0
    for _ in range(8):
        wait(device)
        start = time.perf_counter()
        a @ a
        wait(device)
        best = max(best, 2 * n**3 / (time.perf_counter() - start))
    return best


def measure(model, pipe, device, dtype, seeds, variants, steps, rounds, batch_size):
    "One record per method"
    methods, rate, count = (
        ways(pipe, seeds, variants, steps, batch_size),
        matrix_rate(device, dtype),
        seeds * variants,
    )
    rows, flops, seconds, peak = {}, {}, {k: [] for k in methods}, {k: 0 for k in methods}
    for k, run in tqdm(methods.items(), desc=f'{model}: counting'):  # this warms up, too
        with count_rows(pipe.unet) as rows[k], FlopCounterMode(display=False) as counter:
            run()
        flops[k] = counter.get_total_flops()
    order = list(methods)
    for r in tqdm(range(rounds), desc=f'{model}: rounds'):
        for k in order[r % len(order) :] + order[: r % len(order)]:
            gc.collect()
            wait(device)
            with peak_memory(device) as bytes_:
                start = time.perf_counter()
                methods[k]()
                wait(device)
                seconds[k].append((time.perf_counter() - start) / count)
            peak[k] = max(peak[k], bytes_[0])

    def ratio(k, other):
        return median(a / b for a, b in zip(seconds[k], seconds[other]))

    return [
        dict(
            model=model,
            device=torch.cuda.get_device_name()
            if device == 'cuda'
            else f'CPU, {torch.get_num_threads()} threads',
            dtype=str(dtype).split('.')[1],
            method=m,
            steps=steps,
            strength=s,
            seeds=seeds,
            variants=variants,
            batch_size=1 if m == 'released' else batch_size,
            rounds=rounds,
            seconds_per_image=median(seconds[m, s]),
            encoder_rows=rows[m, s]['encoder'] / count,
            decoder_rows=rows[m, s]['decoder'] / count,
            peak_bytes=peak[m, s],
            ratio_to_text2img=ratio((m, s), ('text-to-image', 1.0)),
            speedup_over_released=ratio(('released', s), (m, s)),
            matrix_rate_fraction=flops[m, s] / count / median(seconds[m, s]) / rate,
        )
        for m, s in methods
    ]


def full_size(side=512):
    "One guided step of Eq. 6 by Stable Diffusion 1.5's full-size U-Net on the CPU"
    pipe = sd15(320, side, 'cpu', torch.float32)
    x, cond = torch.randn(1, 4, side // 8, side // 8), encode_prompts(pipe, ['A photo of a cat'])
    with count_rows(pipe.unet) as rows, peak_memory('cpu') as peak:
        start = time.perf_counter()
        out = denoise(
            pipe,
            InitialState(x, [501]),
            cond,
            GUIDANCE,
            Perturbation(sigma=3.0),
            generators=[make_generator(0, 'x', 0)],
        )
        seconds = time.perf_counter() - start
    assert out.shape == x.shape and out.isfinite().all() and rows == dict(encoder=2, decoder=4)
    return dict(
        model='SD 1.5 shape',
        parameters=sum(p.numel() for p in pipe.unet.parameters()),
        device=f'CPU, {torch.get_num_threads()} threads',
        dtype='float32',
        method='one step of dreamda Eq. 6',
        seconds=seconds,
        encoder_rows=2,
        decoder_rows=4,
        peak_bytes=peak[0],
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=2, help='of a CPU')
    parser.add_argument(
        '--skip-full-size',
        action='store_true',
        help='leave out the full-size U-Net on the CPU (5 GB of memory)',
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with torch.no_grad():
        records = measure(
            'tiny',
            load_pipeline('tiny', device='cpu'),
            'cpu',
            torch.float32,
            4,
            10,
            10,
            args.rounds,
            40,
        )
        if torch.cuda.is_available():
            records += measure(
                'SD 1.5 shape, 512x512',
                sd15(320, 512, 'cuda', torch.bfloat16),
                'cuda',
                torch.bfloat16,
                4,
                10,
                50,
                args.rounds,
                40,
            )
        else:
            records += measure(
                'quarter-width SD 1.5, 256x256',
                sd15(80, 256, 'cpu', torch.float32),
                'cpu',
                torch.float32,
                1,
                10,
                5,
                max(3, args.rounds // 2),
                10,
            )
        if not args.skip_full_size:
            records.append(full_size())
    path = results_dir('benchmarks') / 'generation.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        json.dumps(
            dict(records=records, command='python benchmarks/generation.py', **provenance()),
            indent=1,
        )
        + '\n'
    )
    for r in records:
        seconds = r.get('seconds_per_image', r.get('seconds'))
        print(
            f'{r["model"]:32} {r["method"]:32} {r.get("strength", ""):>4} {seconds:8.3f} s',
            f'{r.get("ratio_to_text2img", 0):.2f} x text-to-image',
            f'{r.get("speedup_over_released", 0):.2f} x released',
        )
