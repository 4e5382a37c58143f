"""The depth stage: outputs, resuming, processes."""

import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rule_weights import (
    REPOSITORY,
    arguments,
    draw_photo,
    rank_correlation,
    tiny_weights,
)

import density
import depth_map_generator
import exif_extractor
from geophoto import depth_maps, depth_network, depth_weights, origins, pictures
from geophoto.photos import photos_of
from geophoto.table import read_table

# ---------------------------------------------------------------- weights made by a rule


def tree(data: Path) -> dict[str, bytes]:
    folder = data / "depths"
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def maps(data: Path) -> list[Path]:
    return sorted((data / "depths").rglob("*.npy"))


# ---------------------------------------------------------------- formats of weights


def test_weights_are_called_what_they_are(tmp_path, capsys):
    info = {"model": "depth_anything_v2_vits", "file": "v.pth", "sha256": "ab", "kind": "metres"}
    depth_map_generator.report_weights(info)
    printed = capsys.readouterr()
    assert (
        "not a published file" in printed.out and depth_weights.KNOWN_SHA256["vits"] in printed.err
    )
    depth_map_generator.report_weights(info | {"sha256": depth_weights.KNOWN_SHA256["vits"]})
    printed = capsys.readouterr()
    assert "the published vits" in printed.out and not printed.err and "NC" not in printed.out
    depth_map_generator.report_weights(
        info | {"sha256": depth_weights.KNOWN_SHA256["vitb"], "model": "mine"}
    )
    assert "CC-BY-NC-4.0" in capsys.readouterr().out


# ---------------------------------------------------------------- the run


def test_every_row_is_accounted_for(collection, tiny_pth, capsys):
    (collection / "images" / "photo_2.jpg").write_bytes(b"changed after the table was made")
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 1
    out = capsys.readouterr().out
    assert "6 photos in the table: 1 failed, 1 skipped, 4 written" in out
    assert "failed: photo_2.jpg" in out and "skipped: broken.jpg" in out
    assert out.rstrip().endswith(f"next: python gps_orientation_trainer.py --data-dir {collection}")
    assert len(maps(collection)) == 4
    shapes = {path.name: np.load(path).shape for path in maps(collection)}
    assert shapes["photo_0.jpg.npy"] == (56, 84) and shapes["tall.PNG.npy"] == (84, 56)
    sidecar = depth_maps.read_depth_model(collection)
    assert sidecar["sha256"] == density.file_sha256(tiny_pth) and sidecar["input_size"] == 56
    assert sidecar["precision"] == "fp32" and sidecar["kind"] == "inverse depth"
    draw_photo(2).save(collection / "images" / "photo_2.jpg")  # mended: tried again
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    assert "1 skipped, 4 unchanged, 1 written" in capsys.readouterr().out


def test_finished_maps_stay_and_what_changes_is_redone(collection, tiny_pth, tmp_path, capsys):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    before = {path: path.stat().st_mtime_ns for path in maps(collection)}
    first = tree(collection)
    capsys.readouterr()
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    assert "5 unchanged" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in maps(collection)} == before

    one = depth_maps.depth_file(collection, "photo_1.jpg")
    one.write_bytes(one.read_bytes()[:-10])  # cut short by something else
    one.with_name("photo_0.jpg.png").unlink()
    newer = time.time_ns() + 10**9
    os.utime(collection / "images" / "photo_3.jpg", ns=(newer, newer))
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    assert "1 redrawn, 1 skipped, 2 unchanged, 2 written" in capsys.readouterr().out
    assert tree(collection) == first

    other = tmp_path / "other.pth"
    torch.save(tiny_weights(head=4), other)
    assert depth_map_generator.main(arguments(collection, other)) == 0
    out = capsys.readouterr().out
    assert "all maps are made anew: sha256 was" in out and "5 written" in out
    assert depth_map_generator.main(arguments(collection, other, "--input-size", "70")) == 0
    assert "input_size was 56 and is 70" in capsys.readouterr().out
    assert (
        depth_map_generator.main(arguments(collection, other, "--input-size", "70", "--overwrite"))
        == 0
    )
    assert "--overwrite" in capsys.readouterr().out
    (collection / "depths" / "depth_model.json").unlink()
    assert depth_map_generator.main(arguments(collection, other, "--input-size", "70")) == 0
    assert "no readable depth_model.json" in capsys.readouterr().out


