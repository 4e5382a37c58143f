"""Photos of one burst or of one folder asked together: their densities multiplied.

In: evidence of photos, and which belong together. Out: fused answers; how strongly densities count
in a product, chosen on held-out photos, and what that gains over single photos.

A logarithmic opinion pool (Genest & Zidek 1986): of n photos fused(x) ∝ (Π p(x))^(n^−κ). With κ = 0
they err independently of each other, with κ = 1 all n count as one.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np

import density
from geophoto.baselines import answer_errors
from geophoto.densities import (
    COMPANY,
    LEVELS,
    MOST_PLACES,
    NAMES,
    HeadDensity,
    answer_columns,
    distance_of,
    gather_all,
    space_of,
    wanted_levels,
)
from geophoto.mixtures import DRAWS, Grid, Ranges, candidates, choose, draw_ranges, grid_ranges
from geophoto.photos import Photos
from geophoto.resampling import FEW_GROUPS, interval, weighted_mean
from geophoto.targets import Normalisation
from geophoto.voices import Evidence, Sphere, log_of, log_sum, softmax, voice_of, widths_of

EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)  # κ, tried beside leaving every photo alone
MOST_TOGETHER = 32  # photos of one product; more are fused in stretches, in the order of names
MOST_JUDGED = 400  # held-out photos of a fold and kind that the choice is made on
DOUBT = 0.02  # share of a fused density that is the plain mean of its photos' densities
RESAMPLED = 1000  # times, for the interval of the gain

# ---------------------------------------------------------------- who belongs together


def groups_of(kind: str, folders: Sequence[str], seconds: np.ndarray, camera: Any) -> np.ndarray:
    """Number of the burst or folder of each photo, (N,); a photo without a time is in no burst
    with another."""
    if kind == "folder":
        return np.unique(folders, return_inverse=True)[1]
    nowhere = np.zeros(len(seconds))  # all at one place, which does not count: bursts alone link
    return density.group_photos(nowhere, nowhere, seconds, camera, folders, 0.0)


def stretches(groups: np.ndarray, names: Sequence[str]) -> list[np.ndarray]:
    """Rows of the photos that are fused with each other, those that are alone too."""
    order = np.lexsort((np.asarray(names), groups))
    found = []
    for rows in np.split(order, np.flatnonzero(np.diff(groups[order])) + 1):
        found += np.array_split(rows, math.ceil(len(rows) / MOST_TOGETHER))
    return found


# ---------------------------------------------------------------- products


@dataclasses.dataclass
class Fused:
    """Fused densities of one group for C exponents."""

    points: np.ndarray  # (C[, 3])
    ranges: Ranges
    draws: np.ndarray  # (C, DRAWS, 3), of positions; else empty
    tried: np.ndarray  # (T, 3) places among which the point was looked for


def fuse(
    head: str, one: HeadDensity, members: Evidence, normalisation: Normalisation,
    exponents: Sequence[float],
) -> Fused:  # fmt: skip
    """The product of the densities of `members`, for each of the exponents.

    Positions are drawn from the mean of the members' densities, DRAWS in all, and drawn again by
    how much more likely they are under the product.
    """
    space = space_of(head, normalisation)
    if not isinstance(space, Sphere):
        grid = one.grid(members, space)
        chances = pool(log_of(grid.chances), exponents)
        points, ranges = grid_ranges(Grid(grid.points, chances, grid.circular), normalisation)
        return Fused(points, ranges, np.empty((0, DRAWS, 3)), np.empty((0, 3)))
    count = len(members)
    drawn = np.concatenate([own[j::count] for j, own in enumerate(one.draws(members, space))])
    logs = log_densities(one, members, space, drawn)
    chances = pool(logs, exponents, log_sum(logs.T) - math.log(count))
    draws = drawn[choose(chances, (np.arange(DRAWS) + 0.5) / DRAWS)]
    tried = np.unique(candidates(members, normalisation.centre).reshape(-1, 3), axis=0)
    points, ranges = draw_ranges(np.broadcast_to(tried, (len(draws), *tried.shape)), draws)
    return Fused(points, ranges, draws, tried)


def pool(
    logs: np.ndarray, exponents: Sequence[float], drawn_by: np.ndarray | float = 0.0
) -> np.ndarray:
    """Chances (C, X) of X cells under the products of densities with logs (n, X); or of X draws
    from a density with the logs `drawn_by` (X,)."""
    count = len(logs)
    share = count ** -np.array(exponents)[:, None]
    mean = softmax(log_sum(logs.T) - math.log(count) - drawn_by)
    return (1 - DOUBT) * softmax(share * logs.sum(axis=0) - drawn_by) + DOUBT * mean


def log_densities(
    one: HeadDensity, members: Evidence, space: Sphere, places: np.ndarray
) -> np.ndarray:
    """Log density per km² of every member at places (X, 3), (n, X): as its weights and kernel_logs
    say, but faster: there are a thousand places a photo."""
    widths = np.maximum(np.array(widths_of(space)[:-1]) * space.scale, density.LEAST_RADIUS_KM)
    peaks = np.exp(density.kernel_log_per_km2(np.zeros(1), widths))
    half = (-0.5 * (density.EARTH_RADIUS_KM / widths) ** 2).astype(np.float32)
    weights, voice = one.weights(members, space), voice_of(space)

    def speak(number: int, centres: np.ndarray, shares: np.ndarray) -> np.ndarray:
        """What the kernels of one voice say at the places, (X, kernels)."""
        # squared, in float64 right to a metre; their exponentials need no more than float32
        chords = np.maximum(2 - 2 * places @ centres.T, 0).astype(np.float32)
        shares, kernels = shares.astype(np.float32), np.flatnonzero(voice == number)
        # e^-80 is nothing, and several times faster than the subnormal numbers beyond it
        spoken = [np.exp(np.maximum(half[k] * chords, -80)) @ shares for k in kernels]
        return peaks[kernels] * np.stack(spoken, axis=1)

    prior = speak(2, members.prior, np.full(len(members.prior), 1 / max(len(members.prior), 1)))
    found = []
    for j, shares in enumerate(members.shares(one.stack.temperature)):
        own = speak(0, members.near[j], shares), speak(1, members.head[j : j + 1], np.ones(1))
        found.append(np.hstack([*own, prior]) @ weights[j, :-1])
    return log_of(np.stack(found) + weights[:, -1:] * np.exp(space.log_floor))


# ---------------------------------------------------------------- the choice


def judge_fused(
    densities: dict, prediction: dict, gallery: dict | None, answers: dict, asked: Photos,
    scale: Normalisation,
) -> dict[str, np.ndarray]:  # fmt: skip
    """What fusing makes of photos that one trainer has not seen, by kind and head ("burst_gps"):
    (N, 1 + 2 C) the error of the photo's own answer, the errors of fused ones for all EXPONENTS,
    and the shares of their densities nearer than the truth; NaN where a photo is alone or its label
    unknown, and for those beyond about MOST_JUDGED."""
    own, count, told = answer_errors(answers, asked), len(EXPONENTS), {}
    parts = {kind: company_judged(kind, asked) for kind in COMPANY}
    few = np.unique(np.concatenate([np.empty(0, int), *parts["burst"], *parts["folder"]]))
    some = {key: values[few] for key, values in prediction.items()}
    gathered = gather_all(some, gallery, scale, asked.take(few)) if len(few) else {}
    found = {}
    for kind, (head, one) in itertools.product(COMPANY, densities["heads"].items()):
        table = found[f"{kind}_{head}"] = np.full((len(asked), 1 + 2 * count), np.nan)
        for rows in parts[kind]:
            who = head, rows.tobytes()
            if one is None or not np.isfinite(own[head][rows]).any():
                continue
            if who not in told:  # a folder may hold one burst alone
                members = gathered[head].take(np.searchsorted(few, rows))
                fused = fuse(head, one, members, scale, EXPONENTS)
                error = distance_of(head, fused.points[:, None], members.truth[None], scale)
                told[who] = np.concatenate([error, fused.ranges.shares_within(error)]).T
            table[rows] = np.column_stack([own[head][rows], told[who]])
        table[~np.isfinite(table[:, 0])] = np.nan
    return found


def company_judged(kind: str, asked: Photos) -> list[np.ndarray]:
    """Rows that are fused with each other, without photos that are alone, thinned evenly."""
    groups = groups_of(kind, asked.folders, asked.seconds, asked.camera)
    parts = [rows for rows in stretches(groups, asked.names) if len(rows) > 1]
    return parts[:: max(1, math.ceil(sum(map(len, parts)) / MOST_JUDGED))]


def choose_fusing(
    judged: dict[str, np.ndarray], part: np.ndarray, photos: Photos
) -> dict[str, dict]:
    """What a checkpoint keeps of it, by kind and head, from judge_fused of all photos: `part` (N,)
    numbers their folds."""
    found: dict[str, dict] = {}
    for kind in COMPANY:
        units = photos.group, groups_of(kind, photos.folders, photos.seconds, photos.camera)
        found[kind] = {
            head: choose_exponent(head, judged[f"{kind}_{head}"], part, units) for head in NAMES
        }
    return found


def choose_exponent(
    head: str, table: np.ndarray, part: np.ndarray, units: Sequence[np.ndarray]
) -> dict | None:
    """The exponent of least mean error (positions: of its logarithm) over all photos, None where no
    gain is clear, and what was measured; nothing without a single photo that has company.

    The gain told is cross-fitted: in each part with what is best in the others, or alone where that
    is best. It is clear where its interval lies below 0, resampled by whole `units` of either kind.
    """
    rows = np.flatnonzero(np.isfinite(table[:, 0]))
    if not len(rows):
        return None
    count = len(EXPONENTS)
    costs, part = table[rows, : 1 + count], part[rows]
    if head == "gps":
        costs = np.log(np.maximum(costs, density.LEAST_RADIUS_KM))
    told = costs[:, 0].copy()
    for one in np.unique(part):
        others = part != one
        if others.any():
            told[~others] = costs[~others, costs[others].mean(axis=0).argmin()]
    gain, each = told - costs[:, 0], [unit[rows] for unit in units]
    ends = [interval(gain, unit, weighted_mean, RESAMPLED, 0) or [0.0, 0.0] for unit in each]
    low, high = np.min(ends), np.max(ends)
    fewest = min(len(np.unique(unit)) for unit in each)
    best = int(costs.mean(axis=0).argmin())
    clear = best > 0 and high < 0 and fewest >= FEW_GROUPS
    shares = table[rows, count + max(best, 1)]
    wanted = wanted_levels(fewest)  # as if a unit were one photo
    relative = np.expm1 if head == "gps" else lambda by: by / max(costs[:, 0].mean(), 1e-9)
    change, *limits = (float(relative(by)) for by in (gain.mean(), low, high))
    return {
        "exponent": EXPONENTS[best - 1] if clear else None,
        "levels": np.quantile(shares, wanted).tolist(),
        "photos": len(rows), "groups": fewest, "change": change, "interval": limits,
    }  # fmt: skip


# ---------------------------------------------------------------- answers


def fused(choice: dict | None) -> TypeGuard[dict]:
    """Whether answers of photos in company are fused, as that was found to gain."""
    return choice is not None and choice["exponent"] is not None


def fuse_answers(
    found: dict[str, np.ndarray], kind: str, parts: list[np.ndarray], densities: dict,
    gathered: dict[str, Evidence], normalisation: Normalisation,
) -> tuple[dict[str, np.ndarray], dict[int, list[tuple]]]:  # fmt: skip
    """Answers of answers_of with those of photos in company fused where that was found to gain, and
    the likely places of these by their rows. `parts` are rows as of stretches. Every answer tells
    with how many others it was fused: gps_fused, time_fused, altitude_fused."""
    found = {key: values.copy() for key, values in found.items()}
    places: dict[int, list[tuple]] = {}
    for head, choice in densities["fuse"][kind].items():
        fused_with = found[f"{head}_fused"] = np.zeros(len(found["strangeness"]), int)
        one = densities["heads"][head]
        if one is None or not fused(choice):
            continue
        for rows in (rows for rows in parts if len(rows) > 1):
            members = gathered[head].take(rows)
            told = fuse(head, one, members, normalisation, (choice["exponent"],))
            half, most, width = told.ranges.distances((*choice["levels"], LEVELS[1])).T
            width = np.maximum(most, width)  # the more cautious one
            answer = one.judge(head, told.points, half, most, width, members)
            for name, values in answer_columns(head, answer, normalisation).items():
                found[name][rows] = values
            fused_with[rows] = len(rows) - 1
            if head == "gps":
                about = told.tried, told.draws[0], 0.5 * float(answer["half50"][0]), MOST_PLACES
                places |= dict.fromkeys(rows.tolist(), density.distinct_places(*about))
    return found, places
