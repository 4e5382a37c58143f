"""Measure what the trained models know, or ask them about photos that lost their EXIF.

Reads  checkpoints/best_gps_model_rgb.pth and _depth.pth, the labels in data/exif_data.json.
Writes evaluation/: report.html (self-contained), metrics.json, predictions.csv,
       predictions.geojson and the plots. Every error stands beside the trivial answer and beside
       nearest neighbours on the same features, with an interval bootstrapped by group.
       With --photos: photos.csv, .json, .geojson; with --verify: verification.html, .csv, .json.

    python evaluate_gps_model.py
    python evaluate_gps_model.py --photos unknown.jpg holiday/     # where, when, which way up
    python evaluate_gps_model.py --photos 'trip/**/*.jpg' --json   # the same for other programs
    python evaluate_gps_model.py --photos holiday/ --fuse burst    # photos of a burst together
    python evaluate_gps_model.py --verify                          # do claims fit the pictures?
    python evaluate_gps_model.py --place           # the photos of the table without a position
    python evaluate_gps_model.py --write sidecar --to data/images --dry-run    # what --place found
    python evaluate_gps_model.py --undo evaluation/written.json
"""

import argparse
import functools
import json
import os
import statistics
import sys
from collections import Counter
from pathlib import Path

import density  # before NumPy and torch: see there

# isort: split
import numpy as np

from density import distance_label, progress
from geophoto.findings import findings, fuse_words
from geophoto.fusing import fused
from geophoto.metrics import head_metrics, paired_difference
from geophoto.photos import describe_groups, photos_of
from geophoto.pictures import MEGAPIXELS, limit_pixels, list_photos
from geophoto.plots import (
    PLOT_STYLE,
    TITLES,
    plot_agreement,
    plot_confusion,
    plot_examples,
    plot_map,
    plot_position_errors,
)
from geophoto.records import (
    groups_of,
    places_text,
    plain,
    plain_rows,
    prediction_rows,
    write_geojson,
    write_json,
    write_rows,
)
from geophoto.report import facts_of, interval_rows, lead_of, table_rows, write_report
from geophoto.table import read_table

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # folder with exif_data.json, and depths/ for fine-tuned RGB+Depth models
IMAGE_DIR = None  # folder of the photos; None = DATA_DIR/images
CHECKPOINT_DIR = "checkpoints"  # where the trainer wrote its models
OUTPUT_DIR = "evaluation"  # report, metrics and predictions are written here
BOOTSTRAP = 1000  # resamples of groups for every 95 % interval; more = steadier last digit
PRECISION = "auto"  # auto, fp32, bf16 or fp16, when a network has to run
TURN_CERTAINTY = 0.6  # least probability at which an unknown photo is turned before the rest
SEED = 0  # of the resampling
# ------------------------------------------------------------------------

MOST_SHOWN = 20  # photos placed that are shown one by one; all are in placed.csv
SHOWN = 12  # photos that are shown one by one; of more a summary is
PAGED = 200  # photos on the page of verified claims, those that fit least

# ---------------------------------------------------------------- the evaluation