def test_a_wrong_model_leaves_the_old_maps_alone(collection, tiny_pth, tmp_path):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    before = tree(collection)
    wrong = tmp_path / "wrong.pth"
    torch.save({"a": torch.zeros(3)}, wrong)
    with pytest.raises(SystemExit):
        depth_map_generator.main(arguments(collection, wrong, "--overwrite"))
    assert tree(collection) == before


def test_a_change_of_model_that_dies_starts_anew(collection, tiny_pth, tmp_path, monkeypatch):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    first = maps(collection)[0].read_bytes()
    other = tmp_path / "other.pth"
    torch.save(tiny_weights(head=4), other)
    unlink = Path.unlink

    def die(path, **options):
        unlink(path, **options)
        if path.suffix == ".npy":
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "unlink", die)
    with pytest.raises(KeyboardInterrupt):
        depth_map_generator.main(arguments(collection, other))
    monkeypatch.undo()
    assert len(maps(collection)) == 4
    assert depth_maps.read_depth_model(collection)["sha256"] == density.file_sha256(tiny_pth)
    assert depth_map_generator.main(arguments(collection, other)) == 0
    assert len(maps(collection)) == 5 and maps(collection)[0].read_bytes() != first
    assert depth_maps.read_depth_model(collection)["sha256"] == density.file_sha256(other)


def test_a_run_that_dies_is_continued(collection, tiny_pth, monkeypatch):
    calls = []

    def die(*task):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(task)
        return original(*task)

    original = depth_network.measure_batch
    monkeypatch.setattr(depth_map_generator, "measure_batch", die)
    with pytest.raises(KeyboardInterrupt):
        depth_map_generator.main(arguments(collection, tiny_pth))
    monkeypatch.undo()
    kept = {path: path.stat().st_mtime_ns for path in maps(collection)}
    assert 1 <= len(kept) <= 2
    (collection / "depths" / ".photo_0.jpg.npy.999999999.tmp").touch()
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    assert len(maps(collection)) == 5
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    assert not list((collection / "depths").rglob(".*"))


def test_photos_are_read_upright(collection, tiny_pth):
    photo = collection / "images" / "photo_0.jpg"
    upright = pictures.open_upright(photo)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = upright.transpose(Image.Transpose.ROTATE_90)  # stored so that tag 6 sets it upright
    turned.save(collection / "images" / "turned.png", exif=exif)
    assert exif_extractor.main(["--data-dir", str(collection)]) in (0, 1)
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    stored, straight = (np.load(depth_maps.depth_file(collection, name))
                        for name in ("turned.png", "photo_0.jpg"))  # fmt: skip
    np.testing.assert_array_equal(stored, straight)


def test_batches_give_the_same_maps(collection, tiny_pth):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    singly = {path: np.load(path) for path in maps(collection)}
    assert (
        depth_map_generator.main(
            arguments(collection, tiny_pth, "--batch-size", "3", "--overwrite")
        )
        == 0
    )
    assert len(singly) == 5
    for path, expected in singly.items():
        np.testing.assert_allclose(np.load(path), expected, rtol=2e-3, atol=1e-4)


def test_a_run_in_another_precision_goes_on_and_says_both(collection, tiny_pth):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    maps(collection)[0].unlink()
    assert depth_map_generator.main(arguments(collection, tiny_pth, "--precision", "bf16")) == 0
    assert depth_maps.read_depth_model(collection)["precision"] == "bf16+fp32"


@pytest.mark.parametrize("number, code", [(errno.ENOSPC, 2), (errno.EIO, 1)])
def test_a_full_disk_ends_the_run_and_other_errors_do_not(
    collection, tiny_pth, monkeypatch, capsys, number, code
):
    def fail(*task):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(depth_map_generator, "write_job", fail)
    if code == 2:
        with pytest.raises(SystemExit) as end:
            depth_map_generator.main(arguments(collection, tiny_pth))
        assert end.value.code == 2 and "no space left" in capsys.readouterr().err
    else:
        assert depth_map_generator.main(arguments(collection, tiny_pth)) == 1
        assert "5 failed, 1 skipped" in capsys.readouterr().out


