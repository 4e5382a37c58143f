"""Checkpoints: write, read, verify, resume.

In: plain values, arrays, tensors. Out: .pth files with a .json twin; a network rebuilt from one.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch

import density
from density import file_sha256, silent
from geophoto.densities import from_plain
from geophoto.network import GPSPredictionNet
from geophoto.photos import Photos
from geophoto.targets import HEADS, Normalisation

UNIMPORTANT = ("micro_batch", "compile", "cache_gb")  # settings that results do not depend on
FORMAT = 8  # of the checkpoint; raised when an older one can no longer be read

# ---------------------------------------------------------------- write


def save(path: Path, content: dict) -> None:
    """torch.save, whole or not at all; arrays become tensors, as weights_only reads no others."""

    def plain(value):
        if isinstance(value, np.ndarray):
            return torch.from_numpy(value)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(plain(v) for v in value)
        return value.item() if isinstance(value, np.generic) else value

    with density.write_atomically(path) as file:
        torch.save(plain(content), file)


def numpy_again(value):
    """The inverse of save's conversion for everything below `value` but network weights."""
    if isinstance(value, torch.Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {k: numpy_again(v) for k, v in value.items()}
    return value


def write_checkpoint(path: Path, content: dict) -> None:
    """Write the .pth and beside it a .json twin: the same without tensors, and its sha256."""
    save(path, content)

    def readable(value):
        if isinstance(value, dict):
            return {k: readable(v) for k, v in value.items() if not hasattr(v, "shape")}
        return value

    twin = readable({k: v for k, v in content.items() if k not in ("model", "gallery", "held_out")})
    twin["sha256"] = file_sha256(path)
    with density.write_atomically(path.with_suffix(".json"), "w", encoding="utf-8") as file:
        json.dump(twin, file, indent=1, ensure_ascii=False)


# ---------------------------------------------------------------- read


def resume_from(path: Path, identity: str, say: Callable[[str], None] = silent) -> dict | None:
    """What an interrupted run with the same photos and settings left, or None."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file: torch raises many kinds, all mean start again
        say(f"{path} cannot be read ({type(error).__name__}): starting from the beginning")
        return None
    if not isinstance(state, dict) or state.get("identity") != identity:
        say(f"{path} belongs to other photos or settings: starting from the beginning")
        return None
    if "folds" in state:
        state["folds"] = numpy_again(state["folds"])
    say(f"going on from {path}")
    return state


def read_twin(path: Path) -> dict:
    """What the .json twin of a checkpoint says; empty when there is none or it is damaged."""
    try:
        about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def read_checkpoint(path: Path, say: Callable[[str], None] = silent) -> dict:
    """Read a checkpoint written here; the run ends when it is missing, damaged or foreign."""
    if not path.is_file():
        density.stop(f"no checkpoint {path}: run python gps_orientation_trainer.py first")
    twin, about = path.with_suffix(".json"), read_twin(path)
    if "sha256" not in about:
        damage = "cannot be read" if twin.is_file() else "is missing"
        say(f"{twin} {damage}: {path.name} is read without checking its sha256")
    elif about["sha256"] != file_sha256(path):
        density.stop(f"{path} is damaged: its sha256 differs from the one in {twin.name}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors alike: no checkpoint of ours
        density.stop(f"{path} is no checkpoint of this trainer ({type(error).__name__})")
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        again = (
            f"format {found}, this version reads {FORMAT}: train again" if found else "no format"
        )
        density.stop(f"{path} is no checkpoint of this trainer ({again})")
    return {k: v if k == "model" else numpy_again(v) for k, v in content.items()}


def rebuild(checkpoint: dict) -> tuple[GPSPredictionNet, Normalisation, dict]:
    """Network in eval mode, normalisation and densities, from the checkpoint alone."""
    network = GPSPredictionNet(**checkpoint["model_config"])
    network.load_state_dict(checkpoint["model"])
    densities = from_plain(checkpoint["densities"])
    return network.eval(), Normalisation(**checkpoint["normalisation"]), densities


def finished_score(path: Path, identity: str, epochs: int) -> float | None:
    """Validation score of a checkpoint that this very run would write again, else None; one that
    was fine-tuned for fewer epochs is not finished."""
    about = read_twin(path)
    try:
        same = about["settings"]["identity"] == identity and about["settings"]["epochs"] >= epochs
        score = float(about["metrics"]["score"])
    except (KeyError, TypeError, ValueError):  # no twin, or one that another hand wrote
        return None
    return score if same and path.is_file() and about.get("sha256") == file_sha256(path) else None


def run_identity(photos: Photos, table_sha256: str, name: str, backbone: str, options) -> str:
    """What must be equal for results to be reused; fine-tuning may go on for more epochs."""
    changing = ("epochs", *UNIMPORTANT) if options["mode"] == "finetune" else ()
    settings = {k: v for k, v in options.items() if k not in changing}
    states = [photos.sha256.tolist(), photos.tag.tolist()]
    content = [table_sha256, photos.names, states, name, backbone, settings, FORMAT]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def copy_better(checkpoint_dir: Path, scores: dict[str, float]) -> str:
    """Copy the model with the lower validation score to best_gps_model.pth; returns its name."""
    better = min(scores, key=lambda name: scores[name])
    source = checkpoint_dir / f"best_gps_model_{better}.pth"
    for suffix in (".pth", ".json"):
        with density.write_atomically(checkpoint_dir / f"best_gps_model{suffix}") as file:
            file.write(source.with_suffix(suffix).read_bytes())
    return better


# ---------------------------------------------------------------- metrics


def write_metrics(checkpoint_dir: Path, inputs: str, rows: list[dict]) -> None:
    """Replace the rows of one model in metrics.csv."""
    path = checkpoint_dir / "metrics.csv"
    columns = ["inputs", "fold", "left_out", "epoch", *(f"loss_{head}" for head in HEADS)]
    columns += ["median_km", "mean_minutes", "mean_m", "turn_accuracy", "score", "seconds"]
    kept = []
    if path.is_file():
        with (
            suppress(csv.Error),
            open(path, newline="", encoding="utf-8", errors="replace") as file,
        ):
            kept = [row for row in csv.DictReader(file) if row.get("inputs") != inputs]
    with density.write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
        writer.writerows({"inputs": inputs, **row} for row in rows)
