"Families of models besides SD 1.x to XL, built small with random weights, saved and loaded."

import json

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoPipelineForImage2Image,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
)

from dreamda.diffusion.checkpoints import TINY
from dreamda.diffusion.embeddings import encode_prompts
from dreamda.diffusion.inversion import ddim_invert, dpm_encode, noise_start, sdedit_start
from dreamda.diffusion.latents import decode_latents, encode_images, image_size
from dreamda.diffusion.perturbation import Perturbation
from dreamda.diffusion.pipeline import describe_other, load_pipeline, network
from dreamda.diffusion.sampler import InitialState, denoise, make_generator, sample_noise
from dreamda.diffusion.schedule import alphas, get_timesteps

torch.set_num_threads(1)
PROMPTS = ['a photo of a cat', 'a photo of a dog']
UNET = dict(
    sample_size=8,
    block_out_channels=(16, 16),
    layers_per_block=1,
    norm_num_groups=8,
    down_block_types=('CrossAttnDownBlock2D', 'DownBlock2D'),
    up_block_types=('UpBlock2D', 'CrossAttnUpBlock2D'),
    cross_attention_dim=16,
    attention_head_dim=2,
)


def close(a, b, tolerance):
    torch.testing.assert_close(a.float(), b.float(), atol=tolerance, rtol=0)


def clip_text(cls, width, **settings):
    tokenizer = CLIPTokenizer.from_pretrained(TINY / 'tokenizer')
    return cls(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **settings,
        )
    )


def t5(width):
    vocabulary = len(CLIPTokenizer.from_pretrained(TINY / 'tokenizer'))
    config = T5Config(
        vocab_size=vocabulary, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    return T5EncoderModel(config)


def vae(channels, **settings):
    return AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        latent_channels=channels,
        sample_size=16,
        **settings,
    )


def sd3():
    net = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=24,
        out_channels=4,
        pos_embed_max_size=8,
    )
    tokenizer = CLIPTokenizer.from_pretrained(TINY / 'tokenizer')
    text = [clip_text(CLIPTextModelWithProjection, 16, projection_dim=12) for _ in range(2)]
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = (vae(4, shift_factor=0.1), text[0], tokenizer, text[1], tokenizer, t5(32), tokenizer)
    return StableDiffusion3Pipeline(net, scheduler, *parts)


def flux(guidance_embeds):
    net = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=guidance_embeds,
        axes_dims_rope=(2, 2, 4),
    )
    tokenizer = CLIPTokenizer.from_pretrained(TINY / 'tokenizer')
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    text = (clip_text(CLIPTextModel, 16), tokenizer, t5(16), tokenizer)
    return FluxPipeline(scheduler, vae(4, shift_factor=0.1), *text, net)


def lcm():
    tokenizer = CLIPTokenizer.from_pretrained(TINY / 'tokenizer')
    return StableDiffusionPipeline(
        vae(4),
        clip_text(CLIPTextModel, 16),
        tokenizer,
        UNet2DConditionModel(**UNET, time_cond_proj_dim=8),
        LCMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule='scaled_linear'),
        None,
        None,
        requires_safety_checker=False,
    )


FAMILIES = dict(
    sd3=sd3,
    flux_dev=lambda: flux(True),
    flux_schnell=lambda: flux(False),
    lcm=lcm,
)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folders = {}

    def folder(name):
        if name not in folders:
            torch.manual_seed(0)
            folders[name] = tmp_path_factory.mktemp(name)
            pipe = FAMILIES[name]()
            with torch.no_grad():  # a small output, so that inversion of the random model converges
                for parameter in getattr(network(pipe), 'proj_out', torch.nn.Module()).parameters():
                    parameter *= 0.1
            pipe.save_pretrained(folders[name])
        return folders[name]

    return folder


def load(folder, name):
    return load_pipeline(folder(name), device='cpu')


def generators(n=2):
    return [make_generator(0, 'image', variant) for variant in range(n)]


@pytest.mark.parametrize('name', ['sd3', 'flux_dev', 'flux_schnell'])
def test_flow_is_that_of_diffusers(name, folder):
    "Text-to-image from the same noise, and SDEdit from the same image, by diffusers' own pipelines"
    pipe = load(folder, name)
    assert image_size(pipe) == 16
    scale = 3.5 if name == 'flux_dev' else 1.0 if name == 'flux_schnell' else 2.0
    conditioning = encode_prompts(pipe, PROMPTS)
    state = noise_start(pipe, generators(), get_timesteps(pipe, 4))
    start = state.latents if name == 'sd3' else pipe._pack_latents(state.latents, 2, 4, 8, 8)
    settings = dict(height=16, width=16, guidance_scale=scale, output_type='latent')
    theirs = pipe(PROMPTS, latents=start, num_inference_steps=4, **settings).images
    if name != 'sd3':
        theirs = pipe._unpack_latents(theirs, 16, 16, 2)
    close(denoise(pipe, state, conditioning, scale), theirs, 1e-3)

    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = encode_images(pipe, images)
    assert decode_latents(pipe, latents).shape == images.shape
    timesteps = get_timesteps(pipe, 4, 0.5)
    g = torch.Generator().manual_seed(1)
    state = sdedit_start(pipe, latents, [g], timesteps)
    edit = AutoPipelineForImage2Image.from_pipe(pipe)
    edit.scheduler.set_timesteps(4, **({} if name == 'sd3' else {'mu': 0.5}))
    sigma = timesteps[0] / 1000
    noise = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = (1 - sigma) * latents + sigma * noise  # in the flow's coordinates
    close(state.latents * ((1 - sigma) ** 2 + sigma**2) ** 0.5, expected, 1e-5)


