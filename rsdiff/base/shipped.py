"""Configs and released weights that come with rsdiff, by name.

In a checkout they are its folders `configs/` and `weights/`; the wheel carries the same two folders inside the package, as
`rsdiff/shipped/` (setup.py). Wherever a path or a name can be given, an existing path takes precedence.
"""

from pathlib import Path

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local

_PACKAGED = Path(__file__).parents[1] / 'shipped'
ROOT = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parents[2]
CONFIGS, WEIGHTS = ROOT / 'configs', ROOT / 'weights'


def find_config(given: str) -> str:
    """'FILE', 'NAME', 'FILE:ARGUMENT' or 'NAME:ARGUMENT' → the config file, with the same argument.

    Raises:
      BadInput: there is no such file, and no config has this name.
    """
    name, colon, argument = given.partition(':')
    if Path(name).is_file():
        return given
    known = {path.stem: path for path in sorted(CONFIGS.glob('*.py'))}
    if name not in known:
        raise BadInput(f'--config {name}: no such file, and no config has this name; there are {", ".join(known)}')
    return f'{known[name]}{colon}{argument}'


def find_checkpoint(given: str) -> str:
    """A folder, or the name of released weights → the folder. A path in a bucket is returned unchanged.

    Raises:
      BadInput: there is no such folder, and no released weights have this name.
    """
    if not is_local(given) or Path(given).exists():
        return given
    # a text tower has no release.json; it is an encoder, not a generator
    known = {path.parent.name: path.parent for path in sorted(WEIGHTS.glob('*/release.json'))}
    if given not in known:
        raise BadInput(
            f'--checkpoint {given}: no such folder, and no released weights have this name; there are {", ".join(known)}'
        )
    return str(known[given])