def evaluate(
    data_dir: Path,
    image_dir: Path,
    checkpoint_dir: Path,
    output_dir: Path,
    precision: str,
    draws: int,
    seed: int,
) -> None:
    """Evaluate the models that are there on what each did not see; write everything."""
    from geophoto.checkpoints import read_checkpoint  # torch takes seconds to load
    from geophoto.predictions import held_out_answers

    found_models = [name for name in TITLES if model_file(checkpoint_dir, name).is_file()]
    if not found_models:
        density.stop(
            f"no best_gps_model_rgb.pth or _depth.pth in {checkpoint_dir}: "
            "run python gps_orientation_trainer.py first"
        )
    table = read_table(data_dir)
    density.ready_to_write(output_dir)
    density.sweep_temporaries(output_dir)
    photos = photos_of(table, image_dir)
    table_sha256 = density.file_sha256(data_dir / "exif_data.json")
    models, checkpoints, metrics, rows = {}, {}, {}, []
    for name in found_models:
        path = model_file(checkpoint_dir, name)
        checkpoints[name] = checkpoint = read_checkpoint(path, print)
        if checkpoint["table_sha256"] != table_sha256:
            print(f"note: exif_data.json has changed since {path.name} was trained")
        found, held = held_out_answers(checkpoint, photos, data_dir, precision, progress, print)
        groups = groups_of(checkpoint, held.names)
        if not len(held):
            density.stop(f"{data_dir / 'exif_data.json'} holds no photo that {path} was tested on")
        models[name] = (found, held, groups)
        metrics[name] = head_metrics(found, held, groups, draws, seed)
        metrics[name]["fuse"] = checkpoint["densities"]["fuse"]
        rows += prediction_rows(name, found, held, groups)
    difference = compare(models, draws, seed) if len(models) == 2 else {}
    account(table, models)
    split = next(iter(checkpoints.values()))["split"]
    kept = {k: split[k] for k in ("kind", "by", "radius_km", "group_count", "largest_group")}
    settings = {name: checkpoint["settings"] for name, checkpoint in checkpoints.items()}
    content = {**metrics, "depth_minus_rgb": difference, "split": kept, "settings": settings}
    with density.write_atomically(output_dir / "metrics.json", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    write_rows(output_dir / "predictions.csv", rows)
    write_geojson(output_dir / "predictions.geojson", rows)
    draw_figures(models, metrics, image_dir, output_dir)
    about = describe(checkpoints, models, draws, checkpoint_dir, data_dir)
    write_report(
        output_dir / "report.html", metrics, difference, models, image_dir, about, progress
    )
    for table_shown in (table_rows(metrics), interval_rows(metrics)):
        print_table(table_shown)
        print()
    for line in findings(metrics, difference):
        print(line)
    print(f"wrote {output_dir}/metrics.json, predictions.csv, predictions.geojson and plots")
    print(f"report: {(output_dir / 'report.html').resolve()}")


def model_file(checkpoint_dir: Path, name: str) -> Path:
    return checkpoint_dir / f"best_gps_model_{name}.pth"


def draw_figures(models: dict, metrics: dict, image_dir: Path, output_dir: Path) -> None:
    """Draw what the labels allow, as PNG files for slides and notebooks."""
    import matplotlib

    labelled = next(iter(metrics.values()))
    with matplotlib.rc_context(PLOT_STYLE):
        if labelled["gps"]["n"]:
            plot_position_errors(models, output_dir / "position_errors.png")
            plot_map(models, output_dir / "map.png")
            plot_examples(models, image_dir, output_dir / "examples.png")
        for head in ("time", "altitude"):
            if labelled[head]["n"]:
                plot_agreement(models, output_dir / f"{head}.png", head)
        if labelled["orientation"]["n"]:
            plot_confusion(metrics, output_dir / "orientation.png")


def describe(
    checkpoints: dict, models: dict, draws: int, checkpoint_dir: Path, data_dir: Path
) -> dict:
    """What the report tells beside figures: data, split, method, and which model its sentences are
    about (the one that was better on validation photos: no choice by what is reported)."""
    best = min(checkpoints, key=lambda name: checkpoints[name]["metrics"].get("score", 0))
    checkpoint, (_, held, groups) = checkpoints[best], models[best]
    settings, split = checkpoint["settings"], checkpoint["split"]
    how = (
        f"{settings['folds']} folds, every photo predicted by a model that did not see it"
        if checkpoint["held_out"] is not None
        else "15 % of the groups, held out from the start"
    )
    method = (
        f"{len(held)} photos in {len(np.unique(groups))} groups; {how}. "
        + (
            f"Photos {describe_groups(split)} form a group, and a group is never on both sides. "
            if split["kind"] == "grouped"
            else "Random split: near-duplicates on both sides make every figure too good. "
        )
        + f"Backbone {checkpoint['model_config']['backbone']}, {settings['mode']}, "
        f"{settings['image_size']} px, seed {settings['seed']}."
    )
    if len(models) > 1:
        method += (
            f" The sentences at the top are about {TITLES[best]}, which was better on validation "
            "photos."
        )
    files = {name: model_file(checkpoint_dir, name) for name in models}
    return {
        "lead": lead_of(held, groups, list(models), split), "method": method, "draws": draws,
        "best": best, "facts": facts_of(checkpoints, files, data_dir / "exif_data.json"),
    }  # fmt: skip


def compare(models: dict, draws: int, seed: int) -> dict:
    found, photos, groups = ({k: m[i] for k, m in models.items()} for i in range(3))
    return paired_difference(found, photos, groups, draws, seed)


def account(table, models: dict) -> None:
    """Say what became of every row of the table."""
    for name, (_, held, _) in models.items():
        unreadable = int((table["status"] == "unreadable").sum())
        rest = len(table) - unreadable - len(held)
        print(
            f"{TITLES[name]}: {len(table)} rows, {len(held)} evaluated, {unreadable} unreadable, "
            f"{rest} not held out (without label or map, or trained on)"
        )


def print_table(rows: list[dict]) -> None:
    """Rows under the names of their columns; texts on the left, figures on the right."""
    names = [name for name in rows[0] if name != "verdict"] if rows else []
    cells = [tuple(names), *(tuple(str(row[name]) for name in names) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(names))]
    for number, line in enumerate(cells):
        left = "  ".join(f"{cell:<{width}}" for cell, width in zip(line[:2], widths, strict=False))
        print(left, *(f"{c:>{w}}" for c, w in zip(line[2:], widths[2:], strict=True)), sep="  ")
        if number == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))


