"""Errors with baselines and bootstrap intervals: the blocks of metrics.json.

In: held-out answers, Photos, group numbers. Out: plain dicts.
"""

from __future__ import annotations

import math

import numpy as np

import density
from geophoto.baselines import answer_errors, errors_of
from geophoto.densities import SHARES
from geophoto.orientations import ORIENTATION_CLASSES, turns_right
from geophoto.resampling import interval, weighted_mean, weighted_median

WITHIN_KM = (0.01, 0.1, 1, 25, 200, 750, 2500)  # the last five: usual in the literature
PAIRS = (("Normal", "Flipped H"), ("Rotated 180°", "Flipped V"))  # mirror images of each other

NOTABLE = 1.05  # ratio of two errors of one photo that counts as a difference

# ---------------------------------------------------------------- metrics


def geometric_mean_km(km: np.ndarray) -> float:
    """10 to the mean log10 of the error, errors below 1 m counted as 1 m."""
    return float(10 ** np.log10(np.maximum(km, 1e-3)).mean())


def head_metrics(found: dict, photos, groups: np.ndarray, draws: int, seed: int) -> dict:
    """The block of one model in metrics.json; heads without labels have n = 0 only."""

    errors = errors_of(found, photos)
    metrics: dict = {}
    for head, unit, statistic in (
        ("gps", "km", weighted_median),
        ("time", "minutes", weighted_mean),
        ("altitude", "m", weighted_mean),
    ):
        own = errors["answers"][head]
        rows = np.isfinite(own) & np.isfinite(errors["knn"][head])
        block: dict = {"n": int(rows.sum()), "groups": len(np.unique(groups[rows]))}
        metrics[head] = block
        if not block["n"]:
            continue
        own, trivial, knn = (errors[who][head][rows] for who in ("answers", "trivial", "knn"))
        block[f"mean_{unit}"] = float(own.mean())
        block[f"median_{unit}"] = float(np.median(own))
        block[f"interval_{unit}"] = interval(own, groups[rows], statistic, draws, seed)
        average, name = (np.median, "median") if head == "gps" else (np.mean, "mean")
        block[f"baseline_{name}_{unit}"] = float(average(trivial))
        block[f"knn_{name}_{unit}"] = float(average(knn))
        for name, other in (("baseline", trivial), ("knn", knn)):  # below zero: better than luck
            block[f"minus_{name}_interval"] = interval(
                own, groups[rows], statistic, draws, seed, minus=other
            )
        block |= interval_metrics(head, own, found["answers"], rows, groups[rows], draws, seed)
        block |= reliability_metrics(head, own, found, rows)
        block |= likelihood_metrics(head, found, groups, draws, seed)
        if head == "gps":
            block |= position_metrics(own, trivial, knn)
    own, trivial = (errors[who]["sun"] for who in ("answers", "trivial"))
    rows = np.isfinite(own)
    metrics["sun"] = {"n": int(rows.sum())}
    if rows.any():
        metrics["sun"] |= {
            "mean_deg": float(own[rows].mean()),
            "interval_deg": interval(own[rows], groups[rows], weighted_mean, draws, seed),
            "baseline_mean_deg": float(trivial[rows].mean()),
        }
    metrics["orientation"] = orientation_metrics(found, photos, groups, draws, seed)
    return metrics


INTERVALS = {"gps": "radius{}_km", "time": "time{}_minutes", "altitude": "altitude{}_m"}


def interval_metrics(
    head: str, own: np.ndarray, answers: dict, rows: np.ndarray, groups, draws: int, seed: int
) -> dict:
    """Coverage of the 50 and 90 % intervals, each with its interval, and their median half-widths;
    how many photos are confident, and their error (positions: geometric mean); and the
    risk–coverage curve: error of the 10, 20 … 100 % with the narrowest densities, with its mean
    (positions in logarithms)."""
    block: dict = {}
    for level in (50, 90):
        half = answers[INTERVALS[head].format(level)][rows]
        block[f"interval{level}"] = float(np.median(half))
        inside = (own <= half).astype(float)
        block[f"coverage{level}"] = float(inside.mean())
        limits = interval(inside, groups, weighted_mean, draws, seed)
        block[f"coverage{level}_interval"] = limits
    average = geometric_mean_km if head == "gps" else lambda errors: float(errors.mean())
    sure = answers[f"{head}_confident"][rows].astype(bool)
    block["confident"] = int(sure.sum())
    block["confident_error"] = average(own[sure]) if sure.any() else None
    order = np.argsort(answers[f"{head}_width"][rows], kind="stable")
    counts = [max(1, round(share * len(own) / 10)) for share in range(1, 11)]
    curve = [average(own[order[:count]]) for count in counts]
    area = geometric_mean_km(np.array(curve)) if head == "gps" else float(np.mean(curve))
    return {**block, "risk_coverage": curve, "risk_area": area}


def reliability_metrics(head: str, own: np.ndarray, found: dict, rows: np.ndarray) -> dict:
    """What share of the truths the densities hold within each share of themselves, before their
    levels are set; only cross-validated models bring it along, and not for altitude."""
    reach = found.get("judged", {}).get(f"{head}_reach")
    if reach is None:
        return {}
    held = (own[:, None] <= reach[rows]).mean(axis=0)
    return {"reliability": {"said": list(SHARES), "held": [float(x) for x in held]}}


