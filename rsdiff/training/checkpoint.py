"""Checkpoints on disk. The only module that depends on Orbax and on the format of released weights.

A run's folder holds `checkpoints/<step>/` with params, buffers, ema and opt as separate items, `config.json`, and, if its
config has `ema.lengths`, `averages/<step>/` with the averages of these lengths. A
release is a folder with `config.json` and `model.safetensors` (the averaged parameters, usually bfloat16), as in `weights/`.
"""

import contextlib
import dataclasses
import errno
import hashlib
import logging
import re
import shutil
from typing import Any, Callable

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from rsdiff.base.errors import BadInput
from rsdiff.base.files import is_local, read_json, write_json
from rsdiff.methods.base import GENERATOR, Method, Parameters
from rsdiff.methods.former import former
from rsdiff.methods.kinds import MethodConfig, make_method
from rsdiff.pretrained import weights
from rsdiff.training import averages, hosts
from rsdiff.training.averages import EMA
from rsdiff.training.config import TrainConfig, differing_keys, from_dict, to_dict, upgrade

PARTS = 'parts'  # stored with the fingerprints: the names of the method's parts
CONFIG, RELEASE = 'config.json', 'model.safetensors'
AVERAGES = 'averages'
ITEMS = ('params', 'buffers', 'ema', 'opt')
ABSENT = errno.ENOENT, errno.ENOTDIR, errno.EISDIR
TRANSIENT = 'UNAVAILABLE|DEADLINE_EXCEEDED|RESOURCE_EXHAUSTED|PERMISSION_DENIED|UNAUTHENTICATED|ABORTED|CANCELLED'


# By default, Orbax has every replica write a slice of every array. For small arrays, slicing costs more than writing, and
# the next step waits for it: on eight devices, a save blocks four times as long.
def _write_small_arrays_whole() -> None:
    # Orbax warns of every override, including this one, when the module is imported
    meant = lambda record: 'overriding' not in record.getMessage()
    logger = logging.getLogger('absl')
    logger.addFilter(meant)
    try:
        handler = ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)
        ocp.type_handlers.register_type_handler(jax.Array, handler, override=True)
    finally:
        logger.removeFilter(meant)


_write_small_arrays_whole()


class Checkpoints:
    """The checkpoints of one run in the folder `name`, named by their step and saved in the background; the last `keep`
    remain, or all.

    A kill at any moment leaves only complete checkpoints: each is written under a temporary name and renamed once complete,
    and old ones are removed after that. To detect later corruption or truncation, each holds `fingerprint`s of its items.
    """

    def __init__(self, workdir: epath.PathLike, keep: int | None = 2, name: str = 'checkpoints'):
        self.folder = epath.Path(workdir).resolve() / name
        self.manager = ocp.CheckpointManager(
            self.folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=ocp.checkpoint_managers.LatestN(keep), cleanup_tmp_directories=True
            ),
        )

    def save(self, state: dict[str, Any]) -> None:
        """Starts saving in the background; does nothing if this step already has a checkpoint.

        Raises:
          OSError: this checkpoint, or the previous one, could not be written; existing checkpoints stay intact.
        """
        step = int(state['step'])
        if step in self.manager.all_steps():
            return
        kept = _kept(state)
        self._require_space(sum(leaf.nbytes for leaf in jax.tree.leaves(kept)))
        items = {name: ocp.args.StandardSave(tree) for name, tree in kept.items()}
        prints = {name: int(fingerprint(tree)) for name, tree in kept.items()}
        told = ocp.args.JsonSave(prints | {PARTS: list(state.get('params', ()))})
        with self._writing():
            self.manager.save(step, args=ocp.args.Composite(**items, fingerprints=told))

    def check(self) -> None:
        """Raises an error of the background save, if there was one, as `save` would."""
        with self._writing():
            self.manager.check_for_errors()

    def restore_latest(self, abstract: dict[str, Any]) -> dict[str, Any] | None:
        """The newest intact state, sharded as `abstract` specifies; None if nothing has been saved. Newer damaged checkpoints
        are logged as warnings and moved to `damaged/`.

        Raises:
          BadInput: all checkpoints are damaged.
          OSError: the newest cannot be read now, which does not count as damage; nothing is moved.
        """
        kept = _kept(abstract)

        def like(step: int) -> dict[str, Any]:
            return kept if self._has_parts(step) else {name: _only(name, tree) for name, tree in kept.items()}

        found = _newest_whole(self.manager, like)
        if found is None:
            return None
        step, items, damaged = found
        hosts.first_does(lambda: self._move_aside(damaged))
        if damaged:
            self.manager.reload()
        if not self._has_parts(step):
            items = {name: {GENERATOR: {EMA: tree} if name == 'ema' else tree} for name, tree in items.items()}
        step = jax.device_put(jnp.int32(step), abstract['step'].sharding)
        return {'step': step, 'buffers': abstract['buffers'], **items}

    def _has_parts(self, step: int) -> bool:
        """Whether a checkpoint is in the format for methods with several parts."""
        told = self.manager.restore(step, args=ocp.args.Composite(fingerprints=ocp.args.JsonRestore()))
        return PARTS in told['fingerprints']

    def close(self) -> None:
        """Waits for the save in progress; raises as `save` does."""
        with self._writing():
            self.manager.close()

    def _require_space(self, needed: int) -> None:
        """Checks the free space before saving, for one clear error instead of dozens of threads that fail on a full disk."""
        if is_local(self.folder) and (free := shutil.disk_usage(self.folder).free) < needed:
            raise OSError(
                f'{self.folder}: a checkpoint takes {needed / 1e6:.1f} MB and {free / 1e6:.1f} MB are free; '
                'existing ones are intact. Free some space and run the same command again'
            )

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            raise OSError(
                f'{self.folder}: a checkpoint could not be written ({_first_line(error)}); '
                'earlier ones are intact. Fix the cause and run the same command again'
            ) from error

    def _move_aside(self, steps: list[int]) -> None:
        for step in steps:
            target = self.folder.parent / 'damaged' / str(step)
            if target.exists():
                target.rmtree()
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.folder / str(step)).rename(target)


