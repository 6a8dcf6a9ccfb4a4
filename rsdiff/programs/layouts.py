"""Prepares a published dataset of real pairs, in its own layout, as a folder with a manifest; see `programs.prepare`."""

import dataclasses
import sys
import time
from pathlib import Path

from tqdm import tqdm

from rsdiff.base import folders
from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_whole, read_json, stamp
from rsdiff.data.fingerprints import carry_fingerprints
from rsdiff.data.folder import MANIFEST
from rsdiff.data.layouts import fmow, manifest, s2naip, worldstrat
from rsdiff.data.layouts.convert import Conversion, convert, recorded
from rsdiff.data.layouts.places import Colours
from rsdiff.programs import console

REPORT = 'prepare.json'
LAYOUTS = {'s2naip': s2naip.find, 'fmow': fmow.find, 'worldstrat': worldstrat.find, 'manifest': manifest.find}
NAMED = 5


def prepare_layout(
    layout: str, source: str, out: Path, colours: Colours, conversion: Conversion, leave_out: bool
) -> None:
    """Converts the dataset in the folder `source`, and prints the report, which it also writes to OUT/prepare.json.

    Args:
      leave_out: whether to leave out what is incomplete; else it is an error, once all that is complete is written.
    Raises:
      BadInput: the folder has not that layout, something in it is incomplete, or nothing is left; `out` holds something else.
    """
    started, folder = time.monotonic(), Path(source)
    if not folder.is_dir():
        raise BadInput(f'{source}: no such folder')
    places = list(LAYOUTS[layout](folder, colours))
    if not places:
        raise BadInput(f'{source}: empty; it has the folders of the layout {layout}, and nothing in them')
    settings = {
        'prepare_data': 1,
        'layout': layout,
        'source': str(folder.resolve()),
        **colours._asdict(),
        **dataclasses.asdict(conversion),
    }
    folders.claim_folder(out, settings)
    lock, report = folders.FolderLock(out), out / REPORT
    lock.acquire()
    try:
        if report.exists():
            result = read_json(report, f'remove {report} to prepare again')
            whole = result.get('places') == len(recorded(out)) and is_whole(out / MANIFEST, result.get('manifest'))
            if whole and not result.get('left_out'):  # what was left out may have been restored
                print(f'{out} is finished', file=sys.stderr)
                return console.finish(result, report)
            report.unlink()
        (out / MANIFEST).unlink(missing_ok=True)
        with tqdm(total=len(places), desc='converting', unit=' places', dynamic_ncols=True) as bar:
            counts, problems = convert(places, out, conversion, leave_out, bar.update)
        first = '; '.join(f'{name}: {problem}' for name, problem in list(problems.items())[:NAMED])
        if problems and not leave_out:
            raise BadInput(
                f'{source}: {len(problems)} of {len(places)} are incomplete ({first}{"; …" if len(problems) > NAMED else ""}); '
                'restore what is missing, or give --leave_out_incomplete'
            )
        if not counts.get('images'):
            raise BadInput(f'{source}: no image is left of {len(places)} places: {counts or first}')
        carry_fingerprints(folder, out)
        result = {
            'out': str(out),
            'layout': layout,
            'places': len(recorded(out)),
            **counts,
            'radiometry': 'matched' if conversion.match_histograms else 'as published',
            'left_out': problems,
            'manifest': stamp(out / MANIFEST),
            'seconds': round(time.monotonic() - started),
        }
        console.finish(result, report)
    finally:
        lock.release()
