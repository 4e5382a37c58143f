"""The pictures of an evaluation and of one answer, drawn without pyplot: a notebook's own plots go
on.

In: answers, Photos, metrics. Out: PNG files; a figure.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

import density
from density import distance_label
from geophoto.baselines import answer_errors, errors_of
from geophoto.maps import (
    KM_PER_DEGREE,
    box_around,
    dress_axis,
    in_view,
    squared,
    unwrapped,
)
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.pictures import open_upright, photo_file
from geophoto.records import clock

TITLES = {"rgb": "RGB", "depth": "RGB + depth"}
COLOURS = {"rgb": "#0b7a75", "depth": "#c8553d", "knn": "#8a6fb0", "trivial": "#9aa0a6"}
PLOT_STYLE: dict[Any, Any] = {
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


def plot_position_errors(models: dict, path: Path) -> Path:
    """Cumulative share of the held-out photos within each distance."""
    from matplotlib.ticker import LogLocator, NullFormatter

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
    # within a decade 1, 2 and 5, else matplotlib names the smaller ticks in powers of ten
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow(lines) else (1,), numticks=12))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(distance_label)
    axis.yaxis.set_major_formatter(lambda v, _: f"{v * 100:.0f} %")
    axis.legend(frameon=False, loc="upper left")
    return save_figure(figure, path)


def narrow(lines: list[tuple]) -> bool:
    """Whether the errors of all curves span less than two decades."""
    every = np.concatenate([errors[np.isfinite(errors)] for _, errors, *_ in lines])
    low, high = np.quantile(np.maximum(every, 1e-3), (0.01, 1))
    return bool(high < 100 * low)


def plot_map(models: dict, path: Path) -> Path:
    """True positions, and a line from each to its prediction, on the coast or a grid. A few photos
    far from all others lie outside; how many is said."""
    from matplotlib.collections import LineCollection

    figure, axes = new_figure(len(models), 5.6, 5.0)
    for axis, (name, (found, photos, _)) in zip(axes, models.items(), strict=True):
        rows = photos.placed & np.isfinite(found["answers"]["lat"])
        lat, middle = (
            photos.lat[rows],
            density.geographic_median(photos.lat[rows], photos.lon[rows]),
        )
        lon = unwrapped(photos.lon[rows], middle[1])
        guess_lat = found["answers"]["lat"][rows]
        guess_lon = lon + (found["answers"]["lon"][rows] - lon + 180) % 360 - 180  # the near way
        seen = in_view(lat, lon)
        ends = np.stack([[lon, lat], [guess_lon, guess_lat]]).transpose(2, 0, 1)
        dress_axis(axis, box_around(lat[seen], lon[seen], 0.1))
        axis.add_collection(LineCollection(list(ends), color=COLOURS[name], lw=0.6, alpha=0.5))
        axis.scatter(lon, lat, s=14, color="#222", zorder=4, label="true position")
        axis.scatter(guess_lon, guess_lat, s=9, color=COLOURS[name], zorder=3, label="prediction")
        outside = int((~seen).sum())
        axis.set_title(TITLES[name] + (f"; {outside} photos lie outside" if outside else ""))
        axis.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=9, loc="upper left")
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


TRIED = 8  # photos of each eighth that are looked at


def plot_examples(models: dict, image_dir: Path, path: Path) -> Path | None:
    """Held-out photos of the first model from the best to the worst position: of each eighth of
    them the one with most contrast among a few, for the dark and the plain tell the eye little."""
    name, (found, photos, _) = next(iter(models.items()))
    km = answer_errors(found["answers"], photos)["gps"]
    order = [i for i in np.argsort(km) if np.isfinite(km[i])]
    order = [i for i in order if os.path.isfile(photo_file(image_dir, photos.names[i]))]
    shown: dict[int, np.ndarray] = {}
    for part in np.array_split(np.array(order, int), min(8, len(order))) if order else ():
        seen = {}
        for i in part[:: max(1, len(part) // TRIED)]:
            with suppress(OSError, ValueError):  # what lies there is no photo any more
                seen[i] = np.asarray(open_upright(photo_file(image_dir, photos.names[i]), 480))
        if seen:
            best = max(seen, key=lambda i, seen=seen: seen[i].std())  # type: ignore[misc]
            shown[best] = seen[best]
    chosen = list(shown)
    if not chosen:
        return None
    figure, axes = new_figure(len(chosen), 2.9, 2.9)
    figure.set_size_inches(11.6, 6.2)
    figure.clear()
    axes = figure.subplots(2, 4).ravel()
    for axis in axes:
        axis.axis("off")
    for axis, i in zip(axes, chosen, strict=False):
        axis.imshow(shown[i])
        answers = found["answers"]
        radius = distance_label(answers["radius90_km"][i])
        lines = [f"{distance_label(km[i])} off, 90 % sure within {radius}"]
        if np.isfinite(photos.minutes[i]) and np.isfinite(answers["minutes"][i]):
            told = clock(answers["minutes"][i])
            lines.append(f"taken at {clock(photos.minutes[i])}, guessed {told}")
        if np.isfinite(photos.altitude[i]) and np.isfinite(answers["altitude"][i]):
            told = f"{answers['altitude'][i]:.0f} m"
            lines.append(f"at {photos.altitude[i]:.0f} m, guessed {told}")
        axis.set_title("\n".join(lines), fontsize=9)
    figure.suptitle(f"{TITLES[name]}: held-out photos from the best to the worst position")
    return save_figure(figure, path)


# ---------------------------------------------------------------- training

PANELS = {"score": "score (1 = nothing learned)", "median_km": "position, median km",
          "mean_minutes": "time, mean minutes", "mean_m": "altitude, mean m"}  # fmt: skip


def draw_history(history, title: str):
    """The rows of metrics.csv (a DataFrame, or None) as a figure: a thin line a rehearsal, a dot
    the epoch of its best score."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(PLOT_STYLE):
        figure = Figure(figsize=(13, 3.1), layout="constrained")
        axes = figure.subplots(1, len(PANELS))
    for name, mine in [] if history is None else history.groupby("inputs"):
        runs = mine.groupby(["fold", mine["left_out"].fillna(0)])
        for number, (_, run) in enumerate(runs):
            best = run.loc[run["score"].idxmin()]
            for axis, column in zip(axes, PANELS, strict=True):
                label = None if number else TITLES[name]
                axis.plot(run["epoch"], run[column], color=COLOURS[name], lw=1, alpha=0.5,
                          label=label)  # fmt: skip
                axis.plot(best["epoch"], best[column], "o", color=COLOURS[name], ms=3)
        axes[0].legend(frameon=False, fontsize=9)
    for axis, text in zip(axes, PANELS.values(), strict=True):
        axis.set_title(text, fontsize=10)
        axis.set_xlabel("epoch")
    figure.suptitle(title, fontsize=11)
    return figure


