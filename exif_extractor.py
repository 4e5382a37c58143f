"""Where, when and how each photo was taken: one table row per image file, from its header and the
XMP sidecar or Google Takeout file beside it.

Reads data/images/ (any tree of JPEG, PNG, BMP, TIFF, WebP, AVIF and HEIC files; never changes one),
writes data/exif_data.json and data/exif_data.csv. Unchanged files are not read again. What every
column, source and warning means: data/README.md.

    python exif_extractor.py
    python exif_extractor.py --image-dir ~/Pictures --data-dir trip --geojson
"""

import argparse
import functools
import itertools
import json
import math
import os
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from density import (
    EARTH_RADIUS_KM,
    named_in_errors,
    next_command,
    one_line_for_files,
    progress,
    run_script,
    stop,
    sweep_temporaries,
    trusted_position,
    write_atomically,
)
from geophoto.clocks import lacks_zone, zone_offset, zones_missing
from geophoto.labels import finish_row
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.pictures import Listing, scan
from geophoto.readers import read_blocks
from geophoto.table import (
    PASSING,
    TABLE_FORMAT,
    Memory,
    encode_record,
    write_positions,
    write_table,
)

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # the table is written here
IMAGE_DIR = None  # folder of photos; None = DATA_DIR/images
WORKERS = min(os.cpu_count() or 1, 8)  # reading processes; reading headers is mostly disk beyond 8
# ------------------------------------------------------------------------

# ---------------------------------------------------------------- summary


MEANINGS = {  # of warnings that change labels
    "clock_elsewhere": "the camera ran on another place's clock: see datetime_at_place",
    "fix_stale": "the GPS fix was old: UTC follows the camera's clock and the zone of the position",
    "date_doubtful": "dates before 1826 or after next year are no time",
    "gps_differs": "the sidecar, which counts, is more than 1 km from the position in EXIF",
    "sidecar_damaged": "of the XMP sidecar only what stands before the damage was read",
    "takeout_damaged": "what is wrong in the photo's Takeout file was left out",
}


class Summary:
    """Counts over the rows, kept small: 8 bytes a photo, no rows."""

    NAMED = 20  # unreadable files named one by one before only their number is told

    def __init__(self) -> None:
        from array import array

        self.counts: Counter = Counter()  # of photos, and of each column that is known
        self.cameras: Counter = Counter()
        self.orientations: Counter = Counter()
        self.gps_sources: Counter = Counter()
        self.utc_sources: Counter = Counter()
        self.warnings: Counter = Counter()
        self.unreadable: list[str] = []
        self.moments = array("q")
        self.places: list[tuple] = []  # unit vectors, thinned to the outermost now and then

    def add(self, row: dict, fresh: bool = True) -> None:
        self.counts["photos"] += 1
        self.counts["fresh"] += fresh
        self.counts[row["status"]] += 1
        for column in ("gps_latitude", "datetime", "gps_altitude", "datetime_utc"):
            self.counts[column] += row[column] is not None
        self.counts["placed"] += trusted_position(row) is not None
        self.orientations[
            row["orientation"] or ("no class" if row["orientation_tag"] else "no tag")
        ] += 1
        if row["gps_source"]:
            self.gps_sources[row["gps_source"]] += 1
        if row["utc_source"]:
            self.utc_sources[row["utc_source"]] += 1
        if row["camera_model"] or row["camera_make"]:
            self.cameras[row["camera_make"], row["camera_model"]] += 1
        if row["status"] == "unreadable":
            if len(self.unreadable) < self.NAMED:
                self.unreadable.append(f"{row['filename']}: {row['warnings']}")
        elif row["warnings"]:
            self.warnings.update(row["warnings"].split(";"))
        if row["gps_latitude"] is not None and "gps_zero" not in (row["warnings"] or ""):
            self._add_place(row["gps_latitude"], row["gps_longitude"], row["datetime"])

    def _add_place(self, lat: float, lon: float, moment: str | None) -> None:
        if moment:
            self.moments.append(hash((lat, lon, moment[:19])))
        y, x = math.radians(lat), math.radians(lon)
        self.places.append((math.cos(y) * math.cos(x), math.cos(y) * math.sin(x), math.sin(y)))
        if len(self.places) > 1000:
            self.places = outermost(self.places)

    def span_km(self) -> float:
        """Largest distance between two photos, of the outermost in 26 directions."""
        places = outermost(self.places)
        chord = max(math.dist(a, b) for a in places for b in places)
        return 2 * EARTH_RADIUS_KM * math.asin(min(chord / 2, 1.0))

    def repeated(self) -> int:
        """Photos that share position and second with an earlier one."""
        return len(self.moments) - len(set(self.moments))

    def lines(self) -> list[str]:
        count = self.counts
        told = [
            f"{count['photos']} photos: {count['ok']} with metadata, {count['no_exif']} without, "
            + f"{count['empty_exif']} with none of use, " * (count["empty_exif"] > 0)
            + f"{count['unreadable']} unreadable",
            f"  position {count['gps_latitude']}{_listed(self.gps_sources)}  "
            f"altitude {count['gps_altitude']}  time {count['datetime']}  "
            f"UTC {count['datetime_utc']}{_listed(self.utc_sources)}",
            "  orientation: " + ", ".join(
                f"{name} {self.orientations[name]}"
                for name in (*ORIENTATION_CLASSES, "no class", "no tag") if self.orientations[name]
            ),
        ]  # fmt: skip
        if self.cameras:
            best = self.cameras.most_common(3)
            names = ", ".join(f"{' '.join(filter(None, camera))} ({n})" for camera, n in best)
            most = "most: " if len(self.cameras) > 3 else ""
            told.append(f"  cameras: {len(self.cameras)} ({most}{names})")
        if self.places:
            span = self.span_km()
            told.append(
                f"  span {span:{',.0f' if span >= 100 else '.3g'}} km, "
                f"{self.repeated()} repeat another's position and second"
            )
        if self.warnings:
            told.append(
                "  warnings: " + ", ".join(f"{code} {n}" for code, n in self.warnings.most_common())
            )
        told += [f"    {c}: {meaning}" for c, meaning in MEANINGS.items() if self.warnings[c]]
        if guesses := self.gps_sources["estimate"]:
            told.append(f"  {guesses} positions are estimates that these scripts wrote: no labels")
        told += [f"  unreadable: {line}" for line in self.unreadable]
        rest = count["unreadable"] - len(self.unreadable)
        return told + [f"  … and {rest} more: see status and warnings in the table"] * (rest > 0)


