"""tools/few_shot.py: a smaller folder, identical on every run."""

import json
from pathlib import Path

from scripts import run_script

from rsdiff.data.folder import Entry, read_folder, write_manifest
from rsdiff.data.images import write_image

ROOT = Path(__file__).parents[1]


def run(images, per_class, out):
    done = run_script('tools/few_shot.py', '--images', images, '--per_class', per_class, '--out', out)
    return done.returncode, (done.stdout if done.returncode == 0 else done.stderr).splitlines()[-1]


def test_so_many_of_each_class_and_every_other_split_whole(smooth_image, tmp_path):
    entries = [
        Entry(tmp_path / 'all' / f'{label}/{n}.png', f'{label}/{n}.png', split, label, gsd_m=2.0, extra={'by': 'me'})
        for label in ('lake', 'wood')
        for n, split in enumerate(['train'] * 5 + ['val', 'test', 'test'])
    ]
    for number, entry in enumerate(entries):
        write_image(entry.path, smooth_image(8, 8, number))
    write_manifest(tmp_path / 'all', entries)
    code, line = run(tmp_path / 'all', 2, tmp_path / 'few')
    assert code == 0 and json.loads(line) == json.loads((tmp_path / 'few' / 'few_shot.json').read_text())
    assert json.loads(line)['images'] == {'train': 4, 'val': 2, 'test': 4}
    kept = read_folder(tmp_path / 'few')
    assert [entry.label for entry in kept if entry.split == 'train'] == ['lake', 'lake', 'wood', 'wood']
    rows = {entry.file_name: entry.to_json() for entry in entries}
    for entry in kept:
        assert entry.to_json() == rows[entry.file_name]
        assert entry.path.read_bytes() == (tmp_path / 'all' / entry.file_name).read_bytes()
    run(tmp_path / 'all', 2, tmp_path / 'again')
    assert (tmp_path / 'again' / 'metadata.jsonl').read_bytes() == (tmp_path / 'few' / 'metadata.jsonl').read_bytes()

    assert run(tmp_path / 'all', 2, tmp_path / 'few') == (
        2,
        f'error: {tmp_path}/few holds a metadata.jsonl; use another --out',
    )
    code, line = run(tmp_path / 'all', 6, tmp_path / 'more')
    assert code == 2 and "class 'lake'" in line and 'has 5 training images' in line and not (tmp_path / 'more').exists()
    write_manifest(tmp_path / 'all', [Entry(entries[0].path, entries[0].file_name, 'train')])
    code, line = run(tmp_path / 'all', 1, tmp_path / 'more')
    assert code == 2 and 'lake/0.png: no label in the manifest' in line