# ---------------------------------------------------------------- one answer


def draw_answer(title: str, row: dict, photo, similar, image_dir: Path, places, truth: dict):
    """One photo and all that a model says of it, as a figure.

    `row` is a record of predictions.photo_row, `photo` the picture turned upright, `similar` the
    training photos most like it (filename, similarity, from_answer_km), `places` the latitudes and
    longitudes of the training photos or None, `truth` its row of the table, empty if there is none.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({**PLOT_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(13, 7.2 if len(similar) else 4.8), layout="constrained")
        parts = figure.subfigures(2 if len(similar) else 1, 1, squeeze=False, height_ratios=(
            (2, 1) if len(similar) else None))[:, 0]  # fmt: skip
        upper = parts[0].add_gridspec(1, 3, width_ratios=(1.3, 1.2, 1))
        axis = parts[0].add_subplot(upper[0])
        axis.imshow(photo)
        axis.axis("off")
        strange = (row["strangeness"] or 0) > 1
        axis.set_title(title + ("\nunlike all training photos" if strange else ""), fontsize=10)
        turned = ", turned upright" if row["turned"] else ""
        seen = f"stored as {row['orientation']} ({row['orientation_probability']:.0%}{turned})"
        axis.text(0, -0.04, seen, transform=axis.transAxes, va="top")
        draw_place(parts[0].add_subplot(upper[1]), row, places, truth)
        draw_clock(parts[0].add_subplot(upper[2], projection="polar"), row, truth)
        if len(similar):
            parts[1].suptitle("most similar training photos", fontsize=10, x=0.01, ha="left")
            for axis, one in zip(parts[1].subplots(1, len(similar)), similar.itertuples(),
                                 strict=True):  # fmt: skip
                axis.axis("off")
                with suppress(OSError, ValueError):  # moved away since
                    axis.imshow(open_upright(photo_file(image_dir, one.filename), 240))
                away = place_label(one.from_answer_km)
                axis.set_title(f"similarity {one.similarity:.2f}, {away}", fontsize=9)
    return figure


def place_label(km: float) -> str:
    """How far a place is from the answer; nothing is known to less than a metre."""
    if not math.isfinite(km):
        return "place unknown"
    return f"{distance_label(km)} away" if km >= 1e-3 else "the same place"


def draw_place(axis, row: dict, places, truth: dict) -> None:
    """The position with its two radii, up to three places, and the truth, on a map."""
    from matplotlib.patches import Ellipse

    if row["latitude"] is None:
        axis.axis("off")
        axis.set_title("no position was learned")
        return
    lat, lon, most = row["latitude"], row["longitude"], row["radius90_km"]
    shrink = max(math.cos(math.radians(lat)), 0.02)
    known = [(one["latitude"], one["longitude"]) for one in row["places"]]
    true = (truth.get("gps_latitude"), truth.get("gps_longitude"))
    if true[0] is not None and np.isfinite(true[0]):
        axis.plot(unwrapped(np.array(true[1:]), lon), true[:1], "*", color="#222", ms=12, zorder=6)
        known.append(true)
    lats = np.array([lat, *(one[0] for one in known)])
    lons = unwrapped(np.array([lon, *(one[1] for one in known)]), lon)
    dress_axis(axis, squared(box_around(lats, lons, 0.15, 1.15 * most)))
    if places is not None:
        axis.scatter(unwrapped(places[1], lon), places[0], s=5, color="#9aa0a6", zorder=2)
    for radius, alpha in ((row["radius50_km"], 0.25), (most, 0.12)):
        width, height = (2 * radius / KM_PER_DEGREE / x for x in (shrink, 1.0))
        axis.add_patch(Ellipse((lon, lat), width, height, color=COLOURS["depth"], alpha=alpha))
    axis.plot(lon, lat, "o", color=COLOURS["depth"], ms=7, zorder=5)
    for number, one in enumerate(row["places"], start=1):
        at = unwrapped(np.array([one["longitude"]]), lon)[0]
        axis.annotate(f"{number}: {one['probability']:.0%}", (at, one["latitude"]), zorder=7,
                      textcoords="offset points", xytext=(5, 5), fontsize=9)  # fmt: skip
        axis.plot(at, one["latitude"], "x", color=COLOURS["depth"], ms=6, zorder=5)
    sure = "" if row["position_confident"] else ", not confident"
    near, far = distance_label(row["radius50_km"]), distance_label(most)
    star = "\n★ the truth, " if len(known) > len(row["places"]) else ""
    off = place_label(float(density.distance_km(lat, lon, *true))) if star else ""
    axis.set_ylabel("")
    axis.set_xlabel(f"{lat:.5f}, {lon:.5f}{sure}\n± {near} (50 %), {far} (90 %){star}{off}",
                    fontsize=10)  # fmt: skip


def draw_clock(axis, row: dict, truth: dict) -> None:
    """A face of 24 hours, noon at the top, with the intervals as arcs; below it all in words."""
    axis.set_theta_zero_location("S")
    axis.set_theta_direction(-1)
    axis.set_xticks(np.arange(0, 24, 3) * math.pi / 12, [f"{hour} h" for hour in range(0, 24, 3)])
    axis.set(yticks=[], ylim=(0, 1))
    turn = 2 * math.pi / 1440
    lines = ["no time was learned"]
    if row["time"] is not None:
        hours, minutes = map(int, row["time"].split(":"))
        at, sure = (60 * hours + minutes) * turn, "" if row["time_confident"] else ", not confident"
        for half, alpha in ((row["time50_minutes"], 0.5), (row["time90_minutes"], 0.2)):
            axis.bar(at, 1, min(2 * half * turn, 2 * math.pi), color=COLOURS["rgb"], alpha=alpha)
        axis.plot([at, at], [0, 0.95], color="#222", lw=2)
        lines = [f"{row['time']}{sure}", f"± {row['time50_minutes']:.0f} min (50 %), "
                 f"{row['time90_minutes']:.0f} min (90 %)"]  # fmt: skip
    when = truth.get("datetime_at_place") or truth.get("datetime")
    if isinstance(when, str) and len(when) >= 16:
        lines[-1] += f"\n★ the truth, {when[11:16]}"
        true = (60 * int(when[11:13]) + int(when[14:16])) * turn
        axis.plot(true, 0.9, "*", color="#222", ms=12, clip_on=False)
    if row["altitude_m"] is not None:
        sure = "" if row["altitude_confident"] else ", not confident"
        lines.append(f"altitude {row['altitude_m']:.0f} m ± {row['altitude50_m']:.0f} (50 %), "
                     f"{row['altitude90_m']:.0f} (90 %){sure}")  # fmt: skip
        high = truth.get("gps_altitude")
        if high is not None and np.isfinite(high):
            lines.append(f"★ the truth, {high:.0f} m")
    if row["sun_elevation_deg"] is not None:
        side = "above" if row["sun_elevation_deg"] >= 0 else "below"
        lines.append(f"sun {abs(row['sun_elevation_deg']):.0f}° {side} the horizon")  # fmt: skip
    axis.set_xlabel("\n".join(lines), fontsize=10)
