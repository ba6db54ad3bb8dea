"""Builds the site in _docs from the notebooks and their stored outputs, the pages of this folder and the figures in results/. Runs no cell: `python docs/build.py`.

A notebook becomes a page as nbdev names it (04_perturbation.ipynb: perturbation.html). An exported cell is shown as the signature of what it defines, its parameters, and, folded, its source."""

import ast
import inspect
import json
import re
import shutil
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import jinja2
import nbformat
import pandas as pd
from fastcore.docments import docments
from sphinx.cmd.build import main as sphinx

from dreamda.measure.results import show
from dreamda.measure.statistics import paired, verdict

root = Path(__file__).parent.parent
source, built, site = root / 'build' / 'docs', root / 'build' / 'site', root / '_docs'
TAGS = {
    'echo: false': 'remove-input',
    'output: false': 'remove-output',
    'code-fold: true': 'hide-input',
}  # Quarto's directives, as myst-nb's tags
EMPTY = inspect.Parameter.empty
name_of = lambda path: re.sub(r'^\d+[a-zA-Z]*_', '', path.stem)  # of the page
plain = lambda text: re.sub(
    r'`[^`]*`|[<*$\[\]]',
    lambda m: m[0] if len(m[0]) > 1 else '\\' + m[0],
    ' '.join((text or '').split()),
)  # nothing but code is markup


class Shown:
    "A default value in a signature: as written, or dots if that is long or says nothing"

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        return getattr(self.value, '__name__', None) or (
            repr(self.value) if len(repr(self.value)) < 60 and repr(self.value)[0] != '<' else '...'
        )


def signature(f):
    s = inspect.signature(f)
    given = [
        p.replace(annotation=EMPTY, default=EMPTY if p.default is EMPTY else Shown(p.default))
        for p in s.parameters.values()
        if p.name != 'self'
    ]
    return str(s.replace(parameters=given, return_annotation=EMPTY))


def documented(name, value, kind, module):
    "In Markdown for Sphinx: signature, docstring, parameters with their comments, and the methods of a class"
    methods = {
        f'{name}.{k}': v
        for k, v in (vars(value).items() if kind == 'class' else ())
        if inspect.isfunction(v) and v.__doc__ and k[0] != '_'
    }
    fence = '::::' if methods else ':::'
    head = f'{fence}{{py:{kind}}} {name}{"" if kind == "data" else signature(value)}\n:module: {module}\n'
    if kind == 'data':
        return f'{head}:value: {Shown(value)}\n{fence}'
    lines = [
        '' if (value.__doc__ or '').startswith(f'{name}(') else plain(inspect.getdoc(value)),
        '',
    ]  # a dataclass repeats its signature
    given, comments = inspect.signature(value), docments(value)
    for p, annotation in [
        *((p, v.annotation) for p, v in given.parameters.items() if p != 'self'),
        ('return', given.return_annotation),
    ]:
        if comments.get(p) or p != 'return':
            lines.append(
                f'{":returns" if p == "return" else f":param {p}"}: {plain(comments.get(p))}'
            )
        annotation = (
            getattr(annotation, '__origin__', annotation)
            if hasattr(annotation, '__metadata__')
            else annotation
        )  # Annotated[...]
        if annotation not in (None, EMPTY):
            lines.append(
                f'{":rtype" if p == "return" else f":type {p}"}: {plain(inspect.formatannotation(annotation).strip(chr(39)))}'
            )
    return '\n'.join(
        [head, *lines, '', *(documented(n, f, 'method', module) for n, f in methods.items()), fence]
    )


def definitions(module, code):
    "The public names that an exported cell defines, documented"
    for node in ast.parse(code).body:
        kind = {ast.ClassDef: 'class', ast.FunctionDef: 'function', ast.Assign: 'data'}.get(
            type(node)
        )
        names = (
            [n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)]
            if kind == 'data'
            else [node.name]
            if kind
            else []
        )
        yield from (
            documented(n, getattr(module, n), kind, module.__name__)
            for n in names
            if n in module.__all__
        )


