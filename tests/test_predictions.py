"""Predictions for photos without labels: batches, turns, places, and what the files hold."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from conftest import picture, quietly, store
from PIL import Image

import evaluate_gps_model as evaluator
from geophoto import network, predictions, records
from geophoto.checkpoints import read_checkpoint
from geophoto.devices import Precision
from geophoto.features import picture_inputs
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.pictures import find_photos, list_photos, open_stored


def plain_bar(items, **about):
    return items


def strangers(folder, count):
    """Photos without EXIF of several sizes, stored in all orientations."""
    rng = np.random.default_rng(3)
    for i in range(count):
        pixels = picture(rng, (0.37 * i) % 1, (0.21 * i) % 1, 0.4, 6 + i % 12)[:, : 150 - 4 * i]
        store(folder / f"photo {i:02d}.jpg", pixels, ORIENTATION_CLASSES[i % 6], None)
    return [(file.name, file) for file in sorted(folder.iterdir())]


def predictor_of(trained, photo_set, name="rgb", certainty=0.6):
    checkpoint = read_checkpoint(trained.checkpoints / f"best_gps_model_{name}.pth")
    return predictions.Predictor(checkpoint, trained.checkpoints, "fp32", certainty)


# ---------------------------------------------------------------- many at once


@pytest.mark.parametrize("name", ["rgb", "depth"])
def test_photos_together_get_the_answers_that_each_gets_alone(trained, photo_set, tmp_path, name):
    files = strangers(tmp_path, 7)
    predictor = predictor_of(trained, photo_set, name, certainty=0.3)
    whole = predictions.predict_unlabelled(predictor, files, plain_bar)
    assert list(whole["filename"]) == [file for file, _ in files] and whole["turned"].any()
    for i, one in enumerate(files):
        alone = predictions.predict_unlabelled(predictor, [one], plain_bar)
        for key in whole:
            if isinstance(whole[key][i], float):
                near = 1e-5 if key == "sun_elevation_deg" else 1e-6  # float32 of ±90°
                assert alone[key][0] == pytest.approx(whole[key][i], rel=1e-6, abs=near), key
            elif key != "places":
                assert alone[key][0] == whole[key][i], key


def test_answers_equal_the_network_asked_by_hand(trained, photo_set, tmp_path):
    """An oracle without batches and threads: turn upright, all inputs anew, the whole network."""
    files = strangers(tmp_path, 6)
    predictor = predictor_of(trained, photo_set, certainty=0.3)
    raw, failed = predictor.look_at_all([file for _, file in files], plain_bar)
    assert not failed and list(raw["rows"]) == list(range(6))
    for i, (_, file) in enumerate(files):
        stored = open_stored(file, max_side=2 * predictor.size)
        views = picture_inputs(stored, predictor.size, predictor.network.rgb_branch)["views"]
        with torch.inference_mode():
            logits = network.view_logits(predictor.network, views[None])[0, 0].numpy()
        logits = logits / predictor.densities["temperature"] + predictor.prior
        chances = np.exp(logits) / np.exp(logits).sum()
        np.testing.assert_allclose(raw["chances"][i], chances, rtol=1e-4)
        turned = int(chances.argmax()) if chances.max() >= 0.3 else 0
        assert raw["turned"][i] == turned
        upright = predictions.turn_picture(stored, ORIENTATION_CLASSES[turned])
        inputs = picture_inputs(upright, predictor.size, predictor.network.rgb_branch)
        inputs = {key: value[None] for key, value in inputs.items()}
        expected = network.predict_batch(predictor.network, inputs, Precision("fp32"))
        for key in ("gps", "time", "altitude", "sun", "trunk"):
            np.testing.assert_allclose(raw[key][i], expected[key][0], rtol=1e-4, atol=1e-5)


def test_each_view_goes_through_the_backbone_once(trained, photo_set, tmp_path, monkeypatch):
    files = strangers(tmp_path, 5)
    predictor = predictor_of(trained, photo_set, certainty=0.3)
    seen = {"grids": 0, "pictures": 0}
    grids, pictures = network.grid_features, network.rgb_features

    def count(name, work):
        def counted(backbone, images):
            seen[name] += len(images)
            return work(backbone, images)

        return counted

    monkeypatch.setattr(network, "grid_features", count("grids", grids))
    monkeypatch.setattr(network, "rgb_features", count("pictures", pictures))
    predictions.predict_unlabelled(predictor, files, plain_bar)
    assert seen == {"grids": 6 * 5, "pictures": 5}


SPOILED = {
    "empty.jpg": b"", "noise.jpg": b"\xff\xd8\xff no photo", "cut.png": b"\x89PNG\r\n\x1a\n\0",
    "text.tif": b"git-lfs pointer", "gone.jpg": None,
}  # fmt: skip


def test_photos_that_cannot_be_read_are_named_wherever_they_stand(trained, photo_set, tmp_path):
    files = strangers(tmp_path, 3)
    for name, content in SPOILED.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
    bad = [(name, tmp_path / name) for name in SPOILED]
    mixed = [bad[0], files[0], bad[1], bad[2], files[1], bad[3], files[2], bad[4]]
    predictor, said = predictor_of(trained, photo_set), []
    frame = predictions.predict_unlabelled(predictor, mixed, plain_bar, said.append)
    assert list(frame["filename"]) == [name for name, _ in files]
    assert list(frame.attrs["left_out"]) == list(SPOILED)
    assert all(
        line.startswith(f"{name}: left out: ") for line, name in zip(said, SPOILED, strict=True)
    )
    nothing = predictions.predict_unlabelled(predictor, bad, plain_bar)
    assert len(nothing) == 0 and len(nothing.attrs["left_out"]) == len(bad)


def test_a_picture_too_long_for_the_depth_model_is_left_out(trained, photo_set, tmp_path):
    files = strangers(tmp_path, 2)
    Image.new("RGB", (3000, 20)).save(tmp_path / "strip.png")
    files.insert(1, ("strip.png", tmp_path / "strip.png"))
    predictor = predictor_of(trained, photo_set, "depth")
    frame = predictions.predict_unlabelled(predictor, files, plain_bar)
    assert len(frame) == 2 and list(frame.attrs["left_out"]) == ["strip.png"]


def test_the_bar_counts_photos(trained, photo_set, tmp_path):
    files, told = strangers(tmp_path, 3), []

    def bar(items, **about):
        told.append(about)
        return items

    predictions.predict_unlabelled(predictor_of(trained, photo_set), files, bar)
    assert told == [{"total": 3, "desc": "photos", "unit": "photo"}]


# ---------------------------------------------------------------- files and streams


def ask(trained, output, *more, capture=None):
    folders = ["--checkpoint-dir", trained.checkpoints, "--output-dir", output]
    arguments = [str(one) for one in (*folders, "--precision", "fp32", *more)]
    if capture is None:
        return quietly(evaluator.main, *arguments)
    code = evaluator.main(arguments)
    return code, *capture.readouterr()


def test_json_is_all_that_stands_on_stdout(trained, tmp_path, capsys):
    files = strangers(tmp_path / "p", 2)
    (tmp_path / "p" / "broken.jpg").write_bytes(b"no photo")
    code, out, err = ask(
        trained, tmp_path / "out", "--json", "--photos", tmp_path / "p", capture=capsys
    )
    content = json.loads(out)
    assert code == 1 and out.count("\n") == 1
    assert [row["filename"] for row in content["photos"]] == [str(file) for _, file in files]
    assert list(content["left_out"]) == [str(tmp_path / "p" / "broken.jpg")]
    assert "2 photos predicted, 1 left out" in err
    written = json.loads((tmp_path / "out" / "photos.json").read_text(encoding="utf-8"))
    assert written == content and content["model"] in ("rgb", "depth")
    for row in content["photos"]:
        for head in ("position", "time", "altitude", "orientation"):
            assert row[f"{head}_confident"] in (True, False)
        for half, most in (
            ("radius50_km", "radius90_km"), ("time50_minutes", "time90_minutes"),
            ("altitude50_m", "altitude90_m"),
        ):  # fmt: skip
            assert 0 < row[half] <= row[most]
        assert 1 <= len(row["places"]) <= 3
        chances = [place["probability"] for place in row["places"]]
        assert chances == sorted(chances, reverse=True) and sum(chances) <= 1 + 1e-9


def test_many_photos_are_told_in_a_summary(trained, tmp_path):
    strangers(tmp_path / "p", evaluator.SHOWN + 1)
    code, printed = ask(trained, tmp_path / "out", "--photos", tmp_path / "p")
    assert code == 0 and "most likely" not in printed
    for head in ("position", "time", "altitude"):
        assert f"{head:<13}{evaluator.SHOWN + 1} photos, " in printed
    assert "13 photos predicted, 0 left out" in printed


def test_json_without_photos_is_refused():
    code, printed = quietly(evaluator.main, "--json")
    assert code == 2 and printed.count("\n") == 1 and "--json" in printed


def test_patterns_find_photos_and_nothing_else(tmp_path):
    files = [file for _, file in strangers(tmp_path / "a", 2)]
    files += [file for _, file in strangers(tmp_path / "b" / "c", 1)]
    (tmp_path / "a" / "notes.txt").write_text("no photo")
    (tmp_path / "a" / "IMG[1].jpg").write_bytes(files[0].read_bytes())

    def found(pattern):
        return {file.name for file in list_photos([str(tmp_path / pattern)]).values()}

    assert found("a/photo*.jpg") == {"photo 00.jpg", "photo 01.jpg"}
    assert found("a/*") == {"photo 00.jpg", "photo 01.jpg", "IMG[1].jpg"}
    assert found("**/*.jpg") == found("a/*")
    assert len(list_photos([str(tmp_path / "**/*.jpg")])) == 4
    assert found("a/IMG[1].jpg") == {"IMG[1].jpg"}  # a name that looks like a pattern
    assert found("?") == {"photo 00.jpg", "photo 01.jpg", "IMG[1].jpg"}  # folders too
    for nothing in ("*.png", "a/*.txt", "zz/**", "[q].jpg"):
        with pytest.raises(SystemExit):
            found(nothing)


# ---------------------------------------------------------------- places


def town(name, lat, lon):
    return {"city": name, "country_code": "XX", "latitude": lat, "longitude": lon}


def test_places_have_names_when_the_package_is_there(monkeypatch):
    places = [[(46.0, 7.0, 0.7), (10.0, 20.0, 0.2)], [], [(-89.9, 0.0, 0.9)]]
    module = types.ModuleType("reverse_geocode")
    module.search = lambda points: [town(f"T{i}", lat, lon) for i, (lat, lon) in enumerate(points)]
    module.__spec__ = types.SimpleNamespace()
    monkeypatch.setitem(sys.modules, "reverse_geocode", module)
    names = records.place_names(places)
    assert names == [["T0, XX", "T1, XX"], [], ["T2, XX"]]
    assert records.places_text(records.place_rows(places[0], names[0])) == (
        "46.00000 7.00000 70 % (T0, XX); 10.00000 20.00000 20 % (T1, XX)"
    )
    module.search = lambda points: [town("far", lat + 1, lon) for lat, lon in points]
    assert records.place_names(places) == [[None, None], [], [None]]  # 111 km away


def test_places_have_no_names_without_the_package(monkeypatch):
    monkeypatch.setattr(records.importlib.util, "find_spec", lambda name: None)
    assert records.place_names([[(46.0, 7.0, 0.7)]]) == [[None]]
    row = records.place_rows([(46.0, 7.0, 0.7)], [None])
    assert row == [{"latitude": 46.0, "longitude": 7.0, "probability": 0.7}]


def test_an_answer_without_position_is_a_feature_without_geometry(tmp_path):
    rows = [{"filename": "a", "latitude": None, "longitude": None}]
    records.write_geojson(tmp_path / "x.geojson", rows)
    content = json.loads((tmp_path / "x.geojson").read_text(encoding="utf-8"))
    assert content["features"][0]["geometry"] is None  # RFC 7946, 3.2


def test_photo_folders_are_unchanged_by_prediction(trained, tmp_path):
    strangers(tmp_path / "p", 2)
    before = {name: file.read_bytes() for name, file in find_photos(tmp_path / "p").items()}
    assert ask(trained, tmp_path / "out", "--photos", tmp_path / "p")[0] == 0
    after = {name: file.read_bytes() for name, file in find_photos(tmp_path / "p").items()}
    assert before == after
