"""The evaluator: metrics recomputed from predictions.csv, the report, unknown photos."""

import csv
import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
from conftest import copy_data, picture, quietly, store, training_arguments
from PIL import Image

import density
import evaluate_gps_model as evaluator
import gps_orientation_trainer as trainer
from geophoto import predictions, records
from geophoto.checkpoints import read_checkpoint
from geophoto.maps import embed, write_page
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.photos import read_photos
from geophoto.pictures import find_photos

# ---------------------------------------------------------------- a whole evaluation


def run_evaluation(trained, output, *more):
    folders = ["--data-dir", trained.data, "--checkpoint-dir", trained.checkpoints]
    return quietly(evaluator.main, *folders, "--output-dir", output, "--bootstrap", "200", *more)


@pytest.fixture(scope="module")
def evaluated(evaluation):
    return evaluation


def read_rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def column(rows, name) -> np.ndarray:
    return np.array([float(row[name]) if row[name] else math.nan for row in rows])


def metrics_of(output) -> dict:
    def strict(word):
        raise AssertionError(f"{word} is not JSON")

    text = (output / "metrics.json").read_text(encoding="utf-8")
    return json.loads(text, parse_constant=strict)


GPS_KEYS = (
    "n median_km mean_km geometric_mean_km p75_km p90_km p95_km interval_km baseline_median_km "
    "baseline_geometric_mean_km knn_median_km knn_geometric_mean_km within"
)
TIME_KEYS = "n mean_minutes median_minutes interval_minutes baseline_mean_minutes knn_mean_minutes"
TURN_KEYS = (
    "n stored_accuracy stored_majority turn_accuracy six_class_accuracy mirror_accuracy confusion"
)
ALTITUDE_KEYS = "n mean_m median_m interval_m baseline_mean_m knn_mean_m"


def test_metrics_have_every_promised_key(evaluated):
    metrics = metrics_of(evaluated[0])
    assert {"rgb", "depth", "depth_minus_rgb", "split", "settings"} <= set(metrics)
    for name in ("rgb", "depth"):
        block = metrics[name]
        for head, keys in (
            ("gps", GPS_KEYS), ("time", TIME_KEYS), ("orientation", TURN_KEYS),
            ("altitude", ALTITUDE_KEYS),
        ):  # fmt: skip
            assert set(keys.split()) <= set(block[head]), head
            assert block[head]["n"] == 48
        assert list(block["gps"]["within"]) == ["0.01", "0.1", "1", "25", "200", "750", "2500"]
        assert np.sum(block["orientation"]["confusion"]) == 6 * 48
    assert set(metrics["depth_minus_rgb"]) == {"gps", "time", "altitude"}


@pytest.mark.parametrize("name", ["rgb", "depth"])
def test_metrics_follow_from_the_predictions(evaluated, photo_set, name):
    output, _ = evaluated
    rows = [row for row in read_rows(output / "predictions.csv") if row["model"] == name]
    block = metrics_of(output)[name]
    assert len(rows) == 48
    km = density.distance_km(
        column(rows, "true_latitude"), column(rows, "true_longitude"),
        column(rows, "latitude"), column(rows, "longitude"),
    )  # fmt: skip
    assert column(rows, "error_km") == pytest.approx(km, rel=1e-3, abs=1e-4)
    gps = block["gps"]
    assert gps["median_km"] == pytest.approx(np.median(km), rel=1e-3)
    assert gps["mean_km"] == pytest.approx(km.mean(), rel=1e-3)
    assert gps["geometric_mean_km"] == pytest.approx(np.exp(np.log(km).mean()), rel=1e-3)
    assert gps["p90_km"] == pytest.approx(np.percentile(km, 90), rel=1e-3)
    for limit, share in gps["within"].items():
        assert share == pytest.approx((km <= float(limit)).mean())
    assert gps["knn_median_km"] == pytest.approx(np.median(column(rows, "knn_error_km")), rel=1e-3)
    assert gps["interval_km"][0] <= gps["median_km"] <= gps["interval_km"][1]
    for radius in ("50", "90"):
        inside = (km <= column(rows, f"radius{radius}_km")).mean()
        assert gps[f"coverage{radius}"] == pytest.approx(inside, abs=0.021)
    assert block["time"]["mean_minutes"] == pytest.approx(
        column(rows, "error_minutes").mean(), rel=1e-3
    )
    assert block["altitude"]["mean_m"] == pytest.approx(
        np.abs(column(rows, "true_altitude_m") - column(rows, "altitude_m")).mean(), rel=1e-3
    )
    for row in rows:
        assert row["true_orientation"] == photo_set.truth[row["filename"]]["orientation"]
    hits = np.mean([row["true_orientation"] == row["orientation"] for row in rows])
    assert block["orientation"]["stored_accuracy"] == pytest.approx(hits)


