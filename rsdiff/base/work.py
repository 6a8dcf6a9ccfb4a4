"""Work distributed among processes that do not communicate, on one machine or on several that share a folder.

Every process goes through the same list and makes each item that neither exists nor is claimed. A claim is a lock on a
file. The operating system releases it when its holder ends in any way, so that the work of a killed process is free at
once. Claims only avoid duplicate work: without file locks, or in a race, two processes make the same bytes.
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
STOP_SECONDS = 60  # for a worker to save what it has


class Claims:
    """Claims on names, held as lock files in `folder`."""

    def __init__(self, folder: Path):
        self.folder = Path(folder)

    @contextlib.contextmanager
    def claim(self, name: str) -> Iterator[bool]:
        """Yields whether this process alone holds `name` while the context lasts."""
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
            # a process that has opened the file in the meantime locks a deleted file, and finds the work done
            path.unlink(missing_ok=True)
            lock.release()


def share_out(
    items: Iterable[Item],
    is_done: Callable[[Item], bool],
    make: Callable[[Item], None],
    claim: Callable[[Item], contextlib.AbstractContextManager[bool]],
) -> Iterator[tuple[Item, bool]]:
    """Makes the missing items, and ends when all items exist, whichever process made them.

    Yields:
      Each item once it exists, and whether this process made it.
    """
    while True:
        busy = []  # claimed by other processes, at most one by each
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
    """Starts this program `count` - 1 more times with the same arguments. If the context ends normally, waits for these
    workers; if it ends with an exception, stops them. They print nothing: an error that stops a worker stops this process
    at the same place."""
    # the arguments of Python itself: a script, an installed command, or `-m` and a module, which look the same in sys.argv
    command, environment = [sys.executable, *sys.orig_argv[1:]], os.environ | {PARENT: str(os.getpid())}
    workers = [
        subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(0 if is_local_worker() else count - 1)
    ]
    try:
        yield
        for worker in workers:
            if code := worker.wait():
                logging.warning('a worker exited with code %d; the other processes did its share of the work', code)
    except BaseException:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            try:
                worker.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                worker.kill()
        raise


def is_local_worker() -> bool:
    """Whether this process is one of `local_workers`."""
    return PARENT in os.environ


def end_without_parent() -> None:
    """Exits if this process is a local worker whose parent process has died."""
    if is_local_worker() and os.getppid() != int(os.environ[PARENT]):
        sys.exit('the parent process of this worker has died')
