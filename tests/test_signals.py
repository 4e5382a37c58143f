"""Ctrl-C and SIGTERM at a random moment of every script: one line, nobody left over, and the same
command goes on and ends with what it would have made at once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import REPOSITORY, copy_data, quietly, training_arguments
from test_reliability import MODES, TIMED, what_training_left
from test_write_back import answers, save, state

import evaluate_gps_model

SECONDS = 10  # at most, from the signal to the end
SAYING = """
import runpy, sys, density
run = density.run_script
density.run_script = lambda main: run(lambda: print("begun", flush=True) or main())
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""  # a script that says when its work begins: modules are loaded before that


class Stage:
    """A command, what it leaves, and how to be rid of that."""

    def __init__(self, command, left, reset) -> None:
        self.command = [sys.executable, "-c", SAYING, *map(str, command)]
        self.left, self.reset = left, reset

    def run(self, signalled: int = 0, after: float = 0.0) -> tuple[int, str, float]:
        """Exit code, stderr, and the seconds from its beginning or from the signal. Ctrl-C goes to
        all processes, as from a terminal; SIGTERM to the script alone."""
        process = subprocess.Popen(
            self.command, cwd=REPOSITORY, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            start_new_session=True,  # what a shell runs in the background ignores Ctrl-C: not this
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        if signalled:
            time.sleep(after)
        begun = time.monotonic()
        if signalled and process.poll() is None:
            (os.killpg if signalled == signal.SIGINT else os.kill)(process.pid, signalled)
        _, told = process.communicate(timeout=300)
        while living(process.pid):
            assert time.monotonic() - begun < (SECONDS if signalled else 300), "left over"
            time.sleep(0.05)
        return process.returncode, told, time.monotonic() - begun


def living(session: int) -> list[int]:
    """Processes of a session that are more than an entry waiting to be asked for."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, own = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has just ended
            continue
        if int(own) == session and state != "Z":
            found.append(int(entry.parent.name))
    return found


def files(*folders) -> dict[str, bytes]:
    return {f"{folder.name}/{name}": content for folder in folders
            for name, (content, _) in state(folder).items() if not TIMED.search(name)}  # fmt: skip


def cleared(*folders) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def table_stage(root, fixture) -> Stage:
    images, data = root / "images", root / "data"
    images.mkdir()
    first = save(root / "first.jpg")
    for number in range(20_000):
        os.link(first, images / f"{number}.jpg")
    command = ["exif_extractor.py", "--data-dir", data, "--image-dir", images, "--workers", 4]
    return Stage(command, lambda: files(data), lambda: cleared(data))


def depth_stage(root, fixture) -> Stage:
    photo_set = fixture("photo_set")
    data = copy_data(photo_set, root)

    def reset() -> None:
        cleared(data / "depths")
        (data / "depth_index.jsonl").unlink(missing_ok=True)

    command = ["depth_map_generator.py", "--data-dir", data, "--input-size", 252]
    command += ["--depth-model", photo_set.depth_weights]
    return Stage(command, lambda: files(data / "depths"), reset)


def training_stage(mode: str):
    def stage(root, fixture) -> Stage:
        data, models = copy_data(fixture("photo_set"), root), root / "models"
        command = ["gps_orientation_trainer.py", *training_arguments(data, models), *MODES[mode]]
        command += ["--inputs", "rgb"]
        return Stage(command, lambda: what_training_left(models),
                     lambda: cleared(models, data / "cache"))  # fmt: skip

    return stage


def asking_stage(*flags):
    def stage(root, fixture) -> Stage:
        output, trained = root / "out", fixture("trained")
        command = ["evaluate_gps_model.py", "--data-dir", trained.data, "--bootstrap", 500]
        command += ["--checkpoint-dir", trained.checkpoints, "--output-dir", output]
        command += [trained.data / "images" if flag == "IMAGES" else flag for flag in flags]
        return Stage(command, lambda: files(output), lambda: cleared(output))

    return stage


def writing_stage(kind: str, undo: bool = False):
    def stage(root, fixture) -> Stage:
        images, copies, output = (root / name for name in ("images", "copies", "out"))
        output.mkdir()
        names = [f"{number:04d}.jpg" for number in range(300)]
        first = save(images / names[0])
        for name in names[1:]:
            os.link(first, images / name)
        rows = answers(names).to_dict("records")
        rows = [row | {"carried_by": "time", "why": ""} for row in rows]
        placed = {"model": "time", "photos": rows, "clocks": [], "report": []}
        (output / "placed.json").write_text(json.dumps(placed))
        command = ["evaluate_gps_model.py", "--image-dir", images, "--output-dir", output]
        command += ["--write", kind, "--to", images if kind == "sidecar" else copies]
        taking = ["evaluate_gps_model.py", "--undo", output / "written.json"]

        def reset() -> None:
            quietly(evaluate_gps_model.main, *taking[1:])
            cleared(copies)
            if undo:
                assert quietly(evaluate_gps_model.main, *command[1:])[0] == 0

        return Stage(taking if undo else command, lambda: files(images, copies, output), reset)

    return stage


STAGES = {
    "table": table_stage,
    "depth": depth_stage,
    "frozen training": training_stage("frozen"),
    "fine-tuning": training_stage("finetune"),
    "report": asking_stage(),
    "photos": asking_stage("--photos", "IMAGES"),
    "place": asking_stage("--place"),
    "verify": asking_stage("--verify"),
    "write sidecars": writing_stage("sidecar"),
    "write copies": writing_stage("copies"),
    "undo": writing_stage("sidecar", undo=True),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no /proc here")
@pytest.mark.parametrize("stage", STAGES)
def test_a_signal_ends_every_script_and_the_same_command_goes_on(request, tmp_path, stage):
    asked = STAGES[stage](tmp_path, request.getfixturevalue)
    asked.reset()
    usual, told, seconds = asked.run()
    assert usual in (0, 1), told
    wanted = asked.left()
    assert wanted or stage == "undo"
    for number in (signal.SIGINT, signal.SIGTERM):
        for most in (0.8, 0.6, 0.4, 0.2, 0.1):  # of the time it took, until it was still at work
            asked.reset()
            after = random.uniform(0, most * seconds)
            code, lines, took = asked.run(number, after)
            assert took <= SECONDS, f"signal {number} at {after:.2f} s: {took:.1f} s until its end"
            if code not in (usual, -number):  # the second: all was done, it was ending already
                break
        where = f"signal {number} {after:.2f} s of {seconds:.2f}: {lines}"
        assert code == 128 + number, f"{code}, {where}"
        said = [line for line in lines.splitlines() if line.strip()]
        assert said[-1].endswith("interrupted; the same command goes on from here"), where
        assert set(said[:-1]) <= set(told.splitlines()) and "Traceback" not in lines, where
        code, lines, _ = asked.run()
        assert code == usual or (stage == "undo" and code == 2), (
            lines
        )  # the list is gone at its end
        found = asked.left()
        differ = {name for name in wanted | found if wanted.get(name) != found.get(name)}
        assert differ == set(), where
        print(f"{stage}: {where.splitlines()[0]}, ended after {took:.2f} s")
