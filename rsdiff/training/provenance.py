"""Records of a run's training data, kept beside its checkpoints.

`training_data.json` holds a digest of each file of the current data. A run that continues compares them: changed data are
a different experiment. `training_fingerprints.npz` (`rsdiff.data.fingerprints`) holds fingerprints of all images that the
parameters were ever trained on, including those of `init_from`, of a teacher and of an earlier `data.source`. `teacher.json` holds a
digest of the teacher's parameters: a run that continues must have the same.
"""

from typing import Any

import jax
from etils import epath

from rsdiff.base.errors import BadInput
from rsdiff.base.files import field, read_json, write_json
from rsdiff.data.fingerprints import TrainedOn, add_fingerprints, known_of
from rsdiff.data.inventory import Inventory, take_inventory
from rsdiff.data.pipeline import Source
from rsdiff.methods.base import Parameters
from rsdiff.methods.kinds import make_method
from rsdiff.pretrained.weights import digest
from rsdiff.training.config import TrainConfig

FILE, TEACHER_FILE = 'training_data.json', 'teacher.json'


def record_training_data(
    workdir: epath.PathLike, config: TrainConfig, source: Source, allow_changes: bool, show: bool
) -> None:
    """Writes both files, adding to existing fingerprints.

    Args:
      source: the source that `config.data` describes.
      allow_changes: whether the data may differ from those the run started with.
    Raises:
      BadInput: they differ and may not; or an existing file cannot be read.
    """
    workdir = epath.Path(workdir)
    inventory, path = take_inventory(source, config.data.source, show), workdir / FILE
    before = read_json(path, 'restore it from a backup, or use another --workdir') if path.exists() else None
    if before is not None and not allow_changes:
        if changes := differing_files(field(before, 'files', dict, path), inventory.digests):
            raise BadInput(
                f'{workdir}: its training data have changed: {changes}; use another --workdir, or --allow_config_change'
            )
    teacher = make_method(config.method).teacher
    seen = _inherited(config.init_from) + _inherited(teacher and teacher.path) + inventory.trained_on
    if before is None and (workdir / 'checkpoints').exists() and known_of(workdir) is None:
        seen += TrainedOn(unknown=('what the run was trained on before fingerprints were kept',))
    add_fingerprints(workdir, seen)
    write_json(path, _row(inventory))


def record_teacher(workdir: epath.PathLike, parameters: Parameters, allow_changes: bool) -> None:
    """Writes `teacher.json`, or compares the teacher with the one that the run started with.

    Raises:
      BadInput: it is another one, and `allow_changes` is False.
    """
    path, found = epath.Path(workdir) / TEACHER_FILE, {'sha256': digest(jax.device_get(parameters))}
    if path.exists() and not allow_changes and read_json(path) != found:
        raise BadInput(
            f"{workdir}: config.method.teacher has other parameters than the run's teacher had; give that one, or use another "
            '--workdir, or --allow_config_change'
        )
    write_json(path, found)


def differing_files(old: dict[str, Any], new: dict[str, str]) -> str:
    """Describes how the files of two data sets (name → digest) differ; '' if they do not."""
    kinds = {
        'added': sorted({*new} - {*old}),
        'removed': sorted({*old} - {*new}),
        'changed': sorted(name for name in {*old} & {*new} if old[name] != new[name]),
    }
    return ', '.join(
        f'{len(names)} {"file" if len(names) == 1 else "files"} {kind} ({names[0]}{", …" if len(names) > 1 else ""})'
        for kind, names in kinds.items()
        if names
    )


def _row(inventory: Inventory) -> dict[str, Any]:
    return {'trained_on': str(inventory.trained_on), 'files': dict(sorted(inventory.digests.items()))}


def _inherited(generator: str | None) -> TrainedOn:
    if not generator:
        return TrainedOn()
    name = generator.rstrip('/').rpartition('/')[2]
    return known_of(generator) or TrainedOn(unknown=(f'what {name} was trained on',))