def processed(path, pages, code):
    "A notebook as a page, whose links lead to other pages; and its module"
    nb, module, cells = nbformat.read(path, 4), None, []
    for c in nb.cells:
        if c.cell_type == 'markdown':
            cells.append(c)
            continue
        said = re.findall(r'^# ?\| *(.+?) *$', c.source, re.M)
        c.source = re.sub(r'^# ?\|.*\n?', '', c.source, flags=re.M).strip()
        tags = c.metadata['tags'] = c.metadata.get('tags', []) + [
            TAGS[s] for s in said if s in TAGS
        ]
        if name := next((s.split()[1] for s in said if s.startswith('default_exp')), ''):
            module = import_module(f'dreamda.{name}')
        if 'hide' in said or not c.source:
            continue
        if 'echo: false' in said and all(
            'text/markdown' in o.get('data', ()) for o in c.outputs
        ):  # text with figures
            cells += [nbformat.v4.new_markdown_cell(o.data['text/markdown']) for o in c.outputs]
            continue
        if 'export' in said or 'exports' in said:
            if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(c.source).body):
                continue
            cells += map(nbformat.v4.new_markdown_cell, definitions(module, c.source))
            tags.append('hide-input')
        elif not module and not tags:
            tags.append('hide-input')  # an experiment is read for its results and its parameters
        cells.append(c)
    for c in cells:
        if c.cell_type == 'markdown':
            c.source = (
                re.sub(
                    r'\]\((?:[\w./-]*/)?([\w-]+)\.ipynb\b',
                    lambda m: f']({pages.get(m[1], m[1])}.ipynb',
                    c.source,
                )
                .replace('dreamda/tiny/README.md', 'tiny.md')
                .replace('models/photo64/README.md', 'photo64.md')
                .replace('](docs/', '](')
                .replace('](../docs/', '](')
                .replace('](../../docs/', '](')
            )
        if c.cell_type == 'markdown':
            c.source = re.sub(
                r'\]\(((?:results/[\w/-]+\.(?:csv|md))|CITATION\.cff)\)', rf']({code}/\1)', c.source
            )  # files that the site does not have
    nb.cells = cells
    return nb, module


def contents(**parts):
    "The hidden table of contents that becomes the sidebar"
    return '\n\n'.join(
        '\n'.join(
            ['```{toctree}', ':hidden:', f':caption: {caption.replace("_", " ")}', *names, '```']
        )
        for caption, names in parts.items()
    )


def write_notebooks(code):
    "In the order in which the start page names them, then others; the start page, with the contents, is last. Returns page -> module"
    index = (root / 'nbs' / 'index.ipynb').read_text()
    paths = sorted(
        (root / 'nbs').rglob('*.ipynb'),
        key=lambda p: (
            p.stem == 'index',
            index.rfind(f'(nbs/{p.relative_to(root / "nbs").as_posix()})') % 10**9,
            p.name,
        ),
    )
    pages, modules = {p.stem: name_of(p) for p in paths}, {}
    for p in paths:
        nb, module = processed(p, pages, code)
        if module:
            modules[pages[p.stem]] = module
        if p.stem == 'index':
            experiments = [
                n for n in pages.values() if n not in modules and n not in ('index', 'cost')
            ]
            added = contents(
                Use=['your_photos', 'when', 'cost', 'ethics'],
                How_it_works=['method', *modules],
                Experiments=experiments,
                Reference=[
                    'reference',
                    'The model tiny <tiny>',
                    'The model photo64 <photo64>',
                    'CHANGELOG',
                    'CONTRIBUTING',
                ],
            )
        else:
            made_from = f'[{p.relative_to(root)}]({code}/{p.relative_to(root)})'
            added = '{.origin}\n' + (
                f'Module `{module.__name__}`, made from {made_from}\n\n```{{py:module}} {module.__name__}\n```'
                if module
                else made_from
            )
        nb.cells[0].source += f'\n\n{added}'
        nbformat.write(nb, source / f'{pages[p.stem]}.ipynb')
    return modules


def csv(name, **kw):
    return pd.read_csv(root / 'results' / name, **kw)


