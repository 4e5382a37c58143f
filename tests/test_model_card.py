import re

import numpy as np
import pytest
import yaml

from density import distance_label
from geophoto import model_card
from geophoto.backbones import LITE0
from geophoto.baselines import answer_errors
from geophoto.checkpoints import read_checkpoint
from geophoto.findings import percent
from geophoto.photos import read_photos


@pytest.fixture(scope="module")
def model(trained):
    path = trained.checkpoints / "best_gps_model_rgb.pth"
    photos, _ = read_photos(trained.data, trained.data / "images")
    return path, read_checkpoint(path), photos


def test_a_card_lies_beside_every_model_under_hugging_faces_headings(model):
    path, _, _ = model
    text = path.with_suffix(".md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front)["license"] in ("apache-2.0", "bsd-3-clause")
    headings = re.findall(r"^## (.*)", body, flags=re.M)
    assert "; ".join(headings) == (
        "Model Details; Uses; Bias, Risks, and Limitations; How to Get Started with the Model; "
        "Training Details; Evaluation"
    )
    assert "{" not in body and "  \n" not in body
    better = path.with_name("best_gps_model.pth")
    assert f"# Model card of {better.name}\n" in better.with_suffix(".md").read_text()


def test_its_figures_are_those_of_the_held_out_answers(model):
    path, content, photos = model
    row_of = {name: i for i, name in enumerate(photos.names)}
    held = photos.take(np.array([row_of[name] for name in content["split"]["names"]]))
    text = path.with_suffix(".md").read_text()
    errors = answer_errors(content["held_out"]["answers"], held)
    known = np.isfinite(errors["gps"])
    row = next(line for line in text.splitlines() if line.startswith("| Position"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert int(cells[1]) <= known.sum()
    assert cells[2].startswith(distance_label(float(np.median(errors["gps"][known]))))
    inside = errors["gps"] <= content["held_out"]["answers"]["radius90_km"]
    assert cells[5] == percent(inside[known].mean())


def test_a_card_names_no_photo_and_no_place(model):
    path, _, photos = model
    text = path.with_suffix(".md").read_text()
    assert not [name for name in photos.names if name in text]
    numbers = np.array([float(n) for n in re.findall(r"-?\d+\.\d{2,}", text)])
    for degrees in (photos.lat, photos.lon):
        degrees = degrees[np.isfinite(degrees)]
        assert not (np.abs(numbers[:, None] - degrees) * 111 < 1).any()


def test_the_card_of_a_copy_without_gallery_says_so(model, tmp_path):
    path, _, _ = model
    target = tmp_path / "given_shared.pth"
    model_card.copy_card(path, target, gallery=False)
    text = target.with_suffix(".md").read_text()
    assert model_card.WITHOUT_GALLERY in text and model_card.WITH_GALLERY not in text
    assert f"# Model card of {target.name}" in text
    model_card.copy_card(tmp_path / "without.pth", tmp_path / "other.pth")
    assert not (tmp_path / "other.md").exists()


@pytest.mark.parametrize(
    ("backbone", "weights", "licence"),
    [("resnet50", "imagenet", "bsd-3-clause"), ("resnet50", "eigenplaces", "mit"),
     (LITE0, "imagenet", "apache-2.0"), ("vit_small_patch16_dinov3", "imagenet", "dinov3-license"),
     ("convnext_tiny", "imagenet", "apache-2.0"), ("resnet50", "mine.pth", "other")],
)  # fmt: skip
def test_licences_are_those_of_the_weights(backbone, weights, licence):
    assert model_card.origin_of(backbone, weights)[0] == licence


def test_a_fine_tuned_network_is_told_by_its_validation_part(model, tmp_path):
    _, content, photos = model
    tuned = {**content, "held_out": None}
    model_card.write_card(tmp_path / "best_gps_model_rgb.pth", tuned, photos, "imagenet")
    text = (tmp_path / "best_gps_model_rgb.md").read_text()
    assert "validation part" in text and re.search(r"\| Position \| [\d.]+ k?m \|", text)
