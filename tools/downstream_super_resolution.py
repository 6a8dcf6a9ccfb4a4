"""Does synthetic data help super-resolution? `python tools/downstream_super_resolution.py --help`.

Flags and code are in `rsdiff/programs/super_resolution.py`.
"""

from rsdiff.programs import super_resolution

if __name__ == '__main__':
    super_resolution.run()
