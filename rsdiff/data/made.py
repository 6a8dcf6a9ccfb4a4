"""Which images of a folder were made and are whole: a line for each, with the size and the digest of its file."""

import json
from pathlib import Path
from typing import Any, Iterable

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_whole, parse_json, stamp, write_text_atomically

FILE = '.made.jsonl'


class Made:
    """The file `.made.jsonl` of `folder`. A line that is broken, by a power cut or an editor, counts for nothing: what it
    stood for is made again."""

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
        """What `name` was made from, as `add` was told; None where it is not known."""
        return self.rows.get(name, {}).get('source')

    def has(self, name: str, source: str) -> bool:
        """Whether the file `name` was made from `source` and is as it was when it was made."""
        row = self.rows.get(name, {})
        return row.get('source') == source and is_whole(self.folder / name, [row.get('size'), row.get('sha256')])

    def add(self, name: str, source: str) -> None:
        """Notes the file `name`, which is there, as made from `source`, a digest."""
        size, sha256 = stamp(self.folder / name)
        self.rows[name] = {'file_name': name, 'source': source, 'size': size, 'sha256': sha256}
        with (self.folder / FILE).open('a') as file:
            file.write(f'\n{json.dumps(self.rows[name])}')  # not behind a line that broke off

    def keep(self, names: Iterable[str]) -> None:
        """Writes the lines of `names`, in this order, and no others."""
        write_text_atomically(self.folder / FILE, ''.join(json.dumps(self.rows[name]) + '\n' for name in names))
