"""exif_extractor as people use it: the table, resuming, the command line, real files."""

import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from conftest import quietly
from exif_files import SCRIPT, exif_bytes, folder, gps_of, save, xmp_of

import density
import depth_map_generator
import exif_extractor
from benchmarks import exif_agreement
from geophoto import pictures
from geophoto.table import read_records, read_table

SHARED = Path(__file__).parents[2] / "shared"

# ---------------------------------------------------------------- the table


def run_script(*arguments, check=0, **options):
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True,
        **{"text": True, **options},
    )  # fmt: skip
    assert done.returncode == check, done.stderr + done.stdout
    return done


def test_an_empty_folder_gives_an_empty_table(tmp_path):
    (tmp_path / "images").mkdir()
    assert exif_extractor.main(["--data-dir", str(tmp_path)]) == 0
    assert len(read_table(tmp_path)) == 0


def test_unchanged_files_are_not_read_again(tmp_path):
    images, data = folder(tmp_path, 8)

    def again(**options):
        return exif_extractor.extract(images, data, 1, **options)["read"]

    assert again() == 8 and again() == 0
    before = (data / "exif_data.json").read_bytes()
    os.utime(images / "1" / "0001.jpg", ns=(0, 0))
    save(images / "new.jpg")
    (images / "2" / "0005.jpg").unlink()
    assert again() == 2 and again() == 0
    names = [row["filename"] for row in read_records(data / "exif_data.json")]
    assert names == list(pictures.find_photos(images)) and len(names) == 8
    assert (data / "exif_data.json").read_bytes() != before
    assert again(overwrite=True) == 8
    assert again(round_km=1.0) == 8  # coarse rows are never taken for exact ones
    assert again() == 8
    (data / "exif_data.csv").unlink()
    again()
    assert (data / "exif_data.csv").exists()


def edit_in_place(photo: Path, other: bytes) -> None:
    photo.write_bytes(other)


def write_anew(photo: Path, other: bytes) -> None:  # as exiftool -P does
    photo.with_suffix(".new").write_bytes(other)
    os.replace(photo.with_suffix(".new"), photo)


def copy_over(photo: Path, other: bytes) -> None:  # cp -p
    source = photo.with_name("source")
    source.write_bytes(other)
    os.utime(source, ns=(photo.stat().st_mtime_ns,) * 2)
    shutil.copy2(source, photo)
    source.unlink()


def link_elsewhere(photo: Path, other: bytes) -> None:
    target = photo.with_name("target")
    target.write_bytes(other)
    os.utime(target, ns=(photo.stat().st_mtime_ns,) * 2)
    photo.unlink()
    photo.symlink_to(target.name)


@pytest.mark.parametrize("change", [edit_in_place, write_anew, copy_over, link_elsewhere])
@pytest.mark.parametrize("others", [0, 40])
def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path, change, others):
    images, data = tmp_path / "images", tmp_path / "data"
    photo = save(images / "a.jpg", exif_bytes({}, {0x9003: b"2020:01:02 03:04:05"}))
    for number in range(others):
        save(images / f"other_{number}.jpg")
    other = photo.read_bytes().replace(b"2020:01:02", b"2021:12:11")
    exif_extractor.extract(images, data, 1)
    before = photo.stat()
    change(photo, other)
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = photo.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert exif_extractor.extract(images, data, 1)["read"] == 1
    assert next(read_records(data / "exif_data.json"))["datetime"] == "2021-12-11T03:04:05"
    assert exif_extractor.extract(images, data, 1)["read"] == 0


@pytest.mark.parametrize("years", [-300, -60, 60, 300, 2000, 9000])
def test_a_time_far_off_makes_no_work_anew(tmp_path, years):
    images, data = folder(tmp_path, 3)
    try:
        os.utime(images / "0" / "0000.jpg", (1.7e9, 1.7e9 + years * 31_556_952.0))
    except OverflowError:
        pytest.skip("no such time here")
    assert exif_extractor.extract(images, data, 1)["read"] == 3
    assert exif_extractor.extract(images, data, 1)["read"] == 0


