"Notebooks as files: what `nbdev_clean` and papermill make of them"

import ast
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

NBS = sorted((Path(__file__).parent.parent / 'nbs').rglob('*.ipynb'))
EXPERIMENTS = [
    p for p in NBS if not p.name[0].isdigit() and p.stem != 'index'
]  # the others are components


def each(paths):
    return pytest.mark.parametrize('path', paths, ids=lambda p: p.stem)


def load(path):
    return json.loads(path.read_text(encoding='utf-8'))


def code_cells(nb):
    return [(''.join(c['source']), c) for c in nb['cells'] if c['cell_type'] == 'code']


def tagged(nb, tag):
    return [s for s, c in code_cells(nb) if tag in c['metadata'].get('tags', [])]


# ---- each file


@each(EXPERIMENTS)
def test_one_parameter_cell(path):
    cells = tagged(load(path), 'parameters')
    assert len(cells) == 1, f'{len(cells)} cells are tagged `parameters`, papermill needs one'
    assert all(isinstance(n, ast.Assign) for n in ast.parse(cells[0]).body), (
        'a parameter cell holds assignments only'
    )


@each(NBS)
def test_papermill_knows_the_language(path):
    assert load(path)['metadata']['kernelspec']['language'] == 'python'


@each(NBS)
def test_directives_are_obeyed(path):
    "nbdev ignores a directive below the first line of code, and one that it does not know"
    known = 'default_exp export exporti exports hide eval: echo: output: code-fold: notest'.split()
    known.append('filter_stream:')
    for source, _ in code_cells(load(path)):
        lines = source.splitlines()
        code_from = next(
            (i for i, l in enumerate(lines) if l.strip() and not l.lstrip().startswith('#')),
            len(lines),
        )
        for i, l in enumerate(lines):
            if not (m := re.match(r'\s*#\s*\|\s*(\S+)', l)):
                continue
            assert i < code_from and m[1] in known, f'nbdev would ignore {l!r}'
            if m[1].startswith('export'):
                ast.parse(source)


@each(NBS)
def test_fit_to_be_shared(path):
    "Not over 1 MB, and its output names no folder of the machine it ran on"
    assert path.stat().st_size <= 2**20, (
        f'{path.stat().st_size / 2**20:.1f} MB: show fewer or smaller pictures'
    )
    for source, c in code_cells(load(path)):
        for o in c['outputs']:
            texts = [
                o.get('text', ''),
                o.get('traceback', ''),
                *(v for k, v in o.get('data', {}).items() if k.startswith('text/')),
            ]
            text = re.sub(r'base64,[\w+/=\s]+', '', '\n'.join(map(''.join, texts)))
            found = re.search(r'(?<![\w.<:/~-])/[A-Za-z]\w*/[\w.-]+', text)
            assert not found, (
                f'{text[found.start() :][:200]!r} in the output of the cell\n{source[:300]}'
            )


def test_tags_survive_cleaning(root, run, tmp_path):
    "Without `allowed_cell_metadata_keys = tags` papermill would run with the defaults, silently"
    shutil.copy(root / 'settings.ini', tmp_path)
    (tmp_path / 'nbs').mkdir()
    for p in NBS:
        nb = load(p)
        nb['cells'][0]['metadata']['litter'] = 1
        copy = tmp_path / p.relative_to(root)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(json.dumps(nb))
    run('nbdev_clean')
    for p in NBS:
        cleaned = load(tmp_path / p.relative_to(root))
        assert 'litter' not in cleaned['cells'][0]['metadata'], f'{p.name} was not cleaned'
        assert tagged(cleaned, 'parameters') == tagged(load(p), 'parameters'), p.name


def test_the_makefile_names_parameters_that_exist(root):
    "papermill only warns of others, and runs with the defaults"
    calls = re.findall(r'(?:papermill nbs/|TABLES,)(\w+)(.*)', (root / 'Makefile').read_text())
    assert len(calls) > 15
    for name, rest in calls:
        has = {
            n.targets[0].id
            for n in ast.parse(tagged(load(root / 'nbs' / f'{name}.ipynb'), 'parameters')[0]).body
        }
        given = {
            *re.findall(r'-p (\w+)', rest),
            *({'seeds', 'expansion', 'updates'} if '$(QUICK)' in rest else ()),
        }
        assert given <= has, (name, given - has)


# ---- papermill, from a folder outside the repository


def parameters(*pairs, **values):
    return [a for k, v in values.items() for a in ('-p', k, v)]


def applied(nb, **values):
    "The cell with the values given stands right after the one with the defaults"
    tags = [c['metadata'].get('tags', []) for _, c in code_cells(nb)]
    assert tags.index(['injected-parameters']) == tags.index(['parameters']) + 1
    given = {
        n.targets[0].id: ast.literal_eval(n.value)
        for n in ast.parse(tagged(nb, 'injected-parameters')[0]).body
    }
    assert given == values


def test_ablation_accumulates_points(root, run, tmp_path):
    "As in the README, but smaller; the second run prints the executed notebook"
    small = dict(per_class=2, expansion=2, seeds=2, updates=4)
    run('papermill', root / 'nbs/ablation.ipynb', 'out.ipynb', *parameters(sigma=3, **small))
    applied(load(tmp_path / 'out.ipynb'), sigma=3, **small)
    applied(
        json.loads(run('papermill', root / 'nbs/ablation.ipynb', *parameters(sigma=1, **small))),
        sigma=1,
        **small,
    )
    results = tmp_path / 'results' / 'ablation'
    runs = pd.read_csv(results / 'runs.csv').query("method != 'Original'")
    assert sorted(runs.sigma) == [1, 1, 3, 3], 'two splits at each scale'
    assert len(list(results.glob('strip-*.png'))) == 2 and (results / 'sigma.png').exists()


def test_quickstart_on_a_folder_of_photos(root, run, tmp_path):
    rng = np.random.default_rng(0)
    for part in ('train', 'test'):
        for c, colour in (('cat', (200, 120, 60)), ('dog', (60, 90, 160))):
            (tmp_path / 'photos' / part / c).mkdir(parents=True)
            for i in range(5):
                noise = rng.integers(-50, 50, (48 + i, 40, 3))  # no two of one size
                Image.fromarray((noise + colour).clip(0, 255).astype('uint8')).save(
                    tmp_path / 'photos' / part / c / f'{i}.jpg'
                )
    values = dict(data='photos', per_class=2, seeds=1, expansion=2, updates=4, out='made')
    run('papermill', root / 'nbs/quickstart.ipynb', 'out.ipynb', *parameters(**values))
    applied(load(tmp_path / 'out.ipynb'), **values)
    said = (tmp_path / 'made' / 'summary.txt').read_text()
    assert 'DreamDA against Original' in said, said
    assert len(list((tmp_path / 'made').glob('DreamDA-*/*/*.png'))) == 2 * 2 * 2, (
        'classes x images x variants'
    )
