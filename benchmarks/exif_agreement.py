"""Compare the extractor's table with an ExifTool oracle, field by field, naming what differs.

Reads CORPUS/images and CORPUS/oracle.json (fields: README of the corpus), prints per field
equal / missing / extra / different. Exit code 1 when position, altitude, capture time or
orientation differ anywhere.

    python benchmarks/exif_agreement.py CORPUS
"""

import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import exif_extractor
from geophoto.table import read_records

STRICT = ("position", "altitude", "capture", "orientation")
FIELDS = (
    *STRICT,
    "created",
    "make",
    "model",
    "size",
    "lens",
    "exposure",
    "f_number",
    "iso",
    "focal",
    "focal35",
)
GIVEN_UP = "exiftool_gives_up_but_piexif_and_exifread_agree"  # these values are allowed, not asked

# Where the extractor means to differ: part of a file name → why.
EXPLAINED = {
    "sharp/test/fixtures/corrupt-header.jpg": "APP1 is cut off: what is whole is read",
    "Exif_illegal_ifd0_size.tif": "its one entry is whole; one byte too many follows",
    "hMatoba+Piexif/tests/images/01.tif": "tags in IFD0 that the oracle asks of the Exif IFD only",
    "hMatoba+Piexif/tests/images/L01.jpg": "tags in IFD0 that the oracle asks of the Exif IFD only",
    "images/bmp/QDb.BMP": "OS/2 2 header, of which ExifTool 12.57 reads height 0",
    "images/bmp/QSb.BMP": "OS/2 2 header, of which ExifTool 12.57 reads height 0",
    "bmpsuite/q/pal1huff.bmp": "OS/2 2 header, of which ExifTool 12.57 reads height 0",
    "bmp/q/pal8os2v2-16.bmp": "OS/2 2 header, of which ExifTool 12.57 reads height 0",
    "metadata-extractor/withXmp.jpg": "its XMP segment has a header of its own",
    "Tests/images/broken_exif_dpi.jpg": "LensModel stands in IFD0, which the oracle does not ask",
}


def reason(line: str) -> str | None:
    """Why a named difference is meant, if it is."""
    return next((why for part, why in EXPLAINED.items() if part in line), None)


def expected(record: dict) -> dict:
    """The oracle's values in the table's terms; unknown values are absent."""
    xmp = record.get("xmp", {})
    values = {
        "position": (record["lat"], record["lon"]) if "lat" in record else None,
        "altitude": record.get("alt"),
        "capture": _moment(record.get("capture")),
        "created": None if record.get("capture") else _moment(_created(record)),
        "orientation": record.get("orientation"),
        "make": record.get("make") or xmp.get("make"),
        "model": record.get("model") or xmp.get("model"),
        "size": (record["w"], record["h"]) if record.get("w") and record.get("h") else None,
        "lens": record.get("lens") or None,
    }
    if values["orientation"] is not None and values["orientation"] not in range(1, 9):
        values["orientation"] = 1
    for field, key in (("exposure", "exposure"), ("f_number", "fnumber"), ("iso", "iso"),
                       ("focal", "focal"), ("focal35", "focal35")):  # fmt: skip
        values[field] = record.get(key) or None  # EXIF: 0 means unknown
    return values


def found(row: dict) -> dict:
    """The same fields from a table row."""
    lat, lon = row["gps_latitude"], row["gps_longitude"]
    size = row["image_width"], row["image_height"]
    return {
        "position": None if lat is None else (lat, lon),
        "altitude": row["gps_altitude"],
        "capture": row["datetime"] and row["datetime"][:19],
        "created": None,
        "orientation": row["orientation_tag"],
        "make": row["camera_make"],
        "model": row["camera_model"],
        "size": None if None in size else size,
        "lens": row["lens_model"],
        "exposure": row["exposure_time_s"],
        "f_number": row["f_number"],
        "iso": row["iso"],
        "focal": row["focal_length_mm"],
        "focal35": row["focal_length_35mm"],
    }