def test_trivial_baseline_is_that_of_the_training_folds(evaluated, trained):
    split = read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")["split"]
    photos, _ = read_photos(trained.data, trained.data / "images")
    photos = photos.take(np.array([photos.names.index(name) for name in split["names"]]))
    fold, miss = np.array(split["fold"]), np.empty(48)
    for k in range(3):
        middle = density.geographic_median(photos.lat[fold != k], photos.lon[fold != k])
        here = fold == k
        miss[here] = density.distance_km(photos.lat[here], photos.lon[here], *middle)
    gps = metrics_of(evaluated[0])["rgb"]["gps"]
    assert gps["baseline_median_km"] == pytest.approx(np.median(miss))


def test_orientation_figures_from_the_stored_logits(evaluated, trained):
    checkpoint = read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    views = checkpoint["held_out"]["answers"]["views"]
    block = metrics_of(evaluated[0])["rgb"]["orientation"]
    six = np.mean([views[i, v].argmax() == v for i in range(48) for v in range(6)])
    assert block["six_class_accuracy"] == pytest.approx(six)
    turns = [ORIENTATION_CLASSES.index(n) for n in ORIENTATION_CLASSES if "Flipped" not in n]
    four = np.mean([turns[views[i, v][turns].argmax()] == v for i in range(48) for v in turns])
    assert block["turn_accuracy"] == pytest.approx(four)
    confusion = np.array(block["confusion"])
    assert np.trace(confusion) / confusion.sum() == pytest.approx(six)
    assert (confusion.sum(axis=1) == 48).all()


def test_difference_is_paired(evaluated):
    output, _ = evaluated
    rows = read_rows(output / "predictions.csv")
    errors = {
        name: {row["filename"]: float(row["error_m"]) for row in rows if row["model"] == name}
        for name in ("rgb", "depth")
    }
    assert set(errors["rgb"]) == set(errors["depth"])
    found = metrics_of(output)["depth_minus_rgb"]["altitude"]
    wanted = np.mean([errors["depth"][n] - errors["rgb"][n] for n in errors["rgb"]])
    assert found["mean_m"] == pytest.approx(wanted, abs=0.01) and found["n"] == 48
    assert found["interval"][0] <= wanted + 0.01 and found["interval"][1] >= wanted - 0.01


def test_rows_are_accounted_for(evaluated):
    _, printed = evaluated
    assert "RGB: 53 rows, 48 evaluated, 1 unreadable, 4 not held out" in printed
    assert "report: " in printed.splitlines()[-1]
    for head in ("Position", "Time of day", "Altitude", "Four turns missed"):
        errors = printed.partition("\nintervals")[0].splitlines()
        assert len([line for line in errors if line.startswith(head)]) == 2


