"That the parts of the repository agree"

import json
import re
from configparser import ConfigParser

import pandas as pd
import yaml

import dreamda
from dreamda.measure.results import RUN_COLUMNS, SCHEMA, load_runs, load_summary, summarize


def test_version(root):
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root / 'settings.ini')
    assert dreamda.__version__ == cfg['DEFAULT']['version']


def test_every_module_has_its_notebook(root):
    "Export makes modules, but does not remove one whose notebook is gone or was renamed"
    for p in (root / 'dreamda').rglob('[!_]*.py'):
        made_from = re.search(r'File to edit: (?:\.\./)+(nbs/\S+\.ipynb)', p.read_text())
        assert made_from and (root / made_from[1]).exists(), (
            f'{p.name} comes from no notebook: delete it, or make it from one'
        )


def test_model_card_quotes_the_results(root):
    card, quality = (
        (root / 'dreamda' / 'tiny' / 'README.md').read_text(),
        pd.read_csv(root / 'results' / 'tiny_world' / 'quality.csv', index_col=0).value,
    )
    made = json.loads((root / 'results' / 'tiny_world' / 'quality.json').read_text())['settings']
    for said in (
        f'{quality["VAE PSNR on the digits (dB)"]:.1f} dB |',
        f'| {quality["CLIP zero-shot accuracy on the digits"]:.1%} |',
        f'guidance 2 | {quality["label accuracy of text-to-image at guidance 2"]:.1%} |',
        f'guidance 4 | {quality["label accuracy of text-to-image at guidance 4"]:.1%} |',
        f'| {quality["size (MB)"]:.1f} MB |',
        f'reads {quality["accuracy of the judge on glyphs of the corpus"]:.0%} of',
        f'in {quality["training time (minutes, rendering included)"]:.0f} minutes',
        f'{made["images"]:,} pictures',
        f'{made["faces"]} font faces',
    ):
        assert said in card, said


def test_photo64(root):
    "Small safetensors that plain diffusers and transformers load; its card has the measures"
    from diffusers import StableDiffusionPipeline
    from transformers import CLIPModel

    folder = root / 'models' / 'photo64'
    files = [p for p in folder.rglob('*') if p.is_file()]
    assert {p.suffix for p in files} <= {'.json', '.safetensors', '.txt', '.md'} and sum(
        p.stat().st_size for p in files
    ) <= 40e6
    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert (
        pipe('a photo of a watch', height=64, width=64, num_inference_steps=2, output_type='pt')
        .images.isfinite()
        .all()
    )
    assert CLIPModel.from_pretrained(folder / 'clip').projection_dim == 64
    card, quality = (
        (folder / 'README.md').read_text(),
        pd.read_csv(root / 'results' / 'photo_world' / 'quality.csv', index_col=0),
    )
    for name, row in quality.iterrows():
        assert name in card and f'{row.psnr:.3g}' in card and f'{row.zero_shot:.3g}' in card


def markdown(path):
    "The text of a page, without its code"
    text = path.read_text()
    if path.suffix == '.ipynb':
        cells = json.loads(text)['cells']
        text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    return re.sub(r'```.*?```|`[^`]*`', '', text, flags=re.S)


def test_links_lead_to_files(root):
    "Those of notebooks and of the pages beside README, as GitHub follows them"
    for p in [*root.glob('*.md'), *(root / 'nbs').rglob('*.ipynb')]:
        folder = root if p.stem == 'index' else p.parent
        for link in re.findall(r'\]\(([^()\s#]+)[^()\s]*\)', markdown(p)):
            if not re.match('https?:|mailto:', link):
                assert (folder / link).exists(), f'{p.name}: {link}'


def test_links_of_the_site_name_notebooks(root):
    pages = {re.sub(r'^\d+_', '', p.stem) for p in (root / 'nbs').rglob('*.ipynb')}
    for p in (root / 'docs').glob('*.md'):
        for page in re.findall(r'\]\((\w+)\.ipynb\)', markdown(p)):
            assert page in pages, f'{p.name}: {page}'


def test_results_keep_the_schema(root):
    "runs.csv, summary.csv and runs.json agree, and the summary is that of the runs"
    for folder in sorted(p.parent for p in (root / 'results').glob('*/runs.csv')):
        runs, summary = load_runs(folder), load_summary(folder)
        record = json.loads((folder / 'runs.json').read_text())
        assert record['schema'] == SCHEMA and set(RUN_COLUMNS) <= set(runs), folder.name
        again = summarize(runs, record['against'])
        same = summary[summary.updates.isin(runs.updates.unique())][list(again)]
        pd.testing.assert_frame_equal(same.reset_index(drop=True), again, check_dtype=False)
        named = {n.split(', ')[0] for n in record['runs']}
        assert named == set(runs.data), folder.name


def test_workflows(root):
    "Few rights, actions pinned to a major version, and Python from the version in settings.ini"
    for p in (root / '.github' / 'workflows').glob('*.yml'):
        w = yaml.safe_load(p.read_text())
        assert w['permissions'] == {'contents': 'read'} and w[True], p.name  # `on` is true in YAML
        for job in w['jobs'].values():
            for step in job['steps']:
                assert re.fullmatch(r'actions/[\w-]+@v\d+', step.get('uses', 'actions/none@v0')), (
                    step
                )
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root / 'settings.ini')
    matrix = yaml.safe_load((root / '.github' / 'workflows' / 'tests.yml').read_text())['jobs'][
        'test'
    ]['strategy']['matrix']['python']
    assert matrix[0] == cfg['DEFAULT']['min_python'] and len(matrix) == 3


def test_quarto_is_told_what_the_settings_say(root):
    "For `nbdev_docs`, which writes nbs/nbdev.yml anew"
    cfg, site = (
        ConfigParser(delimiters=['=']),
        yaml.safe_load((root / 'nbs' / 'nbdev.yml').read_text())['website'],
    )
    cfg.read(root / 'settings.ini')
    assert (site['title'], site['description'], site['repo-url'], site['site-url']) == (
        cfg['DEFAULT']['title'],
        cfg['DEFAULT']['description'],
        cfg['DEFAULT']['git_url'],
        cfg['DEFAULT']['doc_host'] + cfg['DEFAULT']['doc_baseurl'],
    )


def test_citation(root):
    cited = yaml.safe_load((root / 'CITATION.cff').read_text())
    assert (
        str(cited['version']) == dreamda.__version__
        and cited['preferred-citation']['url'] == 'https://arxiv.org/abs/2403.12803'
    )
    assert f'## {dreamda.__version__}' in (root / 'CHANGELOG.md').read_text()
