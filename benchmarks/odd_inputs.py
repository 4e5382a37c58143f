"""All scripts on a library of 300 photos in which everything that people reported is mixed.

Two libraries are made of the same rendered photos (`make demo` leaves them): `plain`, ordinary JPEG
files with the labels that are right, and `odd`, in which every third photo may have an odd name,
format, date or place of its labels, and between which lies what is no photo: links in rings, pipes,
damaged files, folders of systems, bombs. The scripts write into the photo folder itself. Numbers at
the start of the names keep the order, so that both libraries are dealt into the same folds; photos
that cannot teach (damaged, without a map) are in `odd` alone. Prints every check; exit code 1 when
one fails: no traceback, every file accounted for by name, figures of `odd` within 2 % of `plain`.

    python benchmarks/odd_inputs.py
    python benchmarks/odd_inputs.py --keep odd --photos data/images
"""

import argparse
import io
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path

import piexif
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from geophoto.pictures import find_photos  # noqa: E402

COUNT, EVERY = 300, 3  # photos in `odd`; every so many is odd
LIKE = 0.02  # how far figures may differ
QUICK = ["--backbone", "tf_efficientnet_lite0", "--frozen-image-size", "192", "--epochs", "10"]
NO_PHOTO = (".xmp", ".json", ".txt", ".mp4")  # beside photos; nobody asks what became of them
Write = Callable[[Path, bytes, bytes, dict], None]  # folder, number, JPEG, its EXIF

# ---------------------------------------------------------------- odd photos


def named(rest: bytes) -> Write:
    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        put(folder, number + rest, jpeg)

    return write


def put(folder: Path, name: bytes, content: bytes) -> None:
    path = os.path.join(os.fsencode(folder), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content)


def saved(suffix: str, mode: str = "", form: str = "", **options) -> Write:
    """In another format or mode, stored as turned as before."""

    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        with Image.open(io.BytesIO(jpeg)) as image:
            picture = image.convert(mode) if mode and mode != "I;16" else image.copy()
        if mode == "I;16":
            picture = picture.convert("I").point(lambda grey: grey * 257).convert("I;16")
        whole = io.BytesIO()
        picture.info.clear()
        picture.save(whole, form or suffix, exif=piexif.dump(exif), **options)
        put(folder, number + b"." + suffix.encode(), whole.getvalue())

    return write


def edited(change: Callable[[dict], None]) -> Write:
    """With other EXIF."""

    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        change(exif)
        put(folder, number + b".jpg", with_exif(jpeg, exif))

    return write


def with_exif(jpeg: bytes, exif: dict) -> bytes:
    whole = io.BytesIO()
    piexif.insert(piexif.dump(exif), jpeg, whole)
    return whole.getvalue()


def year(written: bytes) -> Write:
    def change(exif: dict) -> None:
        for tag in (36867, 36868):
            exif["Exif"][tag] = written + exif["Exif"].get(tag, b"2020:01:01 12:00:00")[4:]

    return edited(change)


def twelve_hours(exif: dict) -> None:
    day, clock = exif["Exif"].get(36867, b"2020:01:01 12:00:00").decode().split(" ")
    hour = int(clock[:2])
    told = f"{day} {hour % 12 or 12}{clock[2:]} {'pm' if hour >= 12 else 'am'}"
    exif["Exif"][36867] = told.encode()


def without(*parts: str) -> Write:
    return edited(lambda exif: [exif[part].clear() for part in parts])


def beside(name: str, text: Callable[[float, float, float], str]) -> Write:
    """The position stands in a file beside the photo."""

    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        gps, place = exif["GPS"], []
        for value, reference in ((2, 1), (4, 3)):
            degrees, minutes, seconds = (a / b for a, b in gps.get(value, ((0, 1),) * 3))
            place.append(degrees + minutes / 60 + seconds / 3600)
            place[-1] *= -1 if gps.get(reference) in (b"S", b"W") else 1
        above, below = gps.get(6, (0, 1))
        metres = above / below * (-1 if gps.get(5) == 1 else 1)
        for tag in (1, 2, 3, 4, 5, 6):
            gps.pop(tag, None)
        put(folder, number + b".jpg", with_exif(jpeg, exif))
        content = text(*place, metres).encode()
        put(folder, name.replace("#", number.decode()).encode(), content)

    return write