def record(name):
    return json.loads((root / 'results' / name).read_text())


def gains(name, by, query='index == index'):
    "For readers: the gain in accuracy over no synthetic images, of each `by`"
    rows = {
        k: [len(g), *(100 * v for v in paired(g.accuracy, g.original))]
        for k, g in csv(name).query(query).groupby(by, sort=False)
    }
    return pd.DataFrame(
        {
            k: [n, f'{m:+.1f} ({low:+.1f} to {high:+.1f})', verdict(low, high)]
            for k, (n, m, low, high) in rows.items()
        },
        ['splits', 'gain (points)', 'did it help?'],
    ).T.rename_axis(by)


def with_gain(f):  # accuracy, and gain over no synthetic images, as text for each row
    return pd.Series(
        [
            f'{100 * a:.1f}'
            + (f' ({100 * g:+.1f}: {100 * low:+.1f} to {100 * high:+.1f})' if g == g else '')
            for a, g, low, high in f[['accuracy', 'gain', 'gain_low', 'gain_high']].values
        ],
        f.index,
    )


def by_size(name):
    "For readers: each method for each number of labelled images of a class; a table for each set"
    f = csv(name)
    f['text'] = with_gain(f)
    return {
        k: g.pivot(index='method', columns='per_class', values='text')
        .reindex(g.method.unique())
        .add_suffix(' a class')
        for k, g in f.groupby('data', sort=False)
    }


def of_sets(part):
    "The tables of this name that the sets of photographs have, by set"
    return {
        p.stem.removesuffix(f'-{part}'): csv(f'photos/{p.name}', index_col=0)
        for p in sorted((root / 'results' / 'photos').glob(f'*-{part}.csv'))
    }


def by_set(part):
    "For readers: each method on each set"
    return pd.DataFrame({k: with_gain(f) for k, f in of_sets(part).items()})


def studies():
    "What a study of a set found on its validation images, and what its best were worth on the test images"
    best = of_sets('chosen')
    for k, f in of_sets('study').items():
        yield (
            k,
            show(f)
            .drop(columns=['splits', 'did it help?'])
            .join(f[['label_preservation', 'diversity']].round(2).astype(object).fillna('')),
            show(best[k]),
        )


def first_line(module, name):
    "What a table says of a public name: its docstring's first line, or the value of a constant"
    value = getattr(module, name)
    return (
        plain((value.__doc__ or '').split('\n')[0]) if callable(value) else f'`{Shown(value)}`'
    ).replace('|', '\\|')


def write_pages(modules):
    "The Markdown pages, with what they compute from results/ between double braces"
    templates = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    beside = {
        'CONTRIBUTING.md': root / 'CONTRIBUTING.md',
        'CHANGELOG.md': root / 'CHANGELOG.md',
        'tiny.md': root / 'dreamda' / 'tiny' / 'README.md',
        'photo64.md': root / 'models' / 'photo64' / 'README.md',
    }
    for name, p in ({p.name: p for p in (root / 'docs').glob('*.md')} | beside).items():
        (source / name).write_text(
            templates.from_string(p.read_text()).render(
                csv=csv,
                record=record,
                gains=gains,
                by_size=by_size,
                by_set=by_set,
                studies=studies,
                show=show,
                modules=modules,
                plain=plain,
                first_line=first_line,
            )
        )


def main():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root / 'settings.ini')
    for d in (source, built, site):
        shutil.rmtree(d, ignore_errors=True)
    shutil.copytree(
        root / 'results',
        source / 'results',
        ignore=shutil.ignore_patterns('*.csv', '*.json', '*.md'),
    )
    write_pages(write_notebooks('{git_url}/blob/{branch}'.format(**cfg['DEFAULT'])))
    if status := sphinx(
        [
            '-W',
            '--keep-going',
            '-q',
            '-E',
            '-c',
            str(root / 'docs'),
            '-d',
            str(root / 'build' / 'doctrees'),
            str(source),
            str(built),
        ]
    ):
        sys.exit(status)
    built.rename(site)


if __name__ == '__main__':
    main()