class Snapshots(Checkpoints):
    """All snapshots of the averages of `ema.lengths`, from which `load_average` makes others."""

    def __init__(self, workdir: epath.PathLike):
        super().__init__(workdir, keep=None, name=AVERAGES)

    def save(self, state: dict[str, Any]) -> None:
        lengths = {name: tree for name, tree in state['ema'][GENERATOR].items() if name != EMA}
        super().save({'step': state['step'], 'ema': {GENERATOR: lengths}})


def _kept(state: dict[str, Any]) -> dict[str, Any]:
    """The items of a state to save: all except the step, which is the checkpoint's name, and empty ones."""
    return {name: state[name] for name in ITEMS if jax.tree.leaves(state.get(name))}


def _only(name: str, tree: dict[str, Any]) -> Any:
    """An item in the former format, with a single part and a single average."""
    return tree[GENERATOR][EMA] if name == 'ema' else tree[GENERATOR]


@jax.jit
def fingerprint(tree) -> jax.Array:
    """A checksum over every bit of a tree of arrays, uint32. It does not depend on their sharding and is computed on the
    devices, so a save costs only one more read of the state."""
    total = jnp.uint32(0)
    for number, leaf in enumerate(jax.tree.leaves(tree)):
        bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f'uint{8 * leaf.dtype.itemsize}'))
        total += (2 * number + 1) * jnp.sum(bits, dtype=jnp.uint32)
    return total


WHOLE, DAMAGED, UNREADABLE = range(3)


def _newest_whole(manager: ocp.CheckpointManager, like: dict[str, Any] | Callable[[int], dict[str, Any]]):
    """(step, items, damaged steps) of the newest checkpoint whose items match their fingerprints; None if there are none.
    All processes agree: a checkpoint that is damaged for one is damaged for all.

    Raises:
      BadInput: all are damaged.
      OSError: one cannot be read, which does not count as damage: the next attempt may succeed.
    """
    damaged, reason = [], ''
    steps = sorted(manager.all_steps())
    while True:
        step = hosts.first_says(
            steps[-1] if steps else -1
        )  # hosts may temporarily see different contents of a shared folder
        if step < 0:
            break
        items, reason = _examined(manager, step, like)
        if items is not None:
            return step, items, damaged
        logging.warning('%s/%d is damaged (%s); trying the previous one', manager.directory, step, reason)
        damaged.append(step)
        steps = [other for other in steps if other < step]
    if damaged:
        raise BadInput(
            f'{manager.directory}: no checkpoint can be read ({reason}); restore one from a backup, or start '
            'again in another --workdir'
        )
    return None


