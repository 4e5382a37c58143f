"""Three voices about one photo, each a mixture of kernels: its neighbours, its head, the prior.

In: similarities and labels of the most similar training photos, the head's answer, the labels of
all training photos. Out: log densities of each kernel at a truth, and the weights of the kernels,
stacked on photos that were held out.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from typing import ClassVar

import numpy as np

import density
from geophoto.targets import MINUTES_PER_DAY, minutes_apart

NEIGHBOURS = 64  # of the training photos that speak
MOST_PRIOR = 2000  # training labels that the prior is made of, evenly thinned
AT_ONCE = 64  # photos whose kernels, cells or draws are in memory together
MOST_FITTED = 5000  # held-out photos that weights are fitted on
TEMPERATURES = (0.05, 0.08, 0.12, 0.2, 0.4, 0.8)  # of the similarities; lower bets on one photo
GATE_PENALTY = 10.0  # on the squared slopes of the gate
PSEUDO_COUNT = 0.5  # of every kernel, so that none is ruled out by few photos
FOR, AGAINST = 2.0, 0.5  # groups that speak for a stack and for its prior before any is seen

# ---------------------------------------------------------------- kernels


class Space(abc.ABC):
    """Where the labels of a head live: how far two of them are apart, kernels of a width."""

    NEAR: ClassVar[tuple[float, ...]]
    HEAD: ClassVar[tuple[float, ...]]
    PRIOR: ClassVar[tuple[float, ...]]
    log_floor: float

    @abc.abstractmethod
    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distance of two values, which broadcast."""

    def log_at(self, apart: np.ndarray, width: np.ndarray | float) -> np.ndarray:
        """Log density of a kernel so far from its middle."""
        return -0.5 * (apart / width) ** 2 - np.log(width * np.sqrt(2 * np.pi))

    def log_kernel(self, a: np.ndarray, b: np.ndarray, width: float) -> np.ndarray:
        """Log density at `a` of kernels on `b`; per km², minute or unit of the target."""
        return self.log_at(self.apart(a, b), width)


