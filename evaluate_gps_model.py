"""Measure what the trained models know, or ask them about photos that lost their EXIF.

Reads  checkpoints/best_gps_model_rgb.pth and _depth.pth, the labels in data/exif_data.json.
Writes evaluation/: report.html (self-contained), metrics.json, predictions.csv,
       predictions.geojson and the plots. Every error stands beside the trivial answer and beside
       nearest neighbours on the same features, with an interval bootstrapped by group.

    python evaluate_gps_model.py
    python evaluate_gps_model.py --photos unknown.jpg holiday/     # where, when, which way up
"""

import argparse
import base64
import csv
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import density
from exif_extractor import (
    ORIENTATION_CLASSES,
    find_photos,
    harmless_cell,
    open_stored,
    open_upright,
    photo_file,
    read_table,
    turn_upright,
)

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

WITHIN_KM = (0.01, 0.1, 1, 25, 200, 750, 2500)  # the last five: usual in the literature
TITLES = {"rgb": "RGB", "depth": "RGB + depth"}
PAIRS = (("Normal", "Flipped H"), ("Rotated 180°", "Flipped V"))  # mirror images of each other

# ---------------------------------------------------------------- held-out answers


def held_out_answers(
    checkpoint: dict, photos, data_dir: Path, precision_name: str
) -> tuple[dict, "object"]:
    """Answers for exactly the photos held out in training, with both baselines.

    Cross-validated models bring them along; a fine-tuned network is run on its stored test
    photos. Returns ({"answers", "trivial", "knn_errors", "prior"}, the photos in the same order);
    what is no longer in the table is left out.
    """
    import gps_orientation_trainer as trainer

    row_of = {name: i for i, name in enumerate(photos.names)}
    split = checkpoint["split"]
    known = [i for i, name in enumerate(split["names"]) if name in row_of]
    rows = np.array([row_of[split["names"][i]] for i in known], int)
    if checkpoint["held_out"] is not None:
        held = checkpoint["held_out"]
        found = {
            part: {k: v[known] for k, v in held[part].items()}
            for part in ("answers", "trivial", "knn_errors", "log_likelihood")
        }
        return {**found, "prior": held["prior"][known]}, photos.take(rows)

    part = np.array(split["part"])[known]
    network, normalisation, posterior = trainer.rebuild(checkpoint)
    precision = trainer.Precision(precision_name)
    network.to(precision.device)
    depth_dir = data_dir if checkpoint["model_config"]["use_depth"] else None
    dataset = trainer.PhotoSet(photos, checkpoint["settings"]["image_size"], network, depth_dir)

    def predict(name: str) -> dict:
        asked = rows[part == name]
        return trainer.predict_photos(network, dataset, asked, precision, f"{name} photos")

    test, train = predict("test"), predict("train")
    known_photos, tested = photos.take(train["rows"]), photos.take(test["rows"])
    validation = predict("val")
    near, near_validation = (
        trainer.labelled_neighbours(part["trunk"], train["trunk"], known_photos)
        for part in (test, validation)
    )
    k = trainer.choose_knn([(near_validation, known_photos, photos.take(validation["rows"]))])
    trivial = trainer.trivial_answers(known_photos)
    found = {
        "answers": trainer.answers_of(test, checkpoint["gallery"], posterior, normalisation),
        "trivial": {key: np.full(len(tested), value) for key, value in trivial.items()},
        "knn_errors": trainer.answer_errors(
            trainer.knn_answers(near, known_photos, k, len(tested)), tested
        ),
        "prior": np.tile(normalisation.orientation_prior, (len(tested), 1)),
    }
    return found, tested


def groups_of(checkpoint: dict, names: list[str]) -> np.ndarray:
    """Group number of each photo as the split saw it."""
    group = dict(zip(checkpoint["split"]["names"], checkpoint["split"]["groups"], strict=True))
    return np.unique([group[name] for name in names], return_inverse=True)[1]


def errors_of(found: dict, photos) -> dict[str, dict[str, np.ndarray]]:
    """Errors per photo of the answers and of both baselines; see answer_errors of the trainer."""
    import gps_orientation_trainer as trainer

    own = {who: trainer.answer_errors(found[who], photos) for who in ("answers", "trivial")}
    return {**own, "knn": found["knn_errors"]}


# ---------------------------------------------------------------- statistics


def weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    """Median of values repeated by weights; NaN without any weight."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    if not len(total) or total[-1] <= 0:
        return math.nan
    low = values[order][np.searchsorted(total, total[-1] / 2, side="left")]
    high = values[order][min(np.searchsorted(total, total[-1] / 2, side="right"), len(total) - 1)]
    return float((low + high) / 2)


def weighted_mean(values: np.ndarray, weights: np.ndarray) -> float:
    total = weights.sum()
    return float(values @ weights / total) if total > 0 else math.nan


def resampled_weights(groups: np.ndarray, draws: int, seed: int):
    """Yield weights (N,) of a bootstrap by group: how often each photo's group was drawn."""
    rng = np.random.default_rng(seed)
    present, group = np.unique(groups, return_inverse=True)
    for _ in range(draws):
        drawn = rng.integers(0, len(present), len(present))
        yield np.bincount(drawn, minlength=len(present))[group].astype(float)


