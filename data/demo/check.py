"""How well the demo's unplaced photos were placed and its false claims found, beside the truth.

Reads truth.csv and images/ below data/demo, what `evaluate_gps_model.py --place` wrote to
evaluation/demo, and --verify of the photos in claims/ to evaluation/demo/claims, and asks the model
what the pictures alone say.

    python data/demo/check.py
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from companions import CLOCK_MINUTES, SECOND, TRUE  # noqa: E402
from prepare import read_truth  # noqa: E402

from density import distance_km, progress, stop, write_atomically  # noqa: E402


def read_json(path: Path, action: str) -> dict:
    if not path.is_file():
        stop(f"no {path}: run python evaluate_gps_model.py {action} first")
    return json.loads(path.read_text(encoding="utf-8"))


def picture_places(truth: list[dict], demo: Path, checkpoints: Path) -> tuple:
    """Where the pictures alone say that photos were taken."""
    from geophoto.checkpoints import read_checkpoint
    from geophoto.predictions import Predictor, predict_unlabelled

    checkpoint = read_checkpoint(checkpoints / "best_gps_model.pth", print)
    predictor = Predictor(checkpoint, checkpoints, "auto", 0.6)
    files = [(row["filename"], demo / "images" / row["filename"]) for row in truth]
    told = predict_unlabelled(predictor, files, progress)
    return told["latitude"].to_numpy(), told["longitude"].to_numpy()


def places(truth: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Latitudes and longitudes of rows of truth.csv."""
    lat, lon = ([float(row[f"gps_{axis}"]) for row in truth] for axis in ("latitude", "longitude"))
    return np.array(lat), np.array(lon)


def tell_of_placing(
    truth: dict[str, dict], placed: dict, demo: Path, checkpoints: Path, picture: Path | None
) -> None:
    """The second camera's clock and places; draws them where a file is named."""
    mine = [row for row in placed["photos"] if truth[row["filename"]]["exif"] == "second"]
    rows = [truth[row["filename"]] for row in mine]
    told = np.array([(row["latitude"], row["longitude"]) for row in mine]).T
    timed = distance_km(*places(rows), *told)
    seen = picture_places(rows, demo, checkpoints)
    alone = distance_km(*places(rows), *seen)
    inside = np.mean(timed <= [row["radius90_km"] for row in mine])
    print(f"second camera ({' '.join(SECOND[:2])}): {len(mine)} photos without a position, "
          f"its clock {CLOCK_MINUTES} min ahead")  # fmt: skip
    for line in placed["clocks"]:
        if SECOND[1] in line:
            print(f"  found: {line}")
    print(f"  median error placed {np.median(timed) * 1000:.0f} m, by the picture alone "
          f"{np.median(alone) * 1000:.0f} m: {np.median(timed) / np.median(alone):.3f} of it; "
          f"{inside:.0%} inside their 90 % radius, "
          f"{sum(row['confident'] for row in mine)} confident")  # fmt: skip
    if picture:
        walkers = [row for row in truth.values() if row["exif"] in ("full", "no_time")]
        ways = [
            (f"picture alone: median error {np.median(alone):.1f} km", *seen),
            (f"time and picture: median error {np.median(timed) * 1000:.0f} m", *told),
        ]
        draw_placing(ways, walkers, rows, picture)
        print(f"  wrote {picture}")


def draw_placing(ways: list[tuple], walkers: list[dict], rows: list[dict], file: Path) -> None:
    """Lines from the truth to the answers of each way (title, latitudes, longitudes)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), layout="constrained")
    true_lat, true_lon = places(rows)
    for axis, (title, lat, lon) in zip(
        figure.subplots(1, len(ways), sharey=True), ways, strict=True
    ):
        known_lat, known_lon = places(walkers)
        axis.plot(known_lon, known_lat, ".", color="#c9ccd1", markersize=4, label="photos with GPS")
        axis.plot([true_lon, lon], [true_lat, lat], color="#b3432b", linewidth=0.9, alpha=0.7)
        axis.plot(true_lon, true_lat, ".", color="#1c1e21", markersize=5, label="truth")
        axis.plot(lon, lat, ".", color="#b3432b", markersize=7, label="answer")
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_aspect(1 / np.cos(np.radians(np.mean(true_lat))))
        axis.ticklabel_format(useOffset=False)
        axis.set(xlabel="longitude (°)", facecolor="#fafafa")
        axis.locator_params(nbins=5)
    figure.axes[0].set_ylabel("latitude (°)")
    figure.axes[0].legend(loc="lower right", fontsize=8, frameon=False)
    with write_atomically(file) as made:
        figure.savefig(made, format="png", dpi=110)


def tell_of_claims(truth: dict[str, dict], verified: dict) -> None:
    """The claims, ranked by how little they fit."""
    rows = verified["photos"]
    false = [truth[row["filename"]]["claim"] != TRUE for row in rows]
    first = sum(false[: sum(false)])
    print(f"{len(rows)} claims, {sum(false)} of them false: {first} of these fit least")
    for row in rows:
        print(f"  p = {row['p']:.3f}  {truth[row['filename']]['claim']:<32}  {row['filename']}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", default=ROOT / "data" / "demo", type=Path, help="the demo")
    add("--checkpoint-dir", default=ROOT / "checkpoints" / "demo", type=Path, help="its models")
    add("--output-dir", default=ROOT / "evaluation" / "demo", type=Path, help="what was found")
    add("--picture", type=Path, help="draw the second camera's places there, PNG")
    args = parser.parse_args(argv)
    placed = read_json(args.output_dir / "placed.json", "--place")
    verified = read_json(args.output_dir / "claims" / "verification.json", "--verify")
    truth = {row["filename"]: row for row in read_truth(args.data_dir)}
    tell_of_placing(truth, placed, args.data_dir, args.checkpoint_dir, args.picture)
    tell_of_claims(truth, verified)
    return 0


if __name__ == "__main__":
    sys.exit(main())