def xmp(lat: float, lon: float, metres: float) -> str:
    def angle(value: float, letters: str) -> str:
        whole = int(abs(value))
        return f"{whole},{(abs(value) - whole) * 60:.7f}{letters[value < 0]}"

    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
        'syntax-ns#"><rdf:Description xmlns:exif="http://ns.adobe.com/exif/1.0/" '
        f'exif:GPSLatitude="{angle(lat, "NS")}" exif:GPSLongitude="{angle(lon, "EW")}" '
        f'exif:GPSAltitude="{round(abs(metres) * 100)}/100" exif:GPSAltitudeRef="{int(metres < 0)}"'
        "/></rdf:RDF></x:xmpmeta>"
    )


def takeout(lat: float, lon: float, metres: float) -> str:
    return json.dumps({"geoData": {"latitude": lat, "longitude": lon, "altitude": metres}})


def aged(seconds: float) -> Write:
    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        put(folder, number + b".jpg", jpeg)
        os.utime(folder / f"{number.decode()}.jpg", (seconds, seconds))

    return write


def heic(suffix: str) -> Write:
    import pillow_heif

    pillow_heif.register_heif_opener()
    return saved(suffix, form="HEIF", quality=-1)


LONG = b" " + "ü".encode() * 110 + b".jpg"
TEACH = (  # odd, and as good as the plain photo
    *map(named, (" caf\u00e9.jpg".encode(), " cafe\u0301.jpg".encode(), b" \xff\xfe.jpg",
                 " \U0001f3d4 \u5c71.jpg".encode(), b" two\nlines.jpg", b' =cmd,".jpg', LONG,
                 b" [1-9]*?.jpg", b" #&%20;.jpg", b".tar.gz.JPG", b" .jpg", b" -rf.jpg",
                 " дом/in a folder.jpg".encode(), b".jpeg", b".jpe", b".jfif", b".mpo", b".insp",
                 b".png", b".HIF")),
    saved("png"), saved("webp", lossless=True), saved("tif", form="tiff"),
    saved("PNG", form="png"), heic("heic"), heic("HIF"), heic("heics"),
    *map(year, (b"0001", b"1066", b"1601", b"2263", b"2563", b"9999")),
    edited(twelve_hours), beside("#.jpg.xmp", xmp), beside("#.xmp", xmp),
    beside("#.jpg.json", takeout), beside("#.jpg.supplemental-metadata.json", takeout),
    aged(4.3e9), aged(-2e9), aged(0),
)  # fmt: skip


def zero(exif: dict) -> None:
    exif["GPS"][2] = exif["GPS"][4] = ((0, 1),) * 3


def beyond(exif: dict) -> None:
    exif["GPS"][2] = ((91, 1), (0, 1), (0, 1))


