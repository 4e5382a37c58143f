"""Do the claims of a photo fit its picture? A p-value for each claim, calibrated on true ones.

In: what a model says of photos that it has not seen, and their claims: position, local time, the
sun's elevation that follows from both, stored orientation. Out: a frame with p-values and words of
evidence, how often altered claims are found, and a page.

A claim's misfit is the share of the density that lies nearer to the point than the claim (position,
time), the error of the sun's elevation, or how improbable the orientation is. Its p-value is the
share of held-out photos whose true claim misfits as much, those of the photo's own fold left out
(split conformal prediction). The p-values of one photo depend on each other, as all come from one
picture; so they are combined as Fisher does, by the sum of their logarithms, and that sum is judged
like a misfit again: by the share of held-out photos whose sum is as large. The dependence is in
those sums, so nothing need be assumed of it (nor do Bonferroni and the harmonic mean), and what
claims say together counts. On the demo the least p-value alone, judged in the same way, found 79 %
of clocks off by twelve hours, the harmonic mean 82 %, the sum 87 %.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import density
from geophoto.clocks import sun_position
from geophoto.densities import SHARES
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.photos import Photos
from geophoto.records import clock
from geophoto.targets import MINUTES_PER_DAY, Normalisation, minutes_apart

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("position", "time", "sun", "orientation")
JUDGED = ("lat", "lon", "minutes", "sun", "chances", "gps_reach", "time_reach")  # see judge
ALARM = 0.05  # most false alarms among true claims, where it is said what share is found
LEVELS = (0.01, 0.05, 0.1)  # p-values that evidence is told by

# ---------------------------------------------------------------- claims


@dataclasses.dataclass
class Claims:
    """What photos say of themselves; NaN and -1 where they say nothing."""

    lat: np.ndarray
    lon: np.ndarray
    minutes: np.ndarray  # local time of day
    seconds: np.ndarray  # UTC since 1970, NaN where only local time is known
    orientation: np.ndarray  # index into ORIENTATION_CLASSES

    def __len__(self) -> int:
        return len(self.lat)

    @classmethod
    def of(cls, photos: Photos) -> Claims:
        in_utc = np.where(np.isfinite(photos.sun), photos.seconds, np.nan)  # else it may be local
        return cls(photos.lat, photos.lon, photos.minutes, in_utc, photos.orientation)

    def take(self, rows: np.ndarray) -> Claims:
        return Claims(**{name: values[rows] for name, values in vars(self).items()})

    def sun(self) -> np.ndarray:
        """Elevation of the sun in degrees, by position and UTC."""
        found = np.full(len(self), np.nan)
        for i in np.flatnonzero(np.isfinite(self.lat + self.lon + self.seconds)):
            moment = datetime.fromtimestamp(self.seconds[i], UTC)
            found[i] = sun_position(self.lat[i], self.lon[i], moment)[0]
        return found

    def moved(self, km: float, bearing_deg: np.ndarray) -> Claims:
        """The same claims with positions so far away, each in its direction."""
        lat, lon, along = np.radians(self.lat), np.radians(self.lon), np.radians(bearing_deg)
        arc = km / density.EARTH_RADIUS_KM
        north = np.arcsin(np.sin(lat) * np.cos(arc) + np.cos(lat) * np.sin(arc) * np.cos(along))
        east = lon + np.arctan2(
            np.sin(along) * np.sin(arc) * np.cos(lat), np.cos(arc) - np.sin(lat) * np.sin(north)
        )
        there = np.degrees(north), (np.degrees(east) + 180) % 360 - 180
        return dataclasses.replace(self, lat=there[0], lon=there[1])

    def later(self, minutes: np.ndarray) -> Claims:
        """The same claims with clocks that were so far ahead."""
        return dataclasses.replace(
            self,
            minutes=(self.minutes + minutes) % MINUTES_PER_DAY,
            seconds=self.seconds + 60 * minutes,
        )


# ---------------------------------------------------------------- misfits


def judge(
    answers: dict[str, np.ndarray], normalisation: Normalisation, stored: np.ndarray
) -> dict[str, np.ndarray]:
    """All that claims are measured by, from answers_of upright photos that are stored in the
    orientation classes `stored` (Q,): answers, how far shares of the densities reach from them,
    and the `chances` (Q, 6) of what the stored picture looks like."""
    logits = answers["views"][np.arange(len(stored)), stored]
    chances = np.exp(logits + np.log(normalisation.orientation_prior))
    return {**answers, "chances": chances / chances.sum(axis=1, keepdims=True)}


def judge_held_out(
    answers: dict[str, np.ndarray], asked: Photos, scale: Normalisation
) -> dict[str, np.ndarray]:
    """What of it a checkpoint keeps of photos that a fold held out beside their answers, and the
    misfits of their true claims."""
    judged = judge(answers, scale, np.maximum(asked.orientation, 0))
    own = {key: judged[key] for key in ("chances", "gps_reach", "time_reach")}
    wrong = misfits(judged, Claims.of(asked))
    return own | {f"misfit_{kind}": wrong[kind] for kind in KINDS}  # answers are kept already


def misfits(judged: dict[str, np.ndarray], claims: Claims) -> dict[str, np.ndarray]:
    """How little each claim fits (Q,), larger = less, on a scale that only orders; NaN without."""
    away = density.distance_km(judged["lat"], judged["lon"], claims.lat, claims.lon)
    apart = minutes_apart(judged["minutes"], claims.minutes)
    chance = judged["chances"][np.arange(len(claims)), np.maximum(claims.orientation, 0)]
    unlikely = -np.log(np.maximum(chance, 1e-12))
    return {
        "position": nearer_share(away, judged["gps_reach"]),
        "time": nearer_share(apart, judged["time_reach"]),
        "sun": np.abs(judged["sun"] - claims.sun()),
        "orientation": np.where(claims.orientation >= 0, unlikely, np.nan),
    }


def misfits_of(judged: dict, claims: Claims, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Misfits of the photos `rows` alone."""
    return misfits({key: values[rows] for key, values in judged.items()}, claims.take(rows))


