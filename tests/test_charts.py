"""Charts are not cut off, for any number of classes and length of class names."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from rsdiff.downstream import charts, scores
from rsdiff.downstream.summary import summarise

NAMES = (
    'AnnualCrop',
    'basketball court with <b>hatching</b>',
    'W' * 30,
    'price in $ and $x^',
    'church',
    'circular farmland and irrigated cropland',
)
ARMS = {
    'real': (0.5, None),
    'synthetic': (0.4, 1),
    'real+synthetic 1:1': (0.7, 1),
    'real+synthetic 1:16': (0.6, 16),
    'real repeated': (0.5, 2),
    'random labels': (0.0, None),
}


def study(classes, methods):
    """The summary and cells of synthetic predictions, four images per class and two seeds."""
    labels, cells = np.repeat(np.arange(classes), 4), []
    for number, (arm, (right, ratio)) in enumerate(ARMS.items()):
        for method in methods:
            for shots in (4, None):
                for seed in range(2):
                    rng = np.random.default_rng([number, seed])
                    guesses = rng.integers(0, classes, len(labels))
                    predictions = np.where(rng.random(len(labels)) < right, labels, guesses)
                    confusion = scores.confusion_matrix(labels, predictions, classes)
                    cells.append(
                        {
                            'method': method,
                            'arm': arm,
                            'shots': shots,
                            'ratio': ratio,
                            'seed': seed,
                            'steps': 5,
                            'real_images': classes * (shots or 10),
                            'extra_images': 0,
                            'accuracy': scores.accuracy(confusion),
                            'macro_f1': scores.macro_f1(confusion),
                            'confusion': confusion.tolist(),
                            'predictions': predictions.tolist(),
                            'final_loss': 0.5,
                            'seconds': 1.0,
                        }
                    )
    names = [NAMES[i % len(NAMES)] + f' {i}' * (i >= len(NAMES)) for i in range(classes)]
    settings = {
        'encoder': 'made up',
        'real_per_class': None,
        'classes': names,
        'evaluate_on': 'test',
        'methods': list(methods),
        'chosen': {},
    }
    return summarise(settings, cells, labels), cells


def beyond(figure):
    """How far, in inches, the drawing extends beyond the figure on its worst side."""
    FigureCanvasAgg(figure).draw()
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    return max(-drawn.x0, -drawn.y0, drawn.x1 - width, drawn.y1 - height)


@pytest.mark.parametrize('methods', [('linear',), ('linear', 'tip_adapter', 'finetune')], ids=len)
@pytest.mark.parametrize('classes', [2, 7, 21, 45])
def test_nothing_leaves_the_picture(classes, methods):
    drawn = charts.draw(*study(classes, methods))
    assert set(drawn) == {'accuracy', 'ratio', 'learning_curve', 'confusion', 'per_class'}
    for name, chart in drawn.items():
        assert beyond(chart.figure) < 0.01, name


@pytest.mark.parametrize('classes', [2, 7, 21, 45])
def test_the_titles_and_scales_of_matrices_do_not_meet(classes):
    figure = charts.confusion(*study(classes, ('linear',))).figure
    FigureCanvasAgg(figure).draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), i


def test_long_names_keep_their_ends():
    assert charts._short('circular farmland of Nebraska 17') != charts._short('circular farmland of Nebraska 18')
    assert len(charts._short('W' * 99)) == 24


def test_what_is_cut_off_is_found():
    figure = Figure(figsize=(2, 2))
    figure.subplots().set_title('a title that is wider than two inches by far')
    assert beyond(figure) > 0.1
