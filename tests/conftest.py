"What the tests share"

import os
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest


def pytest_configure(config):
    config.addinivalue_line('markers', 'slow: takes half a minute or more')
    config.addinivalue_line('markers', 'notebook: runs a notebook; counts as slow')


def pytest_collection_modifyitems(items):
    "Notebooks first, as they are the longest; `-m 'not slow'` leaves them out too"
    for item in items:
        if item.get_closest_marker('notebook'):
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: item.get_closest_marker('notebook') is None)


@pytest.fixture(scope='session')
def root():
    return Path(__file__).parent.parent


@pytest.fixture
def run(tmp_path):
    "Run a program elsewhere, offline; its standard output, or a failure with the end of its log"

    def run(program, *args, cwd=tmp_path, timeout=600, **env):
        path = os.pathsep.join([sysconfig.get_path('scripts'), os.environ['PATH']])
        command = [sys.executable if program == 'python' else program, *map(str, args)]
        with subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, 'PATH': path, 'HF_HUB_OFFLINE': '1', **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as p:
            try:
                out, said = p.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                p.send_signal(signal.SIGINT)  # at this papermill ends its kernel too
                pytest.fail(
                    f'{" ".join(command)} took over {timeout} s:\n{p.communicate()[1][-3000:]}'
                )
        assert p.returncode == 0, f'{" ".join(command)} ended with {p.returncode}:\n{said[-3000:]}'
        return out

    return run
