"""Which ingredient of the recipe earns its place, on every set of photos at hand.

Sets: the demo, where it was rendered, and the folders of `--photos` (default: ../shared/photos),
each with an images/ folder. Their tables, depth maps and features are made once, in data/cache.
Every row is scored on the same grouped folds, averaged over `--seeds` deals of them: one deal alone
can mislead by 40 %. Negative results stay in the table.

    python benchmarks/ablation.py
    python benchmarks/ablation.py --photos ~/trips --seeds 3 --csv ablation.csv
"""

import argparse
import contextlib
import csv
import dataclasses
import functools
import subprocess
import sys
import time
from collections.abc import Callable
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
    backbones,
    baselines,
    densities,
    devices,
    features,
    frozen,
    metrics,
    mixtures,
    orientations,
    targets,
    voices,
)
from geophoto.network import SCALES, create_network  # noqa: E402
from geophoto.photos import read_photos, split_photos  # noqa: E402

CACHE = ROOT / "data" / "cache" / "ablation"
DRAWS = 1000  # of the bootstrap by group
ENOUGH_GROUPS = 20  # below, a set is reported but proves nothing
HEADS = ("gps", "time", "altitude")
RECIPE = "+ gallery = full recipe"
OTHERS = {  # the same photos once more: what of a figure is chance
    "rounding": "recipe, other rounding",
    "seed": "recipe, other seed",
    "folds": "recipe, other seed and folds",
}

# ---------------------------------------------------------------- sets of photos


@dataclasses.dataclass
class PhotoSet:
    """One set: its photos, all features, and the settings of the recipe."""

    name: str
    data: features.FrozenData  # RGB
    depth: features.FrozenData  # RGB and depth
    rounded: features.FrozenData  # RGB in the other number format
    options: dict
    precision: devices.Precision

    def __post_init__(self) -> None:
        self.groups = np.array(split_photos(self.data.photos, "grouped", 5, 0)[1]["groups"])
        for data in (self.data, self.depth, self.rounded):
            data.photos.group = self.groups

    def folds(self, kind: str, seed: int) -> np.ndarray:
        return split_photos(self.data.photos, kind, self.options["folds"], seed)[0]


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
    options["depth_model"] = trainer.read_depth_model(data_dir)
    network = create_network(backbone, True, 0)
    options["weights"] = backbones.load_backbone_weights(network, ROOT / "checkpoints")
    both, _ = features.frozen_features(photos, "depth", network, data_dir, precision, options, tqdm)
    rgb = dataclasses.replace(both, depth=None, blocks=both.blocks[:-1])
    other = devices.Precision("bf16" if precision.name == "fp32" else "fp32")
    kept, _ = features.frozen_features(
        both.photos, "rgb", network, data_dir / other.name, other, options, tqdm
    )
    rounded = dataclasses.replace(kept, blocks=rgb.blocks)
    return PhotoSet(name, rgb, both, rounded, options, precision)


# ---------------------------------------------------------------- features of each row


