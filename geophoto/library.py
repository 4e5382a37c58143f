"""A whole library placed: what its pictures say, and where photos without a position were taken.

In: the table, a checkpoint where there is one. Out: DataFrames, one row a photo.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import density
from geophoto.photos import Photos
from geophoto.placing import LEAST_PLACED, VOICES, Answers, learn_to_place
from geophoto.records import plain_rows, tidy, write_geojson, write_rows
from geophoto.table import is_name
from geophoto.timelines import Shots, shots_of

if TYPE_CHECKING:
    import pandas as pd

CARRIERS = ("time", "time and picture", "picture", "day", "folder", "other photos")
SPOKEN = 0.2  # share of the density from which a voice is named

COLUMNS = {"filename": str, "latitude": float, "longitude": float, "radius50_km": float,
           "radius90_km": float, "confident": bool, "carried_by": str, "why": str,
           "altitude_m": float}  # fmt: skip

# ---------------------------------------------------------------- pictures


def see_pictures(
    shots: Shots, photos: Photos, checkpoint: dict, checkpoint_dir: Path, data_dir: Path,
    precision: str, certainty: float, bar: Callable, say: Callable[[str], None] = density.silent,
) -> tuple[Shots, np.ndarray, dict[str, dict]]:  # fmt: skip
    """The photos with what a model says of their pictures: of placed ones what it said when they
    were held out, of the others when asked now. Returns them, where the picture alone is confident
    (N,), and the records of those asked; a picture that cannot be read stays silent and is said."""
    from geophoto.predictions import Predictor, held_out_answers

    picture, radius = np.full((len(shots), 3), np.nan), np.full((len(shots), 2), np.nan)
    sure = np.zeros(len(shots), bool)
    held, kept = held_out_answers(checkpoint, photos, data_dir, precision, bar, say)
    row_of = {name: i for i, name in enumerate(shots.names)}
    rows = np.array([row_of[name] for name in kept.names], int)
    told = held["answers"]
    picture[rows] = density.unit_vectors(told["lat"], told["lon"])
    radius[rows] = np.stack([told["radius50_km"], told["radius90_km"]], axis=1)
    sure[rows] = told["gps_confident"]
    asked = [i for i in np.flatnonzero(~photos.placed).tolist() if photos.files[i].is_file()]
    records: dict[str, dict] = {}
    predictor = Predictor(checkpoint, checkpoint_dir, precision, certainty)
    raw, failed = predictor.look_at_all([photos.files[i] for i in asked], bar)
    for row, reason in failed.items():
        say(f"{shots.names[asked[row]]}: placed without its picture: {reason}")
    for row, found in zip(raw.get("rows", ()), predictor.answers(raw) if raw else (), strict=True):
        i = asked[row]
        records[shots.names[i]] = found
        if found["latitude"] is not None:
            picture[i] = density.unit_vectors(found["latitude"], found["longitude"])
            radius[i] = found["radius50_km"], found["radius90_km"]
    return dataclasses.replace(shots, picture=picture, radius=radius), sure, records


# ---------------------------------------------------------------- words


def time_words(seconds: float) -> str:
    """A time apart: 40 s, 12 min, 3 h, 5 days."""
    for unit, size, limit in (("s", 1, 60), ("min", 60, 3600), ("h", 3600, 48 * 3600)):
        if round(seconds / size) * size < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def distance_words(km: float) -> str:
    return f"{max(km * 1000, 1):.0f} m" if km < 0.9995 else density.distance_label(km)


def shift_words(seconds: float) -> str:
    minutes = round(abs(seconds) / 60)
    if not minutes:
        return "another camera"
    return f"another camera, clock corrected by {'−' if seconds < 0 else '+'}{minutes} min"


def reasons(shots: Shots, asked: np.ndarray, found: Answers) -> list[str]:
    """In words what carries each answer."""
    shares = by_carrier(found.carried)
    lines = []
    for i, row in enumerate(asked.tolist()):
        share, parts = dict(zip(CARRIERS, shares[i], strict=True)), []
        timed = share["time"] + share["time and picture"]
        if timed >= SPOKEN and found.near.row[i] >= 0:
            anchor, after = found.near, not found.near_after[i]
            apart = [
                density.arc_km(shots.places[side.row[i]], found.points[i])
                if side.row[i] >= 0 else np.inf
                for side in (found.near, found.far)
            ]  # fmt: skip
            if apart[1] < apart[0] / 2:
                anchor, after, apart = found.far, not after, apart[::-1]
            parts.append(
                f"{time_words(anchor.gap_s[i])} {'after' if after else 'before'} "
                f"{shots.names[anchor.row[i]]}"
                + (f" ({shift_words(anchor.shift_s[i])})" if anchor.other[i] else "")
                + f", {distance_words(float(apart[0]))}"
            )
        if np.isfinite(shots.radius[row, 0]):
            km = density.arc_km(shots.picture[row], found.points[i])
            says = "agrees" if km <= shots.radius[row, 1] else "disagrees"
            parts.append(f"picture {says}" if parts else f"picture alone {says}")
        parts += [f"same {name}" for name in ("day", "folder") if share[name] >= SPOKEN]
        lines.append("; ".join(parts) or "nothing but where the other photos were taken")
    return lines


def by_carrier(carried: np.ndarray) -> np.ndarray:
    """Shares (Q, V) of the voices, summed by CARRIERS, (Q, 6)."""
    carrier = [
        "time and picture" if name in ("time and picture", "all")
        else name.split()[0] if name.split()[0] in ("picture", "day", "folder")
        else "other photos" if name.startswith(("anywhere", "floor"))
        else "time"
        for name in VOICES
    ]  # fmt: skip
    member = np.array([[one == name for name in CARRIERS] for one in carrier], float)
    return carried @ member


# ---------------------------------------------------------------- placing


def library_of(table: pd.DataFrame, photos: Photos) -> tuple[Shots, np.ndarray]:
    """The photos of a table for placing, and the rows to be placed: readable, and without a
    position or with one that is doubted. Ends the run where too few have one."""
    count = int(photos.placed.sum())
    if count < LEAST_PLACED:
        density.stop(
            f"{count} photos of the table have a position; to place others takes {LEAST_PLACED}"
        )
    readable = (table["status"] != "unreadable").to_numpy()
    return shots_of(table, photos), np.flatnonzero(readable & ~photos.placed)


def place_library(shots: Shots, asked: np.ndarray, records: dict[str, dict] | None = None):
    """Place the rows `asked`: a DataFrame with position, radii (km), whether confident, what
    carries the answer, and in words why; `records` are what a model says of their pictures."""
    import pandas as pd

    placer = learn_to_place(shots, np.isfinite(shots.places[:, 0]))
    rows = placed_rows(shots, asked, placer.answer(asked), records or {}) if len(asked) else []
    plain = [{name: tidy(value) for name, value in row.items()} for row in rows]
    placed = pd.DataFrame(plain, columns=list(COLUMNS)).astype({"altitude_m": float})
    placed.attrs["clocks"] = clock_lines(placer.timeline)
    return placed


def placed_rows(shots: Shots, asked: np.ndarray, found: Answers, records: dict) -> list[dict]:
    """A record of each answer."""
    lat, lon = density.lat_lon(found.points)
    carrier, words = by_carrier(found.carried), reasons(shots, asked, found)
    rows = []
    for i, row in enumerate(asked.tolist()):
        told = records.get(shots.names[row], {})
        high = told.get("altitude_m") if told.get("altitude_confident") else None
        rows.append({
            "filename": shots.names[row], "latitude": lat[i], "longitude": lon[i],
            "radius50_km": found.half_km[i], "radius90_km": found.most_km[i],
            "confident": bool(found.confident[i]), "carried_by": CARRIERS[carrier[i].argmax()],
            "why": words[i], "altitude_m": high,
        })  # fmt: skip
    return rows


def clock_lines(timeline) -> list[str]:
    """What was found of every two cameras' clocks, once a pair."""
    names, lines = timeline.shots.cameras, []
    for (one, other), clock in sorted(timeline.clocks.items()):
        if one > other or not clock.matched:
            continue
        pair = f"{names[one] or 'no name'} and {names[other] or 'no name'}"
        if timeline.together(one, other):
            minutes, way = abs(clock.shift_s) / 60, "behind" if clock.shift_s > 0 else "ahead"
            lines.append(f"{pair}: together, {clock.matched} photos; "
                         f"the first clock is {minutes:.1f} min {way}")  # fmt: skip
        else:
            lines.append(f"{pair}: not together ({clock.matched} photos near in time), "
                         "neither places the other")  # fmt: skip
    return lines


