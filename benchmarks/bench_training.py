"""Time frozen training once its features are cached, and the report: five folds, made-up photos.

Features are random numbers of EfficientNet-Lite0's widths in a file like the cache, so early
stopping is switched off: all epochs are trained. Prints the seconds of each part of the work, those
that processors were busy with it (what counts on a machine that others use too) and its peak
memory, without the pages of the cache that the system keeps as long as nobody needs the room.
Goals on two cores: 500 photos in 60 s and 3 GiB, 10,000 in 5 minutes and 4 GiB, 100,000 (8 GB of
disk) in 45 minutes and 12 GiB, the report in 5 minutes.

    python benchmarks/bench_training.py
    python benchmarks/bench_training.py --photos 2000 --epochs 60
    python benchmarks/bench_training.py --scale           # 1,000, 10,000 and 100,000 photos
"""

import argparse
import collections
import contextlib
import functools
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import evaluate_gps_model  # noqa: E402
import gps_orientation_trainer as trainer  # noqa: E402
from density import file_sha256  # noqa: E402
from geophoto import backbones, checkpoints, devices, features, frozen  # noqa: E402
from geophoto.network import PredictionHeads, create_network  # noqa: E402
from geophoto.orientations import ORIENTATION_CLASSES  # noqa: E402
from geophoto.photos import Photos  # noqa: E402
from geophoto.table import COLUMNS, encode_record, write_table  # noqa: E402

SCALE = (1_000, 10_000, 100_000)
PARTS = (  # what is timed: whose, name, part of the work; an inner part does not count outside
    (trainer, "split_photos", "folds"),
    (PredictionHeads, "fit_axes", "axes"),
    (frozen.HeadTrainer, "project", "axes"),
    (frozen.HeadTrainer, "ridge", "ridges"),
    (frozen, "choose_ridges", "ridges"),
    (frozen.HeadTrainer, "train", "rehearsals, training"),
    (frozen, "fit_densities", "densities"),
    (frozen, "hold_out", "densities"),
    (frozen, "judge_held_out", "claims judged"),
    (frozen, "judge_fused", "densities"),
    (frozen, "final_densities", "densities"),
    (frozen.HeadTrainer, "gallery", "densities"),
    (trainer.densities, "combine_folds", "densities"),
    (frozen, "trivial_answers", "baselines"),
    (frozen.HeadTrainer, "neighbours", "baselines"),
    (frozen, "knn_answers", "baselines"),
    (frozen, "choose_knn", "baselines"),
    (evaluate_gps_model, "evaluate", "report"),
)

# ---------------------------------------------------------------- made-up photos