class InMemory:
    """Stands for the features on disk."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def read(self, rows: np.ndarray, columns: slice) -> np.ndarray:
        return self.values[rows][:, columns]


def parts_of(data: features.FrozenData) -> list[dict]:
    """The blocks of rgb_features by what they are, for each scale: mean, generalised mean, and
    of every level the statistics (mean, spread) of the whole picture and of its halves."""
    scales, start, pooled = [], 0, data.pooled(np.arange(len(data.photos)))
    per_scale = len(data.blocks) // SCALES
    for scale in range(SCALES):
        widths = data.blocks[scale * per_scale : (scale + 1) * per_scale]
        columns = []
        for width in widths:
            columns.append(pooled[:, start : start + width].astype(np.float32))
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
    """The same photos and grids with other features for the trunk."""
    grids = data.rgb.read(np.arange(len(data.photos)), slice(data.first, None))
    held = InMemory(np.hstack([*blocks, grids]).astype(np.float16))
    widths = [block.shape[1] for block in blocks]
    return dataclasses.replace(data, rgb=held, depth=None, blocks=widths, first=sum(widths))


# ---------------------------------------------------------------- rows


class FromScratch(frozen.HeadTrainer):
    """Heads trained by gradient descent from zero instead of from a ridge regression."""

    def start(self, head: str, penalty: float) -> None:
        layer = getattr(self.heads, head)
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)


@dataclasses.dataclass
class Deal:
    """One deal of the folds, and the densities' part of it, to be repeated without training."""

    photo_set: PhotoSet
    seed: int
    cases: list = dataclasses.field(default_factory=list)  # (rehearsals, what is asked) of a fold

    def train(
        self, data: features.FrozenData, kind: str = "grouped", keep=False, **changes
    ) -> dict:
        """Held-out answers of the recipe on some features, with baselines: see train_fold. With
        `keep` what the densities were fitted on and asked is kept for `again`."""
        options = {**self.photo_set.options, "seed": self.seed, **changes}
        fold_of = self.photo_set.folds(kind, changes.get("deal", self.seed))
        shared: dict = {}

        def hold_out(*about) -> dict:
            self.cases.append(about[1:])
            return densities.hold_out(*about)

        def fit_densities(asked: list) -> dict:
            self.cases.append(asked)
            return densities.fit_densities(asked)

        with contextlib.ExitStack() as stack:
            for work in (hold_out, fit_densities) if keep else ():
                stack.enter_context(mock.patch.object(frozen, work.__name__, work))
            results = [
                frozen.train_fold(data, fold_of, fold, self.photo_set.precision, options, shared)
                for fold in range(options["folds"])
            ]
        found = frozen.in_order(results, len(data.photos))
        prior = found.pop("prior").numpy()
        arrays = {k: {n: v.numpy() for n, v in part.items()} for k, part in found.items()}
        return {**arrays, "prior": prior}

    def again(self, patches: list[tuple]) -> dict:
        """Answers of the kept heads with densities changed by patches (where, name, what)."""
        fold_of, answers = self.photo_set.folds("grouped", self.seed), {}
        with contextlib.ExitStack() as stack:
            for where, name, what in patches:
                stack.enter_context(mock.patch.object(where, name, what))
            for fold in range(fold_of.max() + 1):
                asked, about = self.cases[2 * fold], self.cases[2 * fold + 1]
                held = densities.hold_out(densities.fit_densities(asked), *about)
                for name, values in held["answers"].items():
                    shape = (len(fold_of), *values.shape[1:])
                    answers.setdefault(name, np.full(shape, np.nan))[fold_of == fold] = values
        return {"answers": answers}


def naive(photo_set: PhotoSet, seed: int) -> dict:
    """What is often published: degrees, hour/23, minute/59 and metres regressed directly from the
    last layer, the epoch chosen on random photos, bursts split between training and validation."""
    data, fold_of = photo_set.data, photo_set.folds("grouped", seed)
    photos, features = data.photos, torch.from_numpy(parts_of(data)[0]["mean"])
    hour, minute = np.divmod(photos.minutes, 60)
    wanted = np.stack([photos.lat, photos.lon, hour / 23, minute / 59, photos.altitude], 1)
    wanted = torch.from_numpy(wanted.astype(np.float32))
    labelled = torch.isfinite(wanted)
    answers = np.full((len(photos), 5), np.nan)
    for fold in range(photo_set.options["folds"]):
        rng = np.random.default_rng((seed, fold))
        torch.manual_seed(1000 * seed + fold)
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


def only(voice: int) -> list[tuple]:
    """Patches that silence all voices but one (0 neighbours, 1 head, 2 prior) and the floor."""
    logs_of, fit = voices.Evidence.logs_by_temperature, voices.Stack.fit

    def heard_logs(evidence: voices.Evidence, space: voices.Space, *about) -> np.ndarray:
        heard = np.isin(voices.voice_of(space), (voice, 3))
        return np.where(heard, logs_of(evidence, space, *about), -np.inf)

    def fit_heard(temperature: float, logs: np.ndarray, gate: np.ndarray) -> voices.Stack:
        stack, heard = fit(temperature, logs, gate), np.isfinite(logs).any(axis=0)
        offset = np.where(heard, stack.offset, -1e3)
        return dataclasses.replace(stack, offset=offset, slope=stack.slope * heard)

    return [
        (voices.Evidence, "logs_by_temperature", heard_logs),
        (voices.Stack, "fit", fit_heard),
    ]


