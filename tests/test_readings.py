"What the readings of the experiments and the start page quote is what the files in results/ say"

import json
import re
from pathlib import Path

import pytest

from dreamda.measure.results import load_summary, lookup

ROOT = Path(__file__).parent.parent
READINGS = ('accuracy', 'backbones', 'labels', 'ablation', 'claims')
INTERVAL = re.compile(r'([+-]?\d+\.\d) \(([+-]?\d+\.\d) to ([+-]?\d+\.\d)\)')
SOURCE = re.compile(r'<!-- (\S+\.csv) (\w+): (.*?) -->')


def reading(name):
    cells = json.loads((ROOT / 'nbs' / f'{name}.ipynb').read_text())['cells']
    return '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')


@pytest.mark.parametrize('name', READINGS)
def test_quoted_intervals(name):
    "Each interval names its file, column and row, and is what stands there"
    text = reading(name)
    quoted = re.findall(r'[+-]?\d+\.\d\s+to\s+[+-]?\d+\.\d\)?(.{0,4})', text)
    assert quoted and all(after == '<!--' for after in quoted), 'an interval names no source'
    for m in INTERVAL.finditer(text):
        path, column, row = SOURCE.match(text, m.end()).groups()
        row = dict(part.split('=', 1) for part in row.split('; '))
        columns = (column, f'{column}_low', f'{column}_high')
        found = [100 * lookup(ROOT / 'results' / path, c, **row) for c in columns]
        assert [float(v) for v in m.groups()] == pytest.approx(found, abs=0.0501), m[0]


def test_a_wrong_quotation_is_seen():
    "A figure of another row, such as would stand somewhere among so many intervals"
    path = ROOT / 'results' / 'accuracy' / 'summary.csv'
    other = 100 * lookup(path, 'gain', data='digits', method='CutMix', against='Original')
    text = reading('accuracy')
    m = INTERVAL.search(text)
    assert abs(other - float(m[1])) > 0.0501


def test_the_table_of_the_start_page():
    "It is made from stored outputs: they are of the results as they are now"
    text = (ROOT / 'README.md').read_text()
    photos = load_summary(ROOT / 'results' / 'photos')
    digits = load_summary(ROOT / 'results' / 'accuracy').query("data == 'digits'")
    for table in (digits, photos):
        for row in table.query("per_class == 5 and against == 'Original'").itertuples():
            if row.method not in ('RandAugment', 'Stable Diffusion', 'SDEdit', 'DreamDA'):
                continue
            star = '*' if row.p_holm < 0.05 else ' '
            gain, low, high = (f'{100 * v:+.1f}' for v in (row.gain, row.gain_low, row.gain_high))
            line = next(l for l in text.splitlines() if l.startswith(f'| {row.data} '))
            assert f'{gain} ({low} to {high}){star}' in line, row
