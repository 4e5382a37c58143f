"""What the heads and the most similar training photos say together: gallery, posterior, radii.

In: raw predictions, the gallery. Out: points, credible radii, likely places, log-likelihoods.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np

import density
from geophoto.baselines import KNN_SIZES, answer_errors, mean_error, nearest_features
from geophoto.photos import Photos
from geophoto.targets import decode, time_point

NEIGHBOURS = 64  # of the gallery that enter a prediction
MOST_FOR_LEVELS = 1000  # validation photos that the levels of the radii are chosen by
LEAN_SHARES = (0.25, 0.5, 0.75, 1.0)  # tried, beside none


@dataclasses.dataclass
class Posterior:
    """What the heads and the most similar photos of the gallery say together.

    Position: a density on the sphere, a mixture of von Mises–Fisher kernels: one on each
    neighbour, weighted by softmax(similarity / temperature), one on the head's point, and a wide
    one on the training photos' centre for what nothing resembles. Time and altitude: the head's
    answer, moved by a share of the way to the mean of the nearest neighbours' labels.
    """

    temperature: float
    bandwidth_km: float
    head_weight: float
    head_bandwidth_km: float
    estimator: str  # what becomes the point: one of ESTIMATORS, see point()
    level50: float = 0.5  # shares of the mixture that held half and nine tenths of the validation
    level90: float = 0.9  # photos: what the radii are drawn at
    time_share: float = 0.0  # of the neighbours in the answer
    time_count: int = 1  # how many neighbours are asked
    altitude_share: float = 0.0
    altitude_count: int = 1

    WIDE_WEIGHT = 0.02
    ESTIMATORS = ("expected", "nearest", "centre")

    def mixture(self, head, similar, places, wide, spread_km: float):
        """Centres (Q, K+2, 3), log weights and bandwidths (Q, K+2) for heads (Q, 3), neighbour
        similarities (Q, K) and places (Q, K, 3), and the wide kernel's centres (Q, 3)."""
        count, k = similar.shape
        centres = np.concatenate([places, head[:, None], wide[:, None]], axis=1)
        share = self.head_weight if k else 1.0
        logits = similar / self.temperature
        logits = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True) if k else logits
        rest = 1 - self.WIDE_WEIGHT
        log_weights = np.concatenate(
            [
                logits + np.log(max((1 - share) * rest, 1e-300)),
                np.full((count, 1), np.log(max(share * rest, 1e-300))),
                np.full((count, 1), np.log(self.WIDE_WEIGHT)),
            ],
            axis=1,
        )
        widths = np.full((count, k + 2), self.bandwidth_km)
        widths[:, k] = self.head_bandwidth_km
        widths[:, k + 1] = spread_km
        return centres, log_weights, widths

    def lean(self, prediction: dict, labels: dict[str, np.ndarray]) -> dict:
        """Raw predictions with time and altitude moved towards the neighbours' labels (Q, K, C),
        see neighbour_labels; neighbours without a label are passed over."""
        moved = dict(prediction)
        for head, near in labels.items():
            near = near[:, : getattr(self, f"{head}_count")]
            known = np.isfinite(near).all(axis=2, keepdims=True)
            total = known.sum(axis=1)
            mean = np.where(known, near, 0).sum(axis=1) / np.maximum(total, 1)
            share = np.where(total > 0, getattr(self, f"{head}_share"), 0.0)
            own = prediction[head].reshape(mean.shape)
            moved[head] = (own + share * (mean - own)).reshape(prediction[head].shape)
        return moved

    def log_per_km2(self, head, similar, places, wide, truth, spread_km: float) -> np.ndarray:
        """Log density (Q,) at the true positions (Q, 3), see mixture for the rest."""
        mixture = self.mixture(head, similar, places, wide, spread_km)
        return density.mixture_log_per_km2(truth[:, None], *mixture)[:, 0]

    def point(self, centres, log_weights, widths) -> np.ndarray:
        """One point (Q, 3) for each mixture: that of its centres from which the log error expected
        is least, no kernel counting as nearer than it is wide ("expected"); the place of the most
        similar photo ("nearest"), hard to beat where bursts are split; or the middle of the
        training photos ("centre"), where the picture tells nothing."""
        if self.estimator != "expected":
            return centres[:, 0 if self.estimator == "nearest" else -1]
        best = np.empty((len(centres), 3))
        for i, (centre, weight, width) in enumerate(zip(centres, log_weights, widths, strict=True)):
            apart = np.hypot(density.arc_km(centre[:, None], centre[None]), width)
            best[i] = centre[int(np.argmin(np.log(apart) @ np.exp(weight)))]
        return best

    @classmethod
    def fit(cls, head, similar, places, wide, truth, spread_km: float) -> Posterior:
        """Choose the kernels, then the estimator by the mean log error at the true positions
        (Q, 3), then the levels of the radii by where the truth lies in the mixtures."""
        kernels = cls.fit_kernels(head, similar, places, wide, truth, spread_km)
        mixture = kernels.mixture(head, similar, places, wide, spread_km)
        points = {
            name: dataclasses.replace(kernels, estimator=name).point(*mixture)
            for name in cls.ESTIMATORS
            if places.size or name != "nearest"
        }
        best = min(points, key=lambda n: mean_error("gps", density.arc_km(points[n], truth)))
        nearer = [
            density.share_nearer(points[best][i], truth[i], *(part[i] for part in mixture))
            for i in range(0, len(truth), math.ceil(len(truth) / MOST_FOR_LEVELS))
        ]
        wanted = np.minimum(np.array([0.5, 0.9]) * (1 + 1 / len(nearer)), 1)
        half, most = np.quantile(nearer, wanted).tolist()
        return dataclasses.replace(kernels, estimator=best, level50=half, level90=most)

    @classmethod
    def fit_kernels(cls, head, similar, places, wide, truth, spread_km: float) -> Posterior:
        """Choose the kernels by the mean log-likelihood of the true positions (Q, 3). Bandwidths go
        from a ten-thousandth of the spread to all of it."""
        widths = spread_km * np.geomspace(1e-4, 1, 13)
        to_places = density.arc_km(places, truth[:, None])
        to_head = density.arc_km(head, truth)
        floor = np.log(cls.WIDE_WEIGHT) + density.kernel_log_per_km2(
            density.arc_km(wide, truth), spread_km
        )
        head_log = {w: density.kernel_log_per_km2(to_head, w) for w in widths[4:]}
        best, chosen = -np.inf, None
        has_gallery = places.shape[1] > 0
        for temperature in (0.01, 0.02, 0.04, 0.07, 0.12, 0.25) if has_gallery else (1.0,):
            logits = similar / temperature
            logits = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            for width in widths if has_gallery else widths[:1]:
                kernel = density.kernel_log_per_km2(to_places, width)
                near = np.logaddexp.reduce(logits + kernel, axis=1)
                for head_width, from_head in head_log.items():
                    for share in (0.05, 0.2, 0.4, 0.6, 0.8, 0.95) if has_gallery else (1.0,):
                        rest = 1 - cls.WIDE_WEIGHT
                        both = np.logaddexp(
                            near + np.log(max((1 - share) * rest, 1e-300)),
                            from_head + np.log(share * rest),
                        )
                        value = np.logaddexp(both, floor).mean()
                        if value > best:
                            best = value
                            chosen = (temperature, float(width), share, float(head_width))
        return cls(*chosen, "expected")


