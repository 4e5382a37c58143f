"""Estimated positions written beside or into copies of photos, and taken back again.

In: answers, one a photo. Out: XMP sidecars or copies with EXIF, marked as estimates, which the
extractor takes for no labels; a list of every file made. Originals are opened for reading only.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import stat
import subprocess
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import density
from geophoto.containers import MAX_XMP_BYTES, Bytes, read_container
from geophoto.labels import read_photo
from geophoto.packets import parse_xmp
from geophoto.pictures import scan
from geophoto.positions import Fix, fix_of_gps, fix_of_xmp
from geophoto.sidecar_edits import (
    SPACES,
    Sidecars,
    cut_block,
    extend_sidecar,
    new_sidecar,
    xmp_degrees,
)
from geophoto.sidecars import SIDECAR_NAMES
from geophoto.tags import read_exif

if TYPE_CHECKING:
    import pandas as pd

KINDS = ("sidecar", "copies")
EXACT_DEG = 1e-6  # what is read back may differ by so much
EXIFTOOL_SECONDS = 60  # for one photo
FAT_S = 2.0  # what a file system may round a file's time by
COPIED = ("jpeg", "webp", "tiff")  # formats of which copies with EXIF are made
LISTED = {"path": str, "photo": str, "action": str, "extended": bool, "latitude": float,
          "longitude": float, "block": str, "properties": dict, "sha256": str | None}  # fmt: skip

# ---------------------------------------------------------------- what is written


@dataclass
class Item:
    """One photo's estimate: what is to be written, where, or why it is not."""

    filename: str
    lat: float
    lon: float
    radius_m: float
    altitude_m: float | None
    action: str = "skip"  # new sidecar, extend sidecar, copy (piexif), copy (exiftool), skip
    target: str = ""  # the file that is made
    source: str = ""  # the sidecar that is extended, the photo that is copied
    why: str = ""
    properties: dict[str, str] = field(default_factory=dict)


def xmp_properties(item: Item, method: str) -> dict[str, str]:
    """What a sidecar says. No separate references: readers differ and turn the hemisphere; no time
    or date of a GPS, which there was none of; an altitude below the sea would need a reference."""
    found = {
        "exif:GPSLatitude": xmp_degrees(item.lat, "NS"),
        "exif:GPSLongitude": xmp_degrees(item.lon, "EW"),
        "exif:GPSHPositioningError": f"{round(item.radius_m * 100)}/100",
        "exif:GPSProcessingMethod": method,
        "photoshop:SidecarForExtension": item.filename.rpartition(".")[2],
    }
    if item.altitude_m is not None and item.altitude_m >= 0:
        found["exif:GPSAltitude"] = f"{round(item.altitude_m * 100)}/100"
    return found


# ---------------------------------------------------------------- plan


def plan_sidecar(item: Item, file: Path, folder: Path, sidecars: Sidecars) -> None:
    """Say which sidecar is made or extended, or why none is."""
    places = (folder, file.parent)
    if any(sidecars.place_known(at, file.name) for at in places):
        item.why = "a sidecar has a position already"
        return
    own = next(filter(None, (sidecars.own(at, file) for at in places)), None)
    if own:
        item.action, item.source, item.target = "extend sidecar", str(own), str(folder / own.name)
    else:
        item.action, item.target = "new sidecar", str(folder / f"{file.name}.xmp")


def plan_copy(item: Item, file: Path, folder: Path, sidecars: Sidecars) -> None:
    """Say who writes the copy, or why there is none."""
    photo, target = read_container(Bytes(file.read_bytes())), folder / file.name
    if photo.kind not in COPIED:
        item.why = f"no copies of {photo.kind or 'this format'}: write a sidecar"
    elif sidecars.place_known(file.parent, file.name):
        item.why = "a sidecar has a position already"
    elif os.path.lexists(target):
        item.why = f"{target} exists"
    elif photo.exif and not shutil.which("exiftool"):
        item.why = "it has EXIF, which only ExifTool extends, and ExifTool is not installed"
    else:
        item.action = "copy by ExifTool" if photo.exif else "copy"
        item.target, item.source = str(target), str(file)


