"""Thumbnails: upright, small enough together, and a gap where a photo cannot be read."""

import base64
import io
import re

import numpy as np
import pytest
from conftest import picture
from PIL import Image

from geophoto import thumbnails


def decoded(uri: str) -> Image.Image:
    assert re.match(r"data:image/webp;base64,[\w+/=]+$", uri)
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def test_thumbnails_are_upright_and_gaps_stay_gaps(tmp_path):
    pixels = np.zeros((300, 500, 3), np.uint8)
    pixels[:150] = (250, 0, 0)  # red above
    turned = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)  # as a phone stores it
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.jpg", exif=exif.tobytes())
    (tmp_path / "b.jpg").write_bytes(b"no photo")
    files = [tmp_path / name for name in ("a.jpg", "b.jpg", "gone.jpg")]
    made = thumbnails.thumbnails(files)
    assert made[1] is None and made[2] is None
    small = decoded(made[0])
    assert small.size == (240, 144)
    assert small.getpixel((120, 20))[0] > 200 and max(small.getpixel((120, 130))) < 60


@pytest.mark.parametrize("limit", [8000, 2000, 900])
def test_noise_fits_its_share_of_the_budget(tmp_path, limit):
    """Noise is what compresses worst: no photo needs more."""
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    assert len(thumbnails.data_uri(tmp_path / "noise.png", 200, limit)) <= limit


def test_all_pictures_together_stay_within_the_budget(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    files = []
    for i in range(12):
        Image.fromarray(picture(rng, 0.1 * i, 0.2, 0.3, 12.0)).save(tmp_path / f"{i}.jpg")
        files.append(tmp_path / f"{i}.jpg")
    monkeypatch.setattr(thumbnails, "BUDGET", 12_000)
    assert sum(map(len, thumbnails.thumbnails(files))) <= 12_000
    most, side = thumbnails.SIDES[-1]
    assert most == thumbnails.MOST and side >= 100
