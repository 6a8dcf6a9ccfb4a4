"""Training and evaluation at equal optimiser time: how many images each method sees follows from its own speed.

Speeds are measured in alternating rounds, so that whatever else the machine does affects all methods alike. Compilation,
validation and checkpoints do not count.
"""

import hashlib
import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from typing import Any, Callable

import jax
import jax.numpy as jnp
import ml_collections
from benchmark_rounds import spread

from rsdiff.base.errors import BadInput
from rsdiff.base.files import read_json, stamp, write_json
from rsdiff.base.shipped import ROOT, find_config
from rsdiff.data.pipeline import batches, make_source
from rsdiff.methods.base import fields_to_train
from rsdiff.pretrained.weights import read_safetensors_metadata
from rsdiff.programs import console
from rsdiff.training import mesh as meshes
from rsdiff.training.checkpoint import CONFIG, RELEASE, claim_workdir, load_generator, release
from rsdiff.training.config import TrainConfig
from rsdiff.training.loop import train
from rsdiff.training.state import Trainer

ROUNDS, STEPS = 5, 4
NEVER = 10**15


def load_config(name: str) -> ml_collections.ConfigDict:
    """The config `NAME` or `NAME:VARIANT` in configs/, or the file PATH or PATH:VARIANT. Flags of the calling program do not
    reach it.

    Raises:
      BadInput: there is none.
    """
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))  # where `configs` is, which a config may import
    path, _, variant = find_config(name).partition(':')
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise BadInput(f'{path}: no such config; there are those in configs/, such as demo')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(*([variant] if variant else []))


def for_images(config: ml_collections.ConfigDict, images: int) -> None:
    """Sets the length of a run, which has no validation before its end."""
    config.total_images = images
    config.validation.every_images = NEVER
    config.checkpoint_images = max(images // 10, 1)
    config.log_images = max(images // 50, 1)


def training_speeds(configs: dict[str, TrainConfig], path: Path) -> dict[str, float]:
    """Images per second of each run. Those that the file `path` does not have yet are measured, and kept there."""
    known = read_json(path, 'remove it and run the same command again') if path.exists() else {}
    missing = [name for name in configs if name not in known]
    if missing:
        runners = {name: training_steps(configs[name]) for name in missing}
        rounds = [{name: run() for name, run in runners.items()} for _ in range(ROUNDS)]
        known |= {name: spread([row[name] for row in rounds]) for name in missing}
        write_json(path, known)
    return {name: known[name]['median'] for name in configs}


def training_steps(config: TrainConfig) -> Callable[[], float]:
    """A function that trains a new state for `STEPS` steps and returns images per second; compiles here."""
    mesh = meshes.make_mesh(config.mesh.fsdp)
    source = make_source(config.data, fields=fields_to_train(config.method.fields))
    batch = next(batches(source, config.data, config.seed, config.batch_size))
    trainer = Trainer(config, mesh)
    state = trainer.init(jax.random.key(0))

    def run() -> float:
        nonlocal state
        start = time.perf_counter()
        for _ in range(STEPS):
            state, _ = trainer.step(state, meshes.put_batch(mesh, batch))
        jax.block_until_ready(state)
        return STEPS * config.batch_size / (time.perf_counter() - start)

    run()
    return run


def is_trained(snapshot: Path) -> bool:
    """Whether `train_to` has written this snapshot."""
    return (snapshot / CONFIG).exists()  # written last


def train_to(config: TrainConfig, run: Path, snapshot: Path) -> None:
    """Trains the run in the folder `run` until `config.total_images` and releases its weights, in float32, as `snapshot`,
    unless that exists.

    Raises:
      BadInput: the run has other settings, or as `check_seen`.
      FloatingPointError: the loss is not finite.
      KeyboardInterrupt: the run was asked to stop.
    """
    claim_workdir(run, config, allow_changes=False)
    if not is_trained(snapshot):
        if not train(config, run)['finished']:
            raise KeyboardInterrupt
        release(load_generator(run), snapshot, jnp.float32)
    check_seen(config, snapshot)


def images_seen(snapshot: Path) -> int:
    """The number of images that a snapshot has seen."""
    return int(read_safetensors_metadata(snapshot / RELEASE)['images_seen'])


def check_seen(config: TrainConfig, snapshot: Path) -> None:
    """Raises BadInput if a snapshot has seen another number of images than its run is to see."""
    seen = images_seen(snapshot)
    expected = math.ceil(config.total_images / config.batch_size) * config.batch_size
    if seen != expected:
        raise BadInput(
            f'{snapshot} has seen {seen} images, and its time allows {expected}: speeds were measured again; remove '
            f'{snapshot.parent} and run the same command again'
        )


def evaluation(checkpoints: dict[str, Path], options: list[str], out: Path) -> Path:
    """The folder in `out` of an evaluation of releases, named by the contents of their weights and by `options`."""
    known = {name: stamp(folder / RELEASE).sha256 for name, folder in checkpoints.items()}
    return out / hashlib.sha256(json.dumps([known, options], sort_keys=True).encode()).hexdigest()[:12]


def is_evaluated(folder: Path) -> bool:
    """Whether `evaluate` has ended in this folder."""
    return (folder / 'evaluate.json').exists()  # written last


def evaluate(checkpoints: dict[str, Path], options: list[str], folder: Path) -> None:
    """Runs tools/evaluate.py on releases, with its result in `folder`."""
    named = [f'--checkpoint={name}={path}' for name, path in checkpoints.items()]
    console.call(ROOT / 'tools' / 'evaluate.py', *options, f'--out={folder}', *named)


def result_of(folder: Path) -> dict[str, Any]:
    """What `evaluate` found."""
    return read_json(folder / 'evaluate.json', 'remove its folder and run the same command again')
