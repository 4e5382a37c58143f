"""The table of photos, exif_data.json and .csv: columns, writer, readers, rows still valid.

In: rows as dicts. Out: files, records one by one, or a DataFrame.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from density import stop, write_atomically
from geophoto.clocks import utc_text

if TYPE_CHECKING:
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
TABLE_FORMAT = 4  # raised when the same bytes would give other rows: old rows are then read again

# ---------------------------------------------------------------- write

encode_record = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


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
        before = "[\n"
        for record, row in records:
            table.write(before + record)
            writer.writerow([harmless_cell(row[column]) for column in COLUMNS])
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
        if file.readline() == "[\n" and file.read(13) == '{"filename": ':
            file.seek(2)
            while (line := file.readline().strip().rstrip(",")) != "]":
                yield json.loads(line)
            return
        file.seek(0)
        yield from json.load(file)


def read_table(data_dir: str | Path, image_dir: str | Path | None = None) -> pd.DataFrame:
    """Read exif_data.json with exactly COLUMNS: numbers as float64 (NaN), texts as object (None).

    Without a usable table the run ends with exit code 2 and says what to run.
    """
    import pandas as pd

    path = Path(data_dir, "exif_data.json")
    again = f"python exif_extractor.py --data-dir {data_dir}" + (
        f" --image-dir {image_dir}" if image_dir else ""
    )
    columns: dict[str, list] = {column: [] for column in COLUMNS}
    try:
        for record in read_records(path):
            for column, values in columns.items():
                values.append(record[column])
    except FileNotFoundError:
        stop(f"no table of photos: {path} does not exist; run: {again}")
    except KeyError as error:
        stop(f"{path} lacks the column {error}; run: {again} --overwrite")
    except (ValueError, TypeError, AttributeError, OSError) as error:
        stop(f"{path} cannot be read ({error}); run: {again} --overwrite")
    return pd.DataFrame(
        {
            column: pd.Series(values, dtype=object if column in TEXT_COLUMNS else "float64")
            for column, values in columns.items()
        }
    )


# ---------------------------------------------------------------- known


class Known:
    """Rows written earlier, in order of name: the last table, or the journal of a killed run."""

    RETRY = ("cannot_open", "out_of_memory", "reader_died", "reader_timeout")

    def __init__(self, path: Path) -> None:
        self.path, self.lines = path, self._lines(path)
        self.current = next(self.lines, None)

    @staticmethod
    def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
        """Yield (name, "size, mtime" as written, the record's text)."""
        with open(path, encoding="utf-8", errors="replace") as file:
            next(file, None)  # "[" or the header of a journal
            for line in file:
                if not line.endswith("\n") or line[0] != "{":
                    return  # a line cut by a kill, or the end
                line = line.rstrip(",\n")
                name = line[14 : line.index('", "status": ')]
                if "\\" in name:
                    name = json.loads(f'"{name}"')
                yield name, line[line.rindex('"file_size": ') :], line

    def find(self, name: str) -> tuple[str, str] | None:
        """Names must be asked for in order; they may be skipped."""
        while self.current and self.current[0] < name:
            self.current = next(self.lines, None)
        if self.current and self.current[0] == name:
            return self.current[1:]
        return None


def file_stamp(path: str) -> str | None:
    """Size and time of a file, as they end its record."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return f'"file_size": {about.st_size}, "file_mtime": "{utc_text(about.st_mtime_ns)}"}}'


def reusable_record(name: str, path: str, known: list[Known]) -> str | None:
    """The record text of a file that has not changed since it was read."""
    stamp = None
    for rows in known:
        found = rows.find(name)
        if found:
            stamp = stamp or file_stamp(path)
            if found[0] == stamp and '"status": "unreadable"' not in found[1]:
                return found[1]
            if found[0] == stamp and not any(code in found[1] for code in Known.RETRY):
                return found[1]
    return None
