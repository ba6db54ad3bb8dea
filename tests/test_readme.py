"The Python of README.md, as it stands there: an expansion, and other tools that load it"

import re

import numpy as np
import pandas as pd
from PIL import Image


def test_every_line_runs(root, run, tmp_path):
    rng = np.random.default_rng(0)
    for c in ('cat', 'dog'):
        (tmp_path / 'photos' / c).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(rng.integers(0, 255, (40, 48, 3)).astype('uint8')).save(
                tmp_path / 'photos' / c / f'{i}.jpg'
            )
    blocks = re.findall(r'```python\n(.*?)```', (root / 'README.md').read_text(), re.S)
    assert len(blocks) == 2
    lines = '\n'.join(blocks).splitlines()
    loads = [i for i, l in enumerate(lines) if l.startswith('images = ')]
    for i in loads:
        lines[i] += '; assert len(images) == 40, images'
    lines += [
        "assert images[0][0].size == (32, 32) and images.reader.class_to_idx == {'cat': 0, 'dog': 1}",
        "assert pipe('a seven', num_inference_steps=1, output_type='np', height=32, width=32).images.shape == (1, 32, 32, 3)",
    ]
    run('python', '-c', '\n'.join(lines), HF_HOME=str(tmp_path / 'hf'))
    table = pd.read_csv(tmp_path / 'photos_x10.csv')
    assert (
        len(loads) == 3
        and len(table) == 40
        and table.columns[0] == 'file_name'
        and set(table.seed_image) == {'cat/0.jpg', 'cat/1.jpg', 'dog/0.jpg', 'dog/1.jpg'}
    )
