"""Configs and weights by name, and paths that take precedence over names."""

from pathlib import Path

import pytest
from absl import flags

from rsdiff.base import shipped
from rsdiff.base.errors import BadInput
from rsdiff.downstream import embedded
from rsdiff.programs import console
from rsdiff.training.checkpoint import load_generator


def test_configs_and_weights_have_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(shipped.find_config('demo')) == shipped.CONFIGS / 'demo.py'
    assert shipped.find_config('metaearth:bicubic') == f'{shipped.CONFIGS / "metaearth.py"}:bicubic'
    for name in ('earth', 'aerial'):
        assert load_generator(shipped.find_checkpoint(name)).images_seen


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ('earth', 'embedded'):
        (tmp_path / name).mkdir()
    (tmp_path / 'demo').write_text('')
    assert shipped.find_checkpoint('earth') == 'earth'
    assert shipped.find_config('demo') == 'demo' and shipped.find_config('demo:x') == 'demo:x'
    with pytest.raises(BadInput, match='^embedded'):
        embedded.named_encoder('embedded')
    assert shipped.find_checkpoint('gs://bucket/run') == 'gs://bucket/run'


@pytest.mark.parametrize(
    'find, known',
    [(shipped.find_config, 'ablation, aerial, .*demo, earth, .*'), (shipped.find_checkpoint, 'aerial, earth')],
)
@pytest.mark.parametrize('name', ['mars', 'folder/earth'])
def test_what_is_neither_is_told_what_there_is(find, known, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadInput, match=f'{name}: .* {known}$'):
        find(name)


def test_a_config_by_name_takes_settings(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    values = flags.FlagValues()
    console.define_config('A config.', values)
    monkeypatch.setattr('sys.argv', ['train.py', '--config', 'aerial', '--config.batch_size=3'])
    values(['train.py', '--config', 'aerial', '--config.batch_size=3'])
    assert values.config.batch_size == 3 and values.config.data.source == 'data/aerial'
