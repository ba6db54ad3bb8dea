"What an exported cell defines, as Markdown for Sphinx: signatures, parameters, methods"

import ast
import inspect
import re

from fastcore.docments import docments

EMPTY = inspect.Parameter.empty
KINDS = {ast.ClassDef: 'class', ast.FunctionDef: 'function', ast.Assign: 'data'}


def plain(text):
    "Text in which nothing but code is markup"
    words = ' '.join((text or '').split())
    return re.sub(r'`[^`]*`|[<*$\[\]]', lambda m: m[0] if len(m[0]) > 1 else '\\' + m[0], words)


class Shown:
    "A default value in a signature: as written, or dots if that is long or says nothing"

    def __init__(self, value):
        self.value = value

    def __repr__(self):
        if name := getattr(self.value, '__name__', None):
            return name
        text = repr(self.value)
        return text if len(text) < 60 and text[0] != '<' else '...'


def signature(f):
    "Names and defaults, without annotations"
    s = inspect.signature(f)
    given = []
    for p in s.parameters.values():
        default = EMPTY if p.default is EMPTY else Shown(p.default)
        if p.name != 'self':
            given.append(p.replace(annotation=EMPTY, default=default))
    return str(s.replace(parameters=given, return_annotation=EMPTY))


def parameters(value):
    "A line for the comment and one for the type of each parameter, and of what comes back"
    given, comments = inspect.signature(value), docments(value)
    annotations = {p: v.annotation for p, v in given.parameters.items() if p != 'self'}
    for name, annotation in [*annotations.items(), ('return', given.return_annotation)]:
        back = name == 'return'
        if comments.get(name) or not back:
            yield f'{":returns" if back else f":param {name}"}: {plain(comments.get(name))}'
        if hasattr(annotation, '__metadata__'):  # Annotated[...]
            annotation = getattr(annotation, '__origin__', annotation)
        if annotation not in (None, EMPTY):
            text = plain(inspect.formatannotation(annotation).strip("'"))
            yield f'{":rtype" if back else f":type {name}"}: {text}'


def documented(name, value, kind, module):
    "Signature, docstring, parameters with their comments, and the methods of a class"
    methods = {}
    if kind == 'class':
        own = {k: v for k, v in vars(value).items() if inspect.isfunction(v) and k[0] != '_'}
        methods = {f'{name}.{k}': v for k, v in own.items() if v.__doc__}
    fence = '::::' if methods else ':::'
    head = f'{fence}{{py:{kind}}} {name}{"" if kind == "data" else signature(value)}'
    head += f'\n:module: {module}\n'
    if kind == 'data':
        return f'{head}:value: {Shown(value)}\n{fence}'
    repeats = (value.__doc__ or '').startswith(f'{name}(')  # a dataclass without a docstring
    text = '' if repeats else plain(inspect.getdoc(value))
    inner = [documented(n, f, 'method', module) for n, f in methods.items()]
    return '\n'.join([head, text, '', *parameters(value), '', *inner, fence])


def definitions(module, code):
    "The public names that an exported cell defines, documented"
    for node in ast.parse(code).body:
        kind = KINDS.get(type(node))
        if kind == 'data':
            targets = [n for t in node.targets for n in ast.walk(t)]
            names = [n.id for n in targets if isinstance(n, ast.Name)]
        else:
            names = [node.name] if kind else []
        for name in names:
            if name in module.__all__:
                yield documented(name, getattr(module, name), kind, module.__name__)


def first_line(module, name):
    "What a table says of a public name: its docstring's first line, or the value of a constant"
    value = getattr(module, name)
    text = f'`{Shown(value)}`'
    if callable(value):
        text = plain((value.__doc__ or '').strip().split('\n')[0])
    return text.replace('|', '\\|')
