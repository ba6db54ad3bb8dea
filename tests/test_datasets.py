"Datasets by name, each from a tiny copy of its layout on disk; nothing is downloaded"

import hashlib
import io
import re
import shutil
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import OxfordIIITPet

from dreamda.data.datasets import NAMED, load_data
from dreamda.data.splits import scarce_split
from dreamda.utils import announce


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    def urlopen(*args, **kwargs):
        raise OSError('no network')

    monkeypatch.setattr('urllib.request.urlopen', urlopen)
    monkeypatch.setenv('DREAMDA_DATA', str(tmp_path / 'home'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')


@pytest.fixture
def expect(monkeypatch):
    "Let a dataset have the size of its tiny copy"

    def expect(name, counts, classes):
        monkeypatch.setitem(
            NAMED, name, replace(NAMED[name], counts=counts, classes=classes, keys='')
        )

    return expect


def photo(path, seed=0, size=(130, 110)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)).save(
        path
    )


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


# ---- the paper's five


def sha(key):
    return hashlib.sha256(key.encode()).hexdigest()


def test_caltech101(tmp_path, expect):
    for name, n in dict(BACKGROUND_Google=3, Faces=33, anchor=31).items():
        for i in range(1, n + 1):
            photo(
                tmp_path / 'caltech101' / '101_ObjectCategories' / name / f'image_{i:04d}.jpg',
                i,
                (9, 8),
            )
    expect('caltech101', (60, None, 4), 2)
    source = load_data('caltech101', tmp_path)
    assert source.train.classes == ['Faces', 'anchor'] and np.bincount(
        source.test.targets
    ).tolist() == [3, 1]
    assert source.test.keys[3] == max(
        (f'anchor/image_{i:04d}.jpg' for i in range(1, 32)), key=sha
    ) and max(map(sha, source.train.keys[:30])) < min(map(sha, source.test.keys[:3]))
    assert not set(source.train.keys) & set(source.test.keys)


def test_stanford_cars(tmp_path, expect):
    base, names = (
        tmp_path / 'stanford_cars',
        ['AM General Hummer SUV 2000', 'Ram C/V Cargo Van Minivan 2012'],
    )
    (base / 'devkit').mkdir(parents=True)
    savemat(base / 'devkit' / 'cars_meta.mat', dict(class_names=np.array(names, object)))
    for split, path in dict(
        train=base / 'devkit' / 'cars_train_annos.mat', test=base / 'cars_test_annos_withlabels.mat'
    ).items():
        rows = [(f'{i:05d}.jpg', 1 + i % 2) for i in range(4)]
        for f, c in rows:
            photo(base / f'cars_{split}' / f, c, (8, 8))
        savemat(path, dict(annotations=np.array(rows, [('fname', object), ('class', 'u1')])))
    expect('stanford-cars', (4, None, 4), 2)
    source = load_data('stanford-cars', tmp_path)
    assert source.train.keys[
        1
    ] == 'Ram C-V Cargo Van Minivan 2012/00001.jpg' and source.train.targets == [0, 1, 0, 1]
    assert source.test[0][0].size == (8, 8)


def pets(base):
    for i in range(3):
        for breed in ('Abyssinian', 'great_pyrenees'):
            photo(base / 'images' / f'{breed}_{i}.jpg', i, (12, 9))
    for split, i in dict(trainval=(0, 1), test=(2,)).items():
        text(
            base / 'annotations' / f'{split}.txt',
            ''.join(
                f'{b}_{n} {t + 1} 1 1\n'
                for n in i
                for t, b in enumerate(('Abyssinian', 'great_pyrenees'))
            ),
        )


def test_pets(tmp_path, expect, capsys):
    pets(tmp_path / 'oxford-iiit-pet')
    expect('oxford-iiit-pet', (4, None, 2), 2)
    announce.cache_clear()
    for _ in range(2):
        source = load_data('oxford-iiit-pet', tmp_path)
    assert capsys.readouterr().err.count('CC BY-SA 4.0. Please cite Parkhi') == 1
    assert source.train.keys == [
        'Abyssinian/Abyssinian_0.jpg',
        'Great Pyrenees/great_pyrenees_0.jpg',
        'Abyssinian/Abyssinian_1.jpg',
        'Great Pyrenees/great_pyrenees_1.jpg',
    ]
    given, held_out = scarce_split(source, 1)
    assert len(given) == 2 and held_out is source.test


def test_pets_checksum(tmp_path, monkeypatch, expect):
    "torchvision downloads: an archive with another MD5 sum is refused, the right one unpacked"
    pets(tmp_path / 'made')
    archives = {}
    for name in ('images', 'annotations'):
        with tarfile.open(fileobj=(made := io.BytesIO()), mode='w:gz') as t:
            t.add(tmp_path / 'made' / name, name)
        archives[f'{name}.tar.gz'] = made.getvalue()
    monkeypatch.setattr('torchvision.datasets.utils._get_redirect_url', lambda url, max_hops: url)
    monkeypatch.setattr(
        'torchvision.datasets.utils._urlretrieve',
        lambda url, path, *a: Path(path).write_bytes(archives[url.split('/')[-1]]),
    )
    expect('oxford-iiit-pet', (4, None, 2), 2)
    with pytest.raises(
        FileNotFoundError,
        match='oxford-iiit-pet.*corrupted.*By hand: get it from https://www.robots',
    ):
        load_data('oxford-iiit-pet')
    urls = [
        (url, hashlib.md5(archives[url.split('/')[-1]]).hexdigest())
        for url, _ in OxfordIIITPet._RESOURCES
    ]
    monkeypatch.setattr(OxfordIIITPet, '_RESOURCES', urls)
    assert len(load_data('oxford-iiit-pet').train) == 4
    assert (tmp_path / 'home' / 'oxford-iiit-pet' / 'oxford-iiit-pet' / 'images').is_dir()


def test_stl10(tmp_path, expect):
    base, rng = tmp_path / 'stl10_binary', np.random.default_rng(0)
    base.mkdir()
    text(base / 'class_names.txt', 'airplane\nbird\n')
    for split, n in dict(train=4, test=2).items():
        (pixels := rng.integers(0, 256, (n, 3, 96, 96), np.uint8)).tofile(base / f'{split}_X.bin')
        (1 + np.arange(n, dtype=np.uint8) % 2).tofile(base / f'{split}_y.bin')
    expect('stl-10', (4, None, 2), 2)
    source = load_data('stl-10', tmp_path)
    assert source.train.classes == ['airplane', 'bird'] and source.test.keys == [
        'airplane/000000.png',
        'bird/000001.png',
    ]
    assert np.array_equal(np.asarray(source.test[1][0]), pixels[1].transpose(2, 1, 0)), (
        'stored by columns'
    )


@pytest.fixture
def archive(monkeypatch):
    "What torch downloads is a zip of a folder"

    def archive(folder):
        def download(url, path):
            archive.url = url
            with zipfile.ZipFile(path, 'w') as z:
                for f in sorted(folder.rglob('*')):
                    z.write(f, f.relative_to(folder))

        monkeypatch.setattr(torch.hub, 'download_url_to_file', download)

    return archive


def test_shenzhen(tmp_path, expect, archive):
    for i in range(1, 151):
        photo(
            tmp_path / 'zip' / 'ChinaSet_AllFiles' / 'CXR_png' / f'CHNCXR_{i:04d}_{i % 2}.png',
            i,
            (8, 8),
        )
    text(
        tmp_path / 'zip' / 'ChinaSet_AllFiles' / 'ClinicalReadings' / 'CHNCXR_0001_0.txt',
        'male 45yrs',
    )
    archive(tmp_path / 'zip')
    expect('shenzhen-tb', (18, None, 132), 2)
    source = load_data('shenzhen-tb')
    assert source.train.classes == ['normal', 'tuberculosis'] and np.bincount(
        source.test.targets
    ).tolist() == [66, 66]
    assert all(int(k[-5]) == t for k, t in zip(source.train.keys, source.train.targets))
    assert sorted(p.name for p in (tmp_path / 'home').iterdir()) == ['shenzhen-tb'], (
        'nothing is left of the download'
    )


# ---- the small sets


def keys(source):
    return {
        f'{part}/{k}'
        for part in ('train', 'val', 'test')
        if (p := getattr(source, part))
        for k in p.keys
    }


def test_clothing10(tmp_path, expect, archive):
    for i, (part, name) in enumerate(
        [(p, c) for p in ('train', 'validation', 'test') for c in ('longsleeve', 'hat')]
    ):
        photo(tmp_path / 'zip' / 'repo-1' / part / name / f'A-{i}.jpg', i)
    archive(tmp_path / 'zip')
    expect('clothing10', (2, 2, 2), 2)
    source = load_data('clothing10')
    assert (
        archive.url
        == 'https://github.com/alexeygrigorev/clothing-dataset-small/archive/11961516512414bf9f6c150a832cfd21b54a6b54.zip'
    )
    assert keys(source) == {
        'train/long_sleeve/a-0.jpg',
        'train/hat/a-1.jpg',
        'val/long_sleeve/a-2.jpg',
        'val/hat/a-3.jpg',
        'test/long_sleeve/a-4.jpg',
        'test/hat/a-5.jpg',
    }
    assert {source.train[i][0].size for i in range(2)} == {(96, 96)}
    shutil.rmtree(tmp_path / 'zip')
    assert keys(load_data('clothing10')) == keys(source), 'prepared once'
    assert keys(load_data('clothing10', tmp_path / 'home' / 'clothing10')) == keys(source), (
        'a local copy'
    )


def test_sign_digits10(tmp_path, expect, archive):
    for n, digit in [(4299, 0), (4300, 0), (4399, 7), (4400, 7), (5150, 9), (5250, 9)]:
        photo(tmp_path / 'zip' / 'r' / 'Dataset' / str(digit) / f'IMG_{n}.JPG', n)
    archive(tmp_path / 'zip')
    expect('sign_digits10', (3, None, 3), 3)
    assert keys(load_data('sign_digits10')) == {
        'train/sign_zero/img_4299.jpg',
        'test/sign_zero/img_4300.jpg',
        'test/sign_seven/img_4399.jpg',
        'train/sign_seven/img_4400.jpg',
        'test/sign_nine/img_5150.jpg',
        'train/sign_nine/img_5250.jpg',
    }


def test_caltech101_small(tmp_path, expect, archive):
    lists = dict(
        train=[f'Faces/image_{i:04d}.jpg' for i in range(1, 46)]
        + [
            'Faces_easy/image_0001.jpg',
            'Faces_easy/image_0046.jpg',
            'BACKGROUND_Google/image_0001.jpg',
        ],
        test=[f'Faces/image_{i:04d}.jpg' for i in range(46, 48)] + ['Faces_easy/image_0002.jpg'],
    )
    for part, lines in lists.items():
        text(tmp_path / 'zip' / 'r' / f'{part}.txt', '\n'.join(lines) + '\n')
        for i, line in enumerate(lines):
            photo(tmp_path / 'zip' / 'r' / '101_ObjectCategories' / line, i, (100, 97))
    archive(tmp_path / 'zip')
    expect('caltech101-small', (42, None, 3), 2)
    made = keys(load_data('caltech101-small'))
    assert {k for k in made if 'close_up' in k} == {
        'train/face_close_up/image_0001.jpg',
        'train/face_close_up/image_0002.jpg',
        'test/face_close_up/image_0046.jpg',
    }, 'with the photos they are cut from'
    last = sorted(
        (f'face/image_{i:04d}.jpg' for i in range(1, 46)),
        key=lambda k: hashlib.sha256(k.encode()).digest(),
    )[40:]
    assert not {f'train/{k}' for k in last} & made and len(made) == 45


def test_chest_xray_pneumonia(tmp_path, expect, archive):
    base = tmp_path / 'zip' / 'r' / 'data'
    for i in range(20):
        photo(
            base / ('train', 'test')[i % 2] / 'NORMAL' / f'IM-{i // 2:04d}-{i % 2:04d}.jpeg',
            i,
            (99, 98),
        )  # two of each patient, on both sides of the repository's split
    for i in range(30):
        photo(base / 'train' / 'PNEUMONIA' / f'person{i}_virus_{i}.jpeg', 100 + i, (99, 98))
    shutil.copy(
        base / 'train' / 'NORMAL' / 'IM-0000-0000.jpeg',
        base / 'test' / 'NORMAL' / 'NORMAL2-IM-0099-0001.jpeg',
    )  # an exact copy
    archive(tmp_path / 'zip')
    expect('chest_xray_pneumonia', (32, None, 8), 2)
    made = keys(load_data('chest_xray_pneumonia'))

    def patient(key):
        return re.search(r'im-\d+|person\d+', key)[0]

    assert not {patient(k) for k in made if k[:4] == 'test'} & {
        patient(k) for k in made if k[:5] == 'train'
    }
    by_hash = sorted(
        {f'NORMAL/IM-{i:04d}' for i in range(10)}, key=lambda g: hashlib.sha256(g.encode()).digest()
    )[:2]
    assert {patient(k).upper() for k in made if k.startswith('test/normal')} == {
        g[7:] for g in by_hash
    } and not any('normal2' in k for k in made)


# ---- Hugging Face


def test_hugging_face(tmp_path, monkeypatch):
    "The same images from an image folder, and from the library's own format"
    datasets = pytest.importorskip('datasets')
    monkeypatch.setattr(datasets.config, 'HF_DATASETS_CACHE', tmp_path / 'cache')
    for split, n in dict(train=3, test=2).items():
        for c in ('cat', 'dog'):
            for i in range(n):
                photo(tmp_path / 'folder' / split / c / f'{i}.png', i + ord(c[0]), (20, 12))
    datasets.load_dataset('imagefolder', data_dir=str(tmp_path / 'folder')).save_to_disk(
        tmp_path / 'saved'
    )
    sources = [
        load_data(f'hf:{tmp_path / kind}', tmp_path / f'{kind}-root')
        for kind in ('folder', 'saved')
    ]
    for source in sources:
        assert (
            source.train.keys
            == [
                'cat/000000.png',
                'cat/000001.png',
                'cat/000002.png',
                'dog/000003.png',
                'dog/000004.png',
                'dog/000005.png',
            ]
            and len(source.test) == 4
        )
        assert np.array_equal(
            np.asarray(source.train[4][0]),
            np.asarray(Image.open(tmp_path / 'folder' / 'train' / 'dog' / '1.png')),
        )
    shutil.rmtree(tmp_path / 'saved')
    assert (
        load_data(f'hf:{tmp_path}/saved', tmp_path / 'saved-root').train.keys
        == sources[0].train.keys
    ), 'written once'
    datasets.DatasetDict(train=datasets.Dataset.from_dict(dict(text=['a']))).save_to_disk(
        tmp_path / 'texts'
    )
    with pytest.raises(
        ValueError, match='one column of images and one of class labels, it has text'
    ):
        load_data(f'hf:{tmp_path}/texts')
    with pytest.raises(FileNotFoundError, match='no dataset hf:nobody/nothing'):
        load_data('hf:nobody/nothing')


# ---- what can go wrong


@pytest.mark.parametrize('name', NAMED)
def test_offline(name, tmp_path, monkeypatch):
    "Without a network: what failed, where a person finds it, and what must lie where"
    monkeypatch.setattr('torchvision.datasets.utils._get_redirect_url', lambda url, max_hops: url)
    with pytest.raises(FileNotFoundError) as e:
        load_data(name)
    said = str(e.value)
    assert (
        said.startswith(f'{name} is not in {tmp_path / "home" / name}')
        and NAMED[name].home in said
        and NAMED[name].layout in said
    ), said
    assert not list((tmp_path / 'home').glob('tmp*')), 'nothing half done is left'


def test_wrong_copies(tmp_path, monkeypatch):
    for part in ('train', 'test'):
        photo(tmp_path / part / 'hat' / '1.jpg', 0, (9, 9))
    found = r'\(1, None, 1\) train, val and test images of 1 classes'
    expected = r'clothing10 has \(3068, 341, 372\) of 10'
    with pytest.raises(ValueError, match=f'{found}, {expected}'):
        load_data('clothing10', tmp_path)
    monkeypatch.setitem(
        NAMED, 'clothing10', replace(NAMED['clothing10'], counts=(1, None, 1), classes=1)
    )
    with pytest.raises(ValueError, match='as many images as clothing10, but other ones'):
        load_data('clothing10', tmp_path)
    with pytest.raises(
        FileNotFoundError,
        match="no dataset 'clothing': .*digits, caltech101, .*clothing10.*hf:NAME",
    ):
        load_data('clothing')
    assert len(load_data(tmp_path).train) == 1, 'the folder itself is a dataset'
