"That a run loses nothing and makes the same images, whatever happens to it"

import csv
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from pathlib import Path

import datasets
import numpy as np
import pytest
import timm.data
import torch
import torchvision
import webdataset
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor

import dreamda.expansion.checked as checked
import dreamda.expansion.expand as module
from dreamda.data.datasets import load_data
from dreamda.data.folders import load_folder
from dreamda.data.images import Images
from dreamda.diffusion.checkpoints import TINY
from dreamda.diffusion.latents import to_pil
from dreamda.diffusion.methods import get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.diffusion.variants import sample_variants
from dreamda.expansion.checked import REDRAWS, in_fp32
from dreamda.expansion.expand import expand_images
from dreamda.expansion.record import load_synthetic, read_metadata
from dreamda.expansion.repeat import expand_from_run
from dreamda.expansion.writer import SAVE_OPTIONS
from dreamda.measure.provenance import provenance

torch.set_num_threads(1)
METHOD, KILLS = (
    get_method('dreamda', num_inference_steps=2),
    int(os.environ.get('KILLS', 10)),
)  # `make soak` sets KILLS


@pytest.fixture(scope='module')
def pipe():
    return load_pipeline('tiny', device='cpu')


@pytest.fixture(scope='module')
def seeds(tmp_path_factory):
    "Eight digits of three classes, as files"
    root, digits = tmp_path_factory.mktemp('seeds'), load_data('digits').val
    for i in [i for i, t in enumerate(digits.targets) if t < 3][::20]:
        (root / digits.keys[i]).parent.mkdir(exist_ok=True)
        digits[i][0].save(root / digits.keys[i])
    return load_folder(root)


def go(images, out, pipe, **kw):
    return expand_images(images, out, pipe, METHOD, **dict(expansion=2, batch_size=4) | kw)


@pytest.fixture(scope='module')
def whole(seeds, pipe, tmp_path_factory):
    "A run that nothing happened to"
    return go(seeds, tmp_path_factory.mktemp('whole') / 'out', pipe).root


def visible(out):
    return sorted(
        p.relative_to(out).as_posix() for p in out.rglob('*') if not p.name.startswith('.lock-')
    )


def plain_metadata(out):
    "Metadata lines without the places in shards"
    places = ('shard', 'offset', 'bytes')
    return [{k: v for k, v in l.items() if k not in places} for l in read_metadata(out)]


def differing(out, reference):
    "Files whose pixels differ by more than one grey level; the metadata must be the same"
    a, b = (
        load_synthetic(
            o, [str(c) for c in json.loads((o / 'run.json').read_text())['inputs']['classes']]
        )
        for o in (out, reference)
    )
    assert plain_metadata(out) == plain_metadata(reference)
    return [
        k
        for i, k in enumerate(a.keys)
        if np.abs(np.asarray(a[i][0]).astype(int) - np.asarray(b[i][0])).max() > 1
    ]


def assert_same(out, reference):
    assert visible(out) == visible(reference) and not differing(out, reference)


def forked(f, *args, **kw):
    "In a process of its own"
    p = multiprocessing.get_context('fork').Process(target=f, args=args, kwargs=kw)
    p.start()
    return p


# ---- the same result whatever the way


@pytest.mark.parametrize('way', ['batch of 1', 'batch of 64', 'other order', 'in two parts'])
def test_same_images(way, seeds, pipe, whole, tmp_path):
    kw = {'batch of 1': dict(batch_size=1), 'batch of 64': dict(batch_size=64)}.get(way, {})
    if way == 'in two parts':
        go(seeds.subset([5, 1, 2]), tmp_path / 'out', pipe)
    go(
        seeds.subset([3, 0, 7, 1, 6, 2, 5, 4]) if way == 'other order' else seeds,
        tmp_path / 'out',
        pipe,
        **kw,
    )
    assert_same(tmp_path / 'out', whole)


