"""What the notebooks show while something happens: a training watched live, a photo asked about.

In: folders, checkpoints, photos. Out: figures that are drawn again in place, tables; widgets where
a person sits before them, the same figures without where nobody does.
"""

from __future__ import annotations

import contextlib
import html
import io
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import density
from geophoto.library import time_words
from geophoto.pictures import photo_file
from geophoto.plots import draw_answer, draw_history
from geophoto.table import read_table

if TYPE_CHECKING:
    import pandas as pd

POLL_SECONDS = 0.4  # how often the trainer's files are looked at
SIMILAR = 5  # training photos shown beside an answer
LISTED = 500  # photos to pick from; any other is uploaded


def picture_of(figure, form: str = "png"):
    """A figure as a picture that a cell can show, JPEG where it holds photos."""
    from IPython.display import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, format=form, dpi=80)
    return Image(buffer.getvalue(), format=form)


def controls(*widgets) -> None:
    """Show widgets beside each other, or a line of text where nothing can show them."""
    import ipywidgets
    from IPython.display import display

    bundle = ipywidgets.HBox(list(widgets))._repr_mimebundle_()
    bundle["text/plain"] = "(buttons appear here in a running notebook)"
    display(bundle, raw=True)


# ---------------------------------------------------------------- training


def few_photos(data_dir: Path, folder: Path, count: int) -> Path:
    """A folder with a table of only `count` photos of data_dir, spread evenly over it, to try a
    slow training on; the photos stay where they are (`--image-dir`)."""
    table = json.loads((data_dir / "exif_data.json").read_text(encoding="utf-8"))
    rows = [row for row in table if row.get("gps_latitude") is not None]
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))
    folder.mkdir(parents=True, exist_ok=True)
    with density.write_atomically(folder / "exif_data.json", "w", encoding="utf-8") as file:
        json.dump([rows[i] for i in chosen], file, ensure_ascii=False)
    return folder