# ---------------------------------------------------------------- unknown photos


def predict_unknown(
    paths: list[str],
    checkpoint_dir: Path,
    output_dir: Path,
    precision_name: str,
    certainty: float,
    as_json: bool = False,
    fuse: str = "none",
) -> int:
    """Tell where, when, how high and which way up for photos without EXIF; returns failures."""
    from geophoto.checkpoints import read_checkpoint
    from geophoto.predictions import Predictor, predict_unlabelled

    tell = functools.partial(print, file=sys.stderr if as_json else sys.stdout)
    files = list_photos(paths, tell)
    # no CSV holds other bytes than text's
    names = [os.fsencode(spelled).decode(errors="backslashreplace") for spelled in files]
    named = list(zip(names, files.values(), strict=True))
    checkpoint = read_checkpoint(checkpoint_dir / "best_gps_model.pth", tell, with_private=False)
    predictor = Predictor(checkpoint, checkpoint_dir, precision_name, certainty)
    density.ready_to_write(output_dir)
    if fuse != "none":
        choices = checkpoint["densities"]["fuse"][fuse]
        alone = "" if any(map(fused, choices.values())) else "; answers are those of single photos"
        tell(f"fused {fuse_words(fuse, choices)}{alone}")
    frame = predict_unlabelled(predictor, named, progress, tell, fuse)
    rows, left_out = plain_rows(frame), frame.attrs["left_out"]
    content = {"model": checkpoint["settings"]["inputs"], "fuse": fuse, "photos": rows,
               "left_out": left_out}  # fmt: skip
    if rows:
        flat = [{**row, "places": places_text(row["places"])} for row in rows]
        write_rows(output_dir / "photos.csv", flat)
        write_geojson(output_dir / "photos.geojson", flat)
        write_json(output_dir / "photos.json", content)
    if as_json:
        print(json.dumps(content, allow_nan=False))
    elif len(rows) <= SHOWN:
        for row in flat if rows else []:
            print_prediction(row)
    else:
        print_summary(rows)
    if rows:
        tell(f"wrote {output_dir}/photos.csv, photos.json and photos.geojson")
    tell(f"{len(rows)} photos predicted, {len(left_out)} left out")
    return len(left_out)


def print_summary(rows: list[dict]) -> None:
    """What the answers for many photos are worth."""
    heads = {
        "position": ("latitude", "position_confident", "radius50_km", distance_label),
        "time": ("time", "time_confident", "time50_minutes", "{:.0f} min".format),
        "altitude": ("altitude_m", "altitude_confident", "altitude50_m", "{:.0f} m".format),
    }
    for label, (answer, sure, half, show) in heads.items():
        known = [row for row in rows if row[answer] is not None]
        if known:
            middle = statistics.median(row[half] for row in known)
            count = sum(row[sure] for row in known)
            print(
                f"{label:<13}{len(known)} photos, {count} confident, median ± {show(middle)} (50 %)"
            )
    counts = Counter(row["orientation"] for row in rows)
    told = ", ".join(f"{name} {count}" for name, count in counts.most_common())
    print(f"{'orientation':<13}{told}; {sum(row['turned'] for row in rows)} turned upright first")
    strange = sum((row["strangeness"] or 0) > 1 for row in rows)
    if strange:
        print(f"{strange} photos are unlike all training photos")
    if together := sum(row["fused_with"] > 0 for row in rows):
        print(f"{together} photos have answers fused with others'")