def _listed(counts: Counter) -> str:
    return f" ({', '.join(f'{k} {n}' for k, n in sorted(counts.items()))})" if counts else ""


def outermost(vectors: list[tuple]) -> list[tuple]:
    """The farthest of some vectors (x, y, z) towards each face, edge and corner of a cube."""
    found = []
    for x, y, z in itertools.product((-1, 0, 1), repeat=3):
        reach = [x * a + y * b + z * c for a, b, c in vectors]
        found.append(vectors[reach.index(max(reach))])
    return found


# ---------------------------------------------------------------- the run


RESULT = {"lines", "photos", "unreadable", "read", "placed"}  # what a run notes and report prints


def extract(
    image_dir: Path, data_dir: Path, workers: int, overwrite: bool = False, round_km: float = 0.0
) -> dict:
    """Bring the table up to date; return {"lines": summary, "unreadable": n, "read": n}.

    Rows of unchanged files are taken over. A killed run leaves a journal from which the next one
    goes on.
    """
    if any(data_dir.glob(".exif_data*.tmp")):  # a killed run's; the search below it takes long
        sweep_temporaries(data_dir)
    found = scan(image_dir)
    settings = {"format": TABLE_FORMAT, "round_km": round_km, "image_dir": str(image_dir.resolve())}
    memory = Memory(data_dir, settings)
    if overwrite:
        memory.forget()
    result = memory.result()
    # What an earlier version noted may lack a figure: then rows are taken over and counted anew.
    if result and result.keys() >= RESULT and memory.unchanged(found.files()):
        result["read"] = 0
    else:
        result = _rebuild(found, memory, round_km, workers)
        memory.keep(result)
    return result | {"lines": [*result["lines"], *(f"  {line}" for line in found.left_out())]}


