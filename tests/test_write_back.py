"""Estimates written beside and into copies of photos: read back by ExifTool and our own extractor,
never over a position, nothing else changed, and all of it undone."""

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import piexif
import pytest
from conftest import REPOSITORY, exif_bytes, quietly
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import evaluate_gps_model as evaluator
import exif_extractor
from geophoto import write_back as write_back_room
from geophoto.labels import read_photo
from geophoto.packets import xmp_angle
from geophoto.photos import photos_of
from geophoto.sidecar_edits import cut_block, extend_sidecar, new_sidecar, xmp_degrees
from geophoto.table import read_table
from geophoto.write_back import plan, plan_table, read_list, undo, write_back

PLACES = {"a.jpg": (48.508333, 2.25), "b.png": (-33.856789, 151.215), "c.webp": (0.000012, -0.5),
          "d.tif": (-77.85, -166.666667), "e.heic": (59.9, 179.999999)}  # fmt: skip
METHOD = "estimate: time and RGB resnet50"
exiftool = pytest.mark.skipif(not shutil.which("exiftool"), reason="ExifTool is not installed")


def save(path: Path, exif: bytes | None = None) -> Path:
    import pillow_heif

    pillow_heif.register_heif_opener()
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(3).integers(0, 256, (48, 64, 3), np.uint8)
    more = {"exif": exif} if exif else {}
    if path.suffix == ".webp":
        more["lossless"] = True
    Image.fromarray(pixels).save(path, **more)
    os.utime(path, ns=(1_500_000_000_123_456_789, 1_400_000_000_987_654_321))
    return path


def answers(names=PLACES, **columns) -> pd.DataFrame:
    rows = [
        {"filename": name, "latitude": PLACES.get(name, (10.5, 20.5))[0],
         "longitude": PLACES.get(name, (10.5, 20.5))[1], "radius50_km": 0.1, "radius90_km": 0.3,
         "confident": True, "altitude_m": 123.4} | columns
        for name in names
    ]  # fmt: skip
    return pd.DataFrame(rows)


def write(images: Path, folder: Path, kind="sidecar", told=None, every=False):
    told = answers() if told is None else told
    journal = images.parent / "evaluation" / "written.json"
    return write_back(plan(told, images, folder, kind, METHOD, every), journal), journal


def state(folder: Path) -> dict:
    return {
        str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*")) if path.is_file()
    }  # fmt: skip


def by_exiftool(path: Path) -> dict:
    done = subprocess.run(["exiftool", "-n", "-j", "-a", "-G1", path], capture_output=True)
    return json.loads(done.stdout)[0]


@pytest.fixture
def images(tmp_path) -> Path:
    for name in PLACES:
        save(tmp_path / "images" / name)
    return tmp_path / "images"


# ---------------------------------------------------------------- values


@given(st.floats(-180, 180))
def test_degrees_of_xmp_are_read_back(degrees):
    written = xmp_degrees(degrees, "EW")
    value, letter = xmp_angle(written, None, "EW")
    assert abs((-value if letter == "W" else value) - degrees) <= 1e-8 + 1e-9
    assert float(written[:-1].split(",")[1]) < 60


def test_the_form_of_the_design():
    assert xmp_degrees(48.508333333, "NS") == "48,30.500000N"
    assert xmp_degrees(-0.9999999999, "NS") == "1,00.000000S"


# ---------------------------------------------------------------- sidecars


def test_new_sidecars_of_every_format(images):
    before = state(images)
    table, _ = write(images, images)
    assert list(table["action"]) == ["new sidecar"] * 5
    after = state(images)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {f"{name}.xmp" for name in PLACES}
    for name, place in PLACES.items():
        row = read_photo(str(images / name), str(images / f"{name}.xmp"))
        assert row["gps_source"] == "estimate" and row["gps_accuracy_m"] == 300
        found = row["gps_latitude"], row["gps_longitude"]
        assert found == pytest.approx(place, abs=1e-6)
        text = after[f"{name}.xmp"][0].decode()
        assert "Ref" not in text and "GPSTimeStamp" not in text and "GPSDate" not in text


