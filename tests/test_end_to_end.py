"""The commands in sequence, as a user types them, on real photos."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import (
    REPOSITORY,
    SHARED,
    copy_data,
    quietly,
    tiny_depth_weights,
    training_arguments,
)
from PIL import Image, ImageDraw

import depth_map_generator
import evaluate_gps_model
import gps_orientation_trainer
from geophoto.checkpoints import read_checkpoint
from geophoto.orientations import turns_right

PHOTOS = SHARED / "photos" / "ground_open" / "images"
COUNT = 12


def run(script: str, *arguments) -> str:
    done = subprocess.run(
        [sys.executable, script, *map(str, arguments)], cwd=REPOSITORY, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, done.stderr
    return done.stdout


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no folder of real photos beside the repository")
def test_four_commands_lose_no_photo(tmp_path):
    data, checkpoints, output = tmp_path / "data", tmp_path / "checkpoints", tmp_path / "evaluation"
    files = sorted(path for path in PHOTOS.rglob("*") if path.is_file())
    (data / "images").mkdir(parents=True)
    for file in files[:: len(files) // COUNT][:COUNT]:
        shutil.copy2(file, data / "images")
    weights = tiny_depth_weights(checkpoints / "depth_anything_v2_tiny.pth")
    folders = ["--data-dir", data, "--checkpoint-dir", checkpoints]

    run("exif_extractor.py", "--data-dir", data, "--workers", 1)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    assert len(rows) == COUNT
    assert {row["filename"] for row in rows} == {p.name for p in (data / "images").iterdir()}

    printed = run("depth_map_generator.py", *folders, "--depth-model", weights, "--input-size", 56)
    assert f"{COUNT} photos in the table: {COUNT} written" in printed
    assert len(list((data / "depths").glob("*.npy"))) == COUNT

    quick = "--backbone tf_efficientnet_lite0 --mode frozen --frozen-image-size 128 --folds 3"
    printed = run("gps_orientation_trainer.py", *folders, *quick.split(), "--epochs", 8)
    used = int(re.match(r"(\d+) photos: ", printed)[1])
    left_out = sum(int(n) for n in re.findall(r"left out, [^:;]+: (\d+)", printed))
    assert used + left_out == COUNT
    for name in ("rgb", "depth"):
        assert (checkpoints / f"best_gps_model_{name}.pth").is_file()

    printed = run("evaluate_gps_model.py", *folders, "--output-dir", output, "--bootstrap", 50)
    for held, unreadable, rest in re.findall(
        rf"{COUNT} rows, (\d+) evaluated, (\d+) unreadable, (\d+) not held out", printed
    ):
        assert int(held) + int(unreadable) + int(rest) == COUNT and int(held) == used
    with open(output / "predictions.csv", newline="", encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 2 * used
    assert (output / "report.html").stat().st_size > 100_000
    json.loads((output / "metrics.json").read_text(encoding="utf-8"))

    stripped = tmp_path / "stranger.png"
    with Image.open(files[0]) as photo:
        photo.convert("RGB").resize((320, 240)).save(stripped)
    printed = run("evaluate_gps_model.py", *folders, "--output-dir", output, "--photos", stripped)
    for answer in ("position", "time", "orientation", "altitude"):
        assert re.search(rf"^  {answer} +\S", printed, flags=re.M)


def test_a_lower_pixel_limit_names_every_photo_above_it(photo_set, trained, tmp_path):
    """Reached by the same flag in the three scripts that decode photos."""
    data = copy_data(photo_set, tmp_path)
    limit = ["--pixel-limit", "0.01"]
    folders = ["--data-dir", data, "--checkpoint-dir", photo_set.depth_weights.parent]
    depth = [*folders, "--depth-model", photo_set.depth_weights, "--input-size", 56, "--overwrite"]
    code, printed = quietly(depth_map_generator.main, *depth, *limit)
    assert code == 1 and "failed: day_0/IMG_000.jpg: " in printed
    assert printed.count("0.01 megapixels are the limit (--pixel-limit)") > 50
    code, printed = quietly(
        gps_orientation_trainer.main, *training_arguments(data, tmp_path, "--inputs", "rgb"), *limit
    )
    assert code == 2 and "only 0 photos could be read" in printed
    code, printed = quietly(
        evaluate_gps_model.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", tmp_path,
        "--photos", data / "images" / "day_0" / "IMG_000.jpg", *limit,
    )  # fmt: skip
    assert code == 1 and "0 photos predicted, 1 left out" in printed
    assert "0.01 megapixels" in printed


def strange_pictures(folder: Path) -> None:
    """Pictures that no camera took, and one of a single pixel."""
    rng = np.random.default_rng(0)
    page = Image.new("RGB", (640, 960), "white")
    pen = ImageDraw.Draw(page)
    for line in range(40, 920, 24):
        pen.text((30, line), "The quick brown fox jumps over the lazy dog. " * 3, fill="black")
    pictures = {
        "noise": Image.fromarray(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)),
        "pixel": Image.new("RGB", (1, 1), (120, 140, 90)),
        "black": Image.new("RGB", (640, 480)),
        "screenshot": page,
    }
    folder.mkdir()
    for name, picture in pictures.items():
        picture.save(folder / f"{name}.png")


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOS.is_dir(), reason="no folder of real photos beside the repository")
def test_untagged_photos_teach_orientation_and_strangers_are_never_sure(tmp_path):
    """101 real photos whose table has lost every orientation tag; pictures are shown upright."""
    data, checkpoints, output = tmp_path / "data", tmp_path / "c", tmp_path / "evaluation"
    run("exif_extractor.py", "--data-dir", data, "--image-dir", PHOTOS)
    table = data / "exif_data.json"
    rows = json.loads(table.read_text(encoding="utf-8"))
    rows = [{**row, "orientation": None, "orientation_tag": None} for row in rows]
    table.write_text(json.dumps(rows), encoding="utf-8")
    folders = ["--data-dir", data, "--image-dir", PHOTOS, "--checkpoint-dir", checkpoints]
    options = ["--backbone", "tf_efficientnet_lite0", "--mode", "frozen", "--inputs", "rgb"]
    run("gps_orientation_trainer.py", *folders, *options)
    held = read_checkpoint(checkpoints / "best_gps_model_rgb.pth")["held_out"]
    assert turns_right(held["answers"]["views"]).mean() >= 0.9

    strange_pictures(tmp_path / "strange")
    run("evaluate_gps_model.py", *folders, "--output-dir", output, "--photos", tmp_path / "strange")
    with open(output / "photos.csv", newline="", encoding="utf-8") as file:
        answers = list(csv.DictReader(file))
    assert len(answers) == 4
    for row in answers:
        for head in ("position", "time", "altitude"):
            assert row[f"{head}_confident"] == "False", row["filename"]
