"""Exports a run's averaged parameters as a small folder that `sample.py --checkpoint` reads.

    python tools/release.py --checkpoint runs/earth --out weights/earth
"""

from pathlib import Path

from absl import flags

from rsdiff import console
from rsdiff.errors import BadInput
from rsdiff.training.checkpoint import RELEASE, load_generator, release

CHECKPOINT = flags.DEFINE_string('checkpoint', None, 'A run of train.py.', required=True)
OUT = flags.DEFINE_string('out', None, 'The folder to write config.json and model.safetensors to.', required=True)


def main() -> None:
    out = Path(OUT.value)
    if (out / 'config.json').exists() and not (out / 'release.json').exists():
        raise BadInput(f'{out} holds a config.json that is not of a release; use another --out')
    release(load_generator(CHECKPOINT.value), out)
    released = load_generator(out)
    size = (out / RELEASE).stat().st_size
    console.finish({'out': str(out), 'bytes': size, 'images_seen': released.images_seen, 'digest': released.digest},
                   out / 'release.json')


if __name__ == '__main__':
    console.run(main)