def _examined(
    manager: ocp.CheckpointManager, step: int, like: dict[str, Any] | Callable[[int], dict[str, Any]]
) -> tuple[dict[str, Any] | None, str]:
    """The items of a checkpoint; None and the reason if it is damaged, on which all processes agree.

    Raises:
      OSError: it cannot be read now.
    """
    restored, error = _restore(manager, step, like)
    verdict = hosts.all_agree_on(_verdict(error, manager.directory / str(step)))
    if verdict == WHOLE:
        # this computes on all devices, so only if every process has got this far
        error = _difference(restored)
        verdict = hosts.all_agree_on(WHOLE if error is None else DAMAGED)
    reason = 'reported by another process' if error is None else _first_line(error)
    if verdict == UNREADABLE:
        raise OSError(
            f'{manager.directory}/{step} cannot be read now ({reason}); nothing was changed. Fix the cause '
            'and run the same command again'
        ) from error
    if verdict == DAMAGED:
        return None, reason
    return {name: value for name, value in restored.items() if name in ITEMS}, ''


def _restore(
    manager: ocp.CheckpointManager, step: int, like: dict[str, Any] | Callable[[int], dict[str, Any]]
) -> tuple[Any, Exception | None]:
    """Returns the stored items of a checkpoint, a dict, or the error that prevents reading it; the other is None."""
    try:
        wanted = like if isinstance(like, dict) else like(step)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        return manager.restore(step, args=ocp.args.Composite(**items, fingerprints=ocp.args.JsonRestore())), None
    except jax.errors.JaxRuntimeError:  # a device error, such as out of memory
        raise
    # Orbax wraps read errors in a bare Exception; `_verdict` examines their cause.
    except Exception as error:
        return None, error


def _verdict(error: Exception | None, folder: epath.Path) -> int:
    """`DAMAGED` if all files of a checkpoint can be read, but do not form a valid checkpoint."""
    if error is None:
        return WHOLE
    if _is_of_the_system(error):
        return UNREADABLE
    try:
        _read_all(folder)
    except OSError as failed:
        error.args = (str(failed),)
        return UNREADABLE
    return DAMAGED


