import numpy as np
import pytest

from rsdiff.base.boxes import Box
from rsdiff.base.errors import BadInput
from rsdiff.sampling.mosaic.plan import make_plan
from rsdiff.sampling.mosaic.plane import Plane
from rsdiff.sampling.mosaic.windows import Profile, cylinder_lattice, plane_lattice, shares

PROFILES = {
    'middle': (Profile(32, 8, 0), 16),
    'ones': (Profile(32, 0, 0), 32),
    'mean': (Profile(32, 0, 0), 16),
    'ramp': (Profile(32, 0, 4), 28),
    'tent': (Profile(32, 0, 16), 16),
}


@pytest.mark.parametrize('profile, stride', PROFILES.values(), ids=PROFILES)
@pytest.mark.parametrize('offset', [0.0, 0.5, 0.77])
@pytest.mark.parametrize('around', [None, 100, 20, 4])
def test_windows_cover_every_interval_and_share_it(profile, stride, offset, around):
    lattice = plane_lattice(4, stride, offset) if around is None else cylinder_lattice(4, stride, offset, around)
    for a, b in ((0, 1), (-70, 33), (31, 32), (28, 132), (1000, 1040)):
        places = lattice.touching(a, b, profile)
        every = [lattice.position(i) for i in range(-200, 400)]
        weigh = lambda p: np.any(profile.weights()[max(a - p, 0) : max(b - p, 0)] > 0)
        assert places == [p for p in every if weigh(p)]
        assert all(p % 4 == 0 for p in places) and np.all(np.diff(places) <= stride)
        np.testing.assert_allclose(shares(places, a, b, profile).sum(0), 1, atol=1e-6)