def same(field: str, a, b) -> bool:
    if field == "position":
        return all(abs(x - y) <= 1e-5 for x, y in zip(a, b, strict=True))
    if field == "altitude":
        return abs(a - b) <= 0.01
    if field in ("make", "model", "lens"):
        return " ".join(str(a).split()) == " ".join(str(b).split())
    if field in ("exposure", "f_number", "iso", "focal", "focal35"):
        number = float(str(a).split()[0]) if str(a).split() else 0.0
        return abs(number - b) <= 1e-6 + 1e-4 * abs(b)
    return a == b


def compare(corpus: Path, workers: int = 2) -> tuple[dict, list[str], list[dict]]:
    """Return {field: {equal, missing, extra, different}}, lines naming the rest, and the rows."""
    oracle = json.loads((corpus / "oracle.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        exif_extractor.extract(corpus / "images", Path(folder), workers)
        rows = list(read_records(Path(folder, "exif_data.json")))
    table = {row["filename"]: row for row in rows}
    counts = {
        field: dict.fromkeys(("equal", "missing", "extra", "different"), 0) for field in FIELDS
    }
    named = [f"no row: {name}" for name in sorted(oracle.keys() - table.keys())]
    for name, record in sorted(oracle.items()):
        if name not in table or "fuzzed" in record.get("flags", ()):
            continue
        want, got, allowed = expected(record), found(table[name]), _tolerated(record)
        if want["created"]:
            got["created"], got["capture"] = got["capture"], None
        for field in FIELDS:
            a, b = want[field], got[field]
            if a is None and b is None:
                continue
            if a is None and GIVEN_UP in record.get("flags", ()):
                a = allowed.get(field)
                if a is None or same(field, a, b):
                    continue
            kind = "missing" if b is None else "extra" if a is None else "different"
            if a is not None and b is not None and same(field, a, b):
                kind = "equal"
            else:
                named.append(f"{field} {kind}: {name}: expected {a!r}, found {b!r}")
            counts[field][kind] += 1
    return counts, named, rows


def with_fuzzed(corpus: Path, rows: list[dict]) -> list[str]:
    """How many of the oracle's values are met when the fuzzed files are counted too."""
    oracle = json.loads((corpus / "oracle.json").read_text(encoding="utf-8"))
    table, lines = {row["filename"]: found(row) for row in rows}, []
    for field in STRICT:
        pairs = [(expected(record)[field], table[name][field]) for name, record in oracle.items()]
        asked = [(a, b) for a, b in pairs if a is not None]
        met = sum(b is not None and same(field, a, b) for a, b in asked)
        lines.append(f"fuzzed files included, {field}: {met}/{len(asked)} equal")
    return lines


def _tolerated(record: dict) -> dict:
    value = record.get("tolerant", {})
    return {
        "position": (value["lat"], value["lon"]) if "lat" in value else None,
        "altitude": value.get("alt"),
        "capture": _moment(value.get("dto")),
        "orientation": value.get("orientation"),
    }


def _created(record: dict) -> str | None:
    """Without a capture time: photoshop:DateCreated, IPTC, xmp:CreateDate with a time of day."""
    xmp = record.get("xmp", {})
    dates = xmp.get("photoshop_dt"), record.get("iptc_dt"), xmp.get("create")
    return next((date for date in dates if date and len(date) >= 16), None)


def _moment(written: str | None) -> str | None:
    if not written:
        return None
    time = written[11:19] if len(written) >= 19 and written[16] == ":" else f"{written[11:16]}:00"
    return f"{written[:10].replace(':', '-')}T{time}"


def main(argv: list[str]) -> int:
    if len(argv) != 1 or not Path(argv[0], "oracle.json").is_file():
        print(__doc__, file=sys.stderr)
        return 2
    counts, named, rows = compare(Path(argv[0]))
    for line in named:
        why = reason(line)
        print(line + (f"  [meant: {why}]" if why else ""))
    print(
        f"\n{len(rows)} rows\n{'field':<12}{'equal':>8}{'missing':>9}{'extra':>7}{'different':>11}"
    )
    for field, count in counts.items():
        print(
            f"{field:<12}{count['equal']:>8}{count['missing']:>9}{count['extra']:>7}{count['different']:>11}"
        )
    for line in with_fuzzed(Path(argv[0]), rows):
        print(line)
    worst = sum(
        counts[field][kind] for field in STRICT for kind in ("missing", "extra", "different")
    )
    return 1 if worst else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