def test_a_damaged_memory_costs_time_and_nothing_else(tmp_path):
    images, data = folder(tmp_path, 6)
    exif_extractor.extract(images, data, 1)
    table = (data / "exif_data.json").read_bytes()
    stamps = (data / ".exif_data.stamps").read_bytes()
    for damaged in (b"", stamps[:100], stamps.replace(b",", b";"), b"[]\n" * 6, b"5\n" * 6,
                    b"\0" * 300, stamps + stamps):  # fmt: skip
        (data / ".exif_data.stamps").write_bytes(damaged)
        assert exif_extractor.extract(images, data, 1)["photos"] == 6
        assert (data / "exif_data.json").read_bytes() == table
    for damaged in (b"", b"{", b"[1]", b'{"made": 1}', b"\xff\xfe"):
        (data / ".exif_data.state.json").write_bytes(damaged)
        assert exif_extractor.extract(images, data, 1)["read"] == 6
    header = json.dumps(
        json.loads((data / ".exif_data.state.json").read_text())["made"][0]
    ).encode()
    (data / ".exif_data.state.json").unlink()
    for number, rest in enumerate((b"", b"[1, 2]\n", b"\0\0\n", b'[["0/0000.jpg"], {}]\n', b"7\n")):
        (data / f".exif_data.{number:04d}.journal").write_bytes(header + b"\n" + rest)
    assert exif_extractor.extract(images, data, 1)["read"] == 6
    assert (data / "exif_data.json").read_bytes() == table


@pytest.mark.parametrize("figure", sorted(exif_extractor.RESULT))
def test_what_an_earlier_version_noted_may_lack_a_figure(tmp_path, figure):
    images, data = folder(tmp_path)
    first = exif_extractor.extract(images, data, 1)
    state = data / ".exif_data.state.json"
    noted = json.loads(state.read_text())
    del noted["result"][figure]
    state.write_text(json.dumps(noted))
    again = exif_extractor.extract(images, data, 1)
    assert again["read"] == 0 and again.keys() == first.keys()
    assert json.loads(state.read_text())["result"].keys() >= exif_extractor.RESULT


def test_a_new_format_of_rows_reads_everything_again(tmp_path, monkeypatch):
    images, data = folder(tmp_path)
    exif_extractor.extract(images, data, 1)
    monkeypatch.setattr(exif_extractor, "TABLE_FORMAT", 999)
    assert exif_extractor.extract(images, data, 1)["read"] == 6


def test_a_killed_run_goes_on_where_it_was(tmp_path):
    images, data = folder(tmp_path, 4)
    for number in range(1500):
        os.link(images / "0" / "0000.jpg", images / f"{number:05d}.jpg")
    slow = (
        "import sys, time, exif_extractor\n"
        "from geophoto import readers as e\n"
        "read = e.read_photo\n"
        "def slowly(path):\n    time.sleep(0.002)\n    return read(path)\n"
        "e.read_photo = slowly\n"
        f"arguments = ['--image-dir', {str(images)!r}, '--data-dir', {str(data)!r}]\n"
        "exif_extractor.main([*arguments, '--workers', '2'])\n"
    )
    done = 0
    for _ in range(2):
        child = subprocess.Popen(
            [sys.executable, "-c", slow], cwd=SCRIPT.parent, start_new_session=True
        )
        limit = time.monotonic() + 60
        while time.monotonic() < limit:
            lines = sum(
                len(p.read_bytes().splitlines()) - 1 for p in data.glob(".exif_data.*.journal")
            )
            if lines > done:
                break
            time.sleep(0.01)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        assert not (data / "exif_data.json").exists()
        done = sum(len(p.read_bytes().splitlines()) - 1 for p in data.glob(".exif_data.*.journal"))
        assert done
    result = exif_extractor.extract(images, data, 1)
    assert result["photos"] == 1504 and result["read"] <= 1504 - done + 2
    names = [row["filename"] for row in read_records(data / "exif_data.json")]
    assert names == list(pictures.find_photos(images))
    assert not list(data.glob(".exif_data.*.journal"))


# ---------------------------------------------------------------- as people use it


def test_command_line_end_to_end(tmp_path):
    images, data = folder(tmp_path, 5)
    (images / "broken.jpg").write_bytes(b"nothing")
    (images / "raw.NEF").touch()
    common = ("--image-dir", images, "--data-dir", data)
    done = run_script(*common, "--geojson")
    assert "6 photos: 5 with metadata, 0 without, 1 unreadable" in done.stdout
    for words in (
        "position 5",
        "altitude 5",
        "Normal 5",
        "Maker (5)",
        "broken.jpg: not_an_image",
        "raw.NEF",
    ):
        assert words in done.stdout
    folders = f"--data-dir {data} --image-dir {images}"
    assert done.stdout.endswith(f"next: python depth_map_generator.py {folders}\n")
    shapes = json.loads((data / "exif_data.geojson").read_text())
    assert [round(f["geometry"]["coordinates"][1], 6) for f in shapes["features"]] == [
        45,
        45.03,
        45.01,
        45.04,
        45.02,
    ]
    done = run_script(*common, "--strict", check=1)
    assert "6 unchanged" in done.stdout
    done = run_script("--data-dir", tmp_path / "nowhere", check=2)
    assert done.stderr.count("\n") == 1 and "nowhere" in done.stderr
    run_script(*common, "--workers", "0", check=2)
    assert "Exit codes" in run_script("--help").stdout