def interval(values, groups, statistic, draws: int, seed: int, minus=None) -> list[float] | None:
    """95 % percentile interval of a statistic, or of its difference to that of `minus`, paired."""
    if len(np.unique(groups)) < 2:
        return None
    found = [
        statistic(values, weights) - (statistic(minus, weights) if minus is not None else 0.0)
        for weights in resampled_weights(groups, draws, seed)
    ]
    return [float(x) for x in np.percentile(found, [2.5, 97.5])]


def geometric_mean_km(km: np.ndarray) -> float:
    """10 to the mean log10 of the error, errors below 1 m counted as 1 m."""
    return float(10 ** np.log10(np.maximum(km, 1e-3)).mean())


# ---------------------------------------------------------------- metrics


def head_metrics(found: dict, photos, groups: np.ndarray, draws: int, seed: int) -> dict:
    """The block of one model in metrics.json; heads without labels have n = 0 only."""

    errors = errors_of(found, photos)
    metrics: dict = {}
    for head, unit, statistic in (
        ("gps", "km", weighted_median),
        ("time", "minutes", weighted_mean),
        ("altitude", "m", weighted_mean),
    ):
        own = errors["answers"][head]
        rows = np.isfinite(own) & np.isfinite(errors["knn"][head])
        block: dict = {"n": int(rows.sum()), "groups": len(np.unique(groups[rows]))}
        metrics[head] = block
        if not block["n"]:
            continue
        own, trivial, knn = (errors[who][head][rows] for who in ("answers", "trivial", "knn"))
        block[f"mean_{unit}"] = float(own.mean())
        block[f"median_{unit}"] = float(np.median(own))
        block[f"interval_{unit}"] = interval(own, groups[rows], statistic, draws, seed)
        average, name = (np.median, "median") if head == "gps" else (np.mean, "mean")
        block[f"baseline_{name}_{unit}"] = float(average(trivial))
        block[f"knn_{name}_{unit}"] = float(average(knn))
        if head == "gps":
            block |= position_metrics(own, trivial, knn, found["answers"], rows)
            block |= likelihood_metrics(found, groups, draws, seed)
    own, trivial = (errors[who]["sun"] for who in ("answers", "trivial"))
    rows = np.isfinite(own)
    metrics["sun"] = {"n": int(rows.sum())}
    if rows.any():
        metrics["sun"] |= {
            "mean_deg": float(own[rows].mean()),
            "interval_deg": interval(own[rows], groups[rows], weighted_mean, draws, seed),
            "baseline_mean_deg": float(trivial[rows].mean()),
        }
    metrics["orientation"] = orientation_metrics(found, photos, groups, draws, seed)
    return metrics


def position_metrics(own, trivial, knn, answers: dict, rows: np.ndarray) -> dict:
    shares = {f"p{q}_km": float(np.percentile(own, q)) for q in (75, 90, 95)}
    return {
        "geometric_mean_km": geometric_mean_km(own),
        **shares,
        "baseline_geometric_mean_km": geometric_mean_km(trivial),
        "knn_geometric_mean_km": geometric_mean_km(knn),
        "within": {f"{km:g}": float((own <= km).mean()) for km in WITHIN_KM},
        "inside_radius50": float((own <= answers["radius50_km"][rows]).mean()),
        "inside_radius90": float((own <= answers["radius90_km"][rows]).mean()),
    }


def likelihood_metrics(found: dict, groups, draws: int, seed: int) -> dict:
    """Mean log density per km² at the true positions under the posterior, a kernel on the head's
    point alone and the density of the training positions; gains with intervals, paired. Only
    cross-validated models bring it along."""
    if "log_likelihood" not in found:
        return {}
    values = {name: np.asarray(column) for name, column in found["log_likelihood"].items()}
    rows = np.isfinite(values["posterior"])
    own = values["posterior"][rows]
    block: dict = {"posterior": float(own.mean())}
    for name in ("head", "positions"):
        gain = own - values[name][rows]
        block[name] = float(values[name][rows].mean())
        block[f"gain_over_{name}"] = float(gain.mean())
        block[f"gain_over_{name}_interval"] = interval(
            gain, groups[rows], weighted_mean, draws, seed
        )
    return {"log_likelihood": block}


def orientation_metrics(found: dict, photos, groups, draws: int, seed: int) -> dict:
    """Stored files, four turns, six classes and mirror pairs, each from the six views of a photo
    with a tag. Views of one photo count as one unit in the interval."""
    import gps_orientation_trainer as trainer

    tagged = photos.orientation >= 0
    if not tagged.any():
        return {"n": 0}
    views, stored = found["answers"]["views"][tagged], photos.orientation[tagged]
    seen = views[np.arange(len(stored)), stored] + np.log(found["prior"][tagged])
    turns = trainer.turns_right(views)
    six = views.argmax(axis=2)
    confusion = np.zeros((6, 6), int)
    for view in range(6):
        confusion[view] = np.bincount(six[:, view], minlength=6)
    pairs = {}
    for pair in PAIRS:
        columns = [ORIENTATION_CLASSES.index(name) for name in pair]
        chosen = views[:, columns][:, :, columns].argmax(axis=2)
        pairs[" / ".join(pair)] = float((chosen == np.arange(2)).mean())
    return {
        "n": int(tagged.sum()),
        "stored_accuracy": float((seen.argmax(axis=1) == stored).mean()),
        "stored_majority": float(np.bincount(stored).max() / len(stored)),
        "turn_accuracy": float(turns.mean()),
        "turn_interval": interval(turns.mean(axis=1), groups[tagged], weighted_mean, draws, seed),
        "six_class_accuracy": float((six == np.arange(6)).mean()),
        "mirror_accuracy": float(np.mean(list(pairs.values()))),
        "mirror_pairs": pairs,
        "confusion": confusion.tolist(),
    }


