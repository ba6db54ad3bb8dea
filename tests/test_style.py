"The rules of CONTRIBUTING that can be counted; each test names the worst cases"

import ast
import graphlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = 'utils data diffusion expansion classify measure experiments app'.split()
FUNCTION_LINES = 40  # of a body, without its docstring
MODULE_LINES = 250
COLUMNS = 100
CELL_LINES = 20  # most export cells are shorter
LONG_CELLS = 0.5  # share of export cells that may be longer


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix('').parts
    return '.'.join(p for p in parts if p != '__init__')


def parsed(source):
    return ast.parse(re.sub(r'(?m)^[%!]\w.*$', 'pass', source))


def cells(path):
    nb = json.loads(path.read_text(encoding='utf-8'))
    return [''.join(c['source']) for c in nb['cells'] if c['cell_type'] == 'code']


MODULES = {
    name_of(p): p
    for p in sorted((ROOT / 'dreamda').rglob('*.py'))
    if p.name not in ('__init__.py', '_modidx.py', '__main__.py')
}
CHAPTERS = sorted((ROOT / 'nbs').glob('[0-9]*/*.ipynb'))  # in reading order
EXPORTED = {
    p: m[1] for p in CHAPTERS if (m := re.search(r'default_exp (\S+?)["\\]', p.read_text()))
}


def imports(tree):
    "The modules of the package that a module or a cell imports, with the names taken from them"
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((a.name, []) for a in node.names if a.name.startswith('dreamda.'))
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('dreamda'):
            yield node.module, [a.name for a in node.names]


def module_imports(name):
    "The same of a module, whose imports are relative"
    package = name.split('.')[:-1]
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1]
            yield '.'.join([*base, *filter(None, [node.module])]), [a.name for a in node.names]
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports(node)


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function):
    first, *rest = function.body
    docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    if docstring and not rest:
        return 0
    return function.end_lineno - (rest[0] if docstring else first).lineno + 1


def worst(counts, limit, unit='lines'):
    "Nothing where all are within the limit, else a text that names those beyond it"
    beyond = sorted(((n, k) for k, n in counts.items() if n > limit), reverse=True)
    longest = max(counts.items(), key=lambda t: t[1])
    print(f'{len(counts)} counted; the longest: {longest[0]}, {longest[1]} {unit}')
    return '\n'.join(f'{k}: {n} {unit}, at most {limit}' for n, k in beyond)


def test_functions_are_short():
    counts = {
        f'{name}.{f.name}': body_lines(f)
        for name, path in MODULES.items()
        for f in functions(ast.parse(path.read_text()))
    }
    assert not (said := worst(counts, FUNCTION_LINES)), said


def test_modules_are_short():
    counts = {name: len(path.read_text().splitlines()) for name, path in MODULES.items()}
    assert not (said := worst(counts, MODULE_LINES)), said


def test_lines_are_short():
    long = []
    for name, path in MODULES.items():
        source = re.sub(r'(?ms)^__all__ = .*?\]$', '', path.read_text())
        long += [f'{name}: {l}' for l in source.splitlines() if len(l) > COLUMNS]
    assert not long, '\n'.join(long)


def test_most_export_cells_are_short():
    counts = {}
    for path in CHAPTERS:
        for i, source in enumerate(cells(path)):
            if re.match(r'# ?\| *export', source):
                counts[f'{path.stem}, code cell {i}'] = len(source.splitlines()) - 1
    print('\n'.join(worst(counts, CELL_LINES).splitlines()[:10]))
    long = sum(n > CELL_LINES for n in counts.values())
    assert long <= LONG_CELLS * len(counts), f'{long} of {len(counts)} export cells are long'


def test_nested_functions_leave_their_parents_alone():
    found = [
        f'{name}, line {node.lineno}'
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Nonlocal)
    ]
    assert not found, found


def test_notebook_names_are_unique():
    stems = [re.sub(r'^\d+_', '', p.stem) for p in (ROOT / 'nbs').rglob('*.ipynb')]
    assert not (twice := {s for s in stems if stems.count(s) > 1}), twice


def test_notebooks_import_only_what_was_explained_before():
    "Tests included: in reading order nothing is used before its notebook"
    place = {f'dreamda.{module}': i for i, module in enumerate(EXPORTED.values())}
    wrong = []
    for here, path in enumerate(EXPORTED):
        for source in cells(path):
            for module, _ in imports(parsed(source)):
                if place.get(module, -1) > here:
                    wrong.append(f'{path.relative_to(ROOT)} imports {module}')
    assert not wrong, '\n'.join(sorted(set(wrong)))


def rank(module):
    return PACKAGES.index(module.split('.')[1])


def test_packages_import_only_packages_before_them():
    wrong = []
    for name in MODULES:
        for module, _ in module_imports(name):
            if module in MODULES and rank(module) > rank(name):
                wrong.append(f'{name} imports {module}')
    assert not wrong, '\n'.join(wrong)


def test_no_cycles():
    "Not even through imports inside functions"
    graph = {name: {m for m, _ in module_imports(name) if m != name} for name in MODULES}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_private_names_stay_in_their_module():
    sources = {name: module_imports(name) for name in MODULES}
    for path in (ROOT / 'nbs').rglob('*.ipynb'):
        own = f'dreamda.{EXPORTED.get(path)}'
        found = [i for s in cells(path) for i in imports(parsed(s)) if i[0] != own]
        sources[path.stem] = found
    wrong = [
        f'{where} imports {name} of {module}'
        for where, found in sources.items()
        for module, names in found
        for name in names
        if name.startswith('_') and not name.startswith('__')
    ]
    assert not wrong, '\n'.join(wrong)


def test_modules_use_what_they_import_and_nothing_else():
    "An import in a cell that is not exported hides from ruff that the module lacks it"
    command = [sys.executable, '-m', 'ruff', 'check', '--isolated', '--select', 'F401,F821']
    said = subprocess.run([*command, 'dreamda'], capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 0, said.stdout + said.stderr


# ---- what an import costs

FORBIDDEN = {
    'dreamda': {'torch', 'diffusers', 'transformers', 'timm', 'sklearn', 'pandas', 'numpy'},
    'dreamda.data': {'diffusers', 'transformers', 'timm', 'sklearn', 'matplotlib'},
    'dreamda.diffusion': {'timm', 'diffusers', 'peft', 'matplotlib'},
    'dreamda.classify': {'diffusers', 'peft', 'matplotlib'},
    'dreamda.measure': {'diffusers', 'peft', 'seaborn'},
}


@pytest.mark.parametrize('package', FORBIDDEN)
def test_a_package_loads_only_what_it_needs(package):
    names = [m for m in MODULES if m.startswith(f'{package}.')] if '.' in package else ['dreamda']
    code = f'import sys, {", ".join(names)}; print(*sys.modules)'
    said = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 0, said.stderr
    loaded = {m.split('.')[0] for m in said.stdout.split()}
    assert not loaded & FORBIDDEN[package]