def print_prediction(row: dict) -> None:
    """One photo on screen; a dash where nothing was learned."""

    def told(name: str, text: str) -> None:
        known = row[name] is not None
        sure = "" if not known or row[f"{label}_confident"] else ", not confident"
        print(f"  {label:<13}{text.format(**row, half=half, most=most) + sure if known else '–'}")

    half = distance_label(row["radius50_km"]) if row["radius50_km"] is not None else ""
    most = distance_label(row["radius90_km"]) if row["radius90_km"] is not None else ""
    strange = (row["strangeness"] or 0) > 1
    others = f"{row['fused_with']} other{'s' if row['fused_with'] > 1 else ''}"
    company = f" ({row['fused']} fused with {others})" if row["fused"] else ""
    print(row["filename"] + company + (": unlike all training photos" if strange else ""))
    label = "position"
    told("latitude", "{latitude:.5f}, {longitude:.5f} ± {half} (50 %), {most} (90 %)")
    print(f"  most likely  {row['places'] or 'no distinct place'}")
    label = "time"
    told("time", "{time} ± {time50_minutes:.0f} min (50 %), {time90_minutes:.0f} min (90 %)")
    label = "altitude"
    told("altitude_m", "{altitude_m:.0f} m ± {altitude50_m:.0f} (50 %), {altitude90_m:.0f} (90 %)")
    turn = ", turned upright first" if row["turned"] else ""
    print(f"  orientation  {row['orientation']} ({row['orientation_probability']:.0%}{turn})")
    if row["sun_elevation_deg"] is not None:
        print(f"  sun          {row['sun_elevation_deg']:.0f}° high")


# ---------------------------------------------------------------- claims


def verify_table(
    data_dir: Path,
    image_dir: Path,
    checkpoint_dir: Path,
    output_dir: Path,
    precision: str,
    as_json: bool,
) -> int:
    """Rank the photos of the table by how little their claims fit; returns how many were unread."""
    from geophoto.checkpoints import read_checkpoint
    from geophoto.predictions import verify_claims
    from geophoto.verification import write_page

    tell = functools.partial(print, file=sys.stderr if as_json else sys.stdout)
    photos = photos_of(read_table(data_dir), image_dir)
    checkpoint = read_checkpoint(checkpoint_dir / "best_gps_model.pth", tell)
    density.ready_to_write(output_dir)
    frame = verify_claims(checkpoint, photos, data_dir, precision, progress, tell)
    rows = plain_rows(frame)
    summary = plain(frame.attrs["summary"])
    content = {"model": checkpoint["settings"]["inputs"], "summary": summary, "photos": rows}
    write_rows(output_dir / "verification.csv", rows)
    write_json(output_dir / "verification.json", content)
    write_page(output_dir / "verification.html", rows[:PAGED], summary, content["model"])
    if as_json:
        print(json.dumps(content, allow_nan=False))
    else:
        print_verification(rows, summary)
    tell(f"wrote {output_dir}/verification.csv, verification.json and verification.html")
    tell(f"{summary['judged']} photos judged, {summary['held_out']} of them held out in training; "
         f"{summary['without_claim']} without a claim, {summary['trained_on']} trained on, "
         f"{summary['unread']} not read")  # fmt: skip
    return summary["unread"]


def print_verification(rows: list[dict], summary: dict) -> None:
    """The photos whose claims fit least, and how much is found."""
    for row in rows[:SHOWN]:
        if row["evidence"]:
            print(f"{row['filename']} (p = {row['p']:.3f})")
            for line in row["evidence"].split("; also "):
                print(f"  {line}")
    if summary["false_alarms"] is not None:
        print(
            f"on {summary['photos']} held-out photos, {summary['false_alarms']:.1%} false alarms "
            f"(p up to {summary['alarm_at']:.3f}):"
        )
    for name, rate in summary["rates"].items():
        print(f"  {name:<28}{rate['found']:>5.0%} of {rate['n']} found")


# ---------------------------------------------------------------- place a library


