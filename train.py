"""Trains a generator: `python train.py --help`. Flags and code are in `rsdiff/programs/train.py`."""

from rsdiff.programs import train

if __name__ == '__main__':
    train.run()
