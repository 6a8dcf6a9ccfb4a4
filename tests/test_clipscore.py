import numpy as np
import pytest
from scipy.spatial.distance import cosine

from rsdiff.base.errors import BadInput
from rsdiff.evaluation.clipscore import embedding_similarity, shuffled_floor


def embeddings(count, width, seed=0):
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def test_similarity_is_scipys_cosine_whatever_the_lengths():
    a, b = embeddings(7, 16), embeddings(7, 16, 1)
    np.testing.assert_allclose(embedding_similarity(a, b), [1 - cosine(x, y) for x, y in zip(a, b)], rtol=1e-5)
    np.testing.assert_allclose(embedding_similarity(a, 9 * b), embedding_similarity(a, b))
    np.testing.assert_allclose(embedding_similarity(a, a), 1)
    np.testing.assert_allclose(embedding_similarity(a, -a), -1)


@pytest.mark.parametrize('count', [2, 3, 5, 64])
def test_the_floor_pairs_each_row_once_and_never_with_its_own(count):
    axes, a = np.eye(count), embeddings(count, count).astype(float)
    cosines = a / np.linalg.norm(a, axis=1, keepdims=True)  # between each row and each axis
    for seed in range(20):
        partner = np.argmin(np.abs(cosines - shuffled_floor(a, axes, seed)[:, None]), axis=1)
        assert sorted(partner) == list(range(count)) and np.all(partner != np.arange(count))


def test_the_floor_is_the_seeds_alone():
    a, b = embeddings(50, 8), embeddings(50, 8, 1)
    np.testing.assert_array_equal(shuffled_floor(a, b, 3), shuffled_floor(a, b, 3))
    assert not np.array_equal(shuffled_floor(a, b, 3), shuffled_floor(a, b, 4))


def test_a_common_part_lifts_the_floor_and_pairs_stand_above_it():
    a = embeddings(200, 32) + 3
    b = a + 0.5 * embeddings(200, 32, 1)
    floor = shuffled_floor(a, b, 0).mean()
    assert 0.7 < floor < embedding_similarity(a, b).mean() - 0.05
    assert abs(shuffled_floor(a - 3, b - 3, 0).mean()) < 0.1


@pytest.mark.parametrize('score', [embedding_similarity, lambda a, b: shuffled_floor(a, b, 0)])
def test_bad_embeddings_are_refused_in_one_line(score):
    good = embeddings(4, 8)
    for value in (0, np.nan, np.inf):
        bad = good.copy()
        bad[2] = value
        for pair in ((good, bad), (bad, good)):
            with pytest.raises(BadInput, match='embedding 2 of 4 is zero or not finite'):
                score(*pair)
    for pair in ((good, good[:3]), (good[:3], good), (good, good[:, :5]), (good[:, None], good[:, None])):
        with pytest.raises(ValueError):
            score(*pair)


def test_one_pair_has_no_floor():
    with pytest.raises(BadInput, match='1 pair of images cannot be shuffled'):
        shuffled_floor(embeddings(1, 8), embeddings(1, 8, 1), 0)
