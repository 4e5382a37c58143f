"""Fine-tuning end to end."""

import json
import os
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import REPOSITORY, copy_data, make_batch, network_inputs, quietly, training_arguments

import gps_orientation_trainer as trainer
from geophoto import devices, finetune, targets, training
from geophoto.checkpoints import read_checkpoint
from geophoto.network import create_network
from geophoto.photos import read_photos

# ---------------------------------------------------------------- fine-tuning


def test_frozen_stages_and_statistics_stay_and_heads_learn_faster():
    network = create_network("test_resnet", True, 0)
    network.fixed_statistics = True
    options = {"freeze_stages": 2, "learning_rate": 1e-4, "head_rate": 7.0}
    backbones, heads = finetune.learning_groups(network, options)
    assert (backbones["lr"], heads["lr"]) == (1e-4, pytest.approx(7e-4))
    frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
    assert any("rgb_branch.conv1" in n for n in frozen)
    assert any("depth_branch" in n for n in frozen) and not any("layer4" in n for n in frozen)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    _, target, normalisation = make_batch(4)
    optimiser = torch.optim.AdamW([backbones, heads])
    network.train()
    training.train_step(network, network_inputs(4), target, normalisation, optimiser,
                       devices.Precision("fp32", "cpu"), 4)  # fmt: skip
    changed = {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}
    assert not changed & frozen and not any("running" in k for k in changed)
    assert any("layer4" in k for k in changed) and "heads.gps.weight" in changed


def test_more_stages_than_there_are_are_refused(capsys):
    network = create_network("test_resnet", False, 0)
    with pytest.raises(SystemExit) as end:
        finetune.learning_groups(
            network, {"freeze_stages": 99, "learning_rate": 1.0, "head_rate": 1.0}
        )
    assert end.value.code == 2 and "has only" in capsys.readouterr().err