def plan(
    answers: pd.DataFrame, image_dir: Path, folder: Path, kind: str, method: str, every: bool
) -> list[Item]:
    """What is to be written below `folder` for each answer: kind is "sidecar" or "copies"; only for
    confident ones, unless `every`. An existing position is never replaced. Nothing is written yet.
    """
    listing = dict(scan(image_dir).files())
    sidecars = Sidecars(paths[0] for paths in listing.values())
    items = []
    for row in answers.to_dict("records"):
        high = row.get("altitude_m")
        high = None if high is None or not math.isfinite(high) else high
        item = Item(
            row["filename"], row["latitude"], row["longitude"], row["radius90_km"] * 1000, high
        )
        items.append(item)
        if item.filename not in listing:
            item.why = "the photo is gone"
            continue
        if not every and not row["confident"]:
            item.why = "not confident"
            continue
        paths = listing[item.filename]
        about = read_photo(*paths)
        if about["gps_latitude"] is not None or "gps_incomplete" in about["warnings"].split(";"):
            estimate = about["gps_source"] == "estimate"
            item.why = "an estimate is written already" if estimate else "it has a position already"
            continue
        item.properties = xmp_properties(item, method)
        choose = plan_sidecar if kind == "sidecar" else plan_copy
        choose(item, Path(paths[0]), folder / Path(item.filename).parent, sidecars)
    return items


def plan_table(items: list[Item]) -> pd.DataFrame:
    """The plan, or what became of it, one row a photo."""
    import pandas as pd

    columns = ("filename", "action", "target", "latitude", "longitude", "radius90_m", "why")
    rows = [(i.filename, i.action, i.target, i.lat, i.lon, i.radius_m, i.why) for i in items]
    return pd.DataFrame(rows, columns=list(columns))


# ---------------------------------------------------------------- contents


def gps_block(item: Item) -> bytes:
    """EXIF that holds our GPS directory alone (CIPA DC-008, 4.6.6), with "Exif" before it."""
    import piexif

    def sexagesimal(degrees: float) -> tuple:
        whole, rest = divmod(round(abs(degrees) * 3600e6), 3_600_000_000)
        return (whole, 1), (rest // 60_000_000, 1), (rest % 60_000_000, 1_000_000)

    radius = Fraction(item.radius_m).limit_denominator(100)
    gps: dict[int, object] = {
        piexif.GPSIFD.GPSVersionID: (2, 3, 0, 0),
        piexif.GPSIFD.GPSLatitudeRef: "S" if item.lat < 0 else "N",
        piexif.GPSIFD.GPSLatitude: sexagesimal(item.lat),
        piexif.GPSIFD.GPSLongitudeRef: "W" if item.lon < 0 else "E",
        piexif.GPSIFD.GPSLongitude: sexagesimal(item.lon),
        piexif.GPSIFD.GPSHPositioningError: (radius.numerator, radius.denominator),
        piexif.GPSIFD.GPSProcessingMethod: b"ASCII\0\0\0" + method_of(item).encode(),
    }
    if item.altitude_m is not None:
        gps[piexif.GPSIFD.GPSAltitudeRef] = int(item.altitude_m < 0)
        gps[piexif.GPSIFD.GPSAltitude] = (round(abs(item.altitude_m) * 100), 100)
    return piexif.dump({"GPS": gps})


def method_of(item: Item) -> str:
    return item.properties["exif:GPSProcessingMethod"]


def with_exif(content: bytes, item: Item) -> bytes:
    """A JPEG or WebP without EXIF, with ours. In a JPEG it goes behind JFIF's segment, which piexif
    would drop; all other bytes stay."""
    import io

    import piexif

    block = gps_block(item)
    if content[:4] == b"RIFF":
        made = io.BytesIO()
        piexif.insert(block, content, made)
        return made.getvalue()
    at = 2
    while content[at : at + 2] == b"\xff\xe0":
        at += 2 + int.from_bytes(content[at + 2 : at + 4])
    return content[:at] + b"\xff\xe1" + (len(block) + 2).to_bytes(2) + block + content[at:]


def by_exiftool(item: Item) -> bytes:
    """A copy by ExifTool, which reads the photo and writes to us; ValueError with what it says."""
    tags = {
        "GPSVersionID": "2 3 0 0",
        "GPSLatitude": f"{abs(item.lat):.9f}",
        "GPSLatitudeRef": "S" if item.lat < 0 else "N",
        "GPSLongitude": f"{abs(item.lon):.9f}",
        "GPSLongitudeRef": "W" if item.lon < 0 else "E",
        "GPSHPositioningError": f"{item.radius_m:.2f}",
        "GPSProcessingMethod": method_of(item),
    }
    if item.altitude_m is not None:
        tags["GPSAltitude"] = f"{abs(item.altitude_m):.2f}"
        tags["GPSAltitudeRef"] = str(int(item.altitude_m < 0))
    given = [f"-EXIF:{name}={value}" for name, value in tags.items()]
    command = ["exiftool", "-n", *given, "-o", "-", os.path.abspath(item.source)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=EXIFTOOL_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"ExifTool: {error}") from error
    if done.returncode or not done.stdout:
        told = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"ExifTool: {told[0] if told else 'no copy made'}")
    return done.stdout


