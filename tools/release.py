"""Exports a run's averaged parameters as a small folder that `sample.py --checkpoint` reads.

    python tools/release.py --checkpoint runs/earth --out weights/earth
"""

from pathlib import Path

from absl import flags

from rsdiff import console
from rsdiff.training.checkpoint import RELEASE, load_generator, release

CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A run of train.py.', required=True)
OUT = flags.DEFINE_string('out', None, 'The folder to write config.json and model.safetensors to.', required=True)


def main() -> None:
    release(load_generator(CHECKPOINT.value), OUT.value)
    released, out = load_generator(OUT.value), Path(OUT.value)
    size = (out / RELEASE).stat().st_size
    console.finish({'out': str(out), 'bytes': size, 'images_seen': released.images_seen, 'digest': released.digest},
                   out / 'release.json')


if __name__ == '__main__':
    console.run(main)
