"""The four commands in sequence, as a user types them, on a dozen real photos."""

import csv
import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, SHARED, tiny_depth_weights

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
    from PIL import Image

    with Image.open(files[0]) as photo:
        photo.convert("RGB").resize((320, 240)).save(stripped)
    printed = run("evaluate_gps_model.py", *folders, "--output-dir", output, "--photos", stripped)
    for answer in ("position", "time", "orientation", "altitude"):
        assert re.search(rf"^  {answer} +\S", printed, flags=re.M)
