"""Records which images weights were trained on, so that a study does not test on them.

    python tools/fingerprint.py --images DIR:train --images OTHER --out weights/aerial

`train.py` does this itself; this tool is for weights that were trained elsewhere. It adds to OUT/training_fingerprints.npz:
160 bytes per image, from which the image can't be reconstructed. `sample.py` copies this file from its checkpoint to its
output, and tools/downstream.py then stops if a test image is listed. Training crops scenes larger than 1024 px per side, and
fingerprints do not find crops, so these scenes count as unknown, as do files that can't be read.
"""

from pathlib import Path

from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.data.crops import FolderImages
from rsdiff.data.fingerprints import FILE, TrainedOn, add_fingerprints
from rsdiff.data.folder import split_of
from rsdiff.data.inventory import NO_IMAGE, images_seen, look_at_entries
from rsdiff.programs import console

IMAGES = flags.DEFINE_multi_string(
    'images', None, 'DIR (if it has splits, train) or DIR:SPLIT; may be repeated.', required=True
)
OUT = flags.DEFINE_string('out', None, 'The folder of the weights, the run or the synthetic images.', required=True)
BANDS = flags.DEFINE_string('bands', None, 'GeoTIFF bands that became red, green and blue, such as 4,3,2.')
VALUE_RANGE = flags.DEFINE_string('value_range', None, 'GeoTIFF values that became 0 and 255, such as 0,3000.')


def main() -> None:
    bands, value_range = console.flag_numbers('bands', int, 3), console.flag_numbers('value_range', float, 2)
    new, unreadable = TrainedOn(), []
    for argument in IMAGES.value:
        # fingerprints do not depend on the resolution, so it need not be known
        images = FolderImages(*split_of(argument), 1.0, bands, value_range)
        looks = look_at_entries(images, range(len(images)), show=True)
        new += images_seen(images, range(len(images)), looks, Path(argument).name)
        unreadable += [images.name(number) for number, look in enumerate(looks) if look.found == NO_IMAGE]
    if not (new.names or new.unknown):
        raise BadInput(f'none of {len(unreadable)} images could be read ({unreadable[0]}, …)')
    out = Path(OUT.value)
    everything = add_fingerprints(out, new)
    console.finish(
        {
            'out': str(out / FILE),
            'images': len(new.names),
            'images_in_all': len(everything.names),
            'unknown': list(everything.unknown),
            'unreadable': unreadable,
            'trained_on': str(everything),
            'bytes': (out / FILE).stat().st_size,
        },
        out / 'fingerprint.json',
    )


if __name__ == '__main__':
    console.run(main)
