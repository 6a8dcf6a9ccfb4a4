"""Images in TFDS datasets of ArrayRecord files, with random access by `as_data_source`; no TensorFlow needed.

`tools/prepare_data.py` writes such datasets with `write_chips`, in TFDS's own layout under the folder that it is given:
TFDS reads them as `tfds.builder('chips', data_dir=FOLDER)`.
"""

import contextlib
import io
import math
import shutil
import tempfile
from pathlib import Path
from typing import Any, Callable, Iterable

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from google.protobuf import json_format
from tensorflow_datasets.core import constants

from rsdiff.base.errors import BadInput, one_line
from rsdiff.data.scenes import Scene, open_scene

INFO_FILES = 'dataset_info.json', 'features.json'
CHIPS, VERSION = 'chips', '1.0.0'


def prepared_folder(path: str) -> epath.Path | None:
    """The folder of the dataset at `path`, or of the one `tools/prepare_data.py` wrote there; None without either."""
    top = epath.Path(path)
    for folder in (top, top / CHIPS / VERSION):
        if all((folder / name).exists() for name in INFO_FILES):
            return folder
    return None


def prepared_dataset(folder) -> tfds.core.DatasetBuilder:
    """The dataset whose `dataset_info.json` lies in `folder`.

    Raises:
      BadInput: its metadata can't be read.
    """
    try:
        return tfds.builder_from_directory(folder)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, AssertionError, json_format.ParseError) as error:
        raise BadInput(f'{folder}: not a TFDS dataset that can be read ({one_line(error)})') from None