def one_pixel(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
    whole = io.BytesIO()
    Image.new("RGB", (1, 1), "teal").save(whole, "jpeg", exif=piexif.dump(exif))
    put(folder, number + b".jpg", whole.getvalue())


ALIKE = (  # labels are missing or pixels few: the same in both libraries
    without("0th", "Exif", "GPS"), without("Exif"), without("GPS"), without("Exif", "GPS"),
    edited(zero), edited(beyond), one_pixel, saved("png", "I;16"), saved("png", "P"),
    saved("png", "LA"), saved("jpg", "CMYK", form="jpeg"),
)  # fmt: skip


def cut(suffix: bytes, share: float) -> Write:
    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        put(folder, number + suffix, jpeg[: int(len(jpeg) * share)])

    return write


def filled(suffix: bytes, content: bytes) -> Write:
    return lambda folder, number, jpeg, exif: put(folder, number + suffix, content)


def sized(width: int, height: int) -> Write:
    def write(folder: Path, number: bytes, jpeg: bytes, exif: dict) -> None:
        whole = io.BytesIO()
        Image.new("L", (width, height), 90).save(whole, "jpeg", exif=piexif.dump(exif))
        put(folder, number + b".jpg", whole.getvalue())

    return write


def promising(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims to be large."""
    parts = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT")
    chunks = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def without_labels(write: Write) -> Write:
    return lambda folder, number, jpeg, exif: write(folder, number, jpeg, {"0th": {}})


SILENT = (  # what cannot teach: in `odd` alone
    cut(b".jpg", 0.6), cut(b".jpg", 0.02), cut(b".heic", 0.5), filled(b".jpg", b""),
    filled(b".jpg", b"version https://git-lfs.example/spec/v1\nsize 12345\n"),
    filled(b".png", promising(60_000, 60_000)), filled(b".avif", b"\0" * 300),
    named(b" " + b"n" * 246 + b".jpg"), sized(6000, 12), without_labels(sized(12_000, 9_000)),
    named(b".cr2"), named(b".gif.psd"), named(b".jxl"), named(b".dng"),
)  # fmt: skip


def add_traps(folder: Path, jpeg: bytes) -> None:
    """What lies between photos and is none."""
    for name in (b"@eaDir/a.jpg", b"#recycle/b.jpg", b".thumbnails/c.jpg", b"__MACOSX/._d.jpg",
                 b"lost+found/e.jpg", b"._f.jpg", b"notes.txt", b"film.mp4",
                 "0000 e\u0301.jpg".encode(), "0000 \u00e9.jpg".encode()):  # fmt: skip
        put(folder, name, jpeg if name.startswith((b"@", b"#", b"_", b"l")) else b"no photo")
    (folder / "dangling.jpg").symlink_to("nowhere.jpg")
    (folder / "itself.jpg").symlink_to("itself.jpg")
    (folder / "ring").symlink_to(".")
    (folder / "endless.jpg").symlink_to("x" * 300)
    (folder / "folder.jpg").mkdir()
    put(folder, b"closed/g.jpg", with_exif(jpeg, {"0th": {}}))  # the superuser may enter it
    (folder / "closed").chmod(0)
    os.mkfifo(folder / "pipe.jpg")


def build(folder: Path, photos: list[Path]) -> tuple[Path, Path]:
    """Write both libraries; returns them."""
    plain, odd = folder / "plain", folder / "odd"
    plain.mkdir(parents=True)
    odd.mkdir()
    oddities = iter([*((w, "plain") for w in TEACH), *((w, "alike") for w in ALIKE),
                     *((w, "") for w in SILENT)])  # fmt: skip
    for i, photo in enumerate(photos[:COUNT]):
        number, jpeg, exif = f"{i + 1:04d}".encode(), photo.read_bytes(), piexif.load(str(photo))
        # other formats know no turn in their container, and labels must be there to be moved
        ordinary = exif["0th"].get(274) == 1 and {2, 6} <= exif["GPS"].keys() and exif["Exif"]
        write, kind = next(oddities, (None, "")) if ordinary and i % EVERY == 0 else (None, "")
        if write is None:
            put(plain, number + b".jpg", jpeg)
            put(odd, number + b".jpg", jpeg)
            continue
        write(odd, number, jpeg, piexif.load(str(photo)))
        if kind == "plain":
            put(plain, number + b".jpg", jpeg)
        elif kind == "alike":
            write(plain, number, jpeg, exif)
    if next(oddities, None):
        raise SystemExit("too few ordinary photos for all oddities")
    add_traps(odd, photos[0].read_bytes())
    return plain, odd


# ---------------------------------------------------------------- runs

failures: list[str] = []


def check(what: str, fault: object) -> None:
    """Print one check; a fault is anything that is true."""
    print(f"{'FAILED' if fault else 'ok':<8}{what}" + (f": {fault}" if fault else ""), flush=True)
    if fault:
        failures.append(what)


def run(script: str, *arguments) -> str:
    """What a script prints; it may exit with 0 or 1, never with a traceback."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, encoding="utf-8", errors="replace"
    )
    told = done.stdout + done.stderr
    name = f"{Path(arguments[1]).name}: {script} {'--photos' * ('--photos' in arguments)}"
    bad = "Traceback" in told or "Warning:" in told or done.returncode not in (0, 1)
    check(f"{name}: exit code {done.returncode}", bad and told[-3000:])
    return told


def run_all(library: Path) -> tuple[dict[str, str], dict]:
    """What every script prints, and the metrics."""
    models = library / "checkpoints"
    folders = ["--data-dir", library, "--image-dir", library]
    trained = [*folders, "--checkpoint-dir", models]
    told = {"exif": run("exif_extractor.py", *folders)}
    weights = ROOT / "checkpoints" / "depth_anything_v2_demo.pth"
    depth = ["--depth-model", weights, "--input-size", 126]
    told["depth"] = run("depth_map_generator.py", *folders, *depth)
    models.mkdir(exist_ok=True)
    (models / weights.name).write_bytes(weights.read_bytes())
    told["train"] = run("gps_orientation_trainer.py", *trained, "--mode", "frozen", *QUICK)
    output = ["--output-dir", library / "evaluation", "--bootstrap", 50]
    told["report"] = run("evaluate_gps_model.py", *trained, *output)
    told["density"] = run("density.py", "--data-dir", library)
    told["photos"] = run("evaluate_gps_model.py", *trained, *output, "--photos", library)
    told["again"] = run("exif_extractor.py", *folders)
    return told, json.loads((library / "evaluation" / "metrics.json").read_text(encoding="utf-8"))


# ---------------------------------------------------------------- checks


def as_text(name: bytes) -> list[str]:
    """How a name may be spelled in a table or on a screen."""
    text = os.fsdecode(name)
    spelled = unicodedata.normalize("NFC", text).encode("utf-8", "replace").decode("utf-8")
    escaped = name.decode("utf-8", errors="backslashreplace")
    return [spelled, text.encode("utf-8", "replace").decode(), escaped, repr(text), repr(spelled)]


def check_files(library: Path, files: list[bytes], told: str, rows: dict[str, dict]) -> None:
    """Every photo is a row or named."""
    lost = [
        name for name in files
        if not name.lower().endswith(tuple(s.encode() for s in NO_PHOTO))
        and not any(spelled in rows or spelled.strip("'") in told for spelled in as_text(name))
        and not any(part.startswith(b".") for part in name.split(b"/"))
        and not any(folder in told for folder in as_text(name.split(b"/")[0]))
    ]  # fmt: skip
    check(f"{len(files)} files and folders: each has a row or is named", lost)


def check_stages(library: Path, told: dict[str, str], rows: dict[str, dict]) -> None:
    """Of every row it is known what became of it."""
    unmapped = [
        name for name in rows
        if not os.path.exists(library / "depths" / f"{name}.npy") and name not in told["depth"]
    ]  # fmt: skip
    check(f"{len(rows)} rows: each has a depth map or is named", unmapped)
    for model in ("rgb", "depth"):
        twin = (library / "checkpoints" / f"best_gps_model_{model}.json").read_text("utf-8")
        lost = [
            name for name, row in rows.items()
            if json.dumps(name, ensure_ascii=False) not in twin and json.dumps(name) not in twin
            and row["status"] != "unreadable"
            and any(row[label] for label in ("gps_latitude", "datetime", "orientation_tag"))
        ]  # fmt: skip
        check(f"{model}: every photo with a label is in the checkpoint, or why not", lost)
    with open(library / "evaluation" / "photos.csv", encoding="utf-8", newline="") as file:
        answered = file.read() + told["photos"]
    lost = [name for name in rows if not any(x in answered for x in as_text(os.fsencode(name)))]
    check("--photos: each has an answer or is named", [n for n in lost if '"' not in n])
    found = re.search(r"(\d+) files read, (\d+) unchanged", told["again"])
    check("what the scripts wrote is not read as photos", not found or int(found[2]) != len(rows))


def check_figures(plain: dict, odd: dict) -> None:
    """Held-out figures of both libraries, as shares."""
    for model in ("rgb", "depth"):
        for head, name in (("gps", "geometric_mean_km"), ("gps", "median_km"),
                           ("time", "mean_minutes"), ("altitude", "mean_m"),
                           ("orientation", "turn_accuracy")):  # fmt: skip
            before, after = plain[model][head], odd[model][head]
            off = after[name] / before[name] - 1
            count = f"{before['n']} and {after['n']} photos"
            wrong = abs(off) > LIKE or before["n"] != after["n"]
            check(f"{model} {head} {name}: {off:+.2%} ({count})", wrong and "too far apart")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=ROOT / "data/demo/images",
                        help="JPEG files whose EXIF these scripts wrote")  # fmt: skip
    parser.add_argument("--keep", type=Path, help="leave both libraries in this new folder")
    args = parser.parse_args()
    photos = list(find_photos(args.photos).values()) if args.photos.is_dir() else []
    if len(photos) < COUNT:
        print(f"{len(photos)} photos in {args.photos}, {COUNT} are needed: run make demo first")
        return 2
    with tempfile.TemporaryDirectory() as made:
        plain, odd = build(args.keep or Path(made), photos)
        files = [
            os.path.relpath(os.path.join(folder, name), os.fsencode(odd))
            for folder, _, names in os.walk(os.fsencode(odd))
            for name in names
        ]
        told, metrics = run_all(odd)
        rows = {row["filename"]: row for row in json.loads((odd / "exif_data.json").read_text())}
        check_files(odd, files, told["exif"], rows)
        check_stages(odd, told, rows)
        _, before = run_all(plain)
        check_figures(before, metrics)
        (odd / "closed").chmod(0o700)
    print(f"{len(failures)} checks failed" if failures else "no check failed")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