def made_up(count: int, folder: Path) -> features.FrozenData:
    """Photos in groups of five with random labels, and features that know a little of the place,
    in a cache in `folder`."""
    rng = np.random.default_rng(0)
    places = rng.normal(0, 1, (count // 5 + 1, 2))[np.arange(count) // 5]
    photos = Photos(
        names=[f"{i}.jpg" for i in range(count)],
        lat=46 + places[:, 0],
        lon=7 + places[:, 1],
        minutes=rng.uniform(0, 1440, count),
        altitude=rng.gamma(2, 300, count),
        sun=rng.uniform(-20, 70, count),
        orientation=rng.integers(0, 6, count),
        seconds=np.arange(count) // 5 * 1e5,
        camera=np.full(count, "camera"),
        files=[Path(f"{i}.jpg") for i in range(count)],
    )
    heads = create_network(backbones.LITE0, False, 0).heads
    first, grid = sum(heads.blocks), heads.grid_mean.numel()
    cache = features.FeatureCache(folder, first + len(ORIENTATION_CLASSES) * grid)
    for part in np.array_split(np.arange(count), count // 500 + 1):
        rows = rng.standard_normal((len(part), cache.width), np.float32).astype(np.float16)
        rows[:, :2] += 0.3 * places[part].astype(np.float16)
        cache.append([(photos.names[i], 0, 0) for i in part], rows)
    stored = features.StoredFeatures(cache, list(range(count)))
    return features.FrozenData(photos, stored, None, heads.blocks, first, grid)


def write_photos(photos: Photos, data_dir: Path) -> None:
    """Their table, for the report."""

    def rows() -> Iterator[tuple[str, dict]]:
        for i, name in enumerate(photos.names):
            clock = f"{int(photos.minutes[i]) // 60:02d}:{int(photos.minutes[i]) % 60:02d}:00"
            known = {
                "filename": name, "status": "ok", "datetime": f"2020-01-01T{clock}",
                "gps_latitude": photos.lat[i], "gps_longitude": photos.lon[i],
                "gps_altitude": photos.altitude[i], "sun_elevation_deg": photos.sun[i],
                "orientation": ORIENTATION_CLASSES[photos.orientation[i]], "orientation_tag": 1,
            }  # fmt: skip
            row = {**dict.fromkeys(COLUMNS), **known}
            yield encode_record(row), row

    write_table(rows(), data_dir)


# ---------------------------------------------------------------- clocks


class Clock:
    """Seconds, those of the processors, and peak memory of each part; a thread looks at the memory
    twenty times a second."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = collections.defaultdict(float)
        self.peak: dict[str, float] = collections.defaultdict(float)
        self.busy: dict[str, float] = collections.defaultdict(float)
        self.inside, self.since = ["the rest"], (time.monotonic(), time.process_time())
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while True:
            part = self.inside[-1]
            self.peak[part] = max(self.peak[part], held_gib())
            time.sleep(0.05)

    def turn(self) -> None:
        """Credit the time since the last turn to the part inside."""
        now = time.monotonic(), time.process_time()
        self.seconds[self.inside[-1]] += now[0] - self.since[0]
        self.busy[self.inside[-1]] += now[1] - self.since[1]
        self.since = now

    def timed(self, work, part: str):
        @functools.wraps(work)
        def wrapped(*arguments, **options):
            self.turn()
            self.inside.append(part)
            try:
                return work(*arguments, **options)
            finally:
                self.turn()
                self.inside.pop()

        return wrapped


def held_gib() -> float:
    """Memory that this process alone holds, in GiB, without pages of mapped files (Linux)."""
    _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(resident) - int(shared)) * 4096 / 2**30


# ---------------------------------------------------------------- the run


def run(count: int, epochs: int) -> None:
    """Train and report on so many photos and print the table."""
    precision = devices.Precision("fp32", "cpu")
    arguments = ["--mode", "frozen", "--epochs", str(epochs), "--patience", "1000"]
    options = trainer.resolve_options(trainer.parse_args(arguments), precision)
    with tempfile.TemporaryDirectory() as made, contextlib.ExitStack() as patches:
        folder = Path(made)
        data, network = made_up(count, folder / "cache"), create_network(backbones.LITE0, False, 0)
        write_photos(data.photos, folder)
        patches.enter_context(mock.patch.object(features, "frozen_features", lambda *_: (data, {})))
        clock = Clock()
        for owner, name, part in PARTS:
            patches.enter_context(timed_in_place(clock, owner, name, part))
        paths = {"checkpoints": folder, "data": folder}
        found = trainer.train_frozen(
            data.photos, "rgb", network, paths, precision, options, "bench"
        )
        settings = {**options, "inputs": "rgb", "identity": 64 * "0", "weights": 64 * "0"}
        content = trainer.content_of(
            network, settings, file_sha256(folder / "exif_data.json"), found
        )
        checkpoints.write_checkpoint(folder / "best_gps_model_rgb.pth", content)
        clock.turn()
        trained, busy = sum(clock.seconds.values()), sum(clock.busy.values())
        evaluate_gps_model.evaluate(
            folder, folder, folder, folder / "evaluation", "fp32", evaluate_gps_model.BOOTSTRAP, 0
        )
        clock.turn()
    print(f"\n{count} photos, {epochs} epochs, {options['folds']} folds and final model")
    print(f"{'part':24}{'seconds':>10}{'CPU s':>10}{'peak GiB':>10}")
    for part, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1]):
        print(f"{part:24}{seconds:10.1f}{clock.busy[part]:10.1f}{clock.peak[part]:10.2f}")
    peak = max(clock.peak[part] for part in clock.seconds)
    print(f"{'training, all':24}{trained:10.1f}{busy:10.1f}{peak:10.2f}", flush=True)


def timed_in_place(clock: Clock, owner, name: str, part: str):
    work = clock.timed(getattr(owner, name), part)
    static = isinstance(vars(owner)[name], staticmethod)
    return mock.patch.object(owner, name, staticmethod(work) if static else work)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--scale", action="store_true", help="1,000, 10,000 and 100,000 photos")
    args = parser.parse_args()
    if not args.scale:
        run(args.photos, args.epochs)
        return 0
    for count in SCALE:  # each in a process of its own, so that its memory is its own
        command = [sys.executable, __file__, "--photos", str(count), "--epochs", str(args.epochs)]
        subprocess.run(command, check=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
