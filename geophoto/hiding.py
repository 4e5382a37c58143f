"""How well photos are placed, measured by hiding positions that are known.

In: Shots with their positions. Out: a table of errors, coverage and confidence beside the answers
that people have today: nearest in time, linear interpolation, the median of the day.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

import density
from geophoto.placing import LEAST_PLACED, Placer, hidings, learn_to_place
from geophoto.timelines import Shots, nearest

if TYPE_CHECKING:
    import pandas as pd

GAPS = (("minutes", 3600.0), ("hours", 86400.0), ("days", math.inf))  # to the nearest seen photo
SIMPLE = ("nearest in time", "linear interpolation", "same-day median")
LEARNED = ("time alone", "picture alone", "time and picture")
SEED = 7  # of what is hidden: another than that of the rehearsals

# ---------------------------------------------------------------- simple answers


def simple_answers(shots: Shots, seen: np.ndarray, asked: np.ndarray) -> dict[str, np.ndarray]:
    """Unit vectors (Q, 3) of each of SIMPLE; the middle of all places where they know nothing."""
    seconds = shots.seconds(seen)
    placed = np.flatnonzero(seen & np.isfinite(shots.places[:, 0]))
    middle = density.unit_vectors(
        *density.geographic_median(*density.lat_lon(shots.places[placed]))
    )
    found = {name: np.tile(middle, (len(asked), 1)) for name in SIMPLE}
    rows = placed[np.isfinite(seconds[placed])]
    rows = rows[np.argsort(seconds[rows], kind="stable")]
    timed = np.flatnonzero(np.isfinite(seconds[asked]))
    if not len(rows) or not len(timed):
        return found
    moment = seconds[asked[timed]]
    close = shots.places[rows[nearest(seconds[rows], moment)]]
    for name in SIMPLE:
        found[name][timed] = close
    after = np.searchsorted(seconds[rows], moment, side="right")
    inside = (after > 0) & (after < len(rows))
    first, second = rows[(after - 1).clip(0)], rows[after.clip(0, len(rows) - 1)]
    gap = seconds[second] - seconds[first]
    part = np.where(inside, (moment - seconds[first]) / np.maximum(gap, 1e-9), 0)[:, None]
    between = shots.places[first] * (1 - part) + shots.places[second] * part
    length = np.linalg.norm(between, axis=1, keepdims=True)
    usable = inside & (length[:, 0] > 1e-6)
    found["linear interpolation"][timed[usable]] = (between / np.maximum(length, 1e-6))[usable]
    for day in np.unique(shots.days[asked[timed]]):
        of_day = placed[shots.days[placed] == day]
        if len(of_day):
            place = density.geographic_median(*density.lat_lon(shots.places[of_day]))
            found["same-day median"][shots.days[asked] == day] = density.unit_vectors(*place)
    return found


# ---------------------------------------------------------------- judging


def nearest_gap(shots: Shots, seen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Seconds to the nearest placed photo that is seen, (Q,); infinite without a time."""
    seconds = shots.seconds(seen)
    rows = np.flatnonzero(seen & np.isfinite(shots.places[:, 0]) & np.isfinite(seconds))
    gaps = np.full(len(asked), np.inf)
    timed = np.isfinite(seconds[asked])
    if len(rows) and timed.any():
        moment = seconds[asked[timed]]
        gaps[timed] = np.abs(seconds[rows[nearest(seconds[rows], moment)]] - moment)
    return gaps


def without_pictures(shots: Shots) -> Shots:
    nothing = np.full_like(shots.picture, np.nan)
    return dataclasses.replace(shots, picture=nothing, radius=nothing[:, :2])


def judge(way: str, method: str, gaps: np.ndarray, error_km: np.ndarray, **found) -> pd.DataFrame:
    """One row for each photo."""
    import pandas as pd

    blank = np.full(len(gaps), np.nan)
    columns = {name: found.get(name, blank) for name in ("inside50", "inside90", "confident")}
    limits = [limit for _, limit in GAPS[:-1]]
    names = np.array([name for name, _ in GAPS])[np.searchsorted(limits, gaps, side="right")]
    return pd.DataFrame(
        {"way": way, "gap": names, "method": method, "error_km": error_km, **columns}
    )