def place(
    data_dir: Path,
    image_dir: Path,
    checkpoint_dir: Path,
    output_dir: Path,
    precision: str,
    certainty: float,
):
    """Place the photos of the table that have no position, by time, picture, day and folder; report
    how well that goes where positions are known and hidden. Returns the answers, one row a photo.
    """
    from geophoto.hiding import measure, summarise
    from geophoto.library import library_of, place_library, see_pictures, write_placed

    table = read_table(data_dir)
    photos = photos_of(table, image_dir)
    shots, asked = library_of(table, photos)
    density.ready_to_write(output_dir)
    density.sweep_temporaries(output_dir)
    model, sure = "time", None
    records: dict[str, dict] = {}
    file = checkpoint_dir / "best_gps_model.pth"
    if file.is_file():
        from geophoto.checkpoints import read_checkpoint

        checkpoint = read_checkpoint(file, print)
        shots, sure, records = see_pictures(
            shots,
            photos,
            checkpoint,
            checkpoint_dir,
            data_dir,
            precision,
            certainty,
            progress,
            print,
        )
        kind = "RGB+depth" if checkpoint["model_config"]["use_depth"] else "RGB"
        model = f"time and {kind} {checkpoint['model_config']['backbone']}"
    else:
        print(f"no {file}: photos are placed by time, day and folder alone")
    placed = place_library(shots, asked, records)
    report = summarise(measure(shots, sure, lambda ways: progress(ways, desc="hiding")))
    write_placed(output_dir, placed, report, model)
    print_report(report)
    for line in placed.attrs["clocks"]:
        print(line)
    for row in placed.to_dict("records")[:MOST_SHOWN]:
        near, far = distance_label(row["radius50_km"]), distance_label(row["radius90_km"])
        unsure = "" if row["confident"] else ", not confident"
        print(f"{row['filename']}: {row['latitude']:.5f}, {row['longitude']:.5f} "
              f"± {near} (50 %), {far} (90 %){unsure}: {row['why']}")  # fmt: skip
    if len(placed) > MOST_SHOWN:
        print(f"… and {len(placed) - MOST_SHOWN} more")
    print(f"wrote {output_dir}/placed.csv, placed.json and placed.geojson")
    print(f"{len(placed)} photos placed by {model}, {int(placed['confident'].sum())} confidently, "
          f"from {int(photos.placed.sum())} with a position")  # fmt: skip
    return placed


def print_report(report) -> None:
    """Errors where known positions were hidden, beside the answers people have today."""
    print("positions hidden that are known (geometric mean error):")
    print(f"{'hidden':<22}{'gap':<9}{'answer':<22}{'n':>5}{'error':>10}{'in 50 %':>9}{'in 90 %':>9}"
          f"{'confident':>11}{'their error':>13}")  # fmt: skip
    for row in report.to_dict("records"):
        shares = "".join(
            f"{'–' if np.isnan(row[name]) else format(row[name], '.0%'):>{width}}"
            for name, width in (("coverage50", 9), ("coverage90", 9), ("confident", 11))
        )
        sure = row["confident_error_km"]
        print(f"{row['way']:<22}{row['gap']:<9}{row['method']:<22}{row['n']:>5}"
              f"{distance_label(row['error_km']):>10}{shares}"
              f"{'–' if np.isnan(sure) else distance_label(sure):>13}")  # fmt: skip


# ---------------------------------------------------------------- write back


def write(image_dir: Path, output_dir: Path, kind: str, folder: Path, every: bool, dry_run: bool):
    """Write the answers of --place as sidecars or into copies; on a dry run only show what would be
    written. Returns what became of every photo, one row each."""
    from geophoto.library import read_placed
    from geophoto.write_back import plan, plan_table, write_back

    placed, model = read_placed(output_dir / "placed.json")
    if kind == "copies" and folder.resolve().is_relative_to(image_dir.resolve()):
        density.stop(f"copies do not belong among the photos: name a folder outside {image_dir}")
    items = plan(placed, image_dir, folder, kind, f"estimate: {model}", every)
    journal = output_dir / "written.json"
    if dry_run:
        table = plan_table(items)
    else:
        density.ready_to_write(output_dir, folder)
        table = write_back(items, journal, lambda pairs: progress(pairs, unit=" files"))
    for row in table.to_dict("records"):
        if row["action"] == "skip":
            print(f"{row['filename']}: not written: {row['why']}")
        elif dry_run:
            radius = distance_label(row["radius90_m"] / 1000)
            print(f"{row['filename']}: {row['action']} {row['target']}: "
                  f"{row['latitude']:.6f}, {row['longitude']:.6f} ± {radius}")  # fmt: skip
    done = int((table["action"] != "skip").sum())
    if dry_run:
        print(f"{done} files would be written, {len(table) - done} photos not; nothing was written")
    else:
        print(f"{done} files written, {len(table) - done} photos not; all files: {journal}")
        print(f"to take them back: python evaluate_gps_model.py --undo {journal}")
    return table


