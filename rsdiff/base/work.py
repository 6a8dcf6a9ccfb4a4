"""Work shared out among processes that do not talk: on one machine, or on any number that see the same folder.

Everyone goes through the same list and makes what is neither there nor claimed. A claim is a lock on a file, which the
system takes back when its holder ends in whatever way, so that the work of a killed process is free at once. Claims
only save work: where a file system knows no locks, or two processes race, both make the same bytes.
"""

import contextlib
import logging
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Callable, Iterable, Iterator, TypeVar

import filelock

Item = TypeVar('Item')
POLL_SECONDS = 0.5


class Claims:
    """Claims of names, as files in `folder`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Whether `name` is this process's alone, for as long as the context lasts."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f'{name}.lock'
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            yield False
            return
        except NotImplementedError:
            yield True
            return
        try:
            yield True
        finally:
            # whoever has opened the file in the meantime gets a lock on nothing, and finds the work done
            path.unlink(missing_ok=True)
            lock.release()


def share_out(
    items: Iterable[Item],
    is_done: Callable[[Item], bool],
    make: Callable[[Item], None],
    claim: Callable[[Item], contextlib.AbstractContextManager[bool]],
) -> Iterator[tuple[Item, bool]]:
    """Makes what is not there, and ends when all of it is there, whoever has made it.

    Yields:
      Each item once it is there, and whether it was made here.
    """
    while True:
        busy = []  # at most one for each of the others
        for item in items:
            made = False
            if not is_done(item):
                with claim(item) as mine:
                    if not mine:
                        busy.append(item)
                        continue
                    if not is_done(item):
                        make(item)
                        made = True
            yield item, made
        if not busy:
            return
        time.sleep(POLL_SECONDS)
        items = busy


PARENT = 'RSDIFF_WORKER_OF'


@contextlib.contextmanager
def local_workers(count: int) -> Iterator[None]:
    """This program `count` - 1 more times, with the same arguments, until the context ends: when they have finished, or at
    once where it ends by an exception. They are silent: what stops one of them stops this process at the same place."""
    # what Python itself was given: a script, an installed command, or `-m` and a module, which sys.argv does not tell apart
    command, environment = [sys.executable, *sys.orig_argv[1:]], os.environ | {PARENT: str(os.getpid())}
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(0 if is_local_worker() else count - 1)
    ]
    try:
        yield
        for worker in workers:
            if code := worker.wait():
                logging.warning('a worker ended with exit code %d; the others did its share', code)
    except BaseException:
        for worker in workers:
            worker.kill()
        raise


def is_local_worker() -> bool:
    """Whether this process is one of `local_workers`."""
    return PARENT in os.environ


def end_without_parent() -> None:
    """Ends a local worker whose parent is no more."""
    if is_local_worker() and os.getppid() != int(os.environ[PARENT]):
        sys.exit('the process that began this one has ended')