@exiftool
@pytest.mark.parametrize("name", PLACES)
def test_exiftool_reads_the_sidecars(images, name):
    write(images, images)
    found = by_exiftool(images / f"{name}.xmp")
    assert found["XMP-exif:GPSLatitude"] == pytest.approx(PLACES[name][0], abs=1e-6)
    assert found["XMP-exif:GPSLongitude"] == pytest.approx(PLACES[name][1], abs=1e-6)
    assert found["XMP-exif:GPSHPositioningError"] == 300
    assert found["XMP-exif:GPSAltitude"] == pytest.approx(123.4)
    assert found["XMP-exif:GPSProcessingMethod"] == METHOD
    assert found["XMP-photoshop:SidecarForExtension"] == name.rpartition(".")[2]


def test_the_extractor_takes_them_for_estimates_and_training_for_nothing(images):
    write(images, images)
    data = images.parent
    code, printed = quietly(exif_extractor.main, "--data-dir", data, "--workers", 1)
    assert code == 0, printed
    table = read_table(data)
    assert (table["gps_source"] == "estimate").all() and len(table) == 5
    assert not photos_of(table, images).placed.any()


RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
XMP = 'xmlns:xmp="http://ns.adobe.com/xap/1.0/"'
HEAD = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="{RDF}">'
TAIL = "</r:RDF></x:xmpmeta>"
PLAIN = f'{HEAD}<r:Description r:about="" {XMP} xmp:Rating="4"/>{TAIL}'
NESTED = (
    f'{HEAD}\r\n<!-- </r:RDF> -->\r\n<r:Description r:about="uuid:1" '
    "xmlns:dc='http://purl.org/dc/elements/1.1/'><dc:subject><r:Bag><r:li>é 写真 &amp;</r:li>"
    f'</r:Bag></dc:subject></r:Description>\r\n{TAIL}<!-- end -->\r\n<?xpacket end="w"?>'
)
EXISTING = {
    "attributes": PLAIN.encode(),
    "byte order mark and packet": b'\xef\xbb\xbf<?xpacket begin="\xef\xbb\xbf" id="W5"?>\n'
    + PLAIN.encode(),
    "nested, CRLF, comments": NESTED.encode(),
    "UTF-16": NESTED.encode("utf-16"),
    "declared": b'<?xml version="1.0" encoding="UTF-8"?>' + PLAIN.encode(),
    "without descriptions": (HEAD + TAIL).encode(),
}


@pytest.mark.parametrize("kind", EXISTING)
def test_an_existing_sidecar_keeps_what_it_says(images, kind):
    sidecar, content = images / "a.jpg.xmp", EXISTING[kind]
    sidecar.write_bytes(content)
    table, journal = write(images, images)
    assert table["action"][0] == "extend sidecar"
    row = read_photo(str(images / "a.jpg"), str(sidecar))
    assert row["gps_latitude"] == pytest.approx(PLACES["a.jpg"][0], abs=1e-6)
    assert row["gps_source"] == "estimate" and "sidecar_damaged" not in row["warnings"]
    block = read_list(journal)[0]["block"]
    code = "utf-16-le" if kind == "UTF-16" else "utf-8"
    made = sidecar.read_bytes()
    assert made.decode(code).replace(block, "") == content.decode(code) and len(block) > 100
    if shutil.which("exiftool") and kind != "UTF-16":  # which ExifTool finds nothing in anyway
        found = by_exiftool(sidecar)
        assert found["XMP-exif:GPSLatitude"] == pytest.approx(PLACES["a.jpg"][0], abs=1e-6)
    undo(journal)
    assert sidecar.read_bytes() == content and not (images / "b.png.xmp").exists()