def test_the_summary_counts_sources_and_says_what_doubts_mean(tmp_path):
    images, noon = tmp_path / "images", b"2024:01:18 12:00:00"
    place = gps_of(48.2, 16.37)
    old = {7: ((3, 1), (7, 1), (0, 1)), 29: b"2024:01:18"}
    guess = {27: b"estimate: rgb"}
    save(images / "1.jpg", exif_bytes({}, {0x9003: noon, 0x9011: b"-05:00"}, place))
    save(images / "2.jpg", exif_bytes({}, {0x9003: noon}, place | old))
    save(images / "3.jpg", exif_bytes({}, {0x9003: b"2563:01:18 12:00:00"}, place | guess))
    save(images / "4.jpg", exif_bytes({0x0131: b"Editor"}))
    save(images / "5.jpg", exif_bytes({}, {0x9003: noon}, place))
    (images / "5.jpg.xmp").write_bytes(
        xmp_of({"exif:GPSLatitude": "10N", "exif:GPSLongitude": "20E"})
    )
    save(images / "6.jpg")
    told = {"photoTakenTime": {"timestamp": "1630106806"}}
    (images / "6.jpg.json").write_text(json.dumps(told))
    save(images / "7.jpg")
    lines = exif_extractor.extract(images, tmp_path, 1)["lines"]
    assert lines[0] == "7 photos: 5 with metadata, 1 without, 1 with none of use, 0 unreadable"
    assert "position 4 (estimate 1, exif 2, sidecar 1)" in lines[1]
    assert "UTC 4 (offset_tag 1, position_timezone 2, takeout 1)" in lines[1]
    for code in ("clock_elsewhere", "fix_stale", "date_doubtful", "gps_differs"):
        assert f"    {code}: {exif_extractor.MEANINGS[code]}" in lines
        assert any(f"{code} 1" in line for line in lines)
    assert "  1 positions are estimates that these scripts wrote: no labels" in lines
    assert not any("sidecar_damaged" in line or "takeout" in line for line in lines[2:])
    with open(tmp_path / "exif_data.csv", encoding="utf-8", newline="") as file:
        sheet = {row["filename"]: row for row in csv.DictReader(file)}
    assert sheet["1.jpg"]["datetime_at_place"] == "2024-01-18T18:00:00"
    assert sheet["4.jpg"]["status"] == "empty_exif" and sheet["7.jpg"]["status"] == "no_exif"


def test_rounding_hides_places_also_from_the_sun(tmp_path):
    images = tmp_path / "images"
    for number in range(12):
        gps = gps_of(46.0 + number * 0.0003, 7.0, _31=(3, 1))
        save(images / f"{number}.jpg", exif_bytes({}, {0x9003: b"2020:01:02 12:00:00"}, gps))
    exif_extractor.extract(images, tmp_path, 2, round_km=1.0)
    rows = list(read_records(tmp_path / "exif_data.json"))
    places = {(row["gps_latitude"], row["gps_longitude"]) for row in rows}
    assert len(places) <= 2 and len({row["sun_elevation_deg"] for row in rows}) == len(places)
    assert all(row["gps_accuracy_m"] >= 1000 for row in rows)
    assert all(abs(row["gps_latitude"] - 46) < 0.03 for row in rows)


