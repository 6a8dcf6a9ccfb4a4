"""Paired measures by name, computed from samples, truths and conditions: one value per image and measure."""

from typing import Callable, Sequence

import numpy as np

from rsdiff.base.errors import BadInput
from rsdiff.data.images import to_float
from rsdiff.evaluation import fidelity, opensr
from rsdiff.evaluation.columns import PAIRED
from rsdiff.pretrained.lpips import LPIPS, Network

# (samples, truths, conditions, names of the pairs), uint8 (n, h, w, 3), conditions (n, h/4, w/4, 3) → {measure: one
# value per image}; the names may be omitted if `paired_measures` was given no `degrade`
Measure = Callable[..., dict[str, np.ndarray]]
# (images (n, h, w, 3), names of the pairs) → their expected conditions, (n, h/4, w/4, 3), in grey levels
DegradeNamed = Callable[[np.ndarray, Sequence[str]], np.ndarray]


def paired_measures(names: Sequence[str], degrade: DegradeNamed | None = None) -> Measure:
    """One function that computes the measures `names`, a subset of `columns.PAIRED`.

    Args:
      degrade: the function that made the conditions, for `lr_consistency`; by default block means. Its random choices
        must depend only on the pair's name, so that every image of a pair is degraded in the same way as the truth was.
    Raises:
      BadInput: a measure is unknown, or the weights that it needs are missing.
    """
    known = [column.name for column in PAIRED]
    for name in names:
        if name not in known:
            raise BadInput(f'no paired measure {name!r}; there are {", ".join(known)}')
    simple = {
        'psnr': lambda image, truth, condition: fidelity.psnr(image, truth),
        'ssim': lambda image, truth, condition: fidelity.ssim(image, truth),
        'cpsnr': lambda image, truth, condition: fidelity.cpsnr(image, truth),
        'detail_ratio': lambda image, truth, condition: fidelity.detail_ratio(image, truth),
    }
    groups: list[Measure] = [
        lambda *images, name=name: {name: simple[name](*images)} for name in names if name in simple
    ]
    if {*names} & {*opensr.Correctness._fields}:
        groups.append(lambda *images: opensr.correctness(*images)._asdict())
    if 'lr_consistency' in names and degrade is None:
        groups.append(lambda image, truth, condition: {'lr_consistency': fidelity.lr_consistency(image, condition)})
    for network in ('vgg16', 'alexnet'):
        if f'lpips_{network}' in names:
            groups.append(_lpips(network))

    def measure(images, truths, conditions, pair_names: Sequence[str] = ()) -> dict[str, np.ndarray]:
        values = {name: value for group in groups for name, value in group(images, truths, conditions).items()}
        if 'lr_consistency' in names and degrade is not None:
            again = lambda images, factor, degrade=degrade: degrade(images, pair_names)
            values['lr_consistency'] = fidelity.lr_consistency(images, conditions, again)
        return {name: np.asarray(values[name], np.float64) for name in names}

    return measure


def _lpips(network: Network) -> Measure:
    distance = LPIPS(network)
    return lambda image, truth, condition: {f'lpips_{network}': distance(to_float(image), to_float(truth))}
