"Sphinx's settings; docs/build.py prepares what it reads"

import re
from configparser import ConfigParser
from importlib.util import find_spec
from pathlib import Path

from docutils import nodes
from sphinx import addnodes

parser = ConfigParser(delimiters=['='])
parser.read(Path(__file__).parent.parent / 'settings.ini')
cfg = parser['DEFAULT']
project, author, release, copyright = cfg['title'], cfg['author'], cfg['version'], cfg['copyright']
extensions = ['myst_nb']
nb_execution_mode = 'off'  # the stored outputs are what was measured
nb_code_prompt_show = nb_code_prompt_hide = 'Source'
nb_merge_streams = True
myst_enable_extensions = ['amsmath', 'attrs_block', 'colon_fence', 'dollarmath', 'fieldlist']
myst_dmath_double_inline = True
myst_heading_anchors = 3
add_module_names = False
toc_object_entries_show_parents = 'hide'
python_use_unqualified_type_names = True
highlight_language = 'text'  # of a block that names none
html_theme = 'furo'
html_title = 'DreamDA'
html_static_path = [
    'style.css',
    str(
        Path(find_spec('sphinx-mathjax-offline').origin).parent
        / 'static'
        / 'mathjax'
        / 'tex-svg-full.js'
    ),
]  # equations need no network: one file, fonts included
html_css_files = ['style.css']
mathjax_path = 'tex-svg-full.js'
html_show_sphinx = html_copy_source = html_show_sourcelink = False
html_show_search_summary = False  # a page opened as a file may not read the others
html_theme_options = dict(source_repository=cfg['git_url'])


def link_names(app, doctree, page):
    """Link public names that stand as code in text to where they are documented.

    Names that two modules define, or that are parameters on this page, stay as they are.
    """
    objects = app.env.domains['py'].objects
    parameters, owners = {n.astext() for n in doctree.findall(addnodes.literal_strong)}, {}
    for full, o in objects.items():
        owners.setdefault(full if o.objtype == 'module' else full.split('.', 2)[-1], []).append(
            (full, o)
        )
    for node in list(doctree.findall(nodes.literal)):
        found = owners.get(re.sub(r'\(\)$', '', node.astext()), [])
        if (
            len(found) != 1
            or isinstance(node.parent, nodes.reference)
            or node.astext() in parameters
        ):
            continue
        full, o = found[0]
        node.replace_self(
            nodes.reference(
                '',
                '',
                node.deepcopy(),
                internal=True,
                refuri=app.builder.get_relative_uri(page, o.docname) + '#' + o.node_id,
            )
        )


def setup(app):
    app.connect('doctree-resolved', link_names)
