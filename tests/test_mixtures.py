"""Densities as cells and as draws, against sums by hand and closed forms."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_voices import circle_evidence

import density
from geophoto import mixtures, voices
from geophoto.mixtures import Grid, Ranges
from geophoto.voices import Circle, Evidence, Line, Sphere


def line_evidence(count: int, seed: int) -> Evidence:
    rng = np.random.default_rng(seed)
    similar = np.sort(rng.uniform(0, 0.9, (count, 6)))[:, ::-1].copy()
    values = [rng.normal(0, 1, shape) for shape in ((count, 6), count, 30, count)]
    return Evidence(similar, *values, np.ones(count))


@pytest.mark.parametrize("kind", ["circle", "line"])
def test_cells_hold_the_density_of_the_kernels(kind):
    """At every cell the grid says what kernel_logs and the weights say of a truth there."""
    circular, breadth = kind == "circle", np.array([0.9, 1.0, 1.4])
    evidence = circle_evidence(3, 7) if circular else line_evidence(3, 7)
    evidence = dataclasses.replace(evidence, breadth=breadth)
    space = Circle() if circular else Line()
    stack = voices.fit_stack([evidence], [space])[0]
    weights = stack.weights(evidence.gate())
    weights[:, -1] += 0.1  # some floor, too
    weights /= weights.sum(axis=1, keepdims=True)
    grid = Grid.of(evidence, space, stack, weights)
    assert grid.chances.sum(axis=1) == pytest.approx(1)
    snapped = [np.rint((v - grid.points[0]) / grid.step) * grid.step + grid.points[0]
               for v in (evidence.near, evidence.head, evidence.prior)]  # fmt: skip
    for cell in (5, 300, 777, len(grid.points) - 3):
        there = np.full(3, grid.points[cell])
        moved = Evidence(evidence.similar, *snapped, there, evidence.away, breadth=breadth)
        logs = moved.kernel_logs(space, stack.temperature)
        if not circular:
            logs[:, -1] = -np.log(len(grid.points) * grid.step)
        expected = np.exp(np.logaddexp.reduce(np.log(weights + 1e-300) + logs, axis=1))
        assert grid.chances[:, cell] / grid.step == pytest.approx(expected, rel=0.02, abs=1e-7)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_the_point_on_the_circle_has_the_least_expected_distance(seed):
    evidence = circle_evidence(2, seed)
    stack = voices.fit_stack([evidence], [Circle()])[0]
    grid = Grid.of(evidence, Circle(), stack, stack.weights(evidence.gate()))
    apart = np.abs((grid.points[:, None] - grid.points + 720) % 1440 - 720)
    cost = grid.chances @ apart
    found = cost[np.arange(2), grid.medians().astype(int)]
    assert found == pytest.approx(cost.min(axis=1), abs=1e-6)


def test_the_point_on_the_line_is_the_median():
    evidence = line_evidence(4, 1)
    stack = voices.fit_stack([evidence], [Line()])[0]
    grid = Grid.of(evidence, Line(), stack, stack.weights(evidence.gate()))
    below = (grid.chances * (grid.points <= grid.medians()[:, None])).sum(axis=1)
    assert below == pytest.approx(0.5, abs=0.01)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 0.98))
def test_shares_and_distances_are_inverse(seed, level):
    rng = np.random.default_rng(seed)
    apart, chances = rng.uniform(0, 100, (3, 50)), rng.dirichlet(np.ones(50), 3)
    ranges = Ranges(apart, chances, np.full((3, 50), 0.5))
    back = ranges.shares_within(ranges.distances([level])[:, 0])
    first = ranges.share[:, 0]
    assert back == pytest.approx(np.where(first < level, level, back), abs=1e-6)
    assert (np.diff(ranges.distances((0.1, 0.5, 0.9)), axis=1) >= 0).all()


def sphere_evidence(count: int, seed: int) -> Evidence:
    rng = np.random.default_rng(seed)

    def places(*shape):
        return density.unit_vectors(46 + rng.normal(0, 0.3, shape), 7 + rng.normal(0, 0.4, shape))

    similar = np.sort(rng.uniform(0, 0.9, (count, 8)))[:, ::-1].copy()
    return Evidence(similar, places(count, 8), places(count), places(40), places(count),
                    np.ones(count))  # fmt: skip


def test_draws_of_one_kernel_lie_as_far_as_they_should():
    """Of a von Mises–Fisher kernel, P(angle ≤ a) = (1 − exp(−κ(1 − cos a))) / (1 − exp(−2κ))."""
    evidence, space = sphere_evidence(2, 0), Sphere(50.0)
    stack = voices.fit_stack([evidence], [space])[0]
    weights = np.zeros((2, len(voices.widths_of(space))))
    column = list(voices.voice_of(space)).index(1) + 3  # a kernel on the head's point
    weights[:, column] = 1
    draws = mixtures.draw_positions(evidence, space, stack, weights)
    km = density.arc_km(draws, evidence.head[:, None])
    kappa = (density.EARTH_RADIUS_KM / (voices.widths_of(space)[column] * 50.0)) ** 2
    for level in (0.25, 0.5, 0.9):
        angle = np.arccos(1 + np.log(1 - level * (1 - np.exp(-2 * kappa))) / kappa)
        assert (km <= angle * density.EARTH_RADIUS_KM).mean() == pytest.approx(level, abs=0.04)
    assert (draws == mixtures.draw_positions(evidence, space, stack, weights)).all()


def test_draws_are_shared_by_the_weights():
    evidence, space = sphere_evidence(3, 1), Sphere(0.01)  # kernels of metres: whose, is plain
    stack = voices.fit_stack([evidence], [space])[0]
    voice = voices.voice_of(space)
    weights = np.tile(np.where(voice == 0, 0.5 / 9, np.where(voice == 1, 0.3 / 5, 0.0)), (3, 1))
    weights[:, voice == 2] = 0.2 / 4
    draws = mixtures.draw_positions(evidence, space, stack, weights)
    near = density.arc_km(draws[:, :, None], evidence.near[:, None]).min(axis=2) < 0.1
    own = density.arc_km(draws, evidence.head[:, None]) < 0.1
    prior = density.arc_km(draws[:, :, None], evidence.prior[None, None]).min(axis=2) < 0.1
    shares = [part.mean() for part in (near, own, prior)]
    assert shares == pytest.approx([0.5, 0.3, 0.2], abs=0.01)


def test_the_point_is_neither_a_gamble_nor_the_middle_of_nowhere():
    """One photo that is right in 6 of 10 cases against a crowd elsewhere: the photo's place; in 2
    of 10 cases: the crowd."""
    one, crowd = density.unit_vectors(48.0, 10.0), density.unit_vectors(46.0, 7.0)
    for chance, expected in ((0.6, one), (0.2, crowd)):
        count = round(chance * mixtures.DRAWS)
        draws = np.concatenate(
            [np.tile(one, (count, 1)), np.tile(crowd, (mixtures.DRAWS - count, 1))]
        )
        evidence = Evidence(np.array([[0.9, 0.5]]), np.stack([one, crowd])[None],
                            density.unit_vectors(47.0, 8.0)[None], crowd[None], one[None],
                            np.ones(1))  # fmt: skip
        tried = mixtures.candidates(evidence, density.unit_vectors(47.0, 8.5))
        point = mixtures.position_points(tried, draws[None])
        assert (point[0] == expected).all()