def estimator(cost: Callable) -> list[tuple]:
    """A patch: positions of least expected cost of the distance."""
    points = functools.partial(mixtures.position_points, cost=cost)
    return [(mixtures, "position_points", points)]


def log_distance(half_angle: np.ndarray) -> np.ndarray:
    least = density.LEAST_RADIUS_KM / (2 * density.EARTH_RADIUS_KM)
    return np.log(np.maximum(half_angle, least))


def no_gate(evidence: voices.Evidence) -> np.ndarray:
    return np.zeros((len(evidence), 2))


DENSITIES: dict[str, list[tuple]] = {  # the heads and folds of the full recipe, other densities
    "  neighbours alone": only(0),
    "  head alone": only(1),
    "  prior alone": only(2),
    "  weights without gate": [(voices.Evidence, "gate", no_gate)],
    "  weights trusted wholly": [(densities, "fit_trust", lambda *_: 1.0)],
    "  least expected log distance": estimator(log_distance),
    "  least expected distance": estimator(lambda half_angle: half_angle),
}


def rows_of(photo_set: PhotoSet, seed: int, show) -> dict[str, dict]:
    """Errors per photo of every row on one deal of the folds, the seconds that it took, and the
    recipe's metrics."""
    data, photos, deal = photo_set.data, photo_set.data.photos, Deal(photo_set, seed)
    table: dict[str, dict] = {}
    full, half = parts_of(data)[:2]
    last, pooled = [full["mean"]], [full["last"]]
    texture, halves = [full["last"], *full["whole"]], [full["last"], *full["halves"]]
    both = [*halves, half["last"], *half["halves"]]

    def add(name: str, work) -> dict:
        begun = time.monotonic()
        found = work()
        errors = baselines.answer_errors(found["answers"], photos) if "answers" in found else found
        turns = np.full(len(photos), np.nan)
        if "answers" in found:
            tagged = photos.orientation >= 0
            right = orientations.turns_right(found["answers"]["views"][tagged])
            turns[tagged] = right.mean(axis=1)
        errors = {head: errors[head] for head in HEADS}
        table[name] = {**errors, "turns": turns, "seconds": time.monotonic() - begun}
        show(name)
        return found

    add("naive recipe", lambda: naive(photo_set, seed))
    with mock.patch.object(frozen, "HeadTrainer", FromScratch):
        add("heads only, from zero",
            lambda: deal.train(with_features(data, last), gallery=False))  # fmt: skip
    for name, blocks in (
        ("+ ridge start", last),
        ("+ generalised mean", pooled),
        ("+ texture of the levels", texture),
        ("+ sky and ground apart", halves),
        ("+ second scale", both),
    ):
        add(name, lambda b=blocks: deal.train(with_features(data, b), gallery=False))
    found = add(RECIPE, lambda: deal.train(data, keep=True))
    table[RECIPE]["metrics"] = metrics.head_metrics(found, photos, photo_set.groups, 1, 0)
    add("trivial answer", lambda: baselines.answer_errors(found["trivial"], photos))
    add("nearest neighbours", lambda: found["knn_errors"])
    for name, patches in DENSITIES.items():
        add(name, lambda patches=patches: deal.again(patches))
    with mock.patch.object(frozen, "agree_views", lambda logits: logits.float()):
        add("six views apart (not adopted)", lambda: deal.train(data))
    add("full recipe and depth", lambda: deal.train(photo_set.depth))
    add(OTHERS["rounding"], lambda: deal.train(photo_set.rounded))
    add(OTHERS["seed"], lambda: deal.train(data, seed=seed + 100, deal=seed))
    add(OTHERS["folds"], lambda: deal.train(data, seed=seed + 100, deal=seed + 100))
    found = add("full recipe, random folds", lambda: deal.train(data, "random"))
    add("nearest neighbours, random folds", lambda: found["knn_errors"])
    first = ("trivial answer", "nearest neighbours")
    return {name: table[name] for name in (*first, *table)}