def take_back(journal: Path) -> int:
    """Undo what --write made; returns how many files were left."""
    from geophoto.write_back import undo

    table = undo(journal)
    for row in table.to_dict("records"):
        print(f"{row['path']}: {row['done']}")
    left = int(table["done"].str.startswith("left").sum())
    print(f"{len(table) - left} files taken back, {left} left")
    return left


# ---------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data-dir", default=DATA_DIR, help="folder with exif_data.json")
    add("--image-dir", default=IMAGE_DIR, help="folder of the photos (default DATA_DIR/images)")
    add("--checkpoint-dir", default=CHECKPOINT_DIR, help="where the trained models are")
    add("--output-dir", default=OUTPUT_DIR, help="where the report goes")
    add("--bootstrap", default=BOOTSTRAP, type=int, help="resamples for the intervals")
    add("--precision", default=PRECISION, choices=("auto", "fp32", "bf16", "fp16"), help="format")
    add("--turn-certainty", default=TURN_CERTAINTY, type=float, help="0..1, see --photos")
    add("--seed", default=SEED, type=int, help="of the resampling")
    add("--pixel-limit", type=float, default=MEGAPIXELS, metavar="MP",
        help="larger photos are refused, megapixels (%(default)g)")  # fmt: skip
    add("--photos", nargs="+", metavar="PATH", help="predict these photos, folders, globs instead")
    add("--fuse", choices=("burst", "folder", "none"), default="none",
        help="of --photos: ask photos of a burst or folder together, where it gains")  # fmt: skip
    add("--place", action="store_true", help="place the photos of the table without a position")
    add("--write", choices=("sidecar", "copies"), help="write the positions that --place found")
    add("--to", metavar="DIR", help="where to: data/images puts sidecars beside the photos")
    add("--all", action="store_true", help="write answers that are not confident too")
    add("--dry-run", action="store_true", help="only show what --write would write")
    add("--undo", metavar="FILE", help="take back what written.json lists")
    add("--verify", action="store_true", help="do the claims of the table fit the pictures?")
    add("--json", action="store_true", help="of --photos or --verify: one JSON document to stdout")
    args = parser.parse_args(argv)
    if args.bootstrap < 1 or not 0 <= args.seed < 2**31:
        density.stop("--bootstrap must be at least 1, --seed at least 0")
    if not 0 <= args.turn_certainty <= 1:
        density.stop("--turn-certainty must lie between 0 and 1")
    if args.json and not (args.photos or args.verify):
        density.stop("--json goes with --photos or --verify")
    if args.fuse != "none" and not args.photos:
        density.stop("--fuse goes with --photos")
    if bool(args.write) != bool(args.to) or ((args.dry_run or args.all) and not args.write):
        density.stop("--write takes --to DIR; --dry-run and --all belong to --write")
    runs = args.photos, args.verify, args.place or args.write, args.undo
    if sum(map(bool, runs)) > 1:
        density.stop("--photos, --verify, --place with --write, and --undo are different runs")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    limit_pixels(args.pixel_limit)
    with density.one_line_for_files():
        return answer(args)


def answer(args: argparse.Namespace) -> int:
    """Do what the flags ask for, else evaluate the models; returns the exit code."""
    if args.undo:
        return 1 if take_back(Path(args.undo)) else 0
    checkpoint_dir, output_dir = Path(args.checkpoint_dir), Path(args.output_dir)
    if args.photos:
        failures = predict_unknown(
            args.photos, checkpoint_dir, output_dir, args.precision, args.turn_certainty,
            args.json, args.fuse,
        )  # fmt: skip
        return 1 if failures else 0
    data_dir = Path(args.data_dir)
    image_dir = Path(args.image_dir) if args.image_dir else data_dir / "images"
    if args.verify:
        unread = verify_table(
            data_dir, image_dir, checkpoint_dir, output_dir, args.precision, args.json
        )
        return 1 if unread else 0
    if args.place:
        place(data_dir, image_dir, checkpoint_dir, output_dir, args.precision, args.turn_certainty)
    if args.write:
        write(image_dir, output_dir, args.write, Path(args.to), args.all, args.dry_run)
    if not (args.place or args.write):
        evaluate(
            data_dir, image_dir, checkpoint_dir, output_dir, args.precision, args.bootstrap,
            args.seed,
        )  # fmt: skip
    return 0


if __name__ == "__main__":
    density.run_script(main)