def test_importing_is_cheap():
    code = (
        "import sys, exif_extractor;"
        "heavy = {'numpy._core', 'pandas', 'PIL', 'astral', 'tzfpy', 'torch', 'h3', 'tqdm'};"
        "heavy &= set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parent, check=True)


@pytest.mark.parametrize("name", ["x" * 251, "x" * 246, "é" * 123, "写" * 83, "x" * 215])
def test_names_as_long_as_the_disk_takes_them(tmp_path, name):
    images, data = folder(tmp_path, 2)
    save(images / name[:100] / f"{name}.jpg"[-255:])
    for read in (3, 0):
        assert exif_extractor.extract(images, data, 1)["read"] == read
    assert all(pictures.photo_file(images, n).is_file() for n in read_table(data)["filename"])


def test_the_data_folder_may_be_the_photo_folder(photo_set, tmp_path):
    """What three runs of the scripts write there is no photo in the next one."""
    for name in ("one.jpg", "two.jpg", "sub/three.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(photo_set.images / "day_0" / "IMG_000.jpg", tmp_path / name)
    folders = ["--data-dir", tmp_path, "--image-dir", tmp_path]
    model = ["--depth-model", photo_set.depth_weights, "--input-size", 56, "--contact-sheet"]
    for _ in range(3):
        for main, *more in (
            (exif_extractor.main, *folders),
            (depth_map_generator.main, *folders, *model),
            (density.main, "--data-dir", tmp_path),
        ):
            code, printed = quietly(main, *more)
            assert code == 0, printed
        names = [row["filename"] for row in read_records(tmp_path / "exif_data.json")]
        assert names == ["one.jpg", "sub/three.jpg", "two.jpg"]
    assert len(list(tmp_path.rglob("*.png"))) == 4


WITHOUT_ZONES = "import sys; sys.modules['tzdata'] = None; import exif_extractor as e; e.main()"


def run_without_zones(images, data) -> str:
    """As on a computer whose system has no time zone data, without the package that brings it."""
    code = WITHOUT_ZONES.replace("main()", f"main(['--image-dir', {str(images)!r}, '--data-dir', "
                                 f"{str(data)!r}])")  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SCRIPT.parent, env=os.environ | {"PYTHONTZPATH": ""},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_missing_time_zone_data_is_said_once_and_made_up_for(tmp_path):
    images, data = folder(tmp_path, 3)  # with place and time, without offset
    save(images / "no time.jpg", exif_bytes(gps=gps_of(45, 7)))
    save(images / "no place.jpg", exif_bytes({}, {0x9003: b"2020:01:02 03:04:05"}))
    offset = exif_bytes({}, {0x9003: b"2020:01:02 03:04:05", 0x9011: b"+02:00"})
    save(images / "offset.jpg", offset)
    for count in (6, 3):  # said in every run, as those rows are tried again
        printed = run_without_zones(images, data)
        assert printed.count("pip install tzdata") == 1 and f"{count} files read" in printed
        assert "UTC 1 (offset_tag 1)" in printed
    done = run_script("--image-dir", images, "--data-dir", data)
    assert "tzdata" not in done.stdout and "3 files read, 3 unchanged" in done.stdout
    assert "UTC 4 (offset_tag 1, position_timezone 3)" in done.stdout


def without_bar(written: str) -> str:
    """A busy machine takes the second that shows the bar; it has a line of its own."""
    return "".join(line for line in written.splitlines(True) if "photos/s]" not in line)


def in_the_way(data: Path, kind: str) -> dict:
    """Make a data folder that nothing can be written to; environment and limits of the run."""
    if kind == "a file in its place":
        data.write_bytes(b"")
    elif kind == "a folder in the table's place":
        (data / "exif_data.json").mkdir(parents=True)
    elif kind == "full":  # as far as the system tells a program: the file may not grow
        return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))}
    return {}


@pytest.mark.parametrize(
    "kind", ["a file in its place", "a folder in the table's place", "full", "/proc/no folder"]
)
def test_a_data_folder_that_cannot_be_written_to_is_one_line(tmp_path, kind):
    images, data = folder(tmp_path, 12)
    if kind.startswith("/"):
        data = Path(kind)
    done = run_script("--image-dir", images, "--data-dir", data, check=2, **in_the_way(data, kind))
    told = without_bar(done.stderr)
    assert told.count("\n") == 1 and str(data) in told and not done.stdout


def test_a_full_disk_leaves_the_old_table(tmp_path):
    images, data = folder(tmp_path, 4)
    run_script("--image-dir", images, "--data-dir", data)
    before = {path: path.read_bytes() for path in data.iterdir()}
    for number in range(8):
        shutil.copy(images / "0" / "0000.jpg", images / f"new_{number}.jpg")
    full = in_the_way(data, "full")
    done = run_script("--image-dir", images, "--data-dir", data, check=2, **full)
    assert without_bar(done.stderr).count("\n") == 1 and not list(data.glob("*.tmp"))
    assert all(path.read_bytes() == content for path, content in before.items())
    done = run_script("--image-dir", images, "--data-dir", data)
    assert done.stdout.startswith("12 photos: 12 with metadata")


