"""Which ingredient of the training recipe earns its place, on every set of photos at hand.

Sets: the demo, where it was rendered, and the folders of `--photos` (default: ../shared/photos),
each with an images/ folder. Their tables, depth maps and features are made once, in data/cache.
Every row is scored on the same grouped folds; negative results stay in the table.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --photos ~/trips --csv ablation.csv
"""

import argparse
import copy
import csv
import dataclasses
import functools
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import density  # noqa: E402
import gps_orientation_trainer as trainer  # noqa: E402
from geophoto import (  # noqa: E402
    baselines,
    devices,
    features,
    frozen,
    metrics,
    orientations,
    targets,
)
from geophoto.network import SCALES, create_network  # noqa: E402
from geophoto.photos import read_photos, split_photos  # noqa: E402

CACHE = ROOT / "data" / "cache" / "ablation"
DRAWS = 1000  # of the bootstrap by group
ENOUGH_GROUPS = 20  # below, a set is reported but proves nothing
HEADS = ("gps", "time", "altitude")

# ---------------------------------------------------------------- sets of photos


@dataclasses.dataclass
class PhotoSet:
    """One set: its photos, all features, the folds and the settings of the recipe."""

    name: str
    data: features.FrozenData  # RGB
    depth: features.FrozenData  # RGB and depth
    options: dict
    precision: devices.Precision
    backbone: nn.Module | None = None  # with its weights, for the row that trains its last stage

    def folds(self, kind: str) -> np.ndarray:
        return split_photos(self.data.photos, kind, self.options["folds"], 0)[0]

    @functools.cached_property
    def groups(self) -> np.ndarray:
        photos = self.data.photos
        return np.array(split_photos(photos, "grouped", 5, 0)[1]["groups"])


def run(script: str, *arguments) -> None:
    command = [sys.executable, str(ROOT / script), *map(str, arguments)]
    finished = subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if finished.returncode:
        raise SystemExit(f"{script} failed on {arguments}")


def load(name: str, images: Path, backbone: str) -> PhotoSet:
    """Tables, depth maps (demo model) and features of a set, from the cache where they are."""
    data_dir = CACHE / name
    run("exif_extractor.py", "--image-dir", images, "--data-dir", data_dir)
    run("depth_map_generator.py", "--image-dir", images, "--data-dir", data_dir,
        "--depth-model", "demo", "--input-size", 252)  # fmt: skip
    arguments = ["--data-dir", str(data_dir), "--image-dir", str(images), "--backbone", backbone,
                 "--mode", "frozen", "--checkpoint-dir", str(ROOT / "checkpoints")]  # fmt: skip
    precision = devices.Precision()
    options = trainer.resolve_options(trainer.parse_args(arguments), precision)
    photos, _ = read_photos(data_dir, images)
    paths = {"data": data_dir, "checkpoints": ROOT / "checkpoints"}
    options["depth_model"] = trainer.read_depth_model(data_dir)
    network = create_network(backbone, True, 0)
    options["weights"] = features.load_backbone_weights(network, paths["checkpoints"], True)
    both, _ = features.frozen_features(photos, "depth", network, data_dir, precision, options, tqdm)
    rgb = dataclasses.replace(both, pooled=both.pooled[:, : both.first], blocks=both.blocks[:-1])
    return PhotoSet(name, rgb, both, options, precision, network.rgb_branch)


# ---------------------------------------------------------------- features of each row


