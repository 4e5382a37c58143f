"""Answers of trained models: for the photos held out, and for photos that nobody has labelled.

In: a checkpoint, photos. Out: answers with baselines; records of single photos.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
from geophoto.densities import answers_of, likely_places
from geophoto.depth_network import estimate_depth, load_network
from geophoto.devices import Precision
from geophoto.features import depth_input, picture_inputs
from geophoto.finetune import PhotoSet, predict_photos
from geophoto.network import predict_batch, view_logits
from geophoto.orientations import ORIENTATION_CLASSES, turn_upright
from geophoto.photos import Photos
from geophoto.pictures import open_stored
from geophoto.records import clock, tidy

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
            for part in ("answers", "trivial", "knn_errors", "log_likelihood")
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


# ---------------------------------------------------------------- unknown


def depth_estimator(checkpoint: dict, checkpoint_dir: Path, precision):
    """Function from upright RGB pixels to inverse depth with the very model used in training;
    None for RGB checkpoints."""
    if not checkpoint["model_config"]["use_depth"]:
        return None
    about = checkpoint["settings"]["depth_model"]
    weights = about["model"]  # a hub id, unless it was a file
    if about["file"].endswith(".pth"):
        places = [folder / about["file"] for folder in (checkpoint_dir, checkpoint_dir.parent)]
        weights = str(next((file for file in places if file.is_file()), places[0]))
    network, info = load_network(weights, checkpoint_dir, precision.device.type)
    if info["sha256"] != about["sha256"]:
        density.stop(
            f"{info['file']} is not the depth model of the training (sha256 {about['sha256']})"
        )
    return lambda pixels: estimate_depth(network, pixels, about["input_size"])


def orientation_chances(
    network, views, prior: np.ndarray, temperature: float, precision
) -> np.ndarray:
    """Probability of each class (6,) for a stored picture, by its six views (6, 3, V, V)."""
    with torch.inference_mode(), precision.autocast():
        logits = view_logits(network, views[None].to(precision.device))[0, 0]
    logits = logits.float().cpu().numpy() / temperature + prior
    chances = np.exp(logits - logits.max())
    return chances / chances.sum()


def turn_picture(photo, name: str):
    from PIL import Image

    return Image.fromarray(np.ascontiguousarray(turn_upright(np.asarray(photo), name)))


class Predictor:
    """One model, ready to be asked about photos that nobody has labelled.

    A photo is first turned upright by the RGB orientation head where that is at least `certainty`
    sure; then comes its depth, then the other heads.
    """

    def __init__(
        self, checkpoint: dict, checkpoint_dir: Path, precision_name: str, certainty: float
    ) -> None:
        self.network, self.normalisation, self.densities = rebuild(checkpoint)
        self.precision, self.certainty = Precision(precision_name), certainty
        self.network.to(self.precision.device)
        self.estimate = depth_estimator(checkpoint, checkpoint_dir, self.precision)
        self.size, self.gallery = checkpoint["settings"]["image_size"], checkpoint["gallery"]
        self.prior = np.log(self.normalisation.orientation_prior)

    def answer(self, name: str, file: Path) -> tuple[dict, bool]:
        """The record of one photo, and whether it was turned first; OSError or ValueError when it
        cannot be read."""
        stored = open_stored(file, max_side=max(2 * self.size, 1036))
        inputs = picture_inputs(stored, self.size, self.network.rgb_branch)
        chance = orientation_chances(
            self.network, inputs["views"], self.prior, self.densities["temperature"], self.precision
        )
        turned = int(chance.argmax()) if chance.max() >= self.certainty else 0
        upright = turn_picture(stored, ORIENTATION_CLASSES[turned])
        inputs = picture_inputs(upright, self.size, self.network.rgb_branch)
        if self.estimate is not None:
            inputs["depth"] = depth_input(self.estimate(np.asarray(upright)), self.size)
        raw = predict_batch(self.network, {k: v[None] for k, v in inputs.items()}, self.precision)
        known = self.gallery, self.densities, self.normalisation
        answer, places = answers_of(raw, *known), likely_places(raw, *known)[0]
        row = {
            "filename": name,
            "latitude": answer["lat"][0],
            "longitude": answer["lon"][0],
            "radius50_km": answer["radius50_km"][0],
            "radius90_km": answer["radius90_km"][0],
            "position_confident": answer["gps_confident"][0],
            "places": "; ".join(f"{lat:.5f} {lon:.5f} {p * 100:.0f} %" for lat, lon, p in places),
            "time": clock(answer["minutes"][0]),
            "time50_minutes": answer["time50_minutes"][0],
            "time90_minutes": answer["time90_minutes"][0],
            "time_confident": answer["time_confident"][0],
            "orientation": ORIENTATION_CLASSES[int(chance.argmax())],
            "orientation_probability": chance.max(),
            "altitude_m": answer["altitude"][0],
            "altitude50_m": answer["altitude50_m"][0],
            "altitude90_m": answer["altitude90_m"][0],
            "altitude_confident": answer["altitude_confident"][0],
            "strangeness": answer["strangeness"][0],
            "sun_elevation_deg": answer["sun"][0],
        }
        return {k: tidy(v) for k, v in row.items()}, bool(turned)
