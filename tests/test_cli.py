"The command line as a user meets it, most of it in this process; and the page in a browser"

import base64
import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from html.parser import HTMLParser

import datasets
import pandas as pd
import pytest
import torchvision

from dreamda.app.cli import main
from dreamda.classify.models import load_classifier
from dreamda.classify.prediction import predict
from dreamda.data.folders import load_folder
from dreamda.experiments.crossval import ARMS

BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
CLASSES, PER_CLASS = 3, 3
IMAGES = CLASSES * PER_CLASS
FAST = ['--num-inference-steps', 2, '--expansion', 2]


def dreamda(cwd, *args):
    "Exit code, standard output and standard error of a command in this process"
    args = [str(arg) for arg in args]
    before = sys.argv
    with (
        contextlib.chdir(cwd),
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        warnings.catch_warnings(),
        pytest.raises(SystemExit) as end,
    ):
        try:
            sys.argv = ['dreamda', *args]
            main(args)
        finally:
            sys.argv = before
    return end.value.code, out.getvalue(), err.getvalue()


def good(cwd, *args):
    "The standard output of a command that must succeed"
    code, out, err = dreamda(cwd, *args)
    assert code == 0, f'dreamda {args} ended with {code}:\n{err[-3000:]}'
    return out


def in_a_process(cwd, *args, timeout=300):
    "The same in a process of its own"
    env = {**os.environ, 'HF_HUB_OFFLINE': '1', 'TQDM_DISABLE': '1'}
    command = [sys.executable, '-m', 'dreamda.app.cli', *map(str, args)]
    p = subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout
    )
    return p.returncode, p.stdout.decode(), p.stderr.decode()


@pytest.fixture(scope='module')
def way(tmp_path_factory):
    "All commands, on three photos of each of three digits"
    home, said = tmp_path_factory.mktemp('home'), {}

    def go(*args):
        said[args[0]] = good(home, *args)

    go('datasets', 'digits', 'photos', '--per-class', PER_CLASS)
    for folder in sorted((home / 'photos').iterdir())[CLASSES:]:
        shutil.rmtree(folder)
    (home / 'settings.yaml').write_text(
        'num-inference-steps: 2\nexpansion: 9\nupdates: 4\nflip: false\nworkers: 1\ntau: 0.5\n'
        'classifier: resnet_tiny\nfeatures: tiny\n'
    )
    config = ('--config', 'settings.yaml')
    go('expand', 'photos', 'out', *config, '--expansion', 2)
    go('label', 'photos', 'out', *config)
    go('train', 'photos', 'out', 'model', '--seeds', 1, *config)
    go('measure', 'photos', 'out', *config)
    go('report', 'out')
    return home, said


def test_all_commands(way):
    home, said = way
    out = home / 'out'
    assert f'out: {2 * IMAGES} synthetic images' in said['expand']
    assert re.search(rf'\d+ of {2 * IMAGES} images accepted', said['label'])
    assert f'over 1 repeat of {PER_CLASS}-fold cross-validation' in said['train']
    assert 'labels by amst' in said['train'] and 'left out: FID' in said['measure']
    names = ('run', 'labels', 'accuracy')
    run, labels, accuracy = (json.loads((out / f'{name}.json').read_text()) for name in names)
    sampler = run['run']['settings']['sampler']
    # the command line has priority over the file
    assert (run['run']['expansion'], sampler['num_inference_steps']) == (2, 2)
    # what was labelled is what was judged
    training = accuracy['settings']['training']
    assert labels['training']['label_settings'] == training['label_settings'] == {'tau': 0.5}
    assert training['labels'] == 'amst' and training['updates'] == 4
    frame = pd.read_csv(out / 'predictions.csv')
    assert frame.groupby('method').image.nunique().to_dict() == dict.fromkeys(ARMS, IMAGES)
    history = [json.loads(line) for line in (out / 'history.jsonl').read_text().splitlines()]
    commands = [line['command'].split()[1] for line in history]
    assert commands == ['expand', 'label', 'train', 'measure']
    assert all(line['data'] == '../photos' for line in history)


def test_the_verdict(way):
    "It says whether there is a gain over RandAugment, and where to go on if there is none"
    home, said = way
    verdict = json.loads((home / 'out' / 'accuracy.json').read_text())['settings']['verdict']
    assert 'Does it add anything to RandAugment? With synthetic + RandAugment' in said['train']
    assert ('dreamda choose photos' in said['train']) == (verdict != 'yes')


def test_others_read_what_is_left(way):
    "Results beside the images disturb nobody"
    home, _ = way
    assert len(torchvision.datasets.ImageFolder(home / 'out')) == 2 * IMAGES
    folder, cache = str(home / 'out'), str(home / 'cache')
    loaded = datasets.load_dataset('imagefolder', data_dir=folder, split='train', cache_dir=cache)
    assert len(loaded) == 2 * IMAGES


def test_the_classifier_can_be_used(way):
    home, _ = way
    model, classes = load_classifier(home / 'model')
    photos = load_folder(home / 'photos')
    assert classes == photos.classes
    assert predict(model, photos, device='cpu').shape == (IMAGES, CLASSES)