SCRIPT = """
import sys, torch
torch.set_num_threads(1)
from dreamda.data.folders import load_folder
from dreamda.diffusion.methods import get_method
from dreamda.diffusion.pipeline import load_pipeline
from dreamda.expansion.expand import expand_images
from dreamda.expansion.locks import processes
from dreamda.expansion.writer import Writer

write = Writer.write


def noted(self, checked):
    with open('made-by-{}-of-{}'.format(*processes()), 'a') as file:
        file.writelines(self.plan.file_name(v) + '\\n' for v, _ in checked.good)
    write(self, checked)


Writer.write = noted
method = get_method('dreamda', num_inference_steps=int(sys.argv[3]))
try:
    made = expand_images(
        load_folder(sys.argv[1]), sys.argv[2], load_pipeline('tiny'), method, 2, batch_size=4
    )
except ValueError as e:
    sys.exit(str(e))
assert len(made) == 2 * 8, len(made)  # for every process
"""


def test_many_processes(seeds, whole, run, tmp_path):
    "Two processes make everything; three go on from less than that; and all refuse other settings"
    (tmp_path / 'go.py').write_text(SCRIPT)
    env = dict(
        ACCELERATE_USE_CPU='true',
        CUDA_VISIBLE_DEVICES='',
        OMP_NUM_THREADS='1',
        PYTHONPATH=os.pathsep.join(sys.path),
    )

    def shares(n):
        made = [(tmp_path / f'made-by-{r}-of-{n}').read_text() for r in range(n)]
        return [set(names.splitlines()) for names in made]

    run(
        'accelerate',
        'launch',
        '--multi_gpu',
        '--num_processes',
        2,
        '--num_machines',
        1,
        '--mixed_precision',
        'no',
        '--dynamo_backend',
        'no',
        '--main_process_port',
        0,
        'go.py',
        seeds.root,
        'out',
        2,
        **env,
    )
    assert_same(tmp_path / 'out', whole)
    a, b = shares(2)
    assert a and b and not a & b and len(a | b) == 16
    lines = (tmp_path / 'out' / 'metadata.jsonl').read_bytes().splitlines(keepends=True)
    # As if killed: parts only, one line cut, one image without a line, one line without its image.
    (tmp_path / 'out' / 'metadata.jsonl').unlink()
    for r in range(2):
        (tmp_path / 'out' / f'metadata-{r}.jsonl').write_bytes(
            b''.join(lines[1:10:2] if r else lines[:10:2])[: -20 if r else None]
        )
    for l in lines[11:]:
        (tmp_path / 'out' / json.loads(l)['file_name']).unlink()
    (tmp_path / 'out' / json.loads(lines[0])['file_name']).unlink()
    run(
        'python',
        '-m',
        'torch.distributed.run',
        '--standalone',
        '--nproc-per-node',
        3,
        'go.py',
        seeds.root,
        'out',
        2,
        **env,
    )
    assert_same(tmp_path / 'out', whole)
    three = shares(3)
    assert (
        set.union(*three) == {json.loads(l)['file_name'] for l in [lines[0], *lines[9:]]}
        and sum(map(len, three)) == 8
    )


def test_a_worker_is_alone(seeds, pipe, whole, tmp_path, monkeypatch):
    "What a launched process starts for work of its own is not one of the launched ones"
    for k, v in dict(
        WORLD_SIZE='2', RANK='1', LOCAL_RANK='1', MASTER_ADDR='localhost', MASTER_PORT='1'
    ).items():
        monkeypatch.setenv(k, v)
    p = forked(go, seeds, tmp_path / 'out', pipe)
    p.join()
    assert p.exitcode == 0
    assert_same(tmp_path / 'out', whole)


# ---- faults


def places(out):
    "The file or the shard of each image of a run that may not have begun"
    lines = read_metadata(out) if out.exists() else []
    return {l['file_name']: out / l.get('shard', l['file_name']) for l in lines}


