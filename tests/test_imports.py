"""Every module can be imported, and every requirement in setup.cfg has a lower bound."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in sorted((ROOT / 'rsdiff').rglob('*.py'))]
# each needs its own process: they define flags, some with the same name
PROGRAMS = [name for name in MODULES if name.startswith('rsdiff.programs.') and not name.endswith('__init__')]


def imports(names):
    """Imports modules in a fresh process."""
    code = '\n'.join(f'import {name.removesuffix(".__init__")}' for name in names)
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_rooms():
    rooms = [name for name in MODULES if name not in PROGRAMS]
    assert len(rooms) > 50
    imports(rooms)


@pytest.mark.parametrize('name', PROGRAMS)
def test_a_program(name):
    imports([name])


def test_the_lowest_versions_are_those_of_setup_cfg():
    spec = importlib.util.spec_from_file_location('lowest', ROOT / 'tools' / 'lowest.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    found = tool.lowest((ROOT / 'setup.cfg').read_text(encoding='utf-8'))
    assert {'jax==0.10', 'etils==1.13'} <= {*found} and len(found) > 20
    setup = '[options]\ninstall_requires =\n    {}\n[options.extras_require]\ntest =\n    b>=2  # why\n'
    assert tool.lowest(setup.format('# why\n    a[c]>=1.0.1')) == ['a==1.0.1', 'b==2']
    with pytest.raises(ValueError, match='a<2'):
        tool.lowest(setup.format('a<2'))
