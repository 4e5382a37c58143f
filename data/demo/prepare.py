"""Render the demo: photographs of an island that does not exist, with complete and true EXIF.

Reads nothing; writes images/<date>/*.jpg, true_depth/<photo path>.npy and truth.csv below
data/demo. Takes about a minute and a half on two cores; a second run finds everything done.

    python data/demo/prepare.py
    python data/demo/prepare.py --photos 40 --output-dir somewhere/else
"""

import argparse
import csv
import io
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from companions import SECOND, sidecar, with_claims, with_second_camera  # noqa: E402

from density import progress, stop, sweep_temporaries, write_atomically  # noqa: E402

# ---------------------------------------------------------------- settings

OUTPUT_DIR = ROOT / "data" / "demo"  # images/, true_depth/ and truth.csv are written here
PHOTOS = 300  # how many photographs; fewer than 20 leave some orientations out
WIDTH = 640  # pixels of the longer side
HEIGHT = 480  # pixels of the shorter side
SEED = 1  # which island, which photographs; the demo's own is 1
WORKERS = None  # processes; None = one per core

# ----------------------------------------------------------------

STEP_M = (430.0, 930.0)  # from one standpoint to the next
UTC_OFFSET_HOURS = -2  # nautical zone of the island's longitude (Etc/GMT+2)
DEPTH_STEP = 2  # true depth is stored at every second pixel, both ways
CAMERAS = (  # make, model, lens, 35-mm focal lengths, crop factor, f-numbers, file name
    ("Marelle", "Lumo 6", "Lumo 6 back camera 5.6mm f/1.8", (26,), 4.64, (1.8,), "IMG_{:04d}.jpg"),
    ("Tarn", "TX-30", "TX-30 zoom 24-50mm", (24, 28, 35, 50), 2.7, (2.8, 4.0), "P{:07d}.jpg"),
    ("Okari", "M2", "Okari 28mm f/2.8", (28, 28, 40), 1.0, (2.8, 5.6, 8.0), "DSC{:05d}.JPG"),
    SECOND,  # a companion's, see companions.py
)
WALKERS = 3  # cameras with GPS, each with its days
# Tag of the stored file → how many per 300 photos; the others are Normal (1).
TURNED = {6: 21, 8: 12, 3: 8, 2: 6, 4: 6}
# Upright pixels → stored pixels: undone by what a viewer does on meeting the tag.
STORE = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    6: lambda p: np.rot90(p, 1),
    8: lambda p: np.rot90(p, -1),
}
TRUTH_COLUMNS = (
    "filename", "place", "gps_latitude", "gps_longitude", "gps_altitude", "heading_deg", "datetime",
    "utc_offset_minutes", "orientation_tag", "camera", "exif", "claim",
)  # fmt: skip


@dataclass(frozen=True)
class Shot:
    """One photograph to take: what render() needs and what its EXIF will say."""

    number: int
    filename: str
    place: int
    view: dict  # arguments of island.Camera
    altitude: float  # of the lens above sea level, m
    when: datetime
    camera: int
    focal_35mm: int
    f_number: float
    tag: int
    exif: str  # full, no_gps, no_time, none; second or placed by hand: the second camera's
    said: dict = field(default_factory=dict)  # fields of which EXIF says something else
    claim: str = ""  # of the photos in claims/: which kind of claim they make


# ---------------------------------------------------------------- the plan