def paired_difference(found: dict, photos: dict, groups: dict, draws: int, seed: int) -> dict:
    """RGB+Depth minus RGB on the same photos, with intervals; negative = depth helps (errors)."""
    import gps_orientation_trainer as trainer

    place = {name: i for i, name in enumerate(photos["depth"].names)}
    mine = [i for i, name in enumerate(photos["rgb"].names) if name in place]
    other = [place[photos["rgb"].names[i]] for i in mine]
    errors = {name: trainer.answer_errors(found[name]["answers"], photos[name]) for name in found}
    difference: dict = {}
    for head, key, statistic in (
        ("gps", "median_km", weighted_median),
        ("time", "mean_minutes", weighted_mean),
        ("altitude", "mean_m", weighted_mean),
    ):
        rgb, depth = errors["rgb"][head][mine], errors["depth"][head][other]
        rows = np.isfinite(rgb) & np.isfinite(depth)
        if rows.any():
            ones = np.ones(int(rows.sum()))
            difference[head] = {
                "n": len(ones),
                key: statistic(depth[rows], ones) - statistic(rgb[rows], ones),
                "interval": interval(
                    depth[rows], groups["rgb"][mine][rows], statistic, draws, seed, minus=rgb[rows]
                ),
            }
    return difference


# ---------------------------------------------------------------- files for others


def prediction_rows(name: str, found: dict, photos, groups: np.ndarray) -> list[dict]:
    """One flat record per held-out photo: truth, answer, error and baselines; empty = unknown."""

    answers = found["answers"]
    errors = errors_of(found, photos)
    views = answers["views"]
    rows = []
    for i, filename in enumerate(photos.names):
        tag = photos.orientation[i]
        guess = views[i, max(tag, 0)] + np.log(found["prior"][i])
        row = {
            "filename": filename,
            "model": name,
            "group": int(groups[i]),
            "true_latitude": photos.lat[i],
            "true_longitude": photos.lon[i],
            "latitude": answers["lat"][i],
            "longitude": answers["lon"][i],
            "radius50_km": answers["radius50_km"][i],
            "radius90_km": answers["radius90_km"][i],
            "error_km": errors["answers"]["gps"][i],
            "knn_error_km": errors["knn"]["gps"][i],
            "true_time": clock(photos.minutes[i]),
            "time": clock(answers["minutes"][i]),
            "time_certainty": answers["time_certainty"][i],
            "error_minutes": errors["answers"]["time"][i],
            "true_sun_elevation_deg": photos.sun[i],
            "sun_elevation_deg": answers["sun"][i],
            "true_altitude_m": photos.altitude[i],
            "altitude_m": answers["altitude"][i],
            "error_m": errors["answers"]["altitude"][i],
            "true_orientation": ORIENTATION_CLASSES[tag] if tag >= 0 else None,
            "orientation": ORIENTATION_CLASSES[int(guess.argmax())] if tag >= 0 else None,
        }
        rows.append({k: tidy(v) for k, v in row.items()})
    return rows


def tidy(value):
    """Plain Python values; NaN becomes None; numbers keep nine significant digits."""
    if isinstance(value, float | np.floating):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def clock(minutes: float) -> str | None:
    """HH:MM of minutes since midnight."""
    if not math.isfinite(minutes):
        return None
    whole = round(minutes) % 1440
    return f"{whole // 60:02d}:{whole % 60:02d}"


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write records as CSV (RFC 4180, UTF-8), text that a spreadsheet would run made harmless."""
    with density.write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["filename"], restval="")
        writer.writeheader()
        writer.writerows({k: harmless_cell(v) for k, v in row.items()} for row in rows)


def write_geojson(path: Path, rows: list[dict]) -> None:
    """Write one point per prediction and, where the truth is known, a line from it (RFC 7946)."""
    features = []
    for row in rows:
        place = [row["longitude"], row["latitude"]]
        rest = {k: v for k, v in row.items() if k not in ("longitude", "latitude")}
        features.append(feature("Point", place, {**rest, "kind": "prediction"}))
        if row.get("true_latitude") is not None:
            truth = [row["true_longitude"], row["true_latitude"]]
            about = {"filename": row["filename"], "kind": "error", "error_km": row["error_km"]}
            features.append(feature("LineString", [truth, place], about))
    with density.write_atomically(path, "w", encoding="utf-8") as file:
        json.dump({"type": "FeatureCollection", "features": features}, file, ensure_ascii=False)


def feature(kind: str, coordinates: list, properties: dict) -> dict:
    geometry = {"type": kind, "coordinates": coordinates}
    return {"type": "Feature", "geometry": geometry, "properties": properties}


# ---------------------------------------------------------------- plots

COLOURS = {"rgb": "#0b7a75", "depth": "#c8553d", "knn": "#8a6fb0", "trivial": "#9aa0a6"}


PLOT_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
}


def new_figure(columns: int = 1, width: float = 5.2, height: float = 4.0):
    """Figure and axes (always a list); without pyplot, so that a notebook's own plots go on."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def save_figure(figure, path: Path) -> Path:
    with density.write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=130)
    return path


