"""The table of photos, exif_data.json and .csv: columns, writer, readers, rows still valid.

In: rows as dicts. Out: files, records one by one, or a DataFrame.
"""

from __future__ import annotations

import contextlib
import csv
import heapq
import json
import math
import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from density import stop, write_atomically

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

COLUMNS = (
    "filename", "status", "warnings", "datetime", "utc_offset_minutes", "datetime_utc",
    "utc_source", "gps_latitude", "gps_longitude", "gps_source", "gps_altitude", "gps_accuracy_m",
    "gps_img_direction", "datetime_at_place", "sun_elevation_deg", "sun_azimuth_deg", "orientation",
    "orientation_tag", "camera_make", "camera_model", "lens_model", "focal_length_mm",
    "focal_length_35mm", "exposure_time_s", "f_number", "iso", "image_width", "image_height",
    "file_size", "file_mtime",
)  # fmt: skip
TEXT_COLUMNS = ("filename", "status", "warnings", "datetime", "datetime_utc", "utc_source",
                "gps_source", "datetime_at_place", "orientation", "camera_make", "camera_model",
                "lens_model", "file_mtime")  # fmt: skip
LIMITS = {"gps_latitude": (-90, 90), "gps_longitude": (-180, 180), "sun_elevation_deg": (-90, 90)}
FREE_TEXTS = ("filename", "camera_make", "camera_model", "lens_model")  # all others are our own
TABLE_FORMAT = 4  # raised when the same bytes would give other rows: old rows are then read again

# ---------------------------------------------------------------- write

encode_record = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


cells_of = operator.itemgetter(*COLUMNS)


