"""Prints the lowest versions that setup.cfg allows, of all required packages and of the extra `test`, as constraints for pip:
python tools/lowest.py > FILE"""

import argparse
import configparser
import re
from pathlib import Path

SETUP = Path(__file__).parents[1] / 'setup.cfg'


def lowest(setup: str) -> list[str]:
    """'jax==0.10' for each 'jax>=0.10' in the text of a setup.cfg.

    Raises:
      ValueError: a requirement has no lower bound.
    """
    config = configparser.ConfigParser()
    config.read_string(setup)
    rows = config['options']['install_requires'] + '\n' + config['options.extras_require']['test']
    found = []
    for row in filter(None, (row.split('#')[0].strip() for row in rows.splitlines())):
        match = re.fullmatch(r'([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)', row)
        if match is None:
            raise ValueError(f'setup.cfg: {row!r} is not NAME>=VERSION')
        found.append(f'{match[1]}=={match[2]}')
    return found


if __name__ == '__main__':
    argparse.ArgumentParser(description=__doc__).parse_args()
    print('\n'.join(lowest(SETUP.read_text(encoding='utf-8'))))