@pytest.mark.parametrize('name', ['sd3', 'flux_dev', 'flux_schnell'])
def test_flow_inversion_and_perturbation(name, folder):
    "Inversion returns the latents; sigma 0 changes nothing; rows do not depend on their batch"
    pipe = load(folder, name)
    conditioning = encode_prompts(pipe, PROMPTS)
    timesteps = get_timesteps(pipe, 8, 0.75)
    latents = sample_noise(generators(), (4, 8, 8), torch.zeros(1))
    exact = ddim_invert(pipe, latents, conditioning, timesteps, corrections=6)
    close(denoise(pipe, exact, conditioning), latents, 5e-3)
    errors = []
    for solver in ('ddim', 'dpm++'):
        state = ddim_invert(pipe, latents, conditioning, timesteps, corrections=1, solver=solver)
        back = denoise(pipe, state, conditioning, solver=solver)
        errors.append((back - latents).abs().max().item())
    assert max(errors) < 0.2, errors
    clean = denoise(pipe, exact, conditioning, 2.0)
    for asymmetric in (True, False):
        none = Perturbation('block', 0.0, True, asymmetric=asymmetric)
        assert denoise(pipe, exact, conditioning, 2.0, none).equal(clean)
        for site in ('block', 'block:0'):
            p = Perturbation(site, 1.0, True, asymmetric=asymmetric)
            moved = denoise(pipe, exact, conditioning, 2.0, p, generators=generators())
            assert moved.isfinite().all() and (moved - clean).abs().max() > 1e-4
            second = generators()[1:]
            alone = denoise(pipe, exact[1:], conditioning[1:], 2.0, p, generators=second)
            close(alone[0], moved[1], 1e-3)
    shared = denoise(
        pipe, exact, conditioning, 2.0, p, generators=generators() + generators(), rows=[0, 1, 0, 1]
    )
    close(shared[:2], moved, 1e-3)
    assert not any(m._forward_hooks or 'forward' in vars(m) for m in pipe.transformer.modules())


def test_flow_refusals(folder):
    pipe = load(folder, 'sd3')
    conditioning = encode_prompts(pipe, PROMPTS)
    timesteps = get_timesteps(pipe, 4)
    state = noise_start(pipe, generators(), timesteps)
    for site, message in (('bottleneck', "use 'block'"), ('block:9', 'blocks 0 to 2')):
        with pytest.raises(ValueError, match=message):
            denoise(pipe, state, conditioning, 1.0, Perturbation(site), generators=generators())
    with pytest.raises(ValueError, match='no encoder'):
        denoise(pipe, state, conditioning, encoder_interval=2)
    with pytest.raises(ValueError, match='use DDIM inversion'):
        dpm_encode(pipe, state.latents, conditioning, timesteps, generators())


def test_consistency_model(folder):
    "The timesteps and the result of diffusers' LCM scheduler; the guidance scale as an input"
    pipe = load(folder, 'lcm')
    conditioning = encode_prompts(pipe, PROMPTS)
    scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    timesteps = get_timesteps(pipe, 4)
    assert timesteps == scheduler.timesteps.tolist()
    state = noise_start(pipe, generators(), timesteps)
    ours = denoise(pipe, state, conditioning, 8.0, generators=generators(), solver='lcm')
    embedding = pipe.get_guidance_scale_embedding(torch.tensor([7.0] * 2), embedding_dim=8)
    theirs, gens = state.latents, generators()
    a = scheduler.alphas_cumprod
    with torch.no_grad():
        for i, t in enumerate(timesteps):
            eps = pipe.unet(theirs, t, conditioning.embeds, timestep_cond=embedding).sample
            denoised = scheduler.step(eps, t, theirs).denoised
            noise = torch.stack([torch.randn(4, 8, 8, generator=g) for g in gens])
            theirs = denoised
            if i + 1 < len(timesteps):
                a_prev = a[timesteps[i + 1]]
                theirs = a_prev.sqrt() * denoised + (1 - a_prev).sqrt() * noise
    close(ours, theirs, 2e-2)
    assert not denoise(pipe, state, conditioning, 2.0).equal(denoise(pipe, state, conditioning))
    half = get_timesteps(pipe, 4, 0.5)
    assert half == timesteps[2:]
    edited = sdedit_start(pipe, state.latents, generators(), half)
    made = denoise(pipe, edited, conditioning, 2.0, generators=generators(), solver='lcm')
    assert made.isfinite().all()