def answers_within(placer: Placer, hidden: np.ndarray, truth: np.ndarray) -> dict:
    """Errors of hidden photos, whether the truth lies inside the radii, and whether confident."""
    found = placer.answer(hidden)
    error = density.arc_km(found.points, truth)
    return {
        "error_km": error,
        "inside50": (error <= found.half_km).astype(float),
        "inside90": (error <= found.most_km).astype(float),
        "confident": found.confident.astype(float),
    }


def measure(
    shots: Shots, sure: np.ndarray | None = None, bar: Callable | None = None, most: int = 500
) -> pd.DataFrame:
    """Hide positions in every way, learn from the rest, place the hidden ones; one row for each
    photo, way and method. `sure` (N,) says where the picture alone is confident; `bar` wraps the
    list of hidings."""
    import pandas as pd

    placed = np.isfinite(shots.places[:, 0])
    rows = np.flatnonzero(placed)
    known = np.isfinite(shots.radius[:, 0])
    ways = list(hidings(shots, rows, shots.seconds(placed), SEED, rounds=1, most=most))
    found = []
    for way, hidden in bar(ways) if bar else ways:
        seen = placed.copy()
        seen[hidden] = False
        if seen.sum() < LEAST_PLACED:
            continue
        truth, gaps = shots.places[hidden], nearest_gap(shots, seen, hidden)
        for name, answer in simple_answers(shots, seen, hidden).items():
            found.append(judge(way, name, gaps, density.arc_km(answer, truth)))
        alone = learn_to_place(without_pictures(shots), seen)
        found.append(judge(way, "time alone", gaps, **answers_within(alone, hidden, truth)))
        if not known[hidden].any():
            continue
        both = learn_to_place(shots, seen)
        found.append(judge(way, "time and picture", gaps, **answers_within(both, hidden, truth)))
        told = known[hidden]
        error = density.arc_km(shots.picture[hidden[told]], truth[told])
        inside = (error[:, None] <= shots.radius[hidden[told]]).astype(float)
        confident = (
            np.full(len(error), np.nan) if sure is None else sure[hidden[told]].astype(float)
        )
        found.append(judge(way, "picture alone", gaps[told], error, inside50=inside[:, 0],
                           inside90=inside[:, 1], confident=confident))  # fmt: skip
    return pd.concat(found, ignore_index=True)


def summarise(judged: pd.DataFrame) -> pd.DataFrame:
    """Number, geometric mean error, coverage and share of confident photos of each method, by way
    and gap, and of all together."""
    import pandas as pd

    floor = density.LEAST_RADIUS_KM
    order = {name: i for i, name in enumerate((*SIMPLE, *LEARNED))}

    def told(way: str, gap: str, part: pd.DataFrame) -> list[dict]:
        lines = []
        for method, mine in part.groupby("method"):
            sure = mine["confident"] == 1
            error = np.log(np.maximum(mine["error_km"], floor))
            lines.append({
                "way": way, "gap": gap, "method": method, "n": len(mine),
                "error_km": float(np.exp(error.mean())),
                "coverage50": mine["inside50"].mean(), "coverage90": mine["inside90"].mean(),
                "confident": mine["confident"].mean(),
                "confident_error_km": float(np.exp(error[sure].mean())) if sure.any() else np.nan,
            })  # fmt: skip
        return sorted(lines, key=lambda line: order[line["method"]])

    rows = told("all", "all", judged)
    for way, part in judged.groupby("way", sort=False):
        rows += told(way, "all", part)
        for gap, _ in GAPS:
            if (mine := part[part["gap"] == gap]).size:
                rows += told(way, gap, mine)
    return pd.DataFrame(rows)


def pooled_ratio(judged: pd.DataFrame, method: str) -> tuple[str, float]:
    """The best of the simple answers over all hidden photos, and a method's error beside it."""
    logs = np.log(np.maximum(judged["error_km"], density.LEAST_RADIUS_KM))
    means = logs.groupby(judged["method"]).mean()
    best = min(SIMPLE, key=lambda name: means[name])
    return best, float(np.exp(means[method] - means[best]))
