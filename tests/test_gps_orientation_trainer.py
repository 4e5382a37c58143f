"""Training as a user runs it: frozen, interrupted, refused."""

import datetime
import inspect
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, copy_data, quietly, training_arguments

import gps_orientation_trainer as trainer
from geophoto import baselines, features, frozen
from geophoto.checkpoints import read_checkpoint
from geophoto.photos import read_photos

# ---------------------------------------------------------------- network


def test_unknown_backbone_is_a_user_error(trained, tmp_path):
    arguments = training_arguments(trained.data, tmp_path, "--backbone", "resnet51")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 2 and "resnet51" in printed.splitlines()[-1]


# ---------------------------------------------------------------- frozen, as a user runs it


def held_out_of(checkpoints, name="rgb") -> dict:
    return read_checkpoint(checkpoints / f"best_gps_model_{name}.pth")["held_out"]


def test_every_row_is_accounted_for(trained, photo_set):
    text = trained.printed
    assert "48 photos: 48 with position, 48 with time, 48 with altitude" in text
    assert "left out, unreadable: 1; left out, no label: 3; left out, no depth map: 1" in text
    assert len(list(filter(os.path.isfile, photo_set.images.rglob("*")))) == 48 + 1 + 3 + 1
    assert "warning: below 100 photos" in text
    assert "groups: 24 (within 1000 m or one burst" in text
    for name in ("rgb", "depth"):
        split = read_checkpoint(trained.checkpoints / f"best_gps_model_{name}.pth")["split"]
        assert len(split["names"]) == len(split["fold"]) == 48
        groups = np.array(split["groups"])
        for group in set(split["groups"]):
            assert len(set(np.array(split["fold"])[groups == group])) == 1
    assert text.splitlines()[-1].startswith("next: python evaluate_gps_model.py --data-dir")


def test_held_out_answers_are_complete(trained):
    for name in ("rgb", "depth"):
        held = held_out_of(trained.checkpoints, name)
        for part in ("answers", "trivial", "knn_errors"):
            for key, column in held[part].items():
                assert len(column) == 48 and np.isfinite(column).all(), (part, key)
        assert held["prior"].sum(axis=1) == pytest.approx(np.ones(48))
        assert len(np.unique(held["trivial"]["lat"])) <= 3  # one per fold


def test_it_learns_what_the_pictures_show(trained):
    """Colour tells the place in these photos; a held-out place is never a training place."""
    checkpoint = read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    photos, _ = read_photos(trained.data, trained.data / "images")
    photos = photos.take(np.array([photos.names.index(n) for n in checkpoint["split"]["names"]]))
    own = baselines.answer_errors(checkpoint["held_out"]["answers"], photos)
    trivial = baselines.answer_errors(checkpoint["held_out"]["trivial"], photos)
    assert np.median(own["gps"]) < 0.9 * np.median(trivial["gps"])
    assert own["altitude"].mean() < 0.9 * trivial["altitude"].mean()
    assert (checkpoint["held_out"]["knn_errors"]["gps"] > 0.2).all()


def test_the_better_model_is_copied(trained):
    scores = {
        name: json.loads((trained.checkpoints / f"best_gps_model_{name}.json").read_text())
        for name in ("rgb", "depth")
    }
    better = min(scores, key=lambda name: scores[name]["metrics"]["score"])
    for suffix in (".pth", ".private.pth", ".json"):
        chosen = (trained.checkpoints / f"best_gps_model_{better}{suffix}").read_bytes()
        assert (trained.checkpoints / f"best_gps_model{suffix}").read_bytes() == chosen