# ---------------------------------------------------------------- a map and its photo


def run_depth(data: Path, weights: Path, capsys, *more: str) -> str:
    capsys.readouterr()
    assert depth_map_generator.main(arguments(data, weights, *more)) == 0
    return capsys.readouterr().out


def read_again(data: Path) -> None:
    """The extractor's next run, whatever it takes for a change."""
    assert exif_extractor.main(["--data-dir", str(data), "--overwrite"]) in (0, 1)


def with_tag(pixels: Image.Image, file: Path, tag: int, size: int = 0) -> None:
    """Save a JPEG that carries an orientation tag, filled up to `size` bytes."""
    exif = Image.Exif()
    exif[0x0112] = tag
    pixels.save(file, "JPEG", quality=95, exif=exif)
    with open(file, "ab") as end:
        end.write(bytes(max(size - file.stat().st_size, 0)))


@pytest.mark.parametrize("change", ["edited", "replaced", "turned", "older"])
@pytest.mark.parametrize("table", ["read again", "as before"])
def test_a_photo_that_changed_gets_a_new_map(collection, tiny_pth, capsys, change, table):
    """Size and mtime stay, as after an edit with `exiftool -P` or `cp -p`; not so for "older"."""
    file = collection / "images" / "photo_1.jpg"
    with_tag(draw_photo(1), file, 1, 30_000)
    read_again(collection)
    run_depth(collection, tiny_pth, capsys)
    path, about = depth_maps.depth_file(collection, "photo_1.jpg"), file.stat()
    before = path.read_bytes()
    if change == "edited":
        with_tag(draw_photo(77), file, 1, 30_000)
    elif change == "replaced":
        with_tag(draw_photo(78), file.with_name("other"), 1, 30_000)
        os.utime(file.with_name("other"), ns=(about.st_atime_ns, about.st_mtime_ns))
        os.replace(file.with_name("other"), file)
    elif change == "turned":
        with_tag(draw_photo(1), file, 6, 30_000)
    else:
        draw_photo(79).save(file)
        os.utime(file, (1e9, 1e9))
    if change in ("edited", "turned"):
        os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    if change != "older":
        assert (file.stat().st_size, file.stat().st_mtime_ns) == (30_000, about.st_mtime_ns)
    if table == "read again":
        read_again(collection)
    assert "4 unchanged, 1 written" in run_depth(collection, tiny_pth, capsys)
    assert path.read_bytes() != before
    height, width = (84, 56) if change == "turned" else (56, 84)
    assert np.load(path).shape == (height, width)
    if table == "read again":  # else it is redone once more when the table tells of the turn
        assert "5 unchanged" in run_depth(collection, tiny_pth, capsys)


@pytest.mark.parametrize("change", ["chmod", "hard link", "copied tree", "moved tree"])
def test_the_same_photo_keeps_its_map(collection, tiny_pth, capsys, monkeypatch, change):
    run_depth(collection, tiny_pth, capsys)
    before = tree(collection)
    data, photo = collection, collection / "images" / "photo_1.jpg"
    if change == "chmod":
        photo.chmod(0o600)
    elif change == "hard link":
        os.link(photo, collection / "elsewhere")
    elif change == "copied tree":
        data = shutil.copytree(collection, collection.with_name("copy"))
    else:
        data = collection.rename(collection.with_name("moved"))
    assert "5 unchanged" in run_depth(data, tiny_pth, capsys)
    monkeypatch.setattr(origins, "file_sha256", pytest.fail)  # compared once, never again
    assert "5 unchanged" in run_depth(data, tiny_pth, capsys)
    assert tree(data) == before


def test_a_photo_from_the_future_is_done_once(collection, tiny_pth, capsys):
    os.utime(collection / "images" / "photo_0.jpg", (4e9, 4e9))
    assert "5 written" in run_depth(collection, tiny_pth, capsys)
    assert "5 unchanged" in run_depth(collection, tiny_pth, capsys)