def distance_label(km: float, _position=None) -> str:
    return f"{km * 1000:.3g} m" if km < 1 else f"{km:,.0f} km" if km >= 10 else f"{km:.3g} km"


def plot_position_errors(models: dict, path: Path) -> Path:
    """Cumulative share of the held-out photos within each distance."""

    figure, (axis,) = new_figure(1, 8.0, 4.2)
    lines = []
    for name, (found, photos, _) in models.items():
        km = {who: errors["gps"] for who, errors in errors_of(found, photos).items()}
        lines.append((TITLES[name], km["answers"], COLOURS[name], "-"))
    lines.append(("nearest neighbours", km["knn"], COLOURS["knn"], "--"))
    lines.append(("training median", km["trivial"], COLOURS["trivial"], "--"))
    for label, errors, colour, style in lines:
        errors = np.sort(np.maximum(errors[np.isfinite(errors)], 1e-3))
        share = np.arange(1, len(errors) + 1) / len(errors)
        text = f"{label}: median {distance_label(float(np.median(errors)))}"
        axis.step(errors, share, where="post", color=colour, linestyle=style, lw=2, label=text)
    axis.set(xscale="log", ylim=(0, 1.02), xlabel="distance from the true position")
    axis.set_ylabel("share of held-out photos")
    axis.xaxis.set_major_formatter(distance_label)
    axis.yaxis.set_major_formatter(lambda v, _: f"{v * 100:.0f} %")
    axis.legend(frameon=False, loc="upper left")
    return save_figure(figure, path)


def plot_map(models: dict, path: Path) -> Path:
    """True positions, and a line from each to its prediction."""
    figure, axes = new_figure(len(models), 5.6, 5.0)
    for axis, (name, (found, photos, _)) in zip(axes, models.items(), strict=True):
        rows = photos.placed
        lat, lon = photos.lat[rows], photos.lon[rows]
        guess_lat, guess_lon = found["answers"]["lat"][rows], found["answers"]["lon"][rows]
        near = np.abs(guess_lon - lon) < 180  # a line across the date line would cross the map
        axis.plot(
            np.stack([lon, guess_lon])[:, near],
            np.stack([lat, guess_lat])[:, near],
            color=COLOURS[name],
            lw=0.6,
            alpha=0.5,
        )
        axis.scatter(lon, lat, s=14, color="#222", zorder=3, label="true position")
        axis.scatter(guess_lon, guess_lat, s=9, color=COLOURS[name], zorder=2, label="prediction")
        axis.set_aspect(1 / max(math.cos(math.radians(float(np.mean(lat)))), 0.05), "datalim")
        axis.set(title=TITLES[name], xlabel="longitude (°)", ylabel="latitude (°)")
        axis.ticklabel_format(useOffset=False)
        axis.locator_params(nbins=5)
        axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9)
    return save_figure(figure, path)


def plot_agreement(models: dict, path: Path, head: str) -> Path:
    """Predicted against true time of day or altitude, the diagonal being right."""
    figure, axes = new_figure(len(models), 4.8, 4.4)
    for axis, (name, (found, photos, _)) in zip(axes, models.items(), strict=True):
        if head == "time":
            truth, guess = photos.minutes / 60, found["answers"]["minutes"] / 60
            guess = truth + (guess - truth + 12) % 24 - 12  # the nearer way round the clock
            axis.set(xlabel="true time of day (h)", ylabel="predicted (h)", xlim=(0, 24))
            axis.set_xticks(range(0, 25, 4))
            axis.set_yticks(range(-12, 37, 4), [str(h % 24) for h in range(-12, 37, 4)])
            ends = np.array([0, 24])
        else:
            truth, guess = photos.altitude, found["answers"]["altitude"]
            axis.set(xlabel="true altitude (m)", ylabel="predicted (m)")
            ends = np.array([np.nanmin(truth), np.nanmax(truth)])
        axis.plot(ends, ends, color="#999", lw=1)
        axis.scatter(truth, guess, s=16, color=COLOURS[name], alpha=0.6, edgecolors="none")
        if head == "time":
            known = np.isfinite(guess)
            axis.set_ylim(min(0, guess[known].min() - 1), max(24, guess[known].max() + 1))
        axis.set_title(TITLES[name])
    return save_figure(figure, path)


def plot_confusion(metrics: dict, path: Path) -> Path:
    """Six views of each held-out photo: shown against predicted, in per cent of each row."""
    figure, axes = new_figure(len(metrics), 5.0, 4.6)
    for axis, (name, block) in zip(axes, metrics.items(), strict=True):
        counts = np.array(block["orientation"]["confusion"], float)
        share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="GnBu", vmin=0, vmax=100)
        for (row, column), value in np.ndenumerate(share):
            dark = "white" if value > 60 else "#333"
            axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=dark)
        axis.set_xticks(range(6), ORIENTATION_CLASSES, rotation=40, ha="right")
        axis.set_yticks(range(6), ORIENTATION_CLASSES)
        axis.grid(False)
        axis.set(title=f"{TITLES[name]}, % of row", xlabel="predicted", ylabel="shown")
    return save_figure(figure, path)