def parts_of(data: features.FrozenData) -> list[dict]:
    """The blocks of rgb_features by what they are, for each scale: mean, generalised mean, and
    of every level the statistics (mean, spread) of the whole picture and of its halves."""
    scales, start = [], 0
    per_scale = len(data.blocks) // SCALES
    for scale in range(SCALES):
        widths = data.blocks[scale * per_scale : (scale + 1) * per_scale]
        columns = []
        for width in widths:
            columns.append(data.pooled[:, start : start + width].astype(np.float32))
            start += width
        last, levels = columns[0], columns[1:]
        whole = []
        for level in levels:
            upper, upper_std, lower, lower_std = np.split(level, 4, axis=1)
            variance = (upper_std**2 + lower_std**2) / 2 + ((upper - lower) / 2) ** 2
            whole.append(np.hstack([(upper + lower) / 2, np.sqrt(variance)]))
        mean = last[:, : last.shape[1] // 2]
        scales.append({"mean": mean, "last": last, "whole": whole, "halves": levels})
    return scales


def with_features(data: features.FrozenData, blocks: list[np.ndarray]) -> features.FrozenData:
    pooled = np.hstack(blocks).astype(np.float16)
    return dataclasses.replace(data, pooled=pooled, blocks=[b.shape[1] for b in blocks])


# ---------------------------------------------------------------- rows


class FromScratch(frozen.HeadTrainer):
    """Heads trained by gradient descent from zero instead of from a ridge regression."""

    def start(self, head: str, penalty: float) -> None:
        layer = getattr(self.heads, head)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


def train(photo_set: PhotoSet, data: features.FrozenData, kind: str = "grouped", **changes) -> dict:
    """Held-out answers of the recipe on some features, with baselines: see train_fold."""
    options, fold_of = {**photo_set.options, **changes}, photo_set.folds(kind)
    shared: dict = {}
    results = [
        frozen.train_fold(data, fold_of, fold, photo_set.precision, options, shared)
        for fold in range(options["folds"])
    ]
    found = frozen.in_order(results, len(data.photos))
    return {k: {n: v.numpy() for n, v in part.items()} for k, part in found.items() if k != "prior"}


def naive(photo_set: PhotoSet) -> dict:
    """What is often published: degrees, hour/23, minute/59 and metres regressed directly from the
    last layer, the epoch chosen on random photos, bursts split between training and validation."""
    data, fold_of = photo_set.data, photo_set.folds("grouped")
    photos, features = data.photos, torch.from_numpy(parts_of(data)[0]["mean"])
    hour, minute = np.divmod(photos.minutes, 60)
    wanted = np.stack([photos.lat, photos.lon, hour / 23, minute / 59, photos.altitude], 1)
    wanted = torch.from_numpy(wanted.astype(np.float32))
    labelled = torch.isfinite(wanted)
    answers = np.full((len(photos), 5), np.nan)
    for fold in range(photo_set.options["folds"]):
        rng = np.random.default_rng(fold)
        torch.manual_seed(fold)
        known = rng.permutation(np.flatnonzero(fold_of != fold))
        test, validation = np.flatnonzero(fold_of == fold), known[: len(known) // 7]
        known = known[len(known) // 7 :]
        low, high = (
            torch.from_numpy(f(np.where(labelled[known], wanted[known], np.nan), axis=0))
            for f in (np.nanmin, np.nanmax)
        )
        low[2:], high[2:] = 0, 1  # only degrees are brought to 0..1; metres stay metres
        span = (high - low).clamp_min(1e-6)
        scaled = (wanted - low) / span
        mean, std = features[known].mean(0), features[known].std(0) + 1e-3
        read = (features - mean) / std
        network = nn.Sequential(
            nn.Linear(read.shape[1], 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 5)
        )
        optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.05)

        def loss_on(rows, network=network, read=read, scaled=scaled):
            return (network(read[rows]) - scaled[rows])[labelled[rows]].square().mean()

        best, kept = np.inf, None
        for _ in range(photo_set.options["epochs"]):
            network.train()
            for part in np.array_split(rng.permutation(known), max(1, len(known) // 64)):
                optimiser.zero_grad()
                loss_on(part).backward()
                optimiser.step()
            network.eval()
            with torch.inference_mode():
                value = float(loss_on(validation))
                if value < best:
                    best, kept = value, (network(read[test]) * span + low).numpy()
        answers[test] = kept
    hours = np.clip(answers[:, 2] * 23, 0, 23).round() * 60
    found = {
        "lat": np.clip(answers[:, 0], -90, 90),
        "lon": (answers[:, 1] + 180) % 360 - 180,
        "minutes": hours + np.clip(answers[:, 3] * 59, 0, 59),
        "altitude": answers[:, 4],
    }
    return baselines.answer_errors(found, photos)


def metric_head(photo_set: PhotoSet) -> dict:
    """Position by classes, as PIGEON does (Haas 2023): a softmax over the training photos, its
    targets smoothed by distance; the answer is the photo of least expected distance."""
    data, fold_of = photo_set.data, photo_set.folds("grouped")
    photos, options = data.photos, photo_set.options
    found = {k: np.full(len(photos), np.nan) for k in ("lat", "lon", "minutes", "altitude")}
    for fold in range(options["folds"]):
        test, known = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        heads = frozen.HeadTrainer(data, known, photo_set.precision, options, fold)
        known = known[photos.placed[known]]
        places = density.unit_vectors(photos.lat[known], photos.lon[known])
        apart = density.arc_km(places[:, None], places[None])
        targets = torch.from_numpy(-apart / (heads.normalisation.spread_km / 20)).softmax(1).float()
        torch.manual_seed(fold)
        rng = np.random.default_rng(fold)
        layer = nn.Linear(heads.axes.shape[1], len(known))
        optimiser = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=0.05)
        for _ in range(options["epochs"]):
            for part in np.array_split(rng.permutation(len(known)), max(1, len(known) // 64)):
                optimiser.zero_grad()
                used = nn.functional.dropout(heads.axes[known[part]], 0.5)
                nn.functional.cross_entropy(layer(used), targets[part]).backward()
                optimiser.step()
        with torch.inference_mode():
            chances = layer(heads.axes[test]).softmax(1).double().numpy()
        best = known[(chances @ apart).argmin(axis=1)]
        found["lat"][test], found["lon"][test] = photos.lat[best], photos.lon[best]
    return baselines.answer_errors(found, photos)


def last_stage(photo_set: PhotoSet) -> dict:
    """What a laptop could still fine-tune: the last stage of an EfficientNet and linear heads, end
    to end from a ridge start. Penalty and epoch are chosen on the next fold, then the photos of
    all other folds are trained on."""
    data, fold_of = photo_set.data, photo_set.folds("grouped")
    photos, folds = data.photos, photo_set.options["folds"]
    maps = early_maps(photo_set)
    found = {k: np.full(len(photos), np.nan) for k in ("lat", "lon", "minutes", "altitude", "sun")}
    for fold in range(folds):
        test, known = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
        other = np.flatnonzero(fold_of == (fold + 1) % folds)
        normalisation = targets.Normalisation.fit(photos.take(known))
        wanted = torch.from_numpy(np.column_stack([
            targets.encode_gps(photos.lat, photos.lon, normalisation),
            targets.time_point(photos.minutes), normalisation.altitude_target(photos.altitude),
        ]).astype(np.float32))  # fmt: skip
        train, goal = np.setdiff1d(known, other), wanted[other]

        def cost(output: torch.Tensor, goal=goal) -> float:
            return float((output - goal).square().nanmean())

        def rehearse(ridge: float, epochs: int, train=train, other=other, wanted=wanted) -> list:
            outputs = tune_last(photo_set, maps, wanted, train, other, ridge, epochs)
            return [cost(output) for output in outputs]

        ridge = min((0.1, 1.0, 10.0), key=lambda ridge: rehearse(ridge, 0)[0])
        epoch = int(np.argmin(rehearse(ridge, 5)))
        output = tune_last(photo_set, maps, wanted, known, test, ridge, epoch)[-1].numpy()
        raw = {"gps": output[:, :2], "time": output[:, 2:4], "altitude": output[:, 4],
               "sun": np.zeros(len(test))}  # fmt: skip
        for name, values in targets.decode(raw, normalisation).items():
            found[name][test] = values
    return {head: e for head, e in baselines.answer_errors(found, photos).items() if head != "sun"}


@torch.inference_mode()
def early_maps(photo_set: PhotoSet) -> torch.Tensor:
    """What the last stage reads of each photo, (N, C, h, w), float16."""
    network, size = photo_set.backbone.eval(), photo_set.options["image_size"]
    early, maps = nn.Sequential(network.conv_stem, network.bn1, network.blocks[:-1]), []
    for file in photo_set.data.photos.files:
        photo = trainer.open_upright(file, max_side=2 * size)
        image = features.picture_inputs(photo, size, network)["rgb"][None]
        with photo_set.precision.autocast():
            maps.append(early(image.contiguous(memory_format=torch.channels_last))[0].half())
    return torch.stack(maps)


def tune_last(photo_set, maps, wanted, rows, watched, ridge: float, epochs: int) -> list:
    """Outputs (len(watched), 5) after each epoch of training on `rows`, the ridge start first."""
    network = copy.deepcopy(photo_set.backbone).eval()  # batch norms keep their statistics
    last = nn.Sequential(network.blocks[-1], network.conv_head, network.bn2)
    parameters = list(last.parameters())

    def pooled(part) -> torch.Tensor:
        with photo_set.precision.autocast():
            return last(maps[part].float()).float().mean(dim=(2, 3))

    with torch.inference_mode():
        start = torch.cat([pooled(part) for part in np.array_split(rows, len(rows) // 32 + 1)])
    mean, std = start.mean(0).clone(), start.std(0).clone() + 1e-3
    heads = nn.Linear(start.shape[1], 5)
    for columns in (slice(0, 2), slice(2, 4), slice(4, 5)):
        known = torch.isfinite(wanted[rows][:, columns.start])
        part = nn.Linear(start.shape[1], columns.stop - columns.start)
        axes = ((start - mean) / std)[known]
        frozen.Ridge(axes, wanted[rows][known][:, columns]).set(part, ridge)
        heads.weight.data[columns], heads.bias.data[columns] = part.weight.data, part.bias.data
    optimiser = torch.optim.AdamW([*parameters, *heads.parameters()], lr=1e-4, weight_decay=0.05)
    rng, outputs = np.random.default_rng(0), []
    for epoch in range(epochs + 1):
        for part in np.array_split(rng.permutation(rows), len(rows) // 32 + 1) if epoch else ():
            optimiser.zero_grad()
            known = torch.isfinite(wanted[part])  # first the choice: NaN times 0 is NaN
            miss = heads((pooled(part) - mean) / std)[known] - wanted[part][known]
            miss.square().mean().backward()
            optimiser.step()
        with torch.inference_mode():
            shown = [pooled(part) for part in np.array_split(watched, len(watched) // 32 + 1)]
            outputs.append(heads((torch.cat(shown) - mean) / std))
    return outputs


def by_the_sun(photo_set: PhotoSet, answers: dict) -> dict:
    """Errors when the time is that of the training photos, each counting by normal kernels of how
    far its hour is from the time head's point and its sun from the sun head's height: the same
    hour has another sun in another season. Widths are fixed: chosen inside the fold they were
    worse still on few photos."""
    photos, fold_of = photo_set.data.photos, photo_set.folds("grouped")
    told = answers["time_certainty"][:, None] * targets.time_point(answers["minutes"])
    height = targets.sun_height(answers["sun"])
    minutes = answers["minutes"].copy()
    for fold in range(photo_set.options["folds"]):
        asked = np.flatnonzero(fold_of == fold)
        known = np.flatnonzero(
            (fold_of != fold) & np.isfinite(photos.minutes) & np.isfinite(photos.sun)
        )
        if not len(known):
            continue
        hours, suns = (
            targets.time_point(photos.minutes[known]),
            targets.sun_height(photos.sun[known]),
        )
        apart = ((told[asked, None] - hours) ** 2).sum(axis=2) / (2 * 0.3**2)
        apart += (height[asked, None] - suns) ** 2 / (2 * 0.1**2)
        weights = np.exp(apart.min(axis=1, keepdims=True) - apart)
        minutes[asked] = targets.point_minutes(weights @ hours)
    return baselines.answer_errors({**answers, "minutes": minutes}, photos)


def rows_of(photo_set: PhotoSet, show) -> dict[str, dict]:
    """Errors per photo of every row, and the seconds that it took."""
    data, photos = photo_set.data, photo_set.data.photos
    table: dict[str, dict] = {}
    full, half = parts_of(data)[:2]
    last = [full["mean"]]
    pooled = [full["last"]]
    texture = [full["last"], *full["whole"]]
    halves = [full["last"], *full["halves"]]
    both = [*halves, half["last"], *half["halves"]]

    def add(name: str, work) -> dict | None:
        begun = time.monotonic()
        found = work()
        errors = baselines.answer_errors(found["answers"], photos) if "answers" in found else found
        turns = None
        if "answers" in found:
            upright = photos.orientation >= 0
            turns = np.full(len(photos), np.nan)
            turns[upright] = orientations.turns_right(found["answers"]["views"][upright]).mean(
                axis=1
            )
        table[name] = {**errors, "turns": turns, "seconds": time.monotonic() - begun}
        show(name)
        return found

    add("naive recipe", lambda: naive(photo_set))
    with mock.patch.object(frozen, "HeadTrainer", FromScratch):
        add("heads only, from zero", lambda: train(photo_set, with_features(data, last),
                                                   gallery=False))  # fmt: skip
    for name, blocks in (
        ("+ ridge start", last),
        ("+ generalised mean", pooled),
        ("+ texture of the levels", texture),
        ("+ sky and ground apart", halves),
        ("+ second scale", both),
    ):
        add(name, lambda blocks=blocks: train(photo_set, with_features(data, blocks),
                                              gallery=False))  # fmt: skip
    found = add("+ gallery = full recipe", lambda: train(photo_set, data))
    table["+ gallery = full recipe"]["log_likelihood"] = found["log_likelihood"]
    begun = {"seconds": 0.0, "turns": None}
    table["trivial answer"] = baselines.answer_errors(found["trivial"], photos) | begun
    table["nearest neighbours"] = found["knn_errors"] | begun
    with mock.patch.object(frozen, "agree_views", lambda logits: logits.float()):
        add("six views apart (not adopted)", lambda: train(photo_set, data))
    add("classes of places (not adopted)", lambda: metric_head(photo_set))
    if hasattr(photo_set.backbone, "conv_head"):
        add("last stage tuned (not adopted)", lambda: last_stage(photo_set))
    add("time by the sun (not adopted)", lambda: by_the_sun(photo_set, found["answers"]))
    add("full recipe and depth", lambda: train(photo_set, photo_set.depth))
    found = add("full recipe, random folds", lambda: train(photo_set, data, "random"))
    table["nearest neighbours, random folds"] = found["knn_errors"] | begun
    first = ("trivial answer", "nearest neighbours")
    return {name: table[name] for name in (*first, *table)}


# ---------------------------------------------------------------- the table


def log_km(km: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(km, 1e-3))


def ratio(own: np.ndarray, other: np.ndarray, groups: np.ndarray) -> tuple:
    """Geometric mean of own over other errors, paired, and its 95 % interval by group."""
    rows = np.isfinite(own) & np.isfinite(other)
    gain = log_km(own[rows]) - log_km(other[rows])
    limits = metrics.interval(gain, groups[rows], metrics.weighted_mean, DRAWS, 0)
    return 10 ** gain.mean(), [10**x for x in limits or (np.nan, np.nan)]


def cells(row: dict, groups: np.ndarray) -> dict[str, tuple]:
    """(figure, low, high) of each head: median and geometric mean in km, minutes, metres, share."""
    found = {}
    for head, values, statistic in (
        ("median km", row["gps"], metrics.weighted_median),
        ("geometric km", log_km(row["gps"]), metrics.weighted_mean),
        ("time min", row["time"], metrics.weighted_mean),
        ("altitude m", row["altitude"], metrics.weighted_mean),
        ("turns", row["turns"], metrics.weighted_mean),
    ):
        if values is None or not np.isfinite(values).any():
            continue
        rows = np.isfinite(values)
        figure = statistic(values[rows], np.ones(rows.sum()))
        limits = metrics.interval(values[rows], groups[rows], statistic, DRAWS, 0)
        numbers = [figure, *(limits or (np.nan, np.nan))]
        found[head] = tuple(10**x for x in numbers) if head.startswith("geo") else tuple(numbers)
    return found


def short(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_set(photo_set: PhotoSet, table: dict[str, dict]) -> list[dict]:
    """Print a set's table, the best of each column starred; returns it as records."""
    groups = photo_set.groups
    count = len(np.unique(groups))
    photos = photo_set.data.photos
    note = "" if count >= ENOUGH_GROUPS else ": too few to prove anything"
    print(f"\n{photo_set.name}: {len(photos)} photos, {count} groups{note}")
    columns = ("median km", "geometric km", "time min", "altitude m", "turns")
    found = {name: cells(row, groups) for name, row in table.items()}
    compared = [name for name in found if "random" not in name]
    best = {}
    for column in columns:
        figures = {name: found[name][column][0] for name in compared if column in found[name]}
        if figures:
            best[column] = (max if column == "turns" else min)(figures, key=figures.get)
    print(f"{'':36}" + "".join(f"{column:>25}" for column in columns) + "       s")
    records = []
    for name, row in found.items():
        line = f"{name:36}"
        for column in columns:
            if column not in row:
                line += f"{'–':>25}"
                continue
            figure, low, high = row[column]
            star = "*" if best.get(column) == name else ""
            line += f"{f'{star}{short(figure)} ({short(low)} … {short(high)})':>25}"
            records.append({"set": photo_set.name, "row": name, "column": column,
                            "figure": figure, "low": low, "high": high})  # fmt: skip
        print(line + f"{table[name]['seconds']:8.0f}")
    return records


def print_verdicts(photo_set: PhotoSet, table: dict[str, dict]) -> None:
    """The recipe against each simple answer by the paired geometric mean, and its likelihood."""
    groups, full = photo_set.groups, table["+ gallery = full recipe"]
    for own, other in (
        ("+ gallery = full recipe", "nearest neighbours"),
        ("+ gallery = full recipe", "trivial answer"),
        ("+ gallery = full recipe", "naive recipe"),
        ("full recipe and depth", "+ gallery = full recipe"),
        ("full recipe, random folds", "nearest neighbours, random folds"),
    ):
        value, (low, high) = ratio(table[own]["gps"], table[other]["gps"], groups)
        print(f"  position, {own.lstrip('+ ')} / {other.lstrip('+ ')}: "
              f"{value:.2f} ({low:.2f} … {high:.2f})")  # fmt: skip
    for head, unit in (("time", "min"), ("altitude", "m")):
        own, plain = full[head], table["trivial answer"][head]
        rows = np.isfinite(own) & np.isfinite(plain)
        if not rows.any():
            continue
        gain = plain[rows] - own[rows]
        limits = metrics.interval(gain, groups[rows], metrics.weighted_mean, DRAWS, 0)
        low, high = limits or (np.nan, np.nan)
        print(f"  {head}: {short(own[rows].mean())} {unit}, trivial answer "
              f"{short(plain[rows].mean())} {unit}: "
              f"{'better' if gain.mean() > 0 else 'NOT better'}, gain {short(gain.mean())} "
              f"({short(low)} … {short(high)})")  # fmt: skip
    told = full["log_likelihood"]
    rows = np.isfinite(told["posterior"])
    for name, what in (("head", "the head's point alone"), ("positions", "training positions")):
        gain = (told["posterior"] - told[name])[rows]
        limits = metrics.interval(gain, groups[rows], metrics.weighted_mean, DRAWS, 0)
        low, high = limits or (np.nan, np.nan)
        print(f"  log density at the true position, gain over {what}: "
              f"{gain.mean():+.2f} ({low:+.2f} … {high:+.2f})")  # fmt: skip
    photos = photo_set.data.photos
    known = photos.minutes[np.isfinite(photos.minutes)]
    point = targets.time_point(known).mean(axis=0) if len(known) else np.zeros(2)
    height = photos.altitude[np.isfinite(photos.altitude)]
    print(f"  labels: times spread by {(1 - np.linalg.norm(point)):.2f} (0 alike, 1 all round the "
          f"clock), altitudes over {np.ptp(height) if len(height) else 0:.0f} m")  # fmt: skip


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "photos",
                        help="a folder of sets, each with images/")  # fmt: skip
    parser.add_argument("--sets", nargs="*", help="only these (demo is one)")
    parser.add_argument("--backbone", default=features.LITE0)
    parser.add_argument("--csv", type=Path, help="write the figures there too")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    sets = {"demo": ROOT / "data" / "demo" / "images"}
    sets |= {p.parent.name: p for p in sorted(args.photos.glob("*/images"))}
    sets = {n: p for n, p in sets.items() if p.is_dir() and (not args.sets or n in args.sets)}
    if not sets:
        density.stop("no set of photos: run make demo first, or name a folder by --photos")
    begun, records = time.monotonic(), []
    for name, images in sets.items():
        photo_set = load(name, images, args.backbone)

        def show(row: str, name=name) -> None:
            print(f"{time.monotonic() - begun:6.0f} s  {name}: {row}", file=sys.stderr, flush=True)

        table = rows_of(photo_set, show)
        records += print_set(photo_set, table)
        print_verdicts(photo_set, table)
    if args.csv:
        with density.write_atomically(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    print(f"\n{time.monotonic() - begun:.0f} s; * best of the grouped folds; intervals: bootstrap "
          "by group, 95 %; the best of many rows is partly luck")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