def harmless_cell(value: Any) -> Any:
    """A CSV cell that no spreadsheet runs as a formula: such text gets a leading apostrophe."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return "'" + value
    return value


def write_table(records: Iterable[tuple[str, dict]], data_dir: Path) -> None:
    """Write (record as JSON, the same as a row) to exif_data.json, one a line, and exif_data.csv.

    Records may come from a generator: memory does not grow with their number.
    """
    with (
        write_atomically(data_dir / "exif_data.json", "w", encoding="utf-8", newline="\n") as table,
        write_atomically(data_dir / "exif_data.csv", "w", encoding="utf-8", newline="") as sheet,
    ):
        writer = csv.writer(sheet, lineterminator="\r\n")
        writer.writerow(COLUMNS)
        free = [COLUMNS.index(column) for column in FREE_TEXTS]
        before = "[\n"
        for record, row in records:
            table.write(before + record)
            cells = [*cells_of(row)]
            for place in free:
                cells[place] = harmless_cell(cells[place])
            writer.writerow(cells)
            before = ",\n"
        table.write("[]\n" if before == "[\n" else "\n]\n")


def write_positions(data_dir: str | Path) -> Path:
    """Write the positions of the table as points (RFC 7946), for QGIS or geojson.io."""
    path = Path(data_dir, "exif_data.geojson")
    with write_atomically(path, "w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        before = "\n"
        for row in read_records(Path(data_dir, "exif_data.json")):
            place = [row.pop("gps_longitude"), row.pop("gps_latitude")]
            if place[0] is None or place[1] is None:
                continue
            if row["gps_altitude"] is not None:
                place.append(row["gps_altitude"])
            row = {key: value for key, value in row.items() if value is not None}
            feature = {
                "type": "Feature",
                "geometry": {"type": "Point", "coordinates": place},
                "properties": row,
            }
            file.write(before + encode_record(feature))
            before = ",\n"
        file.write("\n]}\n")
    return path


# ---------------------------------------------------------------- read


def read_records(path: Path) -> Iterator[dict]:
    """Yield the records of a table, line by line where they were written so."""
    with open(path, encoding="utf-8") as file:
        by_line = file.readline() == "[\n" and file.readline().startswith('{"')
        file.seek(0)
        if not by_line:
            yield from json.load(file)
            return
        file.readline()
        while (line := file.readline().strip().rstrip(",")) != "]":
            yield json.loads(line)


def read_table(data_dir: str | Path, image_dir: str | Path | None = None) -> pd.DataFrame:
    """Read exif_data.json with exactly COLUMNS: numbers as float64 (NaN), texts as object (None).

    Without a usable table the run ends with exit code 2 and says what to run. No row ends it: cells
    that cannot be what their column says (a word for a number, a latitude of 999) are empty, rows
    that name no file are left out, and `attrs["unusable"]` counts both by column.
    """
    import numpy as np
    import pandas as pd

    path = Path(data_dir, "exif_data.json")
    again = f"python exif_extractor.py --data-dir {data_dir}" + (
        f" --image-dir {image_dir}" if image_dir else ""
    )
    cells: dict[str, list] = {column: [] for column in COLUMNS}
    unusable: Counter[str] = Counter()
    try:
        for record in read_records(path):
            if not is_name(record["filename"]):
                unusable["filename"] += 1
                continue
            for column, values in cells.items():
                values.append(record[column])
    except FileNotFoundError:
        stop(f"no table of photos: {path} does not exist; run: {again}")
    except KeyError as error:
        stop(f"{path} lacks the column {error}; run: {again} --overwrite")
    except (ValueError, TypeError, AttributeError, OSError, RecursionError) as error:
        stop(f"{path} cannot be read ({error}); run: {again} --overwrite")
    columns: dict[str, Any] = {}
    for column, values in cells.items():
        if column in TEXT_COLUMNS:
            found = pd.Series([v if isinstance(v, str) else None for v in values], dtype=object)
            lost = found.isna().to_numpy()
        else:
            found = to_numbers(values)
            low, high = LIMITS.get(column, (-math.inf, math.inf))
            found[(found < low) | (found > high)] = math.nan
            lost = np.isnan(found)
        if lost.any():
            lost = lost & [value is not None for value in values]
            unusable[column] += int(lost.sum())
        columns[column] = found
    nowhere = np.isnan(columns["gps_latitude"]) | np.isnan(columns["gps_longitude"])
    for column in ("gps_latitude", "gps_longitude"):
        columns[column][nowhere] = math.nan  # half a position is none
    table = pd.DataFrame(columns)
    table.attrs["unusable"] = +unusable
    return table


def is_name(value: Any) -> bool:
    """Whether a cell names a file below the photo folder; anything else could not be looked for."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    try:
        value.encode()  # lone surrogates are no characters
    except UnicodeEncodeError:
        return False
    return not value.startswith("/") and ".." not in value.split("/")


def to_numbers(values: list) -> np.ndarray:
    """Cells of a column as float64 (N,); NaN for whatever is no finite number."""
    import numpy as np

    try:
        found = np.array(values, float)
    except (ValueError, TypeError, OverflowError):
        found = np.zeros(0)
    if found.shape != (len(values),):
        found = np.array([to_number(value) for value in values], float)
    found[~np.isfinite(found)] = np.nan
    return found


def to_number(value: Any) -> float:
    try:
        return float(value)
    except (ValueError, TypeError, OverflowError):  # a word, a list, an integer of 400 digits
        return math.nan


# ---------------------------------------------------------------- known

PASSING = ("cannot_open", "out_of_memory", "reader_died", "reader_timeout")  # tried again next time


def stamp_of(about: os.stat_result) -> list[int]:
    """What tells a file from its earlier self: bytes, mtime and inode change time in ns."""
    return [about.st_size, about.st_mtime_ns, about.st_ctime_ns]


def stamp_beside(paths: Iterable[str]) -> list:
    """[name, *stamp_of(file), …] of the files beside a photo, without those that are gone."""
    stamp: list = []
    for path in filter(None, paths):
        with contextlib.suppress(OSError):
            stamp += [os.path.basename(path), *stamp_of(os.stat(path))]
    return stamp


