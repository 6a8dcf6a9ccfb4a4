"""Evaluates images against real ones: `python tools/evaluate.py --help`.

Flags and code are in `rsdiff/programs/evaluate.py`.
"""

from rsdiff.programs import evaluate

if __name__ == '__main__':
    evaluate.run()
