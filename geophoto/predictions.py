"""Answers of trained models: for the photos held out, and for photos that nobody has labelled.

In: a checkpoint, photos. Out: answers with baselines; a frame of records, one for each photo.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import density
from geophoto.baselines import (
    answer_errors,
    choose_knn,
    knn_answers,
    labelled_neighbours,
    trivial_answers,
)
from geophoto.checkpoints import rebuild
from geophoto.densities import answers_of, gather_all, likely_places
from geophoto.depth_network import estimate_depths, load_network, tensor_size
from geophoto.devices import Precision, photo_threads
from geophoto.features import bounded_map, depth_input, picture_inputs
from geophoto.finetune import PhotoSet, predict_photos, predict_readable
from geophoto.fusing import fuse_answers, groups_of, stretches
from geophoto.labels import finish_row
from geophoto.network import predict_upright, predict_views
from geophoto.orientations import ORIENTATION_CLASSES, turn_upright
from geophoto.photos import Photos, shots_of_cameras
from geophoto.pictures import open_stored
from geophoto.readers import read_blocks
from geophoto.records import clock, place_names, place_rows, tidy
from geophoto.verification import (
    JUDGED,
    Calibration,
    Claims,
    detection,
    judge,
    misfits_of,
    verification_frame,
)

if TYPE_CHECKING:
    import pandas as pd
    from PIL import Image

BATCH_GPU = 16  # photos that pass through the network together; on a CPU each by itself, which is
# faster there (measured: 0.140 s a photo alone, 0.142 in pairs, 0.175 by eight)
TOGETHER = 256  # photos whose answers are worked out together

# ---------------------------------------------------------------- held


def held_out_answers(
    checkpoint: dict, photos: Photos, data_dir: Path, precision_name: str, bar: Callable,
    say: Callable[[str], None] = density.silent,
) -> tuple[dict, Photos]:  # fmt: skip
    """Answers for exactly the photos held out in training, with both baselines.

    Cross-validated models bring them along; a fine-tuned network is run on its stored test
    photos. Returns ({"answers", "trivial", "knn_errors", "prior"}, the photos in the same order);
    what is no longer in the table is left out, and what can no longer be read is said.
    """
    row_of = {name: i for i, name in enumerate(photos.names)}
    split = checkpoint["split"]
    known = [i for i, name in enumerate(split["names"]) if name in row_of]
    rows = np.array([row_of[split["names"][i]] for i in known], int)
    if checkpoint["held_out"] is not None:
        held = checkpoint["held_out"]
        found = {
            part: {k: v[known] for k, v in held[part].items()}
            for part in ("answers", "trivial", "knn_errors", "log_likelihood", "judged")
        }
        return {**found, "prior": held["prior"][known]}, photos.take(rows)

    part = np.array(split["part"])[known]
    network, normalisation, densities = rebuild(checkpoint)
    precision = Precision(precision_name)
    network.to(precision.device)
    depth_dir = data_dir if checkpoint["model_config"]["use_depth"] else None
    size = checkpoint["settings"]["image_size"]
    dataset = PhotoSet(photos, size, network, depth_dir, say=say)

    def predict(name: str) -> dict:
        asked = rows[part == name]
        return predict_photos(network, dataset, asked, precision, bar, f"{name} photos")

    test, train = predict("test"), predict("train")
    known_photos, tested = photos.take(train["rows"]), photos.take(test["rows"])
    validation = predict("val")
    near, near_validation = (
        labelled_neighbours(part["trunk"], train["trunk"], known_photos)
        for part in (test, validation)
    )
    k = choose_knn([(near_validation, known_photos, photos.take(validation["rows"]))])
    trivial = trivial_answers(known_photos)
    whole: dict = {
        "answers": answers_of(test, checkpoint["gallery"], densities, normalisation),
        "trivial": {key: np.full(len(tested), value) for key, value in trivial.items()},
        "knn_errors": answer_errors(knn_answers(near, known_photos, k, len(tested)), tested),
        "prior": np.tile(normalisation.orientation_prior, (len(tested), 1)),
    }
    return whole, tested


# ---------------------------------------------------------------- claims


def verify_claims(
    checkpoint: dict, photos: Photos, data_dir: Path, precision_name: str, bar: Callable,
    say: Callable[[str], None] = density.silent,
) -> pd.DataFrame:  # fmt: skip
    """How well the claims of photos fit their pictures, see verification.verification_frame.

    Photos held out in training are judged by what their fold said of them; those that the model
    has never seen go through the network; those that a fine-tuned network was trained on cannot be
    judged. `attrs["summary"]` tells the counts and, for held-out photos, how much is found.
    """
    claiming = photos.placed | np.isfinite(photos.minutes) | (photos.orientation >= 0)
    split, held = checkpoint["split"], checkpoint["held_out"]
    number = {name: i for i, name in enumerate(split["names"])}
    at = np.array([number.get(name, -1) for name in photos.names], int)  # row in the split
    if held is not None:
        part_of = np.array([*split["fold"], -1])  # at -1: not in the split
        kept, trained_on = np.flatnonzero((at >= 0) & claiming), np.zeros(len(photos), bool)
    else:
        tested = np.array([*(part == "test" for part in split["part"]), True])
        part_of = np.array([*split["groups"], -1])
        kept, trained_on = np.empty(0, int), claiming & ~tested[at]
    asked = np.setdiff1d(np.flatnonzero(claiming & ~trained_on), kept)
    told = []
    if len(kept):
        whole = {**held["answers"], **held["judged"]}
        told.append((kept, {key: whole[key][at[kept]] for key in JUDGED}))
    if len(asked):
        told += judge_photos(checkpoint, photos, asked, data_dir, precision_name, bar, say)
    if not told:
        density.stop("no photo of the table has a claim that this model can judge")
    rows = np.concatenate([some for some, _ in told])
    judged = {key: np.concatenate([one[key] for _, one in told]) for key in JUDGED}
    claims, part, seen = Claims.of(photos.take(rows)), part_of[at[rows]], at[rows] >= 0
    if held is not None:
        calibration = Calibration.of(held["judged"], split["fold"])
    else:
        calibration = Calibration(misfits_of(judged, claims, seen), part[seen])
    names = [photos.names[row] for row in rows]
    frame = verification_frame(names, judged, claims, calibration, part)
    frame.attrs["summary"] = {
        "judged": len(rows),
        "held_out": int(seen.sum()),
        "without_claim": int((~claiming).sum()),
        "trained_on": int(trained_on.sum()),
        "unread": len(kept) + len(asked) - len(rows),
        **detection(
            calibration, {key: values[seen] for key, values in judged.items()},
            claims.take(seen), part[seen], np.array(split["groups"])[at[rows[seen]]],
            checkpoint["normalisation"]["spread_km"],
        ),
    }  # fmt: skip
    return frame


def judge_photos(
    checkpoint: dict, photos: Photos, asked: np.ndarray, data_dir: Path, precision_name: str,
    bar: Callable, say: Callable[[str], None],
) -> list[tuple[np.ndarray, dict]]:  # fmt: skip
    """What the final model says of the photos `asked`, turned upright by their tags, see
    verification.judge, behind the rows of those that could be read; empty without any."""
    network, normalisation, densities = rebuild(checkpoint)
    precision = Precision(precision_name)
    network.to(precision.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    depth_dir = data_dir if checkpoint["model_config"]["use_depth"] else None
    dataset = PhotoSet(photos, checkpoint["settings"]["image_size"], network, depth_dir, say=say)
    raw = predict_readable(network, dataset, asked, precision, bar, "photos judged")
    if not raw:
        return []
    rows = raw.pop("rows")
    answers = answers_of(raw, checkpoint["gallery"], densities, normalisation)
    return [(rows, judge(answers, normalisation, np.maximum(photos.orientation[rows], 0)))]


# ---------------------------------------------------------------- unknown


class DepthModel:
    """The very depth model used in training, from a checkpoint's settings."""

    def __init__(self, about: dict, checkpoint_dir: Path, precision: Precision) -> None:
        weights = about["model"]  # a hub id, unless it was a file
        if about["file"].endswith(".pth"):
            places = [folder / about["file"] for folder in (checkpoint_dir, checkpoint_dir.parent)]
            weights = str(next((file for file in places if file.is_file()), places[0]))
        self.network, info = load_network(weights, checkpoint_dir, precision.device.type)
        if info["sha256"] != about["sha256"]:
            density.stop(
                f"{info['file']} is not the depth model of the training (sha256 {about['sha256']})"
            )
        self.input_size = about["input_size"]

    def estimate(self, photos: list[Image.Image]) -> list[np.ndarray]:
        """Inverse depth of upright photos."""
        return estimate_depths(self.network, [np.asarray(one) for one in photos], self.input_size)


