"""Photos and their labels as arrays, and the folds that they are dealt into.

In: the table. Out: Photos, arrays of length N; fold numbers (N,).
"""

from __future__ import annotations

import dataclasses
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import density
from geophoto.clocks import is_doubtful
from geophoto.orientations import ORIENTATION_CLASSES, known_tag
from geophoto.pictures import photo_file
from geophoto.positions import ALTITUDES
from geophoto.table import read_table

if TYPE_CHECKING:
    import pandas as pd

LEAST_PHOTOS = 10  # fewer cannot be split; below FEW_PHOTOS a warning is due
FEW_PHOTOS = 100

# ---------------------------------------------------------------- labels


@dataclasses.dataclass
class Photos:
    """Rows of the table that can teach something, as arrays of length N."""

    names: list[str]
    lat: np.ndarray  # degrees, NaN = unknown, as in every float array here
    lon: np.ndarray
    minutes: np.ndarray  # local time of day, 0 ≤ m < 1440
    altitude: np.ndarray  # metres
    sun: np.ndarray  # elevation of the sun in degrees
    orientation: np.ndarray  # index into ORIENTATION_CLASSES, -1 without an explicit tag
    seconds: np.ndarray  # instant in seconds, UTC where known, for bursts
    camera: np.ndarray
    files: list[Path]
    tag: np.ndarray = None  # type: ignore[assignment]  # EXIF orientation, 0 = none: which way pixels are turned upright
    sha256: np.ndarray = None  # type: ignore[assignment]  # of the files, "" = not known
    group: np.ndarray = None  # type: ignore[assignment]  # of the split; each its own until then

    def __post_init__(self) -> None:
        if self.tag is None:
            self.tag = np.zeros(len(self.names), int)
        if self.sha256 is None:
            self.sha256 = np.full(len(self.names), "", object)
        if self.group is None:
            self.group = np.arange(len(self.names))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def placed(self) -> np.ndarray:
        return np.isfinite(self.lat)

    @property
    def folders(self) -> list[str]:
        return [name.rpartition("/")[0] for name in self.names]

    def take(self, rows: np.ndarray) -> Photos:
        values: dict[str, Any] = {
            name: value[rows] if isinstance(value, np.ndarray) else [value[i] for i in rows]
            for name, value in vars(self).items()
        }
        return Photos(**values)


def photos_of(table: pd.DataFrame, image_dir: Path) -> Photos:
    """Every row of the table with its labels; the time is that of the place, where it is known.

    A position or altitude that the extractor doubts or this tool estimated is none, nor is a date
    before the first photograph or after next year.
    """
    warned = table["warnings"].fillna("").str.split(";")
    distrust = warned.map(lambda codes: any(code in density.DOUBTED_POSITION for code in codes))
    estimated = table["gps_source"] == "estimate"
    distrust |= estimated
    unlikely = warned.map(lambda codes: "altitude_doubtful" in codes) | estimated
    unlikely |= ~table["gps_altitude"].between(*ALTITUDES)
    local = [read_moment(text) for text in table["datetime"]]
    there = [read_moment(text) for text in table["datetime_at_place"]]
    clocks = [at_place or here for at_place, here in zip(there, local, strict=True)]
    seconds, camera = shots_of_cameras(table)
    tagged = table["orientation"].where(table["orientation_tag"].notna())
    files = [photo_file(image_dir, name) for name in table["filename"]]
    return Photos(
        names=list(table["filename"]),
        lat=table["gps_latitude"].where(~distrust).to_numpy(float),
        lon=table["gps_longitude"].where(~distrust).to_numpy(float),
        minutes=np.array([minutes_of_day(moment) for moment in clocks], float),
        altitude=table["gps_altitude"].where(~unlikely).to_numpy(float),
        sun=table["sun_elevation_deg"].where(~distrust).to_numpy(float),
        orientation=tagged.map({c: i for i, c in enumerate(ORIENTATION_CLASSES)})
        .fillna(-1)
        .to_numpy(int),
        seconds=seconds,
        camera=camera,
        files=files,
        tag=np.array([known_tag(value) for value in table["orientation_tag"]], int),
    )


