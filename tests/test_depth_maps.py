"""Depth maps and their pictures."""

import numpy as np
import pytest
import torch
from rule_weights import arguments, tiny_weights

import depth_map_generator
from geophoto import depth_maps, depth_network, pictures

# ---------------------------------------------------------------- formats of weights


@pytest.mark.parametrize("kind, max_depth_m", [("hypersim", 20), ("vkitti", 80)])
def test_metric_models_give_metres_and_readers_inverse_depth(
    collection, tmp_path, kind, max_depth_m
):
    path = tmp_path / f"depth_anything_v2_metric_{kind}_vits.pth"
    torch.save(tiny_weights(), path)
    network, info = depth_network.load_network(str(path), "nowhere")
    assert info["kind"] == "metres" and info["max_depth_m"] == max_depth_m
    assert depth_map_generator.main(arguments(collection, path)) == 0
    sidecar = depth_maps.read_depth_model(collection)
    assert sidecar["kind"] == "metres" and sidecar["max_depth_m"] == max_depth_m
    file = depth_maps.depth_file(collection, "photo_0.jpg")
    metres = np.load(file).astype(np.float32)
    assert metres.min() > 0 and metres.max() <= max_depth_m
    inverse = depth_maps.load_depth_map(file)
    np.testing.assert_allclose(inverse, 1 / metres, rtol=1e-6)
    image = np.asarray(pictures.open_upright(collection / "images" / "photo_0.jpg"))
    np.testing.assert_allclose(depth_network.estimate_depth(network, image, 56), inverse, rtol=2e-3)


# ---------------------------------------------------------------- maps and pictures


def test_reader_gives_float32_at_any_size(tmp_path):
    data = tmp_path / "data"
    file = depth_maps.depth_file(data, "trip/a.b/IMG_1.JPG")
    assert file == data / "depths" / "trip" / "a.b" / "IMG_1.JPG.npy"
    file.parent.mkdir(parents=True)
    values = np.linspace(0, 4, 12, dtype=np.float16).reshape(3, 4)
    np.save(file, values)
    assert depth_maps.read_depth_model(data) == {}
    np.testing.assert_array_equal(depth_maps.load_depth_map(file), values.astype(np.float32))
    large = depth_maps.load_depth_map(file, (5, 7))
    assert large.shape == (5, 7) and large.dtype == np.float32
    np.testing.assert_allclose(large[::2, ::2], depth_maps.load_depth_map(file, (3, 4)), atol=1e-6)
    (data / "depths" / "depth_model.json").write_text("{ damaged")
    assert depth_maps.read_depth_model(data) == {}
    (data / "depths" / "depth_model.json").write_text('{"kind": "metres"}')
    assert depth_maps.load_depth_map(file).max() == pytest.approx(1 / depth_network.MIN_METRES)


def test_flat_and_non_finite_outputs_are_handled():
    map_ok = np.linspace(1, 2, 12, dtype=np.float32).reshape(3, 4)
    assert depth_maps.repair_depth(map_ok, "inverse depth")[1] == ""
    flat, warning = depth_maps.repair_depth(np.full((3, 4), 7, np.float32), "inverse depth")
    assert "flat" in warning and (flat == 7).all()
    assert (depth_maps.colour_indices(flat) == 0).all()
    holes = map_ok.copy()
    holes[0, :3] = np.nan, np.inf, 1e9
    repaired, warning = depth_maps.repair_depth(holes, "inverse depth")
    assert "3 of 12" in warning and repaired[0, :3] == pytest.approx(holes[0, 3])
    assert depth_maps.repair_depth(holes, "metres")[0][0, 0] == 2
    with pytest.raises(ValueError, match="no finite depth"):
        depth_maps.repair_depth(np.full((3, 4), np.nan, np.float32), "inverse depth")


def test_near_is_warm_in_pictures():
    ramp = np.tile(np.linspace(0, 1, 50), (20, 1))
    picture = depth_maps.draw_depth(ramp)
    assert picture.mode == "P" and picture.size == (50, 20)
    colours = np.asarray(picture.convert("RGB")).astype(int)
    far, near = colours[0, 0], colours[0, -1]
    assert near.sum() > 500 and near[0] > near[2] and far.sum() < 300 and far[2] >= far[0]
    lightness = colours @ (0.2126, 0.7152, 0.0722)
    assert (np.diff(lightness[0]) > -1).all()  # rises evenly: perceptual
    assert depth_maps.draw_depth(ramp, legend=True).height > 20
    both = depth_maps.draw_depth(ramp, photo_rgb=np.full((4, 4, 3), 200, np.uint8))
    assert both.mode == "RGB" and both.size == (100, 20)
    assert (np.asarray(both)[:, :50] == 200).all()


def test_a_map_is_small(tiny_network):
    height, width = depth_network.tensor_size(3000, 4000, 518)
    assert height * width * 2 < 0.75e6  # bytes as float16; float32 at 12 megapixels: 48e6


def write_no_map(path, kind: str) -> None:
    """Something else where a map should lie."""
    if kind == "nothing":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    elif kind == "archive":
        np.savez(path.with_suffix(".npz"), a=np.ones((3, 4)))
        path.with_suffix(".npz").rename(path)
    elif kind == "folder":
        path.mkdir()
    else:
        np.save(path, {
            "no pixels": np.zeros((0, 0), np.float16), "no row": np.zeros((0, 7), np.float16),
            "a line": np.zeros(9, np.float16), "colours": np.zeros((3, 4, 3), np.float16),
            "numbers": np.zeros((3, 4), np.int64), "holes": np.full((3, 4), np.nan, np.float16),
            "an object": np.array([[None]]),
        }[kind], allow_pickle=True)  # fmt: skip


NO_MAPS = ("nothing", "text", "archive", "folder", "no pixels", "no row", "a line", "colours",
           "numbers", "holes", "an object")  # fmt: skip


@pytest.mark.parametrize("kind", NO_MAPS)
def test_a_file_that_holds_no_map_is_refused(tmp_path, kind):
    path = tmp_path / "depths" / "a.jpg.npy"
    path.parent.mkdir()
    write_no_map(path, kind)
    with pytest.raises((ValueError, OSError)):
        depth_maps.load_depth_map(path)


def test_maps_that_are_none_are_made_again(collection, tiny_pth, capsys):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    files = sorted((collection / "depths").rglob("*.npy"))
    whole = [file.read_bytes() for file in files]
    for file, kind in zip(files, ("nothing", "no pixels", "text", "colours", "numbers")):  # noqa: B905
        write_no_map(file, kind)
    assert depth_map_generator.main(arguments(collection, tiny_pth, "--contact-sheet")) == 0
    assert "5 written" in capsys.readouterr().out
    assert [file.read_bytes() for file in files] == whole


def test_a_contact_sheet_survives_a_map_that_is_none(collection, tiny_pth):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    write_no_map(depth_maps.depth_file(collection, "photo_0.jpg"), "no pixels")
    names = [f"photo_{i}.jpg" for i in range(4)]
    assert depth_maps.save_contact_sheet(collection, collection / "images", names).is_file()


@pytest.mark.parametrize(
    "content", ["", "[]", "{", '{"sha256": 5, "precision": [1], "kind": null}', "[" * 100_000]
)
def test_a_sidecar_of_another_hand_ends_nothing(collection, tiny_pth, capsys, content):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    (collection / "depths" / "depth_model.json").write_text(content)
    assert "sha256" not in depth_maps.read_depth_model(collection)
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    assert "5 written" in capsys.readouterr().out