def content_of(item: Item) -> tuple[bytes, str]:
    """The file that an item makes, and the text put into an existing sidecar; ValueError or OSError
    where it cannot be made, or does not say what it should."""
    block = ""
    if item.action == "new sidecar":
        made = new_sidecar(item.properties)
    elif item.action == "extend sidecar":
        made, block = extend_sidecar(Path(item.source).read_bytes(), item.properties)
    elif item.action == "copy":
        made = with_exif(Path(item.source).read_bytes(), item)
    else:
        made = by_exiftool(item)
    if "sidecar" in item.action:
        fix = fix_of_xmp(parse_xmp(made[:MAX_XMP_BYTES], SIDECAR_NAMES)[0], "sidecar")
    else:
        fix = fix_of_gps(read_exif(read_container(Bytes(made)).exif)[2])
    if not is_ours(fix, item.lat, item.lon):
        raise ValueError("what was to be written is not read back")
    return made, block


def is_ours(fix: Fix, lat: float, lon: float) -> bool:
    if fix.place is None or fix.source != "estimate":
        return False
    around = abs((fix.place[1] - lon + 180) % 360 - 180)
    return abs(fix.place[0] - lat) <= EXACT_DEG and around <= EXACT_DEG


# ---------------------------------------------------------------- write


def write_back(items: list[Item], journal: Path, bar: Callable | None = None) -> pd.DataFrame:
    """Write what was planned; what cannot be is left out with the reason. `journal`, a list of
    every file made, is written before them, and keeps what earlier runs wrote. Raises OSError where
    the disk is full or read-only: the same call goes on."""
    todo = [item for item in items if item.action != "skip"]
    entries = read_list(journal) if journal.exists() else []
    sweep(entries)
    fresh: list[dict] = []
    taken: set[str] = set()
    for item in todo:
        path = os.path.abspath(item.target)
        if path in taken:
            item.action, item.why = "skip", f"{path} was written for another photo"
            continue
        block, modified = "", None
        try:
            if item.action == "extend sidecar":  # listed before it is written: undo needs the text
                block = content_of(item)[1]
            elif item.source:  # a copy gets this time: undo knows by it one made in a killed run
                modified = os.stat(item.source).st_mtime
        except (OSError, ValueError) as error:
            item.action, item.why = "skip", str(error)
            continue
        taken.add(path)
        fresh.append({"path": path, "photo": item.filename, "action": item.action,
                      "extended": os.path.lexists(path), "latitude": item.lat,
                      "longitude": item.lon, "block": block, "properties": item.properties,
                      "modified": modified, "sha256": None})  # fmt: skip
    # What is planned again was listed by a run that was killed before it was made.
    entries = [entry for entry in entries if entry["path"] not in taken]
    if fresh:
        write_list(journal, entries + fresh)
    todo = [item for item in todo if item.action != "skip"]
    pairs = list(zip(todo, fresh, strict=True))
    listed = list(fresh)
    try:
        for item, entry in bar(pairs) if bar else pairs:
            try:
                made, _ = content_of(item)
                entry["sha256"] = hashlib.sha256(made).hexdigest()
                write_file(item, made)
            except (OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno in density.DISK_REFUSES:
                    raise
                item.action, item.why = "skip", str(error)
                listed.remove(entry)
    finally:  # interrupted or on a full disk too: what was not made yet does no harm in the list
        if fresh:
            write_list(journal, entries + listed)
    return plan_table(items)


def write_file(item: Item, content: bytes) -> None:
    """Write a file whole; a copy has the times of its original, a sidecar keeps its rights."""
    if item.action != "extend sidecar" and os.path.lexists(item.target):
        raise ValueError(f"{item.target} exists")
    with density.write_atomically(item.target) as file:
        file.write(content)
        file.flush()
        if item.source:
            about = os.stat(item.source)
            keep_rights(about.st_mode, file.name)
            if item.action.startswith("copy"):
                os.utime(file.name, ns=(about.st_atime_ns, about.st_mtime_ns))


def keep_rights(mode: int, path: str) -> None:
    with suppress(PermissionError):  # FAT has no such rights
        os.chmod(path, stat.S_IMODE(mode))


def read_list(journal: Path) -> list[dict]:
    """The files written and not yet taken back; ends the run when the list is none of ours."""
    try:
        content = json.loads(journal.read_text(encoding="utf-8"), parse_int=float)
        entries = content["written"]
        if isinstance(entries, list) and all(map(is_listed, entries)):
            return entries
    except FileNotFoundError:
        density.stop(f"{journal} does not exist: there is nothing to take back")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        density.stop(f"{journal} is no list of files written ({type(error).__name__})")
    density.stop(f"{journal} is no list of files written")


def is_listed(entry: dict) -> bool:
    """Whether an entry of a list holds what undoing needs, each value of its kind; lists of older
    versions have no `modified`."""
    return (
        all(isinstance(entry[name], kind) for name, kind in LISTED.items())
        and isinstance(entry.get("modified"), float | None)
        and all(isinstance(value, str) for value in entry["properties"].values())
        and all(name.partition(":")[0] in SPACES for name in entry["properties"])
    )


def write_list(journal: Path, entries: list[dict]) -> None:
    with density.write_atomically(journal, "w", encoding="utf-8") as file:
        json.dump({"written": entries}, file, indent=1, ensure_ascii=False)


def sweep(entries: list[dict]) -> None:
    """Remove what a killed run left half-written beside the files of the list."""
    tags: dict[Path, set[str]] = {}
    for path in (Path(entry["path"]) for entry in entries):
        tags.setdefault(path.parent, set()).add(f"{zlib.crc32(os.fsencode(path.name)):08x}")
    for folder, known in tags.items():
        for stray in folder.glob(".*.tmp"):
            if stray.name.split(".")[-3] in known:
                stray.unlink(missing_ok=True)


# ---------------------------------------------------------------- undo


def undo(journal: Path) -> pd.DataFrame:
    """Remove exactly the files of the list, and take exactly our properties out of the sidecars
    that were extended or changed since. What is no longer ours stays, and stays in the list. Raises
    OSError where the disk is full or read-only, after all that could be taken back was."""
    import pandas as pd

    entries = read_list(journal)
    sweep(entries)
    done: dict[str, str] = {}
    refused = None
    # Those to be removed first: that makes the room which rewriting a sidecar takes.
    for entry in sorted(entries, key=lambda entry: bool(entry["extended"])):
        path = entry["path"]
        try:
            done[path] = undo_one(entry)
        except (OSError, ValueError) as error:
            done[path] = f"left: {error}"
            if isinstance(error, OSError) and error.errno in density.DISK_REFUSES:
                refused = refused or error
    left = [entry for entry in entries if done[entry["path"]].startswith("left")]
    if len(left) < len(entries) and left:
        write_list(journal, left)
    if refused:
        raise refused
    if not left:
        journal.unlink()
    rows = [(entry["photo"], entry["path"], done[entry["path"]]) for entry in entries]
    return pd.DataFrame(rows, columns=["filename", "path", "done"])


def undo_one(entry: dict) -> str:
    """Take one file back; returns what was done."""
    path = Path(entry["path"])
    if not os.path.lexists(path):
        return "gone already"
    content = path.read_bytes()
    place = entry["latitude"], entry["longitude"]
    if "sidecar" not in entry["action"]:
        told = read_container(Bytes(content))
        modified = entry.get("modified")
        late = math.inf if modified is None else abs(path.stat().st_mtime - modified)
        whole = entry["sha256"] == density.file_sha256(path) if entry["sha256"] else late <= FAT_S
        if not whole or not is_ours(fix_of_gps(read_exif(told.exif)[2]), *place):
            return "left: changed since it was written"
        path.unlink()
        return "removed"
    if not entry["extended"]:
        mine = new_sidecar(entry["properties"]) == content
        if mine or entry["sha256"] == density.file_sha256(path):
            path.unlink()
            return "removed"
    rest = cut_block(content, entry["block"], entry["properties"])
    if rest is None:
        return "nothing of ours in it"
    with density.write_atomically(path) as file:
        file.write(rest)
        keep_rights(path.stat().st_mode, file.name)
    return "our properties taken out"