def plot_examples(models: dict, image_dir: Path, path: Path) -> Path | None:
    """Held-out photos of the first model from best to worst, truth and answer below each."""
    import gps_orientation_trainer as trainer

    name, (found, photos, _) = next(iter(models.items()))
    km = trainer.answer_errors(found["answers"], photos)["gps"]
    order = [i for i in np.argsort(km) if np.isfinite(km[i])]
    order = [i for i in order if photo_file(image_dir, photos.names[i]).is_file()]
    if not order:
        return None
    chosen = [order[round(q * (len(order) - 1))] for q in np.linspace(0, 1, min(8, len(order)))]
    figure, axes = new_figure(len(chosen), 2.9, 2.9)
    figure.set_size_inches(11.6, 6.2)
    figure.clear()
    axes = figure.subplots(2, 4).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen, strict=False):
        axis.imshow(np.asarray(open_upright(photo_file(image_dir, photos.names[i]), 480)))
        answers = found["answers"]
        lines = [f"{distance_label(km[i])} off (±{distance_label(answers['radius90_km'][i])})"]
        if photos.minutes[i] == photos.minutes[i]:
            lines.append(f"{clock(answers['minutes'][i])}, true {clock(photos.minutes[i])}")
        if photos.altitude[i] == photos.altitude[i]:
            lines.append(f"{answers['altitude'][i]:.0f} m, true {photos.altitude[i]:.0f} m")
        axis.set_title("\n".join(lines), fontsize=9)
    figure.suptitle(f"{TITLES[name]}: held-out photos from the best to the worst position")
    return save_figure(figure, path)


# ---------------------------------------------------------------- report