DOCTYPE = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY e "x">]>'
REFUSED = {
    "entities": DOCTYPE + PLAIN.encode(),
    "damaged": PLAIN.encode()[:-20],
    "no XMP": b"<a><b/></a>",
    "empty": b"",
    "Latin-1": b'<?xml version="1.0" encoding="ISO-8859-1"?>' + PLAIN.encode(),
    "a method of its own": PLAIN.replace(
        "xmp:Rating", 'xmlns:exif="http://ns.adobe.com/exif/1.0/" exif:GPSProcessingMethod="GPS" '
        "xmp:Rating").encode(),
    "self-closed": HEAD.replace("#\">", '#"/></x:xmpmeta>').encode(),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_a_sidecar_that_cannot_be_extended_stays_and_is_named(images, kind):
    (images / "a.jpg.xmp").write_bytes(REFUSED[kind])
    table, journal = write(images, images)
    assert table["action"][0] == "skip" and table["why"][0]
    assert (images / "a.jpg.xmp").read_bytes() == REFUSED[kind]
    assert len(read_list(journal)) == 4


POSITION = (
    PLAIN.replace("xmp:Rating", 'xmlns:exif="http://ns.adobe.com/exif/1.0/" '
                  'exif:GPSLatitude="48,30N" exif:GPSLongitude="2,15E" xmp:Rating').encode()
)  # fmt: skip


@pytest.mark.parametrize("kind", ["sidecar", "copies"])
@pytest.mark.parametrize("where", ["exif", "sidecar", "stem", "both names", "takeout", "half"])
def test_a_position_is_never_replaced(tmp_path, kind, where):
    images = tmp_path / "images"
    save(images / "a.jpg", exif_bytes(1.0, 2.0, None, None, 1) if where == "exif" else None)
    beside = {"sidecar": "a.jpg.xmp", "stem": "a.xmp", "both names": "a.xmp", "half": "a.jpg.xmp"}
    if where in beside:
        half = POSITION.replace(b'exif:GPSLongitude="2,15E"', b"")
        (images / beside[where]).write_bytes(half if where == "half" else POSITION)
    if where == "both names":
        (images / "a.jpg.xmp").write_bytes(PLAIN.encode())
    if where == "takeout":
        told = {"title": "a.jpg", "geoData": {"latitude": 1.5, "longitude": 2.5, "altitude": 0}}
        (images / "a.jpg.json").write_text(json.dumps(told))
    before = state(images)
    table, journal = write(images, tmp_path / "out", kind, answers(["a.jpg"]), every=True)
    assert table["action"][0] == "skip" and "position" in table["why"][0]
    assert state(images) == before and not (tmp_path / "out").exists() and not journal.exists()


def test_what_is_not_confident_is_written_only_when_asked_for(images):
    unsure = answers(confident=False)
    assert set(write(images, images, told=unsure)[0]["why"]) == {"not confident"}
    assert set(write(images, images, told=unsure, every=True)[0]["action"]) == {"new sidecar"}
    again = write(images, images, told=unsure, every=True)[0]
    assert set(again["why"]) == {"an estimate is written already"}


def test_a_sidecar_of_another_extension_is_not_this_photos(images):
    raw = PLAIN.replace("xmp:Rating", 'xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" '
                        'photoshop:SidecarForExtension="NEF" xmp:Rating').encode()  # fmt: skip
    (images / "a.xmp").write_bytes(raw)
    table, _ = write(images, images)
    assert table["action"][0] == "new sidecar" and (images / "a.xmp").read_bytes() == raw


def test_sidecars_elsewhere_hold_what_those_beside_the_photos_say(images, tmp_path):
    (images / "a.xmp").write_bytes(PLAIN.encode())
    before = state(images)
    _, journal = write(images, tmp_path / "out")
    assert state(images) == before
    assert b'xmp:Rating="4"' in (tmp_path / "out/a.xmp").read_bytes()
    assert set(undo(journal)["done"]) == {"removed"} and not list((tmp_path / "out").iterdir())


# ---------------------------------------------------------------- copies


@pytest.mark.parametrize("name", ["a.jpg", "c.webp", "d.tif"])
@pytest.mark.parametrize("camera", [False, True])
def test_copies_have_the_same_pixels(tmp_path, name, camera):
    if (camera or name == "d.tif") and not shutil.which("exiftool"):
        pytest.skip("ExifTool is not installed")
    exif = exif_bytes(None, None, None, None, 6) if camera else None
    file = save(tmp_path / "images" / name, exif)
    before = state(tmp_path / "images")
    table, journal = write(tmp_path / "images", tmp_path / "out", "copies", answers([name]))
    by = "copy by ExifTool" if camera or name == "d.tif" else "copy"
    assert list(table["action"]) == [by], table["why"][0]
    assert state(tmp_path / "images") == before
    made = tmp_path / "out" / name
    with Image.open(made) as copy, Image.open(file) as original:
        assert np.array_equal(np.asarray(copy), np.asarray(original))
    assert made.stat().st_mtime_ns == file.stat().st_mtime_ns
    row = read_photo(str(made))
    assert row["gps_source"] == "estimate" and row["gps_accuracy_m"] == 300
    assert row["gps_altitude"] == pytest.approx(123.4)
    assert (row["gps_latitude"], row["gps_longitude"]) == pytest.approx(PLACES[name], abs=1e-6)
    if camera:
        assert row["orientation_tag"] == 6 and row["camera_make"] == "Maker"
    if shutil.which("exiftool"):
        found = by_exiftool(made)
        assert found["GPS:GPSLatitude"] == pytest.approx(abs(PLACES[name][0]), abs=1e-6)
        assert found["GPS:GPSLongitudeRef"] == ("W" if PLACES[name][1] < 0 else "E")
        assert found["GPS:GPSProcessingMethod"] == METHOD
        assert not any("GPSTimeStamp" in key or "GPSDateStamp" in key for key in found)
    assert list(undo(journal)["done"]) == ["removed"] and not made.exists()


def test_a_copy_keeps_every_other_byte_of_a_jpeg(images, tmp_path):
    write(images, tmp_path / "out", "copies")
    original, made = (images / "a.jpg").read_bytes(), (tmp_path / "out/a.jpg").read_bytes()
    grown = len(made) - len(original)
    assert original[:20] == made[:20] and original[20:] == made[20 + grown :]  # behind JFIF
    assert piexif.load(made)["GPS"][piexif.GPSIFD.GPSLatitudeRef] == b"N"


def test_a_webp_keeps_its_profile_and_transparency(tmp_path):
    from PIL import ImageCms

    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    file = tmp_path / "images/c.webp"
    file.parent.mkdir()
    Image.fromarray(pixels).save(file, lossless=True, exact=True, icc_profile=profile)
    write(file.parent, tmp_path / "out", "copies", answers(["c.webp"]))
    with Image.open(tmp_path / "out/c.webp") as copy, Image.open(file) as original:
        assert np.array_equal(np.asarray(copy), np.asarray(original)) and copy.mode == "RGBA"
        assert copy.info["icc_profile"] == profile


def test_what_no_copy_is_made_of_is_named(images, tmp_path, monkeypatch):
    save(images / "f.jpg", exif_bytes(None, None, None, None, 6))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.jpg").write_bytes(b"mine")
    monkeypatch.setenv("PATH", str(tmp_path))
    table, _ = write(images, tmp_path / "out", "copies", answers([*PLACES, "f.jpg", "gone.jpg"]))
    why = dict(zip(table["filename"], table["why"], strict=True))
    assert "exists" in why["a.jpg"] and (tmp_path / "out/a.jpg").read_bytes() == b"mine"
    assert "no copies of png" in why["b.png"] and "no copies of heic" in why["e.heic"]
    assert "ExifTool is not installed" in why["d.tif"] and "not installed" in why["f.jpg"]
    assert why["gone.jpg"] == "the photo is gone" and why["c.webp"] == ""


@pytest.mark.parametrize("kind", ["sidecar", "copies"])
def test_a_disk_without_rights_takes_the_files_all_the_same(images, tmp_path, monkeypatch, kind):
    """As on FAT: a file that is made is in the list, and undone."""
    if kind == "sidecar":
        (images / "a.jpg.xmp").write_bytes(PLAIN.encode())

    def refuse(path, mode):
        raise PermissionError(1, "Operation not permitted", path)

    monkeypatch.setattr(os, "chmod", refuse)
    before, folder = state(images), images if kind == "sidecar" else tmp_path / "copies"
    table, journal = write(images, folder, kind, answers(["a.jpg", "c.webp"]))
    wanted = {"sidecar": ["extend sidecar", "new sidecar"], "copies": ["copy", "copy"]}[kind]
    assert list(table["action"]) == wanted
    listed = {Path(entry["path"]).name for entry in read_list(journal)}
    assert listed == ({"a.jpg.xmp", "c.webp.xmp"} if kind == "sidecar" else {"a.jpg", "c.webp"})
    undo(journal)
    assert {n: c for n, (c, _) in state(images).items()} == {n: c for n, (c, _) in before.items()}
    assert kind == "sidecar" or not state(folder)


# ---------------------------------------------------------------- undo


def test_undo_leaves_what_others_wrote_since(images):
    _, journal = write(images, images)
    edited = images / "b.png.xmp"
    more = (
        b'<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="5"/>'
    )
    edited.write_bytes(edited.read_bytes().replace(b"</rdf:RDF>", more + b"</rdf:RDF>"))
    os.remove(images / "c.webp.xmp")
    (images / "d.tif.xmp").write_bytes(PLAIN.encode())
    done = dict(undo(journal)[["filename", "done"]].itertuples(index=False))
    assert done == {
        "a.jpg": "removed", "b.png": "our properties taken out", "c.webp": "gone already",
        "d.tif": "nothing of ours in it", "e.heic": "removed",
    }  # fmt: skip
    row = read_photo(str(images / "b.png"), str(edited))
    assert row["gps_latitude"] is None and b'xmp:Rating="5"' in edited.read_bytes()
    assert (images / "d.tif.xmp").read_bytes() == PLAIN.encode() and not journal.exists()


def test_undo_finds_its_properties_in_a_file_that_was_rewritten():
    told = {"exif:GPSLatitude": "1,00.000000N", "exif:GPSLongitude": "2,00.000000E",
            "exif:GPSHPositioningError": "300/1", "exif:GPSProcessingMethod": METHOD}  # fmt: skip
    _, block = extend_sidecar(PLAIN.encode(), told)
    as_attributes = PLAIN.replace(
        "xmp:Rating", 'xmlns:exif="http://ns.adobe.com/exif/1.0/" '
        + " ".join(f'{name}="{value}"' for name, value in told.items()) + " xmp:Rating"
    )  # fmt: skip
    rest = cut_block(as_attributes.encode(), block, told)
    assert b"GPS" not in rest and b'xmp:Rating="4"' in rest
    moved = as_attributes.replace("1,00.000000N", "9,00.000000N")  # someone corrected it
    assert b"9,00.000000N" in cut_block(moved.encode(), block, told)
    assert cut_block(PLAIN.encode(), block, told) is None
    assert b"GPS" not in cut_block(new_sidecar(told), "", told)


def test_a_changed_copy_stays_in_the_list(images, tmp_path):
    _, journal = write(images, tmp_path / "out", "copies", answers(["a.jpg", "c.webp"]))
    with open(tmp_path / "out/a.jpg", "ab") as file:
        file.write(b"more")
    done = list(undo(journal)["done"])
    assert done[0].startswith("left") and done[1] == "removed"
    assert [entry["photo"] for entry in read_list(journal)] == ["a.jpg"]


@pytest.mark.parametrize("older", [False, True])
def test_a_copy_changed_after_a_kill_stays_in_the_list(images, tmp_path, monkeypatch, older):
    """The sum of what was written is not in the list then: no byte of another's work is removed."""
    os.utime(images / "c.webp", (0, 0))  # as unpacked from many an archive
    with monkeypatch.context() as patch:
        first = iter([write_back_room.write_list])
        patch.setattr(
            write_back_room, "write_list", lambda *about: next(first, lambda *_: 0)(*about)
        )
        _, journal = write(images, tmp_path / "out", "copies", answers(["a.jpg", "c.webp"]))
    listed = json.loads(journal.read_text())
    assert [entry["sha256"] for entry in listed["written"]] == [None, None]
    if older:  # lists of earlier versions hold no times
        for entry in listed["written"]:
            del entry["modified"]
        journal.write_text(json.dumps(listed))
    changed = images.parent / "out/a.jpg"
    with Image.open(changed) as image:  # as an editor does, which keeps the EXIF
        image.rotate(180).save(changed, exif=image.info["exif"])
    done = list(undo(journal)["done"])
    assert done[0].startswith("left: changed") and changed.exists()
    assert done[1] == ("left: changed since it was written" if older else "removed")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"written": [{}]}', b'{"written": 3}', b"\xff",
                                     b'{"written": [{"path": "a.xmp"}]}'])  # fmt: skip
