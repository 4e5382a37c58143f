"""Mixtures of kernels as cells of a circle or a line, or as draws on the sphere: points and ranges.

In: evidence and the weights of its kernels. Out: the point of each density, and how far from it a
share of the density lies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

import density
from geophoto.targets import MINUTES_PER_DAY, Normalisation, minutes_apart
from geophoto.voices import Circle, Evidence, Space, Sphere, Stack, voice_of, widths_of

DRAWS = 1000  # of a density on the sphere
CANDIDATES = 32  # neighbours among which the point is looked for
CELLS = 2048  # of the altitude's line

# ---------------------------------------------------------------- densities on a grid


@dataclasses.dataclass
class Grid:
    """Densities of Q photos on a circle or a line, as probabilities (Q, G) of cells."""

    points: np.ndarray  # (G,) middles of the cells, evenly spaced
    chances: np.ndarray
    circular: bool

    @property
    def step(self) -> float:
        return float(self.points[1] - self.points[0])

    @classmethod
    def of(cls, evidence: Evidence, space: Space, stack: Stack, weights: np.ndarray) -> Grid:
        """Smooth the labels of each voice by its kernels, in the frequency domain."""
        circular = isinstance(space, Circle)
        points = circle_points() if circular else line_points(evidence.prior)
        count, cells = len(points), len(evidence)
        step = points[1] - points[0]

        def spikes(values: np.ndarray, shares: np.ndarray) -> np.ndarray:
            found = np.zeros((len(values), count))
            place = np.rint((values - points[0]) / step).astype(int)
            place = place % count if circular else place.clip(0, count - 1)
            np.add.at(found, (np.arange(len(values))[:, None], place), shares)
            return np.fft.rfft(found)

        voice, silent = voice_of(space), np.zeros((1, count // 2 + 1))
        near = spikes(evidence.near, evidence.shares(stack.temperature))
        own = spikes(evidence.head[:, None], np.ones((cells, 1)))
        prior = evidence.prior[None]
        spoken = (
            near if evidence.similar.shape[1] else silent,
            own,
            spikes(prior, np.full(prior.shape, 1 / prior.shape[1])) if prior.size else silent,
        )
        frequency = np.fft.rfftfreq(count, step)
        total = np.zeros((cells, count // 2 + 1), complex)
        for j, width in enumerate(widths_of(space)[:-1]):
            wide = width * evidence.breadth[:, None] if voice[j] == 1 else width
            kernel = np.exp(-2 * (np.pi * frequency * wide) ** 2)
            total += weights[:, j : j + 1] * spoken[voice[j]] * kernel
        chances = np.maximum(np.fft.irfft(total, count), 0) + weights[:, -1:] / count
        return cls(points, chances / chances.sum(axis=1, keepdims=True), circular)

    def medians(self) -> np.ndarray:
        """The points (Q,) of least expected distance."""
        if not self.circular:
            half = (np.cumsum(self.chances, axis=1) < 0.5).sum(axis=1)
            return self.points[half.clip(max=len(self.points) - 1)]
        away = np.minimum(self.points, MINUTES_PER_DAY - self.points)
        cost = np.fft.irfft(np.fft.rfft(self.chances) * np.fft.rfft(away), len(self.points))
        return self.points[cost.argmin(axis=1)]


def circle_points() -> np.ndarray:
    return np.arange(MINUTES_PER_DAY, dtype=float)


def line_points(known: np.ndarray) -> np.ndarray:
    """CELLS targets around those of the training photos (standardised: where none may be told, 0),
    with room for the widest kernels; the same whoever is asked. What lies beyond is at its end."""
    low, high = (known.min(), known.max()) if len(known) else (-4.0, 4.0)
    return np.linspace(low - 4.0, high + 4.0, CELLS)


class Ranges:
    """How much of each density lies within a distance of its point, and how far shares reach."""

    def __init__(self, apart: np.ndarray, chances: np.ndarray, reach: np.ndarray) -> None:
        """Distances (Q, G) of the cells from the points, their probabilities, half their size."""
        order = np.argsort(apart, axis=1)
        sort = lambda values: np.take_along_axis(values, order, axis=1)  # noqa: E731
        self.far = np.maximum.accumulate(sort(apart) + sort(reach), axis=1)
        self.share = np.minimum(np.cumsum(sort(chances), axis=1), 1.0)

    def shares_within(self, distance: np.ndarray) -> np.ndarray:
        """Share of each density nearer than distance (Q,)."""
        columns = zip(distance, self.far, self.share, strict=True)
        return np.array([np.interp(d, far, share, left=0.0) for d, far, share in columns])

    def distances(self, levels: Sequence[float]) -> np.ndarray:
        """Distances (Q, len(levels)) within which these shares of each density lie."""
        columns = zip(self.far, self.share, strict=True)
        return np.array([np.interp(levels, share, far) for far, share in columns])


def grid_ranges(grid: Grid, normalisation: Normalisation) -> tuple[np.ndarray, Ranges]:
    """Points of densities on a grid, and how far from them their shares lie: minutes, metres."""
    points = grid.medians()
    if grid.circular:
        apart = minutes_apart(grid.points, points[:, None])
        return points, Ranges(apart, grid.chances, np.full(apart.shape, grid.step / 2))
    metres = normalisation.altitude_m(grid.points)
    apart = np.abs(metres - normalisation.altitude_m(points)[:, None])
    reach = np.broadcast_to(np.gradient(metres) / 2, apart.shape)
    return points, Ranges(apart, grid.chances, reach)


# ---------------------------------------------------------------- densities on the sphere


def draw_positions(
    evidence: Evidence, space: Sphere, stack: Stack, weights: np.ndarray
) -> np.ndarray:
    """DRAWS points of each density, (Q, DRAWS, 3), the same random numbers for every photo."""
    rng = np.random.default_rng(0)
    which = (rng.permutation(DRAWS) + rng.random(DRAWS)) / DRAWS  # stratified
    who, any_place = rng.random(DRAWS), rng.random(DRAWS)
    uniform, tangents = rng.uniform(1e-12, 1, DRAWS), rng.standard_normal((2, DRAWS, 3))
    voice, widths = voice_of(space), widths_of(space)
    kernel = choose(weights, which)
    centres = np.repeat(evidence.head[:, None], DRAWS, axis=1)
    if evidence.similar.shape[1]:
        neighbour = choose(evidence.shares(stack.temperature), who)
        near = np.take_along_axis(evidence.near, neighbour[..., None], axis=1)
        centres = np.where((voice[kernel] == 0)[..., None], near, centres)
    if len(evidence.prior):
        place = evidence.prior[(any_place * len(evidence.prior)).astype(int)]
        centres = np.where((voice[kernel] == 2)[..., None], place, centres)
    anywhere = tangents[0] / np.linalg.norm(tangents[0], axis=1, keepdims=True)
    width_km = np.maximum(np.array(widths) * space.scale, density.LEAST_RADIUS_KM)[kernel]
    drawn = density.draw_around(centres, width_km, uniform, tangents[1])
    return np.where((voice[kernel] == 3)[..., None], anywhere, drawn)


def choose(weights: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Indices (Q, S) drawn by weights (Q, J) with the uniform numbers (S,)."""
    ends = np.cumsum(weights, axis=1)
    found = [np.searchsorted(end, uniform * end[-1], side="right") for end in ends]
    return np.minimum(np.array(found).reshape(len(weights), -1), weights.shape[1] - 1)