def test_metrics_of_every_epoch_are_written(trained):
    rows = np.genfromtxt(
        trained.checkpoints / "metrics.csv", delimiter=",", names=True, dtype=None, encoding="utf-8"
    )
    for name in ("rgb", "depth"):
        for fold in (1, 2, 3):
            of_fold = rows[(rows["inputs"] == name) & (rows["fold"] == fold)]
            others = set(of_fold["left_out"].tolist())
            assert others == {1, 2, 3} - {fold}  # choices are made on every other fold in turn
            for other in others:
                epochs = of_fold[of_fold["left_out"] == other]["epoch"]
                assert epochs.tolist() == list(range(len(epochs))) and len(epochs) > 1


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of a finished training that a test may change."""
    shutil.copytree(trained.data, tmp_path / "data")
    shutil.copytree(trained.checkpoints, tmp_path / "checkpoints")
    return tmp_path / "data", tmp_path / "checkpoints"


def record_folds(monkeypatch) -> list[int]:
    """The list that every fold trained from now on will enter."""
    folds, original = [], frozen.train_fold
    place = list(inspect.signature(original).parameters).index("fold")

    def recorded(*arguments):
        folds.append(arguments[place])
        return original(*arguments)

    monkeypatch.setattr(frozen, "train_fold", recorded)
    return folds


def test_a_second_run_finds_everything_done(finished, monkeypatch):
    data, checkpoints = finished
    before = {p.name: p.read_bytes() for p in checkpoints.iterdir()}

    def never(*arguments):
        raise AssertionError("done again")

    monkeypatch.setattr(features, "picture_inputs", never)
    monkeypatch.setattr(frozen, "train_fold", never)
    code, printed = quietly(trainer.main, *training_arguments(data, checkpoints))
    assert code == 0 and printed.count("is up to date") == 2
    assert {p.name: p.read_bytes() for p in checkpoints.iterdir()} == before


def test_other_settings_train_again_on_the_cached_features(finished, monkeypatch):
    data, checkpoints = finished
    before = held_out_of(checkpoints)["answers"]["lat"].copy()
    monkeypatch.setattr(features, "picture_inputs", None)  # the features do not depend on it
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--split", "random")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "belongs to other photos or settings" in printed
    assert (held_out_of(checkpoints)["answers"]["lat"] != before).any()


def test_overwrite_trains_again_with_the_same_result(finished, monkeypatch):
    data, checkpoints = finished
    folds = record_folds(monkeypatch)
    before = held_out_of(checkpoints)
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--overwrite")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and folds == [0, 1, 2], printed
    for key, column in held_out_of(checkpoints)["answers"].items():
        assert column == pytest.approx(before["answers"][key], abs=1e-9)


SLOW_FEATURES = """
import sys, time
import torch
import gps_orientation_trainer as trainer
from geophoto import features
torch.set_num_threads(1)
features.CACHE_ROWS = 4
original, seen = features.cached_rgb.__globals__["picture_inputs"], []
def slow(*arguments):
    seen.append(1)
    if len(seen) > 20:
        print("features\\n", end="", flush=True)  # one write: several threads come here
        time.sleep(600)
    return original(*arguments)
features.picture_inputs = slow
trainer.main(sys.argv[1:])
"""
SLOW_FOLDS = """
import inspect, sys, time
import torch
import gps_orientation_trainer as trainer
from geophoto import frozen
torch.set_num_threads(1)
original = frozen.train_fold
place = list(inspect.signature(original).parameters).index("fold")
def slow(*arguments):
    if arguments[place] == 1:
        print("folds", flush=True)
        time.sleep(600)
    return original(*arguments)
