"""Converts a published checkpoint: of an encoder to a Hugging Face folder, of a super-resolution network to a release.

    python tools/convert_weights.py --checkpoint RemoteCLIP-ViT-B-32.pt --architecture ViT-B-32 --out encoders/remoteclip
    python tools/convert_weights.py --checkpoint FOLDER --out FOLDER
    python tools/convert_weights.py --checkpoint realesrgan-x4plus --out baselines/x4plus
    python tools/convert_weights.py --checkpoint esrgan_8S2.pth --architecture satlas-esrgan-8s2 --out baselines/satlas

An encoder's checkpoint is an open_clip file (.pt, .bin or .safetensors; give its --architecture by open_clip's name), an
open_clip folder (open_clip_config.json with the weights), or a Hugging Face folder with pickled weights (config.json and
pytorch_model.bin). The tokenizer is that of the folder, otherwise that of --tokenizer.

A super-resolution network (docs/baselines.md lists them) is a file of its authors (.pth), ncnn's .param beside its .bin, or
the name of a network that a package of the extra `baselines` has. The output is a release of a regression in float32, without
loss; sample.py and evaluate.py take it as --checkpoint.

Pickles are read by a reader that only knows tensors; it rejects a pickle with anything else.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from absl import flags

from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json
from rsdiff.downstream.encoder import TOKENIZER_FILES, load_tokenizer
from rsdiff.methods import published
from rsdiff.pretrained import hub, open_clip, towers, weights
from rsdiff.pretrained.foreign_pickle import read_torch
from rsdiff.programs import console
from rsdiff.training.conversion import convert_published

CHECKPOINT = flags.DEFINE_string(
    'checkpoint', None, 'A file or a folder, or the name of a packaged network.', required=True
)
ARCHITECTURE = flags.DEFINE_string(
    'architecture',
    None,
    "For a file: open_clip's name of the architecture, such as ViT-B-32 or ViT-B-32-quickgelu, or one of "
    f'{", ".join(published.NETWORKS)}.',
)
TOKENIZER = flags.DEFINE_string(
    'tokenizer',
    'openai/clip-vit-base-patch32',
    'A folder or hub name to take the tokenizer from, if the checkpoint has none.',
)
OUT = flags.DEFINE_string('out', None, 'The folder to write.', required=True)

OPEN_CLIP_CONFIG = 'open_clip_config.json'
OPEN_CLIP_WEIGHTS = 'open_clip_model.safetensors', 'open_clip_pytorch_model.safetensors', 'open_clip_pytorch_model.bin'
PICKLED = 'pytorch_model.bin'


def read_tensors(path: Path) -> dict[str, Any]:
    """The tensors of a file by name; of an open_clip training checkpoint, those of the model."""
    return weights.read_safetensors(path) if path.suffix == '.safetensors' else read_torch(path, entry='state_dict')


def read_encoder(path: Path) -> tuple[towers.Config, dict[str, Any], dict[str, Any] | None]:
    """(config, parameters, content of preprocessor_config.json, or None if the folder's own is kept)."""
    if path.is_file():
        if ARCHITECTURE.value is None:
            raise BadInput(f'{path}: a weights file needs --architecture, such as ViT-B-32 or realesrgan-x4plus')
        config = open_clip.named_config(ARCHITECTURE.value)
        preprocessing = open_clip.preprocessing_from_json({}, config, str(path))
        return config, open_clip.params_from(config, read_tensors(path), str(path)), preprocessing
    if ARCHITECTURE.value is not None:
        raise BadInput(f'--architecture is for files; the folder {path} names its own')
    if (path / OPEN_CLIP_CONFIG).is_file():
        where = str(path / OPEN_CLIP_CONFIG)
        row = read_json(path / OPEN_CLIP_CONFIG)
        row = row if isinstance(row, dict) else {}
        config = open_clip.config_from_json(row.get('model_cfg'), where)
        preprocessing = open_clip.preprocessing_from_json(row.get('preprocess_cfg') or {}, config, where)
        file = next((path / name for name in OPEN_CLIP_WEIGHTS if (path / name).is_file()), None)
        if file is None:
            raise BadInput(f'{path}: none of {", ".join(OPEN_CLIP_WEIGHTS)}')
        return config, open_clip.params_from(config, read_tensors(file), str(file)), preprocessing
    if (path / PICKLED).is_file():
        config = towers.config_from_json(read_json(path / towers.CONFIG), str(path / towers.CONFIG))
        towers.load_preprocessing(path, config)
        return config, towers.params_from(config, read_torch(path / PICKLED), str(path / PICKLED)), None
    packaged = ', '.join(name for name, network in published.NETWORKS.items() if network.package)
    raise BadInput(
        f'{path}: neither a file, nor a folder with {OPEN_CLIP_CONFIG} or {PICKLED}, nor a packaged network ({packaged})'
    )


def convert_encoder(source: Path, out: Path) -> dict[str, Any]:
    """Writes the folder of an encoder and returns its facts."""
    config, params, preprocessing = read_encoder(source)
    brings_tokenizer = source.is_dir() and any((source / file).is_file() for file in TOKENIZER_FILES)
    try:
        folder = source if brings_tokenizer else hub.folder_of(TOKENIZER.value)
    except BadInput as error:
        raise BadInput(f'--tokenizer: {error}') from None
    tokenizer = load_tokenizer(folder, config)

    tokenizer.save_pretrained(out)
    if preprocessing is not None:
        (out / towers.PREPROCESSOR).write_text(json.dumps(preprocessing, indent=2) + '\n')
    elif (source / towers.PREPROCESSOR).is_file():
        shutil.copy(source / towers.PREPROCESSOR, out)
    towers.save(out, config, params)
    tensors = weights.torch_shapes(params)
    return {
        'kind': config.to_json()['model_type'],
        'image_size_px': config.image_size_px,
        'embedding_dim': config.embedding_dim,
        'activation': config.vision_config.hidden_act,
        'tensors': len(tensors),
        'digest': weights.digest(params, config.to_json()),
    }


def main() -> None:
    source, out, name = Path(CHECKPOINT.value), Path(OUT.value), ARCHITECTURE.value
    if out.exists() and any(out.iterdir() if out.is_dir() else [out]):
        raise BadInput(f'{out} exists; use another --out, or remove it')
    if not source.exists() and CHECKPOINT.value in published.NETWORKS:
        if name not in (None, CHECKPOINT.value):
            raise BadInput(f'--architecture is {name}, but --checkpoint is {CHECKPOINT.value}')
        name = CHECKPOINT.value
        source = published.packaged(name)
    facts = convert_published(name, source, out) if name in published.NETWORKS else convert_encoder(source, out)
    console.finish({'out': str(out), 'checkpoint': CHECKPOINT.value, **facts}, out / 'conversion.json')


if __name__ == '__main__':
    console.run(main)