@pytest.mark.slow
@pytest.mark.parametrize('shard_size', [None, 3], ids=['files', 'shards'])
def test_killed(shard_size, seeds, pipe, whole, tmp_path):
    "At random moments; and continued until it ends"
    counts, rng, start = (
        dict(kills=0, runs=0, lost=0, duplicated=0, differing=0, kills_midway=0),
        random.Random(),
        time.time(),
    )
    forked(go, seeds, tmp_path / 'timed', pipe, shard_size=shard_size).join()
    taken = time.time() - start
    while counts['kills'] < -(-KILLS // 2):
        out, ended = tmp_path / str(counts['runs']), False
        while not ended:
            before = {f: (p, p.stat().st_mtime_ns) for f, p in places(out).items() if p.exists()}
            p = forked(go, seeds, out, pipe, shard_size=shard_size)
            p.join(rng.uniform(0, taken) if counts['kills'] < -(-KILLS // 2) else None)
            if ended := p.exitcode is not None:
                assert p.exitcode == 0
            else:
                p.kill()
                p.join()
                counts['kills'] += 1
            after = places(out)
            counts['duplicated'] += sum(
                after.get(f) == path and path.stat().st_mtime_ns != t
                for f, (path, t) in before.items()
                if path.exists()
            )  # made once more, though it was there
            counts['kills_midway'] += not ended and 0 < len(after) < 16
        counts['runs'] += 1
        files = [l['file_name'] for l in read_metadata(out)]
        counts['lost'] += 16 - len(files)
        counts['differing'] += len(differing(out, whole))
        if not shard_size:
            assert visible(out) == visible(whole)
        assert not [p for p in out.rglob('.*') if not p.name.startswith('.lock-')], (
            'something temporary is left'
        )
        shutil.rmtree(out)
    if record := os.environ.get('RECORD'):
        old = json.loads(Path(record).read_text()) if shard_size else {}
        Path(record).write_text(
            json.dumps(
                {k: v + old.get(k, 0) for k, v in counts.items()}
                | dict(
                    images_per_run=16,
                    moments='uniform in the time that a run takes',
                    single_files_and_shards='half each',
                    **provenance(),
                ),
                indent=1,
            )
            + '\n'
        )
    assert counts['lost'] == counts['duplicated'] == counts['differing'] == 0, counts


def said(path, f, *args, **kw):
    """With its standard error in a file, and with Ctrl-C on, which a shell turns off for what it
    runs in the background"""
    sys.stderr = path.open('w')
    signal.signal(signal.SIGINT, signal.default_int_handler)
    f(*args, **kw)


def some_made(out, p):
    "Wait until a process has made some of its images"
    while not (out.exists() and read_metadata(out)):
        assert p.is_alive()
        time.sleep(0.005)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM], ids=lambda n: n.name)
def test_stopped(number, seeds, pipe, whole, tmp_path):
    out, many = (
        tmp_path / 'out',
        Images(
            seeds.items * 4,
            [f'{k}{n}.png' for n in range(4) for k in seeds.keys],
            seeds.targets * 4,
            seeds.classes,
        ),
    )
    p = forked(said, tmp_path / 'said', go, many, out, pipe, batch_size=2)
    some_made(out, p)
    with pytest.raises(ValueError, match='another run is at work'):
        go(many, out, pipe)
    os.kill(p.pid, number)
    p.join()
    assert p.exitcode == (-signal.SIGTERM if number == signal.SIGTERM else 1)
    made = len(read_metadata(out))
    assert 0 < made < 64 and made % 2 == 0, 'whole batches'
    assert (
        f'{made} of 64 images are in {out}. The same call goes on'
        in (tmp_path / 'said').read_text()
    )
    assert (
        len([f for f in visible(out) if f.endswith('.png')]) == made
        and (out / 'metadata.jsonl').exists()
        and not list(out.rglob('*.tmp'))
    )


@pytest.fixture
def small_disk(tmp_path):
    "Mounts of 64 kB, if this user may mount"
    (tmp_path / 'disk').mkdir()

    def mount(*args):
        command = ['mount', *args, str(tmp_path / 'disk')]
        return subprocess.run(command, capture_output=True).returncode == 0

    if not mount('-t', 'tmpfs', '-o', 'size=64k', 'tmpfs'):
        pytest.skip('mounting is not allowed here')
    yield tmp_path / 'disk', lambda options: mount('-o', f'remount,{options}')
    subprocess.run(['umount', str(tmp_path / 'disk')], check=True)


def test_disk_full(small_disk, seeds, pipe, whole):
    disk, remount = small_disk
    with pytest.raises(
        OSError, match='No space left on device: .*What is there is whole: make room'
    ) as e:
        go(seeds, disk / 'out', pipe)
    assert e.value.errno == errno.ENOSPC
    kept = {
        f: (disk / 'out' / f).stat().st_mtime_ns
        for f in (l['file_name'] for l in read_metadata(disk / 'out'))
    }
    assert 0 < len(kept) < 16 and not list(disk.rglob('*.tmp'))
    remount('size=10m')
    go(seeds, disk / 'out', pipe)
    assert_same(disk / 'out', whole)
    assert all((disk / 'out' / f).stat().st_mtime_ns == t for f, t in kept.items())


def test_read_only(small_disk, seeds, pipe):
    disk, remount = small_disk
    go(seeds.subset([0]), disk / 'out', pipe)
    remount('ro')
    for out in ('out', 'other'):
        with pytest.raises(OSError, match='Read-only file system: .*cannot be written'):
            go(seeds, disk / out, pipe)
    assert len(read_metadata(disk / 'out')) == 2
    remount('rw')


def limited(*args):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
    with pytest.raises(OSError, match='What is there is whole'):
        go(*args)


def test_quota(seeds, pipe, whole, tmp_path):
    "No file may pass 1500 bytes, at which images or metadata stop; this needs no rights"
    p = forked(limited, seeds, tmp_path / 'out', pipe)
    p.join()
    assert p.exitcode == 0 and not list(tmp_path.rglob('*.tmp'))
    go(seeds, tmp_path / 'out', pipe)
    assert_same(tmp_path / 'out', whole)


def skipped(out):
    return {l['file']: l['reason'] for l in csv.DictReader((out / 'skipped.csv').open())}


def test_unreadable_midway(seeds, pipe, whole, tmp_path, monkeypatch):
    shutil.copytree(seeds.root, tmp_path / 'seeds')
    images, good = load_folder(tmp_path / 'seeds'), module.generate_checked
    broken, gone = images.items[4], images.items[5]

    def spoil(*args):
        broken.write_bytes(broken.read_bytes()[:100])
        gone.unlink(missing_ok=True)
        return good(*args)

    monkeypatch.setattr(module, 'generate_checked', spoil)
    with pytest.warns(UserWarning, match='skipped.csv'):
        assert len(go(images, tmp_path / 'out', pipe)) == 12
    assert set(skipped(tmp_path / 'out')) == {images.keys[4], images.keys[5]} and all(
        'cannot be read as an image' in r for r in skipped(tmp_path / 'out').values()
    )
    monkeypatch.undo()
    go(seeds, tmp_path / 'out', pipe)  # repaired
    assert_same(tmp_path / 'out', whole)


@pytest.mark.parametrize('always', [False, True], ids=['in half precision', 'always'])
def test_not_finite(always, seeds, tmp_path):
    pipe, tried = load_pipeline('tiny', device='cpu', dtype=torch.bfloat16), []
    go(seeds.subset(range(2)), tmp_path / 'half', pipe)
    vae, forward = pipe.vae, pipe.vae.decode

    def decode(z):
        out = forward(z)
        tried.append(vae.dtype)
        if always or vae.dtype == torch.bfloat16:
            out.sample[0] = float('nan')
        return out

    vae.decode = decode
    if always:
        with pytest.warns(UserWarning, match='skipped.csv'):
            go(seeds.subset(range(2)), tmp_path / 'out', pipe)
    else:
        go(seeds.subset(range(2)), tmp_path / 'out', pipe)
    assert (
        tried == [torch.bfloat16, torch.float32]
        and pipe.vae.dtype == pipe.unet.dtype == torch.bfloat16
    )
    names, first = (
        [l['file_name'] for l in read_metadata(tmp_path / 'half')],
        f'{seeds.keys[0][:-4]}-000.png',
    )
    assert [l['file_name'] for l in read_metadata(tmp_path / 'out')] == [
        n for n in names if not always or n != first
    ]
    if always:
        assert (
            set(skipped(tmp_path / 'out')) == {first}
            and not (tmp_path / 'out' / first).exists()
            and 'not finite' in skipped(tmp_path / 'out')[first]
        )
    else:
        vae.decode = forward
        with in_fp32(pipe):
            variants = sample_variants(METHOD, seeds, [(0, 0)])
            made = checked.generate(pipe, METHOD, seeds, variants, 4)
        assert (
            np.abs(
                np.asarray(to_pil(made)[0]).astype(int)
                - np.asarray(Image.open(tmp_path / 'out' / first))
            ).max()
            <= 1
        )


def test_overwrite_deletes_its_own_only(seeds, pipe, tmp_path):
    out = tmp_path / 'out'
    go(seeds, out, pipe, shard_size=3)
    (out / 'thesis.txt').write_text('precious')
    (out / 'zero').mkdir(exist_ok=True)
    (out / 'zero' / 'mine.png').write_bytes(b'my own')
    with pytest.raises(ValueError, match='shard_size: 3 there, None now.*overwrite=True'):
        go(seeds, out, pipe)
    with pytest.warns(UserWarning, match='thesis.txt, zero'):
        go(seeds.subset([7]), out, pipe, overwrite=True)
    assert visible(out) == sorted(
        {
            'metadata.jsonl',
            'run.json',
            'thesis.txt',
            'zero',
            'zero/mine.png',
            seeds.keys[7].split('/')[0],
            *(f'{seeds.keys[7][:-4]}-{v:03d}.png' for v in range(2)),
        }
    )
    outside = tmp_path / 'outside.png'
    outside.write_bytes(b'my own')
    (out / 'metadata-0.jsonl').write_text(json.dumps(dict(file_name='../outside.png')) + '\n')
    with pytest.raises(ValueError, match='outside'):
        go(seeds, out, pipe, overwrite=True)
    assert outside.exists()


# ---- inputs of the wild: what becomes of each


def write(image, **kw):
    return lambda p: image.save(p, **kw)


def exif(turn):
    e = Image.Exif()
    e[0x0112] = turn
    return e


noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def cut(p):
    noise.save(p)
    p.write_bytes(p.read_bytes()[:2000])


def bomb(p):  # claims 30000 x 30000 pixels
    noise.save(p)
    b = bytearray(p.read_bytes())
    b[16:24] = (30000).to_bytes(4, 'big') * 2
    b[29:33] = zlib.crc32(bytes(b[12:29])).to_bytes(4, 'big')
    p.write_bytes(b)


def loop(p):
    p.symlink_to(p.name)


USED, SKIPPED = 'used', 'skipped'
WILD = {
    'grey.png': (write(noise.convert('L')), USED),
    'palette.png': (write(noise.quantize(16)), USED),
    'palette.gif': (write(noise.quantize(16)), USED),
    'clear.png': (write(noise.convert('RGBA')), USED),
    'grey-alpha.png': (write(noise.convert('LA')), USED),
    'bilevel.png': (write(noise.convert('1')), USED),
    'cmyk.jpg': (write(noise.convert('CMYK')), USED),
    'sixteen.png': (
        write(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)),
        USED,
    ),
    'sixteen.tif': (
        write(Image.fromarray(np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27)),
        USED,
    ),
    'sideways.jpg': (write(noise, exif=exif(6)), USED),
    'moving.gif': (write(noise, save_all=True, append_images=[noise.rotate(90)]), USED),
    'moving.png': (write(noise, save_all=True, append_images=[noise.rotate(90)]), USED),
    'moving.webp': (write(noise, save_all=True, append_images=[noise.rotate(90)]), USED),
    'really-a-jpeg.png': (write(noise, format='jpeg'), USED),
    'CAPITAL.PNG': (write(noise), USED),
    'one-pixel.png': (write(Image.new('RGB', (1, 1))), USED),
    'ribbon.png': (write(Image.new('RGB', (3000, 1))), USED),
    'ünï-猫 \u2028🐈.png': (write(noise), USED),
    'x' * 251 + '.png': (write(noise), USED),
    'ü' * 125 + '.png': (write(noise), USED),
    "quote'\",;\n.png": (write(noise), USED),
    'dots.a.b.png': (write(noise), USED),
    '-rf.png': (write(noise), USED),
    'floats.tif': (write(Image.fromarray(np.ones((8, 8), np.float32))), USED),
    'cut.png': (cut, SKIPPED),
    'empty.png': (lambda p: p.touch(), SKIPPED),
    'bomb.png': (bomb, SKIPPED),
    'text.jpg': (lambda p: p.write_text('no image'), SKIPPED),
    'script.png': (
        lambda p: p.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'),
        SKIPPED,
    ),
    'notes.txt': (lambda p: p.write_text('no image'), SKIPPED),
    'table.csv': (lambda p: p.write_text('no image'), SKIPPED),
    'loop.png': (loop, SKIPPED),
    'dangling.png': (lambda p: p.symlink_to('nowhere.png'), SKIPPED),
    'outside.png': (lambda p: p.symlink_to('/etc/hostname'), SKIPPED),
    'around': (lambda p: p.symlink_to('..'), SKIPPED),
    'folder.png': (lambda p: p.mkdir(), SKIPPED),
    os.fsdecode(b'latin-\xfc.png'): (write(noise), SKIPPED),
    '.hidden.png': (lambda p: p.write_text('no image'), 'passed over'),
}


