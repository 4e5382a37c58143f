"""The page of an evaluation: one self-contained HTML file, its tables, cards and data.

In: metrics, differences, held-out answers. Out: report.html; the same rows for a terminal.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path

import numpy as np

import density
from density import distance_label
from geophoto.baselines import errors_of
from geophoto.findings import (
    HEADS,
    depth_findings,
    depth_summary,
    fuse_finding,
    head_findings,
    percent,
    verdict_of,
)
from geophoto.maps import embed, write_page
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.pictures import photo_file
from geophoto.plots import TITLES
from geophoto.report_data import names_shown, page_data
from geophoto.thumbnails import thumbnails

FAILING = 6  # photos shown that fail most
WORTH_A_RATIO = {"gps": 0.01, "time": 1.0, "altitude": 1.0}  # errors below are nothing to divide by
PACKAGES = ("torch", "torchvision", "timm", "transformers", "numpy", "pillow", "pandas")
WHAT = {
    "gps": "Median distance from the true position",
    "time": "Mean error of the time of day",
    "altitude": "Mean error of the altitude",
    "orientation": "Four turns of a photo set wrong",
}

# ---------------------------------------------------------------- tables


def table_rows(metrics: dict) -> list[dict]:
    """Rows of the headline table: every head of every model beside its two baselines; the verdict
    is good only where the model beats both beyond luck, fair where it beats the fixed answer."""
    rows = []
    for head, (title, key, unit, show) in HEADS.items():
        for model, block in metrics.items():
            found = block[head]
            if not found["n"]:
                continue
            trivial = found[f"baseline_{key}"]
            row = {
                "error of": title,
                "model": TITLES[model],
                "n": found["n"],
                "error": show(found[key]),
            }
            row["95 % interval"] = range_text(found[f"interval_{unit}"], show)
            row["trivial"], row["neighbours"] = show(trivial), show(found[f"knn_{key}"])
            small = trivial < WORTH_A_RATIO[head]
            row["error / trivial"] = "–" if small else f"{found[key] / trivial:.2f}×"
            rows.append({**row, "verdict": verdict_of(head, found)[0]})
    for model, block in metrics.items():
        found = block["orientation"]
        if found["n"]:
            missed = 1 - found["turn_accuracy"]
            row = {"error of": "Four turns missed", "model": TITLES[model], "n": found["n"]}
            row |= {
                "error": f"{missed * 100:.1f} %",
                "95 % interval": range_text(missed_interval(found), lambda x: f"{x * 100:.1f} %"),
                "trivial": "75 %",
                "neighbours": "–",
            }
            verdict = "good" if missed < 0.75 else "bad"
            rows.append({**row, "error / trivial": f"{missed / 0.75:.2f}×", "verdict": verdict})
    return rows


def missed_interval(found: dict) -> list[float] | None:
    limits = found["turn_interval"]
    return [1 - x for x in reversed(limits)] if limits else None


def interval_rows(metrics: dict) -> list[dict]:
    """How wide the intervals are (median half-width), what share of the held-out photos they
    hold, and how many answers are confident, with their error (positions: geometric mean)."""
    rows = []
    for head, (title, _, _, show) in HEADS.items():
        for model, block in metrics.items():
            found = block[head]
            if not found["n"]:
                continue
            row = {"intervals": title, "model": TITLES[model]}
            for level in (50, 90):
                row[f"{level} %"] = f"± {show(found[f'interval{level}'])}"
                row[f"holds ({level})"] = f"{found[f'coverage{level}'] * 100:.0f} %"
            row["confident"] = f"{found['confident']} of {found['n']}"
            sure = found["confident_error"]
            rows.append({**row, "their error": show(sure) if sure is not None else "–"})
    return rows


def range_text(limits: list[float] | None, show: Callable[[float], str]) -> str:
    return f"{show(limits[0])} … {show(limits[1])}" if limits else "one group only"


def orientation_rows(metrics: dict) -> list[tuple]:
    """Rows of the orientation table of the report: question, chance, one cell per model."""
    blocks = [block["orientation"] for block in metrics.values()]
    if not all(block["n"] for block in blocks):
        return []

    def row(question: str, chance: str, key: str) -> tuple:
        return (question, chance, *(f"{block[key] * 100:.1f} %" for block in blocks))

    majority = f"{blocks[0]['stored_majority'] * 100:.1f} % (majority)"
    rows = [
        row("Stored files as they are", majority, "stored_accuracy"),
        row("Four turns", "25 %", "turn_accuracy"),
        row("Six classes", "16.7 %", "six_class_accuracy"),
    ]
    for pair in blocks[0]["mirror_pairs"]:
        cells = [f"{block['mirror_pairs'][pair] * 100:.1f} %" for block in blocks]
        rows.append((f"Mirror pair: {pair}", "50 %", *cells))
    return rows


def more_rows(metrics: dict) -> list[dict]:
    """What few readers look for: geometric means, the sun, log densities."""
    rows = []
    for model, block in metrics.items():
        gps, sun = block["gps"], block["sun"]
        if gps["n"]:
            own, knn = gps["geometric_mean_km"], gps["knn_geometric_mean_km"]
            rows.append({"figure": "Geometric mean position error", "model": TITLES[model],
                         "value": distance_label(own),
                         "beside": f"neighbours {distance_label(knn)}"})  # fmt: skip
        if sun["n"]:
            rows.append({"figure": "Mean error of the sun's elevation", "model": TITLES[model],
                         "value": f"{sun['mean_deg']:.1f}°",
                         "beside": f"its median {sun['baseline_mean_deg']:.1f}°"})  # fmt: skip
        told = gps.get("log_likelihood")
        if told:
            rows.append({"figure": "Log density per km² at the true position (higher is better)",
                         "model": TITLES[model], "value": f"{told['posterior']:.2f}",
                         "beside": f"head's point alone {told['head']:.2f}, "
                         f"training positions alone {told['positions']:.2f}"})  # fmt: skip
    return rows


# ---------------------------------------------------------------- cards


def cards_of(metrics: dict) -> list[dict]:
    """One card per head: error with interval of each model above neighbours and fixed answer, as
    bars of one scale, and what the intervals hold."""
    cards = []
    for head, (title, key, unit, show) in HEADS.items():
        blocks = {model: b[head] for model, b in metrics.items() if b[head]["n"]}
        if not blocks:
            continue
        first = next(iter(blocks.values()))
        bars = [(m, TITLES[m], b[key], b[f"interval_{unit}"]) for m, b in blocks.items()]
        bars += [("knn", "neighbours", first[f"knn_{key}"], None)]
        bars += [("trivial", "fixed answer", first[f"baseline_{key}"], None)]
        holds = [
            {"who": m, "name": TITLES[m], "at": [100 * b["coverage50"], 100 * b["coverage90"]],
             "text": f"{100 * b['coverage50']:.0f} and {100 * b['coverage90']:.0f} %"}
            for m, b in blocks.items()
        ]  # fmt: skip
        widths = " or ".join(f"± {show(b['interval90'])}" for b in blocks.values())
        sure = " or ".join(f"{b['confident']}" for b in blocks.values())
        cards.append({
            "title": title, "what": WHAT[head], "rows": scaled(bars, show), "holds": holds,
            "notes": [f"90 % interval {widths}; confident {sure} of {first['n']}"],
        })  # fmt: skip
    turned = {model: b["orientation"] for model, b in metrics.items() if b["orientation"]["n"]}
    if turned:
        bars = [
            (m, TITLES[m], 1 - b["turn_accuracy"], missed_interval(b)) for m, b in turned.items()
        ]
        bars += [("trivial", "guessing", 0.75, None)]
        first = next(iter(turned.values()))
        notes = [
            f"Stored files as they are: {percent(first['stored_accuracy'])} right, by always "
            f"saying the most common {percent(first['stored_majority'])}",
            f"Six classes {percent(first['six_class_accuracy'])}, mirror pairs "
            f"{percent(first['mirror_accuracy'])} right ({first['n']} photos)",
        ]
        cards.append({"title": "Orientation", "what": WHAT["orientation"],
                      "rows": scaled(bars, percent), "holds": [], "notes": notes})  # fmt: skip
    return cards


def scaled(bars: list[tuple], show: Callable[[float], str]) -> list[dict]:
    """Bars with their places in per cent of the longest error; an interval may end outside."""
    most = max(max(error for *_, error, _ in bars) * 1.25, 1e-9)

    def at(value: float) -> float:
        return round(100 * min(value / most, 1), 1)

    return [
        {"who": who, "name": name, "text": show(error), "at": at(error),
         "low": at(limits[0]) if limits else None, "high": at(limits[1]) if limits else None}
        for who, name, error, limits in bars
    ]  # fmt: skip


# ---------------------------------------------------------------- sentences


def lead_of(held, groups: np.ndarray, models: list[str], split: dict) -> str:
    """On what was measured: photos, groups, extent, dates, cameras."""
    count = len(np.unique(groups))
    parts = [f"{len(held)} held-out photos in {count} group{'s' if count > 1 else ''}"]
    if held.placed.sum() > 1:
        lat, lon = held.lat[held.placed], held.lon[held.placed]
        away = density.distance_km(*density.geographic_median(lat, lon), lat, lon)
        parts.append(f"within {distance_label(float(np.max(away)))} of their middle")
    seconds = held.seconds[np.isfinite(held.seconds)].tolist()
    if seconds:  # added, as Windows knows no timestamps before 1970
        first, last = (
            datetime(1970, 1, 1) + timedelta(seconds=s) for s in (min(seconds), max(seconds))
        )
        parts.append(f"taken {first:%Y-%m-%d} to {last:%Y-%m-%d}")
    cameras = {name for name in held.camera.tolist() if name.strip()}
    if cameras:
        parts.append(f"by {len(cameras)} camera{'s' if len(cameras) > 1 else ''}")
    kind = (
        f"{split['kind']} split of {split['group_count']} groups"
        + (f", {split['radius_km'] * 1000:g} m apart" if split["by"] == "place" else "")
        if split["kind"] == "grouped"
        else "random split: near-duplicates on both sides make every figure too good"
    )
    return f"{', '.join(parts)}; {' and '.join(TITLES[name] for name in models)}; {kind}."


def failing_photos(model: tuple, name: str, title: str) -> tuple[dict | None, np.ndarray]:
    """Which photos fail, in a sentence, and the rows of the worst, one of a group at most while
    there are others; (None, empty) without positions."""
    found, held, groups = model
    km = errors_of(found, held)["answers"]["gps"]
    known = np.flatnonzero(np.isfinite(km))
    if not len(known):
        return None, known
    order = known[np.argsort(-km[known], kind="stable")]
    tenth = order[: max(1, len(order) // 10)]
    outside = int((km[known] > found["answers"]["radius90_km"][known]).sum())
    strange = int((found["answers"]["strangeness"][known] > 1).sum())
    common = Counter(groups[tenth].tolist()).most_common(2)
    text = (
        f"the worst tenth misses by {distance_label(float(km[tenth].min()))} or more "
        f"({sum(count for _, count in common)} of its {len(tenth)} photos from "
        f"{len(common)} group{'s' if len(common) > 1 else ''}); {outside} of {len(known)} lie "
        f"outside their own 90 % radius, {strange} are unlike anything in training, "
        f"{int(found['answers']['gps_confident'][known].sum())} answers are called confident"
        f"{after_dark(held.sun, tenth)}."
    )
    first = np.sort(np.unique(groups[order], return_index=True)[1])  # the worst of each group
    shown = np.concatenate([order[first], np.delete(order, first)])[:FAILING]
    return {"head": "failing", "title": "Which photos fail?", "text": f"with {title}, {text}",
            "verdict": "open", "words": ""}, shown  # fmt: skip


def after_dark(sun: np.ndarray, tenth: np.ndarray) -> str:
    """Whether night makes photos fail: how many of the worst, where that is more than among all."""
    dark, known = sun < 0, np.isfinite(sun)
    count, usual = int(dark[tenth].sum()), float(dark.sum() / max(known.sum(), 1))
    if count < 3 or count < 1.5 * usual * len(tenth):
        return ""
    return f"; {count} of the worst were taken after dark, of all photos {percent(usual)}"


def facts_of(checkpoints: dict, files: dict[str, Path], table: Path) -> list[tuple[str, str]]:
    """Settings, split, versions and checksums: what one needs to do it again."""
    first = next(iter(checkpoints.values()))
    split, settings = first["split"], first["settings"]
    facts = [("Table", f"{table.name}, sha256 {density.file_sha256(table)}")]
    for name, file in files.items():
        facts.append((f"Model {TITLES[name]}", f"{file.name}, sha256 {density.file_sha256(file)}"))
    facts.append(
        ("Backbone", f"{first['model_config']['backbone']}, weights {settings['weights']}")
    )
    depth = settings.get("depth_model")
    for checkpoint in checkpoints.values():
        depth = checkpoint["settings"].get("depth_model") or depth
    if depth:
        facts.append(("Depth model", f"{depth['model']}, sha256 {depth['sha256']}"))
    facts.append((
        "Split", f"{split['kind']}, by {split['by']}, radius {split['radius_km']:g} km, "
        f"{split['group_count']} groups, the largest of {split['largest_group']}",
    ))  # fmt: skip
    hidden = ("depth_model", "identity", "inputs", "weights", "split")
    told = ", ".join(f"{k} {v}" for k, v in settings.items() if k not in hidden)
    facts.append(("Settings", told))
    versions = [f"{name} {version}" for name in PACKAGES if (version := version_of(name))]
    facts.append(("Versions", f"Python {platform.python_version()}, {', '.join(versions)}"))
    return facts


def version_of(package: str) -> str | None:
    """The version of an installed package; None where it was not installed as one."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


