"""Shared by all programs: one clear error line for bad input, and one JSON object as the last line of output."""

import ctypes
import errno
import json
import os
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Callable

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from rsdiff.base.errors import BadInput, one_line
from rsdiff.base.files import AnyPath, write_json
from rsdiff.base.folders import cache_folder
from rsdiff.base.shipped import ROOT, find_config

flags.disclaim_key_flags()  # flags defined here count as flags of the calling program


def run(main: Callable[[], None]) -> None:
    """Parses flags, runs `main`, and turns errors that the user can fix into one line on stderr and an exit code: 2 for
    `BadInput`, bad flags and files that can't be read or written, 1 for non-finite values, 130 for Ctrl-C."""

    def parse(argv):
        try:
            return app.parse_flags_with_usage(argv) if _asks_for_help(argv) else flags.FLAGS(argv)
        except BadInput as error:  # raised by a config file
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)
        except (
            flags.Error,
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            OSError,
            ImportError,
            SyntaxError,
        ) as error:
            reason = str(error.args[0] if error.args else error).replace('\\n', ' ').replace("\\'", "'")
            print(f'error: flags: {" ".join(reason.split())}', file=sys.stderr)
            sys.exit(2)

    def guarded(argv):
        logging.set_verbosity(logging.WARNING)  # some libraries log every file they write
        try:
            if len(argv) > 1:
                raise BadInput(f'unexpected argument {argv[1]!r}; flags begin with --')
            main()
        except BadInput as error:
            print(f'error: {error}', file=sys.stderr)
            sys.exit(2)
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            advice = '; free some space and run the same command again' if full else ''
            print(f'error: {one_line(error)}{advice}', file=sys.stderr)
            sys.exit(2)
        except FloatingPointError as error:
            print(f'error: {error}', file=sys.stderr)
            sys.exit(1)
        except KeyboardInterrupt:
            print('interrupted; run the same command again to continue', file=sys.stderr)
            sys.exit(130)

    _show_as_main(sys.modules[main.__module__])
    app.run(guarded, flags_parser=parse)


def _show_as_main(program: types.ModuleType) -> None:
    """Makes --help show the docstring and flags of `program`, whichever script or installed command started it."""
    modules, called = flags.FLAGS.flags_by_module_dict(), sys.argv[0]
    if program.__name__ in modules:  # absent if the program is itself the script
        modules[called] = modules.pop(program.__name__)
    text = program.__doc__
    if text and not called.endswith('.py'):
        text = re.sub(r'python (tools/)?\w+\.py', Path(called).name, text)
    sys.modules['__main__'].__doc__ = text


def _asks_for_help(argv: list[str]) -> bool:
    return any(argument.lstrip('-').startswith('help') for argument in argv[1:])


def define_config(help_text: str, flag_values: flags.FlagValues = flags.FLAGS) -> None:
    """Defines --config and --config.KEY=VALUE. Its value is a config file or the name of a config shipped with rsdiff."""
    config_flags.DEFINE_config_file('config', None, help_text, flag_values, lock_config=False)
    parser: Any = flag_values['config'].parser
    load = parser.parse

    def parse(given):
        if str(ROOT) not in sys.path:
            sys.path.append(str(ROOT))  # a config may import another, such as configs.demo
        return load(find_config(given))

    parser.parse = parse


def enable_compilation_cache() -> None:
    """Caches compiled programs in JAX_COMPILATION_CACHE_DIR (default: the user's cache), so that later runs need not
    compile."""
    default = cache_folder() / 'xla'
    jax.config.update('jax_compilation_cache_dir', os.environ.get('JAX_COMPILATION_CACHE_DIR', str(default)))
    if 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS' not in os.environ:
        jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.5)


def share_one_heap() -> None:
    """Makes all threads allocate from one heap. By default glibc gives each thread its own heap, which cannot reuse memory
    freed in another, so a long run with many threads keeps growing. Call it before any thread starts. No effect without
    glibc."""
    m_arena_max = -8  # from malloc.h
    if sys.platform == 'linux' and hasattr(libc := ctypes.CDLL(None), 'mallopt'):
        libc.mallopt(m_arena_max, 1)


def flag_numbers(name: str, kind: type, count: int | None = None) -> tuple | None:
    """Value of a flag that takes `count` comma-separated numbers (any count if None), or None if the flag is not given.

    Raises:
      BadInput: the value is anything else.
    """
    text = flags.FLAGS[name].value
    try:
        values = None if text is None else tuple(map(kind, text.split(',')))
    except ValueError:
        values = ()
    if values is not None and len(values) != (count or max(len(values), 1)):
        raise BadInput(f'--{name} is {text}; it must be {count or ""} numbers separated by commas'.replace('  ', ' '))
    return values


def call(*arguments: object) -> None:
    """Runs Python with these arguments, and shows its messages and progress. If it fails, exits with its status."""
    if status := subprocess.run([sys.executable, *map(str, arguments)], stdout=subprocess.DEVNULL).returncode:
        sys.exit(status)


def finish(result: dict[str, Any], path: AnyPath) -> None:
    """Prints `result` as one JSON line, the last line of output, and writes it to `path`."""
    write_json(path, result)
    print(json.dumps(result), flush=True)