def _is_of_the_system(error: BaseException | None) -> bool:
    """Whether an error, or one of its causes, came from the system or network and not from the contents of the files. A
    file that is missing from a checkpoint counts as damage."""
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        if isinstance(error, OSError) and error.errno is not None and error.errno not in ABSENT:
            return True
        numbers = map(int, re.findall(r'OS error (\d+)', str(error)))  # in TensorStore's ValueErrors
        if any(number not in ABSENT for number in numbers) or re.match(TRANSIENT, str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _read_all(folder: epath.Path) -> None:
    """Reads every file below `folder`. Raises OSError if one cannot be read."""
    for path in folder.iterdir():
        if path.is_dir():
            _read_all(path)
        else:
            with path.open('rb') as file:
                while file.read(1 << 24):
                    pass


def _difference(restored: dict[str, Any]) -> Exception | None:
    """An error that names the restored items whose fingerprints differ from those saved, or None."""
    prints = restored['fingerprints']
    names = [name for name in ITEMS if name in restored]
    found = {name: int(fingerprint(restored[name])) for name in names}
    wrong = [name for name in names if not isinstance(prints, dict) or prints.get(name) != found[name]]
    return ValueError(f'{", ".join(wrong)} differs from what was saved') if wrong else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def claim_workdir(workdir: epath.PathLike, config: TrainConfig, allow_changes: bool) -> None:
    """Writes the run's config, or checks it against the existing one.

    Raises:
      BadInput: the folder holds a run with different settings, and they may not change. Logging, checkpoint and validation
        settings may always change, and so may `total_images` if the learning rate does not depend on it. The method, the
        batch size and the lengths of averages may never change; all others only with `allow_changes`.
    """
    path, new = epath.Path(workdir) / CONFIG, to_dict(config)
    if path.exists():
        free = {'log_images', 'checkpoint_images', 'validation'}
        if config.optimizer.final_fraction == 1:
            free.add('total_images')
        kept = lambda settings: {key: value for key, value in settings.items() if key not in free}
        old = to_dict(read_config(path))
        changed = differing_keys(kept(old), kept(new))
        never = [key for key in changed if key.startswith(('method.', 'batch_size ', 'ema.lengths '))]
        never = [key for key in never if not key.startswith('method.teacher ')]  # it may have moved
        never = [key for key in never if key.startswith('method.kind ')] or never  # then the rest differs anyway
        if never or (changed and not allow_changes):
            advice = 'use another --workdir' if never else 'use another --workdir, or --allow_config_change'
            raise BadInput(f'{workdir} holds a run with other settings: {"; ".join(never or changed)}; {advice}')
    write_json(path, new)


def read_config(path: epath.PathLike) -> TrainConfig:
    """The settings in a `config.json` of this or any earlier version; new keys get their defaults.

    Raises:
      BadInput: it is not JSON, or not the settings of a run.
    """
    return from_dict(TrainConfig, upgrade(read_json(path)), str(path))


@dataclasses.dataclass(frozen=True)
class Trained:
    """A method and its trained parameters. `digest` identifies them; `images_seen` is None if it was not recorded."""

    method: Method
    params: Parameters
    config: TrainConfig
    digest: str
    images_seen: int | None


def load_generator(path: epath.PathLike, length: float | None = None) -> Trained:
    """Loads the averaged parameters of a run's newest checkpoint, or of a release, as float32. With `length`, those of an
    average of that length (`training.averages`) at a run's newest snapshot.

    Raises:
      BadInput: there is no checkpoint at `path`, it does not match its config, or not all of its values are finite; with
        `length`, there are no snapshots, one is damaged, or the length is out of range.
      OSError: it cannot be read now.
    """
    path = epath.Path(path)
    if not (path / CONFIG).is_file() or not ((path / RELEASE).is_file() or (path / 'checkpoints').is_dir()):
        raise BadInput(f'{path}: not a checkpoint; expected {CONFIG} with checkpoints/ or {RELEASE} beside it')
    config = read_config(path / CONFIG)
    method = make_method(config.method, config.degradation)
    shapes = jax.eval_shape(method.init, jax.random.key(0))[GENERATOR]
    if length is not None:
        params, step = _restore_average(path, config.ema.lengths, length)
        images_seen = step * config.batch_size
    elif (path / RELEASE).is_file():
        params = weights.unflatten(weights.read_safetensors(path / RELEASE), path / RELEASE)
        recorded = weights.read_safetensors_metadata(path / RELEASE).get('images_seen', '')
        images_seen = int(recorded) if recorded.isdecimal() and len(recorded) < 19 else None
    else:
        params, step = _restore_ema(path)
        images_seen = step * config.batch_size
    found, expected = weights.flatten(params), weights.flatten(shapes)
    wrong = sorted({*found} ^ {*expected} | {k for k in {*found} & {*expected} if found[k].shape != expected[k].shape})
    if wrong:
        raise BadInput(f'{path}: the parameters belong to another config; {len(wrong)} differ ({wrong[0]}, …)')
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    for name, value in weights.flatten(params).items():
        if not np.isfinite(np.asarray(value)).all():
            raise BadInput(f'{path}: parameter {name} has values that are not finite; use another checkpoint')
    return Trained(method, {GENERATOR: params}, config, _digest(params, config), images_seen)


def load_parameters(
    path: epath.PathLike, config: MethodConfig, setting: str = 'config.init_from', same_kind: bool = False
) -> Parameters:
    """The averaged parameters at `path`, which `setting` names, as NumPy arrays, for a method of `config`.

    Raises:
      BadInput: as `load_generator`; or the generator at `path` has other settings than that of `config`. Unless `same_kind`, the
        method may be another one if its generator is of the same form, as of regression and adversarial training.
    """
    if not path:
        raise BadInput(f'{setting} is not set; give a run or a release')
    trained = load_generator(path)
    theirs, ours = trained.config.method.generator, config.generator
    if {*theirs} != {*ours} or (same_kind and trained.config.method.kind != config.kind):
        raise BadInput(f'{setting} {path} is of the method {trained.config.method.kind}, not {config.kind}')
    changed = differing_keys(to_dict(theirs), to_dict(ours))
    changed = [key for key in changed if '.kind ' in key] or changed  # then the rest differs anyway
    if changed:
        raise BadInput(f'{setting} {path} is another generator: {"; ".join(changed)}')
    return jax.tree.map(np.asarray, trained.params)


def release(trained: Trained, folder: epath.PathLike, dtype: Any = jnp.bfloat16) -> None:
    """Writes `config.json` and `model.safetensors`, in `dtype`, for `load_generator`. Paths in the config, which are specific
    to one machine, are reduced to their last component."""
    folder, config = epath.Path(folder), _without_folders(to_dict(trained.config))
    flat = {name: np.asarray(x, dtype) for name, x in weights.flatten(trained.params[GENERATOR]).items()}
    weights.write_safetensors(folder / RELEASE, flat, {'images_seen': str(trained.images_seen)})
    write_json(folder / CONFIG, config)


def _without_folders(settings: dict[str, Any]) -> dict[str, Any]:
    plain = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            value = _without_folders(value)
        elif isinstance(value, str) and '/' in value:
            value = epath.Path(value).name
        plain[key] = value
    return plain


def _restore_ema(path: epath.Path) -> tuple[dict[str, Any], int]:
    with _reader(path / 'checkpoints') as manager:
        found = _newest_whole(manager, lambda step: _ema_of(manager, step))
    if found is None:
        raise BadInput(f'{path}: no checkpoint has been saved yet')
    step, items, _ = found
    ema = items['ema']
    return weights.unflatten(weights.flatten(ema[GENERATOR][EMA] if {*ema} == {GENERATOR} else ema)), step


def _restore_average(path: epath.Path, lengths: tuple[float, ...], length: float) -> tuple[dict[str, Any], int]:
    folder = path / AVERAGES
    if not lengths or not folder.is_dir():
        raise BadInput(f'{path} has no snapshots of averages; train with config.ema.lengths, such as (0.05, 0.1)')
    with _reader(folder) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise BadInput(f'{folder}: no snapshot has been saved yet')
        snapshots = [(step, one) for step in steps for one in lengths]
        shares = averages.coefficients([one for _, one in snapshots], [step for step, _ in snapshots], length)
        total = {}
        for number, step in enumerate(steps):
            items, reason = _examined(manager, step, lambda step: _ema_of(manager, step))
            if items is None:
                raise BadInput(f'{folder}/{step} is damaged ({reason}); remove it and run the same command again')
            for share, one in zip(shares[number * len(lengths) :], lengths):
                for name, value in weights.flatten(items['ema'][GENERATOR][averages.name_of(one)]).items():
                    total[name] = total.get(name, 0.0) + share * np.asarray(value, np.float64)
    return weights.unflatten(total), steps[-1]


def _reader(folder: epath.Path) -> ocp.CheckpointManager:
    """Existing checkpoints, whose shapes can be read before the arrays, because each item has its handler."""
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS} | {'fingerprints': ocp.JsonCheckpointHandler()}
    return ocp.CheckpointManager(
        folder.resolve(), item_handlers=handlers, options=ocp.CheckpointManagerOptions(create=False)
    )


def _ema_of(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """What to restore to get a checkpoint's averages. Shapes come from the checkpoint, the sharding from this machine: the run
    may have used other devices."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return {
        'ema': jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
            manager.item_metadata(step)['ema'].tree,
        )
    }


def _digest(params: dict[str, Any], config: TrainConfig) -> str:
    """sha256 over the method's settings and the parameters' names and bytes; the first 16 hex digits. Only settings that
    differ from the defaults enter, under their original names, so that new settings do not change existing digests."""
    default, own = (former(to_dict(method)) for method in (type(config.method)(), config.method))
    meaning = repr(differing_keys(default, own))
    digest = hashlib.sha256(meaning.encode())
    for name, value in sorted(weights.flatten(params).items()):
        digest.update(name.encode() + np.asarray(value).tobytes())
    return digest.hexdigest()[:16]