@pytest.fixture(scope='module')
def wild(pipe, tmp_path_factory):
    root = tmp_path_factory.mktemp('wild')
    (root / 'seeds' / 'cat').mkdir(parents=True)
    noise.save(root / 'seeds' / 'cat' / 'plain.png')
    (root / 'seeds' / 'around').symlink_to('.')
    for name, (make, _) in WILD.items():
        make(root / 'seeds' / 'cat' / name)
    images = load_folder(root / 'seeds')
    with pytest.warns(UserWarning, match='skipped.csv'):
        expand_images(images, root / 'out', pipe, get_method('reconstruction'), 1, batch_size=16)
    return (
        images,
        {l['seed_image']: root / 'out' / l['file_name'] for l in read_metadata(root / 'out')},
        skipped(root / 'out'),
    )


@pytest.mark.parametrize('name', WILD, ids=ascii)
def test_wild(name, wild):
    images, made, left_out = wild
    key, outcome = f'cat/{name}', WILD[name][1]
    assert (key in made) == (outcome == USED) and (
        key.encode(errors='backslashreplace').decode() in left_out
    ) == (outcome == SKIPPED)
    if outcome == USED:
        assert Image.open(made[key]).size == (32, 32) and len(made[key].name.encode()) < 200


def test_wild_folders(wild, seeds, pipe, tmp_path):
    images, made, left_out = wild
    assert (
        images.classes == ['cat'] and 'around' in left_out and len(images) == len(set(images.keys))
    )
    for bad in ('..', '/etc', 'a/b', ''):
        with pytest.raises(ValueError, match='cannot be a folder name'):
            go(Images([noise], [f'{bad}/x.png'], [0], [bad]), tmp_path / 'out', pipe)
    assert not (tmp_path / 'out').exists()
    pixels = np.asarray(noise)
    many = Images(
        [pixels] * 3000,
        [f'{i}/x.png' for i in range(3000)],
        list(range(3000)),
        [str(i) for i in range(3000)],
    )
    start = time.time()
    made = expand_images(
        many.subset([2999, 5]), tmp_path / 'many', pipe, get_method('reconstruction'), 1
    )
    assert made.targets == [2999, 5] and time.time() - start < 20
    assert (
        len(
            expand_images(many.subset([7]), tmp_path / 'one', pipe, get_method('reconstruction'), 1)
        )
        == 1
    )  # one image
    odd = Images(
        [pixels] * 2, ['cat/../../../x.png', '/cat/y.png'], [0, 0], ['cat']
    )  # a key gives a stem, never a folder
    assert expand_images(odd, tmp_path / 'odd', pipe, get_method('reconstruction'), 1).keys == [
        'cat/x-000.png',
        'cat/y-000.png',
    ]


