"""Pictures as inputs, and the feature cache."""

import functools
import json
import os
import shutil

import numpy as np
import piexif
import pytest
import torch
from conftest import make_photos
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tqdm import tqdm

from geophoto import features
from geophoto.depth_maps import depth_file
from geophoto.devices import Precision
from geophoto.network import GPSPredictionNet, create_backbone
from geophoto.orientations import ORIENTATION_CLASSES, store_as, turn_upright
from geophoto.photos import read_photos

# ---------------------------------------------------------------- pictures


def test_views_are_the_centre_square_in_six_orientations():

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 64, 3), dtype=np.uint8)
    backbone = create_backbone("test_resnet", 3)
    found = features.picture_inputs(Image.fromarray(pixels), 80, backbone)
    assert found["rgb"].shape == (3, 80, 80) and found["views"].shape == (6, 3, 40, 40)
    mean, std = (np.array(backbone.pretrained_cfg[k]) for k in ("mean", "std"))
    square = pixels[:, 12:52] / 255.0
    for view, name in enumerate(ORIENTATION_CLASSES):
        shown = found["views"][view].numpy().transpose(1, 2, 0) * std + mean
        assert shown == pytest.approx(store_as(square, name), abs=1e-5)
        assert turn_upright(shown, name) == pytest.approx(square, abs=1e-5)


def test_depth_input_forgets_the_scale_and_survives_a_flat_map():
    rng = np.random.default_rng(1)
    depth = rng.random((37, 53)).astype(np.float32)
    one, two = features.depth_input(depth, 32), features.depth_input(depth * 70 + 3, 32)
    assert one.shape == (1, 32, 32) and torch.allclose(one, two, atol=1e-4)
    assert one.min() >= -2 and one.max() <= 2
    assert torch.isfinite(features.depth_input(np.full((5, 5), 3.0), 16)).all()


# ---------------------------------------------------------------- feature cache


def row_for(name: str, width: int) -> np.ndarray:
    return np.full(width, float(sum(map(ord, name)) % 997), np.float16)


def assert_cache_is_right(cache) -> None:
    rows = features.StoredFeatures(cache, list(cache.row_of.values()))
    found = rows.read(np.arange(len(cache.row_of)), slice(None)) if cache.row_of else []
    for (name, *_), values in zip(cache.row_of, found, strict=True):
        assert (values == row_for(name, cache.width)).all()


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_cut_cache_never_gives_wrong_rows(tmp_path_factory, batches, data_cut, index_cut):
    folder, width = tmp_path_factory.mktemp("cache"), 3
    cache = features.FeatureCache(folder, width)
    names = [f"phóto {i}.jpg" for i in range(sum(batches))]
    start = 0
    for size in batches:
        part = names[start : start + size]
        rows = np.stack([row_for(name, width) for name in part])
        cache.append([(name, 10, 10**18) for name in part], rows)
        start += size
    assert_cache_is_right(cache)
    cache.lock.close()
    os.truncate(cache.data, int(cache.data.stat().st_size * data_cut))
    os.truncate(cache.index, int(cache.index.stat().st_size * index_cut))
    again = features.FeatureCache(folder, width)
    kept = set(again.row_of)
    assert kept <= {(name, 10, 10**18) for name in names}
    assert again.count == len(kept)
    assert_cache_is_right(again)
    missing = [name for name in names if (name, 10, 10**18) not in kept]
    if missing:
        again.append(
            [(name, 10, 10**18) for name in missing],
            np.stack([row_for(name, width) for name in missing]),
        )
    again.lock.close()
    last = features.FeatureCache(folder, width)
    assert set(last.row_of) == {(name, 10, 10**18) for name in names}
    assert_cache_is_right(last)


@pytest.mark.parametrize("cut", [0, 1, 5])
def test_parts_of_other_processes_are_taken_in_once(tmp_path, cut):
    """What two others left, one of them cut off in the middle of a row, and a row known twice."""
    width, keys = 3, [(f"{i}.jpg", 1, 2) for i in range(80)]
    for folder, mine in (("", keys[:3]), ("part-1", keys[2:70]), ("part-2", keys[70:])):
        cache = features.FeatureCache(tmp_path / folder, width)
        cache.append(mine, np.stack([row_for(name, width) for name, *_ in mine]))
        cache.close()
    os.truncate(cache.data, cache.data.stat().st_size - cut)
    whole = features.FeatureCache(tmp_path, width)
    whole.take_in_parts()
    lost = 1 if cut else 0
    assert list(whole.row_of) == keys[: len(keys) - lost] and whole.count == len(keys) - lost
    assert_cache_is_right(whole)
    assert not list(tmp_path.glob("part-*"))
    whole.take_in_parts()
    whole.close()
    assert features.FeatureCache(tmp_path, width).row_of == whole.row_of


def test_a_part_in_use_ends_the_run(tmp_path, capsys):
    part = features.FeatureCache(tmp_path / "part-1", 3)
    with pytest.raises(SystemExit) as end:
        features.FeatureCache(tmp_path, 3).take_in_parts()
    assert end.value.code == 2 and "another training is using" in capsys.readouterr().err
    part.close()


