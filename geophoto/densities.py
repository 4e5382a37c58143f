"""Every head answers with a density: its point, its intervals, and whether it may be sure.

In: raw predictions, the gallery of training photos. Out: answers (lat, lon, minutes, altitude) with
50 and 90 % intervals, likely places, log-likelihoods; everything is chosen on held-out photos.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

import density
from geophoto.baselines import confident_below, nearest_features
from geophoto.mixtures import (
    Grid,
    Ranges,
    candidates,
    draw_positions,
    draw_ranges,
    grid_ranges,
)
from geophoto.orientations import fit_temperature
from geophoto.photos import Photos
from geophoto.targets import MINUTES_PER_DAY, Normalisation, breadth, decode, minutes_apart
from geophoto.voices import (
    MOST_FITTED,
    MOST_PRIOR,
    NEIGHBOURS,
    Circle,
    Evidence,
    Line,
    Space,
    Sphere,
    Stack,
    fit_stack,
    fit_trust,
    fit_without,
    log_mixed,
    voice_of,
)

LEVELS = (0.5, 0.9)
SHARES = (0.02, *np.arange(0.05, 0.951, 0.05).round(2).tolist(), 0.97, 0.98, 0.99, 0.995, 0.999)
MOST_PLACES = 3  # of one photo that are told
MOST_KEPT = 1000  # held-out photos of a fold that the final densities are fitted on
LIKELIHOODS = ("posterior", "head", "positions")
FADING = 0.25  # how far beyond all held-out photos a density has become the prior
COMPANY = ("burst", "folder")  # what photos may be fused by
NAMES = {  # of each head's answer, and of its interval
    "gps": ("position", ("radius", "km")),
    "time": ("minutes", ("time", "minutes")),
    "altitude": ("altitude", ("altitude", "m")),
}

# ---------------------------------------------------------------- evidence


def gallery_of(trunk: np.ndarray, photos: Photos) -> dict:
    """What the checkpoint keeps of the training photos; NaN where a label is unknown."""
    labels = {name: getattr(photos, name) for name in ("lat", "lon", "minutes", "altitude")}
    return {"features": trunk.astype(np.float16), **labels}


def space_of(head: str, normalisation: Normalisation) -> Space:
    if head == "gps":
        return Sphere(normalisation.spread_km)
    return Circle() if head == "time" else Line()


def values_of(head: str, labels: dict, normalisation: Normalisation) -> np.ndarray:
    """Labels or answers in the terms of the head's density; NaN where unknown."""
    if head == "gps":
        return density.unit_vectors(labels["lat"], labels["lon"])
    if head == "time":
        return np.asarray(labels["minutes"], float)
    return normalisation.altitude_target(np.asarray(labels["altitude"], float))


def gather_evidence(
    head: str,
    prediction: dict,
    gallery: dict | None,
    normalisation: Normalisation,
    asked: Photos | None = None,
    searched: dict | None = None,
) -> Evidence:
    """What is known of every photo of `prediction`; with `asked` their truths are known too.
    `searched` holds the neighbours among the photos that know one label for the next head."""
    own = values_of(head, decode(prediction, normalisation), normalisation)
    truth, group = np.full_like(own, np.nan), np.arange(len(own))
    if asked is not None:
        truth, group = values_of(head, vars(asked), normalisation), asked.group
    broad = breadth(prediction["time"]) if head == "time" else np.ones(len(own))
    labels = values_of(head, gallery, normalisation) if gallery is not None else own[:0]
    known = np.flatnonzero(is_known(labels))
    if not len(known):  # none may be told, or there is none; positions have their centre
        prior = normalisation.centre[None] if head == "gps" else own[:0]
        away = np.linalg.norm(prediction["trunk"], axis=1)  # from the mean of the training photos
        near = np.zeros((len(own), 0)), own[:, None][:, :0]
        return Evidence(*near, own, prior, truth, away, group, broad)
    labels, searched, who = labels[known], {} if searched is None else searched, known.tobytes()
    if who not in searched:
        features = (gallery or {})["features"][known]
        searched[who] = nearest_features(prediction["trunk"], features, NEIGHBOURS)
    similar, index, away = searched[who]
    prior = labels[:: max(1, math.ceil(len(labels) / MOST_PRIOR))]
    near = similar.astype(float), labels[index]
    return Evidence(*near, own, prior, truth, away, group, broad)