# ---- what others read


@pytest.mark.parametrize('format', SAVE_OPTIONS)
def test_formats(format, seeds, pipe, whole, tmp_path):
    "Loads with the libraries that people use"
    out = tmp_path / 'out'
    made = go(seeds, out, pipe, format=format)
    assert {Image.open(p).format for p in made.items} == {
        dict(jpg='JPEG').get(format, format.upper())
    }
    if format == 'webp':
        assert np.array_equal(
            np.asarray(made[3][0]), np.asarray(load_synthetic(whole, made.classes)[3][0])
        ), 'lossless'
    names = [k.split('/')[0] for k in made.keys]
    found = datasets.load_dataset(
        'imagefolder', data_dir=str(out), split='train', cache_dir=str(tmp_path / 'cache')
    )
    assert (
        len(found) == 16
        and sorted(found['class']) == sorted(names)
        and found[0]['image'].size == (32, 32)
        and set(found['seed_image']) == set(seeds.keys)
    )
    tv = torchvision.datasets.ImageFolder(out)
    assert sorted(tv.classes[t] for _, t in tv) == sorted(names)
    if format == 'webp':
        timm.data.add_img_extensions('.webp')  # timm does not look for it by itself
    assert len(timm.data.create_dataset('', root=str(out))) == 16


