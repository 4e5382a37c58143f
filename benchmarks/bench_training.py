"""Time frozen training once its features are cached: 30 epochs, five folds, 500 photos.

Features are random numbers of EfficientNet-Lite0's widths, so early stopping is switched off: all
epochs are trained. Prints seconds and peak memory of the process; the goals are 60 s and 3 GB on
two cores.

    python benchmarks/bench_training.py
    python benchmarks/bench_training.py --photos 2000 --epochs 60
"""

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import gps_orientation_trainer as trainer  # noqa: E402
from geophoto import devices, features  # noqa: E402
from geophoto.network import create_network  # noqa: E402
from geophoto.photos import Photos  # noqa: E402


class InMemory:
    """Stands for the features on disk."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def read(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        return self.values[rows, columns]


def made_up(count: int) -> features.FrozenData:
    """Photos in groups of five with random labels, and features that know a little of the place."""
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
    heads = create_network(features.LITE0, False, 0).heads
    first, grid = sum(heads.blocks), heads.grid_mean.numel()
    pooled = rng.standard_normal((count, first + 6 * grid), np.float32).astype(np.float16)
    pooled[:, :2] += 0.3 * places.astype(np.float16)
    return features.FrozenData(
        photos, pooled[:, :first], heads.blocks, InMemory(pooled), first, grid
    )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=30)
    args = parser.parse_args()
    data, network = made_up(args.photos), create_network(features.LITE0, False, 0)
    precision = devices.Precision("fp32", "cpu")
    arguments = ["--mode", "frozen", "--epochs", str(args.epochs), "--patience", "1000"]
    options = trainer.resolve_options(trainer.parse_args(arguments), precision)
    with tempfile.TemporaryDirectory() as folder:
        paths = {"checkpoints": Path(folder)}
        features.frozen_features = lambda *_: (data, [])
        begun = time.monotonic()
        trainer.train_frozen(data.photos, "rgb", network, paths, precision, options, "bench")
        took = time.monotonic() - begun
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    what = f"{args.photos} photos, {args.epochs} epochs, {options['folds']} folds and final model"
    print(f"{what}: {took:.0f} s, peak memory {peak:.2f} GiB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