class Training:
    """gps_orientation_trainer.py as a process of its own, watched in a cell.

    `arguments` are its flags without --checkpoint-dir. Stop is what Ctrl-C is in a terminal; the
    same cell run again goes on from what was finished, as the same command does.
    """

    def __init__(self, root: Path, checkpoint_dir: Path, arguments: list) -> None:
        self.root, self.folder = Path(root).resolve(), Path(checkpoint_dir).resolve()
        self.log = self.folder / "training.log"
        self.arguments = [str(one) for one in arguments]
        self.process: subprocess.Popen | None = None
        self.models = 1 if {"rgb", "depth"} & set(self.arguments) else 2
        self.stopped = False
        self.first: tuple[float, float] | None = None  # when the first share was seen, and which

    def watch(self) -> int:
        """Train until the end or Stop, the curves drawn again whenever metrics.csv changes; returns
        the exit code (143: stopped). Raises ValueError with its last line when it failed."""
        import ipywidgets
        from IPython.display import display

        button = ipywidgets.Button(description="Stop", icon="stop", button_style="warning")
        button.on_click(lambda _: self.stop())
        with contextlib.suppress(AttributeError):  # else ipykernel 7.4 gives the click to this
            del button.comm._reply_subshell_id  # busy cell, not to the subshell JupyterLab asks
        controls(button, ipywidgets.HTML("or Jupyter's ■; run the cell again to go on"))
        self.process = self.start()
        shown = display(picture_of(self.draw()), display_id=True)
        seen = self.signs()
        try:
            while self.process.poll() is None:
                time.sleep(POLL_SECONDS)
                if seen != (seen := self.signs()):
                    shown.update(picture_of(self.draw()))
        except KeyboardInterrupt:  # Jupyter's ■ reaches the trainer too, where it is of one group
            self.stopped = True
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(2)
            self.stop()
        code = self.process.wait()
        button.disabled = True
        shown.update(picture_of(self.draw()))
        if code and not self.stopped:
            raise ValueError(self.state())
        return code

    def start(self) -> subprocess.Popen:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "gps_orientation_trainer.py", *self.arguments]
        command += ["--checkpoint-dir", str(self.folder)]
        self.first, self.stopped = None, False
        with open(self.log, "wb") as log:
            return subprocess.Popen(
                command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | {"PYTHONIOENCODING": "utf-8"},
            )  # fmt: skip

    def stop(self) -> None:
        """End the trainer, as Ctrl-C does; nothing when it has ended. Not by Ctrl-C's own signal: a
        Jupyter that was started in the background hands down to ignore that."""
        self.stopped = True
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def signs(self) -> tuple:
        """What changes when there is something new to show."""
        files = (self.log, self.folder / "metrics.csv")
        return tuple(file.stat().st_mtime_ns if file.is_file() else 0 for file in files)

    def said(self) -> list[str]:
        """Lines of the trainer."""
        if not self.log.is_file():
            return []
        return self.log.read_text(encoding="utf-8", errors="replace").splitlines()

    def share(self) -> float:
        """How much is trained, 0..1: finished models, and folds or epochs of the present one."""
        lines, done, part = self.said(), 0, 0.0
        for line in lines:
            if "best_gps_model_" in line and (line.startswith("wrote") or "up to date" in line):
                done, part = done + 1, 0.0
            elif step := re.match(r"(?:fold|epoch) (\d+)/(\d+)", line):
                part = int(step[1]) / int(step[2])
        return min((done + part) / self.models, 1.0)

    def state(self) -> str:
        """In words: how far it is and how long it will take, or how it ended."""
        if self.process is None:
            return "not started"
        share, code = self.share(), self.process.poll()
        steps = [line.split()[:2] for line in self.said() if re.match(r"(fold|epoch) \d", line)]
        where = " ".join(steps[-1]) if steps else "the beginning"
        if code == 0:
            return "finished"
        if self.stopped:
            return f"stopped after {where}; run the cell again to go on"
        if code is not None:
            return f"ended with exit code {code}: {next(reversed(self.said()), '')}"[:160]
        if not share:
            return "reading photos and features …"
        now = time.monotonic()
        since, before = self.first = self.first or (now, share)
        left = (now - since) * (1 - share) / (share - before) if share > before else math.nan
        told = f"about {time_words(left)} left" if math.isfinite(left) else "…"
        return f"{where}, {share:.0%} of the training, {told}"

    def draw(self):
        """The curves of metrics.csv as far as they go, under what there is to say."""
        import pandas as pd

        path = self.folder / "metrics.csv"
        return draw_history(pd.read_csv(path) if path.is_file() else None, self.state())


# ---------------------------------------------------------------- one photo


