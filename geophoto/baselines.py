"""Answers that cost nothing, and errors of any answers: what a model must beat.

In: Photos, features. Out: answers (lat, lon, minutes, altitude), errors in km, minutes, metres.
"""

from __future__ import annotations

import math
import statistics

import numpy as np

import density
from geophoto.orientations import turns_right
from geophoto.photos import Photos
from geophoto.targets import (
    HEADS,
    MINUTES_PER_DAY,
    decode,
    minutes_apart,
    point_minutes,
    time_point,
)

KNN_SIZES = (1, 3, 5, 10, 20)
FEW = 10  # held-out photos that must be confident before any answer is
SURE = {"gps": 0.1, "time": 0.5, "altitude": 0.5}  # of the error of saying nothing

# ---------------------------------------------------------------- errors


def trivial_answers(photos: Photos) -> dict[str, float]:
    """What one would say without looking: geographic median, circular median, median altitude and
    median elevation of the sun."""
    answers = dict.fromkeys(("lat", "lon", "minutes", "altitude", "sun"), math.nan)
    if photos.placed.any():
        answers["lat"], answers["lon"] = density.geographic_median(
            photos.lat[photos.placed], photos.lon[photos.placed]
        )
    minutes = photos.minutes[np.isfinite(photos.minutes)]
    if len(minutes):
        every = np.arange(0, MINUTES_PER_DAY, 5.0)
        cost = [minutes_apart(minutes, candidate).mean() for candidate in every]
        answers["minutes"] = float(every[int(np.argmin(cost))])
    for name in ("altitude", "sun"):
        values = getattr(photos, name)[np.isfinite(getattr(photos, name))]
        if len(values):
            answers[name] = float(np.median(values))
    return answers


def answer_errors(answers: dict[str, np.ndarray], photos: Photos) -> dict[str, np.ndarray]:
    """Error of answers (lat, lon, minutes, altitude and perhaps sun) per photo: km, circular
    minutes, metres and degrees."""
    errors = {
        "gps": density.distance_km(answers["lat"], answers["lon"], photos.lat, photos.lon),
        "time": minutes_apart(answers["minutes"], photos.minutes),
        "altitude": np.abs(answers["altitude"] - photos.altitude),
    }
    if "sun" in answers:
        errors["sun"] = np.abs(answers["sun"] - photos.sun)
    return errors


def errors_of(found: dict, photos) -> dict[str, dict[str, np.ndarray]]:
    """Errors per photo of the answers and of both baselines; see answer_errors."""
    own = {who: answer_errors(found[who], photos) for who in ("answers", "trivial")}
    return {**own, "knn": found["knn_errors"]}


def mean_error(head: str, errors: np.ndarray) -> float:
    """What choices are made by: the mean error where it is known, for positions its logarithm
    (from 1 m up), so that a few photos of far places do not decide; 0 without any."""
    known = errors[np.isfinite(errors)]
    if head == "gps":
        known = np.log(np.maximum(known, 1e-3))
    return float(known.mean()) if len(known) else 0.0


def validation_figures(prediction: dict, photos: Photos, trivial: dict, normalisation) -> dict:
    """Errors of the heads on validation photos and their score: the mean over the heads of
    error / trivial error (median km, mean minutes, mean metres, missed turns / 75 %), at most 2:
    where the trivial answer happens to be right, the ratio says nothing."""
    answers = decode(prediction, normalisation)
    errors, plain = answer_errors(answers, photos), answer_errors(trivial, photos)
    figures, ratios = {}, []
    for head, average, name in (
        ("gps", np.nanmedian, "median_km"),
        ("time", np.nanmean, "mean_minutes"),
        ("altitude", np.nanmean, "mean_m"),
    ):
        if np.isfinite(errors[head]).any():
            figures[name] = float(average(errors[head]))
            ratios.append(min(figures[name] / max(float(average(plain[head])), 1e-6), 2.0))
    tagged = photos.orientation >= 0
    if tagged.any() and "views" in prediction:
        figures["turn_accuracy"] = float(turns_right(prediction["views"][tagged]).mean())
        ratios.append((1 - figures["turn_accuracy"]) / 0.75)
    return {**figures, "score": statistics.fmean(ratios) if ratios else math.inf}


def mean_figures(figures: list[dict]) -> dict:
    names = ("median_km", "mean_minutes", "mean_m", "turn_accuracy", "score")
    known = {n: [f[n] for f in figures if n in f] for n in names}
    return {n: statistics.fmean(values) for n, values in known.items() if values}