# ---------------------------------------------------------------- page


def write_report(
    path: Path, metrics: dict, difference: dict, models: dict, image_dir: Path, about: dict,
    bar: Callable,
) -> None:  # fmt: skip
    """Write the page: pictures, data, style and script in one file, so that it can be mailed.

    `about` has lead, method, draws, facts and best, the model that its sentences speak of.
    """
    names, left_out = names_shown(models)
    pictures = thumbnails([photo_file(image_dir, name) for name in names], bar)
    best = about["best"]
    data = {**page_data(models, metrics, names), "best": best}
    failing, worst = failing_photos(models[best], best, TITLES[best])
    found, held, _ = models[best]
    km = errors_of(found, held)["answers"]["gps"]
    image = dict(zip(names, pictures, strict=True))
    shots = [
        {"image": image.get(held.names[i]),
         "text": f"{distance_label(float(km[i]))} off, 90 % within "
         f"{distance_label(float(found['answers']['radius90_km'][i]))}: {Path(held.names[i]).name}"}
        for i in worst
    ]  # fmt: skip
    together = fuse_finding(metrics[best]["fuse"])
    answers = [*head_findings(metrics, best), depth_summary(difference), together, failing]
    write_page(
        path, "report.html.j2", data=embed(data), pictures=embed(pictures),
        lead=about["lead"], method=about["method"], draws=about["draws"], facts=about["facts"],
        answers=[one for one in answers if one], cards=cards_of(metrics), failing=shots,
        models=list(metrics), best=best, titles=TITLES, has_map=data["map"] is not None,
        left_out=left_out,
        turns=orientation_rows(metrics), confusions=confusions_of(metrics),
        classes=ORIENTATION_CLASSES, depth_lines=depth_findings(difference),
        rows=table_rows(metrics), intervals=interval_rows(metrics), more=more_rows(metrics),
    )  # fmt: skip


def confusions_of(metrics: dict) -> list[dict]:
    """Confusion of the six classes in per cent of each row, one table per model."""
    tables = []
    for model, block in metrics.items():
        if block["orientation"]["n"]:
            counts = np.array(block["orientation"]["confusion"], float)
            share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            tables.append({"title": TITLES[model], "model": model, "rows": share.tolist()})
    return tables