def _rebuild(found: Listing, memory: Memory, round_km: float, workers: int) -> dict:
    """Write the table from known and freshly read rows, keeping a journal of the fresh ones."""
    memory.folder.mkdir(parents=True, exist_ok=True)
    size = max(16, min(256, len(found.names) // workers + 1))  # files handed to a reader at once
    blocks = _blocks(memory.rows(found.files()), size)
    summary, progress = Summary(), _Progress(len(found.names))

    def records() -> Iterator[tuple[str, dict]]:
        for block, raw in read_blocks(blocks, workers, _load_zones):
            fresh = iter(raw)
            for name, _, row, stamp in block:
                read = next(fresh) if row is None else None
                if read:
                    row = finish_row(name, read, round_km)
                    passing = row["warnings"] in PASSING or lacks_zone(row)  # tried again next time
                    stamp = [name] if passing else [name, *read["stamp"]]
                line = encode_record([stamp, row])
                between = line.index('], {"')  # in a text the quotation mark would be escaped
                record = line[between + 3 : -1]
                if read:
                    journal.write(line + "\n")
                stamps.write(line[1 : between + 1] + "\n")
                summary.add(row, fresh=read is not None)
                yield record, row
            journal.flush()
            progress.add(len(block))

    with (
        named_in_errors(memory.next_journal()),
        open(memory.next_journal(), "w", encoding="utf-8", newline="\n") as journal,
        write_atomically(memory.stamps, "w", encoding="utf-8", newline="\n") as stamps,
    ):
        journal.write(json.dumps(memory.settings) + "\n")
        try:
            write_table(records(), memory.folder)
        finally:
            progress.close()
    lines = summary.lines()
    if missing := zones_missing():
        lines.append(
            f"  no data of time zones on this computer ({', '.join(missing[:3])}): "
            "UTC and sun stay empty where they need it; run: pip install tzdata"
        )
    return {
        "lines": lines, "photos": summary.counts["photos"],
        "unreadable": summary.counts["unreadable"], "read": summary.counts["fresh"],
        "placed": summary.counts["placed"],
    }  # fmt: skip


def _blocks(rows: Iterator[tuple], size: int) -> Iterator[tuple[list, list[tuple[str, ...]]]]:
    """Yield ([(name, paths, known row or None, its stamp), …], files to read) in order of name."""
    while block := list(itertools.islice(rows, size)):
        yield block, [paths for _, paths, row, _ in block if row is None]


@functools.cache
def _load_zones() -> None:
    """Load what the rows will need while the first files are being read."""
    zone_offset(0.0, 0.0, datetime(2000, 1, 1))


class _Progress:
    """A bar on stderr, from the second second on: importing it takes longer than small runs."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.begun = total, 0, time.monotonic()
        self.bar: Any = None

    def add(self, count: int) -> None:
        self.done += count
        if self.bar:
            self.bar.update(count)
        elif time.monotonic() - self.begun > 1:
            self.bar = progress(total=self.total, initial=self.done, unit="photo", desc="exif")

    def close(self) -> None:
        if self.bar:
            self.bar.close()


def report(result: dict, data_dir: Path, image_dir: Path, geojson: bool) -> None:
    """Print counts, files written and the next command."""
    print("\n".join(result["lines"]))
    print(f"{result['read']} files read, {result['photos'] - result['read']} unchanged")
    written = [data_dir / "exif_data.json", data_dir / "exif_data.csv"]
    if geojson:
        written.append(write_positions(data_dir))
    print("written: " + ", ".join(map(str, written)))
    if result["placed"]:
        print(next_command("depth_map_generator", data_dir, image_dir))
    else:
        print(NO_POSITION)


NO_POSITION = (
    "no photo has a position that could be learned from, so depth maps and training have to wait: "
    "positions are read from EXIF, XMP sidecars and Takeout's JSON files beside the photos"
)
NOTES = """\
A photo is read again when its size, its time or its inode change time is another than last time. On
file systems without the last (FAT, exFAT, and on Windows) an edit that keeps size and time goes
unseen: --overwrite reads everything again.

Exit codes: 0 done (unreadable photos keep their row and are named), 1 done, but with --strict some
photos were unreadable, 2 you must change something."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=NOTES
    )
    parser.add_argument(
        "--data-dir", default=DATA_DIR, help=f"where the table is written ({DATA_DIR})"
    )
    parser.add_argument("--image-dir", default=IMAGE_DIR, help="folder of photos (DATA_DIR/images)")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help=f"reading processes ({WORKERS})"
    )
    parser.add_argument("--overwrite", action="store_true", help="read unchanged files again too")
    parser.add_argument(
        "--geojson", action="store_true", help="also write positions to exif_data.geojson"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when any photo is unreadable")
    parser.add_argument(
        "--round-km", type=float, default=0.0, metavar="KM",
        help="for sharing: move positions to the centres of H3 cells about KM wide (0: exact); "
        "the sun is computed there too; file names, times and altitudes stay as they are",
    )  # fmt: skip
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    data_dir = Path(args.data_dir)
    image_dir = Path(args.image_dir) if args.image_dir else data_dir / "images"
    if not image_dir.is_dir():
        stop(f"no photos: {image_dir} is no folder; put them there or name theirs by --image-dir")
    if args.workers < 1 or not 0 <= args.round_km < 1000:
        stop("--workers must be at least 1, --round-km between 0 and 1000")
    with one_line_for_files():
        result = extract(image_dir, data_dir, args.workers, args.overwrite, args.round_km)
        report(result, data_dir, image_dir, args.geojson)
    return 1 if args.strict and result["unreadable"] else 0


if __name__ == "__main__":
    run_script(main)
