"""Output folders, checked by their settings and locked by one process at a time, and the cache folder."""

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
    """Writes the settings that the contents of `folder` depend on, or compares them with those already there.

    Raises:
      BadInput: the folder holds output of other settings (each is named), or files of another program.
    """
    folder = Path(folder)
    path = folder / SETTINGS
    if folder.exists() and not folder.is_dir():
        raise BadInput(f'{folder} is a file; --out needs a folder')
    folder.mkdir(parents=True, exist_ok=True)
    # in this order: another process writes its settings before its output
    if any(not file.name.startswith('.') for file in folder.iterdir()) and not path.exists():
        raise BadInput(f'{folder} exists and is not output of this program; use another --out')
    if not path.exists():
        with _turn(folder / f'.{SETTINGS}.lock'):  # of several processes, one writes and the others compare
            if not path.exists():
                write_json(path, settings)
    old, new = read_json(path, 'use another --out'), json.loads(json.dumps(settings))
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    values = [f'{key} {old.get(key)!r} → {new.get(key)!r}' for key in changed]
    # long values, such as digests, are not shown
    named = [key if len(value) > 80 else value for key, value in zip(changed, values)]
    if changed:
        raise BadInput(f'{folder} holds output of other settings ({"; ".join(named)}); use another --out or remove it')


@contextlib.contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Locks `path` for one process at a time; does nothing if the file system has no locks."""
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
    """Locks a folder for one process, until it ends in any way. Does nothing in a bucket, which has no locks."""

    def __init__(self, folder: epath.PathLike):
        self.folder = epath.Path(folder)
        self.lock = filelock.FileLock(self.folder / '.lock') if is_local(folder) else None

    def acquire(self) -> None:
        """Locks the folder, and creates it if needed.

        Raises:
          BadInput: another process holds the lock.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            if self.lock:
                self.lock.acquire(timeout=0)
        except filelock.Timeout:
            raise BadInput(f'{self.folder} is in use by another process; wait for it, or use another folder') from None

    def release(self) -> None:
        """Releases the lock, if this process holds it."""
        if self.lock:
            self.lock.release()


def cache_folder() -> Path:
    """The folder for files that can be recreated."""
    return Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache')) / 'rsdiff'
