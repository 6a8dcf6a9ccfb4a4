import numpy as np
import pytest
from scipy.spatial.distance import cosine

from rsdiff.evaluation.clipscore import embedding_similarity, shuffled_floor

A, B = np.random.default_rng(0).normal(size=(2, 50, 8))


def test_similarity_is_scipys_cosine_and_knows_no_length():
    expected = [1 - cosine(a, b) for a, b in zip(A, B)]
    np.testing.assert_allclose(embedding_similarity(A, B), expected)
    np.testing.assert_allclose(embedding_similarity(3 * A, B / 7), expected)
    assert embedding_similarity(A, A) == pytest.approx(1) and embedding_similarity(0 * A, B) == pytest.approx(0)
    with pytest.raises(ValueError, match='shapes'):
        embedding_similarity(A, B[:5])


@pytest.mark.parametrize('count', [2, 3, 10, 50])
def test_the_floor_pairs_each_with_another_and_never_with_itself(count):
    marks = np.eye(count)
    for seed in range(20):
        assert (shuffled_floor(marks, marks, seed) == 0).all()  # 1 where an image met its own


def test_the_floor_depends_on_the_seed_alone():
    assert shuffled_floor(A, B, 1) == pytest.approx(shuffled_floor(A, B, 1))
    assert not np.allclose(shuffled_floor(A, B, 1), shuffled_floor(A, B, 2))
    assert np.isnan(shuffled_floor(A[:1], B[:1])).all()
