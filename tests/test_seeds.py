"""Any integer is a valid seed."""

import itertools

import jax
import numpy as np
import pytest

from rsdiff.base.seeds import seed_key, short_seed, written_seed
from rsdiff.data.pipeline import DataConfig, batch_indices, make_source
from rsdiff.diffusion.noise import name_key
from rsdiff.training.config import TrainConfig, from_dict, to_dict

SEEDS = [
    0,
    1,
    -1,
    2**31,
    2**32 - 1,
    2**32,
    2**32 + 1,
    -(2**32),
    2**63,
    2**64,
    2**64 + 1,
    -(2**64),
    10**3000,
    10**3000 + 1,
]


@pytest.mark.parametrize('seed', [0, 1, 12345, 2**31 - 1, 2**31, 2**32 - 1])
def test_a_seed_of_32_bits_is_jaxs_own(seed):
    assert (jax.random.key_data(seed_key(seed)) == jax.random.key_data(jax.random.key(seed))).all()
    assert short_seed(seed) == seed == written_seed(seed)


def test_different_seeds_differ():
    for names in ((), (1,), (3, 0)):
        keys = {tuple(np.asarray(jax.random.key_data(name_key(seed, *names))).tolist()) for seed in SEEDS}
        assert len(keys) == len(SEEDS)
    assert len({short_seed(seed) for seed in SEEDS}) == len(SEEDS) == len({written_seed(seed) for seed in SEEDS})
    assert all(0 <= short_seed(seed) < 2**32 for seed in SEEDS)


def test_a_large_seed_is_no_name_of_a_small_one():
    small = [tuple(np.asarray(jax.random.key_data(name_key(0, name))).tolist()) for name in range(3)]
    large = [tuple(np.asarray(jax.random.key_data(seed_key(2**32 * n))).tolist()) for n in range(1, 3)]
    assert not {*small} & {*large}


def test_training_takes_any_seed(image_folder):
    data = DataConfig(source=str(image_folder), size_px=32)
    source = make_source(data)
    orders = [tuple(batch_indices(source, seed, 12, 0)) for seed in (0, 2**32, 2**64, -1)]
    assert all(one != other for one, other in itertools.combinations(orders, 2))
    for seed in SEEDS:
        config = TrainConfig(seed=seed)
        assert from_dict(TrainConfig, to_dict(config)) == config
