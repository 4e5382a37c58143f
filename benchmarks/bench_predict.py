"""Time predictions for photos without labels beside training's pass that fills its feature cache.

Both read the same photos, in turns of a few, so that a busy machine is busy for both; `make demo`
leaves the photos and the model. Prints photos per second of both, their ratio (goal: 0.9), and the
largest difference between answers one by one and all together (goal: 1e-6).

    python benchmarks/bench_predict.py
    python benchmarks/bench_predict.py --images data/images --checkpoint-dir checkpoints
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from geophoto.checkpoints import read_checkpoint  # noqa: E402
from geophoto.features import cached_rgb  # noqa: E402
from geophoto.photos import Photos  # noqa: E402
from geophoto.pictures import list_photos  # noqa: E402
from geophoto.predictions import Predictor, predict_unlabelled  # noqa: E402


def plain_bar(items, **about):
    return items


def as_photos(files: list[Path]) -> Photos:
    """Photos without labels, each with a key of its own for the cache."""
    unknown, count = np.full(len(files), np.nan), len(files)
    names = [str(file) for file in files]
    return Photos(
        names=names, lat=unknown, lon=unknown, minutes=unknown, altitude=unknown, sun=unknown,
        orientation=np.full(count, -1), seconds=unknown, camera=np.full(count, ""), files=files,
        sha256=np.array(names, object),
    )  # fmt: skip


def largest_difference(predictor: Predictor, files: list[tuple[str, Path]]) -> float:
    """Between the records of photos asked together and one by one, relative to their size."""
    whole = predict_unlabelled(predictor, files, plain_bar).select_dtypes("number")
    most = 0.0
    for i, one in enumerate(files):
        alone = predict_unlabelled(predictor, [one], plain_bar)[list(whole)].iloc[0]
        off = np.abs(alone - whole.iloc[i]) / np.maximum(np.abs(whole.iloc[i]), 1)
        most = max(most, float(off.max()))
    return most


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", default=str(ROOT / "data/demo/images"), help="folder of photos")
    parser.add_argument("--checkpoint-dir", default=str(ROOT / "checkpoints/demo"))
    parser.add_argument("--photos", type=int, default=300, help="at most so many")
    parser.add_argument("--turn", type=int, default=25, help="photos in one turn")
    parser.add_argument("--compared", type=int, default=20, help="photos also asked one by one")
    args = parser.parse_args()
    folder = Path(args.checkpoint_dir)
    checkpoint = read_checkpoint(folder / "best_gps_model_rgb.pth", print)
    predictor = Predictor(checkpoint, folder, "auto", 0.6)
    files = list(list_photos([args.images]).items())[: args.photos]
    took, spent = {"training": 0.0, "prediction": 0.0}, {"training": 0.0, "prediction": 0.0}

    def timed(name: str, work) -> None:
        begun, busy = time.monotonic(), time.process_time()
        work()
        took[name] += time.monotonic() - begun
        spent[name] += time.process_time() - busy

    predict_unlabelled(predictor, files[:2], plain_bar)  # the first pass builds its kernels
    with tempfile.TemporaryDirectory() as cache:
        for number, start in enumerate(range(0, len(files), args.turn)):
            part = files[start : start + args.turn]
            photos, place = as_photos([file for _, file in part]), Path(cache, str(number))
            works = {
                "training": lambda photos=photos, place=place: cached_rgb(
                    predictor.network, photos, place, predictor.size, predictor.precision, plain_bar
                ),
                "prediction": lambda part=part: predict_unlabelled(predictor, part, plain_bar),
            }
            for name in itertools.islice(itertools.cycle(works), number % 2, number % 2 + 2):
                timed(name, works[name])
    rate = {name: len(files) / seconds for name, seconds in took.items()}
    for name in took:
        print(
            f"{name:<11}{rate[name]:6.2f} photos/s, {spent[name] / len(files):.3f} s of processors "
            "a photo"
        )
    print(
        f"prediction / training: {rate['prediction'] / rate['training']:.2f} ({len(files)} photos)"
    )
    print(f"one by one: differs by {largest_difference(predictor, files[: args.compared]):.1e}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
