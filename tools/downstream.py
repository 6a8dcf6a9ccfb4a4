"""Does synthetic data help? Trains classifiers and writes the table: `python tools/downstream.py --help`.

Flags and code are in `rsdiff/programs/downstream.py`.
"""

from rsdiff.programs import downstream

if __name__ == '__main__':
    downstream.run()
