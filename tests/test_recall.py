"""Recall at k with ties: the expectation over random orders of tied items, and chance for uninformative scores."""

import itertools

import numpy as np
import pytest

from rsdiff.base.errors import BadInput
from rsdiff.data.folder import Entry
from rsdiff.downstream.problems import recall
from rsdiff.downstream.problems.recall import IMAGE_TO_TEXT, OWN, TEXT_TO_IMAGE, WORDS


def hits_of_all_orders(scores, relevant, k):
    """The definition, for few items: the mean over every order by score that ties allow."""
    orders = list(itertools.permutations(range(len(scores))))
    sorted_orders = [order for order in orders if all(scores[a] >= scores[b] for a, b in zip(order, order[1:]))]
    return np.mean([any(relevant[item] for item in order[:k]) for order in sorted_orders])


@pytest.mark.parametrize('levels', [2, 3, 100])
def test_a_hit_is_its_probability_over_all_orders_of_what_ties(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, (12, 6)).astype('f')
    relevant = rng.random((12, 6)) < 0.3
    relevant[np.arange(12), rng.integers(0, 6, 12)] = True
    found = recall.hits(scores, relevant, (1, 2, 5, 6, 9))
    for row, k in zip(found, (1, 2, 5, 6, 9)):
        np.testing.assert_allclose(row, [hits_of_all_orders(*query, k) for query in zip(scores, relevant)], atol=1e-12)


def by_key(found):
    return {(recall.direction, recall.rule, recall.k): recall for recall in found}


def unit(x):
    return np.float32(x / np.linalg.norm(x, axis=-1, keepdims=True))


def test_without_ties_it_is_the_rank_of_the_first_right_item():
    rng = np.random.default_rng(0)
    captions = [tuple(f'{image} {n}' for n in range(1 + image % 3)) for image in range(40)]
    owner = np.repeat(np.arange(40), [len(own) for own in captions])
    images = unit(rng.normal(size=(40, 8)))
    texts = unit(images[owner] + rng.normal(0, 0.5, (len(owner), 8)))
    found = by_key(recall.recalls(images, texts, captions))
    order = np.argsort(-images @ texts.T, axis=1)
    first = np.array([np.flatnonzero(owner[row] == image)[0] for image, row in enumerate(order)])
    rank = np.array(
        [np.flatnonzero(row == image)[0] for image, row in zip(owner, np.argsort(-texts @ images.T, axis=1))]
    )
    for k, rule in itertools.product((1, 5, 10), (OWN, WORDS)):  # all captions differ
        assert found[IMAGE_TO_TEXT, rule, k].recall.value == pytest.approx(np.mean(first < k))
        assert found[TEXT_TO_IMAGE, rule, k].recall.value == pytest.approx(np.mean(rank < k))
        assert found[TEXT_TO_IMAGE, rule, k].chance == pytest.approx(k / 40)
        assert found[TEXT_TO_IMAGE, rule, k].recall.low < found[TEXT_TO_IMAGE, rule, k].recall.value


def test_captions_that_repeat_are_told_by_nobody_and_right_by_their_words():
    captions = [('a field', 'the field')] * 3 + [('a lake', 'the lake')]
    where = {'field': [1.0, 0.0], 'lake': [0.0, 1.0]}
    texts = np.float32([where[words.split()[1]] for own in captions for words in own])
    found = by_key(recall.recalls(texts[::2], texts, captions))
    # 1/3 for each of the three images with the same captions, 1 for the lake
    assert found[IMAGE_TO_TEXT, OWN, 1].recall.value == pytest.approx((3 * 1 / 3 + 1) / 4)
    assert found[TEXT_TO_IMAGE, OWN, 1].recall.value == pytest.approx((3 * 1 / 3 + 1) / 4)
    assert found[IMAGE_TO_TEXT, WORDS, 1].recall.value == found[TEXT_TO_IMAGE, WORDS, 1].recall.value == 1
    assert found[IMAGE_TO_TEXT, WORDS, 1].chance == pytest.approx((3 * 6 / 8 + 2 / 8) / 4)
    assert found[IMAGE_TO_TEXT, OWN, 1].chance == pytest.approx(2 / 8)


def test_the_hits_of_images_average_to_the_recalls():
    rng = np.random.default_rng(0)
    captions = [[f'a {n % 3}', f'b {n}'] for n in range(8)]
    images, texts = rng.normal(size=(8, 4)), rng.normal(size=(16, 4))
    found = recall.hits_of_images(images, texts, captions)
    expected = [r for r in recall.recalls(images, texts, captions) if r.rule == recall.OWN]
    assert [found[r.direction][recall.KS.index(r.k)].mean() for r in expected] == pytest.approx(
        [r.recall.value for r in expected]
    )
    assert {values.shape for values in found.values()} == {(3, 8)}


def test_constant_scores_are_chance_and_random_ones_are_near_it():
    rng = np.random.default_rng(0)
    captions = [tuple(f'{rng.integers(60)}' for _ in range(5)) for _ in range(80)]
    constant = recall.recalls(np.ones((80, 2), 'f'), np.ones((400, 2), 'f'), captions)
    assert [r.recall.value for r in constant] == pytest.approx([r.chance for r in constant], abs=1e-12)
    drawn = [
        recall.recalls(unit(rng.normal(size=(80, 30))), unit(rng.normal(size=(400, 30))), captions) for _ in range(30)
    ]
    for runs in zip(*drawn):
        mean, error = np.mean([r.recall.value for r in runs]), np.std([r.recall.value for r in runs]) / 30**0.5
        assert abs(mean - runs[0].chance) < 4 * error + 1e-3


def test_captions_of_an_image_do_not_count_as_independent():
    # An image's five captions are all hits or all misses: the interval is that of 60 images, not of 300 captions.
    rng = np.random.default_rng(0)
    values, asks = np.repeat(rng.random(60) < 0.5, 5).astype(float), np.repeat(np.arange(60), 5)
    interval = recall._interval(values, asks, 0)
    expected = 2 * 1.96 * values.std() / 60**0.5
    assert interval.high - interval.low == pytest.approx(expected, rel=0.15)


def test_an_image_without_captions_is_named(tmp_path):
    entries = [
        Entry(tmp_path / 'a.png', 'a.png', captions=('a field',)),
        Entry(tmp_path / 'b.png', 'b.png', captions=(' ',)),
    ]
    with pytest.raises(BadInput, match='b.png: no captions in the manifest'):
        recall.captions_of(entries)


def test_the_table_has_all_figures():
    captions = [('a',), ('b',), ('c',)]
    lines = recall.markdown(recall.recalls(np.eye(3, dtype='f'), np.eye(3, dtype='f'), captions)).splitlines()
    assert len(lines) == 6 and {line.count('|') for line in lines} == {9}
    assert (
        lines[2] == '| image to text | own | 100.0 (100.0 to 100.0) | 33.33 | 100.0 (100.0 to 100.0) | 100.00 | 100.0 '
        '(100.0 to 100.0) | 100.00 |'
    )
