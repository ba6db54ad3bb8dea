"The package's metadata come from settings.ini, the one place where nbdev keeps them."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

parser = ConfigParser(delimiters=['='])
parser.read('settings.ini', encoding='utf-8')
cfg = parser['DEFAULT']

setup(
    name=cfg['lib_name'],
    version=cfg['version'],
    description=cfg['description'],
    long_description=Path('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'],
    url=cfg['git_url'],
    keywords=cfg['keywords'],
    license='Apache-2.0',
    license_files=['LICENSE'],
    packages=find_packages(include=['dreamda', 'dreamda.*']),
    package_data={'dreamda': ['tiny/**/*', 'app/templates/*', 'experiments/*.yaml']},
    python_requires='>=' + cfg['min_python'],
    install_requires=cfg['requirements'].split(),
    extras_require={
        'offline': cfg['offline_requirements'].split(),
        'optional': cfg['optional_requirements'].split(),
        'docs': cfg['docs_requirements'].split(),
        'dev': [
            name
            for extra in ('offline', 'optional', 'docs', 'dev')
            for name in cfg[f'{extra}_requirements'].split()
        ],
    },
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"],
    },
    zip_safe=False,
    classifiers=[
        'Development Status :: 3 - Alpha',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
    ],
)