def gather_all(
    prediction: dict,
    gallery: dict | None,
    normalisation: Normalisation,
    asked: Photos | None = None,
) -> dict[str, Evidence]:
    """The evidence of every head; the gallery is searched once where all labels are known."""
    searched: dict = {}
    known = prediction, gallery, normalisation, asked
    return {head: gather_evidence(head, *known, searched) for head in NAMES}


def known_part(evidence: Evidence) -> np.ndarray:
    """Rows whose truth is known."""
    return np.flatnonzero(is_known(evidence.truth))


def is_known(values: np.ndarray) -> np.ndarray:
    """Which values of a head (N[, 3]) are known, (N,) bool."""
    return np.isfinite(values if values.ndim == 1 else values[:, 0])


# ---------------------------------------------------------------- one head


@dataclasses.dataclass
class HeadDensity:
    """How one head turns evidence into a density, its point and its intervals."""

    stack: Stack
    trust: float = 1.0  # share of the stack in every density; the rest is the prior's
    levels: tuple[float, float] = LEVELS  # shares of the density that held 50 and 90 % held out
    far: float = math.inf  # distance in feature space beyond which a photo is unlike all others
    sure_below: float = 0.0  # distance that holds 90 % of a density, up to which it is confident
    sure_error: float = math.nan  # of the held-out photos that are: km (geometric), minutes, m

    def weights(self, evidence: Evidence, space: Space) -> np.ndarray:
        """Weights of the kernels (Q, J): those of the prior as far as the stack is not trusted, and
        where a photo is unlike all others."""
        unlike = np.clip((evidence.away / self.far - 1) / FADING, 1 - self.trust, 1)
        weights = self.stack.weights(evidence.gate())
        return self.stack.fall_back(weights, unlike, evidence.last_resort(space))

    def answer(self, head: str, evidence: Evidence, normalisation: Normalisation) -> dict:
        """Point (Q[, 3]), the half-widths (Q,) of its intervals in km, minutes or metres, the
        distance that holds 90 % of the density as it is, whether it is confident, and how far
        from the point all SHARES of the density `reach` (Q, len(SHARES))."""
        levels = (*self.levels, LEVELS[1], *SHARES)
        parts = [
            (points, ranges.distances(levels))
            for _, points, ranges in self.by_part(head, evidence, normalisation)
        ]
        points, reach = (np.concatenate(column) for column in zip(*parts, strict=True))
        half, most, width = reach[:, :3].T
        answer = self.judge(head, points, half, most, width, evidence)
        return {**answer, "reach": reach[:, 3:]}

    def judge(
        self, head: str, points: np.ndarray, half: np.ndarray, most: np.ndarray,
        width: np.ndarray, evidence: Evidence,
    ) -> dict:  # fmt: skip
        """The answer from points and half-widths, none narrower than labels are known; confident
        by the `width` (Q,) that holds 90 % of the density."""
        least = density.LEAST_RADIUS_KM if head == "gps" else 1.0  # km; minutes and metres
        half, most = np.maximum(half, least), np.maximum(most, np.maximum(half, least))
        sure = (width <= self.sure_below) & (evidence.away <= self.far)
        return {"point": points, "half50": half, "half90": most, "width": width, "confident": sure}

    def draws(self, evidence: Evidence, space: Sphere) -> np.ndarray:
        """DRAWS positions of each density, (Q, DRAWS, 3)."""
        return draw_positions(evidence, space, self.stack, self.weights(evidence, space))

    def grid(self, evidence: Evidence, space: Space) -> Grid:
        return Grid.of(evidence, space, self.stack, self.weights(evidence, space))

    def by_part(
        self, head: str, evidence: Evidence, normalisation: Normalisation
    ) -> Iterator[tuple[Evidence, np.ndarray, Ranges]]:
        """Points and ranges of some photos at a time, beside their evidence."""
        for part in evidence.parts():
            yield part, *self.ranges(head, part, normalisation)

    def ranges(
        self, head: str, evidence: Evidence, normalisation: Normalisation
    ) -> tuple[np.ndarray, Ranges]:
        """Points of the densities, and how far from them their shares lie."""
        space = space_of(head, normalisation)
        if isinstance(space, Sphere):
            tried = candidates(evidence, normalisation.centre)
            return draw_ranges(tried, self.draws(evidence, space))
        return grid_ranges(self.grid(evidence, space), normalisation)