def test_shards(seeds, pipe, whole, tmp_path):
    made = go(seeds, tmp_path / 'out', pipe, shard_size=5)
    tars = sorted(map(str, (tmp_path / 'out').glob('*.tar')))
    assert (
        len(tars) == 4
        and not [p for p in (tmp_path / 'out').rglob('*.png')]
        and not differing(tmp_path / 'out', whole)
    )
    samples = list(
        webdataset.WebDataset(tars, shardshuffle=False).decode('pil').to_tuple('png', 'cls', 'json')
    )
    assert sorted((j['file_name'], c) for _, c, j in samples) == list(zip(made.keys, made.targets))
    assert all(
        np.array_equal(np.asarray(im), np.asarray(made[made.keys.index(j['file_name'])][0]))
        for im, _, j in samples
    )
    found = datasets.load_dataset(
        'webdataset', data_files=tars, split='train', cache_dir=str(tmp_path / 'cache')
    )
    assert len(found) == 16 and found[0]['png'].size == (32, 32)
    assert (
        len(
            torch.utils.data.DataLoader(
                made, num_workers=1, collate_fn=list, multiprocessing_context='spawn'
            )
        )
        == 16
    )


def test_again_from_its_record(seeds, pipe, whole, tmp_path):
    expand_from_run(
        whole / 'run.json', seeds, tmp_path / 'out', batch_size=4
    )  # loads the model by its name
    assert_same(tmp_path / 'out', whole)
    other = load_pipeline('tiny', device='cpu')
    with torch.no_grad():
        other.vae.decoder.conv_out.bias += 0.1
    with pytest.raises(ValueError, match='the model is not that of .*vae: '):
        expand_from_run(whole / 'run.json', seeds, tmp_path / 'other', other)