def position_metrics(own, trivial, knn) -> dict:
    shares = {f"p{q}_km": float(np.percentile(own, q)) for q in (75, 90, 95)}
    return {
        "geometric_mean_km": geometric_mean_km(own),
        **shares,
        "baseline_geometric_mean_km": geometric_mean_km(trivial),
        "knn_geometric_mean_km": geometric_mean_km(knn),
        "within": {f"{km:g}": float((own <= km).mean()) for km in WITHIN_KM},
    }


def likelihood_metrics(head: str, found: dict, groups, draws: int, seed: int) -> dict:
    """Mean log density at the truths (per km², minute, unit of the altitude target) of the whole
    density, of a kernel on the head's point alone and of the training labels; gains with
    intervals, paired. Only cross-validated models bring it along."""
    if "log_likelihood" not in found:
        return {}
    names = ("posterior", "head", "positions")
    values = {name: np.asarray(found["log_likelihood"][f"{head}_{name}"]) for name in names}
    rows = np.isfinite(values["posterior"])
    if not rows.any():
        return {}
    own = values["posterior"][rows]
    block: dict = {"posterior": float(own.mean())}
    for name in ("head", "positions"):
        gain = own - values[name][rows]
        block[name] = float(values[name][rows].mean())
        block[f"gain_over_{name}"] = float(gain.mean())
        block[f"gain_over_{name}_interval"] = interval(
            gain, groups[rows], weighted_mean, draws, seed
        )
    return {"log_likelihood": block}


def orientation_metrics(found: dict, photos, groups, draws: int, seed: int) -> dict:
    """Stored files, four turns, six classes and mirror pairs, each from the six views of a photo
    with a tag. Views of one photo count as one unit in the interval."""
    tagged = photos.orientation >= 0
    if not tagged.any():
        return {"n": 0}
    views, stored = found["answers"]["views"][tagged], photos.orientation[tagged]
    seen = views[np.arange(len(stored)), stored] + np.log(found["prior"][tagged])
    turns = turns_right(views)
    six = views.argmax(axis=2)
    confusion = np.zeros((6, 6), int)
    chance = np.exp(views - np.logaddexp.reduce(views, axis=2, keepdims=True))
    order = np.argsort(chance.max(axis=2), axis=None)
    fifths = [part for part in np.array_split(order, 5) if len(part)]
    for view in range(6):
        confusion[view] = np.bincount(six[:, view], minlength=6)
    pairs = {}
    for pair in PAIRS:
        columns = [ORIENTATION_CLASSES.index(name) for name in pair]
        chosen = views[:, columns][:, :, columns].argmax(axis=2)
        pairs[" / ".join(pair)] = float((chosen == np.arange(2)).mean())
    return {
        "n": int(tagged.sum()),
        "stored_accuracy": float((seen.argmax(axis=1) == stored).mean()),
        "stored_majority": float(np.bincount(stored).max() / len(stored)),
        "turn_accuracy": float(turns.mean()),
        "turn_interval": interval(turns.mean(axis=1), groups[tagged], weighted_mean, draws, seed),
        "six_class_accuracy": float((six == np.arange(6)).mean()),
        "mirror_accuracy": float(np.mean(list(pairs.values()))),
        "mirror_pairs": pairs,
        "confusion": confusion.tolist(),
        "reliability": {  # the six views by their greatest probability, a fifth of them each
            "said": [float(chance.max(axis=2).flat[part].mean()) for part in fifths],
            "held": [float((six == np.arange(6)).flat[part].mean()) for part in fifths],
        },
    }


def paired_difference(found: dict, photos: dict, groups: dict, draws: int, seed: int) -> dict:
    """RGB+Depth minus RGB on the same photos, with intervals; negative = depth helps (errors).

    Counts how many photos depth helps and hurts by more than a twentieth of their error; positions
    also get the ratio of the geometric means, to which every photo contributes and not only the
    middle one."""
    place = {name: i for i, name in enumerate(photos["depth"].names)}
    mine = [i for i, name in enumerate(photos["rgb"].names) if name in place]
    other = [place[photos["rgb"].names[i]] for i in mine]
    errors = {name: answer_errors(found[name]["answers"], photos[name]) for name in found}
    difference: dict = {}
    for head, key, statistic in (
        ("gps", "median_km", weighted_median),
        ("time", "mean_minutes", weighted_mean),
        ("altitude", "mean_m", weighted_mean),
    ):
        rgb, depth = errors["rgb"][head][mine], errors["depth"][head][other]
        rows = np.isfinite(rgb) & np.isfinite(depth)
        if rows.any():
            rgb, depth, group = rgb[rows], depth[rows], groups["rgb"][mine][rows]
            ones = np.ones(len(rgb))
            difference[head] = {
                "n": len(ones),
                key: statistic(depth, ones) - statistic(rgb, ones),
                "interval": interval(depth, group, statistic, draws, seed, minus=rgb),
                "helped": int((depth < rgb / NOTABLE).sum()),
                "hurt": int((depth > rgb * NOTABLE).sum()),
            }
            if head == "gps":
                logs = [np.log(np.maximum(km, density.LEAST_RADIUS_KM)) for km in (depth, rgb)]
                limits = interval(logs[0], group, weighted_mean, draws, seed, minus=logs[1])
                difference[head] |= {
                    "geometric_ratio": math.exp(float((logs[0] - logs[1]).mean())),
                    "ratio_interval": [math.exp(x) for x in limits] if limits else None,
                }
    return difference
