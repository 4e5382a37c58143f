"""Kernels of three voices, and the weights that held-out photos give them."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import density
from geophoto import voices
from geophoto.voices import Circle, Evidence, Line, Sphere, Stack


def circle_evidence(count=200, seed=0, near_know=0.5) -> Evidence:
    """Times of photos of which a share has a neighbour that knows; its similarity tells which."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(0, 1440, count)
    near = rng.uniform(0, 1440, (count, 12))
    similar = np.sort(rng.uniform(0.1, 0.3, (count, 12)))[:, ::-1].copy()
    known = rng.random(count) < near_know
    near[known, 0] = (truth[known] + rng.normal(0, 4, known.sum())) % 1440
    similar[known, 0] = 0.9
    prior = rng.uniform(0, 1440, 50)
    return Evidence(similar, near, rng.uniform(0, 1440, count), prior, truth, np.ones(count))


@pytest.mark.parametrize("width", [2.0, 20.0, 150.0])
def test_kernels_on_the_circle_and_the_line_are_densities(width):
    minutes = np.arange(0, 1440, 0.5)
    total = np.exp(Circle().log_kernel(minutes, np.array(3.0), width)).sum() * 0.5
    assert total == pytest.approx(1, abs=1e-5)
    targets = np.linspace(-5000, 5000, 400_001)
    total = np.exp(Line().log_kernel(targets, np.array(0.0), width)).sum() * 0.025
    assert total == pytest.approx(1, abs=1e-6)