def test_a_list_of_another_kind_ends_the_run(tmp_path, content):
    (tmp_path / "written.json").write_bytes(content)
    code, printed = quietly(evaluator.main, "--undo", tmp_path / "written.json")
    assert code == 2 and printed.count("\n") == 1 and "written.json" in printed


# ---------------------------------------------------------------- killed


def test_killed_at_any_moment(tmp_path):
    """Whole files, a complete list, and an undo that leaves the folder as it was."""
    images = tmp_path / "images"
    file = save(images / "a000.jpg")
    names = [f"a{number:03d}.jpg" for number in range(150)]
    for name in names[1:]:
        shutil.copy(file, images / name)
    (images / "a000.jpg.xmp").write_bytes(PLAIN.encode())
    before = state(images)
    told = tmp_path / "told.json"
    answers(names).to_json(told)
    script = (
        "import sys; sys.path[:0] = [sys.argv[1], sys.argv[1] + '/tests']; import pandas as pd\n"
        "from pathlib import Path; import test_write_back as t\n"
        "print('ready', flush=True)\n"
        "t.write(Path(sys.argv[2]), Path(sys.argv[2]), told=pd.read_json(sys.argv[3]))"
    )
    journal, begun = tmp_path / "evaluation" / "written.json", []
    for wait in (0.0, 0.05, 0.15):
        command = [sys.executable, "-c", script, REPOSITORY, images, told]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        while not journal.exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        made = {path.name for path in images.glob("*.xmp")}
        listed = {Path(entry["path"]).name for entry in read_list(journal)}
        assert made <= listed
        for path in images.glob("*.jpg.xmp"):
            row = read_photo(str(images / path.name[:-4]), str(path))
            whole = row["gps_source"] == "estimate" or path.read_bytes() == PLAIN.encode()
            assert whole and "sidecar_damaged" not in row["warnings"]
        begun.append(len(made))
        undo(journal)
        assert state(images).keys() == before.keys()
        assert (images / "a000.jpg.xmp").read_bytes() == PLAIN.encode()
    assert begun[0] < 150