# ---------------------------------------------------------------- gallery


def gallery_of(trunk: np.ndarray, photos: Photos) -> dict:
    """What the checkpoint keeps of the training photos that have a position."""
    return {
        "features": trunk[photos.placed].astype(np.float16),
        "lat": photos.lat[photos.placed],
        "lon": photos.lon[photos.placed],
        "minutes": photos.minutes[photos.placed],
        "altitude": photos.altitude[photos.placed],
    }


def neighbours_of(prediction: dict, gallery: dict | None) -> tuple[np.ndarray, np.ndarray]:
    """Similarities and indices (Q, K) of the nearest gallery photos; K = 0 without a gallery."""
    queries = prediction["trunk"]
    if gallery is None or not len(gallery["lat"]):
        return np.zeros((len(queries), 0)), np.zeros((len(queries), 0), int)
    similar, index = nearest_features(queries, gallery["features"], NEIGHBOURS)
    return similar.astype(float), index


def neighbour_places(gallery: dict | None, index: np.ndarray) -> np.ndarray:
    """Unit vectors (Q, K, 3) of the gallery photos `index` (Q, K)."""
    if not index.size:
        return np.zeros((*index.shape, 3))
    return density.unit_vectors(gallery["lat"], gallery["lon"])[index]


def neighbour_labels(gallery: dict | None, index: np.ndarray, normalisation) -> dict:
    """Targets of time (Q, K, 2) and altitude (Q, K, 1) of the gallery photos `index`."""
    if not index.size:
        return {}
    altitude = normalisation.altitude_target(gallery["altitude"][index])
    return {"time": time_point(gallery["minutes"][index]), "altitude": altitude[..., None]}