def test_made_again_and_overwritten(way, tmp_path):
    home, _ = way
    said = good(home, 'expand', 'photos', 'again', '--from-run', 'out/run.json')
    assert f'again: {2 * IMAGES} synthetic images' in said
    metadata = [(home / name / 'metadata.jsonl').read_bytes() for name in ('again', 'out')]
    assert metadata[0] == metadata[1]
    shutil.copytree(home / 'out', tmp_path / 'out')
    shutil.copytree(home / 'photos', tmp_path / 'photos')
    fewer = ('--overwrite', '--num-inference-steps', 2, '--expansion', 1)
    assert f'{IMAGES} synthetic images' in good(tmp_path, 'expand', 'photos', 'out', *fewer)
    left = {path.name for path in (tmp_path / 'out').glob('*.*')} - {'.lock-0'}
    assert left == {'run.json', 'metadata.jsonl', 'history.jsonl'}, 'results of deleted images'


def test_rejected_images(way, tmp_path):
    "They are not accepted, and training leaves them out"
    home, _ = way
    for name in ('out', 'photos'):
        shutil.copytree(home / name, tmp_path / name)
    first = pd.read_csv(tmp_path / 'out' / 'labels.csv').file_name[0]
    (tmp_path / 'rejected.txt').write_text(f'{first}\n')
    fast = ('--labels', 'inherit', '--updates', 2, '--no-flip', '--classifier', 'resnet_tiny')
    good(tmp_path, 'label', 'photos', 'out', '--reject', 'rejected.txt', *fast)
    table = pd.read_csv(tmp_path / 'out' / 'labels.csv').set_index('file_name')
    assert not table.accepted[first] and table.accepted.sum() == 2 * IMAGES - 1
    good(tmp_path, 'train', 'photos', 'out', 'model', '--seeds', 1, '--workers', 1)
    accuracy = json.loads((tmp_path / 'out' / 'accuracy.json').read_text())['settings']
    assert accuracy['synthetic_images'] == 2 * IMAGES - 1


def test_dry_runs_write_nothing(way):
    home, _ = way
    before = sorted(home.rglob('*'))
    said = good(home, 'expand', 'photos', 'new', '--dry-run', *FAST)
    assert re.search(rf'{2 * IMAGES} images would take about \d+ seconds here and [\d.]+ MiB', said)
    trainings = 3 * PER_CLASS * len(ARMS)
    said = good(home, 'train', 'photos', 'out', 'new', '--dry-run', '--labels', 'inherit')
    assert f'{trainings} trainings would take' in said
    assert sorted(home.rglob('*')) == before


def test_errors_are_one_line(way):
    home, _ = way
    code, out, err = in_a_process(home, 'expand', 'photos', 'o', '--method', 'best')
    assert code == 1 and err.startswith("Error: unknown method 'best': ") and err.count('\n') == 1
    with pytest.raises(ValueError, match="unknown method 'best'"), contextlib.chdir(home):
        main(['expand', 'photos', 'o', '--method', 'best', '--debug'])


def test_fine_tuned_images_need_a_test_part(way):
    "Cross-validation would cheat, and says so before any training"
    home, _ = way
    good(home, 'expand', 'photos', 'tuned', *FAST, '--finetune-steps', 1)
    code, _, err = dreamda(home, 'train', 'photos', 'tuned', 'm')
    assert code == 1 and err.splitlines()[-1].startswith('Error: cross-validation would cheat')
    assert 'fine-tuned' in err and 'test/' in err


def test_stopped_by_hand(way, tmp_path):
    shutil.copytree(way[0] / 'photos', tmp_path / 'photos')
    args = ['expand', 'photos', 'out', '--batch-size', '1', '--expansion', '30']
    p = subprocess.Popen(
        [sys.executable, '-m', 'dreamda.app.cli', *args],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore the signal
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while len(list(tmp_path.glob('out/*/*.png'))) < 5 and p.poll() is None:
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=120)
    assert p.returncode == 130 and 'Traceback' not in err and 'command continues' in err, err
    lines = (tmp_path / 'out' / 'metadata.jsonl').read_text().splitlines()
    assert 0 < len(lines) < 30 * IMAGES


