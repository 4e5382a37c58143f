"""Mixtures of kernels on the sphere: products of them, their densities and draws.

In: centres as unit vectors, widths in km. Out: mixtures of the same kind, log densities per km².
"""

from __future__ import annotations

import dataclasses

import numpy as np

import density
from geophoto.mixtures import DRAWS, choose

ANYWHERE_KM = 1e5  # a kernel of this width is the whole globe, to 1 %
NEVER = -1e9  # log weight of what is not there: finite, so that differences stay numbers


@dataclasses.dataclass
class Mixture:
    """Q densities of K von Mises–Fisher kernels each; NEVER in all weights: nothing is known."""

    centres: np.ndarray  # (Q, K, 3) unit vectors
    logs: np.ndarray  # (Q, K) log weights
    widths: np.ndarray  # (Q, K) km

    @classmethod
    def around(cls, places: np.ndarray, widths_km: np.ndarray, logs: np.ndarray) -> Mixture:
        """Kernels of several widths (Q, J) with weights (Q, J) on places (Q, 3); NaN = silent."""
        known = np.isfinite(places[:, :1]) & np.isfinite(widths_km)
        centres = np.where(known[..., None], places[:, None], (0.0, 0.0, 1.0))
        widths = np.where(known, np.maximum(widths_km, density.LEAST_RADIUS_KM), ANYWHERE_KM)
        return cls(centres, np.where(known, logs, NEVER), widths)

    def take(self, rows: np.ndarray) -> Mixture:
        return Mixture(self.centres[rows], self.logs[rows], self.widths[rows])

    @property
    def silent(self) -> np.ndarray:
        """Which of the Q say nothing."""
        return self.logs.max(axis=1) <= NEVER / 2

    def normalised(self) -> Mixture:
        total = np.logaddexp.reduce(self.logs, axis=1, keepdims=True)
        logs = np.where(self.silent[:, None], NEVER, self.logs - total)
        return dataclasses.replace(self, logs=logs)

    def strongest(self, count: int) -> Mixture:
        """The `count` kernels of most weight, heaviest first."""
        order = np.argsort(-self.logs, axis=1, kind="stable")[:, :count]
        pick = lambda values: np.take_along_axis(values, order, axis=1)  # noqa: E731
        centres = np.take_along_axis(self.centres, order[..., None], axis=1)
        return Mixture(centres, pick(self.logs), pick(self.widths))

    def log_at(self, points: np.ndarray) -> np.ndarray:
        """Log density per km² at points (Q, 3), (Q,)."""
        apart = density.arc_km(self.centres, points[:, None])
        return np.logaddexp.reduce(
            self.logs + density.kernel_log_per_km2(apart, self.widths), axis=1
        )

    def draws(self) -> np.ndarray:
        """DRAWS points of each density, (Q, DRAWS, 3), the same random numbers for every photo."""
        rng = np.random.default_rng(0)
        which = (rng.permutation(DRAWS) + rng.random(DRAWS)) / DRAWS  # stratified
        uniform, tangents = rng.uniform(1e-12, 1, DRAWS), rng.standard_normal((DRAWS, 3))
        kernel = choose(np.exp(self.logs - self.logs.max(axis=1, keepdims=True)), which)
        centres = np.take_along_axis(self.centres, kernel[..., None], axis=1)
        widths = np.take_along_axis(self.widths, kernel, axis=1)
        return density.draw_around(centres, widths, uniform, tangents)


def log_norm(kappa: np.ndarray) -> np.ndarray:
    """Log density per km² at the peak of kernels of concentration kappa."""
    scale = 2 * np.pi * density.EARTH_RADIUS_KM**2
    return np.log(kappa / (scale * -np.expm1(-2 * kappa)))


def product(a: Mixture, b: Mixture, keep: int) -> Mixture:
    """Normalised products of Q densities with Q others, their `keep` heaviest kernels.

    Two von Mises–Fisher kernels multiply to a third, in closed form:
    κ₃ = |κ₁u₁ + κ₂u₂|. The exponent κ₃ − κ₁ − κ₂ = −κ₁κ₂|u₁−u₂|² / (κ₁ + κ₂ + κ₃) is written so
    that metres survive beside κ of 10¹³. Where one says nothing, so does the product.
    """
    count = len(a.logs)
    kappa_a = (density.EARTH_RADIUS_KM / a.widths)[:, :, None] ** 2
    kappa_b = (density.EARTH_RADIUS_KM / b.widths)[:, None, :] ** 2
    apart = ((a.centres[:, :, None] - b.centres[:, None]) ** 2).sum(axis=-1)
    total = kappa_a + kappa_b
    pull = kappa_a * kappa_b * apart
    kappa = total * np.sqrt(np.clip(1 - pull / total**2, 1e-12, 1))
    logs = a.logs[:, :, None] + b.logs[:, None, :] - pull / (total + kappa)
    logs = logs + log_norm(kappa_a) + log_norm(kappa_b) - log_norm(kappa)
    centres = kappa_a[..., None] * a.centres[:, :, None] + kappa_b[..., None] * b.centres[:, None]
    centres /= np.maximum(np.linalg.norm(centres, axis=-1, keepdims=True), 1e-300)
    widths = density.EARTH_RADIUS_KM / np.sqrt(kappa)
    silent = (a.silent | b.silent)[:, None, None]
    logs = np.where(silent, NEVER, logs)
    flat = Mixture(centres.reshape(count, -1, 3), logs.reshape(count, -1),
                   widths.reshape(count, -1))  # fmt: skip
    return flat.strongest(keep).normalised()


def joined(parts: list[Mixture], logs: np.ndarray) -> Mixture:
    """One mixture of several, with log weights (Q, parts)."""
    weighed = [part.logs + logs[:, i : i + 1] for i, part in enumerate(parts)]
    return Mixture(
        np.concatenate([part.centres for part in parts], axis=1),
        np.concatenate(weighed, axis=1),
        np.concatenate([part.widths for part in parts], axis=1),
    )