def test_report_is_one_file(evaluated):
    output, _ = evaluated
    page = (output / "report.html").read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)  # run in test_report.py
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:)[a-z/.]""", markup, re.I)
    assert "url(" not in page and "@import" not in page
    assert len(list(output.glob("*.png"))) == 6
    assert "Do not use it to find people" in page and "better on validation photos" in page
    for title in ("RGB", "RGB + depth"):
        assert f">{title}</td>" in page


def test_plots_are_pictures(evaluated):

    for file in evaluated[0].glob("*.png"):
        pixels = np.asarray(Image.open(file).convert("L"))
        assert min(pixels.shape) > 300 and pixels.std() > 5, file.name


def test_pictures_of_an_evaluation_are_not_taken_for_photos(evaluated):
    assert list(evaluated[0].glob("*.png")) and not find_photos(evaluated[0])


def test_geojson_is_rfc_7946(evaluated):
    output, _ = evaluated
    content = json.loads((output / "predictions.geojson").read_text(encoding="utf-8"))
    assert content["type"] == "FeatureCollection"
    kinds = [feature["geometry"]["type"] for feature in content["features"]]
    assert kinds.count("Point") == kinds.count("LineString") == 96
    rows = {(r["model"], r["filename"]): r for r in read_rows(output / "predictions.csv")}
    for feature in content["features"]:
        assert feature["type"] == "Feature" and isinstance(feature["properties"], dict)
        geometry = feature["geometry"]
        points = geometry["coordinates"]
        if geometry["type"] == "Point":
            about = feature["properties"]
            row = rows[about["model"], about["filename"]]
            assert points == [float(row["longitude"]), float(row["latitude"])]
            points = [points]
        for lon, lat in points:  # the photos lie at 46° N, 7° E
            assert 5 < lon < 9 and 44 < lat < 48


def test_a_second_evaluation_gives_the_same_bytes(evaluated, trained, tmp_path):
    assert run_evaluation(trained, tmp_path)[0] == 0
    for name in ("metrics.json", "predictions.csv", "predictions.geojson"):
        assert (tmp_path / name).read_bytes() == (evaluated[0] / name).read_bytes()


def test_hostile_names_are_harmless(evaluated, tmp_path):
    """File names reach the report, the CSV and the GeoJSON as text, never as code."""
    evil = "=HYPERLINK(1)<script>alert(1)</script>\t.jpg"
    rows = [{"filename": evil, "latitude": 1.0, "longitude": 2.0, "note": "+1", "n": -5}]
    records.write_rows(tmp_path / "x.csv", rows)
    row = read_rows(tmp_path / "x.csv")[0]
    assert row["filename"] == "'" + evil and row["note"] == "'+1" and row["n"] == "-5"
    records.write_geojson(tmp_path / "x.geojson", rows)
    assert (
        json.loads((tmp_path / "x.geojson").read_text())["features"][0]["properties"]["filename"]
        == evil
    )
    write_page(
        tmp_path / "x.html", "report.html.j2", data=embed([evil]), pictures=embed([]), lead=evil,
        failing=[{"image": None, "text": evil}], models=["rgb"], titles={"rgb": evil}, facts=[],
    )  # fmt: skip
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page and page.count("&lt;script&gt;") >= 3
    assert "\\u003cscript\\u003ealert" in page


def test_one_model_alone_can_be_evaluated(trained, tmp_path):
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(trained.checkpoints / f"best_gps_model_depth{suffix}", tmp_path)
    code, printed = quietly(
        evaluator.main, "--data-dir", trained.data, "--checkpoint-dir", tmp_path,
        "--output-dir", tmp_path / "out", "--bootstrap", "20",
    )  # fmt: skip
    metrics = metrics_of(tmp_path / "out")
    assert code == 0 and "rgb" not in metrics and metrics["depth_minus_rgb"] == {}, printed
    page = (tmp_path / "out/report.html").read_text(encoding="utf-8")
    assert "better on validation photos" not in page  # than which?


def test_photos_that_left_the_table_are_left_out(trained, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    (data / "exif_data.json").write_text(json.dumps(rows[10:]), encoding="utf-8")
    code, printed = quietly(
        evaluator.main, "--data-dir", data, "--checkpoint-dir", trained.checkpoints,
        "--output-dir", tmp_path / "out", "--bootstrap", "20",
    )  # fmt: skip
    assert code == 0 and "exif_data.json has changed" in printed
    kept = {row["filename"] for row in rows[10:]}
    found = {row["filename"] for row in read_rows(tmp_path / "out" / "predictions.csv")}
    assert found <= kept and len(found) >= 36


def test_without_models_the_command_is_named(trained, tmp_path):
    code, printed = quietly(
        evaluator.main, "--data-dir", trained.data, "--checkpoint-dir", tmp_path
    )
    assert code == 2 and printed.count("\n") == 1 and "gps_orientation_trainer.py" in printed


def test_labels_that_are_missing_leave_their_head_out(photo_set, tmp_path):
    """Only positions are known: the other heads have n = 0, and there is a report."""
    data = copy_data(photo_set, tmp_path)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        row |= dict.fromkeys(
            ("datetime", "datetime_utc", "datetime_at_place", "gps_altitude", "orientation",
             "orientation_tag")
        )  # fmt: skip
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "4")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    code, printed = quietly(
        evaluator.main, "--data-dir", data, "--checkpoint-dir", tmp_path / "c",
        "--output-dir", tmp_path / "out", "--bootstrap", "20",
    )  # fmt: skip
    assert code == 0, printed
    block = metrics_of(tmp_path / "out")["rgb"]
    assert block["gps"]["n"] == 48
    assert block["time"]["n"] == block["altitude"]["n"] == block["orientation"]["n"] == 0


LABELS = {
    "time": ("datetime", "datetime_utc", "datetime_at_place"),
    "altitude": ("gps_altitude",),
    "sun": ("sun_elevation_deg",),
}


@pytest.mark.parametrize(
    "missing", [("time",), ("altitude",), ("sun",), ("time", "altitude", "sun")], ids="+".join
)
def test_heads_without_labels_answer_nothing(photo_set, tmp_path, missing):
    """No cell, a dash on the screen, no line of the table, no title in the report."""
    data = copy_data(photo_set, tmp_path)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        row |= dict.fromkeys(column for head in missing for column in LABELS[head])
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    where = ["--checkpoint-dir", tmp_path / "c", "--output-dir", tmp_path / "out"]
    photo = strangers(tmp_path / "p", 1)[0]
    code, printed = quietly(evaluator.main, *where, "--photos", photo)
    assert code == 0, printed
    (answer,) = read_rows(tmp_path / "out" / "photos.csv")
    cells = {"time": "time", "altitude": "altitude_m", "sun": "sun_elevation_deg"}
    for head, cell in cells.items():
        assert (answer[cell] == "") == (head in missing), head
    assert answer["latitude"] and ("altitude     –" in printed) == ("altitude" in missing)
    assert ("time         –" in printed) == ("time" in missing), printed
    code, printed = quietly(evaluator.main, *where, "--data-dir", data, "--bootstrap", "20")
    assert code == 0, printed
    block = metrics_of(tmp_path / "out")["rgb"]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    page = re.sub(r"data:[^\"]*", "", page)
    for head, title in (("time", "Time of day"), ("altitude", "Altitude")):
        assert (block[head]["n"] == 0) == (head in missing)
        assert any(line.startswith(title) for line in printed.splitlines()) != (head in missing)
        assert (f">{title}</td>" in page) != (head in missing)
    for row in read_rows(tmp_path / "out" / "predictions.csv"):
        for head, cell in cells.items():
            assert (row[cell] == "") == (head in missing), (head, row[cell])


@pytest.fixture(scope="module")
def finetuned(photo_set, tmp_path_factory):
    root = tmp_path_factory.mktemp("finetuned for evaluation")
    data = copy_data(photo_set, root)
    quick = ["--mode", "finetune", "--image-size", "64", "--batch-size", "16", "--epochs", "2"]
    code, printed = quietly(trainer.main, *training_arguments(data, root / "c", *quick))
    assert code == 0, printed
    shutil.copy(photo_set.depth_weights, root / "c")
    return data, root / "c"


def test_finetuned_models_are_evaluated_on_their_stored_test_photos(finetuned, tmp_path):
    data, checkpoints = finetuned
    code, printed = quietly(
        evaluator.main, "--data-dir", data, "--checkpoint-dir", checkpoints,
        "--output-dir", tmp_path, "--bootstrap", "50",
    )  # fmt: skip
    assert code == 0, printed
    rows = read_rows(tmp_path / "predictions.csv")
    for name in ("rgb", "depth"):
        split = read_checkpoint(checkpoints / f"best_gps_model_{name}.pth")["split"]
        test = {n for n, part in zip(split["names"], split["part"], strict=True) if part == "test"}
        assert {row["filename"] for row in rows if row["model"] == name} == test
        assert metrics_of(tmp_path)[name]["gps"]["n"] == len(test) >= 5


def evaluate_quickly(data, checkpoints, output):
    return quietly(
        evaluator.main, "--data-dir", data, "--checkpoint-dir", checkpoints,
        "--output-dir", output, "--bootstrap", "20",
    )  # fmt: skip


def spoil(file, kind: str) -> None:
    """Put something else in the place of a photo, as happens after a training."""
    whole = file.read_bytes()
    if kind in ("gone", "folder"):
        file.unlink()
        if kind == "folder":
            file.mkdir()
    else:
        file.write_bytes({
            "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
            "nothing": b"", "cut": whole[: len(whole) // 3], "noise": b"\xff\xd8\xff" + whole[9:],
        }[kind])  # fmt: skip


SPOILED = ("text", "nothing", "cut", "noise", "gone", "folder")


@pytest.mark.parametrize("kind", [*SPOILED, "each"])
def test_photos_spoiled_since_the_training_leave_their_answers(trained, tmp_path, kind):
    """Held-out answers stand in the checkpoint: all that is missing are the example pictures."""
    data = tmp_path / "data"
    shutil.copytree(trained.data, data)
    files = sorted(file for file in (data / "images").rglob("*") if file.is_file())
    for number, file in enumerate(files):
        if kind != "each":
            spoil(file, kind)
        elif number % 2:
            spoil(file, SPOILED[number // 2 % len(SPOILED)])
    code, printed = evaluate_quickly(data, trained.checkpoints, tmp_path / "out")
    assert code == 0, printed
    assert metrics_of(tmp_path / "out")["rgb"]["gps"]["n"] == 48
    assert (tmp_path / "out" / "report.html").is_file()
    assert (tmp_path / "out" / "examples.png").is_file() == (kind == "each")


@pytest.mark.parametrize("kind", SPOILED[:4])
def test_finetuned_models_name_the_test_photos_that_are_spoiled(finetuned, tmp_path, kind):
    data = tmp_path / "data"
    shutil.copytree(finetuned[0], data)
    split = read_checkpoint(finetuned[1] / "best_gps_model_rgb.pth")["split"]
    test = [n for n, part in zip(split["names"], split["part"], strict=True) if part == "test"]
    spoil(data / "images" / test[0], kind)
    code, printed = evaluate_quickly(data, finetuned[1], tmp_path / "out")
    assert code == 0 and f"left out: {test[0]}: " in printed, printed
    assert metrics_of(tmp_path / "out")["rgb"]["gps"]["n"] == len(test) - 1


def test_finetuned_models_do_not_read_a_map_of_another_picture(finetuned, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finetuned[0], data)
    split = read_checkpoint(finetuned[1] / "best_gps_model_depth.pth")["split"]
    test = [n for n, part in zip(split["names"], split["part"], strict=True) if part == "test"]
    os.utime(data / "images" / test[1], (1e9, 1e9))
    code, printed = evaluate_quickly(data, finetuned[1], tmp_path / "out")
    assert code == 0 and f"left out: {test[1]}: its depth map was made before" in printed, printed
    metrics = metrics_of(tmp_path / "out")
    assert metrics["rgb"]["gps"]["n"] == metrics["depth"]["gps"]["n"] + 1 == len(test)


def test_finetuned_models_without_one_readable_test_photo_say_so(finetuned, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(finetuned[0], data)
    for file in filter(os.path.isfile, (data / "images").rglob("*")):
        spoil(file, "text")
    code, printed = evaluate_quickly(data, finetuned[1], tmp_path / "out")
    assert code == 2 and "could be read" in printed.splitlines()[-1]


def test_a_table_of_other_photos_is_one_line(trained, tmp_path):
    rows = json.loads((trained.data / "exif_data.json").read_text(encoding="utf-8"))
    rows = [row | {"filename": f"other/{row['filename']}"} for row in rows]
    (tmp_path / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    code, printed = evaluate_quickly(tmp_path, trained.checkpoints, tmp_path / "out")
    assert code == 2 and "holds no photo that" in printed.splitlines()[-1]


@pytest.mark.parametrize(
    "blocked", ["", "metrics.json", "predictions.csv", "map.png", "photos.csv"]
)
def test_outputs_that_cannot_be_written_are_one_line(trained, tmp_path, blocked):
    output = tmp_path / "out"
    if blocked:
        (output / blocked).mkdir(parents=True)
    else:
        output.write_bytes(b"")
    if blocked == "photos.csv":
        photo = strangers(tmp_path / "p", 1)[0]
        code, printed = quietly(
            evaluator.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", output,
            "--photos", photo,
        )  # fmt: skip
    else:
        code, printed = evaluate_quickly(trained.data, trained.checkpoints, output)
    assert code == 2 and str(output / blocked) in printed.splitlines()[-1], printed
    if blocked == "map.png":  # what was worked out before is there
        assert metrics_of(output)["rgb"]["gps"]["n"] == 48


@pytest.mark.parametrize(
    "argument",
    ["--bootstrap=0", "--bootstrap=-5", "--seed=-1", "--turn-certainty=nan", "--turn-certainty=7"],
)
def test_numbers_out_of_range_are_one_line(argument):
    code, printed = quietly(evaluator.main, argument)
    assert code == 2 and printed.count("\n") == 1 and argument.split("=")[0] in printed


# ---------------------------------------------------------------- unknown photos


def strangers(folder, count=3) -> list:
    """Photos without EXIF, stored as they came."""
    rng = np.random.default_rng(9)
    for i in range(count):
        pixels = picture(rng, 0.4 * i, 0.3, 0.5, 13)
        store(folder / f"unknown {i}.jpg", pixels, ORIENTATION_CLASSES[i], None)
    return sorted(folder.iterdir())


PRINTED = re.compile(
    r"^  position     -?\d+\.\d+, -?\d+\.\d+ ± [\d.,]+ k?m \(50 %\), [\d.,]+ k?m \(90 %\).*\n"
    r"  most likely  (-?\d+\.\d+ -?\d+\.\d+ \d+ %(; )?){1,3}\n"
    r"  time         \d\d:\d\d ± \d+ min \(50 %\), \d+ min \(90 %\).*\n"
    r"  altitude     -?\d+ m ± \d+ \(50 %\), \d+ \(90 %\).*\n"
    r"  orientation  (Normal|Rotated|Flipped).* \(\d+%.*\)\n"
    r"  sun          -?\d+° high$",
    re.M,
)


@pytest.mark.parametrize("name", ["rgb", "depth"])
def test_photos_without_exif_get_all_four_answers(trained, tmp_path, name):
    checkpoints = tmp_path / "c"
    shutil.copytree(trained.checkpoints, checkpoints)
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(
            checkpoints / f"best_gps_model_{name}{suffix}", checkpoints / f"best_gps_model{suffix}"
        )
    files = strangers(tmp_path / "new photos")
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", checkpoints, "--output-dir", tmp_path / "out",
        "--precision", "fp32", "--photos", tmp_path / "new photos",
    )  # fmt: skip
    assert code == 0, printed
    assert len(PRINTED.findall(printed)) == 3
    assert "3 photos predicted, 0 left out" in printed
    rows = read_rows(tmp_path / "out" / "photos.csv")
    assert [row["filename"] for row in rows] == [str(file) for file in files]
    for row in rows:
        assert 0 < float(row["radius50_km"]) <= float(row["radius90_km"])
        assert 44 < float(row["latitude"]) < 48
    points = json.loads((tmp_path / "out" / "photos.geojson").read_text(encoding="utf-8"))
    assert [f["geometry"]["type"] for f in points["features"]] == ["Point"] * 3


def test_training_photos_are_recognised(trained, tmp_path):
    """A photo of the gallery, shown again without its EXIF, is found where it was taken."""

    photos, _ = read_photos(trained.data, trained.data / "images")
    chosen = [i for i in range(len(photos)) if photos.orientation[i] == 0][::6]
    for i in chosen:
        with Image.open(photos.files[i]) as image:
            image.save(tmp_path / f"{i:03d}.png")
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", tmp_path / "out",
        "--precision", "fp32", "--turn-certainty", "1", "--photos", tmp_path,
    )  # fmt: skip
    assert code == 0, printed
    rows = read_rows(tmp_path / "out" / "photos.csv")
    km = density.distance_km(
        column(rows, "latitude"), column(rows, "longitude"), photos.lat[chosen], photos.lon[chosen]
    )
    apart = density.distance_km(
        photos.lat[chosen], photos.lon[chosen], *density.geographic_median(photos.lat, photos.lon)
    )
    assert np.median(km) < 0.7 * np.median(apart)


def test_an_unreadable_photo_is_named_and_the_rest_predicted(trained, tmp_path):
    folder = tmp_path / "p"
    good = strangers(folder, 1)[0]
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no photo")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 30)
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", tmp_path / "out",
        "--photos", folder / "broken.jpg", good, folder / "broken.png",
    )  # fmt: skip
    assert code == 1
    assert "broken.jpg: left out" in printed and "broken.png: left out" in printed
    assert "1 photos predicted, 2 left out" in printed
    assert len(PRINTED.findall(printed)) == 1


ODD_NAMES = (b"caf\xe9.jpg", b"\xff\xfe.jpg", b"caf\xe8.jpg", b"\x80" * 60 + b".jpg",
             "née\u0301.jpg".encode(), b"two\nlines.jpg", b"=cmd,\".jpg")  # fmt: skip


def test_names_that_are_no_text_are_predicted_and_written(trained, tmp_path):
    """Named one by one; what a folder holds of that kind is the extractor's to spell."""
    photo = strangers(tmp_path / "p", 1)[0].read_bytes()
    folder = os.fsencode(tmp_path / "odd")
    os.mkdir(folder)
    for name in ODD_NAMES:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(photo)
    files = [os.fsdecode(os.path.join(folder, name)) for name in ODD_NAMES]
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", tmp_path / "out",
        "--photos", *files,
    )  # fmt: skip
    assert code == 0 and f"{len(files)} photos predicted, 0 left out" in printed, printed
    rows = read_rows(tmp_path / "out" / "photos.csv")
    names = {row["filename"] for row in rows}
    assert len(names) == len(files) and any(name.endswith("caf\\xe9.jpg") for name in names)
    points = json.loads((tmp_path / "out" / "photos.geojson").read_text(encoding="utf-8"))
    assert {f["properties"]["filename"] for f in points["features"]} == names