def nearer_share(distance: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """−log of the share of each density that is farther from its point than `distance` (Q,), by how
    far SHARES reach (Q, L); beyond the last it falls with the square of the distance."""
    ends = np.pad(reach, ((0, 0), (1, 0)))
    shares = (0.0, *SHARES)
    inside = [np.interp(d, end, shares) for d, end in zip(distance, ends, strict=True)]
    last = np.maximum(reach[:, -1], 1e-9)
    return -np.log((1 - np.array(inside)) * np.minimum(last / np.maximum(distance, last), 1) ** 2)


# ---------------------------------------------------------------- p-values


@dataclasses.dataclass
class Calibration:
    """Misfits of the true claims of photos that were held out."""

    misfit: dict[str, np.ndarray]  # (N,) of each kind, NaN without a claim
    part: np.ndarray  # (N,) number of the fold, or of the group where there are no folds

    @classmethod
    def of(cls, held: dict[str, np.ndarray], fold: list[int]) -> Calibration:
        """From what judge_held_out left in a checkpoint."""
        return cls({kind: held[f"misfit_{kind}"] for kind in KINDS}, np.array(fold))

    def rank(self, kind: str, misfit: np.ndarray, part: np.ndarray) -> np.ndarray:
        """p-values (Q,) of claims, by the true ones of other parts; NaN without a claim.

        Beyond every true claim they go on falling, so that these are in an order among themselves;
        `told` gives the p-value proper.
        """
        found = np.full(len(misfit), np.nan)
        for one in np.unique(part):
            true = self.misfit[kind][self.part != one]
            true = np.sort(true[np.isfinite(true)])
            asked = np.flatnonzero((part == one) & np.isfinite(misfit))
            if not len(true):
                continue
            worse = len(true) - np.searchsorted(true, misfit[asked], side="left")
            beyond = np.maximum(misfit[asked] - true[-1], 0) / max(float(true.std()), 1e-9)
            found[asked] = (1 + worse) / (1 + len(true)) * np.exp(-np.minimum(beyond, 300))
        return found

    def least(self, kind: str, part: np.ndarray) -> np.ndarray:
        """The smallest p-value (Q,) that a claim can get."""
        known = np.isfinite(self.misfit[kind])
        counts = {one: int(known[self.part != one].sum()) for one in np.unique(part)}
        return np.array([1 / (1 + counts[one]) for one in part])

    def combine(self, ranks: dict[str, np.ndarray], part: np.ndarray) -> np.ndarray:
        """One p-value (Q,) for all claims of a photo: the share of held-out photos with the same
        kinds of claims the product of whose p-values is as small; NaN without a claim."""
        each = np.stack([ranks[kind] for kind in KINDS], axis=1)
        true = np.stack([self.rank(k, self.misfit[k], self.part) for k in KINDS], axis=1)
        known, found = np.isfinite(each), np.full(len(part), np.nan)
        for one, *kinds in np.unique(np.column_stack([part, known]), axis=0).tolist():
            chosen = np.array(kinds, bool)
            if not chosen.any():
                continue
            whole = np.isfinite(true[:, chosen]).all(axis=1) & (self.part != one)
            sums = np.sort(np.log(true[whole][:, chosen]).sum(axis=1))
            asked = np.flatnonzero((part == one) & (known == chosen).all(axis=1))
            own = np.log(each[asked][:, chosen]).sum(axis=1)
            as_small = np.searchsorted(sums, own + 1e-9, side="right")
            found[asked] = (1 + as_small) / (1 + len(sums))
        return found

    def verdicts(
        self, judged: dict, claims: Claims, part: np.ndarray
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """p-values of every kind, and of all claims of a photo together."""
        wrong = misfits(judged, claims)
        ranks = {kind: self.rank(kind, wrong[kind], part) for kind in KINDS}
        told = {kind: np.fmax(ranks[kind], self.least(kind, part)) for kind in KINDS}
        told = {kind: np.where(np.isfinite(ranks[kind]), told[kind], np.nan) for kind in KINDS}
        return told, self.combine(ranks, part)


def kolmogorov(values: np.ndarray) -> float:
    """Largest distance of the values' distribution from the uniform one on 0..1; NaN without."""
    known = np.sort(values[np.isfinite(values)])
    if not len(known):
        return float("nan")
    steps = np.arange(len(known) + 1) / len(known)
    return float(max((steps[1:] - known).max(), (known - steps[:-1]).max()))


# ---------------------------------------------------------------- how much is found


def alterations(claims: Claims, spread_km: float, groups: np.ndarray) -> Iterator[tuple]:
    """Each kind of false claim that is tried: its name, the claims, and which photos it changes."""
    rng = np.random.default_rng(0)
    placed, timed = np.isfinite(claims.lat), np.isfinite(claims.minutes)
    around = rng.uniform(0, 360, len(claims))
    for times in (1, 3):
        yield f"moved by {times}× the spread", claims.moved(times * spread_km, around), placed
    sign = rng.choice([-1, 1], len(claims))
    for hours in (6, 12):
        yield f"clock off by {hours} hours", claims.later(sign * 60 * hours), timed
    partner = far_partner(placed, groups, rng)
    swapped = dataclasses.replace(claims, lat=claims.lat[partner], lon=claims.lon[partner])
    yield "position of another photo", swapped, groups[partner] != groups
    turned = dataclasses.replace(claims, orientation=(claims.orientation + 1) % 4)
    yield "turned by a quarter", turned, (claims.orientation >= 0) & (claims.orientation < 4)


def far_partner(chosen: np.ndarray, groups: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each chosen photo (bool, (Q,)) another one of another group, for the others themselves;
    where one group holds more than half, some keep one of their own."""
    partner, rows = np.arange(len(groups)), np.flatnonzero(chosen)
    if len(rows):
        names, group = np.unique(groups[rows], return_inverse=True)
        order = rows[np.argsort(rng.permutation(len(names))[group], kind="stable")]
        partner[order] = np.roll(order, -int(np.bincount(group).max()))
    return partner


def detection(
    calibration: Calibration, judged: dict, claims: Claims, part: np.ndarray, groups: np.ndarray,
    spread_km: float,
) -> dict:  # fmt: skip
    """On held-out photos with true claims: distances of their p-values from uniform, the greatest
    combined p-value at which at most ALARM of them are false alarms, the share that is, and of each
    kind of false claim the share that is found at it."""
    told, together = calibration.verdicts(judged, claims, part)
    known = np.isfinite(together)
    at = alarm_at(together[known])
    rates = {}
    for name, altered, rows in alterations(claims, spread_km, groups):
        if rows.any():
            _, found = calibration.verdicts(judged, altered, part)
            rates[name] = {"n": int(rows.sum()), "found": float((found[rows] <= at).mean())}
    return {
        "photos": int(known.sum()),
        "false_alarms": float((together[known] <= at).mean()) if known.any() else None,
        "alarm_at": at,
        "spread_km": spread_km,
        "kolmogorov": {kind: kolmogorov(told[kind]) for kind in KINDS}
        | {"together": kolmogorov(together)},
        "claims": {kind: int(np.isfinite(told[kind]).sum()) for kind in KINDS},
        "rates": rates,
    }


def alarm_at(p: np.ndarray) -> float:
    """The greatest p-value, and at most ALARM, up to which at most ALARM of those of true claims
    (Q,) lie; half the least of them where that is none."""
    tried = np.append(np.unique(p[p <= ALARM]), ALARM)
    kept = tried[np.searchsorted(np.sort(p), tried, side="right") <= ALARM * len(p)]
    return float(kept.max(initial=p.min(initial=ALARM) / 2))


# ---------------------------------------------------------------- evidence


def in_100(p: float) -> str:
    """A p-value in words."""
    return f"{round(100 * p)} in 100" if p >= 0.01 else "fewer than 1 in 100"


def interval_words(p: float) -> str:
    """Outside which calibrated interval a claim lies, for p-values up to the last of LEVELS."""
    level = next(level for level in LEVELS if p <= level)
    return f"outside the {100 * (1 - level):.0f} % interval"


def evidence(row: dict) -> list[str]:
    """What speaks against the claims of one photo, the least p-value first; empty where nothing
    has a p-value within LEVELS. An orientation that the picture too has is not spoken against."""
    looks = {
        "position": lambda: (
            f"the claimed position lies {interval_words(row['p_position'])}, "
            f"{density.distance_label(row['distance_km'])} from the answer"
        ),
        "time": lambda: (
            f"the claimed hour, {row['claimed_time']}, lies "
            f"{interval_words(row['p_time'])} around {row['time']}"
        ),
        "sun": lambda: (
            f"at the claimed place and time the sun stood at "
            f"{row['claimed_sun_deg']:.0f}°, the picture looks like {row['sun_deg']:.0f}°"
        ),
        "orientation": lambda: (
            f"stored as {row['claimed_orientation']}, to which the picture gives "
            f"{row['orientation_chance']:.0%} (most to {row['orientation']})"
        ),
    }
    against = sorted(
        (row[f"p_{kind}"], kind)
        for kind in KINDS
        if row[f"p_{kind}"] <= LEVELS[-1]  # NaN is not
        and (kind != "orientation" or row["orientation"] != row["claimed_orientation"])
    )
    return [f"{looks[kind]()}; {in_100(p)} true claims look like this" for p, kind in against]


def verification_frame(
    names: list[str], judged: dict, claims: Claims, calibration: Calibration, part: np.ndarray
) -> pd.DataFrame:
    """One row for each photo, those first whose claims fit least."""
    import pandas as pd

    told, together = calibration.verdicts(judged, claims, part)
    classes = np.array([*ORIENTATION_CLASSES, None], object)
    stored = judged["chances"][np.arange(len(claims)), claims.orientation]
    frame = pd.DataFrame(
        {
            "filename": names,
            "p": together,
            **{f"p_{kind}": told[kind] for kind in KINDS},
            "claimed_latitude": claims.lat,
            "claimed_longitude": claims.lon,
            "latitude": judged["lat"],
            "longitude": judged["lon"],
            "distance_km": density.distance_km(
                judged["lat"], judged["lon"], claims.lat, claims.lon
            ),
            "claimed_time": [clock(m) for m in claims.minutes],
            "time": [clock(m) for m in judged["minutes"]],
            "minutes_apart": minutes_apart(judged["minutes"], claims.minutes),
            "claimed_sun_deg": claims.sun(),
            "sun_deg": judged["sun"],
            "claimed_orientation": classes[claims.orientation],
            "orientation": classes[judged["chances"].argmax(axis=1)],
            "orientation_chance": np.where(claims.orientation >= 0, stored, np.nan),
            "held_out": part >= 0,
        }
    )
    frame["evidence"] = ["; also ".join(evidence(row)) for row in frame.to_dict("records")]
    least = frame[[f"p_{kind}" for kind in KINDS]].min(axis=1)
    order = np.lexsort((frame["filename"], least, frame["p"]))
    return frame.iloc[order].reset_index(drop=True)


def write_page(path: Path, rows: list[dict], summary: dict, model: str) -> None:
    """Fill the page: one self-contained file."""
    import jinja2

    page = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent)
    ).get_template("verification.html.j2")
    about = {"model": model, "kinds": KINDS, "distance_label": density.distance_label}
    content = page.render(rows=rows, summary=summary, **about)
    with density.write_atomically(path, "w", encoding="utf-8") as file:
        file.write(content)
