"""Import rules between the rooms (subpackages) of rsdiff, checked on their imports."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'rsdiff'
# the rooms that each room may import besides itself and `base`
ALLOWED = {
    'base': set(),
    'diffusion': set(),
    'models': set(),
    'pretrained': set(),
    'data': set(),
    'methods': {'diffusion', 'models', 'pretrained', 'data'},
    'training': {'diffusion', 'models', 'pretrained', 'data', 'methods'},
    'sampling': {'diffusion', 'models', 'pretrained', 'data', 'methods'},
    'evaluation': {'diffusion', 'models', 'pretrained', 'data', 'methods'},
    'downstream': {'models', 'pretrained', 'data', 'evaluation'},
    'programs': {
        'diffusion',
        'models',
        'pretrained',
        'data',
        'methods',
        'training',
        'sampling',
        'evaluation',
        'downstream',
    },
}


def imports(path):
    """Dotted names of everything that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            yield from (f'{node.module}.{alias.name}' for alias in node.names)


def module(path):
    """'rsdiff.diffusion.noise' for rsdiff/diffusion/noise.py."""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


FILES = sorted(p for p in PACKAGE.rglob('*.py') if p.name != '__init__.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_what_it_stands_on(path):
    room = path.relative_to(PACKAGE).parts[0]
    used = {name.split('.')[1] for name in imports(path) if name.startswith('rsdiff.')}
    assert used <= ALLOWED[room] | {room, 'base'}


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_no_room_imports_a_script_or_what_core_does_without(path):
    roots = {name.split('.')[0] for name in imports(path)}
    assert not roots & {'train', 'sample', 'tools', 'configs', 'tensorflow', 'torch'}


def test_no_file_imports_itself_by_way_of_others():
    modules = {module(path) for path in FILES}
    graph = {
        module(path): modules & {part for name in imports(path) for part in (name, name.rpartition('.')[0])}
        for path in FILES
    }
    assert sum(map(len, graph.values())) > len(modules)  # the imports were found
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_one_file_imports_orbax_one_builds_meshes_and_one_reads_pickles():
    assert not [p.name for p in FILES if any(n.split('.')[0] == 'pickle' for n in imports(p))]
    assert [p.name for p in FILES if any(n.split('.')[0] == 'pickletools' for n in imports(p))] == ['pickle_machine.py']
    assert [p.name for p in FILES if any(n.startswith('orbax') for n in imports(p))] == ['checkpoint.py']
    assert [p.name for p in FILES if 'make_mesh(' in p.read_text() and 'jax.make_mesh' in p.read_text()] == ['mesh.py']
