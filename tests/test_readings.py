"The intervals that the readings of the experiments quote are those of the committed results"

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from dreamda.measure.results import show, summarize

ROOT, STUDIES = Path(__file__).parent.parent, ('accuracy', 'backbones', 'labels', 'ablation')


def reading(name):
    return '\n'.join(
        ''.join(c['source'])
        for c in json.loads((ROOT / 'nbs' / f'{name}.ipynb').read_text())['cells']
        if c['cell_type'] == 'markdown'
    )


QUOTED = {
    n: q
    for n in (*STUDIES, 'claims')
    if (q := re.findall(r'([+-]?\d+\.\d)\s+to\s+([+-]?\d+\.\d)\b', reading(n)))
}


def runs(path):
    "Frames for `summary`, one for each group of runs that are compared with each other"
    f = pd.read_csv(path)
    if 'original' in f:  # a row has its baseline beside it
        f['method'] = (
            f[[c for c in ('comparison', 'site', 'sigma', 'labels') if c in f]]
            .astype(str)
            .agg(' '.join, axis=1)
        )
        f = pd.concat(
            [
                f,
                f.drop_duplicates('seed').assign(
                    method='Original', accuracy=f.original, correct=f.get('original_correct')
                ),
            ]
        ).dropna(axis=1, how='all')
    if {'method', 'seed', 'accuracy'} <= set(f):
        yield from (
            part
            for _, part in f.groupby(
                [c for c in ('per_class', 'classifier') if c in f] or (lambda _: 0)
            )
        )


@pytest.fixture(scope='session')
def measured():  # (low, high) in points
    tables = [
        summarize(f, baseline)
        for s in STUDIES
        for p in sorted((ROOT / 'results' / s).glob('*.csv'))
        for f in runs(p)
        for baseline in f.method.unique()
    ]
    return 100 * pd.concat(tables)[['gain_low', 'gain_high']].dropna().values


@pytest.mark.parametrize('name', QUOTED)
def test_quoted_intervals(name, measured):
    missing = [
        ' to '.join(q)
        for q in QUOTED[name]
        if not (abs(measured - [float(v) for v in q]).max(1) < 0.0501).any()
    ]
    assert not missing, f'{name} quotes {missing}: no difference in results/ has such an interval'


def test_the_photographs_in_the_readme():
    "The start page is made from stored outputs: they are of the results as they are now"
    f = pd.read_csv(ROOT / 'results' / 'photos' / 'accuracy.csv').rename(columns=dict(seeds='n'))
    shown, text = show(f), (ROOT / 'README.md').read_text()
    for i in f.index[f.method.isin(['RandAugment', 'Stable Diffusion', 'SDEdit', 'DreamDA'])]:
        assert shown['gain (points)'][i] in text, f.loc[i]