def distance_of(
    head: str, a: np.ndarray, b: np.ndarray, normalisation: Normalisation
) -> np.ndarray:
    """Distance of values of a head: km, minutes or metres."""
    if head == "altitude":
        return np.abs(normalisation.altitude_m(a) - normalisation.altitude_m(b))
    return space_of(head, normalisation).apart(a, b)


# ---------------------------------------------------------------- choices


def fit_head(head: str, parts: list[Evidence], scales: list[Normalisation]) -> HeadDensity | None:
    """Fit a head on the evidence of held-out photos, one part for each trainer: the weights on
    all; intervals and confidence on parts that the weights were not fitted on. None without a
    single label."""
    each = zip(parts, scales, strict=True)
    cases = [(part.take(known_part(part)), scale) for part, scale in each]
    cases = [(part, scale) for part, scale in cases if len(part)]
    if not cases:
        return None
    spaces = [space_of(head, scale) for _, scale in cases]
    kept = [part for part, _ in cases]
    stack, logs = fit_stack(kept, spaces)
    whole = HeadDensity(stack, far=reach_of_the_known(kept))
    gates = [part.gate() for part in kept]
    stacks = [fit_without(whole.stack, logs, gates, i) for i in range(len(kept))]
    if head != "gps":  # a position is one of the places that speak, the middle among them
        whole.trust = fit_trust(stacks, kept, spaces, logs)
    tables = []
    for (part, scale), stack in zip(cases, stacks, strict=True):
        judge = dataclasses.replace(whole, stack=stack)
        plain = distance_of(head, middle_value(head, part, scale), part.truth, scale)
        for some, points, ranges in judge.by_part(head, part, scale):
            error = distance_of(head, points, some.truth, scale)
            shares, width = ranges.shares_within(error), ranges.distances(LEVELS[1:])[:, 0]
            tables.append(np.stack([shares, width, error, plain[: len(some)]]))
            plain = plain[len(some) :]
    shares, width, error, plain = np.concatenate(tables, axis=1)
    levels = np.quantile(shares, wanted_levels(len(shares))).tolist()
    below, reached = confident_below(head, width, error, plain)
    return dataclasses.replace(
        whole, levels=(levels[0], levels[1]), sure_below=below, sure_error=reached
    )


def wanted_levels(count: int) -> np.ndarray:
    """Which quantiles of `count` held-out shares hold LEVELS of new photos (split conformal)."""
    return np.minimum(np.array(LEVELS) * (1 + 1 / count), 1)


def fit_densities(asked: list[tuple[dict, dict | None, Photos, Normalisation]]) -> dict:
    """Densities of all heads from (prediction, gallery, photos, normalisation) of every trainer on
    photos that it had not seen."""
    evidence: dict[str, list[Evidence]] = {}
    for head in NAMES:
        truths = [values_of(head, vars(photos), scale) for _, _, photos, scale in asked]
        rows = thinned([np.flatnonzero(is_known(truth)) for truth in truths])
        evidence[head] = [
            gather_evidence(head, {k: v[few] for k, v in found.items()}, gallery, scale,
                            photos.take(few))
            for few, (found, gallery, photos, scale) in zip(rows, asked, strict=True)
        ]  # fmt: skip
    views = np.concatenate([found["views"] for found, *_ in asked])
    return fit_on(evidence, [scale for *_, scale in asked], fit_temperature(views))


