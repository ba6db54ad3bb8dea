"Every kind of pipeline, built small with random weights, saved, and loaded as a user's model is"

import json
import shutil

import diffusers
import numpy as np
import peft
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from dreamda.data.images import Images
from dreamda.diffusion.checkpoints import TINY
from dreamda.diffusion.embeddings import encode_prompts
from dreamda.diffusion.generate import generate
from dreamda.diffusion.inversion import ddim_invert, dpm_encode
from dreamda.diffusion.latents import image_size
from dreamda.diffusion.methods import METHODS, get_method
from dreamda.diffusion.perturbation import SITES, Perturbation
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.diffusion.sampler import InitialState, denoise, make_generator, sample_noise
from dreamda.diffusion.schedule import alphas, get_timesteps
from dreamda.diffusion.unet import count_rows
from dreamda.diffusion.variants import sample_variants

torch.set_num_threads(1)
BETAS = dict(
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule='scaled_linear',
    steps_offset=1,
    clip_sample=False,
    set_alpha_to_one=False,
)
UNET = dict(
    sample_size=8,
    block_out_channels=(16, 16, 32, 32),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
    up_block_types=('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3,
)


def text_encoder(cls, width, tokenizer, **kw):
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **kw,
        )
    )


def small(kind, **scheduler):
    "Real classes, small; the U-Net's output is scaled down, so that inversion has a fixed point"
    pipe = build(kind, **scheduler)
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 0.02
    return pipe