def test_cached_pixels_are_the_decoded_ones_and_need_no_photo(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    photos, _ = read_photos(data, data / "images")
    network = create_network("test_resnet", False, 0)
    cache = finetune.pixel_cache(photos, 64, tmp_path / "cache", 1.0)
    plain, cached = (finetune.PhotoSet(photos, 64, network, None, c) for c in (None, cache))
    assert all(torch.equal(v, cached[3][0][k]) for k, v in plain[3][0].items())
    again = finetune.PhotoSet(
        photos, 64, network, None, finetune.pixel_cache(photos, 64, tmp_path / "cache", 1.0)
    )
    again.decode = pytest.fail  # a second run reads what the first one left
    assert torch.equal(again[3][0]["rgb"], plain[3][0]["rgb"])
    assert len(pickle.dumps(cache)) < 1000  # what a spawned worker gets
    assert (pickle.loads(pickle.dumps(cache)).whole[3] == cache.whole[3]).all()
    finetune.pixel_cache(photos, 32, tmp_path / "cache", 1.0)
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 1  # that of the other size is gone


@pytest.mark.parametrize("change", ["edited", "turned", "touched", "grown"])
def test_cached_pixels_are_those_of_the_photos_as_they_are(photo_set, tmp_path, change):
    data = copy_data(photo_set, tmp_path)
    photos, _ = read_photos(data, data / "images")
    first = finetune.pixel_cache(photos, 64, tmp_path / "cache", 1.0).about
    assert finetune.pixel_cache(photos, 64, tmp_path / "cache", 1.0).about == first
    file = photos.files[2]
    about, whole = file.stat(), file.read_bytes()
    if change == "turned":
        photos.tag[2] = 9 - photos.tag[2]
    elif change == "touched":
        os.utime(file, (1e9, 1e9))
    else:
        file.write_bytes(whole[::-1] if change == "edited" else whole + b"!")
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert finetune.pixel_cache(photos, 64, tmp_path / "cache", 1.0).about != first


def test_too_small_a_cache_is_said(photo_set, capsys):
    photos, _ = read_photos(photo_set.data, photo_set.images)
    assert finetune.pixel_cache(photos, 64, photo_set.data / "cache", 0.0, print) is None
    assert "--cache-gb and the disk allow 0.0" in capsys.readouterr().out


def test_a_cache_has_its_room_from_the_start_and_keeps_it(photo_set, tmp_path, monkeypatch):
    """So that a disk that fills later neither kills the process nor empties the cache's place."""
    photos, _ = read_photos(photo_set.data, photo_set.images)
    made = finetune.pixel_cache(photos, 64, tmp_path, 1.0)
    if hasattr(os, "posix_fallocate"):
        for file in made.about[0].glob("*.raw"):
            assert file.stat().st_blocks * 512 >= file.stat().st_size
    full = finetune.shutil.disk_usage(tmp_path)._replace(free=0)
    monkeypatch.setattr(finetune.shutil, "disk_usage", lambda _: full)
    assert finetune.pixel_cache(photos, 64, tmp_path, 1.0).about == made.about
    assert finetune.pixel_cache(photos, 32, tmp_path, 1.0) is None


TOGETHER = """
import sys
sys.path.insert(0, {root!r})
from torch import nn

class Still(nn.Dropout):  # masks differ between processes
    def __init__(self, p=0.0):
        super().__init__(0.0)

nn.Dropout = Still
import gps_orientation_trainer
sys.exit(gps_orientation_trainer.main())
"""


def test_two_processes_train_like_one_with_twice_the_batch(photo_set, tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER.format(root=str(REPOSITORY)), encoding="utf-8")
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29531")
    curves, models = [], []
    for name, start, batch in (("one", (), "8"), ("two", launcher, "4")):
        data, checkpoints = copy_data(photo_set, tmp_path / name), tmp_path / name / "c"
        more = f"--inputs rgb --backbone test_convnext --epochs 3 --batch-size {batch}"
        arguments = finetune_arguments(data, checkpoints, *more.split(), "--precision", "fp32")
        done = subprocess.run(
            [sys.executable, *start, str(script), *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("epoch 3/3") == 1  # one process speaks
        curves.append(pd.read_csv(checkpoints / "metrics.csv"))
        models.append(torch.load(checkpoints / "last_rgb.pth", weights_only=True)["training"])
    for column in [f"loss_{head}" for head in targets.HEADS] + ["score", "median_km"]:
        one, two = (curve[column].to_numpy() for curve in curves)
        assert one == pytest.approx(two, rel=1e-4, nan_ok=True), column
    assert curves[0]["loss_gps"].iloc[-1] != curves[0]["loss_gps"].iloc[1]
    for key, value in models[0]["model"].items():
        torch.testing.assert_close(value, models[1]["model"][key], rtol=1e-3, atol=1e-4)


def test_two_processes_share_frozen_features(photo_set, tmp_path):
    """Each its own part of the cache; the heads that the first trains on them are the same."""
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29532")
    held = []
    for name, start in (("one", ()), ("two", launcher)):
        data, checkpoints = copy_data(photo_set, tmp_path / name), tmp_path / name / "c"
        rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
        lost = next(row["filename"] for row in rows if row["gps_latitude"] is not None)
        (data / "images" / lost).write_bytes(b"\xff\xd8 no photo")
        arguments = training_arguments(data, checkpoints, "--mode", "frozen", "--inputs", "rgb")
        arguments[arguments.index("--epochs") + 1] = "2"
        script = str(REPOSITORY / "gps_orientation_trainer.py")
        done = subprocess.run(
            [sys.executable, *start, script, *map(str, arguments)],
            capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(f"wrote {checkpoints}") == 1  # one process speaks
        assert done.stdout.count(f"left out: {lost}: ") == 1
        assert not list((data / "cache").glob("*/*/part-*"))  # all is in one cache
        (rows,) = (data / "cache").glob("*/rgb/index.jsonl")
        lines = rows.read_text(encoding="utf-8").splitlines()
        assert len(lines) == len(set(lines))
        content = read_checkpoint(checkpoints / "best_gps_model_rgb.pth")
        held.append((sorted(lines), content["held_out"]["answers"], content["model"]))
    assert [json.loads(line)[0] for line in held[0][0]] == [json.loads(x)[0] for x in held[1][0]]
    for part in (1, 2):
        for key, value in held[0][part].items():
            assert np.array_equal(value, held[1][part][key], equal_nan=True), key


def finetune_arguments(data, checkpoints, *more) -> list[str]:
    quick = "--mode finetune --image-size 64 --batch-size 16 --learning-rate 1e-3"
    return training_arguments(data, checkpoints, *quick.split(), *more)


@pytest.fixture(scope="module")
def finetuned(photo_set, tmp_path_factory):
    root = tmp_path_factory.mktemp("finetuned")
    data = copy_data(photo_set, root)
    arguments = finetune_arguments(data, root / "c", "--inputs", "depth", "--epochs", "4")
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0, printed
    return data, root / "c", printed


def test_finetuning_stores_its_split_by_name(finetuned):
    _, checkpoints, printed = finetuned
    split = read_checkpoint(checkpoints / "best_gps_model_depth.pth")["split"]
    parts = np.array(split["part"])
    assert len(parts) == len(split["names"]) == 48
    shares = {part: (parts == part).mean() for part in ("train", "val", "test")}
    assert 0.55 <= shares["train"] <= 0.8 and min(shares.values()) >= 0.1
    for group in set(split["groups"]):
        assert len(set(parts[np.array(split["groups"]) == group])) == 1
    assert "epoch 4/4" in printed


def last_weights(checkpoints) -> dict:
    return torch.load(checkpoints / "last_depth.pth", weights_only=True)["training"]["model"]


def test_finetuning_trains_the_backbones(finetuned):
    _, checkpoints, _ = finetuned
    model = last_weights(checkpoints)  # the best may be those it started from
    fresh = create_network("test_resnet", True, 0).state_dict()
    for branch in ("rgb_branch", "depth_branch"):
        first = next(key for key in fresh if key.startswith(branch) and key.endswith("weight"))
        assert (model[first] != fresh[first]).any()


def test_interrupted_finetuning_ends_the_same(finetuned, photo_set, tmp_path, monkeypatch):
    _, straight, _ = finetuned
    data, checkpoints = copy_data(photo_set, tmp_path), tmp_path / "c"
    arguments = finetune_arguments(data, checkpoints, "--inputs", "depth", "--epochs", "4")

    def interrupt(label, figures):
        if label.startswith("epoch 3"):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trainer, "print_row", interrupt)
        with pytest.raises(KeyboardInterrupt):
            quietly(trainer.main, *arguments)
    code, printed = quietly(trainer.main, *arguments)
    assert code == 0 and "going on from" in printed
    assert "epoch 2/4" not in printed and "epoch 3/4" in printed
    one, two = last_weights(straight), last_weights(checkpoints)
    for key, value in one.items():
        assert torch.allclose(value.float(), two[key].float(), atol=1e-5), key
    one, two = (read_checkpoint(c / "best_gps_model_depth.pth") for c in (straight, checkpoints))
    assert one["epoch"] == two["epoch"] and one["metrics"] == pytest.approx(two["metrics"])


def test_more_epochs_go_on_from_the_last(finetuned, tmp_path):
    data, checkpoints = tmp_path / "data", tmp_path / "c"
    shutil.copytree(finetuned[0], data)
    shutil.copytree(finetuned[1], checkpoints)
    arguments = finetune_arguments(data, checkpoints, "--inputs", "depth", "--epochs")
    code, printed = quietly(trainer.main, *arguments, "4")
    assert code == 0 and "up to date" in printed
    code, printed = quietly(trainer.main, *arguments, "5")
    assert code == 0 and "going on from" in printed
    assert "epoch 5/5" in printed and "epoch 4/5" not in printed


def test_too_few_groups_for_finetuning_name_the_way_out(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:  # one place, one afternoon
        row |= {"gps_latitude": 46.0, "gps_longitude": 7.0, "datetime_utc": "2024-06-01T10:00:00Z"}
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    code, printed = quietly(
        trainer.main, *finetune_arguments(data, tmp_path / "c", "--inputs", "rgb")
    )
    assert code == 2
    assert "--mode frozen or --split random" in printed.splitlines()[-1]
