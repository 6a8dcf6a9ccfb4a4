"""Turns the cells of a comparison into the rows of its table and an answer.

A row is a (method, arm, shots). A setting is a (method, shots): its arms differ only in their images, and each is
compared with the setting's `real` by `rsdiff.downstream.statistics`.
"""

from typing import Any, Iterator, Sequence, cast

import numpy as np

from rsdiff.downstream import scores
from rsdiff.downstream.problems.recall import DIRECTIONS, KS
from rsdiff.downstream.statistics import Change, PairedBootstrap, holm

REAL, SYNTHETIC, MIXTURE, RANDOM = 'real', 'synthetic', 'real+synthetic', 'random labels'
LEVEL = 0.05
# the columns of `hits`, in their order
RECALLS = tuple(f'{direction} R@{k}' for direction in DIRECTIONS for k in KS)

Cell = dict[str, Any]


def summarise(
    settings: dict[str, Any], cells: Sequence[Cell], labels: np.ndarray, dropped: Sequence[str] = ()
) -> dict[str, Any]:
    """Every figure of the report.

    Args:
      settings, cells: as returned by `compare`. The comparison need not be finished; an arm is compared on the seeds
        that it shares with `real`.
      labels: int (images,), the true classes of the evaluation images, in the order of the predictions.
      dropped: names of images that were left out.
    Returns:
      `rows`, one per (method, arm, shots), with means over seeds, half the widths of their 95 % t-intervals (`*_ci95`,
      None with one seed), and gains over `real` with intervals and p over seeds and test images (None for `real`, for
      arms without training images, and where `real` is missing); `per_class`, one per row and class; `retrieval`, one
      per row whose cells have `hits`, with gains and p of the mean recall; `answers`, one per setting; `headline`, the
      answer of the first method with `real_per_class` real images, where all arms are compared.
    """
    classes = settings['classes']
    bootstrap = PairedBootstrap(labels, len(classes))
    rows, per_class, retrieved, answers = [], [], [], []
    for group in _settings(settings, cells):
        arms = {
            arm: [cell for cell in group if cell['arm'] == arm] for arm in dict.fromkeys(cell['arm'] for cell in group)
        }
        changes = {
            arm: _change(bootstrap, arms[REAL], own)
            for arm, own in arms.items()
            if REAL in arms and arm != REAL and _saw_images(own) and _paired(arms[REAL], own)
        }
        adjusted = dict(zip(changes, holm([change.accuracy.p for change in changes.values()])))
        own_rows = []
        for arm, own in arms.items():
            change = changes.get(arm)
            own_rows.append(
                _row(own)
                | _gain('', change and change.accuracy)
                | {'p_holm': adjusted.get(arm), 'significant': change and adjusted[arm] < LEVEL}
                | _gain('macro_f1_', change and change.macro_f1)
            )
            per_class += _class_rows(classes, labels, own, change)
        rows += own_rows
        if all('hits' in cell for cell in group):
            retrieved += _retrieval_rows(bootstrap, arms)
        answers += [_answer(bootstrap, arms, own_rows)] if any(row['gain'] is not None for row in own_rows) else []
    return {
        'encoder': settings['encoder'],
        'evaluate_on': settings['evaluate_on'],
        'classes': list(classes),
        'chance': 1 / len(classes),
        'evaluation_images': len(labels),
        'dropped_duplicates': len(dropped),
        'real_per_class': settings['real_per_class'],
        'headline': _headline(answers, settings['real_per_class']),
        'answers': answers,
        'rows': rows,
        'retrieval': retrieved,
        'per_class': per_class,
    }


def points(change: float, low: float, high: float) -> str:
    """'+1.2 points (95 % -0.4 to +2.8)'."""
    return f'{100 * change:+.1f} points (95 % {100 * low:+.1f} to {100 * high:+.1f})'