# ---------------------------------------------------------------- answers


def answers_of(prediction, gallery: dict | None, posterior: Posterior, normalisation) -> dict:
    """Final answers for raw predictions: the posterior's point and radii (km), time (minutes and
    its certainty 0..1), altitude (m), the sun's elevation (degrees) and the logits of the six
    views."""
    similar, index = neighbours_of(prediction, gallery)
    prediction = posterior.lean(prediction, neighbour_labels(gallery, index, normalisation))
    answers = decode(prediction, normalisation)
    mixture = posterior_mixture(answers, similar, index, gallery, posterior, normalisation)
    point = posterior.point(*mixture)
    lat, lon = density.lat_lon(point)
    levels = posterior.level50, posterior.level90
    radii = np.array(
        [
            density.credible_radius_km(point[i], *(m[i] for m in mixture), levels)
            for i in range(len(point))
        ]
    ).reshape(-1, 2)
    return {
        **answers,
        "lat": lat,
        "lon": lon,
        "radius50_km": radii[:, 0],
        "radius90_km": radii[:, 1],
        "time_certainty": np.minimum(np.linalg.norm(prediction["time"], axis=1), 1.0),
        "views": prediction["views"],
    }


def likely_places(
    prediction, gallery: dict | None, posterior: Posterior, normalisation, count: int = 3
) -> list[list[tuple]]:
    """For each photo its most probable distinct places, see density.distinct_places; a place
    reaches two bandwidths far."""
    found = neighbours_of(prediction, gallery)
    answers = decode(prediction, normalisation)
    mixture = posterior_mixture(answers, *found, gallery, posterior, normalisation)
    reach = 2 * (posterior.head_bandwidth_km if gallery is None else posterior.bandwidth_km)
    return [
        density.distinct_places(*(m[i] for m in mixture), reach, count)
        for i in range(len(mixture[0]))
    ]


def posterior_mixture(answers, similar, index, gallery, posterior: Posterior, normalisation):
    """The mixture of Posterior.mixture from decoded answers and neighbours_of."""
    head = density.unit_vectors(answers["lat"], answers["lon"])
    wide = np.tile(normalisation.centre, (len(head), 1))
    places = neighbour_places(gallery, index)
    return posterior.mixture(head, similar, places, wide, normalisation.spread_km)


# ---------------------------------------------------------------- choices


def choose_lean(posterior: Posterior, asked: list[tuple]) -> Posterior:
    """The shares and counts of Posterior.lean with the least mean error on validation photos,
    from (prediction, gallery, photos, normalisation) of every trainer; time and altitude apart.

    Neighbours must earn it: a gain that is not clear of its own spread over the trainers (three
    standard errors) is luck, and the head's answer stays.
    """
    costs: dict[tuple, list[dict]] = {}
    for prediction, gallery, photos, normalisation in asked:
        index = neighbours_of(prediction, gallery)[1]
        labels = neighbour_labels(gallery, index, normalisation)
        for share, count in [(0.0, 1), *itertools.product(LEAN_SHARES, KNN_SIZES)]:
            tried = dataclasses.replace(posterior, time_share=share, time_count=count,
                                        altitude_share=share, altitude_count=count)  # fmt: skip
            answers = decode(tried.lean(prediction, labels), normalisation)
            errors = answer_errors(answers, photos)
            found = {head: mean_error(head, errors[head]) for head in ("time", "altitude")}
            costs.setdefault((share, count), []).append(found)
    chosen = {}
    for head in ("time", "altitude"):
        own = np.array([cost[head] for cost in costs[0.0, 1]])
        best, gain = (0.0, 1), 0.0
        for candidate, found in costs.items():
            gains = own - [cost[head] for cost in found]
            doubt = 3 * gains.std(ddof=1) / math.sqrt(len(gains)) if len(gains) > 1 else 0.0
            if gains.mean() > max(gain, doubt):
                best, gain = candidate, gains.mean()
        chosen[f"{head}_share"], chosen[f"{head}_count"] = best
    return dataclasses.replace(posterior, **chosen)