frozen.train_fold = slow
trainer.main(sys.argv[1:])
"""


def kill_at(script: str, line: bytes, arguments: list[str]) -> None:
    """Start `script`, wait until it prints `line`, and kill it as `kill -9` does."""
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=REPOSITORY,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    printed = b""
    for found in process.stdout:
        printed += found
        if found.strip() == line:
            break
    else:
        raise AssertionError(f"ended before {line}: {printed.decode()}")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_a_killed_training_redoes_nothing(photo_set, tmp_path, trained, monkeypatch):
    data, checkpoints = copy_data(photo_set, tmp_path), tmp_path / "checkpoints"
    arguments = training_arguments(data, checkpoints, "--inputs", "both")
    kill_at(SLOW_FEATURES, b"features", arguments)
    (index,) = data.glob("cache/*/rgb/index.jsonl")
    kept = index.read_text(encoding="utf-8").splitlines()
    assert 0 < len(kept) < 48

    kill_at(SLOW_FOLDS, b"folds", arguments)  # finishes the features, then fold 1 of RGB
    lines = index.read_text(encoding="utf-8").splitlines()
    assert lines[: len(kept)] == kept and len(lines) == len(set(lines)) == 48
    state = torch.load(checkpoints / "last_rgb.pth", weights_only=True)
    assert list(state["folds"]) == [0]
    assert not (checkpoints / "best_gps_model_rgb.pth").exists()

    folds, pictures = record_folds(monkeypatch), []
    monkeypatch.setattr(features, "picture_inputs", lambda *a: pictures.append(a))
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    assert folds == [1, 2, 0, 1, 2] and not pictures
    assert "going on from" in printed
    for name in ("rgb", "depth"):
        straight = held_out_of(trained.checkpoints, name)["answers"]
        for key, column in held_out_of(checkpoints, name)["answers"].items():
            assert column == pytest.approx(straight[key], abs=1e-6), key


def training_positions_in(path, photos) -> int:
    """How many training positions stand, to about a metre, in any array of a checkpoint."""
    content = torch.load(path, weights_only=True)
    found = set()

    def search(value):
        if isinstance(value, torch.Tensor):
            numbers = value.double().flatten().tolist()
        elif isinstance(value, dict):
            for part in value.values():
                search(part)
            return
        elif isinstance(value, list | tuple):
            for part in value:
                search(part)
            return
        else:
            numbers = [value] if isinstance(value, float) else []
        for number in numbers:
            if math.isfinite(number):
                found.add(round(number, 5))

    search({k: v for k, v in content.items() if k != "model"})
    pairs = zip(photos.lat, photos.lon, strict=True)
    return sum(round(a, 5) in found and round(b, 5) in found for a, b in pairs)


def test_without_gallery_no_training_position_is_stored(finished):
    data, checkpoints = finished
    photos, _ = read_photos(data, data / "images")
    assert training_positions_in(checkpoints / "best_gps_model_rgb.pth", photos) > 40
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--no-gallery")
    assert quietly(trainer.main, *arguments)[0] == 0
    path = checkpoints / "best_gps_model_rgb.pth"
    assert read_checkpoint(path)["gallery"] is None
    assert training_positions_in(path, photos) == 0


# ---------------------------------------------------------------- what a user can get wrong


def shorten_table(data, keep) -> None:
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    rows = [row for number, row in enumerate(rows) if keep(number, row)]
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")


@pytest.mark.parametrize("inputs", ["rgb", "both"])
@pytest.mark.parametrize("count", [0, 9])
def test_fewer_than_ten_photos_are_refused(photo_set, tmp_path, capfd, inputs, count):
    data = copy_data(photo_set, tmp_path)
    placed = [n for n, label in photo_set.truth.items() if label][:count]
    shorten_table(data, lambda _, row: row["filename"] in placed)
    with pytest.raises(SystemExit) as end:
        trainer.main(training_arguments(data, tmp_path / "checkpoints", "--inputs", inputs))
    message = capfd.readouterr().err.strip()
    assert end.value.code == 2 and "\n" not in message
    assert f"{count} photos with a position; at least 10 are needed" in message


def test_ten_photos_are_enough(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    placed = [n for n, label in photo_set.truth.items() if label][::5]
    assert len(placed) == 10
    shorten_table(data, lambda _, row: row["filename"] in placed)
    arguments = training_arguments(data, tmp_path / "checkpoints", "--inputs", "rgb")
    code, printed = quietly(trainer.main, *arguments, "--epochs", "3")
    assert code == 0 and "10 photos" in printed, printed


def test_missing_depth_maps_name_the_command(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    shutil.rmtree(data / "depths")
    arguments = training_arguments(data, tmp_path / "checkpoints")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 2 and "python depth_map_generator.py" in printed.splitlines()[-1]
    assert "--inputs rgb" in printed.splitlines()[-1]


def small_set(photo_set, tmp_path, count: int) -> tuple:
    """So many labelled photos with depth maps; returns the data folder and their map files."""
    data = copy_data(photo_set, tmp_path)
    placed = [n for n, label in photo_set.truth.items() if label][: 2 * count : 2]
    shorten_table(data, lambda _, row: row["filename"] in placed)
    return data, [data / "depths" / f"{name}.npy" for name in placed]


@pytest.mark.parametrize("inputs", ["both", "depth"])
def test_a_photo_without_a_map_is_left_out_by_name(photo_set, tmp_path, inputs):
    """One of fifteen, of which another run of the depth stage would make no map either."""
    data, files = small_set(photo_set, tmp_path, 15)
    files[4].unlink()
    arguments = training_arguments(data, tmp_path / "c", "--inputs", inputs, "--epochs", "2")
    code, printed = quietly(trainer.main, *arguments)
    lost = files[4].relative_to(data / "depths").as_posix().removesuffix(".npy")
    assert code == 0 and f"left out: {lost}: no depth map\n" in printed, printed
    assert "left out, no depth map: 1" in printed
    split = read_checkpoint(tmp_path / "c" / "best_gps_model_depth.pth")["split"]
    assert split["left_out"] == {lost: "no depth map"} and len(split["names"]) == 14


@pytest.mark.parametrize(
    "missing, goes_on", [(1, True), (3, True), (7, True), (8, False), (14, False), (15, False)]
)
def test_training_stops_when_most_maps_are_missing(photo_set, tmp_path, missing, goes_on):
    data, files = small_set(photo_set, tmp_path, 15)
    for file in files[:missing]:
        file.unlink()
    photos, _ = read_photos(data, data / "images")
    about = {"sha256": "of the model"}
    if not goes_on:
        with pytest.raises(SystemExit) as end:
            trainer.leave_unmapped_out(photos, data, about, data / "images")
        assert end.value.code == 2
        return
    kept, unmapped = trainer.leave_unmapped_out(photos, data, about, data / "images")
    assert len(unmapped) == missing and kept.names == photos.names[missing:]
    assert list(unmapped) == photos.names[:missing]


def edit_keeping_size_and_time(file) -> None:
    about, whole = file.stat(), bytearray(file.read_bytes())
    whole[-200] ^= 1
    file.write_bytes(whole)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def test_a_map_of_another_picture_is_left_out_by_name(photo_set, tmp_path):
    """Photos edited, touched, turned or restored since the depth stage; chmod is no edit."""
    data, files = small_set(photo_set, tmp_path, 16)
    names = [file.relative_to(data / "depths").as_posix().removesuffix(".npy") for file in files]
    edit_keeping_size_and_time(data / "images" / names[0])
    os.utime(data / "images" / names[1], (1e9, 1e9))
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        row["orientation_tag"] = 3 if row["filename"] == names[2] else row["orientation_tag"]
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    shutil.copy(data / "images" / names[4], data / "images" / names[3])
    (data / "images" / names[5]).chmod(0o600)
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "depth", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    for name in names[:4]:
        assert f"left out: {name}: its depth map was made before the photo" in printed
    assert "12 photos: " in printed and "before the photo was changed: 4" in printed


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_a_model_of_other_pictures_is_not_up_to_date(photo_set, tmp_path, mode):
    """The table says the same of a photo whose pixels alone were edited."""
    data, files = small_set(photo_set, tmp_path, 24)
    more = ["--mode", mode, "--inputs", "rgb", "--epochs", "1", "--image-size", "64"]
    arguments = training_arguments(data, tmp_path / "c", *more)
    assert quietly(trainer.main, *arguments)[0] == 0
    assert "is up to date" in quietly(trainer.main, *arguments)[1]
    photo = data / "images" / files[3].relative_to(data / "depths").as_posix().removesuffix(".npy")
    photo.chmod(0o600)
    assert "is up to date" in quietly(trainer.main, *arguments)[1]
    edit_keeping_size_and_time(photo)
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "is up to date" not in printed
    assert "belongs to other photos or settings" in printed


ONE_PLACE = {
    "one flight": (lambda i: 20 * i, "stretch of a single burst"),
    "one shot a minute": (lambda i: 55 * i, "stretch of a single burst"),
    "a fixed camera": (lambda i: 86400 * (i // 3) + 600 * (i % 3), "of one day"),
    "three outings": (lambda i: 5 * 3600 * (i // 4) + 60 * (i % 4), "hours apart"),
}


@pytest.mark.parametrize("kind", ONE_PLACE)
def test_photos_of_one_place_are_trained_on_in_parts_of_time(photo_set, tmp_path, kind):
    """Whatever was taken at one place alone has groups, and no radius of a few micrometres."""
    data, _ = small_set(photo_set, tmp_path, 16)
    when, told = ONE_PLACE[kind]
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for i, row in enumerate(rows):
        moment = datetime.datetime(2024, 6, 1, 0, 5) + datetime.timedelta(seconds=when(i))
        row |= {"gps_latitude": 46.0, "gps_longitude": 7.0, "datetime": moment.isoformat(),
                "datetime_utc": f"{moment.isoformat()}Z", "datetime_at_place": None}  # fmt: skip
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and told in printed, printed
    split = read_checkpoint(tmp_path / "c" / "best_gps_model_rgb.pth")["split"]
    order = np.argsort([when(i) for i in range(16)])
    folds, groups = (np.array(split[name])[order] for name in ("fold", "groups"))
    assert len(set(split["groups"])) >= 3 and len(set(split["fold"])) == 3
    for group in set(groups.tolist()):  # whole, and without a hole
        rows_of = np.flatnonzero(groups == group)
        assert len(set(folds[rows_of])) == 1 and np.ptp(rows_of) == len(rows_of) - 1
    held = held_out_of(tmp_path / "c")["answers"]
    assert (held["radius50_km"] >= 1e-3).all() and (held["radius90_km"] >= 1e-3).all()


def test_one_place_without_times_says_that_its_split_flatters(photo_set, tmp_path):
    data, _ = small_set(photo_set, tmp_path, 16)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        row |= {"gps_latitude": 46.0, "gps_longitude": 7.0, "datetime": None}
        row |= {"datetime_utc": None, "datetime_at_place": None}
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "groups: 16 (each photo its own: neither place nor time" in printed


def test_many_photos_left_out_are_not_all_printed(capsys):
    trainer.name_left_out({f"{i}.jpg": "no depth map" for i in range(250)})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == trainer.MOST_NAMED + 1 and "150 more" in lines[-1]


def test_missing_table_names_the_command(tmp_path):
    code, printed = quietly(trainer.main, *training_arguments(tmp_path, tmp_path / "checkpoints"))
    assert code == 2 and "python exif_extractor.py" in printed and printed.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [["--folds", "2"], ["--image-size", "0"], ["--epochs", "0"], ["--inputs", "rgbd"]],
)
def test_impossible_settings_are_refused(arguments):
    assert quietly(trainer.main, *arguments)[0] == 2


@pytest.mark.parametrize(
    "argument",
    ["--seed=-1", "--seed=99999999999999999999", "--batch-size=0", "--folds=1", "--patience=-3",
     "--learning-rate=nan", "--learning-rate=-1", "--weight-decay=inf", "--head-rate=-1",
     "--cache-gb=nan", "--ema-decay=1", "--freeze-stages=-1", "--micro-batch=0"],
)  # fmt: skip
def test_numbers_out_of_range_are_one_line(argument):
    code, printed = quietly(trainer.main, argument)
    assert code == 2 and printed.count("\n") == 1 and argument.split("=")[0] in printed


@pytest.mark.parametrize("place", ["checkpoints", "cache", "last", "copy"])
def test_outputs_that_cannot_be_written_are_one_line(photo_set, tmp_path, place):
    """A file or a folder lies where training has to write."""
    data, _ = small_set(photo_set, tmp_path, 12)
    checkpoints = tmp_path / "c"
    blocked = {
        "checkpoints": checkpoints, "cache": data / "cache",
        "last": checkpoints / "last_rgb.pth", "copy": checkpoints / "best_gps_model.pth",
    }[place]  # fmt: skip
    blocked.parent.mkdir(exist_ok=True)
    if place in ("checkpoints", "cache"):
        shutil.rmtree(blocked, ignore_errors=True)
        blocked.write_bytes(b"")
    else:
        blocked.mkdir()
    arguments = training_arguments(data, checkpoints, "--inputs", "rgb", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 2 and str(blocked) in printed.splitlines()[-1], printed
    assert ("fold 3/3" in printed) == (place == "copy")
    assert (checkpoints / "best_gps_model_rgb.pth").exists() == (place == "copy")


@pytest.mark.parametrize("mode", ["frozen", "finetune"])
def test_maps_that_are_none_are_left_out_by_name(photo_set, tmp_path, mode):
    data, files = small_set(photo_set, tmp_path, 24)
    files[1].write_bytes(b"")
    np.save(files[5], np.zeros((0, 0), np.float16))
    np.save(files[8], np.full((4, 4), np.nan, np.float16))
    files[11].write_text("version https://git-lfs.github.com/spec/v1")
    more = ["--mode", mode, "--inputs", "depth", "--epochs", "1", "--image-size", "64"]
    code, printed = quietly(trainer.main, *training_arguments(data, tmp_path / "c", *more))
    assert code == 0, printed
    split = read_checkpoint(tmp_path / "c" / "best_gps_model_depth.pth")["split"]
    part = dict(zip(split["names"], split.get("part", []), strict=False))
    for file in (files[1], files[5], files[8], files[11]):
        name = file.relative_to(data / "depths").as_posix().removesuffix(".npy")
        if part.get(name) != "test":  # fine-tuning has not read those
            assert f"left out: {name}: " in printed, name


def test_names_as_long_as_the_disk_allows_are_trained_on(photo_set, tmp_path):
    """252 bytes and more leave no room for a depth map, and do not need one for RGB."""
    data, _ = small_set(photo_set, tmp_path, 16)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    long = ["x" * 247 + ".jpg", "x" * 248 + ".jpg", "山" * 83 + ".jpeg", "é" * 125 + ".jpg"]
    for row, name in zip(rows, long, strict=False):
        (data / "images" / row["filename"]).rename(data / "images" / name)
        row["filename"] = name
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "16 photos: 16 with position" in printed, printed
    code, printed = quietly(trainer.main, *arguments, "--inputs", "both")
    assert code == 0 and printed.count("no depth map\n") == 4, printed


def test_a_photo_that_cannot_be_read_is_named_and_left_out(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    code, printed = quietly(
        trainer.main, *training_arguments(data, tmp_path / "c", "--inputs", "rgb")
    )
    assert code == 0 and "left out: day_0/cut.jpg" in printed
    checkpoint = read_checkpoint(tmp_path / "c" / "best_gps_model_rgb.pth")
    assert list(checkpoint["split"]["left_out"]) == ["day_0/cut.jpg"]
    assert len(checkpoint["split"]["names"]) == 48


def test_photos_that_are_gone_or_doubted_are_left_out(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    (data / "images/day_0/IMG_000.jpg").unlink()
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        if row["filename"] == "day_1/IMG_120.jpg":
            row["warnings"] = "gps_zero"
        if row["filename"] == "day_1/IMG_121.JPG":
            row["orientation_tag"], row["warnings"] = None, "no_size;altitude_doubtful"
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    photos, left_out = read_photos(data, data / "images")
    assert left_out == {"unreadable": 1, "file is gone": 1, "no label": 3}
    assert "day_0/IMG_000.jpg" not in photos.names
    assert np.isnan(photos.lat[photos.names.index("day_1/IMG_120.jpg")])
    row = photos.names.index("day_1/IMG_121.JPG")
    assert photos.orientation[row] == -1
    assert np.isnan(photos.altitude[row]) and np.isfinite(photos.lat[row])