def average(tables: list[dict[str, dict]]) -> dict[str, dict]:
    """One table from those of all deals: errors per photo averaged, positions by logarithm."""
    merged: dict[str, dict] = {}
    for name in tables[0]:
        rows = [table[name] for table in tables]
        logs = np.mean([log_km(row["gps"]) for row in rows], axis=0)
        means = {k: np.mean([row[k] for row in rows], axis=0) for k in (*HEADS[1:], "turns")}
        seconds = sum(row["seconds"] for row in rows)
        blocks = [row["metrics"] for row in rows if "metrics" in row]
        merged[name] = {"gps": 10**logs, **means, "seconds": seconds, "metrics": blocks}
    return merged


# ---------------------------------------------------------------- the table


def log_km(km: np.ndarray) -> np.ndarray:
    return np.log10(np.maximum(km, 1e-3))


def ratio(own: np.ndarray, other: np.ndarray, groups: np.ndarray) -> tuple:
    """Geometric mean of own over other errors, paired, and its 95 % interval by group."""
    rows = np.isfinite(own) & np.isfinite(other)
    gain = log_km(own[rows]) - log_km(other[rows])
    limits = metrics.interval(gain, groups[rows], metrics.weighted_mean, DRAWS, 0)
    return 10 ** gain.mean(), [10**x for x in limits or (np.nan, np.nan)]


COLUMNS = ("position km", "time min", "altitude m", "turns")


def cells(row: dict, groups: np.ndarray) -> dict[str, tuple]:
    """(figure, low, high) of each column: geometric mean of the position error, mean of others."""
    found = {}
    every = (log_km(row["gps"]), row["time"], row["altitude"], row["turns"])
    for column, values in zip(COLUMNS, every, strict=True):
        rows = np.isfinite(values)
        if not rows.any():
            continue
        limits = metrics.interval(values[rows], groups[rows], metrics.weighted_mean, DRAWS, 0)
        numbers = (float(values[rows].mean()), *(limits or (np.nan, np.nan)))
        found[column] = tuple(10**x for x in numbers) if column == COLUMNS[0] else numbers
    return found


