"""A record of the finished images of a folder: one line each, with the size and the digest of the file."""

import json
from pathlib import Path
from typing import Any, Iterable

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_whole, parse_json, stamp, write_text_atomically

FILE = '.made.jsonl'


class Made:
    """The file `.made.jsonl` of `folder`. A line damaged by a power cut or an editor is ignored, and its image is made
    again."""

    def __init__(self, folder: Path):
        self.folder, self.rows = Path(folder), {}
        path = self.folder / FILE
        for line in path.read_bytes().split(b'\n') if path.is_file() else []:
            try:
                row = parse_json(line, FILE)
            except BadInput:
                continue
            if isinstance(row, dict) and isinstance(row.get('file_name'), str):
                self.rows[row['file_name']] = row

    def source(self, name: str) -> Any:
        """The source of `name` as given to `add`; None if unknown."""
        return self.rows.get(name, {}).get('source')

    def has(self, name: str, source: str) -> bool:
        """Whether the file `name` was made from `source` and has not changed since."""
        row = self.rows.get(name, {})
        return row.get('source') == source and is_whole(self.folder / name, [row.get('size'), row.get('sha256')])

    def add(self, name: str, source: str) -> None:
        """Records that the existing file `name` was made from `source`, a digest."""
        size, sha256 = stamp(self.folder / name)
        self.rows[name] = {'file_name': name, 'source': source, 'size': size, 'sha256': sha256}
        with (self.folder / FILE).open('a') as file:
            file.write(f'\n{json.dumps(self.rows[name])}')  # on a new line, in case the last one was cut off

    def keep(self, names: Iterable[str]) -> None:
        """Writes the lines of `names`, in this order, and no others."""
        write_text_atomically(self.folder / FILE, ''.join(json.dumps(self.rows[name]) + '\n' for name in names))