def test_several_processes(way, tmp_path):
    shutil.copytree(way[0] / 'photos', tmp_path / 'photos')
    launch = [sys.executable, '-m', 'accelerate.commands.launch', '--cpu', '--num_processes', '2']
    command = ['-m', 'dreamda.app.cli', 'expand', 'photos', 'out', *map(str, FAST)]
    p = subprocess.run(
        launch + command,
        cwd=tmp_path,
        env={**os.environ, 'TQDM_DISABLE': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert p.returncode == 0, p.stderr[-3000:]
    assert p.stdout.count(f'out: {2 * IMAGES} synthetic images') == 1


# ---- what a command and the package load


def loaded_by(code, cwd):
    "The packages in memory after some Python, and the seconds it took"
    start = time.perf_counter()
    code = f'import sys\n{code}\nprint("LOADED", *sys.modules)'
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=cwd)
    assert p.returncode == 0, p.stderr
    modules = p.stdout.split('LOADED')[1].split()
    return {name.split('.')[0] for name in modules}, time.perf_counter() - start


RUN = """
from dreamda.app.cli import main
try:
    main({args})
except SystemExit:
    pass
"""


@pytest.mark.parametrize(
    'args, unused',
    [
        (['--help'], {'torch', 'diffusers', 'transformers', 'timm', 'pandas', 'sklearn'}),
        (['expand', '--help'], {'torch', 'diffusers', 'transformers', 'timm', 'pandas'}),
        (['datasets'], {'diffusers', 'transformers', 'timm'}),
        (['train', 'none', 'out', 'model'], {'peft', 'seaborn'}),
        (['report', 'none'], {'diffusers', 'peft', 'seaborn'}),
    ],
)
def test_a_command_loads_only_what_it_needs(args, unused, tmp_path):
    loaded, _ = loaded_by(RUN.format(args=args), tmp_path)
    assert not loaded & unused


def test_the_package_is_lazy(tmp_path):
    heavy = {'torch', 'diffusers', 'transformers', 'timm', 'pandas', 'numpy'}
    loaded, _ = loaded_by('import dreamda', tmp_path)
    assert not loaded & heavy
    names = 'load_images, load_pipeline, get_method, expand, label, train, measure, report'
    for first in ('', 'import dreamda.measure.results\n'):
        code = f'{first}from dreamda import {names}\nassert all(map(callable, [{names}]))'
        loaded_by(code, tmp_path)


# ---- the page in a browser


class Addresses(HTMLParser):
    "Whatever an element fetches"

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        sources = ('src', 'srcset', 'poster', 'data')
        self.found += [v for k, v in attrs if k in sources or (k == 'href' and tag != 'a')]


def browse(page, *options):
    "The page as the browser understood it, and what its console said"
    flags = ['--headless=new', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr', '--v=0']
    flags += ['--host-resolver-rules=MAP * ~NOTFOUND', '--virtual-time-budget=3000']
    command = [BROWSER, *flags, *options, page.as_uri()]
    p = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return p.stdout, [line for line in p.stderr.splitlines() if 'CONSOLE' in line]


def with_script(html, script):
    "The page with a script of the test after its own, allowed by its policy"
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    html = html.replace("script-src '", f"script-src 'sha256-{allowed}' '")
    return html.replace('</body>', f'<script>{script}</script></body>')


needs_browser = pytest.mark.skipif(
    not BROWSER, reason='no chromium, chromium-browser or google-chrome on this machine'
)


@needs_browser
def test_page_in_a_browser(way, tmp_path):
    home, _ = way
    page = home / 'out' / 'report.html'
    dom, console = browse(page, '--dump-dom')
    assert 'did the synthetic images help?' in dom
    assert dom.count('<img') > 3 * IMAGES and dom.count('<h2>') == 8
    assert not console and not [a for a in Addresses(dom).found if not a.startswith('data:')]
    for width in (1200, 500):
        shot = tmp_path / f'{width}.png'
        browse(page, f'--window-size={width},900', f'--screenshot={shot}')
        assert shot.stat().st_size > 20_000
    bad = '<main><img src="https://example.org/a.png"><script>console.error(1)</script>'
    (tmp_path / 'bad.html').write_text(page.read_text().replace('<main>', bad))
    dom, console = browse(tmp_path / 'bad.html', '--dump-dom')
    assert console and 'https://example.org/a.png' in Addresses(dom).found, 'this test can fail'


REJECT = """
const saved = [];
URL.createObjectURL = blob => { saved.push(blob); return '#saved'; };
const buttons = [...document.querySelectorAll('.pick')];
const files = [...new Set(buttons.map(button => button.dataset.file))].sort();
buttons.find(button => button.dataset.file === files[1]).click();
buttons.find(button => button.dataset.file === files[0]).click();
buttons.find(button => button.dataset.file === files[2]).click();
buttons.find(button => button.dataset.file === files[2]).click();
document.querySelector('.bar button').click();
saved[0].text().then(text => { document.title = 'SAVED ' + text.trim().split('\\n').join(' '); });
"""


@needs_browser
def test_images_are_rejected_on_the_page(way, tmp_path):
    "Two are rejected, a third one is taken back; the saved list names the two, in order"
    home, _ = way
    html = (home / 'out' / 'report.html').read_text()
    (tmp_path / 'page.html').write_text(with_script(html, REJECT))
    dom, console = browse(tmp_path / 'page.html', '--dump-dom')
    first, second = sorted(pd.read_csv(home / 'out' / 'labels.csv').file_name)[:2]
    assert f'<title>SAVED {first} {second}</title>' in dom, console
    assert '2 rejected' in dom
    pressed = re.findall(r'aria-pressed="true"[^>]*data-file="([^"]+)"', dom)
    assert set(pressed) == {first, second}
    # a button is focusable, and Enter and Space click it
    assert dom.count('<button class="pick" type="button"') >= 2 * IMAGES