def test_cache_forgets_a_photo_that_changed(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"one")
    photos = make_photos(1, names=["a.jpg"], files=[file])
    before = features.with_contents(photos, tmp_path, tqdm).sha256
    file.write_bytes(b"two and more")
    assert features.with_contents(photos, tmp_path, tqdm).sha256 != before


@pytest.fixture
def small_data(photo_set, tmp_path):
    """A dozen photos whose features are cached, and a function that asks for them again."""
    data = tmp_path / "data"
    shutil.copytree(photo_set.data, data)
    network = GPSPredictionNet("test_resnet", True)
    precision = Precision("fp32", "cpu")
    options = {"image_size": 64, "weights": "w", "depth_model": {"sha256": "d" * 8}}

    def ask(inputs: str = "depth") -> list[str]:
        """Names of the photos and maps of which features had to be made, in any order."""
        photos, _ = read_photos(data, data / "images")
        photos = photos.take(np.arange(12))
        made = []
        bar = functools.partial(listen, photos, made)
        found, failed = features.frozen_features(
            photos, inputs, network, data, precision, options, bar
        )
        assert not failed and found.photos.names == photos.names
        return sorted(made)

    def listen(photos, made, items, desc, **about):
        for item in items:
            if desc.endswith("features"):
                made.append(f"{desc.split()[0]} {photos.names[item[0]]}")
            yield item

    return data, ask


@pytest.mark.parametrize("change", ["edited", "turned", "swapped", "touched"])
def test_features_follow_the_bytes_of_their_photos(small_data, change):
    data, ask = small_data
    names = sorted({line.split(" ", 1)[1] for line in ask()})
    assert len(names) == 12 and not ask()
    one, two = (data / "images" / names[n] for n in (0, 2))  # equally turned
    about = one.stat()
    if change == "edited":
        whole = bytearray(one.read_bytes())
        whole[-200] ^= 1
        one.write_bytes(whole)
    elif change == "turned":
        exif = piexif.load(str(one))
        exif["0th"][piexif.ImageIFD.Orientation] = 8 - exif["0th"][piexif.ImageIFD.Orientation] % 8
        piexif.insert(piexif.dump(exif), str(one))
    elif change == "swapped":
        one.rename(one.with_name("x"))
        two.rename(one)
        one.with_name("x").rename(two)
    else:
        os.utime(one, (1e9, 1e9))
    if change in ("edited", "turned"):
        os.utime(one, ns=(about.st_atime_ns, about.st_mtime_ns))
    made = ask("rgb")
    assert made == ([f"RGB {names[0]}"] if change in ("edited", "turned") else [])
    assert not ask("rgb")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_number_of_cores_changes_no_feature(photo_set, tmp_path, precision):
    """On a CPU a photo is the work of one core, whoever else is at work."""
    usual, found = torch.get_num_threads(), []
    photos, _ = read_photos(photo_set.data, photo_set.data / "images")
    network = GPSPredictionNet("test_resnet", False)
    for cores in (1, 2, 3):
        torch.set_num_threads(cores)
        options = {"image_size": 64, "weights": str(cores)}
        data, failed = features.frozen_features(
            photos.take(np.arange(12)), "rgb", network, tmp_path, Precision(precision, "cpu"),
            options, tqdm,
        )  # fmt: skip
        assert torch.get_num_threads() == cores and not failed
        found.append(data.rgb.read(np.arange(12), slice(None)))
    torch.set_num_threads(usual)
    assert (found[0] == found[1]).all() and (found[0] == found[2]).all()
    assert np.unique(found[0], axis=0).shape[0] == 12


def test_features_of_another_turn_are_others(small_data):
    """The table tells how pixels are turned; a later version may read another tag."""
    data, ask = small_data
    names = sorted({line.split(" ", 1)[1] for line in ask("rgb")})
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    for row in rows:
        if row["filename"] == names[2]:
            row["orientation_tag"] = 8 if row["orientation_tag"] != 8 else 1
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    assert ask("rgb") == [f"RGB {names[2]}"]


def test_features_of_a_new_map_are_new(small_data):
    data, ask = small_data
    names = sorted({line.split(" ", 1)[1] for line in ask()})
    path = depth_file(data, names[5])
    about, depth = path.stat(), np.load(path)
    np.save(path, np.tri(*depth.shape, dtype=np.float16))
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    assert path.stat().st_size == about.st_size
    assert ask() == [f"depth {names[5]}"] and not ask()


def test_equal_photos_share_their_features_and_their_failure(small_data):
    data, ask = small_data
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    first = rows[0]["filename"]
    for row in rows[1:4]:
        shutil.copy(data / "images" / first, data / "images" / row["filename"])
        row["orientation_tag"] = rows[0]["orientation_tag"]
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    assert len([line for line in ask("rgb") if line.startswith("RGB")]) < 12
    keys = [("a", 1), ("b", 1), ("b", 1), ("", 1), ("", 1)]

    def load(i: int):
        if i == 1:
            raise ValueError("no picture")
        return {"x": torch.ones(3)}

    place, precision = (data / "x", 3), Precision("fp32", "cpu")
    found, failed = features.fill_cache(
        place, keys, load, lambda inputs: inputs["x"], precision, tqdm, "x"
    )
    assert sorted(failed) == [1, 2, 3, 4] and found.cache.count == 1
    assert failed[1] == failed[2] and "cannot be read" in failed[3]