def test_missing_and_empty_paths_end_the_run(trained, tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("missing.jpg", "empty"):
        code, printed = quietly(
            evaluator.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", tmp_path,
            "--photos", tmp_path / path,
        )  # fmt: skip
        assert code == 2 and path in printed and printed.count("\n") == 1


def test_a_finetuned_model_predicts_too(finetuned, tmp_path):
    _, checkpoints = finetuned
    strangers(tmp_path / "p", 1)
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", checkpoints, "--output-dir", tmp_path / "out",
        "--photos", tmp_path / "p",
    )  # fmt: skip
    assert code == 0 and len(PRINTED.findall(printed)) == 1, printed


def test_another_depth_model_than_in_training_is_refused(trained, tmp_path, photo_set):
    checkpoints = tmp_path / "c"
    shutil.copytree(trained.checkpoints, checkpoints)
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(
            checkpoints / f"best_gps_model_depth{suffix}", checkpoints / f"best_gps_model{suffix}"
        )
    weights = torch.load(photo_set.depth_weights, weights_only=True)
    weights["pretrained.cls_token"] += 1
    torch.save(weights, checkpoints / photo_set.depth_weights.name)
    strangers(tmp_path / "p", 1)
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", checkpoints, "--output-dir", tmp_path / "out",
        "--photos", tmp_path / "p",
    )  # fmt: skip
    assert code == 2 and "is not the depth model of the training" in printed


