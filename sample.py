"""Turns low-resolution imagery into high-resolution imagery, 4× per stage: `python sample.py --help`.

Flags and code are in `rsdiff/programs/sample.py`.
"""

from rsdiff.programs import sample

if __name__ == '__main__':
    sample.run()
