"Every method by name through `expand`: on digits, and on a folder of pictures of several sizes"

import numpy as np
import pytest
import torch
from PIL import Image

from dreamda.data.datasets import load_data
from dreamda.data.folders import load_folder
from dreamda.data.splits import scarce_split
from dreamda.diffusion.methods import METHODS, get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.expansion.expand import expand_images
from dreamda.expansion.record import read_metadata

torch.set_num_threads(1)
FEW = dict(di=dict(steps=2), da_fusion=dict(steps=2), diff_ii=dict(inversion_steps=10))


@pytest.fixture(scope='module')
def pipe():
    return load_pipeline('tiny', device='cpu')


@pytest.fixture(scope='module')
def digits():
    given, _ = scarce_split(load_data('digits'), 2)
    return given.subset([i for i, t in enumerate(given.targets) if t < 2])


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for name, colour in (('black_cat', (60, 50, 40)), ('dog', (60, 90, 160))):
        (folder / name).mkdir()
        for i in range(2):
            smooth = Image.fromarray(
                rng.integers(0, 120, (5, 4 + i, 3), np.uint8) + np.array(colour, np.uint8)
            ).resize((50 + 20 * i, 64), Image.Resampling.BICUBIC)
            smooth.save(folder / name / f'{i}.jpg')
    return load_folder(folder)


@pytest.mark.parametrize('name', METHODS)
def test_by_name(name, pipe, digits, photos, tmp_path):
    "Three variants of each; one that is deleted comes back as it was, made alone"
    method = get_method(name, num_inference_steps=3, **FEW.get(name, {}))
    for what, images in (('digits', digits), ('photos', photos)):
        out = tmp_path / what
        made = expand_images(images, out, pipe, method, 3, name=name)
        assert len(made) == 3 * len(images) and all(im.size == (32, 32) for im, _ in made)
        lines = read_metadata(out)
        for l in lines:
            own = l['seed_image'].split('/')[0]
            assert l['file_name'].startswith(l['class'] + '/')
            if name == 'diff_mix' and l['class'] != own:
                assert l['label'] == pytest.approx({own: 1 - 0.7**0.8, l['class']: 0.7**0.8})
            else:
                assert l['class'] == own and 'label' not in l
            if name in ('di', 'diff_ii', 'dreamda_between'):
                assert l['partner'].split('/')[0] == own and l['partner'] != l['seed_image']
        before = {f: np.array(made[i][0]).astype(int) for i, f in enumerate(made.keys)}
        gone = out / lines[4]['file_name']
        gone.unlink()
        again = expand_images(images, out, pipe, method, 3, name=name)
        assert again.keys == made.keys and all(
            abs(np.array(again[i][0]) - before[f]).max() <= 3 for i, f in enumerate(again.keys)
        )
    if name in ('di', 'da_fusion'):
        assert len(list((tmp_path / 'digits-learned').iterdir())) == (4 if name == 'di' else 2)
    if method.uses_others:
        with pytest.raises(ValueError, match='others'):
            expand_images(photos.subset([0, 1, 2]), out, pipe, method, 3, name=name)
