"""What a checkpoint must hold: presence, type, range and finiteness of every field.

In: what archives.load read. Out: nothing, or a ValueError that names the field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from geophoto.densities import COMPANY, NAMES, SHARES, space_of
from geophoto.fusing import EXPONENTS
from geophoto.network import GPSPredictionNet
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.targets import Normalisation
from geophoto.voices import voice_of

Check = Callable[[Any, str], None]  # value, its name
MOST_HIDDEN = 1 << 14
MOST_PHOTOS = 1 << 24
ANY_NUMBER = 1e12

# ---------------------------------------------------------------- kinds of fields


def refuse(name: str, wanted: str) -> NoReturn:
    raise ValueError(f"{name} is no {wanted}")


def number(low: float, high: float, *also: float) -> Check:
    """A finite number in low..high, or one of `also`, which may hold NaN and infinity."""

    def check(value: Any, name: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            refuse(name, "number")
        allowed = any(value == one or (one != one and value != value) for one in also)
        if not (allowed or low <= value <= high):
            refuse(name, f"number in {low:g} … {high:g}")

    return check


def whole(low: int, high: int) -> Check:
    def check(value: Any, name: str) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(name, f"whole number in {low} … {high}")

    return check


def one_of(*values: Any) -> Check:
    def check(value: Any, name: str) -> None:
        if not any(type(value) is type(one) and value == one for one in values):
            refuse(name, "one of " + ", ".join(map(str, values)))

    return check


def text(pattern: str = r".*") -> Check:
    def check(value: Any, name: str) -> None:
        if not isinstance(value, str) or not re.fullmatch(pattern, value, re.S):
            refuse(name, "text of the right form")

    return check


def maybe(inner: Check) -> Check:
    return lambda value, name: None if value is None else inner(value, name)


def many(inner: Check, count: int | None = None) -> Check:
    """A list or tuple of so many values."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, list | tuple) or count not in (None, len(value)):
            refuse(name, f"list of {count} values" if count else "list")
        for i, one in enumerate(value):
            inner(one, f"{name}[{i}]")

    return check