def test_a_photo_folder_that_cannot_be_listed_leaves_the_old_table(tmp_path, monkeypatch, capsys):
    images, data = folder(tmp_path, 4)
    arguments = ["--image-dir", str(images), "--data-dir", str(data)]
    assert exif_extractor.main(arguments) == 0
    before = (data / "exif_data.json").read_bytes()

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SystemExit) as stopped:
        exif_extractor.main(arguments)
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and str(images) in error
    assert (data / "exif_data.json").read_bytes() == before


def test_photos_without_any_position_are_not_sent_on(tmp_path):
    """The trainer would refuse them, after the minutes that depth maps take."""
    save(tmp_path / "images" / "a.jpg", exif_bytes({0x010F: b"Make"}))
    done = run_script("--data-dir", tmp_path)
    assert done.returncode == 0 and "no photo has a position" in done.stdout.splitlines()[-1]
    assert "next:" not in done.stdout
    save(tmp_path / "images" / "b.jpg", exif_bytes({0x010F: b"Make"}, gps=gps_of(1, 2)))
    assert "next: python depth_map_generator.py" in run_script("--data-dir", tmp_path).stdout


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "latin-1", "cp437"])
def test_output_that_cannot_show_a_name_shows_what_it_can(tmp_path, encoding):
    images = tmp_path / "images − 写真"
    save(images / "−5 °C.jpg", exif_bytes({0x010F: "Mäker ™".encode()}, gps=gps_of(1, 2)))
    for name in ("写真.dng".encode(), b"latin-\xe9.gif"):
        Path(os.fsdecode(os.path.join(os.fsencode(images), name))).touch()
    (images / "−.jpg").write_bytes(b"nothing")
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    done = run_script(
        "--image-dir", images, "--data-dir", tmp_path / "−", env=environment, encoding=encoding
    )
    assert "1 unreadable" in done.stdout and "RAW, not supported: 1: ??.dng" in done.stdout
    assert "next: python depth_map_generator.py --data-dir" in done.stdout


# ---------------------------------------------------------------- real files


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    packed = SHARED / "exif_corpus" / "public.tar.gz"
    if not packed.exists():
        pytest.skip("no corpus beside the repository")
    place = tmp_path_factory.mktemp("corpus")
    with tarfile.open(packed) as archive:
        archive.extractall(place, filter="data")
    return next(place.rglob("oracle.json")).parent


def test_agreement_with_exiftool_on_real_files(corpus):
    counts, named, rows = exif_agreement.compare(corpus)
    oracle = json.loads((corpus / "oracle.json").read_text())
    assert len(rows) == len(oracle)
    assert not [row for row in rows if "reader_" in (row["warnings"] or "")]
    unexplained = [line for line in named if not exif_agreement.reason(line)]
    assert not unexplained, "\n".join(unexplained)
    for field in exif_agreement.STRICT:
        assert counts[field]["missing"] == counts[field]["different"] == 0


@pytest.mark.parametrize("name", ["ground_open", "aerial_odm_cc0"])
def test_labels_of_real_photos(tmp_path, name):
    source = SHARED / "photos" / name
    if not source.exists():
        pytest.skip("no photos beside the repository")
    exif_extractor.extract(source / "images", tmp_path, 2)
    rows = {row["filename"]: row for row in read_records(tmp_path / "exif_data.json")}
    with open(source / "labels.csv", encoding="utf-8") as file:
        labels = list(csv.DictReader(file))
    assert len(rows) == len(labels)
    for label in labels:
        row = rows[label["file"].removeprefix("images/")]
        if row["gps_latitude"] is not None:
            assert row["gps_latitude"] == pytest.approx(float(label["lat"]), abs=1e-5)
            assert row["gps_longitude"] == pytest.approx(float(label["lon"]), abs=1e-5)
        if row["gps_altitude"] is not None:
            assert row["gps_altitude"] == pytest.approx(float(label["altitude_m"]), abs=0.06)
        if row["datetime"]:
            assert (
                row["datetime"][:19].replace("-", ":").replace("T", " ")
                == label["datetime_original"]
            )
        assert str(int(row["orientation_tag"] or 1)) == (label["orientation"] or "1")
        if label["utc"] and row["datetime_utc"]:
            utc = datetime.fromisoformat(label["utc"]).replace(tzinfo=None)
            apart = utc - datetime.fromisoformat(row["datetime_utc"])
            assert abs(apart) <= timedelta(minutes=16), row["filename"]
