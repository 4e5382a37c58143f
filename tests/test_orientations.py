"""The six orientations: turning pixels, and views that agree."""

import itertools

import numpy as np
import pytest
import torch
from exif_files import picture
from PIL import Image, ImageOps

from geophoto import orientations

# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("tag", range(1, 9))
def test_one_table_of_turns_agrees_with_pillow(tag):
    mirrored, quarters, name = orientations.ORIENTATIONS[tag]
    stored = picture()
    image = Image.fromarray(stored)
    image.getexif()[0x0112] = tag
    upright = np.asarray(ImageOps.exif_transpose(image))
    ours = np.asarray(orientations.turn_image(Image.fromarray(stored), tag))
    assert np.array_equal(ours, upright)
    back = orientations.turn_image(Image.fromarray(upright), tag, back=True)
    assert np.array_equal(np.asarray(back), stored)
    if name is None:
        assert tag in (5, 7) and mirrored and quarters in (1, 3)
        return
    assert orientations.ORIENTATION_TAG[name] == tag
    assert np.array_equal(orientations.turn_upright(stored, name), upright)
    assert np.array_equal(orientations.store_as(upright, name), stored)
    assert np.array_equal(orientations.turn_upright(stored[..., 0], name), upright[..., 0])


def test_class_order_is_that_of_the_model():
    assert orientations.ORIENTATION_CLASSES == (
        "Normal", "Rotated 90°", "Rotated 180°", "Rotated 270°", "Flipped H", "Flipped V",
    )  # fmt: skip


# ---------------------------------------------------------------- pictures


def test_turned_views_of_a_photo_give_the_same_answer():
    """By actually turning stored pixels: the classes that a quarter turn leads to, and answers
    that turn along with the picture."""
    pixels = np.arange(4).reshape(2, 2)
    names = list(orientations.ORIENTATION_CLASSES)
    found = {orientations.store_as(pixels, name).tobytes(): i for i, name in enumerate(names)}
    logits = torch.randn(5, 6, 6, generator=torch.Generator().manual_seed(0))
    chances = logits.log_softmax(dim=2)
    agreed = orientations.agree_views(logits)
    for view, name in itertools.product(range(6), repeat=2):
        terms = []
        for quarters in range(4):
            pair = [
                found.get(np.rot90(orientations.store_as(pixels, names[i]), quarters).tobytes())
                for i in (view, name)
            ]
            if None not in pair:
                terms.append(chances[:, pair[0], pair[1]])
                if view < 4 and name < 4:
                    torch.testing.assert_close(agreed[:, view, name], agreed[:, pair[0], pair[1]])
        assert len(terms) == (4 if view < 4 and name < 4 else 2)
        torch.testing.assert_close(agreed[:, view, name], torch.stack(terms).mean(dim=0))


def test_agreement_keeps_what_all_views_know_and_outvotes_one():
    sure = 5 * torch.eye(6)[None]
    assert (orientations.agree_views(sure).argmax(dim=2) == torch.arange(6)).all()
    sure[0, 0] = sure[0, 0].roll(1)  # one view is wrong about itself
    assert orientations.turns_right(sure.numpy()).sum() == 3
    assert orientations.turns_right(orientations.agree_views(sure).numpy()).all()


def test_probabilities_of_views_become_right_by_a_temperature():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (400, 6, 6))
    chances = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    right = np.array([[rng.choice(6, p=row) for row in photo] for photo in chances])
    turned = np.empty_like(logits)  # so that the class drawn is the one that is right
    for photo, view in np.ndindex(400, 6):
        turned[photo, view] = np.roll(logits[photo, view], view - right[photo, view])
    for sharper in (0.5, 1.0, 4.0):
        assert orientations.fit_temperature(turned * sharper) == pytest.approx(sharper, rel=0.15)
    assert orientations.fit_temperature(turned[:0]) == 1.0