def killed_before(touch: int, root: Path, work) -> bool:
    """Do the work in a process that is killed before its n-th opening, renaming, removing or change
    of rights or times below a folder; whether it came so far."""
    pid = os.fork()
    if pid == 0:
        count = 0

        def touched(event, told):
            nonlocal count
            mine = event in ("open", "os.rename", "os.remove", "os.chmod", "os.utime", "os.mkdir")
            if mine and str(root) in str(told[0]):
                count += 1
                if count == touch:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(touched)
        with contextlib.suppress(BaseException):
            work()
            os._exit(0)
        os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("kind", ["sidecar", "copies"])
def test_killed_before_every_touch_of_the_disk(images, tmp_path, kind):
    """Whole files and a complete list; the undo leaves nothing, also when it is killed itself."""
    folder = images if kind == "sidecar" else tmp_path / "copies"
    if kind == "sidecar":
        (images / "b.png.xmp").write_bytes(PLAIN.encode())
    before, told = state(images), answers()
    journal = tmp_path / "evaluation" / "written.json"
    whole = write(images, folder, kind, told)[0]  # the first loads what is loaded late
    finished = {path: content for path, (content, _) in state(folder).items()}
    undo(journal)
    assert (whole["action"] != "skip").sum() >= 3

    def sound():
        made = {name for name in state(folder) if not name.endswith(".tmp")} - set(before)
        listed = {Path(entry["path"]).name for entry in read_list(journal)} if made else set()
        assert made <= listed
        for name in made:
            assert (folder / name).read_bytes() == finished[name]

    touch = 0
    while True:
        touch += 1
        ended = not killed_before(touch, tmp_path, lambda: write(images, folder, kind, told))
        sound()
        if journal.exists():
            killed_before(1 + touch % 7, tmp_path, lambda: undo(journal))
        if journal.exists():
            undo(journal)
        left = {name for name in state(folder) if not name.endswith(".tmp")}
        assert left == (set(before) if kind == "sidecar" else set())
        assert {n: b for n, (b, _) in state(images).items() if not n.endswith(".tmp")} == {
            n: b for n, (b, _) in before.items()
        }
        if ended:
            break
    assert touch > 20


