"""Images in datasets of Hugging Face's `datasets` library (the `hf` extra), from its hub or local."""

import hashlib
import io
from pathlib import Path
from typing import Any, cast

from rsdiff.base.errors import BadInput, one_line
from rsdiff.data.folder import Entry, drawn
from rsdiff.data.gsd import check_gsd_m
from rsdiff.data.layout import canonical_split
from rsdiff.data.scenes import Scene, open_scene

SAVED = 'dataset_dict.json', 'state.json'


def hub_splits(name: str) -> dict[str, Any]:
    """The splits of the dataset `name`: one on the hub, a local folder that `datasets.load_dataset` can read, or one
    written by `save_to_disk`.

    Raises:
      BadInput: the library is not installed, or can't read the dataset.
    """
    try:
        import datasets
    except ImportError:
        raise BadInput(f"hf:{name}: needs the library datasets: pip install 'rsdiff-jax[hf]'") from None
    from datasets.exceptions import DatasetsError

    try:
        if any((Path(name) / file).is_file() for file in SAVED):
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name)
    except (OSError, ValueError, TypeError, KeyError, ImportError, DatasetsError) as error:
        raise BadInput(f'hf:{name}: the library datasets can not load it ({one_line(error)[:200]})') from None
    return cast(dict[str, Any], dict(loaded)) if isinstance(loaded, dict) else {'train': loaded}


class HubImages:
    """The images of one split. A column `gsd_m` takes precedence over the default; `entry` reads labels and captions.

    Args:
      source: 'hf:NAME', for messages.
      splits: from `hub_splits`.
      image, label, captions: column names; the columns of labels and captions may be missing.
    Raises:
      BadInput: there is no such split or column, or no resolution.
    """

    def __init__(
        self,
        source: str,
        splits: dict[str, Any],
        split: str,
        gsd_m: float | None,
        image: str = 'image',
        label: str = 'label',
        captions: str = 'captions',
    ):
        import datasets

        alike = [name for name in splits if canonical_split(name) == canonical_split(split)]
        found = split if split in splits else next(iter(alike), None)
        if found is None:
            raise BadInput(f'{source}: no split {split!r}; there are {", ".join(map(repr, splits))}')
        self.where, self.default_gsd_m = f'{source} {found}', gsd_m
        self.image, self.label, self.captions = image, label, captions
        rows = splits[found]
        if not isinstance(rows.features.get(image), datasets.Image):
            raise BadInput(
                f'{source}: no column {image!r} of images; there are {", ".join(rows.column_names)}; '
                'set --config.data.image_column'
            )
        if gsd_m is None and 'gsd_m' not in rows.column_names:
            raise BadInput(f'{source}: no column gsd_m; give --config.data.gsd_m')
        if not len(rows):
            raise BadInput(f'{source}: split {found!r} is empty')
        # kept encoded: Pillow decodes them like any other file, and messages can name a broken one
        self.rows = rows.cast_column(image, datasets.Image(decode=False))
        self.numbers = [*range(len(rows))]

    def __len__(self) -> int:
        return len(self.numbers)

    def keep(self, numbers: list[int]) -> None:
        """Keeps only these images and renumbers them."""
        self.numbers = [self.numbers[number] for number in numbers]

    def name(self, number: int) -> str:
        """The dataset, its split and row."""
        return f'{self.where}[{self.numbers[number]}]'

    def open(self, number: int) -> tuple[Scene, float]:
        """See `rsdiff.data.crops.Images`."""
        row, gsd_m = self._row(number), self.default_gsd_m
        if row.get('gsd_m') is not None:
            gsd_m = row['gsd_m']
        gsd_m = check_gsd_m(gsd_m, f'{self.name(number)}: gsd_m')
        return open_scene(self.name(number), file=io.BytesIO(self._encoded(number))), gsd_m

    def entry(self, number: int) -> Entry:
        """The row of image `number` as an entry; a class label is given by name."""
        row = self._row(number)
        label, captions = row.get(self.label), row.get(self.captions) or ()
        if isinstance(label, int) and hasattr(self.rows.features[self.label], 'int2str'):
            label = self.rows.features[self.label].int2str(label)
        captions = (captions,) if isinstance(captions, str) else tuple(captions)
        return Entry(
            Path(self.name(number)),
            f'{self.numbers[number]}',
            label=None if label is None else str(label),
            captions=captions,
            gsd_m=row.get('gsd_m'),
        )

    def validation_share(self, share: float) -> list[bool]:
        """Like `rsdiff.data.folder.validation_share`, from the images' encoded bytes."""
        return drawn([hashlib.sha256(self._encoded(number)).hexdigest() for number in range(len(self))], share)

    def _row(self, number: int) -> dict[str, Any]:
        return self.rows[self.numbers[number]]

    def _encoded(self, number: int) -> bytes:
        image = self._row(number)[self.image]
        if image is None:
            raise BadInput(f'{self.name(number)}: no image')
        try:
            return image['bytes'] if image['bytes'] is not None else Path(image['path']).read_bytes()
        except OSError as error:
            raise BadInput(f'{self.name(number)}: {one_line(error)}') from None