def evidence_for(prediction: dict, gallery: dict | None, photos: Photos, normalisation) -> tuple:
    """Of the photos with a position: the head's points, similarities and places of the neighbours,
    the centre of what was trained on, and the true positions, as Posterior.fit wants them."""
    rows = np.flatnonzero(photos.placed)
    answers = decode(prediction, normalisation)
    head = density.unit_vectors(answers["lat"][rows], answers["lon"][rows])
    similar, index = neighbours_of({"trunk": prediction["trunk"][rows]}, gallery)
    return (
        head,
        similar,
        neighbour_places(gallery, index),
        np.tile(normalisation.centre, (len(rows), 1)),
        density.unit_vectors(photos.lat[rows], photos.lon[rows]),
    )


def fit_densities(evidence: list[tuple], trained_on: list[Photos], spread: float) -> dict:
    """The posterior, and what it must beat: a kernel on the head's point alone, and the density of
    the training positions (its kernel_km), all chosen by likelihood on the same photos."""
    least = min(part[1].shape[1] for part in evidence)  # neighbours: galleries may be of any size
    head, similar, places, wide, truth = (np.concatenate(column) for column in zip(
        *((h, s[:, :least], p[:, :least], w, t) for h, s, p, w, t in evidence),
        strict=True))  # fmt: skip
    if not len(truth):  # nothing to choose by: the head as it is
        alone = Posterior(0.1, spread, 1.0, spread, "expected")
        return {"posterior": alone, "alone": alone, "kernel_km": spread}
    widths = spread * np.geomspace(1e-3, 1, 10)
    values = [
        np.concatenate(
            [
                positions_log_per_km2(photos, part[-1], width)
                for part, photos in zip(evidence, trained_on, strict=True)
            ]
        ).mean()
        for width in widths
    ]
    return {
        "posterior": Posterior.fit(head, similar, places, wide, truth, spread),
        "alone": Posterior.fit_kernels(head, similar[:, :0], places[:, :0], wide, truth, spread),
        "kernel_km": float(widths[int(np.argmax(values))]),
    }


def positions_log_per_km2(photos: Photos, at: np.ndarray, width_km: float) -> np.ndarray:
    """Log density at points (Q, 3) of the photos' positions (at most 2000 of them)."""
    rows = np.flatnonzero(photos.placed)
    rows = rows[:: max(1, len(rows) // 2000)]
    apart = density.arc_km(at[:, None], density.unit_vectors(photos.lat[rows], photos.lon[rows]))
    terms = density.kernel_log_per_km2(apart, width_km)
    return np.logaddexp.reduce(terms, axis=1) - math.log(len(rows))


def log_likelihoods(evidence: tuple, known: Photos, asked: Photos, choice: dict, spread: float):
    """Log density per km² at the true positions (Q,) of the three of fit_densities; NaN without."""
    found = {}
    head, similar, places, wide, truth = evidence
    alone = (head, similar[:, :0], places[:, :0], wide, truth)
    for name, values in (
        ("posterior", choice["posterior"].log_per_km2(*evidence, spread)),
        ("head", choice["alone"].log_per_km2(*alone, spread)),
        ("positions", positions_log_per_km2(known, truth, choice["kernel_km"])),
    ):
        found[name] = np.full(len(asked), np.nan)
        found[name][asked.placed] = values
    return found