def shots_of_cameras(table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Of every row the instant in seconds, UTC where it is known (NaN = unknown), and the camera:
    what bursts are found by."""
    both = zip(table["datetime_utc"], table["datetime"], strict=True)
    instants = [read_moment(utc, in_utc=True) or read_moment(local) for utc, local in both]
    camera = table["camera_make"].fillna("") + " " + table["camera_model"].fillna("")
    seconds = np.array([seconds_since_1970(moment) for moment in instants], float)
    return seconds, camera.to_numpy(str)


def read_moment(text: str | None, in_utc: bool = False) -> datetime | None:
    """The wall clock of an ISO 8601 date with time of day, or that of UTC by the offset it carries;
    None for any other text and for years in which nobody took photos.

    One by one in plain datetime: pandas holds the years 1678 to 2261 only, and any other ends it.
    """
    if text is None or ":" not in text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if is_doubtful(moment):
        return None
    return (moment.astimezone(UTC) if in_utc and moment.tzinfo else moment).replace(tzinfo=None)


def minutes_of_day(moment: datetime | None) -> float:
    if moment is None:
        return math.nan
    seconds = 3600 * moment.hour + 60 * moment.minute + moment.second
    return (seconds + moment.microsecond / 1e6) / 60


def seconds_since_1970(moment: datetime | None) -> float:
    return math.nan if moment is None else (moment - datetime(1970, 1, 1)).total_seconds()


def read_photos(data_dir: Path, image_dir: Path) -> tuple[Photos, dict[str, int]]:
    """Read the table; returns the photos with at least one label and the counts of the rest."""
    table = read_table(data_dir)
    every = photos_of(table, image_dir)
    readable = (table["status"] != "unreadable").to_numpy()
    present = np.array([os.path.isfile(file) for file in every.files], bool)  # raises nowhere
    labelled = (
        every.placed
        | np.isfinite(every.minutes)
        | np.isfinite(every.altitude)
        | (every.orientation >= 0)
    )
    left_out = {
        "unreadable": int((~readable).sum()),
        "file is gone": int((readable & ~present).sum()),
        "no label": int((readable & present & ~labelled).sum()),
    }
    if unusable := unusable_cells(table):
        left_out["unusable cells of the table"] = unusable
    return every.take(np.flatnonzero(readable & present & labelled)), left_out


def unusable_cells(table: pd.DataFrame) -> int:
    """How many cells of the table hold something, and yet no label: read_table's, and dates."""
    dates = [*table["datetime"].dropna(), *table["datetime_at_place"].dropna()]
    return sum(table.attrs["unusable"].values()) + sum(read_moment(t) is None for t in dates)


# ---------------------------------------------------------------- split


def split_photos(photos: Photos, kind: str, folds: int, seed: int) -> tuple[np.ndarray, dict]:
    """Deal photos into folds 0..folds-1 by whole groups, largest group first into the smallest
    fold; returns the fold of each photo and what the checkpoint keeps about the split."""
    groups, radius_km, by = density.group_for_split(
        photos.lat, photos.lon, photos.seconds, photos.camera, photos.folders, 2 * folds
    )
    rng = np.random.default_rng(seed)
    units = groups if kind == "grouped" else np.arange(len(photos))
    sizes = np.bincount(units)
    order = rng.permutation(len(sizes))
    order = order[np.argsort(-sizes[order], kind="stable")]
    fold_of_unit = np.zeros(len(sizes), int)
    filled = np.zeros(folds)
    for unit in order:
        fold_of_unit[unit] = int(filled.argmin())
        filled[filled.argmin()] += sizes[unit]
    about = {
        "kind": kind,
        "radius_km": radius_km,
        "by": by,
        "groups": groups.tolist(),
        "group_count": int(groups.max()) + 1,
        "largest_group": int(np.bincount(groups).max()),
        "names": photos.names,
    }
    return fold_of_unit[units], about


def describe_groups(split: dict) -> str:
    """What makes photos one group, in words."""
    radius_km = split["radius_km"]
    if split["by"] == "bursts" and split["group_count"] == len(split["names"]):
        return "each photo its own: neither place nor time tells them apart, which flatters"
    return {
        "place": f"within {radius_km * 1000:g} m or one burst",
        "days": "of one day: no distance separates them",
        "gaps": f"less than {density.GAP_HOURS} hours apart: no distance separates them",
        "bursts": "in one burst",
        "stretches": "of one stretch of a single burst: neighbours at the cuts are alike, which "
        "flatters, though less than a random split",
    }[split["by"]]
