"""Checkpoints: write, read, verify, resume.

In: plain values, arrays, tensors. Out: .pth files, each with a .json twin for people and a private
file that is never shared; a network rebuilt from one.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import density
from density import file_sha256, silent
from geophoto.archives import load, numpy_again, save
from geophoto.checkpoint_checks import check_checkpoint, check_private
from geophoto.densities import from_plain
from geophoto.network import GPSPredictionNet
from geophoto.photos import Photos
from geophoto.targets import HEADS, Normalisation

UNIMPORTANT = ("micro_batch", "compile", "cache_gb")  # settings that results do not depend on
FORMAT = 12  # of the checkpoint; raised when an older one can no longer be read
OF_TRAINING = ("names", "groups", "fold", "part", "left_out")  # of the split, one for each photo

# ---------------------------------------------------------------- write


def private_file(path: Path) -> Path:
    """Where what evaluation needs of the training photos lies beside a model."""
    return path.with_suffix(".private.pth")


def write_checkpoint(path: Path, content: dict) -> None:
    """Write the model, a .json twin of it for people, without tensors and with its sha256, and the
    private file: names, groups, folds and held-out answers, which are never to be shared."""
    split = content["split"]
    private = {
        "format": FORMAT,
        "table_sha256": content["table_sha256"],
        "held_out": content["held_out"],
        "split": {k: v for k, v in split.items() if k in OF_TRAINING},
    }
    public = {k: v for k, v in content.items() if k not in ("held_out", "table_sha256")}
    public["split"] = {k: v for k, v in split.items() if k not in OF_TRAINING}
    save(path, public)
    save(private_file(path), {**private, "belongs_to": file_sha256(path)})
    write_twin(path, public)


def write_twin(path: Path, public: dict) -> None:
    """Write the .json twin of a checkpoint, last: with it the checkpoint is complete."""

    def readable(value):
        if isinstance(value, dict):
            return {k: readable(v) for k, v in value.items() if not hasattr(v, "shape")}
        return value

    twin = readable({k: v for k, v in public.items() if k not in ("model", "gallery")})
    twin["sha256"] = file_sha256(path)
    with density.write_atomically(path.with_suffix(".json"), "w", encoding="utf-8") as file:
        json.dump(twin, file, indent=1, ensure_ascii=False)


# ---------------------------------------------------------------- read


def resume_from(path: Path, identity: str, say: Callable[[str], None] = silent) -> dict | None:
    """What an interrupted run with the same photos and settings left, or None."""
    if not path.is_file():
        return None
    try:
        state = load(path)
    except (OSError, ValueError) as error:  # a damaged file: start again
        say(f"{path} cannot be read ({error}): starting from the beginning")
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


def read_checkpoint(
    path: Path, say: Callable[[str], None] = silent, with_private: bool = True
) -> dict:
    """Read a checkpoint written here, with its private file where that is asked for; the run ends
    when one is missing, damaged or foreign."""
    if not path.is_file():
        density.stop(f"no checkpoint {path}: run python gps_orientation_trainer.py first")
    twin, about = path.with_suffix(".json"), read_twin(path)
    if "sha256" not in about:
        damage = "cannot be read" if twin.is_file() else "is missing"
        say(f"{twin} {damage}: {path.name} is read by its own seal alone")
    elif about["sha256"] != file_sha256(path):
        density.stop(f"{path} is damaged: its sha256 differs from the one in {twin.name}")
    content = read_sealed(path, "checkpoint of this trainer", check_checkpoint)
    if with_private:
        private = read_private(path)
        split = {**content["split"], **private["split"]}
        content |= {k: private[k] for k in ("held_out", "table_sha256")} | {"split": split}
    return {k: v if k == "model" else numpy_again(v) for k, v in content.items()}


def read_sealed(path: Path, kind: str, check: Callable[[dict], None]) -> dict:
    """The content of a sealed file of our format that passes its check; else the run ends."""
    try:
        content = load(path)
        found = content.get("format") if isinstance(content, dict) else None
        if type(found) is not int or found != FORMAT:
            raise ValueError(
                f"format {found}, this version reads {FORMAT}: train again"
                if type(found) is int
                else "no format"
            )
        check(content)
    except (OSError, ValueError) as error:
        density.stop(f"{path} is no {kind} ({error})")
    return content


def read_private(path: Path) -> dict:
    """What evaluation needs of the training photos of a checkpoint; the run ends without it."""
    file = private_file(path)
    if not file.is_file():
        density.stop(
            f"{file} is missing: names, folds and held-out answers of the training photos stay "
            "with who trained the model; others can ask it about photos (--photos)"
        )
    private = read_sealed(file, "private file of this trainer", check_private)
    if private["belongs_to"] != file_sha256(path):
        density.stop(f"{file} belongs to another model than {path.name}: train again")
    return private


def rebuild(checkpoint: dict) -> tuple[GPSPredictionNet, Normalisation, dict]:
    """Network in eval mode, normalisation and densities, from the checkpoint alone."""
    network = GPSPredictionNet(**checkpoint["model_config"])
    network.load_state_dict(checkpoint["model"])
    densities = from_plain(checkpoint["densities"])
    return network.eval(), Normalisation(**checkpoint["normalisation"]), densities


def finished_score(path: Path, identity: str, epochs: int) -> float | None:
    """Validation score of a checkpoint that this very run would write again, else None; one that
    was fine-tuned for fewer epochs is not finished, nor one without its private file."""
    about, private = read_twin(path), private_file(path)
    if not (path.is_file() and private.is_file() and about.get("sha256") == file_sha256(path)):
        return None
    try:
        content, kept = load(path), load(private)
        settings, same = content["settings"], kept["belongs_to"] == about["sha256"]
        same &= settings["identity"] == identity and settings["epochs"] >= epochs
        return float(content["metrics"]["score"]) if same else None
    except (OSError, LookupError, TypeError, ValueError):  # of another hand
        return None


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
    for suffix in (".pth", ".private.pth", ".json"):
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