def test_kernels_on_the_sphere_are_densities_of_at_least_a_metre():
    rng = np.random.default_rng(0)
    points = rng.standard_normal((200_000, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    area = 4 * np.pi * density.EARTH_RADIUS_KM**2
    logs = Sphere(3000.0).log_kernel(points, np.array([0.0, 0.0, 1.0]), 1.0)
    assert np.exp(logs).mean() * area == pytest.approx(1, abs=0.03)
    here = np.array([1.0, 0.0, 0.0])
    narrow = Sphere(1e-3).log_kernel(here, here, 1e-5)  # all photos at one place
    assert narrow == pytest.approx(density.kernel_log_per_km2(0.0, density.LEAST_RADIUS_KM))


def test_kernel_logs_are_those_of_the_sums_over_labels():
    evidence, space = circle_evidence(5), Circle()
    logs, column = evidence.kernel_logs(space, 0.2), 0
    shares = np.exp(evidence.similar / 0.2)
    shares /= shares.sum(axis=1, keepdims=True)

    def by_hand(weights, labels, width):
        apart = np.abs((labels - evidence.truth[:, None] + 720) % 1440 - 720)
        kernel = np.exp(-0.5 * (apart / width) ** 2) / (width * np.sqrt(2 * np.pi))
        with np.errstate(divide="ignore"):
            return np.log((weights * kernel).sum(axis=1))

    for width in space.NEAR:
        expected = by_hand(shares, evidence.near, width)
        assert logs[:, column] == pytest.approx(np.maximum(expected, logs[:, column]), abs=1e-6)
        column += 1
    for width in space.HEAD:
        assert logs[:, column] == pytest.approx(by_hand(1.0, evidence.head[:, None], width))
        column += 1
    for width in space.PRIOR:
        every = np.tile(evidence.prior, (5, 1))
        assert logs[:, column] == pytest.approx(by_hand(1 / 50, every, width))
        column += 1
    assert (logs[:, column] == -np.log(1440)).all() and column + 1 == logs.shape[1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40))
def test_weights_are_shares_and_no_less_likely_than_even_ones(seed, count):
    evidence, space = circle_evidence(count, seed), Circle()
    logs, gate = evidence.kernel_logs(space, 0.1), evidence.gate()
    stack = Stack.fit(0.1, logs, gate)
    weights = stack.weights(gate)
    assert weights.sum(axis=1) == pytest.approx(1) and (weights >= 0).all()
    even = np.logaddexp.reduce(logs, axis=1) - np.log(logs.shape[1])
    assert stack.log_likelihood(logs, gate).mean() >= even.mean() - 1e-6


def test_the_gate_trusts_neighbours_only_where_they_are_near():
    stack = voices.fit_stack([circle_evidence(400, 1)], [Circle()])[0]
    fresh = circle_evidence(400, 2)
    near = voices.voice_of(Circle()) == 0
    trust = stack.weights(fresh.gate())[:, near].sum(axis=1)
    close = fresh.similar[:, 0] > 0.5
    assert trust[close].mean() > 0.9 and trust[~close].mean() < 0.3


def test_beyond_what_was_seen_the_gate_stays_at_its_edge():
    stack = voices.fit_stack([circle_evidence(100, 3)], [Circle()])[0]
    edge, beyond = stack.gate_high[None], stack.gate_high[None] + 50
    assert stack.weights(edge) == pytest.approx(stack.weights(beyond))


def test_silent_voices_cost_nothing():
    evidence = circle_evidence(30)
    alone = Evidence(evidence.similar[:, :0], evidence.near[:, :0], evidence.head,
                     evidence.prior[:0], evidence.truth, evidence.away)  # fmt: skip
    logs = alone.kernel_logs(Circle(), 0.1)
    assert np.isneginf(logs[:, voices.voice_of(Circle()) % 2 == 0]).all()
    assert np.isfinite(Stack.fit(0.1, logs, alone.gate()).log_likelihood(logs, alone.gate())).all()


def test_what_is_unlike_all_others_gets_the_weights_of_the_prior():
    stack = voices.fit_stack([circle_evidence(100, 4)], [Circle()])[0]
    voice = voices.voice_of(Circle())
    weights = stack.weights(circle_evidence(3, 5).gate())
    moved = stack.fall_back(weights, np.array([0.0, 0.5, 1.0]), voice == 2)
    assert moved[0] == pytest.approx(weights[0]) and moved.sum(axis=1) == pytest.approx(1)
    assert moved[2, voice == 2].sum() == pytest.approx(1)


# ---------------------------------------------------------------- trust


def grouped(evidence: Evidence, size: int) -> Evidence:
    """The same photos, so many of them in a row from one group."""
    return dataclasses.replace(evidence, group=np.arange(len(evidence)) // size)


def trust_of(seen: Evidence, fresh: Evidence) -> float:
    """In a stack fitted on some photos, by others."""
    return trusted(voices.fit_stack([seen], [Circle()])[0], fresh)


def trusted(stack: voices.Stack, fresh: Evidence) -> float:
    logs = fresh.kernel_logs(Circle(), stack.temperature)
    return voices.fit_trust([stack], [fresh], [Circle()], [logs])


def test_a_stack_is_trusted_as_far_as_photos_that_it_never_saw_bear_it_out():
    knows, knows_not = circle_evidence(300, 6, 0.9), circle_evidence(300, 7, 0.0)
    assert trust_of(knows, circle_evidence(300, 8, 0.9)) > 0.97
    misled = dataclasses.replace(circle_evidence(300, 9, 0.9), near=knows_not.near)
    assert trust_of(knows, misled) < 0.1


@pytest.mark.parametrize("size", [1, 5, 60])
def test_trust_is_the_likeliest_share_of_a_search_by_hand(size):
    stack = voices.fit_stack([circle_evidence(200, 10, 0.3)], [Circle()])[0]
    fresh, voice = grouped(circle_evidence(300, 11, 0.1), size), voices.voice_of(Circle())
    logs, own = fresh.kernel_logs(Circle(), stack.temperature), stack.weights(fresh.gate())
    prior = np.where(voice == 2, np.exp(stack.offset), 0) / np.exp(stack.offset)[voice == 2].sum()
    likely, without = (np.exp(logs) * own).sum(axis=1), np.exp(logs) @ prior
    tried = np.arange(0.001, 1, 0.001)
    each = [np.log(t * likely + (1 - t) * without).sum() / size for t in tried]
    best = tried[np.argmax(each + voices.FOR * np.log(tried) + voices.AGAINST * np.log1p(-tried))]
    assert trusted(stack, fresh) == pytest.approx(best, abs=2e-3)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6))
def test_photos_taken_several_times_change_no_trust(seed, times):
    stack = voices.fit_stack([circle_evidence(60, seed, 0.2)], [Circle()])[0]
    fresh = grouped(circle_evidence(40, seed + 1, 0.2), 1)
    more = fresh.take(np.repeat(np.arange(40), times))
    once, again = (trusted(stack, part) for part in (fresh, more))
    assert again == pytest.approx(once, abs=1e-4)


def test_one_group_says_little_against_a_stack():
    knows = circle_evidence(300, 6, 0.9)
    misled = dataclasses.replace(knows, near=circle_evidence(300, 7, 0.0).near)
    several, one = (trust_of(knows, grouped(misled, size)) for size in (3, 300))
    assert several < 0.1 < 0.4 < one