def test_a_run_after_a_kill_goes_on(images):
    (images / "b.png.xmp").write_bytes(PLAIN.encode())
    before = state(images)
    _, journal = write(images, images)
    os.remove(images / "a.jpg.xmp")  # as if the kill had come before it
    (images / "b.png.xmp").write_bytes(PLAIN.encode())
    table, _ = write(images, images)
    actions = dict(zip(table["filename"], table["action"], strict=True))
    assert actions["a.jpg"] == "new sidecar" and actions["b.png"] == "extend sidecar"
    assert [actions[name] for name in ("c.webp", "d.tif", "e.heic")] == ["skip"] * 3
    assert sorted(entry["photo"] for entry in read_list(journal)) == sorted(PLACES)
    undo(journal)
    assert {name: content for name, (content, _) in state(images).items()} == {
        name: content for name, (content, _) in before.items()
    }


FOREIGN = {
    "no entries": 5,
    "an entry is a text": ["a.jpg"],
    **{f"{name} is {value!r}": {name: value}
       for name in (*write_back_room.LISTED, "modified")
       for value in ([], {"a": 1}, 5, "5", True, None)},
    "a value is a number": {"properties": {"exif:GPSLatitude": 5}},
    "an unknown name": {"properties": {"exif": "1", "nobody:knows": "1"}},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["sidecar", "copies"])
