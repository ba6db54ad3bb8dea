"The command line as a user meets it: programs of their own, in a folder of their own; and the page in a browser"

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser

import datasets
import pandas as pd
import pytest
import torchvision

from dreamda.classify.models import load_classifier
from dreamda.classify.prediction import predict
from dreamda.data.folders import load_folder

BROWSER = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
SMALL = ['--num-inference-steps', '2', '--expansion', '2']


def dreamda(cwd, *args, timeout=300):
    "Exit code, standard output, standard error"
    p = subprocess.run(
        [sys.executable, '-m', 'dreamda.app.cli', *map(str, args)],
        cwd=cwd,
        env={**os.environ, 'HF_HUB_OFFLINE': '1', 'TQDM_DISABLE': '1'},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return p.returncode, p.stdout, p.stderr


def good(cwd, *args):
    code, out, err = dreamda(cwd, *args)
    assert code == 0, f'dreamda {args} ended with {code}:\n{err[-3000:]}'
    return out


@pytest.fixture(scope='module')
def way(tmp_path_factory):
    "Everything the README says, but smaller: ten digits, five photos of each"
    home, said = tmp_path_factory.mktemp('home'), {}

    def go(*args):
        said[args[0]] = good(home, *args)

    go('datasets', 'digits', 'photos', '--per-class', '5')
    (home / 'settings.yaml').write_text(
        'num-inference-steps: 2\nexpansion: 9\nupdates: 6\nflip: false\nworkers: 1\ntau: 0.5\n'
    )
    go('expand', 'photos', 'out', '--config', 'settings.yaml', '--expansion', '2')
    go('label', 'photos', 'out', '--config', 'settings.yaml')
    go('train', 'photos', 'out', 'model', '--seeds', '1', '--config', 'settings.yaml')
    go('measure', 'photos', 'out', '--config', 'settings.yaml')
    go('report', 'out')
    return home, said


def test_the_whole_way(way):
    home, said = way
    out = home / 'out'
    assert 'out: 100 images made from 50' in said['expand'] and re.search(
        r'\d+ of 100 images accepted by amst', said['label']
    )
    assert (
        'over 1 repeat of 5-fold cross-validation' in said['train']
        and 'labels by amst' in said['train']
        and 'left out: FID' in said['measure']
    )
    run, labels, accuracy = (
        json.loads((out / f'{n}.json').read_text()) for n in ('run', 'labels', 'accuracy')
    )
    assert (run['run']['expansion'], run['run']['settings']['num_inference_steps']) == (2, 2), (
        'the command line wins over the file'
    )
    assert (
        labels['recipe']['label_settings'] == {'tau': 0.5}
        and accuracy['settings']['recipe'] == labels['recipe']
    ), 'what was labelled is what was judged'
    frame = pd.read_csv(out / 'predictions.csv')
    assert len(frame) == 3 * 50 and frame.groupby('method').image.nunique().tolist() == [50] * 3
    history = [json.loads(l) for l in (out / 'history.jsonl').read_text().splitlines()]
    assert [h['command'].split()[1] for h in history] == [
        'expand',
        'label',
        'train',
        'measure',
    ] and all(h['data'] == '../photos' for h in history)


def test_others_read_what_is_left(way):
    "Results beside the images disturb nobody"
    home, _ = way
    assert len(torchvision.datasets.ImageFolder(home / 'out')) == 100
    assert (
        len(
            datasets.load_dataset(
                'imagefolder',
                data_dir=str(home / 'out'),
                split='train',
                cache_dir=str(home / 'cache'),
            )
        )
        == 100
    )


def test_the_classifier_can_be_used(way):
    home, _ = way
    model, classes = load_classifier(home / 'model')
    assert classes == load_folder(home / 'photos').classes and predict(
        model, load_folder(home / 'photos'), device='cpu'
    ).shape == (50, 10)


def test_made_again_and_continued(way, tmp_path):
    home, _ = way
    assert 'again: 100 images' in good(
        home, 'expand', 'photos', 'again', '--from-run', 'out/run.json'
    )
    assert (home / 'again' / 'metadata.jsonl').read_bytes() == (
        home / 'out' / 'metadata.jsonl'
    ).read_bytes()
    shutil.copytree(home / 'out', tmp_path / 'out')
    shutil.copytree(home / 'photos', tmp_path / 'photos')
    assert '50 images' in good(
        tmp_path,
        'expand',
        'photos',
        'out',
        '--overwrite',
        '--num-inference-steps',
        2,
        '--expansion',
        1,
    )
    assert {p.name for p in (tmp_path / 'out').glob('*.*')} - {'.lock-0'} == {
        'run.json',
        'metadata.jsonl',
        'history.jsonl',
    }, 'results of images that are gone'


def test_dry_runs_write_nothing(way):
    home, _ = way
    before = sorted(home.rglob('*'))
    assert re.search(
        r'500 images would take about \d+ seconds here and [\d.]+ MiB',
        good(home, 'expand', 'photos', 'new', '--dry-run', '--num-inference-steps', 2),
    )
    assert '45 trainings would take' in good(home, 'train', 'photos', 'out', 'new', '--dry-run')
    assert sorted(home.rglob('*')) == before


def test_errors_are_one_line(way):
    home, _ = way
    code, out, err = dreamda(home, 'expand', 'photos', 'o', '--method', 'best')
    assert (code, out) == (1, '') and re.fullmatch(
        r"Error: unknown method 'best': one of .*\n", err
    )
    code, out, err = dreamda(home, 'expand', 'photos', 'o', '--method', 'best', '--debug')
    assert code == 1 and 'Traceback' in err and "ValueError: unknown method 'best'" in err


def test_fine_tuned_images_need_a_test_part(way):
    "Cross-validation would cheat, and says so before any training"
    home, _ = way
    good(home, 'expand', 'photos', 'tuned', *SMALL, '--finetune-steps', 1)
    code, out, err = dreamda(home, 'train', 'photos', 'tuned', 'm')
    assert (
        code == 1
        and 'would cheat' in err
        and 'fine-tuned' in err
        and 'test/' in err
        and err.count('\n') == 1
    ), err


def test_stopped_by_hand(way, tmp_path):
    shutil.copytree(way[0] / 'photos', tmp_path / 'photos')
    p = subprocess.Popen(
        [sys.executable, '-m', 'dreamda.app.cli', 'expand', 'photos', 'out', '--batch-size', '5'],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # a shell's background jobs are deaf to it
    while len(list(tmp_path.glob('out/*/*.png'))) < 5 and p.poll() is None:
        time.sleep(0.1)
    p.send_signal(signal.SIGINT)
    _, err = p.communicate(timeout=60)
    assert p.returncode == 130 and 'Traceback' not in err and 'goes on where it was' in err, err
    assert 0 < len((tmp_path / 'out' / 'metadata.jsonl').read_text().splitlines()) < 500


def test_several_processes(way, tmp_path):
    shutil.copytree(
        way[0] / 'photos',
        tmp_path / 'photos',
        ignore=lambda folder, names: [n for n in sorted(names) if n.endswith('.png')][1:],
    )
    launch = [
        sys.executable,
        '-m',
        'accelerate.commands.launch',
        '--cpu',
        '--num_processes',
        '2',
        '-m',
        'dreamda.app.cli',
        'expand',
        'photos',
        'out',
        *SMALL,
    ]
    p = subprocess.run(
        launch,
        cwd=tmp_path,
        env={**os.environ, 'TQDM_DISABLE': '1'},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert p.returncode == 0 and p.stdout.count('20 images made from 10') == 1, p.stderr[-3000:]


# ---- the page in a browser


class Addresses(HTMLParser):
    "Whatever an element fetches"

    def __init__(self, html):
        super().__init__()
        self.found = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found += [
            v
            for k, v in attrs
            if k in ('src', 'srcset', 'poster', 'data') or (k == 'href' and tag != 'a')
        ]


def browse(page, *options):
    "The page as the browser understood it, and what its console said"
    p = subprocess.run(
        [
            BROWSER,
            '--headless=new',
            '--no-sandbox',
            '--disable-gpu',
            '--enable-logging=stderr',
            '--v=0',
            '--host-resolver-rules=MAP * ~NOTFOUND',
            '--virtual-time-budget=3000',
            *options,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    return p.stdout, [l for l in p.stderr.splitlines() if 'CONSOLE' in l]


@pytest.mark.skipif(
    not BROWSER, reason='no chromium, chromium-browser or google-chrome on this machine'
)
def test_page_in_a_browser(way, tmp_path):
    home, _ = way
    page = home / 'out' / 'report.html'
    dom, console = browse(page, '--dump-dom')
    assert (
        'did the synthetic images help?' in dom
        and dom.count('<img') > 50
        and dom.count('<h2>') == 8
    )
    assert not console and not [a for a in Addresses(dom).found if not a.startswith('data:')]
    for width in (1200, 500):
        browse(page, f'--window-size={width},900', f'--screenshot={tmp_path}/{width}.png')
        assert (tmp_path / f'{width}.png').stat().st_size > 20_000
    (tmp_path / 'bad.html').write_text(
        page.read_text().replace(
            '<main>', '<main><img src="https://example.org/a.png"><script>console.error(1)</script>'
        )
    )
    dom, console = browse(tmp_path / 'bad.html', '--dump-dom')
    assert console and 'https://example.org/a.png' in Addresses(dom).found, 'this test can fail'