def build(kind, **scheduler):
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(TINY / 'tokenizer')
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        latent_channels=4,
        sample_size=16,
    )
    if kind == 'sdxl':
        unet = UNet2DConditionModel(
            **UNET
            | dict(
                block_out_channels=(16, 32, 32),
                down_block_types=('DownBlock2D', 'CrossAttnDownBlock2D', 'CrossAttnDownBlock2D'),
                up_block_types=('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
                transformer_layers_per_block=(1, 1, 2),
                attention_head_dim=(2, 4, 4),
                use_linear_projection=True,
                cross_attention_dim=32 + 48,
                addition_embed_type='text_time',
                addition_time_embed_dim=8,
                projection_class_embeddings_input_dim=24 + 6 * 8,
            )
        )
        return StableDiffusionXLPipeline(
            vae,
            text_encoder(CLIPTextModel, 32, tokenizer),
            text_encoder(CLIPTextModelWithProjection, 48, tokenizer, projection_dim=24),
            tokenizer,
            tokenizer,
            unet,
            EulerDiscreteScheduler(
                beta_start=0.00085,
                beta_end=0.012,
                beta_schedule='scaled_linear',
                steps_offset=1,
                timestep_spacing='leading',
            ),
            add_watermarker=False,
        )
    unet = UNet2DConditionModel(
        **UNET,
        cross_attention_dim=32,
        **dict(attention_head_dim=(2, 2, 4, 4), use_linear_projection=True)
        if kind == 'sd2'
        else dict(attention_head_dim=2),
    )
    return StableDiffusionPipeline(
        vae,
        text_encoder(CLIPTextModel, 32, tokenizer),
        tokenizer,
        unet,
        scheduler=DDIMScheduler(**BETAS | scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


KINDS = dict(
    sd1=('sd1', {}),
    pndm=('sd1', {}),
    sd2_v=('sd2', dict(prediction_type='v_prediction')),
    sdxl=('sdxl', {}),
    linear=('sd1', dict(beta_schedule='linear', beta_start=1e-4, beta_end=0.02)),
    trailing=('sd1', dict(timestep_spacing='trailing')),
    linspace=('sd1', dict(timestep_spacing='linspace')),
    zero_snr=(
        'sd2',
        dict(
            prediction_type='v_prediction', rescale_betas_zero_snr=True, timestep_spacing='trailing'
        ),
    ),
)


@pytest.fixture(scope='session')
def folder(tmp_path_factory):
    made = {}

    def folder(name):
        if name not in made:
            made[name] = tmp_path_factory.mktemp(name)
            pipe = small(KINDS[name][0], **KINDS[name][1])
            if name == 'pndm':
                pipe.scheduler = PNDMScheduler(
                    beta_start=0.00085,
                    beta_end=0.012,
                    beta_schedule='scaled_linear',
                    skip_prk_steps=True,
                    steps_offset=1,
                )
            pipe.save_pretrained(made[name])
        return made[name]

    return folder


def setup(pipe, n=2, steps=4, strength=1.0):
    def gens():
        return [make_generator(0, 'image', v) for v in range(n)]

    return (
        sample_noise(gens(), (4, 8, 8), torch.zeros(1)),
        encode_prompts(pipe, ['a photo of a cat', 'a photo of a dog'][:n]),
        get_timesteps(pipe, steps, strength),
        gens,
    )


def photos():
    return Images(
        list(np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)),
        ['cat/0.png', 'dog/0.png', 'dog/1.png', 'cat/1.png'],
        [0, 1, 1, 0],
        ['cat', 'dog'],
    )


def close(a, b, eps):
    torch.testing.assert_close(a.float(), b.float(), atol=eps, rtol=0)


@pytest.mark.parametrize('name', KINDS)
def test_text_to_image_is_that_of_diffusers(name, folder):
    "From the same noise, with guidance, for schedulers that diffusers runs at the same levels"
    pipe = load_pipeline(folder(name), device='cpu')
    x, cond, ts, _ = setup(pipe)
    assert image_size(pipe) == 16
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)
    ours = denoise(pipe, InitialState(x, ts), cond, 3.0)
    assert ours.isfinite().all()
    if name == 'linspace':
        return  # diffusers' DDIM takes a_prev from elsewhere than the next timestep
    theirs = pipe(
        ['a photo of a cat', 'a photo of a dog'],
        latents=x,
        num_inference_steps=len(ts),
        guidance_scale=3.0,
        height=16,
        width=16,
        output_type='latent',
    ).images
    close(ours, theirs, 2e-3)


@pytest.mark.parametrize('name', KINDS)
def test_there_and_back(name, folder):
    "Inversion and the DPM-encoder return the latents, at a_T = 0 too; every site runs"
    pipe = load_pipeline(folder(name), device='cpu')
    x0, cond, ts, gens = setup(pipe, steps=8)
    assert all(a < b for a, b in alphas(pipe, ts)[:-1])
    close(denoise(pipe, ddim_invert(pipe, x0, cond, ts, corrections=8), cond), x0, 0.02)
    if name == 'linspace':
        with pytest.raises(ValueError, match='adds no noise'):
            dpm_encode(pipe, x0, cond, ts, gens())
    elif pipe.scheduler.config.get('set_alpha_to_one') is False:
        close(
            denoise(
                pipe, dpm_encode(pipe, x0, cond, ts, gens(), guidance_scale=2.0), cond, 2.0, eta=1.0
            ),
            x0,
            2e-3,
        )
    start = InitialState(x0, ts[-2:])
    clean = denoise(pipe, start, cond, 2.0)
    for site in SITES:
        for asymmetric in (True, False):
            moved = denoise(
                pipe,
                start,
                cond,
                2.0,
                Perturbation(site, 0.3, True, asymmetric=asymmetric),
                generators=gens(),
            )
            assert moved.isfinite().all() and (moved - clean).abs().max() > 1e-5, site
            assert denoise(
                pipe,
                start,
                cond,
                2.0,
                Perturbation(site, 0.0, asymmetric=asymmetric),
                generators=gens(),
            ).equal(clean)
    with count_rows(pipe.unet) as rows:
        denoise(pipe, start, cond, 2.0, Perturbation('bottleneck', 0.3, True), generators=gens())
    assert rows == dict(encoder=2 * 2 * 2, decoder=2 * 2 * 2 * 2)
    with count_rows(pipe.unet) as rows:
        shared = denoise(
            pipe,
            start,
            cond,
            2.0,
            Perturbation('bottleneck', 0.3, True),
            generators=gens() * 2,
            rows=[0, 1] * 2,
            encoder_interval=2,
        )
    assert rows == dict(encoder=2 * 2, decoder=2 * 2 + 4 * 2 * 3) and shared.isfinite().all()
    assert denoise(pipe, InitialState(x0, ts), cond, solver='dpm++').isfinite().all()


def test_pure_noise_knows_nothing(folder):
    "Zero terminal SNR: a model that predicts noise, not velocity, gets an error"
    pipe = load_pipeline(folder('zero_snr'), device='cpu')
    ts = get_timesteps(pipe, 4)
    assert ts[0] == 999 and alphas(pipe, ts)[0][0] == 0
    pipe.scheduler.register_to_config(prediction_type='epsilon')
    with pytest.raises(ValueError, match='v_prediction'):
        alphas(pipe, ts)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['sd1', 'sdxl'])