def array(shape: tuple, low: float = -ANY_NUMBER, high: float = ANY_NUMBER, nan=False) -> Check:
    """A tensor of floats of that shape (None: any length) within a range; NaN where unknown."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            refuse(name, "array of numbers")
        sizes = tuple(value.shape)
        fits = len(sizes) == len(shape) and all(
            wanted in (None, size) for wanted, size in zip(shape, sizes, strict=True)
        )
        if not fits:
            refuse(name, f"array of the shape {shape}: it has {sizes}")
        known = value[~value.isnan()] if nan else value
        if not bool(((known >= low) & (known <= high)).all()):
            refuse(name, f"array of numbers in {low:g} … {high:g}")

    return check


def fields(wanted: dict[str, Check], others: Check | None = None) -> Check:
    """A dict with these fields; others must pass `others`, without which there may be none."""

    def check(value: Any, name: str) -> None:
        if not isinstance(value, dict):
            refuse(name or "the checkpoint", "dict")
        dot = f"{name}." if name else ""
        for key, inner in wanted.items():
            if key not in value:
                raise ValueError(f"{dot}{key} is missing")
            inner(value[key], f"{dot}{key}")
        for key in value.keys() - wanted.keys():
            if others is None or not isinstance(key, str):
                raise ValueError(f"{dot}{str(key)[:100]} is unknown")
            others(value[key], f"{dot}{key[:100]}")

    return check


def plain(value: Any, name: str) -> None:
    """None, yes or no, a finite number, or a text."""
    if value is not None and not isinstance(value, bool):
        (text() if isinstance(value, str) else number(-ANY_NUMBER, ANY_NUMBER))(value, name)


# ---------------------------------------------------------------- the fields

FLAG = one_of(True, False)
HEX = text(r"[0-9a-f]{64}")
FILE_NAME = text(r"[\w][\w.+ -]{0,200}")
DEPTH_MODEL = fields(
    {
        "model": text(r"[\w][\w.+-]{0,100}(/[\w][\w.+-]{0,100})?"),
        "file": FILE_NAME,
        "sha256": HEX,
        "input_size": whole(14, 1 << 14),
    },
    plain,
)
SETTINGS = {
    "mode": one_of("frozen", "finetune"),
    "inputs": one_of("rgb", "depth"),
    "folds": whole(1, MOST_PHOTOS),
    "epochs": whole(1, 1 << 31),
    "seed": whole(0, 1 << 31),
    "image_size": whole(1, 1 << 14),
    "identity": HEX,
    "weights": maybe(text()),
    "gallery": FLAG,
}
NORMALISATION = fields(
    {
        "centre_lat": number(-90, 90),
        "centre_lon": number(-180, 180),
        "spread_km": number(1e-4, 21_000),
        "altitude_median": number(-20_000, 200_000),
        "altitude_scale": number(1e-4, 200_000),
        "altitude_mean": number(-100, 100),
        "altitude_std": number(1e-4, 100),
        "altitude_limit": number(0, 20),
        "orientation_prior": many(number(1e-9, 1), len(ORIENTATION_CLASSES)),
        "sun_known": FLAG,
    }
)
SPLIT = {
    "kind": one_of("grouped", "random"),
    "by": one_of("place", "days", "gaps", "bursts", "stretches"),
    "radius_km": number(0, 21_000),
    "group_count": whole(1, MOST_PHOTOS),
    "largest_group": whole(1, MOST_PHOTOS),
}


def density_of(kernels: int) -> Check:
    """A HeadDensity as plain values, of so many kernels."""
    gate = array((2,))
    stack = {
        "temperature": number(1e-3, 100),
        "offset": array((kernels,)),
        "slope": array((2, kernels)),
        **dict.fromkeys(("gate_mean", "gate_low", "gate_high"), gate),
        "gate_std": array((2,), 1e-9),
    }
    return fields(
        {
            "stack": fields(stack),
            "trust": number(0, 1),
            "levels": many(number(0, 1), 2),
            "far": number(1e-9, ANY_NUMBER),
            "sure_below": number(0, ANY_NUMBER),
            "sure_error": number(0, ANY_NUMBER, math.nan),
        }
    )


FUSED = fields(  # see fusing.choose_exponent
    {
        "exponent": maybe(one_of(*EXPONENTS)),
        "levels": many(number(0, 1), 2),
        "photos": whole(1, MOST_PHOTOS),
        "groups": whole(1, MOST_PHOTOS),
        "change": number(-ANY_NUMBER, ANY_NUMBER),
        "interval": many(number(-ANY_NUMBER, ANY_NUMBER), 2),
    }
)


def densities_for(normalisation: Normalisation) -> Check:
    counts = {head: len(voice_of(space_of(head, normalisation))) for head in NAMES}
    heads = {head: maybe(density_of(count)) for head, count in counts.items()}
    fuse = fields({kind: fields(dict.fromkeys(NAMES, maybe(FUSED))) for kind in COMPANY})
    return fields({"heads": fields(heads), "temperature": number(1e-3, 1000), "fuse": fuse})


def labels_of(count: int | None) -> dict[str, Check]:
    """Positions, times of day and altitudes of photos; NaN where unknown."""
    return {
        "lat": array((count,), -90, 90, nan=True),
        "lon": array((count,), -180, 180, nan=True),
        "minutes": array((count,), 0, 1440, nan=True),
        "altitude": array((count,), -20_000, 1e6, nan=True),
    }


def held_out_of(count: int) -> Check:
    """Held-out answers of so many photos."""
    some, not_negative = array((count,), nan=True), array((count,), 0, nan=True)
    classes = len(ORIENTATION_CLASSES)
    halves = [f"{unit}{level}_{of}" for _, (unit, of) in NAMES.values() for level in (50, 90)]
    answers = {
        **labels_of(count),
        **dict.fromkeys(halves, not_negative),
        **{f"{head}_confident": array((count,), 0, 1) for head in NAMES},
        **{f"{head}_width": not_negative for head in NAMES},
        "sun": array((count,), -91, 91, nan=True),
        "strangeness": not_negative,
        "views": array((count, classes, classes)),
    }
    reach = array((count, len(SHARES)), 0, nan=True)
    kinds = ("position", "time", "sun", "orientation")
    judged = {
        "chances": array((count, classes), 0, 1),
        "gps_reach": reach,
        "time_reach": reach,
        **{f"misfit_{kind}": some for kind in kinds},
    }
    return fields(
        {
            "answers": fields(answers, array((count,), nan=True)),
            "trivial": fields({**labels_of(count), "sun": some}),
            "knn_errors": fields(dict.fromkeys(NAMES, not_negative)),
            "log_likelihood": fields({}, array((count,), -math.inf, nan=True)),
            "judged": fields(judged),
            "prior": array((count, classes), 1e-9, 1),
        }
    )


# ---------------------------------------------------------------- whole files


def check_checkpoint(content: dict) -> None:
    """ValueError unless every field of a checkpoint is there and in order; the format is known to
    be ours. Nothing larger than the file is made before its size is known to fit."""
    fields({"normalisation": NORMALISATION, "model_config": fields({
        "backbone": text(r"[\w.]+"), "use_depth": FLAG, "hidden": whole(1, MOST_HIDDEN),
    })})({key: content.get(key) for key in ("normalisation", "model_config")}, "")  # fmt: skip
    config, scale = content["model_config"], Normalisation(**content["normalisation"])
    settings, given = dict(SETTINGS), content.get("settings")
    if config["use_depth"] or (isinstance(given, dict) and "depth_model" in given):
        settings["depth_model"] = DEPTH_MODEL
    densities = densities_for(scale)
    gallery = {"features": array((None, config["hidden"]), -1e5, 1e5), **labels_of(None)}
    fields(
        {
            "format": whole(1, 1 << 31),
            "model": lambda value, name: check_weights(value, name, config),
            "model_config": fields({}, plain),
            "normalisation": NORMALISATION,
            "settings": fields(settings, plain),
            "densities": densities,
            "densities_alone": maybe(densities),
            "gallery": maybe(fields(gallery)),
            "split": fields(SPLIT),
            "epoch": whole(0, 1 << 31),
            "metrics": fields({"score": number(0, ANY_NUMBER, math.inf)}, number(0, ANY_NUMBER)),
        }
    )(content, "")
    if content["gallery"] is not None:
        count = len(content["gallery"]["features"])
        fields({**gallery, **labels_of(count)})(content["gallery"], "gallery")


def check_weights(weights: Any, name: str, config: dict) -> None:
    """ValueError unless the weights are finite and those of the network that `config` tells; it
    is built without memory for that."""
    from timm import is_model

    if not is_model(config["backbone"].partition(".")[0]):
        raise ValueError(f"model_config.backbone: {config['backbone']} is no timm model")
    if not isinstance(weights, dict):
        refuse(name, "dict")
    try:
        with torch.device("meta"):
            wanted = GPSPredictionNet(**config).state_dict()
    except (ValueError, RuntimeError, TypeError) as error:
        raise ValueError(f"model_config: {error}") from error
    if odd := sorted(map(str, wanted.keys() ^ weights.keys())):
        raise ValueError(f"{name}: {len(odd)} tensors missing or unknown, the first is {odd[0]}")
    for key, one in wanted.items():
        found = weights[key]
        if not isinstance(found, torch.Tensor) or found.dtype != one.dtype:
            refuse(f"{name}.{key}", f"tensor of {one.dtype}")
        if found.shape != one.shape:
            refuse(f"{name}.{key}", f"tensor of {tuple(one.shape)}: it has {tuple(found.shape)}")
        if found.is_floating_point() and not bool(found.isfinite().all()):
            raise ValueError(f"{name}.{key} holds values that are not finite")


def check_private(content: Any) -> None:
    """ValueError unless what is kept of the training photos is in order."""
    given = content.get("split") if isinstance(content, dict) else None
    names = given.get("names") if isinstance(given, dict) else None
    if not isinstance(names, list):
        raise ValueError("no list of names")
    count = len(names)
    parts = {"fold": many(whole(0, MOST_PHOTOS), count)}
    if content.get("held_out") is None:
        parts = {"part": many(one_of("test", "val", "train"), count)}
    split = {
        "names": many(text()),
        "groups": many(whole(0, MOST_PHOTOS), count),
        "left_out": fields({}, text()),
        **parts,
    }
    fields(
        {
            "format": whole(1, 1 << 31),
            "belongs_to": HEX,
            "table_sha256": HEX,
            "split": fields(split),
            "held_out": maybe(held_out_of(count)),
        }
    )(content, "")