def p_text(p: float) -> str:
    """'0.012', '0.37', '<0.001'."""
    if p < 0.001:
        return '<0.001'
    return f'{p:.3f}' if p < 0.1 else f'{p:.2f}'


def shots_text(shots: int | None) -> str:
    """The number of real images per class as text; None is 'all'."""
    return 'all' if shots is None else str(shots)


def setting_text(row: dict[str, Any]) -> str:
    """'linear, 8 real images per class', 'linear, all real images'."""
    images = 'image' if row['shots'] == 1 else 'images'
    return f'{row["method"]}, {shots_text(row["shots"])} real {images}{"" if row["shots"] is None else " per class"}'


def is_mixture(arm: str) -> bool:
    """Whether the arm has both real and synthetic images."""
    return arm.startswith(MIXTURE)


def _settings(settings: dict[str, Any], cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """The cells of each setting: by method, in the order requested, then by increasing number of real images."""
    met = list(dict.fromkeys([*settings.get('methods', ()), *(cell['method'] for cell in cells)]))
    for method in met:
        own = [cell for cell in cells if cell['method'] == method]
        for shots in sorted({cell['shots'] for cell in own}, key=lambda shots: np.inf if shots is None else shots):
            yield [cell for cell in own if cell['shots'] == shots]


def _saw_images(cells: Sequence[Cell]) -> bool:
    return any(cell['real_images'] + cell['extra_images'] for cell in cells)


def _paired(baseline: Sequence[Cell], treatment: Sequence[Cell]) -> list[tuple[Cell, Cell]]:
    by_seed = {cell['seed']: cell for cell in baseline}
    return [(by_seed[cell['seed']], cell) for cell in treatment if cell['seed'] in by_seed]


def _change(bootstrap: PairedBootstrap, baseline: Sequence[Cell], treatment: Sequence[Cell]):
    before, after = zip(*_paired(baseline, treatment))
    return bootstrap.change(*(np.array([cell['predictions'] for cell in own]) for own in (before, after)))


def _row(own: Sequence[Cell]) -> dict[str, Any]:
    first = own[0]
    row = {
        'method': first['method'],
        'arm': first['arm'],
        'shots': first['shots'],
        'ratio': first['ratio'],
        'seeds': len(own),
        'steps': first['steps'],
        'real_images': round(np.mean([cell['real_images'] for cell in own])),
        'extra_images': round(np.mean([cell['extra_images'] for cell in own])),
    }
    for score in ('accuracy', 'macro_f1'):
        row[score], row[f'{score}_ci95'] = scores.mean_interval([cell[score] for cell in own])
    return row


def _gain(score: str, change: Change | None) -> dict[str, float | None]:
    values = (None,) * 4 if change is None else (change.value, change.low, change.high, change.p)
    return dict(zip((f'{score}gain', f'{score}gain_low', f'{score}gain_high', f'{score}p'), values))


def _class_rows(classes: Sequence[str], labels: np.ndarray, own: Sequence[Cell], changes) -> list[dict[str, Any]]:
    """Means over seeds for each class, and their changes against `real`."""
    confusions = np.array([cell['confusion'] for cell in own], float)
    right = np.diagonal(confusions, axis1=1, axis2=2)
    true, predicted = confusions.sum(2), confusions.sum(1)
    recall, f1 = right / np.maximum(true, 1), 2 * right / np.maximum(true + predicted, 1)
    return [
        {
            'method': own[0]['method'],
            'arm': own[0]['arm'],
            'shots': own[0]['shots'],
            'class': name,
            'images': int((np.asarray(labels) == label).sum()),
            'recall': float(recall[:, label].mean()),
            'f1': float(f1[:, label].mean()),
            **_gain('recall_', changes and changes.recall[label]),
            **_gain('f1_', changes and changes.f1[label]),
        }
        for label, name in enumerate(classes)
    ]


def _retrieval_rows(bootstrap: PairedBootstrap, arms: dict[str, list[Cell]]) -> list[dict[str, Any]]:
    """Means over seeds of the mean recall and of each recall, and the change of the former against `real`."""

    def change(pairs):
        return bootstrap.change_of_means(*(np.stack([_hits(cell) for cell in side]) for side in zip(*pairs)))[0]

    changes = {
        arm: change(_paired(arms[REAL], own))
        for arm, own in arms.items()
        if REAL in arms and arm != REAL and _paired(arms[REAL], own)
    }
    adjusted = dict(zip(changes, holm([change.p for change in changes.values()])))
    rows = []
    for arm, own in arms.items():
        recalls = np.stack([_hits(cell).mean(0) for cell in own])
        mean, half = scores.mean_interval(recalls[:, 0])
        row = {
            key: _row(own)[key] for key in ('method', 'arm', 'shots', 'ratio', 'seeds', 'real_images', 'extra_images')
        }
        rows.append(
            row
            | {'mean_recall': mean, 'mean_recall_ci95': half}
            | _gain('', changes.get(arm))
            | {'p_holm': adjusted.get(arm), 'significant': arm in adjusted and adjusted[arm] < LEVEL}
            | dict(zip(RECALLS, recalls[:, 1:].mean(0).tolist()))
        )
    return rows


def _hits(cell: Cell) -> np.ndarray:
    """(images, 1 + recalls): what each image contributes to the mean recall, and to each of `RECALLS`."""
    each = np.concatenate([cell['hits'][direction] for direction in DIRECTIONS])
    return np.concatenate([each.mean(0, keepdims=True), each]).T


def _answer(bootstrap: PairedBootstrap, arms: dict[str, list[Cell]], rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The answer of one setting: its best arm with synthetic images (the highest lower end of the gain's interval)
    against `real`, and against the best arm without synthetic images."""
    judged = {row['arm']: row for row in rows if row['gain'] is not None}
    mixtures = [arm for arm in judged if is_mixture(arm)] or [arm for arm in judged if arm == SYNTHETIC] or [*judged]
    best = max(mixtures, key=lambda arm: judged[arm]['gain_low'])
    # the controls that beat `real`; if there are none, the best arm without generated images is `real` itself
    controls = [
        arm for arm in judged if not is_mixture(arm) and arm not in (SYNTHETIC, RANDOM) and judged[arm]['gain'] > 0
    ]
    row = judged[best]
    verdict = (
        'no evidence of a change'
        if not row['significant']
        else ('evidence of a gain' if row['gain'] > 0 else 'evidence of a loss')
    )
    answer = {key: row[key] for key in ('method', 'shots', 'arm', 'gain', 'gain_low', 'gain_high', 'p', 'p_holm')}
    answer |= {'verdict': verdict, 'compared': len(judged), 'control': None, 'over_control': None}
    text = (
        f'{best} changes accuracy by {points(row["gain"], row["gain_low"], row["gain_high"])[:-1]}, '
        f'p {_equals(row["p"])}, after Holm over {len(judged)} arms {p_text(row["p_holm"])}): {verdict}.'
    )
    if controls and best not in controls:
        control = max(controls, key=lambda arm: judged[arm]['gain_low'])
        if _paired(arms[control], arms[best]):
            over = _change(bootstrap, arms[control], arms[best]).accuracy
            low, high = cast(tuple[float, float], (over.low, over.high))
            answer |= {
                'control': control,
                'over_control': {'gain': over.value, 'gain_low': over.low, 'gain_high': over.high},
            }
            text += f' Against {control}, the best arm without generated images: {points(over.value, low, high)}.'
    return answer | {'text': text}


def _equals(p: float) -> str:
    return p_text(p) if p < 0.001 else f'= {p_text(p)}'


def _headline(answers: Sequence[dict[str, Any]], real_per_class: int | None) -> dict[str, Any] | None:
    return next((answer for answer in answers if answer['shots'] == real_per_class), answers[0] if answers else None)