@pytest.mark.parametrize('stride', [16, 28, 32])
@pytest.mark.parametrize('offset', [0.0, 0.25, 0.5])
@pytest.mark.parametrize('around', [4, 60, 64, 100, 128])
def test_a_cylinder_is_the_same_after_one_turn(stride, offset, around):
    lattice = cylinder_lattice(4, stride, offset, around)
    places = [lattice.position(i) for i in range(-3 * lattice.count, 3 * lattice.count)]
    assert {p % around for p in places} == {p % around for p in places[: lattice.count]}
    assert np.all(np.diff(places) <= stride) and lattice.count == -(-around // stride)
    for i in range(-5, 5):
        assert lattice.position(i + lattice.count) == lattice.position(i) + around


def test_ramps_of_the_overlap_add_to_one_before_any_division():
    weights = Profile(32, 0, 4).weights()
    np.testing.assert_allclose(weights[:4] + weights[-4:], 1)
    assert np.all(weights[4:-4] == 1)
    np.testing.assert_array_equal(Profile(32, 8, 0).weights(), [0] * 8 + [1] * 16 + [0] * 8)


def test_what_a_phase_reads_is_what_the_one_before_delivers():
    for name in ('fast', 'metaearth', 'multidiffusion', 'spot', 'infinite', 'few'):
        plan = make_plan(name, 32, steps=6, timesteps=4 if name == 'few' else None)
        needed = plan.places(0, 100, 180)
        for phase, here, after in zip(plan.phases, needed, needed[1:] + [None]):
            a, b = (100, 180) if after is None else (after[0], after[-1] + 32)
            np.testing.assert_allclose(shares(here, a, b, plan.profile(phase)).sum(0), 1, atol=1e-6)


def test_the_edges_of_fast_lie_elsewhere_in_each_phase_and_never_count():
    plan = make_plan('fast', 64, phases=3)
    for phase in plan.phases:
        weights = plan.profile(phase).weights()
        assert phase.stride_px == 44 and np.all(weights[:6] == 0) and 0 < weights[6] < weights[7] < 1 == weights[14]
        np.testing.assert_allclose(weights[44:] + weights[:20], 1)  # with the next window's, before normalisation
    assert len({phase.offset for phase in plan.phases}) == 3
    assert [phase.stride_px for phase in make_plan('fast', 256).phases] == [232] * 3
    assert [phase.steps for phase in make_plan('fast', 64, 16, 5, 0).phases] == [3, 3, 3, 3, 4]
    assert {phase.ramp_px for phase in make_plan('fast', 64, 16, 5, 0).phases} == {0}
    assert make_plan('fast', 16).phases[0].stride_px == 8


def test_few_has_the_windows_of_fast_and_a_phase_for_each_step():
    for steps in (1, 2, 4):
        few, fast = make_plan('few', 64, timesteps=steps), make_plan('fast', 64, steps, steps)
        assert few.phases == fast.phases and [phase.steps for phase in few.phases] == [1] * steps
        assert few.solver == 'ddim'


@pytest.mark.parametrize('overlap_px', range(0, 33, 4))
def test_windows_of_fast_share_their_overlap_without_a_gap(overlap_px):
    plan = make_plan('fast', 64, overlap_px=overlap_px)
    places = plan.places(0, -100, 200)[0]
    np.testing.assert_allclose(shares(places, -100, 200, plan.profile(plan.phases[0])).sum(0), 1, atol=1e-6)


@pytest.mark.parametrize('window_px, limit', [(64, 28), (256, 20)])
def test_fast_costs_little_halo_included(window_px, limit):
    tiles = [(a, a + 4096) for a in range(0, 16 * 4096, 4096)]
    assert make_plan('fast', window_px).evaluations(tiles, tiles) / (16 * 4096) ** 2 < limit


def test_a_canvas_of_a_million_squared_is_counted_at_once():
    """The count also equals the sum over the tiles."""
    plan = make_plan('fast', 64)
    tiles = [(a, min(a + 1024, 3000)) for a in range(0, 3000, 1024)]
    each = sum(plan.evaluations([rows], [columns]) for rows in tiles for columns in tiles)
    assert plan.evaluations(tiles, tiles) == each
    many = [(a, a + 1000) for a in range(0, 10**6, 1000)]
    assert 22 < plan.evaluations(many, many) / 10**12 < 40


def test_the_papers_plans_cost_what_their_overlap_says():
    tile = [(0, 64 * 64)]
    for name, steps, cost in (('metaearth', 50, 200), ('multidiffusion', 5, 20), ('spot', 5, 5), ('infinite', 5, 20)):
        made = make_plan(name, 64, steps).evaluations(tile, tile) / 4096**2
        assert cost <= made < 1.15 * cost, name


@pytest.mark.parametrize(
    'options, message',
    [
        (dict(name='slow'), "plan 'slow' is not one of fast"),
        (dict(steps=0), 'steps is 0'),
        (dict(phases=17), 'phases is 17; 12 steps'),
        (dict(overlap_px=6), 'overlap_px is 6'),
        (dict(overlap_px=64), 'overlap_px is 64'),
        (dict(name='spot', phases=2), 'plan spot has no phases'),
        (dict(name='few'), 'plan few is for generators of at most 4 timesteps.*unknown'),
        (dict(name='few', timesteps=1000), 'this one has 1000; use plan fast'),
        (dict(name='metaearth', overlap_px=8), 'plan metaearth has no overlap_px; only fast, few have it'),
    ],
)
def test_impossible_numbers_are_named(options, message):
    with pytest.raises(BadInput, match=message):
        make_plan(**{'name': 'fast', 'window_px': 64} | options)


@pytest.mark.parametrize(
    'box',
    [
        Box(-3, -4, 5, 6),
        Box(5, 4, 14, 12),
        Box(-3, -4, 14, 12),
        Box(2, 2, 4, 4),
        Box(-30, -31, 40, 50),
        Box(33, -25, 35, -20),
    ],
)
@pytest.mark.parametrize('wrap_x', [False, True])
def test_a_plane_continues_its_image_like_numpy(box, wrap_x):
    image = np.random.default_rng(0).integers(0, 256, (10, 8, 3))
    padded = np.pad(image, ((60, 60), (0, 0), (0, 0)), mode='reflect')
    padded = np.pad(padded, ((0, 0), (60, 60), (0, 0)), mode='wrap' if wrap_x else 'reflect')
    expected = padded[box.y0 + 60 : box.y1 + 60, box.x0 + 60 : box.x1 + 60]
    np.testing.assert_array_equal(Plane(image, wrap_x).crop(box), expected)


def test_a_plane_reads_no_more_than_it_shows():
    """A crop across the seam of a wide image reads only its two ends."""

    class Wide:
        shape = (10, 10**6, 3)

        def __getitem__(self, key):
            assert all(part.stop - part.start <= 8 for part in key)
            return np.zeros([part.stop - part.start for part in key] + [3], np.uint8)

    assert Plane(Wide(), wrap_x=True).crop(Box(-4, -4, 4, 4)).shape == (8, 8, 3)
    assert Plane(Wide()).crop(Box(6, 10**6 - 4, 14, 10**6 + 4)).shape == (8, 8, 3)


def test_the_smallest_image_is_one_pixel():
    np.testing.assert_array_equal(Plane(np.full((1, 1, 3), 7)).crop(Box(-2, -2, 2, 2)), np.full((4, 4, 3), 7))
    with pytest.raises(BadInput, match='0×3 px'):
        Plane(np.zeros((3, 0, 3)))
