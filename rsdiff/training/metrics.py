"""What a run tells: JSON lines in `metrics.jsonl`, pictures in `samples/`, TensorBoard's files where tensorboardX is
installed (the `tensorboard` extra), and a progress bar."""

import json
import math
import time
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from rsdiff.data.images import write_image
from rsdiff.files import write_text_atomically


class Metrics:
    """Rows on disk and a bar on the console, counted in images. `latest` holds the newest value of each figure."""

    def __init__(self, workdir: epath.PathLike, total_images: int, images_seen: int, show: bool):
        self.workdir = epath.Path(workdir)
        path = self.workdir / 'metrics.jsonl'
        lines = path.read_text().splitlines() if path.exists() else []
        # what an interrupted run had told beyond its last checkpoint is told again
        kept = [line for line in lines if _images_seen(line) <= images_seen]
        write_text_atomically(path, ''.join(line + '\n' for line in kept))
        self.latest: dict[str, Any] = {key: value for line in kept for key, value in json.loads(line).items()}
        self.file = path.open('a')
        self.board = _tensorboard(self.workdir / 'tensorboard', images_seen)
        self.bar = tqdm(total=total_images, initial=images_seen, unit='image', desc='training', disable=not show,
                        smoothing=0.05, dynamic_ncols=True)
        self.last = (images_seen, time.monotonic())

    def advance(self, images: int, loss: float) -> None:
        """Moves the bar."""
        self.bar.set_postfix_str(f'loss {loss:.4f}', refresh=False)
        self.bar.update(images)

    def rate(self, images_seen: int) -> dict[str, float]:
        """Images a second since the last call."""
        now = time.monotonic()
        images, seconds = images_seen - self.last[0], now - self.last[1]
        self.last = (images_seen, now)
        return {'images_per_second': round(images / max(seconds, 1e-9), 2)}

    def write(self, images_seen: int, row: dict[str, Any]) -> None:
        """Adds a row."""
        row = {'images_seen': images_seen, **row}
        self.latest |= row
        self.file.write(json.dumps(row) + '\n')
        self.file.flush()
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
        """Ends the bar and the files."""
        self.bar.close()
        self.file.close()
        if self.board:
            self.board.close()


class Silent:
    """The `Metrics` of every process but the first: says nothing."""

    latest: dict[str, Any] = {}

    def __getattr__(self, _):
        return lambda *args: {}


def _tensorboard(folder: epath.Path, images_seen: int):
    """A writer of TensorBoard's files that takes back what was told beyond `images_seen`; None without tensorboardX."""
    try:
        from tensorboardX import SummaryWriter  # here, because it imports torch wherever that is installed
    except ImportError:
        return None
    return SummaryWriter(str(folder), purge_step=images_seen + 1)


def _images_seen(line: str) -> float:
    """Where a row stands; a line that was cut off stands beyond everything."""
    try:
        return json.loads(line)['images_seen']
    except (json.JSONDecodeError, KeyError):
        return math.inf
