"""What the page of an evaluation draws: photos, answers and curves as plain columns.

In: held-out answers, metrics. Out: dicts and lists as JSON can hold them.
"""

from __future__ import annotations

import numpy as np

from geophoto.baselines import errors_of
from geophoto.findings import HEADS
from geophoto.maps import map_options
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.plots import TITLES
from geophoto.thumbnails import MOST


def page_data(models: dict, metrics: dict, names: list[str]) -> dict:
    """Everything that report.js draws, photos as columns in the order of `names`."""
    photos: dict = {"name": names}
    answers: dict = {}
    for model, (found, held, _) in models.items():
        row = {name: i for i, name in enumerate(held.names)}
        at = np.array([row.get(name, -1) for name in names])
        answers[model] = {k: columns(v, at) for k, v in answer_columns(found, held).items()}
        answers[model]["known"] = [bool(i >= 0) for i in at]
        for who in ("knn", "trivial"):
            errors = errors_of(found, held)[who]
            answers[model][who] = {head: columns(errors[head], at) for head in HEADS}
        for key, values in truth_columns(held).items():
            mine = columns(values, at)
            photos[key] = [a if a is not None else b
                           for a, b in zip(photos.get(key, mine), mine, strict=True)]  # fmt: skip
    lat, lon = (
        np.array([np.nan if v is None else v for v in photos[k]], float) for k in ("lat", "lon")
    )
    placed = np.isfinite(lat)
    return {
        "models": list(models), "titles": {name: TITLES[name] for name in models},
        "photos": photos, "answers": answers,
        "map": map_options(lat[placed], lon[placed]) if placed.any() else None,
        "risk": {head: {m: b[head]["risk_coverage"] for m, b in metrics.items() if b[head]["n"]}
                 for head in HEADS},
        "reliability": reliability_of(metrics),
    }  # fmt: skip


def answer_columns(found: dict, held) -> dict[str, np.ndarray]:
    """What the page tells of each answer, (N,) each."""
    own, errors = found["answers"], errors_of(found, held)["answers"]
    tagged = held.orientation >= 0
    seen = own["views"][np.arange(len(held)), np.maximum(held.orientation, 0)]
    guess = (seen + np.log(found["prior"])).argmax(axis=1)
    return {
        "lat": own["lat"], "lon": own["lon"], "r50": own["radius50_km"], "r90": own["radius90_km"],
        "sureGps": own["gps_confident"], "km": errors["gps"],
        "minutes": own["minutes"], "t50": own["time50_minutes"], "t90": own["time90_minutes"],
        "sureTime": own["time_confident"], "offMinutes": errors["time"],
        "altitude": own["altitude"], "a50": own["altitude50_m"], "a90": own["altitude90_m"],
        "sureAltitude": own["altitude_confident"], "offMetres": errors["altitude"],
        "strange": own["strangeness"], "orientation": class_names(guess, tagged),
    }  # fmt: skip


def truth_columns(held) -> dict[str, np.ndarray]:
    return {"lat": held.lat, "lon": held.lon, "minutes": held.minutes, "altitude": held.altitude,
            "orientation": class_names(held.orientation, held.orientation >= 0)}  # fmt: skip


def class_names(number: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.array(
        [ORIENTATION_CLASSES[n] if k else None for n, k in zip(number, known, strict=True)]
    )


def columns(values: np.ndarray, at: np.ndarray) -> list:
    """Values in the order of the page, None where there is none; seven digits are a centimetre."""

    def tell(value):
        if isinstance(value, float | np.floating):
            return float(f"{value:.7g}") if np.isfinite(value) else None
        return value.item() if isinstance(value, np.generic) else value

    return [tell(values[i]) if i >= 0 else None for i in at]


def reliability_of(metrics: dict) -> dict:
    """Curves and dots of the reliability charts, by head and model."""
    told: dict = {}
    for head, (title, *_) in HEADS.items():
        each = {}
        for model, block in metrics.items():
            found = block[head]
            if found["n"]:
                levels = [
                    [
                        x / 100,
                        found[f"coverage{x}"],
                        *(found[f"coverage{x}_interval"] or [None] * 2),
                    ]
                    for x in (50, 90)
                ]
                each[model] = {**found.get("reliability", {}), "levels": levels}
        if each:
            told[head] = {"title": title, "models": each}
    turned = {
        m: b["orientation"]["reliability"] for m, b in metrics.items() if b["orientation"]["n"]
    }
    if turned:
        told["orientation"] = {"title": "Orientation, six views", "models": turned}
    return told


def names_shown(models: dict) -> tuple[list[str], str]:
    """The photos of the page: all, or of more than MOST the best and worst and an even choice of
    the rest, with a sentence that says so."""
    names = sorted({name for _, held, _ in models.values() for name in held.names})
    if len(names) <= MOST:
        return names, ""
    found, held, _ = next(iter(models.values()))
    km = errors_of(found, held)["answers"]["gps"]
    order = [held.names[i] for i in np.argsort(np.nan_to_num(km, nan=np.inf), kind="stable")]
    most = MOST // 4
    chosen = set(order[:most]) | set(order[-most:])
    rest = [name for name in names if name not in chosen]
    chosen |= {rest[i] for i in np.linspace(0, len(rest) - 1, MOST - len(chosen)).astype(int)}
    return sorted(chosen), (
        f"{MOST} of {len(names)} photos are on this page: the best, the worst and an even choice "
        "of the rest; map, charts and gallery show these, the figures above count all. The "
        "others are in predictions.csv."
    )
