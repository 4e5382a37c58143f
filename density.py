"""What the four scripts share: files written whole or not at all, and geometry on the globe.

Reads data/exif_data.json, draws the density of its photos: data/density.png, and data/density.html
with thumbnails, to zoom in and to select from; it works without network.

    python density.py
    python density.py --data-dir data/demo
"""

from __future__ import annotations

import argparse
import errno
import functools
import importlib.util
import io
import itertools
import json
import math
import os
import shlex
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, NoReturn

# Read when torch and NumPy load, so every script imports this module before them. Threads that wait
# for each other must sleep, after some 0.1 ms at most: while they spin beside another busy process,
# the one they wait for has no core. NumPy's matrices here are too small for threads at all.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")  # of GNU's library, as in torch for Linux
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def imported_when_used(name: str):
    """A module whose loading waits for the first look into it (importlib's own recipe)."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.loader is not None, f"{name} is not installed"
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike
else:
    np = imported_when_used("numpy")  # the extractor starts sooner, and seldom needs it

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # folder with exif_data.json; the maps are written here
IMAGE_DIR = None  # folder of the photos, for their thumbnails; None = DATA_DIR/images
BANDWIDTH_KM = None  # kernel width of the map in km; None = by how close together the photos lie
# ------------------------------------------------------------------------

GROUP_RADII_KM = (1.0, 0.3, 0.1, 0.03, 0.0)  # tried in turn; 0 = bursts alone
GAP_HOURS = 3  # without a photo, after which a new outing begins
BURST_SECONDS = 60  # photos of one camera at most this far apart belong to one burst
LARGEST_GROUP_SHARE = 0.4  # a grouping with a larger group cannot be split fairly
DOUBTED_POSITION = ("gps_zero", "gps_void")  # warnings of the extractor: not used as a label
EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the IUGG (WGS84)
LOG_SECONDS = 30.0  # between two lines that tell in a log how far a long stage has come
LEAST_RADIUS_KM = 1e-3  # no position is known better than to a metre
DISK_REFUSES = errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS  # whatever is written next too

# ---------------------------------------------------------------- files


def stop(message: str) -> NoReturn:
    """End the run with exit code 2 and one line on stderr: the user must change something."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


def run_script(main: Callable[[], int]) -> NoReturn:
    """Run a script as a program: characters that the output's encoding lacks (cp1252 has no minus)
    are shown as "?"; Ctrl-C and SIGTERM end it with one line and exit code 130 or 143."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # None without a console
        sys.stdout.reconfigure(errors="replace")
    import signal

    own, ended = os.getpid(), []
    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # in the background it is not
        numbers.append(signal.SIGINT)

    def end(number: int, frame: object) -> None:
        if os.getpid() != own:  # a process of this script's, forked from it
            os._exit(128 + number)
        ended.append(number)
        raise KeyboardInterrupt

    for number in numbers:
        signal.signal(number, end)
    try:
        code = main()
    except KeyboardInterrupt:
        name = Path(sys.argv[0]).name
        print(f"\n{name}: interrupted; the same command goes on from here", file=sys.stderr)
        code = 128 + (ended[0] if ended else signal.SIGINT)
    finally:
        for number in numbers:  # from here on a signal ends the process without a traceback
            signal.signal(number, signal.SIG_DFL)
    if ended:  # clearing torch away took 27 s on a busy machine; files are closed by now
        for stream in filter(None, (sys.stdout, sys.stderr)):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


class Lines:
    """Makes lines of what tqdm draws, for a log."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream

    def write(self, text: str) -> None:
        if shown := text.strip():
            self.stream.write(shown + "\n")

    def flush(self) -> None:
        self.stream.flush()


def progress(items: Iterable | None = None, **about):
    """tqdm on stderr: a bar on a terminal, in a log a line every LOG_SECONDS."""
    from tqdm import tqdm

    if sys.stderr is None or sys.stderr.isatty():
        return tqdm(items, **about)
    form = "{desc}: {n_fmt} of {total_fmt}, {elapsed} passed, {remaining} left, {rate_fmt}"
    often = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS, "delay": LOG_SECONDS}
    return tqdm(items, **{**about, **often}, file=Lines(sys.stderr), bar_format=form)


