"""Runs scripts of this checkout as from the command line, in processes forked from a server that has already imported the
libraries. Importing them takes longer than most of what tests run."""

import json
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIBRARIES = 'tensorflow_datasets', 'transformers', 'matplotlib.pyplot', 'tqdm', 'ml_collections.config_flags'
ROOMS = 'training.loop', 'sampling.binding', 'sampling.mosaic.cascade', 'evaluation.comparison', 'downstream.compare'
server = multiprocessing.get_context('forkserver')
server.set_forkserver_preload([*LIBRARIES, *(f'rsdiff.{name}' for name in ROOMS)])


def run_script(script, *arguments, env=None, cwd=ROOT) -> subprocess.CompletedProcess:
    """The ended process of `python script arguments…`, with its output as text.

    Args:
      env: variables to set besides those of this process.
    """
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ('out', 'err')]
        process = server.Process(target=_run, args=(command, cwd, {**os.environ, **(env or {})}, paths))
        process.start()
        process.join()
        texts = [path.read_text() for path in paths]
    return subprocess.CompletedProcess(command, process.exitcode, *texts)


def last_line(done):
    """The last line of a process that succeeded, as an object."""
    assert done.returncode == 0 and 'Traceback' not in done.stderr, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def error_line(done):
    """The one-line error of a process that failed on its input."""
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 2 and 'Traceback' not in done.stderr and len(lines) == 1, done.stderr[-2000:]
    return lines[0]


def _run(command, cwd, env, paths):
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for number, path in enumerate(paths, 1):
        with open(path, 'wb') as file:
            os.dup2(file.fileno(), number)
    script = str(Path(command[0]).absolute())
    sys.argv, sys.orig_argv = command, [sys.executable, *command]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name='__main__')