@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "foreign"])
def test_maps_without_origin_count_when_newer_than_their_photos(
    collection, tiny_pth, capsys, damage
):
    """An earlier version left none, and a kill between a map and its line leaves none."""
    run_depth(collection, tiny_pth, capsys)
    index = depth_maps.depth_index(collection)
    if damage == "gone":
        index.unlink()
    else:
        whole = index.read_bytes()
        index.write_bytes({"empty": b"", "cut": whole[:-5], "foreign": b"[1]\nx\n"}[damage])
    assert "5 unchanged" in run_depth(collection, tiny_pth, capsys)
    last = json.loads(whole.split(b"\n")[-1])[0] if damage == "cut" else "photo_2.jpg"
    file = collection / "images" / last
    time.sleep(0.02)  # the clock of inodes ticks every few milliseconds
    file.chmod(0o600)  # nothing says any more that this is no edit
    assert "4 unchanged, 1 written" in run_depth(collection, tiny_pth, capsys)
    assert "5 unchanged" in run_depth(collection, tiny_pth, capsys)


def test_the_index_stays_small(collection, tiny_pth, capsys):
    run_depth(collection, tiny_pth, capsys)
    index = depth_maps.depth_index(collection)
    index.write_bytes(index.read_bytes() * 400)
    assert "5 unchanged" in run_depth(collection, tiny_pth, capsys)
    assert index.read_bytes().count(b"\n") == 5


# ---------------------------------------------------------------- what the disk refuses

LONG = ("x" * 247 + ".jpg", "x" * 248 + ".jpg", "y" * 250 + ".png", "山" * 83 + ".png",
        "🏔" * 62 + ".jpg")  # fmt: skip


def test_names_too_long_for_a_map_are_skipped_by_name(collection, tiny_pth, capsys):
    """251 bytes still leave room for .npy; from 252 on there is none."""
    for number, name in enumerate(LONG):
        draw_photo(10 + number).save(collection / "images" / name)
    assert exif_extractor.main(["--data-dir", str(collection)]) in (0, 1)
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    out = capsys.readouterr().out
    assert "11 photos in the table: 5 skipped, 6 written" in out
    for name in LONG[1:]:
        assert len(name.encode()) > 251 and f"skipped: {name}: too long a name" in out
    assert depth_maps.depth_file(collection, LONG[0]).is_file()
    every = photos_of(read_table(collection), collection / "images")
    missing = depth_maps.without_map(every, collection)
    assert sorted(missing) == sorted(["broken.jpg", *LONG[1:]])
    assert depth_map_generator.main(arguments(collection, tiny_pth, "--contact-sheet")) == 0


@pytest.mark.parametrize("kind", ["file", "full", "read-only", "no quota"])
def test_depths_that_take_nothing_end_the_run_before_its_work(
    collection, tiny_pth, monkeypatch, capsys, kind
):
    numbers = {"full": errno.ENOSPC, "read-only": errno.EROFS, "no quota": errno.EDQUOT}
    if kind == "file":
        (collection / "depths").write_bytes(b"")
    else:

        def refuse(*arguments, **options):
            raise OSError(numbers[kind], os.strerror(numbers[kind]))

        monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(depth_map_generator, "load_network", pytest.fail)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        depth_map_generator.main(arguments(collection, tiny_pth))
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and str(collection / "depths") in error


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x", "", "xla"])
def test_a_device_that_is_none_is_one_line(collection, tiny_pth, capsys, device):
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        depth_map_generator.main([*arguments(collection, tiny_pth), "--device", device])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and "--device" in error


def test_no_table_and_bad_settings_stop_with_exit_2(tmp_path, tiny_pth, capsys):
    for argv in (arguments(tmp_path, tiny_pth), ["--workers", "0"]):
        with pytest.raises(SystemExit) as end:
            depth_map_generator.main(argv)
        assert end.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_photos_of_many_shapes_do_not_pile_up():
    class Done:
        def __init__(self, width):
            self.tensor = np.zeros((1, 3, 14, 14 * width), np.float32)

        def result(self):
            return self.tensor, None

    reading = ((depth_map_generator.Job(str(n), Path("x"), None), Done(1 + n % 7 if n < 20 else n))
               for n in range(100))  # fmt: skip
    given = 0
    for batch in depth_map_generator.batch_by_shape(reading, 2, {}):
        given += len(batch)
        assert len({tensor.shape for _, tensor, _ in batch}) == 1
    assert given == 100


