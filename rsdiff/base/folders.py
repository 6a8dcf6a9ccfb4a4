"""Folders that programs write into: whose they are, one process at a time, and where what can be made again is kept."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, Iterator

import filelock
from etils import epath

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local, read_json, write_json

SETTINGS = 'settings.json'


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings that the contents of `folder` depend on, or checks them against those that are there.

    Raises:
      BadInput: the folder holds output of other settings (each is named), or files of someone else.
    """
    folder = Path(folder)
    path = folder / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise BadInput(f'{folder} is a file; --out needs a folder')
    folder.mkdir(parents=True, exist_ok=True)
    # in this order: whoever has output here wrote the settings before
    if any(not file.name.startswith('.') for file in folder.iterdir()) and not path.exists():
        raise BadInput(f'{folder} exists and is not output of this program; use another --out')
    if not path.exists():
        with _turn(folder / f'.{SETTINGS}.lock'):  # of several processes one writes, and the others compare
            if not path.exists():
                write_json(path, settings)
    old, new = read_json(path, 'use another --out'), json.loads(json.dumps(settings))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    values = [f'{key} {old.get(key)!r} → {new.get(key)!r}' for key in changed]
    # a digest says nothing to a person
    named = [key if len(value) > 80 else value for key, value in zip(changed, values)]
    if changed:
        raise BadInput(f'{folder} holds output of other settings ({"; ".join(named)}); use another --out or remove it')


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """One process at a time; where the file system knows no locks, all at once."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire()
    except NotImplementedError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


class FolderLock:
    """One process at a time in a folder, until it ends in whatever way. A bucket knows no locks; there it does nothing."""

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.lock = filelock.FileLock(self.folder / '.lock') if is_local(folder) else None

    def acquire(self) -> None:
        """Takes the folder, which is made if it is not there.

        Raises:
          BadInput: another process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.lock:
                self.lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f'{self.folder} is in use by another process; wait for it, or use another folder') from None

    def release(self) -> None:
        """Gives the folder back, if this process has it."""
        if self.lock:
            self.lock.release()


def cache_folder() -> Path:
    """Where things are kept that can be made again."""
    return Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'rsdiff'