class Sphere(Space):
    """Positions as unit vectors; kernel widths in units of the spread of the training photos."""

    NEAR: ClassVar = tuple(np.geomspace(1e-5, 1, 9))
    HEAD: ClassVar = tuple(np.geomspace(1e-2, 1, 5))
    PRIOR: ClassVar = tuple(np.geomspace(3e-2, 1, 4))

    def __init__(self, scale_km: float) -> None:
        self.scale = scale_km
        self.log_floor = -np.log(4 * np.pi * density.EARTH_RADIUS_KM**2)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Distance in km of unit vectors (..., 3)."""
        return density.arc_km(a, b)

    def log_at(self, apart: np.ndarray, width: np.ndarray | float) -> np.ndarray:
        least = density.LEAST_RADIUS_KM
        return density.kernel_log_per_km2(apart, np.maximum(width * self.scale, least))


class Circle(Space):
    """Times of day in minutes; widths in minutes."""

    NEAR: ClassVar = (2.0, 6.0, 20.0, 60.0, 150.0, 300.0)
    HEAD: ClassVar = (30.0, 60.0, 120.0, 300.0)
    PRIOR: ClassVar = (20.0, 60.0, 150.0)
    log_floor = -np.log(MINUTES_PER_DAY)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return minutes_apart(a, b)


class Line(Space):
    """Altitudes as standardised targets; widths in their units."""

    NEAR: ClassVar = (0.01, 0.03, 0.1, 0.3, 0.8)
    HEAD: ClassVar = (0.1, 0.3, 0.7, 1.2)
    PRIOR: ClassVar = (0.1, 0.3, 0.8)
    log_floor = -np.log(20.0)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return a - b


def widths_of(space: Space) -> tuple[float, ...]:
    """Width of every kernel in the order of the weights, the head's for a breadth of 1; the floor,
    which comes last, has 0."""
    return (*space.NEAR, *space.HEAD, *space.PRIOR, 0.0)


def voice_of(space: Space) -> np.ndarray:
    """Which voice each kernel belongs to: 0 neighbours, 1 head, 2 prior, 3 the floor."""
    counts = (len(space.NEAR), len(space.HEAD), len(space.PRIOR), 1)
    return np.repeat(np.arange(4), counts)


# ---------------------------------------------------------------- evidence


@dataclasses.dataclass
class Evidence:
    """What is known about Q photos, most similar neighbours first; labels are unit vectors (…, 3),
    minutes or altitude targets."""

    similar: np.ndarray  # (Q, K) cosine similarities
    near: np.ndarray  # (Q, K[, 3]) labels of these neighbours
    head: np.ndarray  # (Q[, 3]) what the head says
    prior: np.ndarray  # (P[, 3]) labels of the training photos, thinned; may be empty
    truth: np.ndarray  # (Q[, 3])
    away: np.ndarray  # (Q,) distance in feature space to the nearest training photo
    group: np.ndarray = None  # type: ignore[assignment]  # (Q,) of the split; each its own unless told
    breadth: np.ndarray = None  # type: ignore[assignment]  # (Q,) of the head's kernels: of times

    def __post_init__(self) -> None:
        if self.group is None:
            self.group = np.arange(len(self))
        if self.breadth is None:
            self.breadth = np.ones(len(self))

    def __len__(self) -> int:
        return len(self.head)

    def parts(self) -> Iterator[Evidence]:
        """The same by AT_ONCE photos, at least one part: so that what is made of them, thousands
        of numbers each, never lies in memory for all."""
        for start in range(0, max(len(self), 1), AT_ONCE):
            yield self.take(slice(start, start + AT_ONCE))

    def take(self, rows: np.ndarray | slice) -> Evidence:
        names = ("similar", "near", "head", "truth", "away", "group", "breadth")
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in names})

    def shares(self, temperature: float) -> np.ndarray:
        """Weight of each neighbour, (Q, K), by softmax of the similarities."""
        return softmax(self.similar / temperature)

    def gate(self) -> np.ndarray:
        """How near the nearest is: its similarity, and its lead over the next nine, (Q, 2)."""
        if self.similar.shape[1] == 0:
            return np.zeros((len(self), 2))
        lead = self.similar[:, 0] - self.similar[:, :10].mean(axis=1)
        return np.stack([self.similar[:, 0], lead], axis=1)

    def last_resort(self, space: Space) -> np.ndarray:
        """Which kernels (J,) speak of a photo that is unlike all others: those of the prior, or the
        floor where no label may be told."""
        return voice_of(space) == (2 if len(self.prior) else 3)

    def kernel_logs(self, space: Space, temperature: float) -> np.ndarray:
        """Log density of every kernel at the truth, (Q, J); -inf for a voice that is silent."""
        return self.logs_by_temperature(space, (temperature,))[0]

    def logs_by_temperature(self, space: Space, temperatures: tuple[float, ...]) -> np.ndarray:
        """kernel_logs for several temperatures, (T, Q, J): they change the neighbours' alone."""
        found = []
        for part in self.parts():
            near = np.full((len(temperatures), len(part), len(space.NEAR)), -np.inf)
            if part.similar.shape[1]:
                shares = [log_of(part.shares(temperature)) for temperature in temperatures]
                apart = space.apart(part.truth[:, None], part.near)
                for column, width in enumerate(space.NEAR):
                    logs = space.log_at(apart, width)
                    near[:, :, column] = [log_sum(share + logs) for share in shares]
            others = part.other_logs(space)
            others = np.broadcast_to(others, (len(temperatures), *others.shape))
            found.append(np.concatenate([near, others], axis=2))
        return np.concatenate(found, axis=1)

    def other_logs(self, space: Space) -> np.ndarray:
        """Log density at the truth of all kernels but the neighbours'."""
        silent, count = np.full(len(self), -np.inf), len(self.prior)
        apart = space.apart(self.truth, self.head)
        columns = [space.log_at(apart, width * self.breadth) for width in space.HEAD]
        apart = space.apart(self.truth[:, None], self.prior[None])
        columns += [
            log_sum(space.log_at(apart, width)) - np.log(count) if count else silent
            for width in space.PRIOR
        ]
        return np.stack([*columns, np.full(len(self), space.log_floor)], axis=1)


def log_of(chances: np.ndarray) -> np.ndarray:
    """Logarithm of chances, finite for those of nought too."""
    return np.log(np.maximum(chances, 1e-300))


def log_sum(logs: np.ndarray) -> np.ndarray:
    """Logarithm of the sum over the last axis; a third of the time of np.logaddexp.reduce."""
    top = logs.max(axis=-1, keepdims=True)
    return top[..., 0] + np.log(np.exp(logs - top).sum(axis=-1))