def plan_shots(island, photos: int, width: int, height: int, seed: int) -> list[Shot]:
    """Who stands where and when: visits of one to four photos at about a quarter as many places."""
    rng = np.random.default_rng([seed, 20])
    places = choose_places(island, max(4, photos // 4), rng)
    visits = schedule_visits(len(places), photos, rng)
    tags = np.ones(photos, int)
    turned = np.repeat(list(TURNED), [max(1, round(n * photos / 300)) for n in TURNED.values()])
    tags[: len(turned)] = turned[:photos]
    tags = rng.permutation(tags)
    lacking = np.array(["full"] * photos, dtype=object)
    for kind, share in (("no_gps", 0.027), ("no_time", 0.013), ("none", 0.01)):
        upright = np.flatnonzero((tags == 1) & (lacking == "full"))
        count = min(round(share * photos), len(upright))
        lacking[rng.choice(upright, count, replace=False)] = kind
    shots, counters = [], [117, 1030412, 4021]
    for place, when, size, day in visits:
        shots += shoot_visit(
            island,
            places[place],
            place,
            when,
            size,
            day,
            len(shots),
            tags,
            lacking,
            counters,
            (width, height),
            rng,
        )

    def stray(shot: Shot, metres: tuple, rng: np.random.Generator) -> Shot:
        return take_elsewhere(shot, island, metres, rng)

    return with_claims(with_second_camera(shots, len(CAMERAS) - 1, seed, stray), seed)


def choose_places(island, count: int, rng: np.random.Generator) -> list[tuple]:
    """Standpoints (x, y, target or None) along walks over the whole island, shore to summit.

    Each is STEP_M from the nearest other, as on trails: far enough apart not to show the same
    foreground, near enough to share the country around.
    """
    points = rng.uniform(-6800, 6800, (12000, 2))
    heights = island.ground(points[:, 0], points[:, 1])
    steep = np.abs(island.ground(points[:, 0] + 15, points[:, 1]) - heights) / 15
    good = (heights > 1.5) & (steep < 0.4)
    built = np.floor(island.face_centre[:, :2] / 24) @ [1, 10000]  # not against a wall
    good &= ~np.isin(np.floor(points / 24) @ [1, 10000], built)
    points, heights = points[good], heights[good]
    sights = np.array(list(island.landmarks.values()))
    chosen = [int(np.argmin(np.linalg.norm(points - sights[0], axis=1)))]
    gap = np.linalg.norm(points - points[chosen[0]], axis=1)
    while len(chosen) < count:
        near = np.flatnonzero((gap > STEP_M[0]) & (gap < STEP_M[1]))
        if len(near) == 0:
            stop("the island has no room for so many places: ask for fewer photos")
        low = len(chosen) < 0.3 * count  # the coast road first, then the tracks uphill
        top, power = (60, 1.2) if low else (min(2000, heights.max() - 60), 2.0)
        wanted = 4 + top * rng.random() ** power
        near = near[np.argsort(np.abs(heights[near] - wanted))[: max(1, len(near) // 8)]]
        chosen.append(int(near[np.argmax(gap[near])]))
        gap = np.minimum(gap, np.linalg.norm(points - points[chosen[-1]], axis=1))
    places = []
    for x, y in points[chosen]:
        away = np.linalg.norm(sights - (x, y), axis=1)
        seen = rng.random() < 0.7 and 60 < away.min() < 800
        places.append((x, y, tuple(sights[away.argmin()]) if seen else None))
    return places


def schedule_visits(places: int, photos: int, rng: np.random.Generator) -> list[tuple]:
    """(place, local time, photos, day number) of every visit, in order of time.

    Each place is visited on about two days at unrelated hours between 05:00 and 22:30.
    """
    sizes = []
    while sum(sizes) < photos:
        sizes.append(min(int(rng.choice([1, 1, 2, 2, 2, 3, 3, 4])), photos - sum(sizes)))
    count = len(sizes)
    quantiles = (np.arange(count) + rng.random(count)) / count
    hours = np.interp(quantiles, np.cumsum([0, 0.10, 0.70, 0.20]), [5, 7, 18.6, 22.0])
    days = max(1, count // 6)
    first = datetime(2023, 1, 5, tzinfo=timezone(timedelta(hours=UTC_OFFSET_HOURS)))
    dates = [first + timedelta(days=int(d)) for d in np.sort(rng.choice(700, days, replace=False))]
    order = np.concatenate([rng.permutation(places) for _ in range(count // places + 1)])[:count]
    rng.shuffle(order)
    shuffled = rng.permutation(days)
    visits = []
    for k in range(count):
        day = int(shuffled[k % days])
        when = dates[day] + timedelta(seconds=round(float(hours[k]) * 3600))
        visits.append((int(order[k]), when, sizes[k], day))
    return sorted(visits, key=lambda visit: visit[1])


def shoot_visit(island, place, number, when, size, day, first, tags, lacking, counters, shape, rng):
    """The photos of one visit: seconds and metres apart, each with a view worth taking."""
    camera = day % WALKERS
    make = CAMERAS[camera]
    x, y, target = place
    lift = 1.6 if rng.random() < 0.72 else float(rng.choice([4.0, 9.0, 25.0, 55.0]))
    if target is not None:
        heading = np.degrees(np.arctan2(target[0] - x, target[1] - y)) + rng.normal(0, 9)
    else:
        heading = choose_heading(island, x, y, lift, rng)
    f_number, shots = float(rng.choice(make[5])), []
    focal = int(rng.choice(make[3]))
    for k in range(size):
        index = first + k
        portrait = tags[index] in (6, 8)
        width, rows = shape[::-1] if portrait else shape
        ground = max(float(island.ground(x, y)), 0.0)
        skyline = skyline_tangent(island, x, y, ground + lift, heading)
        horizon = (
            0.36 + float(skyline) * focal / 36 * max(shape) / rows * 0.75 + rng.normal(0, 0.03)
        )
        view = {"x": float(x), "y": float(y), "height": lift, "heading_deg": float(heading % 360),
                "focal": focal / 36, "horizon": float(np.clip(horizon, 0.26, 0.72)),
                "width": int(width), "rows": int(rows)}  # fmt: skip
        name = f"{when:%Y-%m-%d}/{make[6].format(counters[camera])}"
        counters[camera] += 1
        shots.append(
            Shot(
                index,
                name,
                number,
                view,
                ground + lift,
                when,
                camera,
                focal,
                f_number,
                int(tags[index]),
                str(lacking[index]),
            )
        )
        when = when + timedelta(seconds=float(np.round(rng.uniform(3, 25), 2)))
        x, y = x + rng.normal(0, 2.5), y + rng.normal(0, 2.5)
        heading += rng.normal(0, 7)
    return shots


def take_elsewhere(shot: Shot, island, metres: tuple, rng: np.random.Generator) -> Shot:
    """The same photographer some metres away, on dry and even ground, looking elsewhere."""
    angle, away = rng.uniform(0, 2 * np.pi, 64), rng.uniform(*metres, 64)
    x, y = shot.view["x"] + away * np.sin(angle), shot.view["y"] + away * np.cos(angle)
    ground = island.ground(x, y)
    built = np.floor(island.face_centre[:, :2] / 24) @ [1, 10000]
    good = (ground > 1.5) & (np.abs(island.ground(x + 15, y) - ground) < 6)
    good &= ~np.isin(np.floor(np.stack([x, y], axis=1) / 24) @ [1, 10000], built)
    if not good.any():
        return shot
    k = int(np.flatnonzero(good)[0])
    heading = choose_heading(island, x[k], y[k], 1.6, rng)
    wide = shot.view["rows"] / shot.view["width"]
    skyline = skyline_tangent(island, x[k], y[k], ground[k] + 1.6, heading)
    horizon = 0.36 + float(skyline) * shot.view["focal"] / min(wide, 1) * 0.75
    view = {"x": float(x[k]), "y": float(y[k]), "height": 1.6, "heading_deg": float(heading % 360),
            "horizon": float(np.clip(horizon, 0.26, 0.72))}  # fmt: skip
    return replace(shot, view={**shot.view, **view}, altitude=float(ground[k]) + 1.6)


def skyline_tangent(island, x: float, y: float, eye: float, heading, nearest=6) -> np.ndarray:
    """Tangent of elevation of the highest ground along headings (deg, any shape)."""
    angle = np.radians(np.asarray(heading))[..., None]
    away = np.geomspace(nearest, 9000, 40)
    ground = island.ground(x + away * np.sin(angle), y + away * np.cos(angle), 9.0)
    return ((np.maximum(ground, 0) - eye) / away).max(-1)


def choose_heading(island, x: float, y: float, lift: float, rng: np.random.Generator) -> float:
    """The best of some random headings: relief ahead, but no slope right in front of the lens."""
    eye = max(float(island.ground(x, y)), 0.0) + lift
    headings = rng.uniform(0, 360, 12)
    around = headings + np.array([[-16], [0], [16]])
    skyline = skyline_tangent(island, x, y, eye, around).max(0)
    relief = skyline_tangent(island, x, y, eye, around, 400).mean(0)
    score = np.abs(relief - rng.uniform(0.0, 0.2)) + 3 * np.maximum(
        skyline - np.maximum(relief, 0) - 0.1, 0
    )
    return float(headings[np.argmin(score)])


# ---------------------------------------------------------------- photographs


def position(shot: Shot) -> tuple[float, float]:
    """Latitude and longitude (degrees) of the camera."""
    from island import LATITUDE, LONGITUDE, METRES_PER_DEGREE

    lat = LATITUDE + shot.view["y"] / METRES_PER_DEGREE
    return lat, LONGITUDE + shot.view["x"] / (METRES_PER_DEGREE * np.cos(np.radians(LATITUDE)))


def exposure(gain: float, f_number: float) -> tuple[tuple[int, int], int]:
    """Exposure time as a rational and ISO that a camera would have chosen for this much light."""
    light = 0.0077 * (gain / 0.6) ** 3 * f_number**2  # seconds × ISO
    iso = int(np.clip(50 * 2 ** np.ceil(np.log2(max(light / (50 / 60), 1))), 50, 6400))
    seconds = np.clip(light / iso, 1 / 8000, 0.5)
    return (1, max(2, round(1 / seconds))), iso


def exif_bytes(shot: Shot, gain: float, width: int, height: int) -> bytes:
    """EXIF of one photo as its camera would have written it; b"" where it has none."""
    import piexif

    if shot.exif == "none":
        return b""
    shot = replace(shot, **shot.said)
    make, model, lens, _, crop, _, _ = CAMERAS[shot.camera]
    local, offset = f"{shot.when:%Y:%m:%d %H:%M:%S}", f"{UTC_OFFSET_HOURS:+03d}:00"
    seconds, iso = exposure(gain, shot.f_number)
    image = {piexif.ImageIFD.Make: make, piexif.ImageIFD.Model: model,
             piexif.ImageIFD.Orientation: shot.tag, piexif.ImageIFD.XResolution: (72, 1),
             piexif.ImageIFD.YResolution: (72, 1), piexif.ImageIFD.ResolutionUnit: 2}  # fmt: skip
    detail = {
        piexif.ExifIFD.ExifVersion: b"0231", piexif.ExifIFD.ExposureTime: seconds,
        piexif.ExifIFD.FNumber: (round(shot.f_number * 10), 10),
        piexif.ExifIFD.ISOSpeedRatings: iso,
        piexif.ExifIFD.FocalLength: (round(shot.focal_35mm / crop * 100), 100),
        piexif.ExifIFD.FocalLengthIn35mmFilm: shot.focal_35mm, piexif.ExifIFD.LensModel: lens,
        piexif.ExifIFD.PixelXDimension: width, piexif.ExifIFD.PixelYDimension: height,
        piexif.ExifIFD.Flash: 16, piexif.ExifIFD.ColorSpace: 1,
    }  # fmt: skip
    if shot.exif != "no_time":
        image[piexif.ImageIFD.DateTime] = local
        detail[piexif.ExifIFD.DateTimeOriginal] = detail[piexif.ExifIFD.DateTimeDigitized] = local
        if shot.camera < WALKERS:
            detail[piexif.ExifIFD.OffsetTime] = detail[piexif.ExifIFD.OffsetTimeOriginal] = offset
        detail[piexif.ExifIFD.SubSecTimeOriginal] = f"{shot.when.microsecond // 10000:02d}"
    gps = gps_tags(shot) if shot.exif in ("full", "no_time") else {}
    return piexif.dump({"0th": image, "Exif": detail, "GPS": gps, "1st": {}, "thumbnail": None})


def gps_tags(shot: Shot) -> dict:
    """The GPS block: position, altitude, true heading and the satellites' UTC."""
    import piexif

    def sexagesimal(degrees: float) -> tuple:
        units = round(abs(degrees) * 36_000_000)  # 0.0001 second, 3 mm
        return (units // 36_000_000, 1), (units // 600_000 % 60, 1), (units % 600_000, 10_000)

    lat, lon = position(shot)
    tags = {
        piexif.GPSIFD.GPSVersionID: (2, 3, 0, 0),
        piexif.GPSIFD.GPSLatitudeRef: "N" if lat >= 0 else "S",
        piexif.GPSIFD.GPSLatitude: sexagesimal(lat),
        piexif.GPSIFD.GPSLongitudeRef: "E" if lon >= 0 else "W",
        piexif.GPSIFD.GPSLongitude: sexagesimal(lon),
        piexif.GPSIFD.GPSAltitudeRef: 0 if shot.altitude >= 0 else 1,
        piexif.GPSIFD.GPSAltitude: (round(abs(shot.altitude) * 100), 100),
        piexif.GPSIFD.GPSImgDirectionRef: "T",
        piexif.GPSIFD.GPSImgDirection: (round(shot.view["heading_deg"] * 100) % 36000, 100),
        piexif.GPSIFD.GPSHPositioningError: (300 + 17 * (shot.number * 7 % 40), 100),
    }
    if shot.exif != "no_time":
        utc = shot.when.astimezone(UTC)
        tags[piexif.GPSIFD.GPSDateStamp] = f"{utc:%Y:%m:%d}"
        tags[piexif.GPSIFD.GPSTimeStamp] = ((utc.hour, 1), (utc.minute, 1), (utc.second, 1))
    return tags


def jpeg_bytes(shot: Shot, island) -> tuple[bytes, np.ndarray]:
    """The finished file and the upright depth (metres, float16, every DEPTH_STEP-th pixel)."""
    from camera import Camera, render
    from PIL import Image

    photo, depth, gain = render(island, Camera(**shot.view), shot.when, shot.number)
    stored = Image.fromarray(np.ascontiguousarray(STORE[shot.tag](photo)))
    buffer = io.BytesIO()
    exif = exif_bytes(shot, gain, *stored.size)
    stored.save(buffer, "JPEG", quality=90, **({"exif": exif} if exif else {}))
    return buffer.getvalue(), depth[::DEPTH_STEP, ::DEPTH_STEP].astype(np.float16)


_ISLAND = {}


def take_photo(shot: Shot, output_dir: str, seed: int) -> str:
    """Render and write one photo and its depth; returns its name. Runs in a worker process."""
    if seed not in _ISLAND:
        from island import Island

        _ISLAND[seed] = Island(seed)
    jpeg, depth = jpeg_bytes(shot, _ISLAND[seed])
    photo = photo_path(output_dir, shot.filename, shot.claim)
    far = depth_path(output_dir, shot.filename)
    with write_atomically(far) as file:
        np.save(file, depth)
    if shot.exif == "placed by hand":
        with write_atomically(photo.with_name(photo.name + ".xmp"), "w") as file:
            file.write(sidecar(*position(shot)))
    with write_atomically(photo) as file:  # last: with it all of a photo is there
        file.write(jpeg)
    return shot.filename


def photo_path(output_dir: str | Path, filename: str, claim: str) -> Path:
    """Where a photo lies: claims that are to be checked apart from the others."""
    return Path(output_dir, "claims" if claim else "", "images", filename)


def depth_path(output_dir: str | Path, filename: str) -> Path:
    """Where the exact depth of a photo lies: upright, metres, inf = sky."""
    return Path(output_dir, "true_depth", filename + ".npy")


# ---------------------------------------------------------------- the run


def prepare(output_dir: Path, photos: int, width: int, height: int, seed: int, workers: int) -> int:
    """Render what is not there yet; returns how many photos were made now."""
    output_dir = Path(output_dir)
    wanted = {"format": 8, "photos": photos, "width": width, "height": height, "seed": seed}
    record = output_dir / "prepared.json"
    if record.exists():
        if json.loads(record.read_text()) != wanted:
            stop(
                f"{output_dir} holds photos made with other settings ({record.name}); remove its "
                "images/, claims/, true_depth/, truth.csv and prepared.json, or choose another "
                "--output-dir"
            )
        rows = read_truth(output_dir)
        if all(is_done(output_dir, row["filename"], row["claim"]) for row in rows):
            return 0
    from island import Island

    sweep_temporaries(output_dir)
    island = _ISLAND.setdefault(seed, Island(seed))
    shots = plan_shots(island, photos, width, height, seed)
    write_truth(output_dir, shots)
    with write_atomically(record, "w") as file:
        json.dump(wanted, file)
    todo = [shot for shot in shots if not is_done(output_dir, shot.filename, shot.claim)]
    render_all(todo, output_dir, seed, workers)
    return len(todo)


def render_all(todo: list[Shot], output_dir: Path, seed: int, workers: int) -> None:
    """Render photos over worker processes, with a progress bar."""
    import multiprocessing

    bar = progress(total=len(todo), desc="photographs", unit="photo")
    # Forked workers share the island already built; where fork is not usual they build their own.
    context = multiprocessing.get_context("fork" if sys.platform.startswith("linux") else "spawn")
    with bar, ProcessPoolExecutor(max(1, min(workers, len(todo))), context) as pool:
        count = len(todo)
        for _ in pool.map(take_photo, todo, [str(output_dir)] * count, [seed] * count):
            bar.update()


def is_done(output_dir: Path, filename: str, claim: str) -> bool:
    """True when both files of a photo are there (each is written whole or not at all)."""
    photo = photo_path(output_dir, filename, claim)
    return photo.exists() and depth_path(output_dir, filename).exists()


def write_truth(output_dir: Path, shots: list[Shot]) -> None:
    """truth.csv: where and when every photo was really taken, also those whose EXIF lacks it."""
    with write_atomically(output_dir / "truth.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(TRUTH_COLUMNS)
        for shot in shots:
            lat, lon = position(shot)
            table.writerow([
                shot.filename, shot.place, f"{lat:.7f}", f"{lon:.7f}", f"{shot.altitude:.2f}",
                f"{shot.view['heading_deg']:.2f}", shot.when.replace(tzinfo=None).isoformat(),
                UTC_OFFSET_HOURS * 60, shot.tag, CAMERAS[shot.camera][1], shot.exif, shot.claim,
            ])  # fmt: skip


def read_truth(output_dir: str | Path) -> list[dict]:
    """Rows of truth.csv as text."""
    with open(Path(output_dir, "truth.csv"), newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; every setting above has its flag."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output-dir", default=OUTPUT_DIR, type=Path, help="where to write")
    parser.add_argument("--photos", default=PHOTOS, type=int, help="how many photographs")
    parser.add_argument("--width", default=WIDTH, type=int, help="pixels of the longer side")
    parser.add_argument("--height", default=HEIGHT, type=int, help="pixels of the shorter side")
    parser.add_argument("--seed", default=SEED, type=int, help="which island")
    parser.add_argument("--workers", default=WORKERS, type=int, help="processes (default: cores)")
    args = parser.parse_args(argv)
    if args.photos < 1 or args.height < 16 or args.width < args.height:
        parser.error("--photos must be positive and --width at least --height, at least 16")
    return args


def main(argv: list[str] | None = None) -> int:
    """Render the demo photographs; returns the exit code."""
    args = parse_args(argv)
    workers = args.workers or os.cpu_count() or 1
    made = prepare(args.output_dir, args.photos, args.width, args.height, args.seed, workers)
    print(
        f"{made} photos rendered, {args.photos - made} already there: {args.output_dir / 'images'}"
    )
    print(f"what is true of each: {args.output_dir / 'truth.csv'}")
    print(f"next: python exif_extractor.py --data-dir {os.path.relpath(args.output_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