def test_a_list_of_foreign_values_is_one_line(images, tmp_path, capsys, kind):
    """Refused as a whole where a value is of another sort; one of the right sort ends no run."""
    _, journal = write(images, tmp_path / "out", kind)
    good = json.loads(journal.read_text())
    refused = 0
    for change in FOREIGN.values():
        first, *rest = good["written"]
        changed = [first | change, *rest] if isinstance(change, dict) else change
        journal.write_text(json.dumps({"written": changed}))
        try:
            read_list(journal)
        except SystemExit as end:
            assert end.code == 2 and capsys.readouterr().err.count("\n") == 1
            refused += 1
            continue
        undo(journal)
        write(images, tmp_path / "out", kind)
    # what is of the right sort: 5 texts, 3 numbers, a truth, and 2 times null
    assert refused == len(FOREIGN) - 11


@pytest.mark.parametrize("name", write_back_room.LISTED)
def test_a_list_without_what_undoing_needs_is_one_line(images, tmp_path, capsys, name):
    _, journal = write(images, tmp_path / "out", "copies", answers(["a.jpg"]))
    content = json.loads(journal.read_text())
    del content["written"][0][name]
    journal.write_text(json.dumps(content))
    with pytest.raises(SystemExit, match="2"):
        undo(journal)
    assert capsys.readouterr().err.count("\n") == 1


# ---------------------------------------------------------------- command line


