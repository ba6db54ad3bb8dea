"What the tests share"
import os, subprocess, sys, sysconfig
from pathlib import Path
import pytest

@pytest.fixture(scope='session')
def root(): return Path(__file__).parent.parent

@pytest.fixture
def run(tmp_path):
    "Run a program elsewhere, without network; its standard output, or a failure that shows the end of what it said"
    def run(program, *args, cwd=tmp_path, timeout=180, **env):
        path = os.pathsep.join([sysconfig.get_path('scripts'), os.environ['PATH']])
        command = [sys.executable if program == 'python' else program, *map(str, args)]
        try: p = subprocess.run(command, cwd=cwd, env={**os.environ, 'PATH': path, 'HF_HUB_OFFLINE': '1', **env}, stdin=subprocess.DEVNULL,
                                capture_output=True, text=True, timeout=timeout)
        except subprocess.TimeoutExpired as e: pytest.fail(f'{" ".join(command)} took over {timeout} s; it said: {(e.stderr or b"")[-1500:].decode(errors="replace")}')
        assert p.returncode == 0, f'{" ".join(command)} ended with {p.returncode}:\n{p.stderr[-3000:]}'
        return p.stdout
    return run
