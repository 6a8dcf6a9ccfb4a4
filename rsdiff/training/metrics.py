"""What a run tells: one JSON line per row in `metrics.jsonl`, a progress bar, and grids of samples as PNG."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rsdiff.console import write_text_atomically
from rsdiff.data.images import bicubic, to_uint8, write_image


class Metrics:
    """Rows on disk and a bar on the console, counted in images."""

    def __init__(self, workdir: Path, total_images: int, images_seen: int, show: bool):
        path = Path(workdir) / 'metrics.jsonl'
        lines = path.read_text().splitlines() if path.exists() else []
        # what an interrupted run had told beyond its last checkpoint is told again
        kept = [line for line in lines if _images_seen(line) <= images_seen]
        write_text_atomically(path, ''.join(line + '\n' for line in kept))
        self.last_row: dict[str, Any] = json.loads(kept[-1]) if kept else {}
        self.file = path.open('a')
        self.bar = tqdm(total=total_images, initial=images_seen, unit='image', desc='training', disable=not show,
                        smoothing=0.05, dynamic_ncols=True)
        self.last = (images_seen, time.monotonic())

    def advance(self, images: int, loss: float) -> None:
        """Moves the bar."""
        self.bar.set_postfix_str(f'loss {loss:.4f}', refresh=False)
        self.bar.update(images)

    def write(self, images_seen: int, row: dict[str, Any]) -> dict[str, Any]:
        """Adds a row, with the rate since the last; returns it."""
        now = time.monotonic()
        images, seconds = images_seen - self.last[0], now - self.last[1]
        self.last = (images_seen, now)
        row = {'images_seen': images_seen, **row, 'images_per_second': round(images / max(seconds, 1e-9), 2)}
        self.file.write(json.dumps(row) + '\n')
        self.file.flush()
        return row

    def close(self) -> None:
        """Ends the bar and the file."""
        self.bar.close()
        self.file.close()


def _images_seen(line: str) -> float:
    """Where a row stands; a line that was cut off stands beyond everything."""
    try:
        return json.loads(line)['images_seen']
    except (json.JSONDecodeError, KeyError):
        return math.inf


def write_sample_grid(path: Path, lr: np.ndarray, samples: np.ndarray, truth: np.ndarray) -> None:
    """One row an example: bicubic condition, sample, truth. lr: (n, h/4, w/4, 3); the others (n, h, w, 3); [-1, 1]."""
    size = truth.shape[1]
    rows = [np.concatenate([bicubic(to_uint8(a), size, size), to_uint8(b), to_uint8(c)], axis=1)
            for a, b, c in zip(lr, samples, truth)]
    write_image(path, np.concatenate(rows, axis=0))
