"""How much faster the depth stage is than the official procedure, both in this one process.

Times 12-megapixel JPEGs with the Small architecture on this machine's CPU or GPU:

    python benchmarks/bench_depth.py

"Official" is what the authors' run.py does, written anew around the same network: full decode by
OpenCV, float64 resize, batch 1, fp32, softmax attention step by step, depth at photo resolution,
8-bit picture at photo resolution. "Ours" is depth_map_generator.run_jobs. The two take turns, so
that a busy neighbour disturbs both; processor seconds are printed beside wall seconds.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the depth stage does, before torch loads

import argparse
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).parents[1]))

import depth_map_generator
from geophoto import depth_network
from geophoto.pictures import open_upright
from tests.rule_weights import official_shapes, rule_weights

REPOSITORY = Path(__file__).parents[1]


def sample_photos(count: int) -> list[Image.Image]:
    """Photos to measure with: rendered ones of the demo where they exist, else soft noise."""
    rendered = sorted((REPOSITORY / "data" / "demo" / "images").rglob("*.jpg"))
    if rendered:
        return [open_upright(path) for path in rendered[:: max(1, len(rendered) // count)][:count]]
    rng = np.random.default_rng(1)
    soft = [rng.integers(0, 256, (48, 64, 3), dtype=np.uint8) for _ in range(count)]
    return [Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC) for small in soft]


def save_large(photos: list[Image.Image], folder: Path) -> list[Path]:
    """The photos as 12-megapixel JPEGs with camera-like grain, about 4 MB each."""
    rng = np.random.default_rng(2)
    paths = []
    for i, photo in enumerate(photos):
        size = (4000, 3000) if photo.width >= photo.height else (3000, 4000)
        pixels = np.asarray(photo.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += rng.integers(-6, 7, (*pixels.shape[:2], 1), dtype=np.int16)
        paths.append(folder / f"photo_{i}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def run_official(network, paths: list[Path], folder: Path, input_size: int) -> float:
    """The official procedure for every photo; seconds spent in the network."""
    device = next(network.parameters()).device
    colours, network_s = matplotlib.colormaps["Spectral_r"], 0.0
    for path in paths:
        image_bgr = cv2.imread(str(path))
        height, width = image_bgr.shape[:2]
        image = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2RGB) / 255.0
        size = depth_network.tensor_size(height, width, input_size)
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC)
        image = (image - depth_network.IMAGENET_MEAN) / depth_network.IMAGENET_STD
        tensor = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)[None]).to(device)
        start = time.perf_counter()
        small = depth_network.run_network(network, tensor, "fp32")[:, None]
        network_s += time.perf_counter() - start
        full = torch.nn.functional.interpolate(
            small, (height, width), mode="bilinear", align_corners=True
        )[0, 0].cpu().numpy()  # fmt: skip
        scaled = ((full - full.min()) / (full.max() - full.min()) * 255).astype(np.uint8)
        picture = (colours(scaled)[:, :, :3] * 255)[:, :, ::-1].astype(np.uint8)
        cv2.imwrite(str(folder / f"{path.stem}.png"), picture)
    return network_s


def run_ours(network, paths: list[Path], folder: Path, options, precision: str) -> float:
    """The depth stage for every photo; seconds spent in the network."""
    side = max_side(options) if options.fast_decode else None
    jobs = [depth_map_generator.Job(path.name, path, side) for path in paths]
    outcomes, network_s = depth_map_generator.run_jobs(
        network, jobs, folder, options, "inverse depth", precision, 1, 2
    )
    assert all(outcome == "written" for outcome, _ in outcomes.values()), outcomes
    return network_s


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(spearmanr(a.ravel(), b.ravel()).statistic)


def compare_depths(network, paths: list[Path], options, precision: str) -> tuple[float, float]:
    """Median rank correlation with fp32 and full decode: of `precision`, and of fast decode."""
    precise, fast = [], []
    for path in paths:
        image, small = (np.asarray(open_upright(path, side)) for side in (None, max_side(options)))
        full = depth_network.estimate_depth(network, image, options.input_size)
        half = depth_network.estimate_depth(network, image, options.input_size, precision)
        precise.append(rank_correlation(full, half))
        quick = depth_network.estimate_depth(network, small, options.input_size)
        fast.append(rank_correlation(full, quick))
    return statistics.median(precise), statistics.median(fast)


def max_side(options) -> int:
    """Longer side in px to which --fast-decode reads photos of 4:3."""
    return math.ceil(options.input_size * 4 / 3)


def take_turns(ways: dict, rounds: int) -> dict[str, tuple[float, float, float]]:
    """Median (wall, processor, network) seconds of each way; they run in turns, after a warm-up."""
    times = {name: [] for name in ways}
    for round_number in range(rounds + 1):
        for name, way in ways.items():
            wall, processor = time.perf_counter(), time.process_time()
            network_s = way()
            spent = time.perf_counter() - wall, time.process_time() - processor, network_s
            if round_number:
                times[name].append(spent)
    return {
        name: tuple(statistics.median(column) for column in zip(*spent, strict=True))
        for name, spent in times.items()
    }


def main(argv: list[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=4, help="per round (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="each way (%(default)s)")
    args = parser.parse_args(argv)
    device = depth_network.pick_device("auto")
    precision = depth_network.pick_precision("auto", device)
    shapes = official_shapes(384, 12, 37, (48, 96, 192, 384), 64, 32)
    official = depth_network.build_network(rule_weights(shapes)).to(device)
    official.set_attn_implementation("eager")
    network = depth_network.speed_up(
        depth_network.build_network(rule_weights(shapes)).to(device), compile=False
    )
    photos = sample_photos(args.photos)
    exact = depth_map_generator.Options("", 518, False, False, False, True)
    fast = depth_map_generator.Options("", 518, True, False, False, True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = save_large(photos, folder)
        ways = {
            "official": lambda: run_official(official, paths, folder, 518),
            "ours": lambda: run_ours(network, paths, folder, exact, precision),
            "ours --fast-decode": lambda: run_ours(network, paths, folder, fast, precision),
        }
        times = take_turns(ways, args.rounds)
        sizes = {ending: sum(p.stat().st_size for p in folder.rglob(f"*.{ending}"))
                 for ending in ("npy", "jpg")}  # fmt: skip
        half = precision if precision != "fp32" else "bf16"
        weights = REPOSITORY / "checkpoints" / "depth_anything_v2_demo.pth"
        if weights.exists():
            network, _ = depth_network.load_network("demo", weights.parent, device)
        agreement = compare_depths(network, paths, exact, half)
    print(f"Small architecture, {len(photos)} JPEGs of 12 megapixels "
          f"({sizes['jpg'] / len(photos) / 1e6:.1f} MB), {device} {precision}, "
          f"{torch.get_num_threads()} threads, median of {args.rounds} rounds")  # fmt: skip
    line = "-" * 88
    print(line)
    print(f"{'':20}photos/s  faster  processor s/photo  less  network only  time in network")
    print(line)
    reference = times["official"]
    for name, (wall, processor, network_s) in times.items():
        print(f"{name:20}{len(photos) / wall:8.3f}{reference[0] / wall:7.2f}×"
              f"{processor / len(photos):19.2f}{reference[1] / processor:5.2f}×"
              f"{reference[2] / network_s:13.2f}×{network_s / wall:16.0%}")  # fmt: skip
    print(line)
    print(f"one map: {sizes['npy'] / len(photos) / 1e6:.2f} MB (float32 at photo size: 48 MB)")
    named = "demo weights" if weights.exists() else "weights made by a rule"
    print(f"rank correlation with fp32 and full decode, {named}: "
          f"{half} {agreement[0]:.5f}, --fast-decode {agreement[1]:.5f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
