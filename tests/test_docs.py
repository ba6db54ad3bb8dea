"The site that `make docs` built: everything public is there, every link leads somewhere, and a browser shows it without a network"

import ast
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pandas as pd
import pytest

SITE = Path(os.environ.get('SITE', '')).resolve()
PAGES = (
    {p.name: p.read_text(encoding='utf-8') for p in SITE.glob('*.html')}
    if 'SITE' in os.environ
    else {}
)
BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
pytestmark = pytest.mark.skipif(not PAGES, reason='`make docs` builds the site and runs these')
ids = lambda text: re.findall(r' id="([^"]+)"', text)
links = lambda text: {
    html.unescape(l) for l in re.findall(r'<[^<>]*? (?:href|src)="([^"]*)"', text)
}


def test_every_public_name_has_its_place(root):
    found = [i for text in PAGES.values() for i in ids(text)]
    for p in sorted((root / 'dreamda').rglob('[!_]*.py')):
        names = next(
            ast.literal_eval(n.value)
            for n in ast.parse(p.read_text()).body
            if isinstance(n, ast.Assign) and n.targets[0].id == '__all__'
        )
        for name in names:
            module = '.'.join(p.relative_to(root).with_suffix('').parts)
            assert found.count(f'{module}.{name}') == 1, f'{module}.{name}'


def test_parameters_keep_their_comments():
    text = re.sub(r'<[^>]+>', '', PAGES['sampler.html'])
    assert 'alphas_cumprod' in text and re.search(r'x_t.{0,30}\(B,4,h,w\)', text), (
        'the docments of ddim_step'
    )


def test_links_lead_somewhere():
    anchors = {name: set(ids(text)) for name, text in PAGES.items()}
    for name, text in PAGES.items():
        for link in links(text):
            if re.match(r'(https?|mailto|data):', link):
                continue
            path, _, anchor = link.partition('#')
            path = unquote(path.split('?')[0]) or name
            assert (SITE / path).is_file(), f'{name}: {link}'
            assert not anchor or path not in anchors or unquote(anchor) in anchors[path], (
                f'{name}: {link}'
            )


def test_nothing_is_loaded_from_elsewhere():
    for name, text in PAGES.items():
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]* src="([^"]*)"', text) + [
            l
            for tag in re.findall(r'<link[^>]*>', text)
            if 'rel="canonical"' not in tag
            for l in links(tag)
        ]
        assert not [l for l in loaded if re.match(r'(https?:)?//', l)], name


def test_every_figure_is_shown(root):
    "As many as the notebooks hold"
    for p in (root / 'nbs').rglob('*.ipynb'):
        figures = sum(
            'image/png' in o.get('data', {})
            for c in json.loads(p.read_text())['cells']
            for o in c.get('outputs', [])
            if not ''.join(c['source']).startswith('#| hide')
        )
        page = PAGES[re.sub(r'^\d+[a-z]*_', '', p.stem) + '.html']
        assert len(re.findall(r'<img [^>]*src="_images/[0-9a-f]{64}\.png"', page)) == figures, (
            p.name
        )


def test_the_page_when_it_helps_quotes_the_results(root):
    "The whole way of a number, from the file to the page"
    gain = (
        100
        * pd.read_csv(root / 'results' / 'quickstart' / 'accuracy.csv', index_col=0).gain['DreamDA']
    )
    assert f'{gain:+.1f} (' in PAGES['when.html']
    folder = root / 'results' / 'photos'
    for p in (folder / 'accuracy.csv', *folder.glob('*-updates.csv')):
        for a, g, low, high in (
            100 * pd.read_csv(p)[['accuracy', 'gain', 'gain_low', 'gain_high']].dropna().values
        ):
            assert f'{a:.1f} ({g:+.1f}: {low:+.1f} to {high:+.1f})' in PAGES['when.html'], p


def test_quarto_would_get_its_pages(root, run, tmp_path):
    "What `nbdev_docs` does before it calls Quarto: it runs exported cells, and those that import anything, on their own"
    shutil.copy(root / 'settings.ini', tmp_path)
    for d in ('nbs', 'dreamda'):
        shutil.copytree(root / d, tmp_path / d)
    run(
        'python',
        '-c',
        'from nbdev.serve import proc_nbs; proc_nbs(n_workers=0)',
        OMP_NUM_THREADS='1',
    )
    assert {p.name for p in (tmp_path / '_proc').glob('*.ipynb')} == {
        p.name for p in (root / 'nbs').rglob('*.ipynb')
    }
    assert 'alphas_cumprod' in (tmp_path / '_proc' / '2_diffusion' / '05_ddim.ipynb').read_text()


# ---- in a browser


def browse(url, tmp_path, *more):
    "What Chromium makes of a page: the document after its scripts ran; what the console said and what the page asked the network for"
    command = [
        BROWSER,
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        f'--user-data-dir={tmp_path}/profile',
        '--host-resolver-rules=MAP * ~NOTFOUND',
        '--enable-logging=stderr',
        f'--log-net-log={tmp_path}/net.json',
        '--virtual-time-budget=10000',
        '--window-size=1400,1600',
        *more,
        '--dump-dom',
        url,
    ]
    p = subprocess.run(command, capture_output=True, text=True, timeout=120)
    asked = [
        l
        for l in (tmp_path / 'net.json').read_text().splitlines()
        if '"network_isolation_key":"file://' in l
    ]  # not what the browser itself wants
    return p.stdout, [l for l in p.stderr.splitlines() if ':CONSOLE' in l] + re.findall(
        r'"url":"(https?://[^"]*)"', '\n'.join(asked)
    )


browser = pytest.mark.skipif(not BROWSER, reason='no Chromium here')


@browser
def test_the_browser_sees_what_is_wrong(tmp_path):
    (tmp_path / 'bad.html').write_text(
        '<p>hello<script>console.error("oh dear")</script><img src="https://elsewhere.invalid/a.png">'
    )
    dom, wrong = browse(f'file://{tmp_path}/bad.html', tmp_path)
    assert (
        'hello' in dom
        and len(wrong) == 2
        and 'oh dear' in wrong[0]
        and wrong[1] == 'https://elsewhere.invalid/a.png'
    ), wrong


@browser
@pytest.mark.parametrize('page', ['index', 'perturbation'])
def test_in_a_browser(page, tmp_path):
    (SITE.parent / 'out').mkdir(exist_ok=True)
    dom, wrong = browse(
        f'file://{SITE}/{page}.html', tmp_path, f'--screenshot={SITE.parent}/out/{page}.png'
    )
    assert not wrong, wrong
    assert re.search('<img [^>]*src="_images/', dom)
    equations = len(re.findall(r'class="math[ "]', dom))
    assert equations == dom.count('<mjx-container') and (equations or page == 'index'), (
        f'{equations} equations'
    )
    assert not re.search('<g [^>]*data-mml-node="merror"', dom)


@browser
def test_search(tmp_path):
    dom, wrong = browse(f'file://{SITE}/search.html?q=ddim_invert', tmp_path)
    assert not wrong and re.search(r'<li[^>]*><a href="inversion.html', dom), wrong