def silent(message: str) -> None:
    """Where rooms say what nobody wants to hear."""


@contextmanager
def write_atomically(path: str | Path, mode: str = "wb", **open_options) -> Iterator[IO]:
    """Open a temporary file beside `path`; on success it is synced and takes the name at once.

    After an exception or a kill the old content of `path` is intact. Parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tag = zlib.crc32(os.fsencode(path.name))  # tells long names with the same beginning apart
    temporary = path.with_name(f".{path.name[:40]}.{tag:08x}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **open_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        refused = error if isinstance(error, OSError) else error.__context__  # torch hides it
        if isinstance(refused, OSError) and refused.filename in (None, str(temporary)):
            raise OSError(refused.errno, refused.strerror, str(path)) from error
        raise


@contextmanager
def named_in_errors(path: str | Path) -> Iterator[None]:
    """What the file system refuses without a name (a write, a flush) gets that of `path`."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def ready_to_write(*folders: str | Path) -> None:
    """Make the folders; end the run before its work where one may not be written to or is full."""
    import tempfile

    for folder in folders:
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            stop(f"cannot write to {folder}: {error.strerror or error}")


@contextmanager
def one_line_for_files() -> Iterator[None]:
    """What the file system refuses ends the run as stop does: one line, the path, exit code 2."""
    try:
        yield
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        stop(f"{where}{error.strerror or error}")


def sweep_temporaries(folder: str | Path) -> int:
    """Remove what killed runs left below `folder`; temporaries of living processes stay."""
    removed = 0
    for file in Path(folder).rglob(".*.tmp"):
        pid = file.name.split(".")[-2]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _process_lives(int(pid))):
            file.unlink(missing_ok=True)
            removed += 1
    return removed


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):  # another user's; a number that no process has
        return True
    return True