# ---------------------------------------------------------------- files


def write_placed(output_dir: Path, placed: pd.DataFrame, report: pd.DataFrame, model: str) -> None:
    """placed.csv, .geojson and .json; the last with the report of hidden positions."""
    rows = plain_rows(placed)
    write_rows(output_dir / "placed.csv", rows)
    write_geojson(output_dir / "placed.geojson", rows)
    content = {"model": model, "clocks": placed.attrs["clocks"], "photos": rows,
               "report": plain_rows(report)}  # fmt: skip
    with density.write_atomically(output_dir / "placed.json", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False, allow_nan=False)


def read_placed(path: Path) -> tuple[pd.DataFrame, str]:
    """The answers of placed.json, and what they were made by; ends the run without."""
    import pandas as pd

    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        placed = pd.DataFrame(content["photos"], columns=list(COLUMNS))
        placed = placed.astype({n: kind for n, kind in COLUMNS.items() if kind is not str})
        sound = placed["latitude"].between(-90, 90) & placed["longitude"].between(-180, 180)
        if not (sound & (placed["radius90_km"] > 0)).all() or not all(
            map(is_name, placed["filename"])
        ):
            raise ValueError("a row without a file, a place or a radius")
        return placed, str(content["model"])
    except FileNotFoundError:
        density.stop(f"no {path}: run python evaluate_gps_model.py --place first")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        density.stop(f"{path} cannot be read ({error}): run --place again")
