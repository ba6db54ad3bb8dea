"That the parts of the repository agree"
import re
from configparser import ConfigParser
import dreamda

def test_version(root):
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini')
    assert dreamda.__version__ == cfg['DEFAULT']['version']

def test_every_module_has_its_notebook(root):
    "Export makes modules, but does not remove one whose notebook is gone or was renamed"
    for p in (root/'dreamda').glob('[!_]*.py'):
        made_from = re.search(r'File to edit: \.\./(nbs/\S+\.ipynb)', p.read_text())
        assert made_from and (root/made_from[1]).exists(), f'{p.name} comes from no notebook: delete it, or make it from one'
