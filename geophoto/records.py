"""Flat records of answers for people and other programs: CSV, JSON and GeoJSON.

In: held-out answers, Photos, frames. Out: dicts of plain values, files.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import density
from geophoto.baselines import errors_of
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.table import harmless_cell

if TYPE_CHECKING:
    import pandas as pd

NAMED_KM = 50  # a town farther away than this names no place


def groups_of(checkpoint: dict, names: list[str]) -> np.ndarray:
    """Group number of each photo as the split saw it."""
    group = dict(zip(checkpoint["split"]["names"], checkpoint["split"]["groups"], strict=True))
    return np.unique([group[name] for name in names], return_inverse=True)[1]


def prediction_rows(name: str, found: dict, photos, groups: np.ndarray) -> list[dict]:
    """One flat record per held-out photo: truth, answer, error and baselines; empty = unknown."""
    answers = found["answers"]
    errors = errors_of(found, photos)
    views = answers["views"]
    rows = []
    for i, filename in enumerate(photos.names):
        tag = photos.orientation[i]
        guess = views[i, max(tag, 0)] + np.log(found["prior"][i])
        row = {
            "filename": filename,
            "model": name,
            "group": int(groups[i]),
            "true_latitude": photos.lat[i],
            "true_longitude": photos.lon[i],
            "latitude": answers["lat"][i],
            "longitude": answers["lon"][i],
            "radius50_km": answers["radius50_km"][i],
            "radius90_km": answers["radius90_km"][i],
            "position_confident": answers["gps_confident"][i],
            "error_km": errors["answers"]["gps"][i],
            "knn_error_km": errors["knn"]["gps"][i],
            "true_time": clock(photos.minutes[i]),
            "time": clock(answers["minutes"][i]),
            "time50_minutes": answers["time50_minutes"][i],
            "time90_minutes": answers["time90_minutes"][i],
            "time_confident": answers["time_confident"][i],
            "error_minutes": errors["answers"]["time"][i],
            "true_sun_elevation_deg": photos.sun[i],
            "sun_elevation_deg": answers["sun"][i],
            "true_altitude_m": photos.altitude[i],
            "altitude_m": answers["altitude"][i],
            "altitude50_m": answers["altitude50_m"][i],
            "altitude90_m": answers["altitude90_m"][i],
            "altitude_confident": answers["altitude_confident"][i],
            "error_m": errors["answers"]["altitude"][i],
            "strangeness": answers["strangeness"][i],
            "true_orientation": ORIENTATION_CLASSES[tag] if tag >= 0 else None,
            "orientation": ORIENTATION_CLASSES[int(guess.argmax())] if tag >= 0 else None,
        }
        rows.append({k: tidy(v) for k, v in row.items()})
    return rows


def tidy(value):
    """Plain Python values; NaN becomes None; numbers keep nine significant digits."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def plain(value):
    """Nested dicts with tidy values, as JSON can hold them."""
    return {k: plain(v) for k, v in value.items()} if isinstance(value, dict) else tidy(value)


def plain_rows(frame: pd.DataFrame) -> list[dict]:
    """Rows of a DataFrame as plain values, None where nothing is known."""
    rows = frame.to_dict("records")
    return [{str(name): tidy(value) for name, value in row.items()} for row in rows]


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write records as CSV (RFC 4180, UTF-8), text that a spreadsheet would run made harmless."""
    with density.write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["filename"], restval="")
        writer.writeheader()
        writer.writerows({k: harmless_cell(v) for k, v in row.items()} for row in rows)


# ---------------------------------------------------------------- places


def place_names(places: list[list[tuple]]) -> list[list[str | None]]:
    """The nearest town of each place (lat, lon, probability), by the package reverse_geocode; None
    without the package, and where the town is more than NAMED_KM away."""
    flat = [(lat, lon) for each in places for lat, lon, _ in each]
    names: list[str | None] = [None] * len(flat)
    if flat and importlib.util.find_spec("reverse_geocode"):
        towns = importlib.import_module("reverse_geocode").search(flat)
        for i, ((lat, lon), town) in enumerate(zip(flat, towns, strict=True)):
            away = density.distance_km(lat, lon, town["latitude"], town["longitude"])
            names[i] = f"{town['city']}, {town['country_code']}" if away <= NAMED_KM else None
    left = iter(names)
    return [[next(left) for _ in each] for each in places]


def place_rows(places: list[tuple], names: list[str | None]) -> list[dict]:
    """Places as plain values, the name where there is one."""
    return [
        {"latitude": lat, "longitude": lon, "probability": chance}
        | ({"near": name} if name else {})
        for (lat, lon, chance), name in zip(places, names, strict=True)
    ]


def places_text(places: list[dict]) -> str:
    """Places in one line: "46.51000 7.22000 61 % (Bulle, CH); …"."""
    return "; ".join(
        f"{one['latitude']:.5f} {one['longitude']:.5f} {one['probability'] * 100:.0f} %"
        + (f" ({one['near']})" if "near" in one else "")
        for one in places
    )


# ---------------------------------------------------------------- files


def write_json(path: Path, content: dict) -> None:
    with density.write_atomically(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)


def write_geojson(path: Path, rows: list[dict]) -> None:
    """Write one point per prediction and, where the truth is known, a line from it (RFC 7946)."""

    def features() -> Iterator[dict]:
        for row in rows:
            place = [row["longitude"], row["latitude"]]
            rest = {k: v for k, v in row.items() if k not in ("longitude", "latitude")}
            yield feature("Point", place, {**rest, "kind": "prediction"})
            if row.get("true_latitude") is not None:
                truth = [row["true_longitude"], row["true_latitude"]]
                about = {"filename": row["filename"], "kind": "error", "error_km": row["error_km"]}
                yield feature("LineString", [truth, place], about)

    with density.write_atomically(path, "w", encoding="utf-8") as file:
        before = '{"type": "FeatureCollection", "features": ['
        for found in features():  # one by one: memory does not grow with their number
            file.write(before + json.dumps(found, ensure_ascii=False))
            before = ", "
        file.write("]}" if rows else before + "]}")


def feature(kind: str, coordinates: list, properties: dict) -> dict:
    known = None not in coordinates  # RFC 7946, 3.2: a feature without place has a null geometry
    geometry = {"type": kind, "coordinates": coordinates} if known else None
    return {"type": "Feature", "geometry": geometry, "properties": properties}


def clock(minutes: float) -> str | None:
    """HH:MM of minutes since midnight."""
    if not math.isfinite(minutes):
        return None
    whole = round(minutes) % 1440
    return f"{whole // 60:02d}:{whole % 60:02d}"
