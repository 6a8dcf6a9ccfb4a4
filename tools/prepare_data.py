"""Cuts folders and scenes into a dataset of chips: `python tools/prepare_data.py --help`.

Flags and code are in `rsdiff/programs/prepare.py`.
"""

from rsdiff.programs import prepare

if __name__ == '__main__':
    prepare.run()