# ---- safety


def test_no_pickles(tmp_path):
    for part, name in dict(
        unet='diffusion_pytorch_model', vae='diffusion_pytorch_model', text_encoder='model'
    ).items():
        folder = shutil.copytree(TINY, tmp_path / part)
        (folder / part / f'{name}.safetensors').unlink()
        torch.save(
            {},
            folder
            / part
            / f'{name.replace("model", "pytorch_model") if part == "text_encoder" else name}.bin',
        )
        with pytest.raises(ValueError, match=f'pickled weights .{part}/.*can run any code'):
            load_pipeline(folder, device='cpu')
    torch.save({}, tmp_path / 'model.ckpt')
    with pytest.raises(ValueError, match='pickled weights|a pickle'):
        load_pipeline(tmp_path / 'model.ckpt', device='cpu')


@pytest.mark.parametrize('where', ['pipeline', 'unet'])
def test_no_remote_code(where, tmp_path):
    folder = shutil.copytree(TINY, tmp_path / 'model')
    index = json.loads((folder / 'model_index.json').read_text())
    index |= (
        dict(_class_name=['mine', 'Mine']) if where == 'pipeline' else dict(unet=['mine', 'Mine'])
    )
    (folder / 'model_index.json').write_text(json.dumps(index))
    base = 'StableDiffusionPipeline' if where == 'pipeline' else 'UNet2DConditionModel'
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom diffusers import {base}\n"
    for path in (folder / 'mine.py', folder / 'unet' / 'mine.py'):
        path.write_text(f'{code}class Mine({base}): pass\n')
    with pytest.raises(ValueError):
        load_pipeline(folder, device='cpu')
    assert not (tmp_path / 'ran').exists()