def test_fast_decode_reads_less_and_gives_nearly_the_same(tmp_path, tiny_pth):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    draw_photo(1, 1600, 1200).save(data / "images" / "large.jpg", quality=95)
    assert exif_extractor.main(["--data-dir", str(data)]) == 0
    assert depth_map_generator.main(arguments(data, tiny_pth)) == 0
    full = depth_maps.load_depth_map(depth_maps.depth_file(data, "large.jpg"))
    assert depth_map_generator.main(arguments(data, tiny_pth, "--fast-decode")) == 0
    fast = depth_maps.load_depth_map(depth_maps.depth_file(data, "large.jpg"))
    assert full.shape == fast.shape and rank_correlation(full, fast) > 0.95


SIZES = {  # stored size → longer side to which it may be decoded
    (4000, 3000): None, (9504, 6336 - 1100): None, (5000, 10_000): None, (math.nan, 3000): None,
    (0, 0): None, (12_000, 9000): 4096, (9000, 12_000): 4096, (16_320, 12_240): 4096,
    (40_000, 2600): 2 * 7970,
}  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
def test_only_very_large_photos_are_read_reduced(size):
    exact = depth_map_generator.Options("", 518, False, False, False, True)
    assert depth_map_generator.side_to_read(*size, exact) == SIZES[size]


def test_very_large_photos_give_nearly_the_same_maps(tmp_path, tiny_pth, monkeypatch, capsys):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    for number, suffix in enumerate(("jpg", "png", "tif", "webp")):
        draw_photo(number, 1600, 1200).save(data / "images" / f"large.{suffix}", quality=95)
    assert exif_extractor.main(["--data-dir", str(data)]) == 0
    run_depth(data, tiny_pth, capsys)
    whole = {path: depth_maps.load_depth_map(path) for path in maps(data)}
    monkeypatch.setattr(depth_map_generator, "WHOLE_PIXELS", 1000)
    monkeypatch.setattr(depth_map_generator, "REDUCED_SIDE", 400)
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 1000)
    read, original = [], depth_map_generator.preprocess
    monkeypatch.setattr(
        depth_map_generator, "preprocess", lambda p, s: read.append(p.shape) or original(p, s)
    )
    run_depth(data, tiny_pth, capsys, "--overwrite", "--side-by-side")
    assert read == [(300, 400, 3)] * 4
    for path, full in whole.items():
        reduced = depth_maps.load_depth_map(path)
        assert full.shape == reduced.shape and rank_correlation(full, reduced) > 0.95