def file_sha256(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    import hashlib  # not at the top: the extractor starts in a tenth less time without it

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def next_command(
    script: str, data_dir: Path, image_dir: Path, checkpoint_dir: str | Path = "checkpoints"
) -> str:
    """The line that names the next command, with a flag for every folder that is not usual."""
    folders = (("data", data_dir, "data"), ("image", image_dir, data_dir / "images"),
               ("checkpoint", checkpoint_dir, "checkpoints"))  # fmt: skip
    flags = [f" --{name}-dir {shlex.quote(str(folder))}" for name, folder, usual in folders
             if Path(folder) != Path(usual)]  # fmt: skip
    return f"next: python {script}.py{''.join(flags)}"


# ---------------------------------------------------------------- the globe


def unit_vectors(lat: ArrayLike, lon: ArrayLike) -> np.ndarray:
    """Turn degrees into unit vectors (..., 3), float64; NaN stays NaN."""
    lat, lon = np.radians(np.asarray(lat, float)), np.radians(np.asarray(lon, float))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def lat_lon(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn vectors (..., 3) of any length > 0 into degrees (lat, lon)."""
    x, y, z = np.moveaxis(np.asarray(vectors, float), -1, 0)
    return np.degrees(np.arctan2(z, np.hypot(x, y))), np.degrees(np.arctan2(y, x))


def arc_km(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Great-circle distance of unit vectors (..., 3), exact from millimetres to the antipode.

    2R·atan2(|u−v|, |u+v|), after Kahan: the haversine's arcsine loses digits at the antipode.
    """
    return 2 * EARTH_RADIUS_KM * np.arctan2(_length(u - v), _length(u + v))


def _length(vectors: np.ndarray) -> np.ndarray:
    """Of vectors (..., 3): the same bits as np.linalg.norm in half the time."""
    x, y, z = np.moveaxis(vectors, -1, 0)
    return np.sqrt(x * x + y * y + z * z)


def distance_label(km: float, _position=None) -> str:
    """A distance as people say it; the second argument is what matplotlib's formatters pass."""
    if km < 0.9995:  # what rounds to 1000 m is a kilometre
        return f"{km * 1000:.3g} m"
    return f"{km:,.0f} km" if km >= 9.995 else f"{km:.3g} km"


def distance_km(lat1, lon1, lat2, lon2) -> np.ndarray:
    """Great-circle distance in km between points in degrees; arrays broadcast."""
    return arc_km(unit_vectors(lat1, lon1), unit_vectors(lat2, lon2))


def bearing_deg(lat1, lon1, lat2, lon2) -> np.ndarray:
    """Initial heading from point 1 to point 2, degrees clockwise from true north, 0 ≤ b < 360."""
    lat1, lat2 = np.radians(np.asarray(lat1, float)), np.radians(np.asarray(lat2, float))
    east = np.radians(np.asarray(lon2, float) - np.asarray(lon1, float))
    y = np.sin(east) * np.cos(lat2)
    x = np.cos(lat1) * np.sin(lat2) - np.sin(lat1) * np.cos(lat2) * np.cos(east)
    return np.degrees(np.arctan2(y, x)) % 360.0 % 360.0  # twice: −1e-14 % 360 is 360


def geographic_median(lat: np.ndarray, lon: np.ndarray) -> tuple[float, float]:
    """The point with the least summed great-circle distance to all points (Weiszfeld 1937).

    The iteration runs on chords; the best of its result and the points themselves is returned.
    """
    vectors = unit_vectors(lat, lon)
    point = vectors.mean(axis=0) + 1e-12
    for _ in range(100):
        weight = 1.0 / np.maximum(np.linalg.norm(vectors - point, axis=1), 1e-9)
        step = (vectors * weight[:, None]).sum(axis=0) / weight.sum()
        if np.linalg.norm(step - point) < 1e-12:
            break
        point = step
    point = point / np.linalg.norm(point)
    nearest = vectors[np.argsort(np.linalg.norm(vectors - point, axis=1))[:32]]
    candidates = np.vstack([point[None], nearest])
    cost = [arc_km(vectors, candidate).sum() for candidate in candidates]
    lat0, lon0 = lat_lon(candidates[int(np.argmin(cost))])
    return float(lat0), float(lon0)


def group_photos(
    lat: np.ndarray,
    lon: np.ndarray,
    seconds: np.ndarray,
    camera: Sequence[str],
    folder: Sequence[str],
    radius_km: float,
) -> np.ndarray:
    """Number the connected components of "within radius_km" ∪ "same burst", (N,) int.

    `seconds` is time in seconds (NaN = unknown). A burst links photos of one camera at most
    BURST_SECONDS apart. Photos with neither position nor burst are linked by folder.
    """
    count = len(lat)
    parent = np.arange(count)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    placed = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
    if radius_km > 0 and len(placed):
        for i, j in _close_pairs(unit_vectors(lat[placed], lon[placed]), radius_km, root, placed):
            parent[root(i)] = root(j)

    cameras = np.unique(np.asarray(camera, dtype=str), return_inverse=True)[1]
    timed = np.flatnonzero(np.isfinite(seconds))
    timed = timed[np.lexsort((seconds[timed], cameras[timed]))]
    in_burst = np.zeros(count, bool)
    for i, j in itertools.pairwise(timed.tolist()):
        if cameras[i] == cameras[j] and seconds[j] - seconds[i] <= BURST_SECONDS:
            parent[root(i)] = root(j)
            in_burst[[i, j]] = True

    first_of: dict[str, int] = {}
    for i in np.flatnonzero(~(np.isfinite(lat) & np.isfinite(lon)) & ~in_burst).tolist():
        parent[root(i)] = root(first_of.setdefault(str(folder[i]), i))
    return np.unique([root(i) for i in range(count)], return_inverse=True)[1]


def _close_pairs(vectors: np.ndarray, radius_km: float, root, number: np.ndarray):
    """Yield pairs that connect everything within radius_km, without listing all pairs.

    Cells of a cubic grid whose diagonal is the radius: one cell is connected by definition, so
    only one pair for each two neighbouring cells is looked for. `root` skips what is joined.
    """
    chord = 2 * np.sin(min(radius_km / EARTH_RADIUS_KM, np.pi) / 2)
    cells, cell_of = np.unique(
        np.floor(vectors / (chord / np.sqrt(3))).astype(np.int64), axis=0, return_inverse=True
    )
    order = np.argsort(cell_of.ravel(), kind="stable")
    members = np.split(order, np.cumsum(np.bincount(cell_of.ravel()))[:-1])
    for inside in members:
        for i in inside[1:]:
            yield number[inside[0]], number[i]
    index = {tuple(cell): k for k, cell in enumerate(cells.tolist())}
    steps = [
        step for step in np.ndindex(5, 5, 5) if step > (2, 2, 2)
    ]  # half of the 124 neighbours: each two cells meet once
    for k, (x, y, z) in enumerate(cells.tolist()):
        for dx, dy, dz in steps:
            other = index.get((x + dx - 2, y + dy - 2, z + dz - 2))
            if other is None or root(number[members[k][0]]) == root(number[members[other][0]]):
                continue
            for i in members[k]:
                apart = np.linalg.norm(vectors[members[other]] - vectors[i], axis=1)
                if apart.min() <= chord:
                    yield number[i], number[members[other][apart.argmin()]]
                    break


def group_for_split(
    lat, lon, seconds, camera, folder, least_groups: int
) -> tuple[np.ndarray, float, str]:
    """Group with the first of GROUP_RADII_KM that leaves enough groups, none too large.

    Returns (group numbers (N,), radius in km, by what: "place", "days", "gaps", "bursts" or
    "stretches"). Where no radius separates: days by the sun, else what lies between gaps of
    GAP_HOURS, if either can fill half as many; else bursts alone; and what is one burst is cut
    into stretches of time. Photos without a time then go by folder.
    """

    def fair(groups: np.ndarray, least: int) -> bool:
        sizes = np.bincount(groups)
        return len(sizes) >= least and sizes.max() <= LARGEST_GROUP_SHARE * len(groups)

    for radius_km in GROUP_RADII_KM[:-1]:
        groups = group_photos(lat, lon, seconds, camera, folder, radius_km)
        if fair(groups, least_groups):
            return groups, radius_km, "place"
    by_the_sun = np.asarray(seconds) + 240 * np.nan_to_num(np.asarray(lon, float))
    days = _group_times(np.floor(by_the_sun / 86400), folder)
    if fair(days, least_groups // 2):
        return days, 0.0, "days"
    gaps = _group_times(_stretches(seconds, 3600 * GAP_HOURS), folder)
    if fair(gaps, least_groups // 2):
        return gaps, 0.0, "gaps"
    bursts = group_photos(lat, lon, seconds, camera, folder, 0.0)
    if fair(bursts, 3) or not np.isfinite(seconds).any():
        return bursts, 0.0, "bursts"
    return _group_times(_cut(seconds, least_groups), folder), 0.0, "stretches"


def _group_times(number: np.ndarray, folder: Sequence[str]) -> np.ndarray:
    """Group numbers (N,) of times that have a number, and of the folders of the rest."""
    names = [f"/{n:.0f}" if np.isfinite(n) else str(f) for n, f in zip(number, folder, strict=True)]
    return np.unique(names, return_inverse=True)[1]


def _stretches(seconds: np.ndarray, gap_s: float) -> np.ndarray:
    """Number of the stretch, between gaps of so many seconds, that each time lies in; NaN
    without a time."""
    number = np.full(len(seconds), np.nan)
    order = np.argsort(seconds, kind="stable")
    order = order[np.isfinite(np.asarray(seconds)[order])]
    steps = np.diff(np.asarray(seconds)[order], prepend=-np.inf) > gap_s
    number[order] = np.cumsum(steps)
    return number


def _cut(seconds: np.ndarray, count: int) -> np.ndarray:
    """Number of the stretch of each time when the photos are cut into `count` stretches of about
    as many, each cut at the widest gap near its place; NaN without a time."""
    number = np.full(len(seconds), np.nan)
    order = np.argsort(seconds, kind="stable")
    order = order[np.isfinite(np.asarray(seconds)[order])]
    length = len(order) / count
    gaps = np.diff(np.asarray(seconds)[order])
    cuts = []
    for k in range(1, count):
        first, last = int((k - 0.3) * length), max(int((k + 0.3) * length), int(k * length) + 1)
        near = gaps[first:last]
        if len(near) and near.max() > 0:
            cuts.append(first + int(near.argmax()))
    number[order] = np.searchsorted(np.unique(cuts), np.arange(len(order)), side="left")
    return number


def kernel_log_per_km2(apart_km: np.ndarray, bandwidth_km: np.ndarray | float) -> np.ndarray:
    """Log density per km² of a von Mises–Fisher kernel at great-circle distance apart_km.

    Chord form, −κ|u−v|²/2 with κ = (R/bandwidth)²: a dot product has lost the metres by then.
    """
    kappa = (EARTH_RADIUS_KM / np.asarray(bandwidth_km, float)) ** 2
    half_chord = np.sin(np.asarray(apart_km, float) / (2 * EARTH_RADIUS_KM))
    norm = kappa / (2 * np.pi * EARTH_RADIUS_KM**2 * -np.expm1(-2 * kappa))
    return np.log(norm) - 2 * kappa * half_chord**2


def density_per_km2(lat, lon, at_lat, at_lon, bandwidth_km: float) -> np.ndarray:
    """Photos per km² at the points `at`, by a von Mises–Fisher kernel on the sphere, (M,)."""
    photos, at = unit_vectors(lat, lon), unit_vectors(at_lat, at_lon).reshape(-1, 3)
    total = np.zeros(len(at))
    for start in range(0, len(photos), 256):  # flat memory for 100,000 photos
        apart = arc_km(at[:, None], photos[None, start : start + 256])
        total += np.exp(kernel_log_per_km2(apart, bandwidth_km)).sum(axis=1)
    return total


def draw_around(centres, bandwidth_km, uniform, normal) -> np.ndarray:
    """One point (..., 3) of each von Mises–Fisher kernel from uniform numbers (...) and normal
    ones (..., 3): exact on the sphere, the cosine of the angle by inversion (Wood 1994)."""
    kappa = (EARTH_RADIUS_KM / bandwidth_km) ** 2
    versine = -np.log(uniform + (1 - uniform) * np.exp(-2 * kappa)) / kappa  # 1 − cos
    sine = np.sqrt(np.clip(versine * (2 - versine), 0, 1))
    tangent = np.cross(centres, normal)
    tangent /= np.linalg.norm(tangent, axis=-1, keepdims=True)
    return centres * (1 - versine)[..., None] + tangent * sine[..., None]


def distinct_places(centres, draws, reach_km: float, count: int) -> list[tuple]:
    """At most `count` places (lat, lon, probability) of one density, most probable first.

    A place is one of the centres (K, 3) with the draws (S, 3) that lie within `reach_km` of it
    and not of an earlier one; places with less than 2 % are left out.
    """
    near = arc_km(centres[:, None], draws[None]) <= reach_km
    places = []
    for _ in range(count):
        shares = near.mean(axis=1)
        best = int(np.argmax(shares))
        if shares[best] < 0.02:
            break
        lat, lon = lat_lon(centres[best])
        places.append((float(lat), float(lon), float(shares[best])))
        near = near & ~near[best]
    return places


def spread_order(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Order photos so that every beginning of the list already covers the map, (N,) indices.

    Along a Morton curve of the positions, taken in bit-reversed (van der Corput) steps. Photos
    without position come last.
    """
    placed = np.flatnonzero(np.isfinite(lat) & np.isfinite(lon))
    rows = ((np.asarray(lat)[placed] + 90) / 180 * (2**26 - 1)).astype(np.int64)
    columns = ((np.asarray(lon)[placed] + 180) / 360 * (2**26 - 1)).astype(np.int64)
    code = np.zeros(len(placed), np.int64)
    for bit in range(26):
        code |= ((rows >> bit) & 1) << (2 * bit + 1) | ((columns >> bit) & 1) << (2 * bit)
    along = placed[np.argsort(code, kind="stable")]
    bits = max(1, int(np.ceil(np.log2(max(len(along), 2)))))
    steps = [int(f"{i:0{bits}b}"[::-1], 2) for i in range(2**bits)]
    spread = along[[i for i in steps if i < len(along)]]
    return np.concatenate([spread, np.setdiff1d(np.arange(len(lat)), placed)]).astype(int)


def cell_centre(lat: float, lon: float, cell_km: float) -> tuple[float, float]:
    """Centre of the H3 cell of a position, of the size whose edge is nearest to cell_km."""
    import h3

    return h3.cell_to_latlng(h3.latlng_to_cell(lat, lon, _cell_resolution(cell_km)))


@functools.cache
def _cell_resolution(cell_km: float) -> int:
    import h3

    return min(
        range(16),
        key=lambda r: abs(math.log(h3.average_hexagon_edge_length(r, unit="km") / cell_km)),
    )


# ---------------------------------------------------------------- the map


def read_positions(data_dir: Path) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the table, those that the extractor doubts left out; ends the run without."""
    return read_places(data_dir)[1:]


def read_places(data_dir: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The same with the names of the photos."""
    table = data_dir / "exif_data.json"  # read plainly: the extractor imports this module
    try:
        with open(table, encoding="utf-8") as file:
            rows = json.load(file)
        found = [(str(row.get("filename") or ""), place) for row in rows
                 if (place := trusted_position(row))]  # fmt: skip
    except FileNotFoundError:
        stop(f"no table {table}: run python exif_extractor.py --data-dir {data_dir} first")
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        stop(f"{table} is not a table of photos ({error!r}): run python exif_extractor.py again")
    if not found:
        stop(f"no photo in {table} has a position")
    lat, lon = np.array([place for _, place in found], float).T
    return [name for name, _ in found], lat, lon


def trusted_position(row: dict) -> tuple[float, float] | None:
    """Latitude and longitude of a row; None where a cell is none, doubted or an estimate."""
    if set(str(row["warnings"] or "").split(";")) & set(DOUBTED_POSITION):
        return None
    if row.get("gps_source") == "estimate":
        return None
    try:
        lat, lon = float(row["gps_latitude"]), float(row["gps_longitude"])
    except (TypeError, ValueError, OverflowError):  # null, or whatever a hand wrote
        return None
    return (lat, lon) if abs(lat) <= 90 and abs(lon) <= 180 else None


def draw_map(lat: np.ndarray, lon: np.ndarray, bandwidth_km: float, path: Path) -> None:
    """Draw photos per km², the photos themselves, coast or grid and a scale bar as PNG."""
    from geophoto.maps import draw_density  # a room: only this script's own work needs one

    draw_density(lat, lon, bandwidth_km, path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", default=DATA_DIR, help="folder with exif_data.json")
    parser.add_argument("--image-dir", default=IMAGE_DIR, help="photos (default DATA_DIR/images)")
    parser.add_argument("--bandwidth-km", default=BANDWIDTH_KM, type=float, help="kernel width")
    args = parser.parse_args(argv)
    if args.bandwidth_km is not None and not 0 < args.bandwidth_km < 20_000:
        stop("--bandwidth-km must lie between 0 and 20000")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    data_dir = Path(args.data_dir)
    image_dir = Path(args.image_dir) if args.image_dir else data_dir / "images"
    with one_line_for_files():
        draw_maps(data_dir, image_dir, args.bandwidth_km)
    return 0


def draw_maps(data_dir: Path, image_dir: Path, bandwidth_km: float | None) -> None:
    """Write both maps of the table's positions, by a kernel of the usual width if none is given."""
    from geophoto.maps import kernel_km, write_density_page

    names, lat, lon = read_places(data_dir)
    bandwidth_km = bandwidth_km or kernel_km(lat, lon)
    draw_map(lat, lon, bandwidth_km, data_dir / "density.png")
    page = data_dir / "density.html"
    write_density_page(page, names, lat, lon, image_dir, bandwidth_km, progress)
    print(f"{len(lat)} positions: wrote {data_dir}/density.png and {data_dir}/density.html, "
          f"kernel {distance_label(bandwidth_km)}")  # fmt: skip


if __name__ == "__main__":
    run_script(main)