def short(value: float) -> str:
    """Three digits, never an exponent."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def print_set(photo_set: PhotoSet, table: dict[str, dict]) -> list[dict]:
    """Print a set's table, the best of each column starred; returns it as records."""
    groups = photo_set.groups
    count, photos = len(np.unique(groups)), photo_set.data.photos
    note = "" if count >= ENOUGH_GROUPS else ": too few to prove anything"
    print(f"\n{photo_set.name}: {len(photos)} photos, {count} groups{note}")
    found = {name: cells(row, groups) for name, row in table.items()}
    compared = [name for name in found if "random" not in name and name not in OTHERS.values()]
    best = {}
    for column in COLUMNS:
        figures = {name: found[name][column][0] for name in compared if column in found[name]}
        if figures:
            best[column] = (max if column == "turns" else min)(figures, key=figures.get)
    print(f"{'':36}" + "".join(f"{column:>25}" for column in COLUMNS) + "       s")
    records = []
    for name, row in found.items():
        line = f"{name:36}"
        for column in COLUMNS:
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
    """The recipe against each simple answer by the paired geometric mean."""
    groups, full = photo_set.groups, table[RECIPE]
    random = "full recipe, random folds", "nearest neighbours, random folds"
    for own, other in (
        *((RECIPE, name) for name in ("nearest neighbours", "trivial answer", "naive recipe")),
        ("full recipe and depth", RECIPE),
        random,
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
    photos = photo_set.data.photos
    known = photos.minutes[np.isfinite(photos.minutes)]
    point = targets.time_point(known).mean(axis=0) if len(known) else np.zeros(2)
    height = photos.altitude[np.isfinite(photos.altitude)]
    print(f"  labels: times spread by {(1 - np.linalg.norm(point)):.2f} (0 alike, 1 all round the "
          f"clock), altitudes over {np.ptp(height) if len(height) else 0:.0f} m")  # fmt: skip


def print_densities(table: dict[str, dict]) -> None:
    """How good the recipe's densities are, averaged over the deals of the folds."""
    for head in HEADS:
        blocks = [one[head] for one in table[RECIPE]["metrics"] if one[head]["n"]]
        if not blocks:
            continue
        held = [np.mean([block[f"coverage{level}"] for block in blocks]) for level in (50, 90)]
        told = {
            name: np.mean([block["log_likelihood"][name] for block in blocks])
            for name in ("posterior", "head", "positions")
        }
        name = "position" if head == "gps" else head
        print(f"  {name}: 50 and 90 % intervals hold {held[0]:.0%} and {held[1]:.0%}; log density "
              f"at the truth {told['posterior']:.2f}, head alone {told['head']:.2f}, "
              f"prior alone {told['positions']:.2f}; error of the more confident half over all "
              f"{np.mean([half_ratio(block) for block in blocks]):.2f}")  # fmt: skip


def half_ratio(block: dict) -> float:
    """Error of the more confident half of the photos over that of all (a block of metrics)."""
    return block["risk_coverage"][4] / max(block["risk_coverage"][-1], 1e-9)


def changes(photo_set: PhotoSet, table: dict[str, dict]) -> dict[str, float]:
    """How far the geometric mean of the position error moves on the same photos, as a share."""
    recipe = table[RECIPE]["gps"]
    moved = {
        k: ratio(table[name]["gps"], recipe, photo_set.groups)[0] for k, name in OTHERS.items()
    }
    return {k: float(abs(value - 1)) for k, value in moved.items()}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--photos", type=Path, default=ROOT.parent / "shared" / "photos",
                        help="a folder of sets, each with images/")  # fmt: skip
    parser.add_argument("--sets", nargs="*", help="only these (demo is one)")
    parser.add_argument("--seeds", type=int, default=1, help="deals of the folds, averaged")
    parser.add_argument("--backbone", default=backbones.LITE0)
    parser.add_argument("--csv", type=Path, help="write the figures there too")
    args = parser.parse_args(argv)
    if args.seeds < 1:
        density.stop("--seeds must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    sets = {"demo": ROOT / "data" / "demo" / "images"}
    sets |= {p.parent.name: p for p in sorted(args.photos.glob("*/images"))}
    sets = {n: p for n, p in sets.items() if p.is_dir() and (not args.sets or n in args.sets)}
    if not sets:
        density.stop("no set of photos: run make demo first, or name a folder by --photos")
    begun, records, moved = time.monotonic(), [], []
    for name, images in sets.items():
        photo_set = load(name, images, args.backbone)

        def show(row: str, name=name) -> None:
            print(f"{time.monotonic() - begun:6.0f} s  {name}: {row}", file=sys.stderr, flush=True)

        table = average([rows_of(photo_set, seed, show) for seed in range(args.seeds)])
        records += print_set(photo_set, table)
        print_verdicts(photo_set, table)
        print_densities(table)
        moved.append(changes(photo_set, table))
        told = ", ".join(f"{what} {share:.1%}" for what, share in moved[-1].items())
        print(f"  stability, the geometric mean moves by: {told}", flush=True)
    told = ", ".join(f"{k} {np.median([share[k] for share in moved]):.1%}" for k in OTHERS)
    print(f"\nstability, median over the sets: {told}")
    if args.csv:
        with density.write_atomically(args.csv, "w", newline="") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
    print(f"{time.monotonic() - begun:.0f} s; * best of the grouped folds; intervals: bootstrap "
          "by group, 95 %; the best of many rows is partly luck")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