def test_a_stranger_is_turned_upright_first(trained, tmp_path, monkeypatch):
    """With a sure orientation head every stored orientation gives the same answer."""
    rng = np.random.default_rng(4)
    pixels = picture(rng, 0.4, 0.3, 0.5, 13)
    pixels = pixels[:, 24:136]  # a square keeps its size when turned
    for number, name in enumerate(ORIENTATION_CLASSES):
        from geophoto.orientations import store_as

        (tmp_path / "p").mkdir(exist_ok=True)
        Image.fromarray(store_as(pixels, name)).save(tmp_path / "p" / f"{number}.png")
    order = iter(range(6))
    monkeypatch.setattr(
        predictions, "orientation_chances", lambda *a: np.eye(6)[next(order)] * 0.9 + 0.01
    )
    code, printed = quietly(
        evaluator.main, "--checkpoint-dir", trained.checkpoints, "--output-dir", tmp_path / "out",
        "--precision", "fp32", "--photos", *find_photos(tmp_path / "p").values(),
    )  # fmt: skip
    assert code == 0 and printed.count("turned upright first") == 5
    rows = read_rows(tmp_path / "out" / "photos.csv")
    assert [row["orientation"] for row in rows] == list(ORIENTATION_CLASSES)
    for key in ("latitude", "longitude", "altitude_m", "radius90_km"):
        assert column(rows, key) == pytest.approx(column(rows, key)[0], rel=1e-5)