REPORT = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Where, when and how: evaluation</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body{font:16px/1.5 system-ui,sans-serif;color:#222;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.7rem;margin-bottom:.2rem} h2{margin-top:2.2rem;font-size:1.2rem}
p.lead{color:#555;margin-top:0} img{max-width:100%;height:auto;display:block;margin:.6rem auto}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;margin:1rem 0}
th,td{padding:.4rem .5rem;text-align:right;border-bottom:1px solid #e3e3e3;white-space:nowrap}
table{font-size:.94rem}
th{font-weight:600;border-bottom:2px solid #444} th:first-child,td:first-child{text-align:left}
th:nth-child(2),td:nth-child(2){text-align:left} .good{color:#0b7a75;font-weight:600}
.bad{color:#b3432b;font-weight:600} small,.note{color:#666} .scroll{overflow-x:auto}
</style></head><body>
<h1>Where, when and how were these photos taken?</h1>
<p class="lead">{{ lead }}</p>
<div class="scroll"><table><tr><th>What</th><th>Model</th><th>n</th><th>Error</th>
<th>95&nbsp;% interval</th><th>Trivial answer</th><th>Nearest neighbours</th>
<th>Error / trivial</th></tr>
{% for r in rows %}<tr><td>{{ r.head }}</td><td>{{ r.model }}</td><td>{{ r.n }}</td>
<td><b>{{ r.error }}</b></td><td>{{ r.interval }}</td><td>{{ r.trivial }}</td><td>{{ r.knn }}</td>
<td class="{{ r.verdict }}">{{ r.ratio }}</td></tr>{% endfor %}</table></div>
<p class="note">Position: median distance. Time: mean circular error. Altitude: mean absolute error.
Trivial answers say the same for every photo: the training photos' geographic median, circular
median time and median altitude. Nearest neighbours answer with the most similar training photos in
the same features. Intervals: {{ draws }} bootstrap resamples of whole groups.</p>
{% for line in findings %}<p>{{ line }}</p>{% endfor %}
{% for title, text, image in figures %}<h2>{{ title }}</h2><p>{{ text }}</p>
<img alt="{{ title }}" src="data:image/png;base64,{{ image }}">{% endfor %}
<h2>Orientation in numbers</h2><div class="scroll"><table><tr><th>Question</th><th>Chance</th>
{% for m in models %}<th>{{ m }}</th>{% endfor %}</tr>
{% for r in turns %}<tr>{% for cell in r %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table></div>
<p class="note">A landscape and its mirror image are equally plausible: where nothing breaks the
symmetry, mirror pairs stay near 50&nbsp;% and six classes near 66.7&nbsp;%.</p>
<h2>How this was measured</h2><p>{{ method }}</p>
<p class="note">A position guess is a guess. Do not use it to find people.</p>
</body></html>"""


def table_rows(metrics: dict) -> list[dict]:
    """Rows of the headline table: every head of every model beside its two baselines."""
    rows = []
    for head, title, key, unit in (
        ("gps", "Position", "median_km", "km"),
        ("time", "Time of day", "mean_minutes", "minutes"),
        ("altitude", "Altitude", "mean_m", "m"),
    ):
        show = {"km": distance_label, "minutes": "{:.0f} min".format, "m": "{:.0f} m".format}[unit]
        for model, block in metrics.items():
            found = block[head]
            if not found["n"]:
                continue
            ratio = found[key] / max(found[f"baseline_{key}"], 1e-9)
            row = {
                "head": title,
                "model": TITLES[model],
                "n": found["n"],
                "error": show(found[key]),
            }
            row["interval"] = range_text(found[f"interval_{unit}"], show)
            row["trivial"], row["knn"] = show(found[f"baseline_{key}"]), show(found[f"knn_{key}"])
            rows.append(
                {**row, "ratio": f"{ratio:.2f}×", "verdict": "good" if ratio < 1 else "bad"}
            )
    for model, block in metrics.items():
        found = block["orientation"]
        if found["n"]:
            missed = 1 - found["turn_accuracy"]
            row = {"head": "Four turns missed", "model": TITLES[model], "n": found["n"]}
            row |= {"error": f"{missed * 100:.1f} %", "trivial": "75 %", "knn": "–"}
            low_high = found["turn_interval"]
            flipped = [1 - x for x in reversed(low_high)] if low_high else None
            row["interval"] = range_text(flipped, lambda x: f"{x * 100:.1f} %")
            verdict = "good" if missed < 0.75 else "bad"
            rows.append({**row, "ratio": f"{missed / 0.75:.2f}×", "verdict": verdict})
    return rows


def range_text(limits: list[float] | None, show) -> str:
    return f"{show(limits[0])} … {show(limits[1])}" if limits else "one group only"


def print_table(rows: list[dict]) -> None:
    header = ("", "model", "n", "error", "95 % interval", "trivial", "kNN", "error/trivial")
    keys = ("head", "model", "n", "error", "interval", "trivial", "knn", "ratio")
    cells = [header, *(tuple(str(row[key]) for key in keys) for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    for number, line in enumerate(cells):
        left = f"{line[0]:<{widths[0]}}  {line[1]:<{widths[1]}}"
        print(left, *(f"{c:>{w}}" for c, w in zip(line[2:], widths[2:], strict=True)), sep="  ")
        if number == 0:
            print("-" * (sum(widths) + 2 * (len(widths) - 1)))


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


def findings(metrics: dict, difference: dict) -> list[str]:
    """Sentences that the numbers support, and no more."""
    lines = []
    for model, block in metrics.items():
        gps = block["gps"]
        if gps["n"]:
            better = "below" if gps["geometric_mean_km"] < gps["knn_geometric_mean_km"] else "above"
            lines.append(
                f"{TITLES[model]}: geometric mean position error "
                f"{distance_label(gps['geometric_mean_km'])}, {better} nearest neighbours' "
                f"{distance_label(gps['knn_geometric_mean_km'])}; "
                f"{gps['inside_radius50'] * 100:.0f} % of the photos lie inside the 50 % radius, "
                f"{gps['inside_radius90'] * 100:.0f} % inside the 90 % radius."
            )
            told = gps.get("log_likelihood")
            if told:
                lines.append(
                    f"{TITLES[model]}: log density per km² at the true position "
                    f"{told['posterior']:.2f}, with the head's point alone {told['head']:.2f}, "
                    f"with the training positions alone {told['positions']:.2f} (higher is better)."
                )
        if block["sun"]["n"]:
            lines.append(
                f"{TITLES[model]}: mean error of the sun's elevation "
                f"{block['sun']['mean_deg']:.1f}°, of its median "
                f"{block['sun']['baseline_mean_deg']:.1f}°."
            )
    shown = {"gps": ("median position error", distance_label)}
    shown["time"] = ("mean time error", "{:.1f} min".format)
    shown["altitude"] = ("mean altitude error", "{:.1f} m".format)
    for head, block in difference.items():
        what, show = shown[head]
        value = next(v for k, v in block.items() if k.startswith(("median", "mean")))
        limits = block["interval"]
        clear = limits and (limits[0] > 0 or limits[1] < 0)
        verdict = "clear" if clear else "within the noise"
        between = f"95 % interval {' … '.join(signed(x, show) for x in limits or ())}"
        lines.append(
            f"Adding depth changes the {what} by {signed(value, show)} on the same "
            f"{block['n']} photos " + (f"({between}): {verdict}." if limits else "(one group).")
        )
    return lines


def signed(value: float, show) -> str:
    """The value with its sign, none where it is shown as zero."""
    text = show(abs(value))
    return text if text == show(0.0) else f"{'−' if value < 0 else '+'}{text}"


def write_report(path: Path, metrics: dict, difference: dict, figures: list, about: dict) -> None:
    """Fill the page; pictures are embedded, so that the file can be mailed."""
    import jinja2

    page = jinja2.Environment(autoescape=True).from_string(REPORT)
    content = page.render(
        lead=about["lead"],
        method=about["method"],
        rows=table_rows(metrics),
        findings=findings(metrics, difference),
        models=[TITLES[name] for name in metrics],
        turns=orientation_rows(metrics),
        draws=about["draws"],
        figures=[
            (title, text, base64.b64encode(file.read_bytes()).decode())
            for title, text, file in figures
            if file is not None
        ],
    )
    with density.write_atomically(path, "w", encoding="utf-8") as file:
        file.write(content)


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
    import gps_orientation_trainer as trainer

    density.sweep_temporaries(output_dir)
    table = read_table(data_dir)
    photos = trainer.photos_of(table, image_dir)
    models, checkpoints, metrics, rows = {}, {}, {}, []
    for name in TITLES:
        path = checkpoint_dir / f"best_gps_model_{name}.pth"
        if path.is_file():
            checkpoints[name] = checkpoint = trainer.read_checkpoint(path)
            if checkpoint["table_sha256"] != trainer.file_sha256(data_dir / "exif_data.json"):
                print(f"note: exif_data.json has changed since {path.name} was trained")
            found, held = held_out_answers(checkpoint, photos, data_dir, precision)
            groups = groups_of(checkpoint, held.names)
            models[name] = (found, held, groups)
            metrics[name] = head_metrics(found, held, groups, draws, seed)
            rows += prediction_rows(name, found, held, groups)
    if not models:
        density.stop(
            f"no best_gps_model_rgb.pth or _depth.pth in {checkpoint_dir}: "
            "run python gps_orientation_trainer.py first"
        )
    difference = compare(models, draws, seed) if len(models) == 2 else {}
    account(table, models)
    figures = draw_figures(models, metrics, image_dir, output_dir)
    about = describe(checkpoints, models, draws)
    split = next(iter(checkpoints.values()))["split"]
    kept = {k: split[k] for k in ("kind", "radius_km", "group_count", "largest_group")}
    settings = {name: checkpoint["settings"] for name, checkpoint in checkpoints.items()}
    content = {**metrics, "depth_minus_rgb": difference, "split": kept, "settings": settings}
    with density.write_atomically(output_dir / "metrics.json", "w", encoding="utf-8") as file:
        json.dump(content, file, indent=1, ensure_ascii=False)
    write_rows(output_dir / "predictions.csv", rows)
    write_geojson(output_dir / "predictions.geojson", rows)
    write_report(output_dir / "report.html", metrics, difference, figures, about)
    print_table(table_rows(metrics))
    for line in findings(metrics, difference):
        print(line)
    print(f"wrote {output_dir}/metrics.json, predictions.csv, predictions.geojson and plots")
    print(f"report: {(output_dir / 'report.html').resolve()}")


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


def draw_figures(models: dict, metrics: dict, image_dir: Path, output_dir: Path) -> list[tuple]:
    """Draw what the labels allow; (title, sentence, file) for the report."""
    import matplotlib

    with matplotlib.rc_context(PLOT_STYLE):
        return list(each_figure(models, metrics, image_dir, output_dir))


def each_figure(models: dict, metrics: dict, image_dir: Path, output_dir: Path) -> Iterator[tuple]:
    labelled = next(iter(metrics.values()))
    if labelled["gps"]["n"]:
        yield (
            "How far off?",
            "Share of the held-out photos whose position is found within a distance.",
            plot_position_errors(models, output_dir / "position_errors.png"),
        )
        yield (
            "Where to?",
            "Every line runs from the true position to the prediction.",
            plot_map(models, output_dir / "map.png"),
        )
        yield (
            "Examples",
            "Eight held-out photos, evenly spaced from the best to the worst.",
            plot_examples(models, image_dir, output_dir / "examples.png"),
        )
    for head, title, text in (
        ("time", "Time of day", "The clock is a circle: points are drawn the nearer way round."),
        ("altitude", "Altitude", "Metres above sea level."),
    ):
        if labelled[head]["n"]:
            yield title, text, plot_agreement(models, output_dir / f"{head}.png", head)
    if labelled["orientation"]["n"]:
        text = "Each held-out photo shown in all six orientations."
        yield "Orientation", text, plot_confusion(metrics, output_dir / "orientation.png")


def describe(checkpoints: dict, models: dict, draws: int) -> dict:
    """Sentences on data, split and models for the head and the foot of the report."""
    checkpoint = next(iter(checkpoints.values()))
    settings, split = checkpoint["settings"], checkpoint["split"]
    _, held, groups = next(iter(models.values()))
    how = (
        f"{settings['folds']} folds, every photo predicted by a model that did not see it"
        if checkpoint["held_out"] is not None
        else "15 % of the groups, held out from the start"
    )
    radius = split["radius_km"]
    near = f"within {distance_label(radius)} of each other or" if radius else ""
    method = (
        f"{len(held)} photos in {len(np.unique(groups))} groups; {how}. "
        + (
            f"Photos {near} in one burst form a group, and a group is never on both sides. "
            if split["kind"] == "grouped"
            else "Random split: near-duplicates on both sides make every figure too good. "
        )
        + f"Backbone {checkpoint['model_config']['backbone']}, {settings['mode']}, "
        f"{settings['image_size']} px, seed {settings['seed']}."
    )
    names = ", ".join(TITLES[name] for name in models)
    lead = f"{len(held)} held-out photos, {names}, {split['kind']} split"
    return {"lead": lead, "method": method, "draws": draws}


# ---------------------------------------------------------------- unknown photos


def predict_unknown(
    paths: list[str], checkpoint_dir: Path, output_dir: Path, precision_name: str, certainty: float
) -> int:
    """Print where, when, how high and which way up for photos without EXIF; returns failures.

    A photo is first turned upright by the RGB orientation head where that is certain enough;
    then comes its depth, then the other heads.
    """
    import gps_orientation_trainer as trainer

    files = list_photos(paths)
    checkpoint = trainer.read_checkpoint(checkpoint_dir / "best_gps_model.pth")
    network, normalisation, posterior = trainer.rebuild(checkpoint)
    precision = trainer.Precision(precision_name)
    network.to(precision.device)
    estimate = depth_estimator(checkpoint, checkpoint_dir, precision)
    size, prior = checkpoint["settings"]["image_size"], np.log(normalisation.orientation_prior)
    rows, failures = [], 0
    for name, file in files.items():
        try:
            stored = open_stored(file, max_side=max(2 * size, 1036))
            inputs = trainer.picture_inputs(stored, size, network.rgb_branch)
            chance = orientation_chances(network, inputs["views"], prior, precision)
            turned = int(chance.argmax()) if chance.max() >= certainty else 0
            upright = turn_picture(stored, ORIENTATION_CLASSES[turned])
            inputs = trainer.picture_inputs(upright, size, network.rgb_branch)
            if estimate is not None:
                inputs["depth"] = trainer.depth_input(estimate(np.asarray(upright)), size)
        except (OSError, ValueError) as error:
            print(f"{name}: left out: {error}")
            failures += 1
            continue
        batch = {k: v[None] for k, v in inputs.items()}
        raw = trainer.predict_batch(network, batch, precision)
        answer = trainer.answers_of(raw, checkpoint["gallery"], posterior, normalisation)
        places = trainer.likely_places(raw, checkpoint["gallery"], posterior, normalisation)[0]
        row = {
            "filename": name,
            "latitude": answer["lat"][0],
            "longitude": answer["lon"][0],
            "radius50_km": answer["radius50_km"][0],
            "radius90_km": answer["radius90_km"][0],
            "places": "; ".join(f"{lat:.5f} {lon:.5f} {p * 100:.0f} %" for lat, lon, p in places),
            "time": clock(answer["minutes"][0]),
            "time_certainty": answer["time_certainty"][0],
            "orientation": ORIENTATION_CLASSES[int(chance.argmax())],
            "orientation_probability": chance.max(),
            "altitude_m": answer["altitude"][0],
            "sun_elevation_deg": answer["sun"][0],
        }
        rows.append({k: tidy(v) for k, v in row.items()})
        print_prediction(rows[-1], turned)
    if rows:
        write_rows(output_dir / "photos.csv", rows)
        write_geojson(output_dir / "photos.geojson", rows)
        print(f"wrote {output_dir}/photos.csv and photos.geojson")
    print(f"{len(rows)} photos predicted, {failures} left out")
    return failures


def list_photos(paths: list[str]) -> dict[str, Path]:
    """Files as named, folders with all their photos; ends the run when one does not exist."""
    files: dict[str, Path] = {}
    for path in map(Path, paths):
        if path.is_dir():
            files |= {str(path / name): file for name, file in find_photos(path).items()}
        elif path.is_file():
            files[str(path)] = path
        else:
            density.stop(f"no photo or folder {path}")
    if not files:
        density.stop(f"no photos in {', '.join(paths)}")
    return files


def depth_estimator(checkpoint: dict, checkpoint_dir: Path, precision):
    """Function from upright RGB pixels to inverse depth with the very model used in training;
    None for RGB checkpoints."""
    if not checkpoint["model_config"]["use_depth"]:
        return None
    import depth_map_generator

    about = checkpoint["settings"]["depth_model"]
    weights = about["model"]  # a hub id, unless it was a file
    if about["file"].endswith(".pth"):
        places = [folder / about["file"] for folder in (checkpoint_dir, checkpoint_dir.parent)]
        weights = str(next((file for file in places if file.is_file()), places[0]))
    network, info = depth_map_generator.load_network(weights, checkpoint_dir, precision.device.type)
    if info["sha256"] != about["sha256"]:
        density.stop(
            f"{info['file']} is not the depth model of the training (sha256 {about['sha256']})"
        )
    return lambda pixels: depth_map_generator.estimate_depth(network, pixels, about["input_size"])


def orientation_chances(network, views, prior: np.ndarray, precision) -> np.ndarray:
    """Probability of each class (6,) for a stored picture, by its six views (6, 3, V, V)."""
    import torch

    import gps_orientation_trainer as trainer

    with torch.inference_mode(), precision.autocast():
        logits = trainer.view_logits(network, views[None].to(precision.device))[0, 0]
    logits = logits.float().cpu().numpy() + prior
    chances = np.exp(logits - logits.max())
    return chances / chances.sum()


def turn_picture(photo, name: str):
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(turn_upright(np.asarray(photo), name)))


def print_prediction(row: dict, turned: int) -> None:
    half, most = distance_label(row["radius50_km"]), distance_label(row["radius90_km"])
    print(
        f"{row['filename']}\n"
        f"  position     {row['latitude']:.5f}, {row['longitude']:.5f} "
        f"± {half} (50 %), {most} (90 %)\n"
        f"  most likely  {row['places'] or 'no distinct place'}\n"
        f"  time         {row['time']} (certainty {row['time_certainty']:.2f}), "
        f"sun {row['sun_elevation_deg']:.0f}° high\n"
        f"  orientation  {row['orientation']} ({row['orientation_probability'] * 100:.0f} %"
        f"{', turned upright first' if turned else ''})\n"
        f"  altitude     {row['altitude_m']:.0f} m"
    )


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
    add("--photos", nargs="+", metavar="PATH", help="predict these photos or folders instead")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    checkpoint_dir, output_dir = Path(args.checkpoint_dir), Path(args.output_dir)
    if args.photos:
        failures = predict_unknown(
            args.photos, checkpoint_dir, output_dir, args.precision, args.turn_certainty
        )
        return 1 if failures else 0
    data_dir = Path(args.data_dir)
    image_dir = Path(args.image_dir) if args.image_dir else data_dir / "images"
    evaluate(
        data_dir, image_dir, checkpoint_dir, output_dir, args.precision, args.bootstrap, args.seed
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