def _stamp(name: str, paths: tuple[str, ...]) -> list:
    """[name, *stamp_of(photo), *stamp_beside(it)]; what is gone equals nothing."""
    try:
        return [name, *stamp_of(os.stat(paths[0])), *stamp_beside(paths[1:])]
    except OSError:
        return [name, None]


class Memory:
    """What earlier runs with the same settings left beside the table: its rows are used again.

    Each row has a stamp, [name, size, mtime, change time] and the same of the files beside the
    photo; equal stamps, equal rows. Stamps of the table stand in a file line by line, a small state
    says which table they belong to, and journals of killed runs hold lines [stamp, row]. Nothing
    here grows in memory with the photos.
    """

    def __init__(self, data_dir: Path, settings: dict) -> None:
        self.folder, self.settings, self.table = data_dir, settings, data_dir / "exif_data.json"
        self.stamps, self.state = data_dir / ".exif_data.stamps", data_dir / ".exif_data.state.json"

    def journals(self) -> list[Path]:
        return sorted(self.folder.glob(".exif_data.*.journal"))

    def next_journal(self) -> Path:
        """A file for the fresh rows of a run, should it be killed; begins with the settings."""
        return self.folder / f".exif_data.{1 + len(self.journals()):04d}.journal"

    def _made(self) -> list:
        return [self.settings, *stamp_of(os.stat(self.table))[:2]]

    def result(self) -> dict | None:
        """What the last run noted, if it had these settings and the table is still its own."""
        try:
            state = json.loads(self.state.read_text(encoding="utf-8"))
            return state["result"] if state["made"] == self._made() else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def keep(self, result: dict) -> None:
        with write_atomically(self.state, "w", encoding="utf-8") as file:
            json.dump({"made": self._made(), "result": result}, file)
        for journal in self.journals():
            journal.unlink()

    def forget(self) -> None:
        for file in (self.state, *self.journals()):
            file.unlink(missing_ok=True)

    def unchanged(self, files: Iterable[tuple[str, tuple[str, ...]]]) -> bool:
        """Whether the table's rows are those of the files (name, paths), and none has changed."""
        try:
            with open(self.stamps, encoding="utf-8") as stamps:
                pairs = zip(files, stamps, strict=True)
                same = all(_stamp(*file) == json.loads(stamp) for file, stamp in pairs)
            return same and self.table.with_suffix(".csv").exists()
        except (OSError, ValueError):
            return False

    def rows(
        self, files: Iterable[tuple[str, tuple[str, ...]]]
    ) -> Iterator[tuple[str, tuple[str, ...], dict | None, list]]:
        """Yield (name, paths, row if no file has changed, its stamp) in order of name."""
        sources = [self._journal_rows(path) for path in self.journals()]
        if self.result():
            sources.append(self._table_rows())
        known = heapq.merge(*map(_sound, sources), key=lambda pair: pair[0][0])
        old = next(known, None)
        for name, paths in files:
            row: dict | None = None
            stamp: list = []
            while old and old[0][0] <= name:
                if old[0][0] == name:
                    stamp = stamp or _stamp(name, paths)
                    row = old[1] if old[0] == stamp else row
                old = next(known, None)
            yield name, paths, row, stamp

    def _table_rows(self) -> Iterator[tuple[list, dict]]:
        with open(self.stamps, encoding="utf-8") as stamps:
            yield from zip(map(json.loads, stamps), read_records(self.table), strict=True)

    def _journal_rows(self, path: Path) -> Iterator[tuple[list, dict]]:
        with open(path, encoding="utf-8") as lines:
            if json.loads(lines.readline()) == self.settings:
                yield from map(json.loads, lines)


def _sound(pairs: Iterator[tuple[list, dict]]) -> Iterator[tuple[list, dict]]:
    """Stamps and rows up to where a kill or a crash spoiled their file."""
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError):
        for stamp, row in pairs:
            if stamp[0] != row["filename"]:
                return
            yield stamp, row
