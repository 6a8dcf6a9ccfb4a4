"""Datasets of Hugging Face's `datasets` as sources; the tests need the extra `hf`."""

import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.hugging_face import HubImages, hub_splits
from rsdiff.data.images import write_image
from rsdiff.data.pipeline import DataConfig, make_source


@pytest.fixture
def dataset(tmp_path, smooth_image, monkeypatch):
    """Writes a dataset with these splits, three images each, and returns its path and its images."""
    datasets = pytest.importorskip('datasets', reason='the `hf` extra brings it')
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    features = datasets.Features(
        {
            'picture': datasets.Image(),
            'kind': datasets.ClassLabel(names=['lake', 'wood']),
            'words': datasets.Value('string'),
            'gsd_m': datasets.Value('float32'),
        }
    )

    def make(*splits):
        made, images = {}, {}
        for first, split in enumerate(splits):
            images[split] = [smooth_image(16, 16, 10 * first + number) for number in range(3)]
            for number, image in enumerate(images[split]):
                write_image(tmp_path / f'{split}{number}.png', image)
            rows = {
                'picture': [str(tmp_path / f'{split}{number}.png') for number in range(3)],
                'kind': [0, 1, 0],
                'words': ['one', 'two', 'three'],
                'gsd_m': [2.0, 3.0, 4.0],
            }
            made[split] = datasets.Dataset.from_dict(rows, features=features)
        datasets.DatasetDict(made).save_to_disk(tmp_path / 'saved')
        return f'hf:{tmp_path / "saved"}', images

    return make


def unturned(image):
    return np.sort(np.asarray(image).ravel()).tobytes()


def seen(source):
    examples = [source.example(number, np.random.default_rng(0), 16) for number in range(len(source))]
    return {unturned(example['image']): float(example['gsd_m']) for example in examples}


def test_splits_of_a_dataset_are_those_of_training(dataset):
    source, images = dataset('train', 'validation', 'test')
    config = DataConfig(source=source, size_px=16, image_column='picture')
    train, unseen = make_source(config), make_source(config, validation=True)
    assert seen(train) == {unturned(image): 2.0 + number for number, image in enumerate(images['train'])}
    assert seen(unseen).keys() == {unturned(image) for image in images['validation']}
    assert train.name(1) == f'{source} train[1]'


def test_a_dataset_without_validation_gives_a_share(dataset):
    source, images = dataset('train')
    config = DataConfig(source=source, size_px=16, image_column='picture')
    train, unseen = (seen(make_source(config, validation)).keys() for validation in (False, True))
    assert train and unseen and not train & unseen and len(train | unseen) == 3


def test_labels_and_captions_are_columns_by_name(dataset):
    source, _ = dataset('train')
    images = HubImages(source, hub_splits(source.removeprefix('hf:')), 'train', None, 'picture', 'kind', 'words')
    entries = [images.entry(number) for number in range(3)]
    assert [(entry.label, entry.captions) for entry in entries] == [
        ('lake', ('one',)),
        ('wood', ('two',)),
        ('lake', ('three',)),
    ]


@pytest.mark.parametrize(
    'change, message',
    [
        ({'image_column': 'image'}, "no column 'image' of images; there are picture, kind, words"),
        ({'split': 'test'}, "no split 'test'; there are 'train'"),
        ({'source': 'hf:/nowhere/at/all'}, 'hf:/nowhere/at/all: the library datasets can not load it'),
    ],
)
def test_what_a_dataset_lacks_is_said(dataset, change, message):
    source, _ = dataset('train')
    with pytest.raises(BadInput, match=message) as error:
        make_source(DataConfig(**{'source': source, 'image_column': 'picture'} | change))
    assert '\n' not in str(error.value)