@pytest.mark.slow
def test_three_photos_of_200_megapixels_take_less_than_one_and_a_half_gigabytes(tmp_path, tiny_pth):
    data = tmp_path / "data"
    (data / "images").mkdir(parents=True)
    whole = draw_photo(1, 4080, 3060).resize((16_320, 12_240), Image.Resampling.NEAREST)
    whole.save(data / "images" / "0.jpg", quality=80)
    del whole
    for number in (1, 2):
        shutil.copy(data / "images" / "0.jpg", data / "images" / f"{number}.jpg")
    assert exif_extractor.main(["--data-dir", str(data)]) == 0
    measure = (
        "import resource, subprocess, sys; code = subprocess.call(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    command = [sys.executable, str(REPOSITORY / "depth_map_generator.py")]
    done = subprocess.run(
        [sys.executable, "-c", measure, *command, *arguments(data, tiny_pth)], check=True,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "3 written" in done.stdout
    assert int(done.stdout.splitlines()[-1]) * 1024 < 1.5e9


# ---------------------------------------------------------------- maps and pictures


def test_a_dead_network_is_warned_about(collection, tmp_path, capsys):
    weights = tiny_weights()
    weights["depth_head.scratch.output_conv2.2.bias"] -= 100
    torch.save(weights, tmp_path / "dead.pth")
    assert depth_map_generator.main(arguments(collection, tmp_path / "dead.pth")) == 0
    assert capsys.readouterr().out.count("flat: every pixel") == 5
    weights["depth_head.scratch.output_conv2.2.bias"] *= np.nan
    torch.save(weights, tmp_path / "nan.pth")
    assert depth_map_generator.main(arguments(collection, tmp_path / "nan.pth")) == 1
    assert capsys.readouterr().out.count("no finite depth") == 5


def test_pictures_change_without_the_network(collection, tiny_pth, capsys):
    assert depth_map_generator.main(arguments(collection, tiny_pth)) == 0
    before = {path: path.read_bytes() for path in maps(collection)}
    capsys.readouterr()
    assert (
        depth_map_generator.main(
            arguments(collection, tiny_pth, "--side-by-side", "--contact-sheet")
        )
        == 0
    )
    assert "5 redrawn" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in maps(collection)} == before
    with Image.open(collection / "depths" / "photo_0.jpg.png") as picture:
        assert picture.size == (2 * 84, 56)
    with Image.open(collection / "depths" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 300
    assert depth_map_generator.main(arguments(collection, tiny_pth, "--no-write-png")) == 0
    assert "5 unchanged" in capsys.readouterr().out


# ---------------------------------------------------------------- processes


def test_importing_is_cheap():
    heavy = "torch", "transformers", "cv2", "matplotlib", "timm", "pandas"
    code = f"import sys, depth_map_generator; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True,
                          text=True, check=True)  # fmt: skip
    assert done.stdout.strip() == "[]"


def start(data: Path, weights: Path, launcher: tuple[str, ...] = (), **options):
    command = [sys.executable, *launcher, str(REPOSITORY / "depth_map_generator.py")]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([*command, *arguments(data, weights)], env=environment, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip


def many_photos(data: Path, count: int) -> None:
    (data / "images").mkdir(parents=True)
    for number in range(count):
        draw_photo(number).save(data / "images" / f"photo_{number:03}.png")
    assert exif_extractor.main(["--data-dir", str(data)]) == 0


@pytest.mark.slow
def test_fifty_kills_leave_whole_files_and_the_same_tree(tmp_path, tiny_pth):

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    many_photos(whole, 60)
    shutil.copytree(whole, killed)
    begin = time.perf_counter()
    assert start(whole, tiny_pth).wait() == 0
    usual_s = time.perf_counter() - begin
    rng = random.Random(4)
    for kill in range(50):
        process = start(killed, tiny_pth)
        time.sleep(rng.uniform(0.4, 1.05) * usual_s)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        for path in maps(killed):
            assert np.load(path).shape == (56, 84)
        for path in (killed / "depths").rglob("*.png"):
            Image.open(path).load()
        if kill % 5 == 4:  # much is done by now: leave half of it to do
            for path in rng.sample(maps(killed), len(maps(killed)) // 2):
                path.unlink()
    assert start(killed, tiny_pth).wait() == 0
    assert tree(killed) == tree(whole)
    assert not list(killed.rglob("*.tmp"))


@pytest.mark.slow
def test_two_processes_make_the_same_tree_as_one(tmp_path, tiny_pth):

    one, two = tmp_path / "one", tmp_path / "two"
    many_photos(one, 12)
    shutil.copytree(one, two)
    assert start(one, tiny_pth).wait() == 0
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29517")
    process = start(two, tiny_pth, launcher)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    assert "12 photos in the table: 12 written" in out
    assert tree(one) == tree(two)
    ours, theirs = (origins.read_origins(depth_maps.depth_index(data)) for data in (one, two))
    assert {n: o.sha256 for n, o in ours.items()} == {n: o.sha256 for n, o in theirs.items()}
    for file in sorted((two / "images").iterdir())[:5]:
        file.chmod(0o600)
    with_tag(draw_photo(99), two / "images" / "photo_003.png", 1)
    process = start(two, tiny_pth, launcher)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0 and "11 unchanged, 1 written" in out, error


@pytest.mark.slow
def test_a_rank_may_die(tmp_path, tiny_pth):
    data = tmp_path / "data"
    many_photos(data, 40)
    processes = []
    for rank in (0, 1):
        os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank),
                          MASTER_ADDR="127.0.0.1", MASTER_PORT="29519")  # fmt: skip
        processes.append(start(data, tiny_pth))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        del os.environ[name]
    while len(maps(data)) < 5 and processes[0].poll() is None:
        time.sleep(0.02)
    processes[1].kill()
    out, error = processes[0].communicate(timeout=300)
    processes[1].communicate()
    assert processes[0].returncode == 1, error
    assert "the rank that had it has ended" in out
    assert 20 <= len(maps(data)) < 40
    for path in maps(data):
        np.load(path)
    assert start(data, tiny_pth).wait() == 0
    assert len(maps(data)) == 40
