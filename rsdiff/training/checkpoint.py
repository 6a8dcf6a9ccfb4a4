"""Checkpoints on disk. The one file that knows Orbax, and the one that knows the format of released weights.

A run's folder holds `checkpoints/<step>/` with params, ema and opt as separate items, and `config.json`. A
release is a folder of `config.json` and `model.safetensors` (the averaged parameters, bfloat16), as in `weights/`.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rsdiff.console import write_text_atomically
from rsdiff.errors import BadInput
from rsdiff.generator import Generator
from rsdiff.models import weights
from rsdiff.training.config import TrainConfig, differing_keys, from_dict, to_dict

CONFIG, RELEASE = 'config.json', 'model.safetensors'
ITEMS = ('params', 'ema', 'opt')


class Checkpoints:
    """The checkpoints of one run, named by their step and saved in the background."""

    def __init__(self, workdir: Path, keep: int = 2):
        folder = epath.Path(workdir).resolve() / 'checkpoints'
        folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep))

    def save(self, state: dict[str, Any]) -> None:
        """Begins to save; a checkpoint of this step that exists already is kept."""
        step = int(state['step'])
        if step in self.manager.all_steps():
            return
        items = {name: ocp.args.StandardSave(tree) for name, tree in state.items() if name in ITEMS}
        self.manager.save(step, args=ocp.args.Composite(**items))

    def restore_latest(self, abstract: dict[str, Any]) -> dict[str, Any] | None:
        """The newest state, laid out as `abstract` says; None where there is none yet."""
        step = self.manager.latest_step()
        if step is None:
            return None
        items = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items() if name in ITEMS}
        restored = self.manager.restore(step, args=ocp.args.Composite(**items))
        return {'step': jax.device_put(jnp.int32(step), abstract['step'].sharding), **restored}

    def close(self) -> None:
        """Waits for what is being saved."""
        self.manager.close()


def claim_workdir(workdir: Path, config: TrainConfig, allow_changes: bool) -> None:
    """Writes the run's config, or checks it against the one that is there.

    Raises:
      BadInput: the folder holds a run with other settings, and `allow_changes` is not given. How often to report may
        always change, and how long to run where the learning rate does not depend on it; what the parameters mean
        and what a step is may never.
    """
    path, new = Path(workdir) / CONFIG, to_dict(config)
    if path.exists():
        free = {'log_images', 'checkpoint_images', 'sample_images', 'sample_steps'}
        if config.optimizer.final_fraction == 1:
            free.add('total_images')
        kept = lambda settings: {key: value for key, value in settings.items() if key not in free}
        old = _read_config(path)
        changed = differing_keys(kept(old), kept(new))
        never = [key for key in changed if key.startswith(('generator.', 'batch_size '))]
        if never or (changed and not allow_changes):
            advice = 'use another --workdir' if never else 'use another --workdir, or --allow_config_change'
            raise BadInput(f'{workdir} holds a run with other settings: {"; ".join(never or changed)}; {advice}')
    write_text_atomically(path, json.dumps(new, indent=2) + '\n')


@dataclasses.dataclass(frozen=True)
class Trained:
    """A generator ready to sample. `digest` names its parameters; `images_seen` is None where it is not recorded."""

    generator: Generator
    params: dict[str, Any]
    config: TrainConfig
    digest: str
    images_seen: int | None


def load_generator(path: Path | str) -> Trained:
    """The averaged parameters of a run's newest checkpoint, or of a release, as float32.

    Raises:
      BadInput: there is no checkpoint at `path`, or it does not fit the config beside it.
    """
    path = Path(path)
    if not (path / CONFIG).is_file() or not ((path / RELEASE).is_file() or (path / 'checkpoints').is_dir()):
        raise BadInput(f'{path}: not a checkpoint; expected {CONFIG} with checkpoints/ or {RELEASE} beside it')
    config = from_dict(TrainConfig, _read_config(path / CONFIG), str(path / CONFIG))
    generator = Generator(config.generator)
    shapes = generator.parameter_shapes()
    if (path / RELEASE).is_file():
        params = weights.unflatten(weights.read_safetensors(path / RELEASE))
        recorded = weights.read_safetensors_metadata(path / RELEASE).get('images_seen', '')
        images_seen = int(recorded) if recorded.isdigit() else None
    else:
        params, step = _restore_ema(path)
        images_seen = step * config.batch_size
    found, expected = weights.flatten(params), weights.flatten(shapes)
    wrong = sorted({*found} ^ {*expected} | {k for k in {*found} & {*expected} if found[k].shape != expected[k].shape})
    if wrong:
        raise BadInput(f'{path}: the parameters belong to another config; {len(wrong)} differ ({wrong[0]}, …)')
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    return Trained(generator, params, config, _digest(params, config), images_seen)


def release(trained: Trained, folder: Path | str) -> None:
    """Writes `config.json` and `model.safetensors`, bfloat16, from which `load_generator` reads."""
    folder = Path(folder)
    flat = {name: np.asarray(x, jnp.bfloat16) for name, x in weights.flatten(trained.params).items()}
    weights.write_safetensors(folder / RELEASE, flat, {'images_seen': str(trained.images_seen)})
    write_text_atomically(folder / CONFIG, json.dumps(to_dict(trained.config), indent=2) + '\n')


def _restore_ema(path: Path) -> tuple[dict[str, Any], int]:
    # named, so that the items' shapes can be read before they are restored
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    with ocp.CheckpointManager(epath.Path(path).resolve() / 'checkpoints', item_handlers=handlers) as manager:
        step = manager.latest_step()
        if step is None:
            raise BadInput(f'{path}: no checkpoint has been saved yet')
        try:
            # The shapes are the checkpoint's own, the layout is this machine's: the run may have had other devices.
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
                                manager.item_metadata(step)['ema'].tree)
            restored = manager.restore(step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(like)))
        except (OSError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise BadInput(f'{path}/checkpoints/{step}: can not be read ({reason})') from None
    return weights.unflatten(weights.flatten(restored['ema'])), step


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f'{path}: not a config ({error})') from None
    if not isinstance(config, dict):
        raise BadInput(f'{path}: not a config (no object)')
    return config


def _digest(params: dict[str, Any], config: TrainConfig) -> str:
    """sha256 over what the parameters mean, their names and their bytes; the first 16 digits."""
    digest = hashlib.sha256(repr(config.generator).encode())
    for name, value in sorted(weights.flatten(params).items()):
        digest.update(name.encode() + np.asarray(value).tobytes())
    return digest.hexdigest()[:16]