def orientation_chances(logits: np.ndarray, prior: np.ndarray, temperature: float) -> np.ndarray:
    """Probability (6,) of each class for a stored picture, from what its views say of it (6,)."""
    logits = logits / temperature + prior
    chances = np.exp(logits - logits.max())
    return chances / chances.sum()


def turn_picture(photo: Image.Image, name: str) -> Image.Image:
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(turn_upright(np.asarray(photo), name)))


class Predictor:
    """One model, ready to be asked about photos that nobody has labelled.

    A photo is first turned upright by the RGB orientation head where that is at least `certainty`
    sure; then comes its depth, then the other heads. Each of its six views, as stored, and each
    scale of the upright picture goes through the backbone once.
    """

    def __init__(
        self, checkpoint: dict, checkpoint_dir: Path, precision_name: str, certainty: float
    ) -> None:
        self.network, self.normalisation, self.densities = rebuild(checkpoint)
        self.precision, self.certainty = Precision(precision_name), certainty
        self.network.to(self.precision.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.depth = None
        if checkpoint["model_config"]["use_depth"]:
            about = checkpoint["settings"]["depth_model"]
            self.depth = DepthModel(about, checkpoint_dir, self.precision)
        self.size, self.gallery = checkpoint["settings"]["image_size"], checkpoint["gallery"]
        self.most_pixels = 2 * self.size if self.depth is None else max(2 * self.size, 1036)
        self.prior = np.log(self.normalisation.orientation_prior)

    def load(self, file: Path) -> tuple[Image.Image, dict]:
        """A stored photo and its network inputs; OSError or ValueError when it cannot be read."""
        stored = open_stored(file, max_side=self.most_pixels)
        if self.depth is not None:
            tensor_size(stored.height, stored.width, self.depth.input_size)  # may be too long
        return stored, picture_inputs(stored, self.size, self.network.rgb_branch)

    def look(self, batch: list[tuple[Image.Image, dict]]) -> dict[str, np.ndarray]:
        """Raw outputs for some photos, and of each how it is stored: `chances` (B, 6) of the
        classes and `turned` (B,), the class by which it was turned upright."""
        views = torch.stack([inputs["views"] for _, inputs in batch])
        logits = predict_views(self.network, views, self.precision)
        warmth = self.densities["temperature"]
        each = [orientation_chances(one[0], self.prior, warmth) for one in logits]
        chances = np.stack(each)
        sure = chances.max(axis=1) >= self.certainty
        turned = np.where(sure, chances.argmax(axis=1), 0)
        upright, rgb = [], []
        for (photo, inputs), turn in zip(batch, turned, strict=True):
            if turn:
                photo = turn_picture(photo, ORIENTATION_CLASSES[turn])
                inputs = picture_inputs(photo, self.size, self.network.rgb_branch)
            upright.append(photo)
            rgb.append(inputs["rgb"])
        inputs = {"rgb": torch.stack(rgb)}
        if self.depth is not None:
            depths = self.depth.estimate(upright)
            inputs["depth"] = torch.stack([depth_input(one, self.size) for one in depths])
        found = predict_upright(self.network, inputs, self.precision)
        return found | {"views": logits, "chances": chances, "turned": turned}

    def look_at_all(
        self, files: list[Path], bar: Callable
    ) -> tuple[dict[str, np.ndarray], dict[int, str]]:
        """Raw outputs of all photos that can be read, with their `rows` in `files`, and why the
        others cannot. Photos are decoded ahead, in threads."""

        on_cpu = self.precision.device.type == "cpu"

        def load(row: int) -> tuple[int, tuple | dict | str]:
            try:
                one = self.load(files[row])
            except (OSError, ValueError, SyntaxError, MemoryError) as error:
                return row, str(error) or type(error).__name__
            return row, self.look([one]) if on_cpu else one

        parts: list[dict] = []
        failed: dict[int, str] = {}
        batch: list[tuple[int, tuple]] = []

        def keep(found: dict, rows: list[int]) -> None:
            parts.append({**found, "rows": np.array(rows)})

        def look_at_batch() -> None:
            keep(self.look([one for _, one in batch]), [row for row, _ in batch])
            batch.clear()

        with photo_threads(self.precision.device) as pool:
            loaded = bounded_map(pool, load, list(range(len(files))), ahead=BATCH_GPU + 6)
            for row, one in bar(loaded, total=len(files), desc="photos", unit="photo"):
                if isinstance(one, str):
                    failed[row] = one
                elif isinstance(one, dict):
                    keep(one, [row])
                else:
                    batch.append((row, one))
                if len(batch) == BATCH_GPU:
                    look_at_batch()
            if batch:
                look_at_batch()
        keys = parts[0] if parts else ()
        return {key: np.concatenate([part[key] for part in parts]) for key in keys}, failed

    def answers(
        self, raw: dict[str, np.ndarray], fuse: str = "none",
        company: list[np.ndarray] | None = None,
    ) -> list[dict]:  # fmt: skip
        """A record for each photo of `raw`, with its most likely places as a list. `fuse` is one of
        densities.COMPANY, or none; `company` are rows of `raw` to be fused, see stretches."""
        scale, found = self.normalisation, [dict[str, Any]()] * len(raw["rows"])
        for parts in packed(company or np.split(np.arange(len(found)), len(found))):
            rows = np.concatenate(parts)
            part = {key: value[rows] for key, value in raw.items()}
            gathered = gather_all(part, self.gallery, scale)
            answers = answers_of(part, self.gallery, self.densities, scale, gathered)
            position = self.densities["heads"]["gps"], gathered["gps"], answers["radius50_km"]
            places = likely_places(*position, scale)
            if fuse != "none":
                local = np.split(np.arange(len(rows)), np.cumsum([len(one) for one in parts])[:-1])
                known = self.densities, gathered, scale
                answers, fused = fuse_answers(answers, fuse, local, *known)
                places = [fused.get(i, own) for i, own in enumerate(places)]
            names = place_names(places)
            for i, row in enumerate(rows.tolist()):
                about = part["chances"][i], int(part["turned"][i]), self.certainty
                found[row] = photo_row(answers, i, *about)
                found[row]["places"] = place_rows(places[i], names[i])
        return found


def packed(parts: list[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """The parts put together to at most TOGETHER rows, none of them cut."""
    batch: list[np.ndarray] = []
    for part in parts:
        if batch and sum(map(len, batch)) + len(part) > TOGETHER:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def photo_row(answers: dict, i: int, chances: np.ndarray, turned: int, certainty: float) -> dict:
    """The flat part of one photo's record; None where nothing was learned."""
    names = {
        "latitude": "lat", "longitude": "lon", "radius50_km": "radius50_km",
        "radius90_km": "radius90_km", "position_confident": "gps_confident",
        "time": "minutes", "time50_minutes": "time50_minutes", "time90_minutes": "time90_minutes",
        "time_confident": "time_confident", "altitude_m": "altitude",
        "altitude50_m": "altitude50_m", "altitude90_m": "altitude90_m",
        "altitude_confident": "altitude_confident", "sun_elevation_deg": "sun",
        "strangeness": "strangeness",
    }  # fmt: skip
    row = {name: answers[key][i] for name, key in names.items()}
    fused = {
        name: int(answers[f"{head}_fused"][i])
        for head, name in (("gps", "position"), ("time", "time"), ("altitude", "altitude"))
        if f"{head}_fused" in answers
    }
    row |= {
        "time": clock(row["time"]),
        "orientation": ORIENTATION_CLASSES[int(chances.argmax())],
        "orientation_probability": chances.max(),
        "orientation_confident": bool(chances.max() >= certainty),
        "turned": bool(turned),
        "fused_with": max(fused.values(), default=0),
        "fused": ", ".join(name for name, count in fused.items() if count),
    }
    return {key: tidy(value) for key, value in row.items()}


def company_of(names: list[str], files: list[Path], kind: str) -> list[np.ndarray]:
    """Rows of the photos that are fused with each other, see fusing.stretches: by folder, or by
    capture time and camera in their headers."""
    import pandas as pd

    folders = [str(file.absolute().parent) for file in files]
    seconds, camera = np.full(len(files), np.nan), np.full(len(files), "")
    if kind == "burst":
        starts = range(0, len(files), TOGETHER)
        paths: list[tuple[str, ...]] = [(str(file),) for file in files]
        blocks = ((None, paths[i : i + TOGETHER]) for i in starts)
        read = read_blocks(blocks, min(os.cpu_count() or 1, 8), lambda: None)
        rows = [finish_row("", row) for _, raw in read for row in raw]
        seconds, camera = shots_of_cameras(pd.DataFrame(rows, dtype=object))
    return stretches(groups_of(kind, folders, seconds, camera), names)


def predict_unlabelled(
    predictor: Predictor, files: list[tuple[str, Path]], bar: Callable,
    say: Callable[[str], None] = density.silent, fuse: str = "none",
) -> pd.DataFrame:  # fmt: skip
    """Where, when, how high and which way up: one row for each photo (name, file) that can be
    read. `attrs["left_out"]` names the others with reasons; `say` hears them. `fuse` is a kind of
    densities.COMPANY, or none: answers of photos in company are then fused where that gains."""
    import pandas as pd

    raw, failed = predictor.look_at_all([file for _, file in files], bar)
    left_out = {files[row][0]: reason for row, reason in failed.items()}
    for name, reason in left_out.items():
        say(f"{name}: left out: {reason}")
    asked = [files[row] for row in raw.get("rows", ())]
    names = [name for name, _ in asked]
    company = None
    if fuse != "none" and raw:
        company = company_of(names, [file for _, file in asked], fuse)
    found = predictor.answers(raw, fuse, company) if raw else []
    pairs = zip(names, found, strict=True)
    frame = pd.DataFrame([{"filename": name, **row} for name, row in pairs])
    frame.attrs["left_out"] = left_out
    return frame