def thinned(rows: list[np.ndarray]) -> list[np.ndarray]:
    """Rows of held-out photos, evenly thinned to about MOST_FITTED in all parts together."""
    share = max(1, math.ceil(sum(map(len, rows)) / MOST_FITTED))
    return [part[::share] for part in rows]


def fit_on(
    evidence: dict[str, list[Evidence]], scales: list[Normalisation], temperature: float
) -> dict:
    """The densities of all heads from evidence of held-out photos, one part for each trainer."""
    heads = {head: fit_head(head, parts, scales) for head, parts in evidence.items()}
    fuse = {kind: dict.fromkeys(NAMES) for kind in COMPANY}  # until fusing.py has measured it
    return {"heads": heads, "temperature": temperature, "fuse": fuse}


def as_plain(densities: dict) -> dict:
    """Densities as plain values and arrays, for a checkpoint."""
    heads = {head: one and dataclasses.asdict(one) for head, one in densities["heads"].items()}
    return {**densities, "heads": heads}


def from_plain(plain: dict) -> dict:
    """The inverse of as_plain."""
    heads = {
        head: one and HeadDensity(**{**one, "stack": Stack(**one["stack"])})
        for head, one in plain["heads"].items()
    }
    return {**plain, "heads": heads}


def reach_of_the_known(parts: list[Evidence]) -> float:
    """The distance in feature space to the nearest training photo that 99 % of the held-out
    photos keep."""
    return float(np.quantile(np.concatenate([part.away for part in parts]), 0.99)) + 1e-6


def middle_value(head: str, evidence: Evidence, normalisation: Normalisation) -> np.ndarray:
    """What one would say without looking at the picture, for every photo."""
    if head == "gps":
        return np.broadcast_to(normalisation.centre, evidence.head.shape)
    if head == "altitude" or not len(evidence.prior):
        middle = normalisation.altitude_target(np.array(normalisation.altitude_median))
        return np.full(len(evidence), float(middle) if head == "altitude" else 720.0)
    tried = np.arange(0, MINUTES_PER_DAY, 5.0)
    cost = minutes_apart(tried[:, None], evidence.prior[None]).mean(axis=1)
    return np.full(len(evidence), tried[cost.argmin()])


# ---------------------------------------------------------------- answers