class Inquiry:
    """A model that is asked about one photo at a time, with what its training photos look like."""

    def __init__(self, checkpoint_dir: Path, data_dir: Path, certainty: float = 0.6) -> None:
        from geophoto.checkpoints import read_checkpoint
        from geophoto.predictions import Predictor

        self.checkpoint = read_checkpoint(checkpoint_dir / "best_gps_model.pth")
        self.predictor = Predictor(self.checkpoint, checkpoint_dir, "auto", certainty)
        self.images = data_dir / "images"
        self.table = read_table(data_dir).set_index("filename")
        split, self.gallery = self.checkpoint["split"], self.checkpoint["gallery"]
        parts = split.get("part") or ["train"] * len(split["names"])
        pairs = zip(split["names"], parts, strict=True)
        self.trained = [name for name, part in pairs if part == "train"]

    def answer(self, file: Path) -> tuple[dict, Any, pd.DataFrame]:
        """What the model says of a photo: its record (see predictions.photo_row), the photo turned
        upright and the most similar training photos. Raises ValueError with the reason when it
        cannot be read."""
        from geophoto.orientations import ORIENTATION_CLASSES
        from geophoto.pictures import open_stored
        from geophoto.predictions import turn_picture

        raw, failed = self.predictor.look_at_all([file], lambda each, **_: each)
        if failed:
            raise ValueError(failed[0])
        row = self.predictor.answers(raw)[0]
        photo = open_stored(file, 480)
        turned = ORIENTATION_CLASSES[int(raw["turned"][0])]
        return row, turn_picture(photo, turned), self.similar(raw["trunk"], row)

    def similar(self, trunk: np.ndarray, row: dict) -> pd.DataFrame:
        """The training photos nearest in feature space: filename, cosine similarity, and how far
        from the answer they were taken (km, NaN = unknown); empty for a model without a gallery."""
        import pandas as pd

        from geophoto.baselines import nearest_features

        names = ["filename", "similarity", "from_answer_km"]
        if self.gallery is None or len(self.trained) != len(self.gallery["features"]):
            return pd.DataFrame(columns=names)
        cosine, index, _ = nearest_features(trunk, self.gallery["features"], SIMILAR)
        at, nowhere = index[0], row["latitude"] is None
        lat, lon = (math.nan, math.nan) if nowhere else (row["latitude"], row["longitude"])
        km = density.distance_km(lat, lon, self.gallery["lat"][at], self.gallery["lon"][at])
        return pd.DataFrame(
            dict(zip(names, ([self.trained[i] for i in at], cosine[0], km), strict=True))
        )

    def names(self) -> list[str]:
        """Photos to pick from, those that the model has not seen first."""
        unreadable = self.table.index[self.table["status"] == "unreadable"]
        bad = {*self.checkpoint["split"].get("left_out", {}), *unreadable}
        every = [name for name in self.table.index if name not in bad]
        known = {*self.trained}
        every.sort(key=lambda name: (name in known, name))
        return [every[i] for i in np.unique(np.linspace(0, len(every) - 1, LISTED).astype(int))]

    def figure(self, file: Path, name: str):
        """The answer for a photo as a figure; `name` is its own in the table, or what to call it.
        Raises ValueError as `answer` does."""
        row, photo, similar = self.answer(file)
        known = name in self.table.index and file == photo_file(self.images, name)
        truth = self.table.loc[name].to_dict() if known else {}
        title = name + (", one of the training photos" if known and name in self.trained else "")
        places = None if self.gallery is None else (self.gallery["lat"], self.gallery["lon"])
        return draw_answer(title, row, photo, similar, self.images, places, truth)


def ask(inquiry: Inquiry, name: str, uploads: Path) -> None:
    """The answer for a photo of the table, and widgets to pick another or to upload one, which is
    kept in the folder `uploads`; the answer is drawn again in place."""
    import ipywidgets
    from IPython.display import HTML, display

    pick = ipywidgets.Combobox(options=inquiry.names(), value=name, description="photo",
                               ensure_option=True, layout={"width": "26em"})  # fmt: skip
    upload = ipywidgets.FileUpload(accept="image/*,.heic,.heif,.avif", description="upload")
    hint = ipywidgets.HTML()
    controls(pick, upload, hint)
    shown = display(HTML(""), display_id=True)

    def answer(file: Path, name: str) -> None:
        hint.value = "looking …"
        try:
            shown.update(picture_of(inquiry.figure(file, name), "jpeg"))
            hint.value = ""
        except (OSError, ValueError) as error:
            hint.value = ""
            shown.update(HTML(f"<b>{html.escape(name)}</b>: {html.escape(str(error))}"))

    def picked(change: dict) -> None:
        if change["new"] in inquiry.table.index:
            answer(photo_file(inquiry.images, change["new"]), change["new"])

    def uploaded(change: dict) -> None:
        for one in change["new"]:
            density.ready_to_write(uploads)
            file = uploads / (re.split(r"[/\\]", one["name"])[-1].strip(". ") or "photo")
            with density.write_atomically(file) as written:
                written.write(one["content"])
            answer(file, file.name)

    answer(photo_file(inquiry.images, name), name)
    pick.observe(picked, "value")
    upload.observe(uploaded, "value")
