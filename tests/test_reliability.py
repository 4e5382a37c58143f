"""Odd sets of photos, photos that change below a run, two runs at once, same bytes, any backbone.

docs/reliability.md lists what is measured here. A run ends with an answer or one line.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, copy_data, network_inputs, quietly, training_arguments

import depth_map_generator
import evaluate_gps_model
import exif_extractor
import gps_orientation_trainer as trainer
from geophoto import archives, features, thumbnails
from geophoto.checkpoints import read_checkpoint
from geophoto.network import GPSPredictionNet

PLACE = ("gps_latitude", "gps_longitude")
TIME = ("datetime", "datetime_utc", "datetime_at_place")


def rows_of(data) -> list[dict]:
    return json.loads((data / "exif_data.json").read_text(encoding="utf-8"))


def without(rows, *names):
    return [{**row, **dict.fromkeys(names)} for row in rows]


def moved(rows, lat, lon):
    """The rows with their spread around another place; longitudes past 180° come in at -180°."""
    for row in rows:
        if row["gps_latitude"] is not None:
            east = lon + (row["gps_longitude"] - 7.05) * 5
            row["gps_longitude"] = (east + 180) % 360 - 180
            row["gps_latitude"] = max(min(lat + row["gps_latitude"] - 46.03, 90.0), -90.0)
    return rows


def one_second(rows):
    return [{**row, **dict.fromkeys(TIME, "2024-06-01T10:00:00"),
             "datetime_utc": "2024-06-01T08:00:00Z", "camera_model": "One"}
            for row in rows]  # fmt: skip


ODD = {  # what is made of the rows
    "one place": (lambda rows: [{**r, **dict(zip(PLACE, (46.0, 7.0), strict=True))} for r in rows]),
    "date line": (lambda rows: moved(rows, -17.0, 180.0)),
    "pole": (lambda rows: moved(rows, 90.0, 0.0)),
    "position alone": (lambda rows: without(rows, *TIME, "gps_altitude", "orientation")),
    "orientation alone": (lambda rows: without(rows, *PLACE, *TIME, "gps_altitude")),
    "times invalid": (lambda rows: [{**r, **dict.fromkeys(TIME, "9999-99-99T99")} for r in rows]),
    "one camera, one second": one_second,
    "10 photos": (lambda rows: [r for r in rows if r["gps_latitude"] is not None][:10]),
}
QUICK = ("date line",)
REFUSED = {  # with this in the line; all others get an answer
    "one camera, one second": "1 groups cannot fill 3 folds",
    "orientation alone": "position",
}


@pytest.mark.parametrize(
    "kind", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in ODD]
)
def test_odd_sets_end_with_an_answer_or_one_line(photo_set, tmp_path, kind):
    data, folder = copy_data(photo_set, tmp_path), tmp_path / "c"
    rows = ODD[kind](rows_of(data))
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    arguments = training_arguments(data, folder, "--inputs", "rgb", "--epochs", "2")
    code, printed = quietly(trainer.main, *arguments)
    assert "Traceback" not in printed
    assert code == (2 if kind in REFUSED else 0), printed
    if code:
        assert REFUSED[kind] in printed.splitlines()[-1]
        return
    held = read_checkpoint(folder / "best_gps_model_rgb.pth")["held_out"]["answers"]
    lat, lon = np.asarray(held["lat"]), np.asarray(held["lon"])
    assert np.isfinite(lat).all() and (np.abs(lat) <= 90).all() and (np.abs(lon) <= 180).all()
    if kind == "date line":  # answers lie there, not half around the Earth
        assert (np.abs(lon) > 170).all()
    if kind == "pole":
        assert (lat > 85).all()
    if kind == "one place":
        assert np.allclose(lat, 46, atol=0.01) and np.allclose(lon, 7, atol=0.01)
    folders = ["--data-dir", data, "--checkpoint-dir", folder, "--output-dir", tmp_path / "e"]
    code, printed = quietly(evaluate_gps_model.main, *folders, "--bootstrap", 20)
    assert code == 0 and "Traceback" not in printed, printed
    assert (tmp_path / "e" / "report.html").is_file()


@pytest.mark.slow
def test_identical_photos_end_with_an_answer(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    names = [row["filename"] for row in rows_of(data) if row["gps_latitude"] is not None]
    one = (data / "images" / names[0]).read_bytes()
    for name in names:
        (data / "images" / name).write_bytes(one)
    assert quietly(exif_extractor.main, "--data-dir", data, "--workers", 1)[0] == 0
    code, printed = quietly(
        trainer.main, *training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "2")
    )
    assert code in (0, 2) and "Traceback" not in printed, printed


# ---------------------------------------------------------------- below a run


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_photo_that_goes_while_features_are_made_is_left_out(
    photo_set, tmp_path, monkeypatch, how
):
    data, opened = copy_data(photo_set, tmp_path), []
    victim = data / "images" / "day_1" / "IMG_200.jpg"
    real = features.open_upright

    def open_upright(file, *arguments, **options):
        if not opened:
            if how == "deleted":
                victim.unlink()
            else:
                victim.write_bytes(b"\xff\xd8 no photo any more")
        opened.append(file)
        return real(file, *arguments, **options)

    monkeypatch.setattr(features, "open_upright", open_upright)
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "left out: day_1/IMG_200.jpg" in printed, printed


HOOKS = {  # what a stage calls after it has listed its photos and before it reads them
    "table": (exif_extractor, "_blocks"),
    "depth": (depth_map_generator, "open_upright"),
    "training": (features, "open_upright"),
    "report": (thumbnails, "open_upright"),
}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["deleted", "no photo", "another photo"])
@pytest.mark.parametrize("stage", HOOKS)
def test_a_photo_that_changes_below_a_stage_ends_nothing(
    photo_set, trained, tmp_path, monkeypatch, stage, how
):
    data, room, name = copy_data(photo_set, tmp_path), *HOOKS[stage]
    victim, other = data / "images/day_1/IMG_200.jpg", data / "images/day_0/IMG_000.jpg"
    real, called = getattr(room, name), []

    def hook(*arguments, **options):
        if not called:
            if how == "deleted":
                victim.unlink()
            else:
                victim.write_bytes(
                    other.read_bytes() if how == "another photo" else b"\xff\xd8 none any more"
                )
        called.append(1)
        return real(*arguments, **options)

    monkeypatch.setattr(room, name, hook)
    main, more, usual = {
        "table": (exif_extractor.main, ["--overwrite", "--workers", 1], 0),
        "depth": (depth_map_generator.main, ["--overwrite", "--input-size", 56, "--depth-model",
                                             photo_set.depth_weights], 1),
        "training": (trainer.main, training_arguments(data, tmp_path / "c", "--inputs", "rgb",
                                                      "--epochs", "1")[2:], 0),
        "report": (evaluate_gps_model.main, ["--checkpoint-dir", trained.checkpoints,
                                             "--output-dir", tmp_path / "e", "--bootstrap", 20], 0),
    }[stage]  # fmt: skip
    code, printed = quietly(main, "--data-dir", data, *more)
    assert called and code == usual and "Traceback" not in printed, printed
    if stage == "table":
        (row,) = [r for r in rows_of(data) if r["filename"] == "day_1/IMG_200.jpg"]
        assert (row["status"] == "ok") == (how == "another photo")
        return
    if stage in ("depth", "training") and how != "another photo":
        assert "day_1/IMG_200.jpg" in printed
    monkeypatch.setattr(room, name, real)
    if stage == "training" and how == "another photo":  # the same command sees that it changed
        code, printed = quietly(main, "--data-dir", data, *more)
        assert code == 0 and "is up to date" not in printed


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["table", "depth", "training", "report"])
def test_two_runs_at_once_leave_what_one_leaves(photo_set, tmp_path, stage):
    data, folder = copy_data(photo_set, tmp_path), tmp_path / "c"
    commands = {
        "table": ["exif_extractor.py", "--data-dir", data, "--overwrite"],
        "depth": ["depth_map_generator.py", "--data-dir", data, "--input-size", "56",
                  "--depth-model", photo_set.depth_weights, "--overwrite"],
        "training": ["gps_orientation_trainer.py",
                     *training_arguments(data, folder, "--inputs", "rgb", "--epochs", "2")],
        "report": ["evaluate_gps_model.py", "--data-dir", data, "--checkpoint-dir", folder,
                   "--output-dir", tmp_path / "e", "--bootstrap", "20"],
    }  # fmt: skip
    if stage == "report":
        assert quietly(trainer.main, *commands["training"][1:])[0] == 0
    before = (data / "exif_data.json").read_bytes()
    command = [sys.executable, *map(str, commands[stage])]
    runs = [subprocess.Popen(command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT) for _ in range(2)]  # fmt: skip
    printed = [run.communicate(timeout=300)[0] for run in runs]
    ends = [run.returncode for run in runs]
    assert all("Traceback" not in text for text in printed), printed
    usual = 1 if stage == "depth" else 0  # cut.jpg has a row and no whole picture
    assert usual in ends and set(ends) <= {usual, 2}, printed
    assert stage != "table" or (data / "exif_data.json").read_bytes() == before
    if stage in ("training", "report"):
        read_checkpoint(folder / "best_gps_model_rgb.pth")


# ---------------------------------------------------------------- kills

MODES = {
    "frozen": ["--learning-rate", "3e-2", "--epochs", "20", "--patience", "4"],
    "finetune": ["--mode", "finetune", "--image-size", "64", "--batch-size", "16", "--epochs", "4"],
}


def what_training_left(folder) -> dict[str, bytes]:
    """Models and figures of every epoch, without the column that tells how long it took."""
    files = {name: (folder / name).read_bytes()
             for name in ("best_gps_model_rgb.pth", "best_gps_model_rgb.private.pth",
                          "best_gps_model_rgb.json")}  # fmt: skip
    lines = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()
    return files | {"metrics": "\n".join(line.rpartition(",")[0] for line in lines).encode()}


def train_and_die(arguments, after: float | None, place: tuple[str, int] | None) -> bool:
    """Train in a forked process that is killed after so many seconds, or within a save: at the
    n-th `fsync`, `replace` or its end, or write. Returns whether it died of that."""
    child = os.fork()
    if not child:
        try:
            if place is not None:
                die_at(*place)
            silence = os.open(os.devnull, os.O_WRONLY)
            os.dup2(silence, 1)
            os.dup2(silence, 2)
            os._exit(trainer.main(arguments))
        except BaseException:
            os._exit(3)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def die_at(where: str, count: int) -> None:
    """Let this process be killed at the count-th call of a step of saving."""
    left = [count]

    def dying(real, afterwards=False):
        def call(*arguments):
            left[0] -= 1
            if left[0] or afterwards:
                done = real(*arguments)
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        return call

    if where == "write":
        archives.Sealing.pass_on = dying(archives.Sealing.pass_on)
    elif where == "replaced":
        os.replace = dying(os.replace, afterwards=True)
    else:
        setattr(os, where, dying(getattr(os, where)))


@pytest.mark.parametrize(
    ("mode", "kills"),
    [
        ("frozen", 4),
        pytest.param("frozen", 50, marks=pytest.mark.slow),
        pytest.param("finetune", 20, marks=pytest.mark.slow),
    ],
)
def test_killed_trainings_end_with_the_same_bytes(photo_set, tmp_path, mode, kills):
    """kill -9 at random moments, a half of them inside a save; five at most in one training."""
    rng, done, inside = np.random.default_rng(1), 0, 0

    root = tmp_path / "set"  # always the same: what cannot be read is named with its path
    arguments = training_arguments(root / "data", root / "c", "--inputs", "rgb", *MODES[mode])
    copy_data(photo_set, root)
    began = time.monotonic()
    assert not train_and_die(arguments, None, None)
    seconds = time.monotonic() - began
    wanted = what_training_left(root / "c")
    while done < kills:
        shutil.rmtree(root)
        copy_data(photo_set, root)
        for _ in range(min(5, kills - done)):
            place, after = None, None
            if inside <= done // 2:
                where = ("fsync", "replace", "replaced", "write")[int(rng.integers(4))]
                place = where, int(rng.integers(1, 300 if where == "write" else 8))
            else:
                after = float(rng.uniform(0, seconds))
            if not train_and_die(arguments, after, place):
                break  # it was finished before
            done, inside = done + 1, inside + (place is not None)
        train_and_die(arguments, None, None)
        found = what_training_left(root / "c")
        assert [name for name in wanted if found[name] != wanted[name]] == []
    assert done == kills and inside >= kills / 3


# ---------------------------------------------------------------- same bytes

TIMED = re.compile(  # files that note times
    r"index\.jsonl$|contents\.jsonl$|\.exif_data\.(stamps|state\.json)$|last_\w+\.pth$"
    r"|metrics\.csv$"
)


def all_bytes(photo_set, root, threads: int) -> dict[str, bytes]:
    """What the four scripts write, each as a process with `threads` threads."""
    data, folder = root / "data", root / "c"
    copy_data(photo_set, root)
    for file in data.glob("depths/**/*.npy"):
        file.unlink()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    for command in (
        ["exif_extractor.py", "--data-dir", "data", "--overwrite", "--geojson"],
        ["depth_map_generator.py", "--data-dir", "data", "--input-size", "56", "--overwrite",
         "--depth-model", photo_set.depth_weights],
        ["gps_orientation_trainer.py", *training_arguments("data", "c", "--epochs", "3")],
        ["evaluate_gps_model.py", "--data-dir", "data", "--checkpoint-dir", "c",
         "--output-dir", "e", "--bootstrap", "50"],
    ):  # fmt: skip
        script, *more = map(str, command)
        done = subprocess.run([sys.executable, REPOSITORY / script, *more], cwd=root, timeout=300,
                              capture_output=True, text=True, env=environment)  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
    files = [file for part in (data, folder, root / "e") for file in part.rglob("*")]
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in files
            if file.is_file() and "images" not in file.parts}  # fmt: skip


@pytest.fixture(scope="module")
def runs(photo_set, tmp_path_factory) -> dict[int, list[dict[str, bytes]]]:
    """What the four scripts write with one thread and with two, twice each."""
    root = tmp_path_factory.mktemp("same seed")
    return {threads: [all_bytes(photo_set, root / f"{threads} {run}", threads) for run in (1, 2)]
            for threads in (1, 2)}  # fmt: skip


def unlike(one: dict[str, bytes], two: dict[str, bytes]) -> set[str]:
    """Names of the files that differ, but for those that note times: of files, and how long an
    epoch took (`last_*.pth`, a column of metrics.csv)."""
    assert one.keys() == two.keys()
    return {name for name in one if one[name] != two[name] and not TIMED.search(name)}


def untimed(metrics: bytes) -> list[list[str]]:
    return [line.split(",")[:-1] for line in metrics.decode().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_seed_gives_the_same_bytes(runs, threads):
    one, two = runs[threads]
    assert unlike(one, two) == set()
    assert untimed(one["c/metrics.csv"]) == untimed(two["c/metrics.csv"])


OF_TRAINING = re.compile(  # sums of another number of threads are rounded elsewhere
    r"c/best_gps_model\w*\.(json|pth|private\.pth)|e/(report\.html|\w+\.png)"
    r"|e/(metrics\.json|predictions\.(csv|geojson))"
)
BY_RANK = re.compile(r"/risk_area|/risk_coverage/[0-8]$")  # of the photos of narrowest densities


def numbers_of(found, at: str = "") -> dict[str, float]:
    """Every number of a document of JSON by its place."""
    if isinstance(found, dict | list):
        inside = found.items() if isinstance(found, dict) else enumerate(found)
        return {k: v for key, value in inside for k, v in numbers_of(value, f"{at}/{key}").items()}
    return {at: found} if isinstance(found, int | float) else {}


@pytest.mark.slow
def test_the_same_seed_with_more_threads_moves_last_digits_alone(runs):
    """Table, maps, pictures, cached features and cards are the same to the byte; what training
    sums up differs beyond the sixth digit, and so does what follows from it."""
    (one, _), (two, _) = runs[1], runs[2]
    differ = unlike(one, two)
    assert [name for name in differ if not OF_TRAINING.fullmatch(name)] == []
    tables = [pd.read_csv(io.BytesIO(run["e/predictions.csv"])) for run in (one, two)]
    for column in tables[0]:
        left, right = (table[column] for table in tables)
        if column in ("latitude", "longitude"):
            assert np.allclose(left, right, rtol=0, atol=2e-6, equal_nan=True)  # 0.2 m
        elif left.dtype.kind == "f":
            assert np.allclose(left, right, rtol=1e-3, atol=1e-6, equal_nan=True), column
        else:
            assert left.equals(right), column
    figures = [numbers_of(json.loads(run["e/metrics.json"])) for run in (one, two)]
    assert figures[0].keys() == figures[1].keys()
    for place, value in figures[0].items():
        if not BY_RANK.search(place):  # others, where two of nearly one width change places
            assert figures[1][place] == pytest.approx(value, rel=2e-3, abs=1e-6), place
    epochs = [untimed(run["c/metrics.csv"]) for run in (one, two)]
    for left, right in zip(*epochs, strict=True):
        for a, b in zip(left, right, strict=True):
            assert a == b or float(b) == pytest.approx(float(a), rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_the_same_seed_fine_tunes_the_same_bytes(photo_set, tmp_path):
    """With one thread and with two, twice each; the figures of each epoch are compared between."""
    left = {}
    for threads in (1, 2):
        for run in (1, 2):
            root = tmp_path / "set"
            copy_data(photo_set, root)
            arguments = training_arguments("data", "c", "--inputs", "rgb", *MODES["finetune"])
            command = [sys.executable, REPOSITORY / "gps_orientation_trainer.py", *arguments]
            done = subprocess.run(
                command, cwd=root, timeout=600, capture_output=True, text=True,
                env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            left[threads, run] = what_training_left(root / "c")
            shutil.rmtree(root)
        assert left[threads, 1] == left[threads, 2]
    rows = [left[threads, 1]["metrics"].decode().splitlines() for threads in (1, 2)]
    for one, two in zip(*rows, strict=True):
        for a, b in zip(one.split(","), two.split(","), strict=True):
            assert a == b or float(b) == pytest.approx(float(a), rel=1e-3, abs=1e-5)


# ---------------------------------------------------------------- any timm family

FAMILIES = {
    "ResNet": "resnet18",
    "ConvNeXt": "convnext_atto",
    "ViT with registers, DINOv2": "vit_small_patch14_reg4_dinov2",
    "ViT, DINOv3": "vit_small_patch16_dinov3",
    "Swin": "swin_tiny_patch4_window7_224",
    "EfficientNet": "efficientnet_b0",
}


@pytest.mark.parametrize(
    "family",
    [f if f == "ConvNeXt" else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
)
def test_any_family_gives_features_a_grid_and_its_checkpoint(tmp_path, family):
    torch.manual_seed(0)
    network = GPSPredictionNet(FAMILIES[family], True).eval()
    inputs = network_inputs(2, 224)
    with torch.inference_mode():
        pooled, output = network.pooled(inputs), network(inputs)
    assert pooled.shape == (2, sum(network.heads.blocks)) and pooled.isfinite().all()
    assert output["orientation"].shape == (2, 6)
    assert not torch.equal(pooled[0], pooled[1])
    archives.save(tmp_path / "m.pth", {"model": network.state_dict()})
    other = GPSPredictionNet(FAMILIES[family], True).eval()
    other.load_state_dict(archives.load(tmp_path / "m.pth")["model"])
    with torch.inference_mode():
        assert torch.equal(other.pooled(inputs), pooled)