def test_inversion_in_four_steps(folder):
    "DreamDA with the inversion that a few-step model allows: four steps, with corrections"
    pipe = load(folder, 'lcm')
    with torch.no_grad():
        pipe.unet.conv_out.weight *= 0.02
    conditioning = encode_prompts(pipe, PROMPTS)
    latents = sample_noise(generators(), (4, 8, 8), torch.zeros(1))
    timesteps = get_timesteps(pipe, 4)
    state = ddim_invert(pipe, latents, conditioning, timesteps, corrections=8)
    close(denoise(pipe, state, conditioning), latents, 0.02)
    p = Perturbation('bottleneck', 1.0, relative=True)
    moved = denoise(pipe, state, conditioning, 1.0, p, generators=generators())
    assert moved.isfinite().all() and (moved - latents).abs().max() > 1e-4


def test_turbo_timesteps(folder):
    "Models that sample from the last timestep in one step (SDXL-Turbo, Lightning)"
    pipe = load(folder, 'lcm')
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler

    for cls in (EulerAncestralDiscreteScheduler, EulerDiscreteScheduler):
        pipe.scheduler = cls(timestep_spacing='trailing')
        for steps in (1, 4):
            pipe.scheduler.set_timesteps(steps)
            assert get_timesteps(pipe, steps) == pipe.scheduler.timesteps.int().tolist()
        assert alphas(pipe, get_timesteps(pipe, 1))[-1][1] == 1.0  # ends without noise


FIRST = 'model.diffusion_model.input_blocks.0.0.weight'
FILES = {
    'lora': ({'unet.down.to_q.lora_A.weight': (2, 2)}, 'a LoRA'),
    'inpainting': ({FIRST: (4, 9, 3, 3)}, '9 channels'),
    'pix2pix': ({FIRST: (4, 8, 3, 3)}, '8 channels'),
    'text': ({'text_model.embeddings.weight': (2, 2)}, 'without a diffusion model'),
}


@pytest.mark.parametrize('kind', FILES)
def test_other_files(kind, tmp_path):
    shapes, message = FILES[kind]
    path = tmp_path / 'model.safetensors'
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    with pytest.raises(ValueError, match=message):
        load_pipeline(path, device='cpu')


def test_other_folders(folder, tmp_path):
    text = tmp_path / 'text'
    clip_text(CLIPTextModel, 16).save_pretrained(text)
    with pytest.raises(ValueError, match='one part of a pipeline'):
        load_pipeline(text, device='cpu')
    lora = tmp_path / 'lora'
    lora.mkdir()
    save_file({'x.lora_A.weight': torch.zeros(1)}, lora / 'pytorch_lora_weights.safetensors')
    with pytest.raises(ValueError, match='a LoRA'):
        load_pipeline(lora, device='cpu')
    assert describe_other(folder('lcm')) is None
    for name, message in (('Inpaint', 'also takes a mask'), ('InstructPix2Pix', 'to edit')):
        pipe = FAMILIES['lcm']()
        net = UNet2DConditionModel(**UNET, in_channels=9 if name == 'Inpaint' else 8)
        pipe.unet = net
        pipe.save_pretrained(tmp_path / name)
        index = tmp_path / name / 'model_index.json'
        settings = json.loads(index.read_text()) | {'_class_name': f'StableDiffusion{name}Pipeline'}
        index.write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=message):
            load_pipeline(tmp_path / name, device='cpu')


def test_single_file_uses_from_single_file(folder, tmp_path, monkeypatch):
    "A whole checkpoint in one file is read by diffusers' `from_single_file`"
    path = tmp_path / 'model.safetensors'
    save_file({FIRST: torch.zeros(4, 4, 3, 3)}, path)
    calls = []

    def read(cls, file, **options):
        calls.append((cls.__name__, file, options['config']))
        return cls.from_pretrained(folder('lcm'))

    monkeypatch.setattr(StableDiffusionPipeline, 'from_single_file', classmethod(read))
    pipe = load_pipeline(path, device='cpu', config=folder('lcm'))
    assert calls == [('StableDiffusionPipeline', str(path), str(folder('lcm')))]
    assert pipe.unet.config.sample_size == 8


def test_options_are_checked(folder):
    with pytest.raises(ValueError, match='quantize is 3'):
        load_pipeline(folder('lcm'), device='cpu', quantize=3)
    with pytest.raises(ValueError, match="offload is 'disk'"):
        load_pipeline(folder('lcm'), device='cpu', offload='disk')


def test_row_of_state():
    state = InitialState(torch.zeros(2, 4, 8, 8), [1], torch.zeros(1, 2, 4, 8, 8))
    assert state[:1].noises.shape == (1, 1, 4, 8, 8)
