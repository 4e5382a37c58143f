"""Of the notebooks' room: trainings followed and stopped, similar photos, answers drawn."""

import json
import math
import time
from datetime import datetime

import numpy as np
import pytest
from conftest import REPOSITORY, training_arguments
from PIL import Image

from geophoto import notebook
from geophoto.notebook import Inquiry, Training, few_photos, picture_of
from geophoto.pictures import photo_file


def follow(training: Training, until) -> None:
    end = time.monotonic() + 120
    while not until():
        assert time.monotonic() < end, training.said()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def inquiry(trained) -> Inquiry:
    return Inquiry(trained.checkpoints, trained.data)


def test_a_training_is_followed_stopped_and_goes_on(trained, tmp_path):
    flags = training_arguments(trained.data, tmp_path, "--inputs", "rgb", "--folds", 5)
    at = flags.index("--checkpoint-dir")
    training = Training(REPOSITORY, tmp_path, flags[:at] + flags[at + 2 :])
    assert training.state() == "not started" and training.share() == 0
    training.process = training.start()
    follow(training, lambda: training.share() > 0)
    state = training.state()
    training.stop()  # at once: the first picture takes as long as this whole training
    assert training.process.wait(60) == 143
    assert "fold" in state and len(training.draw().axes[0].lines) > 0
    assert "run the cell again" in training.state() and training.share() < 1
    training.process = training.start()
    follow(training, lambda: training.share() == 1)
    assert training.process.wait(60) == 0 and training.state() == "finished"
    assert any(line.startswith("going on from") for line in training.said())
    lines = training.draw().axes[0].lines  # two of every pair of folds: its epochs, the best
    assert len(lines) == 2 * 5 * 4


def test_how_far_a_training_is_and_how_long_it_takes(tmp_path):
    class Running:
        def poll(self) -> None:
            return None

    training = Training(REPOSITORY, tmp_path, ["--inputs", "both"])
    training.process = Running()
    for text, share in (
        ("", 0),
        ("fold 1/5  3 km\n", 0.1),
        ("fold 5/5  3 km\n", 0.5),
        ("fold 5/5\nwrote x/best_gps_model_rgb.pth\nfold 2/5\n", 0.7),
        ("x/best_gps_model_rgb.pth is up to date (…)\nepoch 3/4\n", 0.875),
    ):
        training.log.write_text(text, encoding="utf-8")
        assert training.share() == pytest.approx(share), text
    training.log.write_text("fold 1/5\n")
    training.state()
    training.first = (time.monotonic() - 60, 0.05)  # half of what is left took a minute
    training.log.write_text("fold 5/5\n")
    assert training.state() == "fold 5/5, 50% of the training, about 67 s left".replace(
        "67 s", "1 min"
    )


def test_a_training_that_fails_says_why(tmp_path):
    training = Training(REPOSITORY, tmp_path / "models", ["--data-dir", str(tmp_path)])
    training.process = training.start()
    assert training.process.wait(60) == 2
    assert "exit code 2" in training.state() and "no table of photos" in training.state()


def test_few_photos_are_rows_with_positions_from_everywhere(trained, tmp_path):
    folder = few_photos(trained.data, tmp_path / "few", 10)
    rows = json.loads((folder / "exif_data.json").read_text(encoding="utf-8"))
    whole = json.loads((trained.data / "exif_data.json").read_text(encoding="utf-8"))
    placed = [row for row in whole if row["gps_latitude"] is not None]
    assert len(rows) == 10 and rows[0] == placed[0] and rows[-1] == placed[-1]
    assert len(json.loads((few_photos(trained.data, folder, 999) / "exif_data.json").read_text())
               ) == len(placed)  # fmt: skip


def test_a_training_photo_is_most_similar_to_itself(inquiry):
    name = inquiry.trained[5]
    row, photo, similar = inquiry.answer(photo_file(inquiry.images, name))
    assert similar["filename"][0] == name and similar["similarity"][0] > 0.98
    assert (np.diff(similar["similarity"]) <= 0).all() and len(similar) == 5
    from_answer = similar["from_answer_km"].to_numpy()
    assert (from_answer[np.isfinite(from_answer)] >= 0).all() and photo.mode == "RGB"
    assert row["places"] and row["time"] is not None


def test_a_model_without_gallery_has_no_similar_photos(inquiry, monkeypatch):
    monkeypatch.setattr(inquiry, "gallery", None)
    row = {"latitude": 46.0, "longitude": 7.0}
    assert not len(inquiry.similar(np.zeros((1, 4)), row))


def test_strangers_come_first_in_the_list(inquiry):
    names = inquiry.names()
    known = [name in set(inquiry.trained) for name in names]
    assert known == sorted(known) and not known[0] and known[-1]
    assert len(set(names)) == len(names)


def test_answers_are_drawn_with_and_without_truth(inquiry, tmp_path):
    name = inquiry.trained[0]
    known = inquiry.figure(photo_file(inquiry.images, name), name)
    told = "".join(text.get_text() for text in known.findobj(lambda a: hasattr(a, "get_text")))
    assert "the truth" in told and "one of the training photos" in told
    Image.new("RGB", (90, 60), (90, 120, 200)).save(tmp_path / "blue.png")
    stranger = inquiry.figure(tmp_path / "blue.png", "blue.png")
    told = "".join(text.get_text() for text in stranger.findobj(lambda a: hasattr(a, "get_text")))
    assert "the truth" not in told and "most similar training photos" in told
    assert picture_of(stranger, "jpeg").data[:2] == b"\xff\xd8"
    assert math.isclose(known.get_size_inches()[0], 13)


def test_what_is_no_photo_is_refused_with_the_reason(inquiry, tmp_path):
    (tmp_path / "note.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"note\.jpg"):
        inquiry.figure(tmp_path / "note.jpg", "note.jpg")


def test_photos_are_picked_and_uploaded(inquiry, monkeypatch, tmp_path):
    """The widgets without a browser: what is shown, and that an upload stays in its folder."""
    IPython = pytest.importorskip("IPython.display")
    shown, widgets = [], []

    class Handle:
        update = staticmethod(shown.append)

    monkeypatch.setattr(IPython, "display", lambda *_, **__: Handle())
    monkeypatch.setattr(notebook, "controls", lambda *all: widgets.extend(all))
    notebook.ask(inquiry, inquiry.names()[0], tmp_path / "uploads")
    pick, upload, hint = widgets
    pick.value = inquiry.trained[0]
    assert len(shown) == 2 and shown[0].data != shown[1].data
    picture = photo_file(inquiry.images, inquiry.trained[0]).read_bytes()
    for name, content in (("../../a.jpg", picture), ("b.jpg", b"no photo"), ("..", picture)):
        about = {"name": name, "content": content, "type": "image/jpeg", "size": len(content)}
        upload.set_trait("value", ({**about, "last_modified": datetime.now()},))
    assert {file.name for file in (tmp_path / "uploads").iterdir()} == {"a.jpg", "b.jpg", "photo"}
    assert [one.data[:2] == b"\xff\xd8" for one in shown[2:]] == [True, False, True]
    assert "b.jpg" in shown[3].data and hint.value == ""
