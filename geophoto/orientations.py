"""The six orientations of a photo: names, tags, what they do to pixels, how six views agree.

In: stored or upright pixels, or logits of six views. Out: the same turned, or with one voice.
"""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

# EXIF orientation (tag 0x0112) → the viewer's steps that set the stored picture upright:
# (mirror left-right first?, then quarter turns clockwise), and the class name. EXIF 3.0, 4.6.5.1.
ORIENTATIONS = {
    1: (False, 0, "Normal"),
    6: (False, 1, "Rotated 90°"),
    3: (False, 2, "Rotated 180°"),
    8: (False, 3, "Rotated 270°"),
    2: (True, 0, "Flipped H"),
    4: (True, 2, "Flipped V"),
    5: (True, 3, None),
    7: (True, 1, None),
}
ORIENTATION_TAG = {name: tag for tag, (_, _, name) in ORIENTATIONS.items() if name}
ORIENTATION_CLASSES = tuple(ORIENTATION_TAG)  # the class index of the model is the place in here


def known_tag(value: float) -> int:
    """The orientation tag of a table cell, 0 where it holds none."""
    return int(value) if value in ORIENTATIONS else 0


# ---------------------------------------------------------------- pixels


def turn_upright(array: np.ndarray, name: str) -> np.ndarray:
    """Do what a viewer does with stored pixels (H, W[, C]) of orientation class `name`."""
    import numpy as np

    mirrored, quarters, _ = ORIENTATIONS[ORIENTATION_TAG[name]]
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, -quarters))


def store_as(array: np.ndarray, name: str) -> np.ndarray:
    """Turn upright pixels (H, W[, C]) into the stored pixels of orientation class `name`."""
    import numpy as np

    mirrored, quarters, _ = ORIENTATIONS[ORIENTATION_TAG[name]]
    array = np.rot90(array, quarters)
    return np.ascontiguousarray(array[:, ::-1] if mirrored else array)


def turn_image(image: Image.Image, tag: int, back: bool = False) -> Image.Image:
    from PIL.Image import Transpose

    clockwise = (None, Transpose.ROTATE_270, Transpose.ROTATE_180, Transpose.ROTATE_90)
    mirrored, quarters, _ = ORIENTATIONS[tag]
    steps = [Transpose.FLIP_LEFT_RIGHT if mirrored else None, clockwise[quarters]]
    if back:
        steps = [clockwise[-quarters % 4], steps[0]]
    for step in steps:
        image = image.transpose(step) if step is not None else image
    return image


# ---------------------------------------------------------------- views


@functools.cache
def turned_agreement() -> torch.Tensor:
    """Matrix (36, 36) of agree_views over flattened (view, class) pairs."""
    import torch

    classes = {ORIENTATIONS[ORIENTATION_TAG[n]][:2]: i for i, n in enumerate(ORIENTATION_CLASSES)}
    weights = torch.zeros(6, 6, 6, 6)
    for (view, i), (name, j) in itertools.product(classes.items(), repeat=2):
        for quarters in range(4):
            pair = [
                classes.get((mirrored, (turns + (-quarters if mirrored else quarters)) % 4))
                for mirrored, turns in (view, name)
            ]
            if None not in pair:
                weights[i, j, pair[0], pair[1]] = 1
    return (weights / weights.sum(dim=(2, 3), keepdim=True)).reshape(36, 36)


def agree_views(logits: torch.Tensor) -> torch.Tensor:
    """Let the six views of a photo, (N, 6 views, 6 classes), speak with one voice.

    A picture of class c that is turned further is of the class that follows: each answer becomes
    the mean log-probability over the quarter turns of the picture and of the class (two of them
    where a mirror is involved: its quarter turns are not among the six classes).
    """
    chances = logits.float().log_softmax(dim=2).flatten(1)
    return (chances @ turned_agreement().to(chances.device).T).reshape(logits.shape)


def turns_right(view_logits: np.ndarray) -> np.ndarray:
    """Which of the four turns are told apart, mirror classes left out, (N, 4) bool, from logits
    (N, 6 views, 6 classes)."""
    import numpy as np

    turns = [i for i, name in enumerate(ORIENTATION_CLASSES) if not name.startswith("Flipped")]
    return view_logits[:, turns][:, :, turns].argmax(axis=2) == np.arange(len(turns))


def fit_temperature(views: np.ndarray) -> float:
    """What the logits (N, 6, 6) of upright photos' six views are divided by so that their
    probabilities are right as often as they say (Guo et al. 2017)."""
    import numpy as np
    from scipy.optimize import minimize_scalar

    if not len(views):
        return 1.0

    def cost(log_temperature: float) -> float:
        logits = views / np.exp(log_temperature)
        right = np.diagonal(logits, axis1=1, axis2=2)
        return float((np.logaddexp.reduce(logits, axis=2) - right).mean())

    return float(np.exp(minimize_scalar(cost, bounds=(-3, 3), method="bounded").x))