def named_dataset(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """The dataset that TFDS calls `name` ('name', 'name/config', 'name:version'); nothing is downloaded.

    Raises:
      BadInput: TFDS has no dataset of that name, or it has not been prepared in `data_dir`.
    """
    place = data_dir or constants.DATA_DIR
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except ImportError as error:
        raise BadInput(f'tfds:{name}: TFDS can not load it here ({one_line(error)})') from None
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise BadInput(f'tfds:{name}: {one_line(error)[:100]}; neither TFDS nor {place} has it') from None
    if not builder.data_path.exists():
        raise BadInput(
            f'tfds:{name}: not prepared in {place}; run tfds.builder({name!r}, file_format="array_record", '
            'data_dir=…).download_and_prepare()'
        )
    return builder


class RecordImages:
    """The images of one split of a TFDS dataset, feature `image`; `gsd_m` is the default without such a feature.

    Raises:
      BadInput: there is no such split, no 8-bit image, no known resolution, or the files have no random access.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, split: str, gsd_m: float | None):
        self.where, self.split, self.default_gsd_m = str(builder.data_path), split, gsd_m
        features = dict(builder.info.features) if isinstance(builder.info.features, tfds.features.FeaturesDict) else {}
        self.are_chips = {'file_name', 'box'} <= {*features}  # cut by `tools/prepare_data.py`
        image = features.get('image')
        if not isinstance(image, tfds.features.Image):
            raise BadInput(
                f'{self.where}: no feature "image" that is an image; there are '
                f'{", ".join(sorted(features)) or "none by name"}'
            )
        if image.np_dtype != np.uint8:
            raise BadInput(f'{self.where}: its images are {image.np_dtype}; 8 bits are needed')
        if gsd_m is None and 'gsd_m' not in features:
            raise BadInput(f'{self.where}: records have no gsd_m; give --config.data.gsd_m')
        try:
            # kept encoded: Pillow decodes them like any other file, and messages can name a broken one
            decoders = {'image': tfds.decode.SkipDecoding()}
            # TFDS's decorator hides the parameters
            self.records = builder.as_data_source(split, decoders=decoders)  # pyright: ignore[reportCallIssue]
            self.length = len(self.records)
            self.shards = [epath.Path(shard.filename) for shard in builder.info.splits[split].file_instructions]
        except (KeyError, ValueError) as error:
            known = ', '.join(map(repr, builder.info.splits)) or 'none'
            raise BadInput(f'{self.where}: no split {split!r}; there are {known} ({one_line(error)[:100]})') from None
        except NotImplementedError:
            raise BadInput(
                f'{self.where}: its files have no random access; prepare it again with file_format="array_record"'
            ) from None
        if any(shard.parent != epath.Path(self.where) for shard in self.shards):
            raise BadInput(f'{self.where}: its shards leave the folder')
        self.first = 0
        if not self.length:
            raise BadInput(f'{self.where}: split {split!r} is empty')

    def __len__(self) -> int:
        return self.length

    def keep(self, first: int, last: int) -> None:
        """Keeps only the records from `first` to before `last`, and renumbers them."""
        self.first, self.length = self.first + first, last - first

    def name(self, number: int) -> str:
        """The dataset, split and record of image `number`, and its origin as recorded by `tools/prepare_data.py`."""
        name = f'{self.where} {self.split}[{self.first + number}]'
        try:
            record = self._record(number)
        except BadInput:
            return name
        if 'file_name' in record and 'box' in record:
            box = ', '.join(map(str, record['box']))
            return f'{name} = {_text(record.get("source", b""))}/{_text(record["file_name"])} ({box})'
        return name

    def open(self, number: int) -> tuple[Scene, float]:
        """See `rsdiff.data.crops.Images`."""
        record = self._record(number)
        name = f'{self.where} {self.split}[{self.first + number}]'
        gsd_m = record.get('gsd_m', self.default_gsd_m)
        if not 0 < gsd_m < math.inf:
            raise BadInput(f'{name}: gsd_m is {gsd_m}; it must be a positive number of metres')
        return open_scene(name, file=io.BytesIO(record['image'])), float(gsd_m)

    def _record(self, number: int) -> dict[str, Any]:
        try:
            return self.records[self.first + number]
        except (
            OSError,
            RuntimeError,
            ValueError,
            IndexError,
        ) as error:  # from the reader, for missing and broken files
            raise BadInput(
                f'{self.where} {self.split}[{self.first + number}]: not readable ({one_line(error)[:200]})'
            ) from None


class _Chips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """TFDS builder of chips, for `write_chips`. Not registered: its datasets are read without this class."""

    name = CHIPS
    VERSION = tfds.core.Version(VERSION)
    url_infos = None  # nothing is downloaded, so there are no checksums to look for

    def __init__(self, folder: str, splits: dict[str, Callable[[], Iterable]], encoding: str):
        self.generators, self.encoding = splits, encoding
        super().__init__(data_dir=folder, file_format='array_record')

    def _info(self):
        features = tfds.features
        return tfds.core.DatasetInfo(
            builder=self,
            description='Earth imagery.',
            features=features.FeaturesDict(
                {
                    'image': features.Image(shape=(None, None, 3), encoding_format=self.encoding),
                    'gsd_m': features.Scalar(np.float32),
                    'label': features.Text(),
                    'captions': features.Sequence(features.Text()),
                    'source': features.Text(),
                    'file_name': features.Text(),
                    'box': features.Tensor(shape=(4,), dtype=np.int32),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {split: generate() for split, generate in self.generators.items()}

    def _generate_examples(self):
        raise NotImplementedError('each split has its own generator')


Examples = Iterable[tuple[str, dict[str, Any]]]


def write_chips(folder: Path, splits: dict[str, Callable[[], Examples]], encoding: str) -> int:
    """Writes a dataset below `folder` atomically: TFDS renames it into place as its last step.

    TFDS shuffles chips by their key before it writes the first shard, so an interrupted run starts again from the beginning.

    Args:
      splits: for each split, a function that returns an iterable of (key, example). An example has image as encoded bytes
        (arrays would need TensorFlow), gsd_m, label, captions, source, file_name, and box in (y0, x0, y1, x1) pixels of
        that file.
      encoding: 'png' or 'jpeg'.
    Returns:
      The size of the shards in bytes.
    """
    for leftover in (folder / CHIPS).glob('incomplete.*'):
        shutil.rmtree(leftover)
    tfds.disable_progress_bar()
    # its output is about downloads, and there are none
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder = _Chips(str(folder), splits, encoding)
        builder.download_and_prepare(download_dir=downloads)
    return sum(path.stat().st_size for path in Path(builder.data_path).glob(f'{CHIPS}-*'))


def _text(value: bytes | str) -> str:
    return value.decode('utf-8', errors='replace') if isinstance(value, bytes) else value