def test_half_precision(name, dtype, folder):
    "The model in half precision, the latents of the sampler in fp32"
    whole, half = (
        load_pipeline(folder(name), device='cpu', dtype=d) for d in (torch.float32, dtype)
    )
    assert half.unet.dtype == dtype and half.vae.dtype == (
        torch.float32 if (name, dtype) == ('sdxl', torch.float16) else dtype
    )
    made = []
    for pipe in (whole, half):
        x, cond, ts, gens = setup(pipe)
        made.append(
            denoise(
                pipe,
                InitialState(x, ts),
                cond,
                2.0,
                Perturbation('bottleneck', 0.3, True),
                generators=gens(),
            )
        )
    assert (
        made[1].dtype == torch.float32 and (made[0] - made[1]).abs().mean() < 0.05 * made[0].std()
    )
    method, seeds = get_method('dreamda', num_inference_steps=2), photos()
    image = generate(half, method, seeds, sample_variants(method, seeds, [(0, 0), (0, 1)]))
    assert image.shape == (2, 3, 16, 16) and image.isfinite().all()


@pytest.mark.parametrize('name', ['sd1', 'sdxl'])
def test_lora(name, folder, tmp_path):
    "A LoRA file in PEFT's format is loaded by the pipeline's own method, and perturbed"
    trained = load_pipeline(folder(name), device='cpu').unet
    trained.add_adapter(
        peft.LoraConfig(
            r=4,
            lora_alpha=4,
            init_lora_weights=False,
            target_modules=['to_q', 'to_k', 'to_v', 'to_out.0'],
        )
    )
    pipe = load_pipeline(folder(name), device='cpu')
    type(pipe).save_lora_weights(tmp_path, unet_lora_layers=peft.get_peft_model_state_dict(trained))
    x, cond, ts, gens = setup(pipe)

    def run():
        return denoise(
            pipe,
            InitialState(x, ts),
            cond,
            2.0,
            Perturbation('bottleneck', 0.3, True),
            generators=gens(),
        )

    without = run()
    pipe.load_lora_weights(tmp_path)
    with_lora = run()
    assert (with_lora - without).abs().max() > 1e-5
    pipe.unet = trained
    close(run(), with_lora, 1e-4)


@pytest.mark.skipif(not shutil.which('g++'), reason='torch.compile needs a C++ compiler on a CPU')
def test_compiled(folder):
    "The compiled U-Net returns what the plain one does, perturbed too"
    made = []
    for compiled in (False, True):
        pipe = load_pipeline(folder('sd1'), device='cpu', compile=compiled)
        x, cond, ts, gens = setup(pipe, steps=1)
        made.append(
            denoise(
                pipe,
                InitialState(x, ts),
                cond,
                1.0,
                Perturbation('bottleneck', 0.3, True),
                generators=gens(),
            )
        )
    close(*made, 1e-3)


@pytest.mark.parametrize('name', METHODS)
def test_methods_on_sdxl(name, folder):
    pipe = load_pipeline(folder('sdxl'), device='cpu')
    changes = dict(di=dict(steps=2), da_fusion=dict(steps=2), gif=dict(clip='tiny')).get(name, {})
    method, seeds = get_method(name, num_inference_steps=2, **changes), photos()
    variants = sample_variants(method, seeds, [(0, 0), (1, 1), (1, 2)])
    if name in ('dreamda_paper', 'dreamda_released'):  # this scheduler's last step has no noise
        with pytest.raises(ValueError, match='adds no noise'):
            generate(pipe, method, seeds, variants)
        return
    made = generate(pipe, method, seeds, variants)
    assert made.shape == (3, 3, 16, 16) and made.isfinite().all()


def test_no_unet(folder, tmp_path):
    "A class-conditional transformer, an unconditional model, and one that predicts x_0"
    dit = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=1,
        sample_size=4,
        num_embeds_ada_norm=10,
    )
    pipe = small('sd1')
    DiTPipeline(dit, pipe.vae, pipe.scheduler).save_pretrained(tmp_path / 'dit')
    with pytest.raises(ValueError, match='DiTPipeline and has no U-Net'):
        load_pipeline(tmp_path / 'dit', device='cpu')
    diffusers.DDPMPipeline(
        diffusers.UNet2DModel(
            sample_size=8,
            block_out_channels=(8, 8),
            norm_num_groups=4,
            down_block_types=('DownBlock2D',) * 2,
            up_block_types=('UpBlock2D',) * 2,
        ),
        diffusers.DDPMScheduler(),
    ).save_pretrained(tmp_path / 'ddpm')
    with pytest.raises(ValueError, match='without vae and text_encoder'):
        load_pipeline(tmp_path / 'ddpm', device='cpu')
    shutil.copytree(folder('sd1'), tmp_path / 'x0')
    config = tmp_path / 'x0' / 'scheduler' / 'scheduler_config.json'
    config.write_text(json.dumps(json.loads(config.read_text()) | dict(prediction_type='sample')))
    with pytest.raises(ValueError, match="predicts 'sample'"):
        load_pipeline(tmp_path / 'x0', device='cpu')