def confident_below(
    head: str, most: np.ndarray, error: np.ndarray, plain: np.ndarray
) -> tuple[float, float]:
    """The widest 90 % interval up to which held-out answers have at most SURE of the error of
    saying nothing, and that error; (0, NaN) where there is none with FEW photos. An interval wider
    than the error of saying nothing is never enough: among photos that are found or altogether
    lost, a good average would still call the lost ones confident."""
    if head == "gps":
        error, plain = (np.log(np.maximum(km, density.LEAST_RADIUS_KM)) for km in (error, plain))
        goal, nothing = plain.mean() + math.log(SURE[head]), math.exp(plain.mean())
    else:
        goal, nothing = SURE[head] * plain.mean(), plain.mean()
    order = np.argsort(most, kind="stable")
    count = np.arange(1, len(order) + 1)
    means = np.cumsum(error[order]) / count
    good = np.flatnonzero((means <= goal) & (count >= FEW) & (most[order] <= nothing))
    if not len(good):
        return 0.0, math.nan
    reached = float(means[good[-1]])
    return float(most[order[good[-1]]]), math.exp(reached) if head == "gps" else reached


# ---------------------------------------------------------------- neighbours


def nearest_features(
    queries: np.ndarray, gallery: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cosine similarity of the k nearest gallery rows and their indices, each (Q, k), and the
    Euclidean distance to the nearest row, (Q,).

    Searched in float32, told in float64: answers draw from these numbers, so the last digits, which
    depend on how many are asked together, would choose other draws.
    """
    import torch
    from torch.nn import functional as F

    gallery = np.asarray(gallery, np.float32)
    rows = torch.from_numpy(gallery)
    units, lengths = F.normalize(rows, dim=1), rows.norm(dim=1)
    similar, index, away = [], [], []
    for part in torch.from_numpy(np.asarray(queries, np.float32)).split(512):
        cosine, length = F.normalize(part, dim=1) @ units.T, part.norm(dim=1, keepdim=True)
        near = cosine.topk(min(k, len(rows)), dim=1).indices
        nearest = (length**2 + lengths**2 - 2 * length * lengths * cosine).argmin(dim=1)
        exact = torch.from_numpy(_cosines(part.double().numpy(), gallery, near.numpy()))
        order = exact.argsort(dim=1, descending=True, stable=True)
        similar.append(exact.gather(1, order))
        index.append(near.gather(1, order))
        away.append((part.double() - rows[nearest].double()).norm(dim=1))
    return torch.cat(similar).numpy(), torch.cat(index).numpy(), torch.cat(away).numpy()


def _cosines(queries: np.ndarray, gallery: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Cosine of each query (Q, D) and its rows `near` (Q, k) of the gallery, in float64: one query
    at a time, whose rows fit the processor's cache; all at once take several times as long."""
    found = np.zeros(near.shape)
    for i, query in enumerate(queries):
        rows = gallery[near[i]].astype(float)
        lengths = np.linalg.norm(rows, axis=1) * np.linalg.norm(query)
        found[i] = rows @ query / np.maximum(lengths, 1e-12)
    return found


def labelled_neighbours(queries, gallery, photos: Photos) -> dict[str, np.ndarray]:
    """For each head with labels the most similar labelled photos (Q, ≤ 20), most similar first."""
    known = {
        "gps": photos.placed,
        "time": np.isfinite(photos.minutes),
        "altitude": np.isfinite(photos.altitude),
    }
    near, searched = {}, {}
    for head, labelled in known.items():
        rows, who = np.flatnonzero(labelled), labelled.tobytes()
        if who not in searched and len(rows):  # mostly the same photos know all three labels
            searched[who] = rows[nearest_features(queries, gallery[rows], max(KNN_SIZES))[1]]
        if len(rows):
            near[head] = searched[who]
    return near


def knn_answers(near: dict, photos: Photos, k: dict[str, int], count: int) -> dict[str, np.ndarray]:
    """The baseline: position (the neighbour nearest to the others), time (circular mean) and
    altitude (mean) of the k nearest of labelled_neighbours; NaN (count,) without labels."""
    names = ("lat", "lon", "minutes", "altitude")
    answers = {name: np.full(count, np.nan) for name in names}
    near = {head: rows[:, : k[head]] for head, rows in near.items()}
    if "gps" in near:
        places = density.unit_vectors(photos.lat[near["gps"]], photos.lon[near["gps"]])
        apart = density.arc_km(places[:, :, None], places[:, None]).sum(axis=2)
        middle = places[np.arange(len(places)), apart.argmin(axis=1)]
        answers["lat"], answers["lon"] = density.lat_lon(middle)
    if "time" in near:
        answers["minutes"] = point_minutes(time_point(photos.minutes[near["time"]]).mean(axis=1))
    if "altitude" in near:
        answers["altitude"] = photos.altitude[near["altitude"]].mean(axis=1)
    return answers


def choose_knn(rehearsals: list[tuple]) -> dict[str, int]:
    """The k of KNN_SIZES with the least validation error, for each head (gps: mean log error), over
    rehearsals of (labelled_neighbours, training photos, validation photos)."""
    chosen = {}
    for head in ("gps", "time", "altitude"):
        costs = []
        for k in KNN_SIZES:
            errors = [
                answer_errors(knn_answers(near, photos, dict.fromkeys(HEADS, k), len(asked)), asked)
                for near, photos, asked in rehearsals
            ]
            costs.append(mean_error(head, np.concatenate([e[head] for e in errors])))
        chosen[head] = KNN_SIZES[int(np.argmin(costs))]
    return chosen