def answers_of(
    prediction: dict, gallery: dict | None, densities: dict, normalisation: Normalisation,
    gathered: dict[str, Evidence] | None = None,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Final answers for raw predictions: lat, lon, minutes and altitude with the half-widths of
    their 50 and 90 % intervals (km, minutes, metres), the distance that holds 90 % of the density
    as it is (which ranks them), those that SHARES of it reach (by which claims are measured) and
    whether they are confident, NaN where nothing was learned; the sun's elevation (degrees), how
    strange a photo is (1 = as far from the training photos as any held-out one) and the calibrated
    logits of the six views."""
    count = len(prediction["trunk"])
    gathered = gathered or gather_all(prediction, gallery, normalisation)
    found = {"sun": decode(prediction, normalisation)["sun"]}
    found["views"] = prediction["views"] / densities["temperature"]
    found["strangeness"] = np.full(count, np.nan)
    for head, (name, unit) in NAMES.items():
        one = densities["heads"].get(head)
        columns = ("lat", "lon") if head == "gps" else (name,)
        blank = [*columns, f"{unit[0]}50_{unit[1]}", f"{unit[0]}90_{unit[1]}"]
        found |= {column: np.full(count, np.nan) for column in (*blank, f"{head}_width")}
        found[f"{head}_confident"] = np.zeros(count, bool)
        found[f"{head}_reach"] = np.full((count, len(SHARES)), np.nan)
        if one is not None:
            answer = one.answer(head, gathered[head], normalisation)
            found |= answer_columns(head, answer, normalisation)
            found[f"{head}_reach"] = answer["reach"]
            found["strangeness"] = np.fmax(found["strangeness"], gathered[head].away / one.far)
    return found


def answer_columns(head: str, answer: dict, normalisation: Normalisation) -> dict:
    """One head's answer by the names of answers_of, (Q,) each."""
    name, (of, unit) = NAMES[head]
    found = {f"{of}50_{unit}": answer["half50"], f"{of}90_{unit}": answer["half90"]}
    found |= {f"{head}_{key}": answer[key] for key in ("width", "confident")}
    if head == "gps":
        found["lat"], found["lon"] = density.lat_lon(answer["point"])
    else:
        points = answer["point"]
        found[name] = points if head == "time" else normalisation.altitude_m(points)
    return found


def likely_places(
    one: HeadDensity | None, evidence: Evidence, half50: np.ndarray, normalisation: Normalisation
) -> list[list[tuple]]:
    """For each photo its most probable distinct places, see density.distinct_places; a place
    reaches half as far as the 50 % interval (Q,) of the position."""
    if one is None:
        return [[] for _ in range(len(evidence))]
    draws = one.draws(evidence, Sphere(normalisation.spread_km))
    each = zip(candidates(evidence), draws, 0.5 * half50, strict=True)
    return [density.distinct_places(*about, MOST_PLACES) for about in each]


def hold_out(
    densities: dict, prediction: dict, gallery: dict | None, asked: Photos, scale: Normalisation
) -> dict:
    """What a fold leaves of the photos that it held out: answers, what SHARES of their densities
    reach, log densities at the truths (NaN without), and evidence for those of the final model."""
    likelihood, kept, alone = {}, {}, {}
    gathered = gather_all(prediction, gallery, scale, asked)
    without = gather_all(prediction, None, scale, asked)
    for head, one in densities["heads"].items():
        evidence = gathered[head]
        known = known_part(evidence)
        few = known[:: max(1, math.ceil(len(known) / MOST_KEPT))]
        kept[head], alone[head] = vars(evidence.take(few)), vars(without[head].take(few))
        for name in LIKELIHOODS:
            likelihood[f"{head}_{name}"] = np.full(len(asked), np.nan)
        if one is not None:
            found = log_likelihoods(one, evidence.take(known), space_of(head, scale))
            for name, values in found.items():
                likelihood[f"{head}_{name}"][known] = values
    answers = answers_of(prediction, gallery, densities, scale, gathered)
    return {
        "reaches": {f"{head}_reach": answers.pop(f"{head}_reach") for head in NAMES},
        "answers": answers,
        "log_likelihood": likelihood,
        "evidence": kept,
        "evidence_alone": alone,
        "scale": vars(scale),
    }


def combine_folds(results: list[dict], alone: bool = False) -> dict:
    """The densities of the final model, from what all folds held out; `alone`: without gallery."""
    kept = "evidence_alone" if alone else "evidence"
    scales = [Normalisation(**result["scale"]) for result in results]
    evidence = {}
    for head in NAMES:
        parts = [Evidence(**result[kept][head]) for result in results]
        rows = thinned([np.arange(len(part)) for part in parts])
        evidence[head] = [part.take(few) for part, few in zip(parts, rows, strict=True)]
    temperatures = [result["densities"]["temperature"] for result in results]
    return fit_on(evidence, scales, float(np.median(temperatures)))


def log_likelihoods(one: HeadDensity, evidence: Evidence, space: Space) -> dict:
    """Log densities (Q,) at the truths, per km², minute or unit of the altitude target: of the
    density, and of its best kernel on the head's point and on the training labels alone."""
    logs, voice = evidence.kernel_logs(space, one.stack.temperature), voice_of(space)
    found = {"posterior": log_mixed(one.weights(evidence, space), logs)}
    for name, number in (("head", 1), ("positions", 2)):
        best = np.argmax(np.where(voice == number, one.stack.offset, -np.inf))
        found[name] = np.logaddexp(np.log(0.98) + logs[:, best], np.log(0.02) + logs[:, -1])
    return found