@pytest.fixture
def placed(images) -> Path:
    output = images.parent / "evaluation"
    output.mkdir()
    told = answers().to_dict("records")
    rows = [row | {"carried_by": "time", "why": "12 min after x.jpg, 300 m"} for row in told]
    content = {"model": "time", "photos": rows, "clocks": [], "report": []}
    (output / "placed.json").write_text(json.dumps(content))
    return output


def run(images, *more):
    folders = ("--data-dir", images.parent, "--output-dir", images.parent / "evaluation")
    return quietly(evaluator.main, *folders, *more)


def test_there_is_nothing_to_take_back_without_a_list(images, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluator.main(["--undo", str(images / "written.json")])
    told = capsys.readouterr().err
    assert "nothing to take back" in told and told.count("\n") == 1


def test_a_dry_run_writes_nothing(images, placed):
    before = state(images.parent)
    code, printed = run(images, "--write", "sidecar", "--to", images, "--dry-run")
    assert code == 0 and "5 files would be written" in printed and "48.508333, 2.25" in printed
    assert state(images.parent) == before


def test_written_and_taken_back_by_the_script(images, placed):
    before = state(images)
    code, printed = run(images, "--write", "sidecar", "--to", images)
    assert code == 0 and "5 files written" in printed, printed
    assert b"estimate: time<" in (images / "a.jpg.xmp").read_bytes()
    code, printed = run(images, "--undo", placed / "written.json")
    assert code == 0 and "5 files taken back, 0 left" in printed and state(images) == before


@pytest.mark.parametrize("flags", [
    ("--write", "sidecar"), ("--to", "x"), ("--dry-run",), ("--all",), ("--undo", "x", "--place"),
    ("--write", "copies", "--to", "IMAGES"),
])  # fmt: skip
def test_flags_that_do_not_go_together(images, placed, flags):
    code, printed = run(images, *(images if flag == "IMAGES" else flag for flag in flags))
    assert code == 2 and printed.count("\n") == 1


@pytest.mark.parametrize("content", [
    None, b"{", b"[]", b'{"model": "m", "photos": [{"filename": "a.jpg"}]}',
    b'{"model": "m", "photos": [{"filename": "../a.jpg", "latitude": 1, "longitude": 2, '
    b'"radius90_km": 1, "confident": true}]}',
])  # fmt: skip
def test_no_answers_to_write(images, placed, content):
    if content is None:
        (placed / "placed.json").unlink()
    else:
        (placed / "placed.json").write_bytes(content)
    code, printed = run(images, "--write", "sidecar", "--to", images)
    assert code == 2 and printed.count("\n") == 1 and "--place" in printed


def test_the_table_has_a_row_for_every_photo(images):
    table = plan_table(plan(answers(), images, images, "sidecar", METHOD, False))
    with contextlib.redirect_stdout(io.StringIO()):
        assert list(table["filename"]) == list(PLACES)
    assert list(table.columns[:3]) == ["filename", "action", "target"]


def test_photos_of_the_working_folder_are_planned_too(images, monkeypatch):
    """Their paths begin with "./", which pathlib drops."""
    below = images / "sub"
    below.mkdir()
    photo = next(images.glob("*.jpg"))
    photo.rename(below / photo.name)
    monkeypatch.chdir(images)
    told = answers([f"sub/{photo.name}"])
    (item,) = plan(told, Path("."), Path("."), "sidecar", METHOD, True)
    assert item.action == "new sidecar" and item.target == f"sub/{photo.name}.xmp"


def test_a_folder_is_listed_once_however_many_photos_it_holds(images, monkeypatch):
    """Else twenty thousand photos of one folder take half an hour."""
    listed: list[str] = []
    names = os.listdir
    monkeypatch.setattr(
        os, "listdir", lambda path: (listed.append(os.fspath(path)), names(path))[1]
    )
    told = answers()
    plan(told, images, images / "beside", "sidecar", METHOD, True)
    assert len(told) > 3 and len(listed) == len(set(listed))
