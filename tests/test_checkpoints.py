"""Checkpoints: written, read, refused."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch
from tqdm import tqdm

from density import file_sha256
from geophoto import archives, checkpoints, densities, devices, finetune
from geophoto.photos import read_photos

# ---------------------------------------------------------------- checkpoints


def test_saved_values_come_back(tmp_path):
    content = {
        "a": np.arange(6.0).reshape(2, 3), "b": {"c": [np.float64(1.5), "x"], "d": (1, None)},
        "e": True, "f": np.array([1, 2], np.int64),
    }  # fmt: skip
    archives.save(tmp_path / "x.pth", content)
    found = archives.numpy_again(archives.load(tmp_path / "x.pth"))
    assert (found["a"] == content["a"]).all() and found["a"].dtype == np.float64
    assert found["b"] == {"c": [1.5, "x"], "d": (1, None)} and found["e"] is True
    assert (found["f"] == [1, 2]).all()


def test_checkpoint_rebuilds_the_network_alone(trained):
    checkpoint = checkpoints.read_checkpoint(trained.checkpoints / "best_gps_model_depth.pth")
    network, normalisation, every = checkpoints.rebuild(checkpoint)
    assert not network.training and network.depth_branch is not None
    for key, value in network.state_dict().items():
        assert torch.equal(value, checkpoint["model"][key])
    assert 40 < normalisation.centre_lat < 50
    assert all(isinstance(one, densities.HeadDensity) for one in every["heads"].values())
    assert {
        "format", "model", "model_config", "settings", "normalisation", "split", "gallery",
        "epoch", "metrics", "table_sha256",
    } <= set(checkpoint)  # fmt: skip


def test_final_network_reproduces_its_gallery(trained):
    """Photo → network gives the trunk features that the checkpoint stores for it."""
    checkpoint = checkpoints.read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    network, *_ = checkpoints.rebuild(checkpoint)
    photos, _ = read_photos(trained.data, trained.data / "images")
    names = checkpoint["split"]["names"]
    rows = np.array([photos.names.index(name) for name in names])
    dataset = finetune.PhotoSet(photos, 64, network, None)
    precision = devices.Precision("fp32", "cpu")
    found = finetune.predict_photos(network, dataset, rows, precision, tqdm, "photos")
    trunk = found["trunk"][np.searchsorted(found["rows"], rows)]
    assert trunk == pytest.approx(checkpoint["gallery"]["features"], abs=0.02)


def test_twin_describes_the_file_without_its_tensors(trained):
    path = trained.checkpoints / "best_gps_model_rgb.pth"
    twin = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert twin["sha256"] == file_sha256(path)
    assert twin["settings"]["mode"] == "frozen" and twin["settings"]["inputs"] == "rgb"
    assert not {"model", "gallery", "held_out"} & set(twin)
    assert path.with_suffix(".json").stat().st_size < 100_000


@pytest.mark.parametrize("place", [0.1, 0.5, 0.9])
def test_a_flipped_byte_is_refused(trained, tmp_path, capsys, place):
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(trained.checkpoints / f"best_gps_model_rgb{suffix}", tmp_path)
    path = tmp_path / "best_gps_model_rgb.pth"
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        checkpoints.read_checkpoint(path)
    assert end.value.code == 2 and "damaged" in capsys.readouterr().err


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (self.target, "w")


def test_a_malicious_checkpoint_is_refused_and_not_run(tmp_path, capsys):
    for number, write in enumerate((torch.save, lambda x, path: path.write_bytes(pickle.dumps(x)))):
        path, victim = tmp_path / f"{number}.pth", tmp_path / f"victim {number}"
        write({"format": 1, "model": Attack(str(victim))}, path)
        with pytest.raises(SystemExit) as end:
            checkpoints.read_checkpoint(path)
        assert end.value.code == 2 and "no checkpoint" in capsys.readouterr().err
        assert checkpoints.resume_from(path, "identity") is None
        assert not victim.exists()


@pytest.mark.parametrize("content", [{"format": 999}, [1, 2], {"weights": 1}])
def test_foreign_checkpoints_are_refused(tmp_path, capsys, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(SystemExit) as end:
        checkpoints.read_checkpoint(tmp_path / "x.pth")
    assert end.value.code == 2 and "no checkpoint" in capsys.readouterr().err


def test_missing_checkpoint_names_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        checkpoints.read_checkpoint(tmp_path / "x.pth")
    assert end.value.code == 2 and "gps_orientation_trainer.py" in capsys.readouterr().err


@pytest.mark.parametrize(
    "twin", [b"", b"[]", b"null", b'{"sha256"', b"\xff\xfe\x00", b"[" * 100_000, b"{}", None]
)
def test_a_twin_that_says_nothing_is_said_and_ends_nothing(trained, tmp_path, twin):
    path = tmp_path / "best_gps_model_rgb.pth"
    for name in (path.name, checkpoints.private_file(path).name):
        shutil.copy(trained.checkpoints / name, tmp_path)
    if twin is not None:
        path.with_suffix(".json").write_bytes(twin)
    said: list[str] = []
    assert checkpoints.read_checkpoint(path, said.append)["format"] == checkpoints.FORMAT
    assert len(said) == 1 and path.with_suffix(".json").name in said[0]
    assert checkpoints.finished_score(path, "identity", 1) is None


def test_only_a_whole_checkpoint_counts_as_finished(trained, tmp_path):
    """Twin and private file there, of this very model; the score is not taken from the twin."""
    path = tmp_path / "best_gps_model_rgb.pth"
    private, twin = checkpoints.private_file(path), path.with_suffix(".json")
    for file in (path, private, twin):
        shutil.copy(trained.checkpoints / file.name, file)
    settings = checkpoints.read_checkpoint(path)["settings"]
    identity, epochs = settings["identity"], settings["epochs"]
    score = checkpoints.read_checkpoint(path)["metrics"]["score"]
    assert checkpoints.finished_score(path, identity, epochs) == score
    assert checkpoints.finished_score(path, identity, epochs + 1) is None
    assert checkpoints.finished_score(path, "another", epochs) is None
    about = json.loads(twin.read_text(encoding="utf-8"))
    twin.write_text(json.dumps({**about, "metrics": {"score": 0.0}}), encoding="utf-8")
    assert checkpoints.finished_score(path, identity, epochs) == score
    shutil.copy(trained.checkpoints / "best_gps_model_depth.private.pth", private)
    assert checkpoints.finished_score(path, identity, epochs) is None
    private.unlink()
    assert checkpoints.finished_score(path, identity, epochs) is None


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00\x00", b"inputs,epoch\n\x00,1\n", b"a;b\n1"]
)
def test_old_metrics_of_another_hand_do_not_stop_new_ones(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    checkpoints.write_metrics(tmp_path, "rgb", [{"fold": 1, "epoch": 2}])
    assert "rgb,1,,2" in (tmp_path / "metrics.csv").read_text(encoding="utf-8")
