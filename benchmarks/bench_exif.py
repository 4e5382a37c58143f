"""Time the extractor against ExifTool on the same files in the same run, whole processes.

Reads the EXIF corpus beside the repository (or CORPUS), writes to a temporary folder, prints a
table. `--photos N` adds a library of N photos (hard links in many folders): time, memory, and the
second run over unchanged files; `--sidecars` gives each an XMP sidecar.

    python benchmarks/bench_exif.py
    python benchmarks/bench_exif.py --photos 1000000
    python benchmarks/bench_exif.py --photos 100000 --sidecars --rounds 0
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "exif_extractor.py"
PACKED = Path(__file__).parents[2] / "shared" / "exif_corpus" / "public.tar.gz"
TARGETS = {("jpeg", 1): 12, ("jpeg", 2): 20, ("all formats", 1): 4}


def link_jpegs(corpus: Path, target: Path) -> int:
    """Link the corpus's JPEG files (by content) into one tree; returns their number."""
    oracle = json.loads((corpus / "oracle.json").read_text(encoding="utf-8"))
    names = [name for name, record in sorted(oracle.items()) if record.get("ft") == "JPEG"]
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.link(corpus / "images" / name, target / name)
    return len(names)


def seconds(command: list) -> tuple[float, float]:
    """Wall-clock and processor time of a whole process; the latter holds on a busy machine."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    usual = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}  # caches bytecode
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(command, env=usual, check=False, **quiet)
    after, taken = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - begun
    return taken, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def extract_command(images: Path, data: Path, workers: int) -> list:
    return [
        sys.executable,
        SCRIPT,
        "--image-dir",
        images,
        "--data-dir",
        data,
        "--workers",
        str(workers),
    ]


def against_exiftool(name: str, images: Path, count: int, place: Path, rounds: int) -> None:
    """Alternate the tools; medians. Reading is from the page cache for both."""
    taken: dict[str, list[tuple]] = {"exiftool": [], "1": [], "2": []}
    for _ in range(rounds):
        taken["exiftool"].append(seconds(["exiftool", "-fast2", "-n", "-json", "-r", images]))
        for workers in (1, 2):
            data = place / "data"
            taken[str(workers)].append(seconds(extract_command(images, data, workers)))
            rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
            assert len(rows) >= count, (len(rows), count)
            shutil.rmtree(data)
    base, base_cpu = (statistics.median(column) for column in zip(*taken["exiftool"], strict=True))
    print(f"{name}, {count} files, median of {rounds}", flush=True)
    print(
        f"  {'exiftool -fast2':<24}{base:8.3f} s {count / base:8.0f} files/s{base_cpu:26.3f} s CPU"
    )
    for workers in (1, 2):
        own, cpu = (statistics.median(part) for part in zip(*taken[str(workers)], strict=True))
        target = TARGETS.get((name, workers))
        wanted = f" (target {target}×)" if target else ""
        label = f"extractor, {workers} worker{'s' * (workers > 1)}"
        speed = f"{base / own:.1f}×{wanted}"
        print(
            f"  {label:<24}{own:8.3f} s {count / own:8.0f} files/s {speed:<20}"
            f"{cpu:6.3f} s CPU {base_cpu / cpu:6.1f}×",
            flush=True,
        )


SIDECAR = """<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:exif="http://ns.adobe.com/exif/1.0/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="4"
 exif:GPSLatitude="48,30.5N" exif:GPSLongitude="8,15.25E" exif:GPSAltitude="926/10"
 exif:DateTimeOriginal="2021-05-06T07:08:09+02:00"/></rdf:RDF></x:xmpmeta>
"""


def library(corpus: Path, place: Path, photos: int, workers: int, sidecars: bool) -> None:
    """A large library: first run, second run over unchanged files, and peak memory of both."""
    oracle = json.loads((corpus / "oracle.json").read_text(encoding="utf-8"))
    sources = [
        corpus / "images" / name
        for name, record in sorted(oracle.items())
        if record.get("ft") == "JPEG" and ("lat" in record or "capture" in record)
    ]
    images = place / "library"
    for number in range(photos):
        folder = images / f"{number // 1000:05d}"
        if number % 1000 == 0:
            folder.mkdir(parents=True)
        # A file takes 65,000 hard links on ext4: many sources, each linked in turn.
        os.link(sources[number % len(sources)], folder / f"IMG_{number:07d}.jpg")
        if sidecars:
            if number % 1000 == 0:
                (place / f"{number}.xmp").write_text(SIDECAR)
            os.link(place / f"{number // 1000 * 1000}.xmp", folder / f"IMG_{number:07d}.jpg.xmp")
    told = ", each with a sidecar" * sidecars
    print(
        f"{photos} photos ({len(sources)} files, hard-linked){told}, {workers} workers", flush=True
    )
    first = None
    for run in ("first run", "unchanged"):
        command = extract_command(images, place / "big", workers)
        watched = subprocess.run(
            [sys.executable, "-c", WATCH, *map(str, command)], capture_output=True, text=True
        )
        taken, peak, workers_peak = map(float, watched.stdout.split()[-3:])
        first = first or taken
        size = (place / "big" / "exif_data.json").stat().st_size / 1e6
        print(
            f"  {run:<12}{taken:9.1f} s {photos / taken:9.0f} photos/s {first / taken:7.1f}×  "
            f"peak {peak:.0f} MB, workers {workers_peak:.0f} MB, table {size:.0f} MB",
            flush=True,
        )


WATCH = """
import os, subprocess, sys, time
begun = time.perf_counter()
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
peak = workers = 0
def high(pid):
    try:
        with open(f"/proc/{pid}/status") as file:
            return next((int(l.split()[1]) for l in file if l.startswith("VmHWM")), 0)
    except OSError:
        return 0
while child.poll() is None:
    peak = max(peak, high(child.pid))
    try:
        with open(f"/proc/{child.pid}/task/{child.pid}/children") as file:
            workers = max([workers, *map(high, file.read().split())])
    except OSError:
        pass
    time.sleep(0.1)
print(time.perf_counter() - begun, peak / 1e3, workers / 1e3)
"""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", nargs="?", type=Path, help="unpacked corpus with oracle.json")
    parser.add_argument(
        "--photos", type=int, default=0, help="also time a library of so many photos"
    )
    parser.add_argument("--sidecars", action="store_true", help="with a sidecar for each of these")
    parser.add_argument("--rounds", type=int, default=5, help="0: no comparison with ExifTool")
    args = parser.parse_args(argv)
    if not args.corpus and not PACKED.exists():
        print(f"no corpus: {PACKED} does not exist; pass an unpacked one", file=sys.stderr)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        corpus = place / "corpus"
        if args.corpus:
            shutil.copytree(args.corpus, corpus)
        else:
            with tarfile.open(PACKED) as archive:
                archive.extractall(corpus, filter="data")
            corpus = next(corpus.rglob("oracle.json")).parent
        count = link_jpegs(corpus, place / "jpeg")
        if args.rounds and shutil.which("exiftool"):
            against_exiftool("jpeg", place / "jpeg", count, place, args.rounds)
            total = len(json.loads((corpus / "oracle.json").read_text(encoding="utf-8")))
            against_exiftool(
                "all formats", corpus / "images", total, place, max(args.rounds // 2, 1)
            )
        elif args.rounds:
            print("exiftool is not installed (Debian: libimage-exiftool-perl): no comparison")
        if args.photos:
            library(corpus, place, args.photos, min(os.cpu_count() or 1, 8), args.sidecars)
    return 0


if __name__ == "__main__":
    sys.exit(main())
