"""Builds the site in _docs; runs no cell: `python docs/build.py`

The pages are the notebooks with their stored outputs, and those of this folder with figures from
results/. A notebook becomes a page named as it is without its number. An exported cell is shown
as the signature of what it defines, its parameters, and, folded, its source.
"""

import ast
import re
import shutil
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path

import jinja2
import nbformat
import tables
from documented import definitions, first_line, plain
from nbformat.v4 import new_markdown_cell
from sphinx.cmd.build import main as sphinx

root = Path(__file__).parent.parent
source, built, site = root / 'build' / 'docs', root / 'build' / 'site', root / '_docs'
TAGS = {  # Quarto's directives, as myst-nb's tags
    'echo: false': 'remove-input',
    'output: false': 'remove-output',
    'code-fold: true': 'hide-input',
}
CHAPTERS = {  # packages, as the sidebar names them
    'utils': 'Data',
    'data': 'Data',
    'diffusion': 'Diffusion',
    'expansion': 'Expansion',
    'classify': 'Classification',
    'measure': 'Measurement',
    'experiments': 'Comparison',
    'app': 'Application',
}
BESIDE = {  # pages that are files elsewhere
    'CONTRIBUTING.md': 'CONTRIBUTING.md',
    'CHANGELOG.md': 'CHANGELOG.md',
    'tiny.md': 'dreamda/tiny/README.md',
    'photo64.md': 'models/photo64/README.md',
}


def page_name(path):
    return re.sub(r'^\d+_', '', path.stem)


def is_import(node):
    return isinstance(node, ast.Import | ast.ImportFrom)


def shown_cells(nb):
    "The cells of a page, and the module that the notebook exports"
    module, cells = None, []
    for c in nb.cells:
        if c.cell_type == 'markdown':
            cells.append(c)
            continue
        said = re.findall(r'^# ?\| *(.+?) *$', c.source, re.M)
        c.source = re.sub(r'^# ?\|.*\n?', '', c.source, flags=re.M).strip()
        tags = c.metadata['tags'] = c.metadata.get('tags', [])
        tags += [TAGS[s] for s in said if s in TAGS]
        if name := next((s.split()[1] for s in said if s.startswith('default_exp')), ''):
            module = import_module(f'dreamda.{name}')
        if 'hide' in said or not c.source:
            continue
        texts = [o.get('data', {}).get('text/markdown') for o in c.outputs]
        if 'echo: false' in said and all(texts):  # text with figures
            cells += map(new_markdown_cell, texts)
            continue
        if 'export' in said or 'exports' in said:
            if all(map(is_import, ast.parse(c.source).body)):
                continue
            cells += map(new_markdown_cell, definitions(module, c.source))
            tags.append('hide-input')
        elif not module and not tags:
            tags.append('hide-input')  # an experiment is read for its results and parameters
        cells.append(c)
    return cells, module


def with_links(text, pages, code):
    "Markdown of a notebook whose links lead to pages of the site, or to files of the repository"

    def page(m):
        return f']({pages.get(m[1], m[1])}.ipynb'

    text = re.sub(r'\]\((?:[\w./-]*/)?([\w-]+)\.ipynb\b', page, text)
    for name, path in BESIDE.items():
        text = text.replace(f']({path})', f']({name})')
    text = re.sub(r'\]\((?:\.\./)*docs/', '](', text)
    files = r'\]\(((?:results/[\w/-]+\.(?:csv|md))|CITATION\.cff)\)'
    return re.sub(files, rf']({code}/\1)', text)


def toctree(caption, names):
    "A hidden table of contents that becomes a part of the sidebar"
    return '\n'.join(['```{toctree}', ':hidden:', f':caption: {caption}', *names, '```'])


def sidebar(modules, experiments):
    "The start page's tables of contents: use, the packages in order, experiments, reference"
    parts = {
        'Use': ['your_photos', 'which_model', 'when', 'cost', 'ethics', 'quickstart'],
        'The method': ['method', 'released'],
    }
    for page, module in modules.items():
        package = module.__name__.split('.')[1]
        parts.setdefault(CHAPTERS[package], []).append(page)
    parts['Experiments'] = [e for e in experiments if e not in parts['Use']]
    cards = ['The model tiny <tiny>', 'The model photo64 <photo64>']
    parts['Reference'] = ['reference', *cards, 'CHANGELOG', 'CONTRIBUTING']
    return '\n\n'.join(toctree(caption, names) for caption, names in parts.items())


def write_notebooks(code):
    "Write the pages of the notebooks, in reading order; the start page is last. page -> module"
    paths = sorted((root / 'nbs').glob('[0-9]*/*.ipynb'))
    paths += sorted(p for p in (root / 'nbs').glob('*.ipynb') if p.stem != 'index')
    pages, modules = {p.stem: page_name(p) for p in paths}, {}
    for p in [*paths, root / 'nbs' / 'index.ipynb']:
        nb = nbformat.read(p, 4)
        nb.cells, module = shown_cells(nb)
        for c in nb.cells:
            if c.cell_type == 'markdown':
                c.source = with_links(c.source, pages, code)
        place = f'[{p.relative_to(root)}]({code}/{p.relative_to(root)})'
        if module:
            modules[page_name(p)] = module
            place = f'Module `{module.__name__}`, made from {place}'
            place += f'\n\n```{{py:module}} {module.__name__}\n```'
        added = f'{{.origin}}\n{place}'
        if p.stem == 'index':
            added = sidebar(modules, [n for n in pages.values() if n not in modules])
        nb.cells[0].source += f'\n\n{added}'
        nbformat.write(nb, source / f'{page_name(p)}.ipynb')
    return modules


def write_pages(modules):
    "Write the Markdown pages, with what they compute from results/ between double braces"
    templates = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True)
    names = {k: v for k, v in vars(tables).items() if callable(v)}
    names |= dict(modules=modules, plain=plain, first_line=first_line)
    here = {p.name: p for p in (root / 'docs').glob('*.md')}
    for name, path in (here | {n: root / p for n, p in BESIDE.items()}).items():
        (source / name).write_text(templates.from_string(path.read_text()).render(names))


def main():
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root / 'settings.ini')
    for folder in (source, built, site):
        shutil.rmtree(folder, ignore_errors=True)
    skip = shutil.ignore_patterns('*.csv', '*.json', '*.md')
    shutil.copytree(root / 'results', source / 'results', ignore=skip)
    write_pages(write_notebooks('{git_url}/blob/{branch}'.format(**cfg['DEFAULT'])))
    options = ['-W', '--keep-going', '-q', '-E', '-c', str(root / 'docs')]
    doctrees = ['-d', str(root / 'build' / 'doctrees')]
    if status := sphinx([*options, *doctrees, str(source), str(built)]):
        sys.exit(status)
    built.rename(site)


if __name__ == '__main__':
    main()
