"What `pip install` gives"

import ast
import json
import re
import shutil
import sys
import zipfile
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest


def files(folder):
    return {
        p.relative_to(folder).as_posix(): p
        for p in folder.rglob('*')
        if p.is_file() and '__pycache__' not in p.parts
    }


@pytest.fixture
def wheel(root, run, tmp_path):
    "Built from a source distribution of a copy: so what is not in that is missing here too"
    source = tmp_path / 'source'
    source.mkdir()
    for name in 'setup.py settings.ini MANIFEST.in README.md LICENSE'.split():
        shutil.copy(root / name, source)
    for name in 'dreamda nbs tests'.split():
        shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns('__pycache__'))
    run('python', '-m', 'build', '--no-isolation', '--outdir', tmp_path, cwd=source)
    return next(tmp_path.glob('*.whl'))


def test_wheel(root, run, wheel, tmp_path):
    names = [n for n in zipfile.ZipFile(wheel).namelist() if '.dist-info/' not in n]
    assert sorted(names) == sorted(f'dreamda/{n}' for n in files(root / 'dreamda')), (
        'the wheel holds the package with its models and nothing else'
    )
    assert any(
        re.search(r'\.dist-info/(licenses/)?LICENSE$', n) for n in zipfile.ZipFile(wheel).namelist()
    ), 'no LICENSE'
    run(
        'python',
        '-m',
        'pip',
        'install',
        '--no-deps',
        '--no-index',
        '--target',
        tmp_path / 'installed',
        wheel,
    )
    run('python', '-c', USE, PYTHONPATH=str(tmp_path / 'installed'))
    assert 'dreamda expand photos/' in run(
        tmp_path / 'installed' / 'bin' / 'dreamda', '--help', PYTHONPATH=str(tmp_path / 'installed')
    )


USE = """
from pathlib import Path
import dreamda
tiny = Path(dreamda.__file__).parent/'tiny'
assert tiny.is_relative_to(Path.cwd()/'installed'), tiny
from diffusers import StableDiffusionPipeline
from transformers import AutoTokenizer, CLIPModel
pipe = StableDiffusionPipeline.from_pretrained(tiny) # nothing of ours
side = pipe.unet.config.sample_size*pipe.vae_scale_factor
image = pipe('a digit seven', num_inference_steps=2, height=side, width=side).images[0]
assert image.size == (side, side)
clip = CLIPModel.from_pretrained(tiny/'clip')
tokens = AutoTokenizer.from_pretrained(tiny/'clip')('a digit seven', return_tensors='pt')
assert clip.text_model(**tokens).pooler_output.isfinite().all()
"""


def test_embedded_models(root):
    "Small, and no pickle among them: a pickle can run code when it is loaded"
    tiny = files(root / 'dreamda' / 'tiny')
    assert {p.suffix for p in tiny.values()} <= {'.json', '.safetensors', '.txt', '.md'}, sorted(
        tiny
    )
    assert sum(n.endswith('.safetensors') for n in tiny) == 4, (
        'CLIP, its text tower in the pipeline, VAE and U-Net'
    )
    assert sum(p.stat().st_size for p in tiny.values()) <= 12 * 2**20


def test_requirements(root):
    "What is imported is required by name, and what is required is imported, but for some tools"
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root / 'settings.ini')
    required, optional, dev, docs = (
        {normal_name(re.split('[<>=]', r)[0]) for r in cfg['DEFAULT'][f'{k}requirements'].split()}
        for k in ('', 'optional_', 'dev_', 'docs_')
    )

    def cells(p):
        code = [c for c in json.loads(p.read_text())['cells'] if c['cell_type'] == 'code']
        return (''.join(c['source']) for c in code)

    in_package = imported(p.read_text() for p in (root / 'dreamda').rglob('*.py'))
    at_once = imported(
        (p.read_text() for p in (root / 'dreamda').rglob('*.py')), lambda tree: tree.body
    )
    in_notebooks = imported(
        s for p in (root / 'nbs').rglob('*.ipynb') for s in cells(p)
    ) | imported(p.read_text() for d in ('tests', 'benchmarks') for p in (root / d).glob('*.py'))
    assert at_once <= required
    assert in_package - required == optional, 'imported inside functions only'
    assert in_notebooks <= required | optional | dev
    assert imported(
        p.read_text() for p in (root / 'docs').glob('*.py')
    ) <= required | dev | docs | {
        'docutils',
        'jinja2',
        'nbformat',
    }  # which Sphinx and myst-nb bring
    assert required - in_package <= {
        'papermill',
        'ipykernel',
        'ipywidgets',
    }  # they run the notebooks
    assert dev - in_notebooks <= {
        'execnb',
        'fastgit',
        'build',
        'setuptools',
        'nbconvert',
        'tabulate',
        'pytest-xdist',
        'ruff',
    }  # commands, pins for nbdev, DataFrame.to_markdown, pytest -n


def normal_name(distribution):
    "The name as PEP 503 writes it"
    return re.sub('[-_.]+', '-', distribution).lower()


LOCAL = {
    p.stem
    for folder in ('tests', 'docs')
    for p in (Path(__file__).parent.parent / folder).glob('*.py')
}


def imported(sources, nodes=ast.walk):
    "The distributions that sources import, for the names used here"
    tree = [n for s in sources for n in nodes(ast.parse(re.sub(r'(?m)^\s*[%!].*$', '', s)))]
    modules = {a.name for n in tree if isinstance(n, ast.Import) for a in n.names} | {
        n.module for n in tree if isinstance(n, ast.ImportFrom) and not n.level
    }
    names = (
        {m.split('.')[0] for m in modules}
        - sys.stdlib_module_names
        - LOCAL
        - {'dreamda', 'mpl_toolkits'}
    )
    provided = packages_distributions()
    return {normal_name(d) for m in names for d in provided.get(m, [f'{m} (not installed)'])}
