"""Metrics of a run: JSON lines in `metrics.jsonl`, images in `samples/`, TensorBoard files if tensorboardX is installed
(the `tensorboard` extra), and a progress bar."""

import json
import math
import time
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from rsdiff.base.errors import BadInput
from rsdiff.base.files import field, is_local, parse_json, write_text_atomically
from rsdiff.data.images import write_image

FILE = 'metrics.jsonl'


class Metrics:
    """Writes rows to disk and a progress bar to the console, counted in images. `latest` holds the newest value of each metric.

    Raises:
      BadInput: `metrics.jsonl` is not a valid metrics file.
    """

    def __init__(self, workdir: epath.PathLike, total_images: int, images_seen: int, show: bool):
        self.workdir = epath.Path(workdir)
        # rows that an interrupted run wrote after its last checkpoint will be written again
        rows = [row for row in read_metrics(self.workdir) if row['images_seen'] <= images_seen]
        self.latest: dict[str, Any] = {key: value for row in rows for key, value in row.items()}
        self.rows = _Rows(self.workdir / FILE, [json.dumps(row) + '\n' for row in rows])
        self.board = _tensorboard(self.workdir / 'tensorboard', images_seen)
        self.bar = tqdm(
            total=total_images,
            initial=images_seen,
            unit='image',
            desc='training',
            disable=not show,
            smoothing=0.05,
            dynamic_ncols=True,
        )
        self.last = (images_seen, time.monotonic())

    def advance(self, images: int, loss: float) -> None:
        """Advances the progress bar."""
        self.bar.set_postfix_str(f'loss {loss:.4f}', refresh=False)
        self.bar.update(images)

    def rate(self, images_seen: int) -> dict[str, float]:
        """Images per second since the last call."""
        now = time.monotonic()
        images, seconds = images_seen - self.last[0], now - self.last[1]
        self.last = (images_seen, now)
        return {'images_per_second': round(images / max(seconds, 1e-9), 2)}

    def write(self, images_seen: int, row: dict[str, Any]) -> None:
        """Adds a row."""
        row = {'images_seen': images_seen, **row}
        self.latest |= row
        self.rows.add(json.dumps(_finite(row)) + '\n')
        if self.board:
            for name, value in row.items():
                for number, one in enumerate(value if isinstance(value, list) else [value]):
                    self.board.add_scalar(f'{name}/{number}' if isinstance(value, list) else name, one, images_seen)

    def picture(self, images_seen: int, image: np.ndarray) -> None:
        """Writes `samples/<images seen>.png`, uint8 (h, w, 3)."""
        write_image(self.workdir / 'samples' / f'{images_seen:09d}.png', image)
        if self.board:
            self.board.add_image('samples', image, images_seen, dataformats='HWC')

    def close(self) -> None:
        """Closes the progress bar and the files."""
        self.bar.close()
        self.rows.close()
        if self.board:
            self.board.close()


class Silent:
    """Replaces `Metrics` on every process but the first: reports nothing."""

    latest: dict[str, Any] = {}

    def __getattr__(self, _):
        return lambda *args: {}


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl`; an empty list if it is missing. A truncated last line is left out.

    Raises:
      BadInput: another line is not a valid row.
    """
    path = epath.Path(workdir) / FILE
    if not path.exists():
        return []
    *lines, cut_off = path.read_bytes().split(b'\n')
    rows = []
    for number, line in enumerate(lines, 1):
        row = parse_json(line, f'{path}:{number}')
        if not isinstance(row, dict):
            raise BadInput(f'{path}:{number}: not a JSON object; remove the line')
        field(row, 'images_seen', int, f'{path}:{number}')
        rows.append(row)
    return rows


class _Rows:
    """Appends lines to a file, flushing each. The file starts with `lines`, which replace its former contents. A file in a
    bucket cannot be appended to and is rewritten each time."""

    def __init__(self, path: epath.Path, lines: list[str]):
        self.path, self.lines = path, lines
        write_text_atomically(path, ''.join(lines))
        self.file = path.open('a') if is_local(path) else None

    def add(self, line: str) -> None:
        if self.file:
            self.file.write(line)
            self.file.flush()
        else:
            self.lines.append(line)
            write_text_atomically(self.path, ''.join(self.lines))

    def close(self) -> None:
        if self.file:
            self.file.close()


def _tensorboard(folder: epath.Path, images_seen: int):
    """A TensorBoard writer that discards what was logged beyond `images_seen`; None without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # here, because it imports torch wherever that is installed
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=images_seen + 1)


def _finite(value: Any) -> Any:
    """`value` for JSON: values that are not finite, such as the PSNR of identical images, become null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
