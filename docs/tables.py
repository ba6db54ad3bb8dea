"What the Markdown pages compute from results/"

import json
from pathlib import Path

import pandas as pd

from dreamda.measure.results import load_summary, lookup, show

RESULTS = Path(__file__).parent.parent / 'results'


def csv(name, **kw):
    return pd.read_csv(RESULTS / name, **kw)


def record(name):
    return json.loads((RESULTS / name).read_text())


def value(name, column, **row):
    "A number of a table, by file, row and column"
    return lookup(RESULTS / name, column, **row)


def summary(experiment, query, index='method'):
    "For readers: rows of a summary, with the verdict after Holm's correction"
    table = load_summary(RESULTS / experiment).query(query)
    return show(table).reset_index().drop(columns=['against'], errors='ignore').set_index(index)


def gain_text(row):
    "Accuracy and gain with its interval; an asterisk where the gain holds after correction"
    if row.gain != row.gain:
        return f'{100 * row.accuracy:.1f}'
    star = '*' if row.p_holm < 0.05 else ''
    ends = f'{100 * row.gain_low:+.1f} to {100 * row.gain_high:+.1f}'
    return f'{100 * row.accuracy:.1f} ({100 * row.gain:+.1f}: {ends}){star}'


def over_original(experiment, query, columns):
    "For readers: each method by one of the settings"
    table = load_summary(RESULTS / experiment).query(f"against == 'Original' and {query}")
    table = table.assign(text=table.apply(gain_text, axis=1))
    by = table.pivot(index='method', columns=columns, values='text').fillna('')
    return by.reindex(table.method.unique())


def settings_tried(data):
    "For readers: what a study found on validation images, and its best ones on test images"
    tried = csv('photos/study.csv').query(f'data == {data!r}').reset_index(drop=True)
    kept = tried[['method', 'label_preservation', 'diversity']].set_index('method').round(2)
    shown = (
        show(tried).drop(columns=['splits', 'did it help?']).join(kept.astype(object).fillna(''))
    )
    best = show(csv('photos/chosen.csv').query(f'data == {data!r}'))
    return shown, best.drop(columns='did it help?')
