"That the parts of the repository agree"
import json, re
from configparser import ConfigParser
import dreamda, pandas as pd
from dreamda.report import show

def test_version(root):
    cfg = ConfigParser(delimiters=['='])
    cfg.read(root/'settings.ini')
    assert dreamda.__version__ == cfg['DEFAULT']['version']

def test_every_module_has_its_notebook(root):
    "Export makes modules, but does not remove one whose notebook is gone or was renamed"
    for p in (root/'dreamda').glob('[!_]*.py'):
        made_from = re.search(r'File to edit: \.\./(nbs/\S+\.ipynb)', p.read_text())
        assert made_from and (root/made_from[1]).exists(), f'{p.name} comes from no notebook: delete it, or make it from one'

def test_readme_quotes_the_results(root):
    "What README says of accuracy is what the files in results/ say"
    readme, results = (root/'README.md').read_text(), root/'results'/'quickstart'
    assert show(pd.read_csv(results/'accuracy.csv', index_col=0)).to_markdown() in readme
    assert json.loads((results/'accuracy.json').read_text())['settings']['answer'] in readme
