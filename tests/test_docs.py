"The site that `make docs` built: all public names, whole links, and what a browser shows"

import ast
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest

from dreamda.measure.results import load_summary

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


def ids(text):
    return re.findall(r' id="([^"]+)"', text)


def links(text):
    return {html.unescape(l) for l in re.findall(r'<[^<>]*? (?:href|src)="([^"]*)"', text)}


def linked_pages(text):
    return {l.partition('#')[0] for l in links(text)} & set(PAGES)


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
    text = re.sub(r'<[^>]+>', '', PAGES['ddim.html'])
    assert re.search(r'x_t.{0,30}\(B,4,h,w\)', text), 'the comments of the parameters of ddim_step'
    text = re.sub(r'<[^>]+>', '', PAGES['statistics.html'])
    assert 'share of such intervals that hold the true mean' in text
    assert 'mean, low, high' in text, 'what comes back'


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
            if not re.match(r'# ?\| ?hide', ''.join(c['source']))
        )
        page = PAGES[re.sub(r'^\d+_', '', p.stem) + '.html']
        shown = re.findall(r'<img [^>]*src="_images/[0-9a-f]{64}\.png"', page)
        assert len(shown) == figures, p.name


def test_the_start_page_shows_the_readme(root):
    text = PAGES['index.html']
    assert re.findall(r'<img [^>]*src="(_images/[^"]+)"', text)[0].startswith('_images/variants')
    for shown in ('dreamda expand', 'Does it help?', 'How it works', 'What else is here'):
        assert shown in text, shown
    table = load_summary(root / 'results' / 'photos')
    row = table.query("method == 'DreamDA' and against == 'Original' and per_class == 5").iloc[0]
    assert f'{100 * row.gain:+.1f} (' in text


def test_every_page_is_two_clicks_away():
    "The start page, and what one of its pages leads to"
    near = linked_pages(PAGES['index.html'])
    two = near.union(*(linked_pages(PAGES[n]) for n in near)) | {'index.html'}
    assert not (far := set(PAGES) - two - {'search.html', 'genindex.html', 'py-modindex.html'}), far
    for page in ('your_photos', 'when', 'cost', 'ethics', 'quickstart', 'method', 'reference'):
        assert f'{page}.html' in near, page


def test_the_sidebar_follows_the_packages():
    captions = re.findall(r'class="caption"[^>]*>\s*<span[^>]*>([^<]+)<', PAGES['index.html'])
    order = ['Use', 'The method', 'Data', 'Diffusion', 'Expansion', 'Classification']
    order += ['Measurement', 'Comparison', 'Application', 'Experiments', 'Reference']
    assert captions[: len(order)] == order


def test_the_page_when_it_helps_quotes_the_results(root):
    "The whole way of a number, from the file to the page"
    text = html.unescape(PAGES['when.html'])
    quick = load_summary(root / 'results' / 'quickstart').set_index('method')
    assert f'{100 * quick.gain["DreamDA"]:+.1f} (' in text
    photos = load_summary(root / 'results' / 'photos').query("against == 'Original'")
    for row in photos.dropna(subset='gain').itertuples():
        values = (row.accuracy, row.gain, row.gain_low, row.gain_high)
        a, g, low, high = (100 * v for v in values)
        star = '*' if row.p_holm < 0.05 else ''
        assert f'{a:.1f} ({g:+.1f}: {low:+.1f} to {high:+.1f}){star}' in text, row


def test_quarto_would_get_its_pages(root, run, tmp_path):
    "What `nbdev_docs` does before it calls Quarto: it runs exported cells and imports alone"
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
    assert 'x_prev' in (tmp_path / '_proc' / '2_diffusion' / '05_ddim.ipynb').read_text()


# ---- in a browser


def browse(url, tmp_path, *more):
    "The document after its scripts ran; what the console said and what it asked the network for"
    command = [
        BROWSER,
        '--headless=new',
        '--no-sandbox',
        '--disable-gpu',
        '--disable-background-networking',
        f'--user-data-dir={tmp_path}/profile',
        '--host-resolver-rules=MAP * ~NOTFOUND',
        '--enable-logging=stderr',
        f'--log-net-log={tmp_path}/net.json',
        '--virtual-time-budget=10000',
        *(more or ['--window-size=1400,1600']),
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
@pytest.mark.parametrize('width', [1400, 400])
@pytest.mark.parametrize('page', ['index', 'perturbation'])
def test_in_a_browser(page, width, tmp_path):
    (SITE.parent / 'out').mkdir(exist_ok=True)
    picture = f'--screenshot={SITE.parent}/out/{page}-{width}.png'
    size = f'--window-size={width},1600'
    dom, wrong = browse(f'file://{SITE}/{page}.html', tmp_path, picture, size)
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