def test_flagged_images(seeds, tmp_path):
    "Drawn again, and reported if no draw will do; nothing black"
    pipe = load_pipeline('tiny', device='cpu')
    config = CLIPConfig(
        projection_dim=8,
        vision_config=dict(
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        ),
    )
    torch.manual_seed(0)
    StableDiffusionSafetyChecker(config).save_pretrained(tmp_path / 'checker')
    checker = StableDiffusionSafetyChecker.from_pretrained(tmp_path / 'checker').eval()
    processor = CLIPImageProcessor(size=32, crop_size=32)
    made = go(seeds, tmp_path / 'plain', pipe)
    pixels = processor([made[i][0] for i in range(16)], return_tensors='pt').pixel_values
    scores = torch.nn.functional.cosine_similarity(
        checker.visual_projection(checker.vision_model(pixels)[1]), torch.ones(1, 8)
    )
    checker.concept_embeds_weights.data[:] = scores.sort().values[-4:-2].mean()  # three are above
    pipe.safety_checker, pipe.feature_extractor = checker, processor
    kept = go(seeds, tmp_path / 'out', pipe)
    left_out = skipped(tmp_path / 'out') if (tmp_path / 'out' / 'skipped.csv').exists() else {}
    before, after = (
        {l['file_name']: l['generator_seed'] for l in read_metadata(tmp_path / o)}
        for o in ('plain', 'out')
    )
    redrawn = {f for f in after if after[f] != before[f]}
    above = {k for k, s in zip(made.keys, scores) if s > checker.concept_embeds_weights[0]}
    assert (
        len(above) == 3
        and redrawn | set(left_out) == above
        and len(after) + len(left_out) == 16
        and redrawn
    )
    assert all(np.asarray(kept[i][0]).max() > 0 for i in range(len(kept)))
    checker.concept_embeds_weights.data[:] = -2  # all are flagged
    with pytest.warns(UserWarning, match='skipped.csv'):
        assert len(go(seeds.subset([0]), tmp_path / 'none', pipe)) == 0
    assert len(skipped(tmp_path / 'none')) == 2 and all(
        f'and {REDRAWS} other draws' in r for r in skipped(tmp_path / 'none').values()
    )