def log_mixed(weights: np.ndarray, logs: np.ndarray) -> np.ndarray:
    """Log densities (Q,) of mixtures with weights (Q, J) of kernels with log densities (Q, J)."""
    return np.logaddexp.reduce(log_of(weights) + logs, axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    if logits.shape[-1] == 0:
        return logits
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


# ---------------------------------------------------------------- weights


@dataclasses.dataclass
class Stack:
    """Weights of the kernels, stacked (Yao et al. 2018) on photos that were held out: a softmax
    whose logits depend on the gate. Beyond what the fit has seen the gate stays at its edge."""

    temperature: float
    offset: np.ndarray  # (J,)
    slope: np.ndarray  # (2, J)
    gate_mean: np.ndarray  # (2,), likewise the rest
    gate_std: np.ndarray
    gate_low: np.ndarray
    gate_high: np.ndarray

    def weights(self, gate: np.ndarray) -> np.ndarray:
        """Weight of every kernel for gates (Q, 2), (Q, J)."""
        seen = np.clip(gate, self.gate_low, self.gate_high)
        return softmax(self.offset + (seen - self.gate_mean) / self.gate_std @ self.slope)

    @classmethod
    def fit(cls, temperature: float, logs: np.ndarray, gate: np.ndarray) -> Stack:
        """Weights that make the truths of held-out photos most likely, from kernel_logs (Q, J)."""
        from scipy.optimize import minimize

        mean, std = gate.mean(axis=0), gate.std(axis=0) + 1e-6
        seen, count = (gate - mean) / std, logs.shape[1]
        chances = np.exp(logs - logs.max(axis=1, keepdims=True))

        def cost(values: np.ndarray) -> tuple[float, np.ndarray]:
            offset, slope = values[:count], values[count:].reshape(2, count)
            weights = softmax(offset + seen @ slope)
            total = np.maximum((weights * chances).sum(axis=1), 1e-300)
            pull = weights - weights * chances / total[:, None]
            even = softmax(offset)
            value = (
                -np.log(total).sum()
                - PSEUDO_COUNT * log_of(even).sum()
                + GATE_PENALTY / 2 * (slope**2).sum()
            )
            to_offset = pull.sum(axis=0) - PSEUDO_COUNT * (1 - count * even)
            to_slope = seen.T @ pull + GATE_PENALTY * slope
            return value, np.concatenate([to_offset, to_slope.ravel()])

        found = minimize(cost, np.zeros(3 * count), jac=True, method="L-BFGS-B")
        offset, slope = found.x[:count], found.x[count:].reshape(2, count)
        return cls(temperature, offset, slope, mean, std, gate.min(axis=0), gate.max(axis=0))

    def fall_back(self, weights: np.ndarray, unlike: np.ndarray, resort: np.ndarray) -> np.ndarray:
        """Weights (Q, J) moved to the kernels `resort` (J,) by the share `unlike` (Q,)."""
        last = softmax(np.where(resort, self.offset, -np.inf))
        return weights + unlike[:, None] * (last - weights)

    def log_likelihood(self, logs: np.ndarray, gate: np.ndarray) -> np.ndarray:
        """Log density at the truths, (Q,)."""
        return log_mixed(self.weights(gate), logs)


def fit_stack(parts: list[Evidence], spaces: list[Space]) -> tuple[Stack, list[np.ndarray]]:
    """The stack of the temperature that makes the truths of all parts most likely, and the
    kernel_logs of each part at it."""
    gate = np.concatenate([part.gate() for part in parts])
    told = zip(parts, spaces, strict=True)
    every = [part.logs_by_temperature(space, TEMPERATURES) for part, space in told]
    found = []
    for i, temperature in enumerate(TEMPERATURES):
        logs = np.concatenate([each[i] for each in every])
        stack = Stack.fit(temperature, logs, gate)
        found.append((float(stack.log_likelihood(logs, gate).mean()), i, stack))
    _, best, stack = max(found, key=lambda one: one[0])
    return stack, [each[best] for each in every]


def fit_without(stack: Stack, logs: list[np.ndarray], gates: list[np.ndarray], i: int) -> Stack:
    """The same stack fitted without part `i`, where there are others; of the parts it needs their
    kernel_logs and gates."""
    others = [j for j in range(len(logs)) if j != i]
    if not others:
        return stack
    rest = (np.concatenate([values[j] for j in others]) for values in (logs, gates))
    return Stack.fit(stack.temperature, *rest)


def fit_trust(
    stacks: list[Stack], parts: list[Evidence], spaces: list[Space], logs: list[np.ndarray]
) -> float:
    """The share of a stack, beside its own prior, that makes photos most likely which it was not
    fitted on: each part has a stack and its kernel_logs. They count by group, whose photos are
    right or wrong together, so few groups leave it near what was believed before."""
    from scipy.optimize import minimize_scalar

    found = []
    for stack, part, space, log in zip(stacks, parts, spaces, logs, strict=True):
        own = stack.weights(part.gate())
        prior = stack.fall_back(own, np.ones(len(part)), part.last_resort(space))
        found.append(log_mixed(own, log) - log_mixed(prior, log))
    lead = np.concatenate(found)
    each = len(np.unique(np.concatenate([part.group for part in parts]))) / len(lead)

    def cost(trust: float) -> float:
        yes, no = np.log(trust), np.log1p(-trust)
        return -(each * np.logaddexp(yes + lead, no).sum() + FOR * yes + AGAINST * no)

    return float(minimize_scalar(cost, bounds=(0, 1), method="bounded").x)
