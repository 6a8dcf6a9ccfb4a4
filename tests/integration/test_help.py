"""--help of every script: the flags on stdout, without warnings from libraries."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    path.relative_to(ROOT)
    for path in (ROOT / 'train.py', ROOT / 'sample.py', *sorted((ROOT / 'tools').glob('*.py')))
    if "__name__ == '__main__'" in path.read_text()
]


@pytest.mark.parametrize('script', SCRIPTS, ids=str)
def test_help_names_flags_and_writes_nothing_to_stderr(script):
    done = subprocess.run([sys.executable, script, '--help'], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ''
    assert '--help' in done.stdout
