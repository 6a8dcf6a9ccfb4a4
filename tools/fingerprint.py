"""Notes which pictures weights were trained on, so that a study can refuse to test on them.

    python tools/fingerprint.py --images DIR:train --images OTHER --out weights/aerial

writes OUT/training_fingerprints.npz: 160 bytes a picture, from which no picture can be made. `sample.py` copies the file
of its checkpoint beside what it samples, and tools/downstream.py then stops where a test image is among them.
Scenes larger than --largest_px a side are left out: a fingerprint finds whole pictures, not parts of them.
"""

from pathlib import Path

import numpy as np
from absl import flags
from tqdm import tqdm

from rsdiff import console
from rsdiff.data.fingerprints import FILE, fingerprint, write_fingerprints
from rsdiff.data.folder import split_of, training_entries
from rsdiff.data.images import Picture
from rsdiff.errors import BadInput

IMAGES = flags.DEFINE_multi_string('images', None, 'DIR (of a folder with splits train) or DIR:SPLIT; may be given again.', required=True)
OUT = flags.DEFINE_string('out', None, 'The folder of the weights, of the run or of the synthetic images.', required=True)
LARGEST_PX = flags.DEFINE_integer('largest_px', 1024, 'Larger pictures are scenes.', lower_bound=32)


def main() -> None:
    entries = [(argument, entry) for argument in IMAGES.value for entry in training_entries(*split_of(argument))]
    names, kept, scenes, unreadable = [], [], 0, []
    for argument, entry in tqdm(entries, unit='image', desc='fingerprints', dynamic_ncols=True):
        try:
            with Picture(entry.path) as picture:
                if max(picture.width, picture.height) > LARGEST_PX.value:
                    scenes += 1
                    continue
                kept.append(fingerprint(picture.read()))
        except BadInput as error:
            unreadable.append(str(error))
            continue
        names.append(f'{Path(argument).name}/{entry.file_name}')
    if not kept:
        raise BadInput(f'none of {len(entries)} images could be used; {scenes} are larger than {LARGEST_PX.value} px')
    out = Path(OUT.value)
    write_fingerprints(out / FILE, names, np.stack(kept))
    console.finish({'out': str(out / FILE), 'images': len(kept), 'scenes_left_out': scenes, 'unreadable': unreadable,
                    'bytes': (out / FILE).stat().st_size}, out / 'fingerprint.json')


if __name__ == '__main__':
    console.run(main)