def candidates(evidence: Evidence, *middle: np.ndarray) -> np.ndarray:
    """Where a photo may have been taken: the places of its neighbours, the head's, and perhaps the
    `middle` (3,) of the training photos, (Q, T, 3)."""
    more = [np.broadcast_to(place, evidence.head.shape) for place in middle]
    rest = np.stack([evidence.head, *more], axis=1)
    return np.concatenate([evidence.near[:, :CANDIDATES], rest], axis=1)


def position_points(
    tried: np.ndarray, draws: np.ndarray, cost: Callable[[np.ndarray], np.ndarray] = np.sqrt
) -> np.ndarray:
    """The place of `tried` (Q, T, 3) from which the cost of the distance to the draws, its root, is
    least on average, (Q, 3).

    Between two gambles: least expected distance runs to the middle of everything that is
    possible, least expected log distance bets on one near photo.
    """
    best = []
    for places, drawn in zip(tried, draws, strict=True):  # one photo's fit the processor's cache
        # squared, in float64 right to a metre; their roots need no more than float32
        chords = np.clip(2 - 2 * places @ drawn.T, 0, 4).astype(np.float32)
        half = np.arcsin(np.sqrt(chords) / 2)  # of the angle: no matter for the choice
        best.append(cost(half).mean(axis=1).argmin())
    return tried[np.arange(len(tried)), best]


def draw_ranges(tried: np.ndarray, draws: np.ndarray) -> tuple[np.ndarray, Ranges]:
    """The best of the places `tried` (Q, T, 3) for densities on the sphere given by draws
    (Q, DRAWS, 3), and how far from them their shares lie, km."""
    points = position_points(tried, draws)
    apart = density.arc_km(draws, points[:, None])
    return points, Ranges(apart, np.full(apart.shape, 1 / DRAWS), np.zeros(apart.shape))
