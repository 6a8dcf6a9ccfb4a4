"""Linear probe: how well a linear layer on the features of a trained network classifies a labelled folder.

    python tools/probe.py --images FOLDER --out OUT                      EfficientNet-lite0, ImageNet
    python tools/probe.py --images FOLDER --features CLIP_FOLDER --out OUT

FOLDER has `label` and the splits train, val and test. The regularisation is chosen on val; the test split is used once.
OUT holds the features, keyed by image content, and probe.json, which is also the last line of output.
"""

import functools
from pathlib import Path

from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import read_folder
from rsdiff.data.images import read_image
from rsdiff.evaluation.features import features_of, named_extractor
from rsdiff.evaluation.probe import linear_probe
from rsdiff.programs import console

IMAGES = flags.DEFINE_string('images', None, 'Folder with labels and splits.', required=True)
FEATURES = flags.DEFINE_string(
    'features', 'efflite0', 'efflite0, the folder of a CLIP, or a file of Inception weights.'
)
BANDS = flags.DEFINE_string('bands', None, 'GeoTIFF bands for red, green and blue, such as 4,3,2.')
VALUE_RANGE = flags.DEFINE_string('value_range', None, 'GeoTIFF values for black and white, such as 0,3000.')
OUT = flags.DEFINE_string('out', None, 'Folder for the features and the result.', required=True)


def main() -> None:
    console.enable_compilation_cache()
    extractor, out = named_extractor(FEATURES.value), Path(OUT.value)
    splits = {split: read_folder(IMAGES.value, split) for split in ('train', 'val', 'test')}
    if unlabelled := next((entry for entries in splits.values() for entry in entries if entry.label is None), None):
        raise BadInput(f'{unlabelled.path}: no label in the manifest; a probe needs one for each image')
    colours = console.flag_numbers('bands', int, 3), console.flag_numbers('value_range', float, 2)
    read = lambda entry: functools.partial(read_image, entry.path, *colours)
    x = {
        split: features_of(extractor, [read(entry) for entry in entries], out / 'features')
        for split, entries in splits.items()
    }
    y = {split: [entry.label for entry in entries] for split, entries in splits.items()}
    probe = linear_probe(x['train'], y['train'], x['val'], y['val'])
    accuracy = probe.accuracy(x['test'], y['test'])
    console.finish(
        {
            'images': {split: len(labels) for split, labels in y.items()},
            'classes': len(probe.classes),
            'features': extractor.name,
            'strength': probe.strength,
            'accuracy': round(accuracy, 4),
            'right': round(accuracy * len(y['test'])),
        },
        out / 'probe.json',
    )


if __name__ == '__main__':
    console.run(main)
