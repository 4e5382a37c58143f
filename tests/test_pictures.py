"""Finding and opening photos of every format."""

import contextlib
import os
import re
import struct
import subprocess
import sys
import threading
import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from exif_files import SCRIPT, exif_bytes, picture, read, save
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geophoto import orientations, pictures

# ---------------------------------------------------------------- orientation


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "avif"])
@pytest.mark.parametrize("tag", range(1, 9))
def test_every_format_opens_upright_and_as_stored(tmp_path, suffix, tag):
    mirrored, quarters, name = orientations.ORIENTATIONS[tag]
    stored = np.rot90(picture(), quarters)
    stored = np.ascontiguousarray(stored[:, ::-1] if mirrored else stored)
    exif = Image.Exif()
    exif[0x0112] = tag
    path = tmp_path / f"photo.{suffix}"
    lossy = {} if suffix in ("png", "tif") else {"quality": 95}
    Image.fromarray(stored).save(path, exif=exif, **lossy)
    row = read(path)
    if (suffix, tag) != ("avif", 1):  # Pillow then writes neither irot nor EXIF: nothing is stated
        assert (row["orientation_tag"], row["orientation"]) == (tag, name)
    assert ("orientation_transposed" in (row["warnings"] or "")) == (tag in (5, 7))
    assert (row["image_height"], row["image_width"]) == stored.shape[:2]
    for opened, truth in (
        (pictures.open_upright(path), picture()),
        (pictures.open_stored(path), stored),
    ):
        pixels = np.asarray(opened).astype(float)
        assert pixels.shape == truth.shape
        assert np.abs(pixels - truth).mean() < 6


@pytest.mark.parametrize("tag", range(1, 9))
def test_heic_arrives_upright_and_is_not_turned_twice(tmp_path, tag):
    """As phones write it: the container turns the picture, EXIF repeats the tag."""
    pillow_heif = pytest.importorskip("pillow_heif")
    mirrored, quarters, _ = orientations.ORIENTATIONS[tag]
    stored = np.rot90(picture(), quarters)
    stored = np.ascontiguousarray(stored[:, ::-1] if mirrored else stored)
    exif = exif_bytes({0x0112: tag, 0x010F: b"Maker"}, {0x9003: b"2020:01:02 03:04:05"})
    path = tmp_path / "phone.HEIC"
    pillow_heif.from_pillow(Image.fromarray(stored)).save(path, quality=90, exif=exif)
    row = read(path)
    assert (row["orientation"], row["orientation_tag"]) == ("Normal", 1)
    assert (row["camera_make"], row["datetime"]) == ("Maker", "2020-01-02T03:04:05")
    assert (row["image_height"], row["image_width"]) == (40, 64)
    for opened in (pictures.open_upright(path), pictures.open_stored(path)):
        pixels = np.asarray(opened).astype(float)
        assert pixels.shape == (40, 64, 3) and np.abs(pixels - picture()).mean() < 8


@pytest.mark.parametrize("tag", range(1, 9))
def test_heic_that_only_exif_turns(tmp_path, tag):
    """As phones of two makers write it: nothing in the container, the tag in EXIF."""
    pillow_heif = pytest.importorskip("pillow_heif")
    mirrored, quarters, name = orientations.ORIENTATIONS[tag]
    stored = np.rot90(picture(), quarters)
    stored = np.ascontiguousarray(stored[:, ::-1] if mirrored else stored)
    path = tmp_path / "phone.HEIC"
    exif = exif_bytes({0x0112: 1, 0x010F: b"Maker"})
    pillow_heif.from_pillow(Image.fromarray(stored)).save(path, quality=90, exif=exif)
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 1, 0)
    assert path.read_bytes().count(entry) == 1
    path.write_bytes(path.read_bytes().replace(entry, struct.pack(">HHIHH", 0x0112, 3, 1, tag, 0)))
    row = read(path)
    assert (row["orientation"], row["orientation_tag"]) == (name, tag)
    assert (row["image_height"], row["image_width"]) == stored.shape[:2]
    for opened, truth in (
        (pictures.open_upright(path), picture()),
        (pictures.open_stored(path), stored),
    ):
        pixels = np.asarray(opened).astype(float)
        assert pixels.shape == truth.shape and np.abs(pixels - truth).mean() < 8


@pytest.mark.parametrize("form", ['tiff:Orientation="{}"', "tiff:Orientation='{}'", "element", "9"])
@pytest.mark.parametrize("tag", [1, 2, 6, 8])
@pytest.mark.parametrize("suffix", ["tif", "jpg", "png", "webp"])
def test_orientation_in_xmp_alone_is_the_same_in_table_and_pixels(tmp_path, suffix, tag, form):
    """Decoders turn TIFF by XMP and nothing else; whatever they do, the table says it."""
    attribute, element = form.format(tag), ""
    if form == "element":
        attribute, element = "", f"<tiff:Orientation>{tag}</tiff:Orientation>"
    elif form == "9":  # no orientation at all
        attribute = 'tiff:Orientation="9"'
    packet = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-'
        'syntax-ns#"><rdf:Description xmlns:tiff="http://ns.adobe.com/tiff/1.0/" '
        f"{attribute}>{element}</rdf:Description></rdf:RDF></x:xmpmeta>"
    ).encode()
    path = tmp_path / f"a.{suffix}"
    image = Image.fromarray(picture())
    if suffix == "png":
        packed = PngInfo()
        packed.add_itxt("XML:com.adobe.xmp", packet.decode())
        image.save(path, pnginfo=packed)
    else:
        options = {"tiffinfo": {700: packet}} if suffix == "tif" else {"xmp": packet}
        image.save(path, **options, **({"lossless": True} if suffix == "webp" else {}))
    row = read(path)
    expected = (1 if form == "9" else tag) if suffix == "tif" else None
    assert row["orientation_tag"] == expected
    upright = orientations.turn_image(Image.fromarray(picture()), row["orientation_tag"] or 1)
    for opened, truth in (
        (pictures.open_upright(path), upright),
        (pictures.open_stored(path), Image.fromarray(picture())),
    ):
        pixels = np.asarray(opened).astype(float)
        assert pixels.shape == np.asarray(truth).shape
        assert np.abs(pixels - np.asarray(truth)).mean() < 6


# ---------------------------------------------------------------- opening


def test_unusual_pixels_become_sensible_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 40).reshape(40, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    Image.fromarray(ramp).save(tmp_path / "deep.tif")
    Image.fromarray(ramp.astype(np.float32)).save(tmp_path / "float.tif")
    for name in ("deep.png", "deep.tif", "float.tif"):
        pixels = np.asarray(pictures.open_upright(tmp_path / name)).astype(float)
        assert np.abs(pixels[..., 0] - ramp / 257).max() <= 1, name
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.png")
    for name in ("cmyk.jpg", "p.png"):
        pixels = np.asarray(pictures.open_upright(tmp_path / name)).astype(float)
        assert np.abs(pixels - picture()).mean() < 8, name
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    assert pictures.open_upright(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    assert pictures.open_upright(tmp_path / "moving.webp").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_max_side_bounds_the_longer_side_and_never_enlarges(tmp_path, name):
    Image.fromarray(picture(300, 800)).save(tmp_path / name)
    assert pictures.open_upright(tmp_path / name, max_side=200).size == (200, 75)
    assert pictures.open_upright(tmp_path / name, max_side=5000).size == (800, 300)


def test_unreadable_photos_raise_with_name_and_reason(tmp_path):
    (tmp_path / "text.jpg").write_text("no picture")
    whole = save(tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = (
        struct.pack(">I", 13) + b"IHDR" + header + struct.pack(">I", zlib.crc32(b"IHDR" + header))
    )
    idat = b"\0\0\0\0IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + idat)
    for name in ("text.jpg", "cut.jpg", "bomb.png", "absent.jpg"):
        with pytest.raises((ValueError, OSError), match=re.escape(name)):
            pictures.open_upright(tmp_path / name)
    assert read(tmp_path / "bomb.png")["image_width"] == 60000


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp", "heic", "bmp", "avif"])
def test_one_pixel_limit_for_every_format(tmp_path, monkeypatch, suffix):
    monkeypatch.setenv(pictures.LIMIT_VARIABLE, "0.00256")
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(picture(40, 64)).save(path)
    assert pictures.open_upright(path).size == (64, 40)
    pictures.limit_pixels(0.00255)
    for opener in (pictures.open_upright, pictures.open_stored):
        with pytest.raises(ValueError, match=r"64×40 pixels are too many.*--pixel-limit"):
            opener(path, max_side=20)


@pytest.mark.parametrize("megapixels", [0, -1, float("nan"), float("inf")])
def test_a_pixel_limit_is_a_number(megapixels):
    with pytest.raises(SystemExit):
        pictures.limit_pixels(megapixels)


@pytest.mark.parametrize(
    "suffix", ["jpg", "png", "tif", pytest.param("heic", marks=pytest.mark.slow)]
)
def test_a_phone_of_108_megapixels_is_read(tmp_path, suffix):
    pytest.importorskip("pillow_heif").register_heif_opener()
    path = tmp_path / f"photo.{suffix}"
    options = {"compression": "tiff_lzw"} if suffix == "tif" else {}
    Image.new("L", (12000, 9000), 90).save(path, **options)
    assert pictures.open_upright(path, max_side=100).size == (100, 75)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "bmp"])
def test_a_small_file_that_promises_too_much_is_refused_unread(tmp_path, suffix):
    path = tmp_path / f"bomb.{suffix}"
    if suffix in ("png", "tif"):  # black and white packs well
        options = {"compression": "group4"} if suffix == "tif" else {}
        Image.new("1", (17000, 17700)).save(path, **options)
    else:
        Image.fromarray(picture(40, 64)).save(path)
        kind, old, new = (">HH", (40, 64), (17700, 17000)) if suffix == "jpg" else (
            "<ii", (64, 40), (17000, 17700))  # fmt: skip
        data = path.read_bytes()
        path.write_bytes(data.replace(struct.pack(kind, *old), struct.pack(kind, *new), 1))
    with pytest.raises(ValueError, match="too many"):
        pictures.open_upright(path, max_side=100)
    assert (read(path)["image_width"], read(path)["image_height"]) == (17000, 17700)


def test_strips_change_no_pixel(tmp_path, monkeypatch):
    """Deep greys and transparency are worked on piece by piece; the pieces are one row here."""
    random = np.random.default_rng(1)
    shades = random.integers(0, 65536, (30, 20)).astype(np.uint16)
    Image.fromarray(shades).save(tmp_path / "deep.png")
    Image.fromarray(shades.astype(np.float32) - 3e4).save(tmp_path / "float.tif")
    Image.fromarray(random.integers(0, 256, (30, 20, 4)).astype(np.uint8)).save(tmp_path / "a.png")
    names = ("deep.png", "float.tif", "a.png")
    whole = [pictures.open_upright(tmp_path / name).tobytes() for name in names]

    def rows(image):
        return (image.crop((0, y, 20, y + 1)) for y in range(30))

    monkeypatch.setattr(pictures, "strips", rows)
    assert [pictures.open_upright(tmp_path / name).tobytes() for name in names] == whole


# ---------------------------------------------------------------- photos on disk


def test_find_photos_spells_names_in_nfc_and_skips_what_is_no_photo(tmp_path):
    decomposed = unicodedata.normalize("NFD", "été/Zoë.JPG")
    for name in ("b.JPG", "a.jpeg", "sub/deep/c.TIF", decomposed, ".hidden/x.jpg", "._b.jpg"):
        save(tmp_path / name, format="JPEG")
    (tmp_path / "notes.txt").touch()
    (tmp_path / "raw.CR2").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.symlink(tmp_path, tmp_path / "sub" / "loop")
    photos = pictures.find_photos(tmp_path)
    assert list(photos) == ["a.jpeg", "b.JPG", "sub/deep/c.TIF", "été/Zoë.JPG"]
    assert all(path.is_file() for path in photos.values())
    assert pictures.photo_file(tmp_path, "été/Zoë.JPG").is_file()
    assert pictures.scan(tmp_path).raw == ["raw.CR2"]
    save(tmp_path / "été" / "Zoë.JPG", format="JPEG")
    save(
        tmp_path / unicodedata.normalize("NFC", "été") / unicodedata.normalize("NFD", "Zoë.JPG"),
        format="JPEG",
    )
    assert list(pictures.find_photos(tmp_path)).count("été/Zoë.JPG") == 1
    left_out = {unicodedata.normalize("NFC", n) for n in pictures.scan(tmp_path).collisions}
    assert left_out == {"été/Zoë.JPG"}


def test_content_decides_the_type(tmp_path):
    save(tmp_path / "really.jpg", exif_bytes({0x010F: b"Maker"})).rename(tmp_path / "claims.png")
    row = read(tmp_path / "claims.png")
    assert (row["status"], row["camera_make"], row["image_width"]) == ("ok", "Maker", 64)


# ---------------------------------------------------------------- the table


def test_the_decoder_does_not_talk_of_metadata(tmp_path):
    damaged = b"II*\0" + struct.pack("<IHHHII", 8, 1, 0x0132, 2, 20, 5000) + b"\0" * 4
    path = str(save(tmp_path / "a.jpg", b"Exif\0\0" + damaged))
    by_itself = "from PIL import Image; Image.open(sys.argv[1]).load()"
    ours = "from geophoto.pictures import open_upright; open_upright(sys.argv[1])"
    for code, talks in ((by_itself, True), (ours, False)):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {code}", path],
            cwd=SCRIPT.parent, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert ("Warning" in done.stderr) == talks, done.stderr


# ---------------------------------------------------------------- what a folder has besides


def long_chain(root) -> None:
    """Folders in folders until the path is longer than the system takes (4,096 bytes on Linux)."""
    place = os.open(root, os.O_RDONLY)
    for _ in range(18):
        os.mkdir("d" * 240, dir_fd=place)
        inner = os.open("d" * 240, os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)


OBSTACLES = {
    "link to itself": lambda root: os.symlink("loop.jpg", root / "loop.jpg"),
    "folder link to itself": lambda root: os.symlink("loop", root / "loop"),
    "two links in a ring": lambda root: (os.symlink("b", root / "a"), os.symlink("a", root / "b")),
    "link with a name too long": lambda root: os.symlink("x" * 300, root / "long.jpg"),
    "link through a file": lambda root: os.symlink("good.jpg/inside", root / "through.png"),
    "link to nothing": lambda root: os.symlink("nowhere", root / "gone.tif"),
    "pipe": lambda root: os.mkfifo(root / "pipe.jpg"),
    "path too long": long_chain,
    "folder that may not be entered": lambda root: (root / "locked").mkdir(),
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_what_cannot_be_reached_is_named_and_ends_nothing(tmp_path, monkeypatch, obstacle):
    root = tmp_path / "photos"
    for name in ("good.jpg", "sub/good.jpg", "z.jpg"):
        save(root / name)
    before = set(os.listdir(root))
    OBSTACLES[obstacle](root)
    new = sorted(set(os.listdir(root)) - before)
    may = os.access  # root may enter every folder, so the system's answer is put in its mouth
    monkeypatch.setattr(os, "access", lambda path, mode: "locked" not in str(path) and may(path, 1))
    found = pictures.scan(root)
    assert found.names == ["good.jpg", "sub/good.jpg", "z.jpg"]
    assert len(found.unread) == len(new)
    for name, line in zip(new, found.unread, strict=True):
        assert line.startswith(name) and line.endswith(")")
    heard = []
    photos = pictures.list_photos([str(root)], heard.append)
    assert len(photos) == 3 and len(heard) == 1 and new[0] in heard[0]


@pytest.mark.parametrize(
    "name", [b"\xff.jpg", b"IMG_1 \xfe\xff.jpg", b"caf\xe9/a.jpg", b"\xe4 \xc3\xb6.jpg"]
)
def test_a_name_that_is_no_utf8_leads_back_to_its_photo(tmp_path, name):
    path = os.path.join(os.fsencode(tmp_path), name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save(Path(os.fsdecode(path)), format="JPEG")
    (spelled,) = pictures.find_photos(tmp_path)
    assert "?" in spelled and pictures.photo_file(tmp_path, spelled).is_file()


@pytest.mark.parametrize("name", ["absent.jpg", "x" * 300, "loop", "file.jpg/inside", "pipe.jpg"])
def test_a_path_that_leads_to_no_photo_ends_the_run_with_one_line(tmp_path, capsys, name):
    os.symlink("loop", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe.jpg")
    save(tmp_path / "file.jpg")
    with pytest.raises(SystemExit) as stopped:
        pictures.list_photos([str(tmp_path / name)])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.count("\n") == 1 and name in error


@pytest.mark.parametrize("name", ["ö" * 120 + ".jpg", "é" * 200 + ".jpg", "x" * 260 + ".jpg"])
def test_a_name_too_long_for_the_disk_is_an_absent_photo(tmp_path, name):
    """Decomposed, accents take three bytes each instead of two."""
    assert not os.path.exists(pictures.photo_file(tmp_path, name))


@pytest.mark.parametrize("suffix", pictures.IMAGE_SUFFIXES)
@pytest.mark.parametrize("upper", [False, True])
def test_every_suffix_of_a_readable_format_is_a_photo(tmp_path, suffix, upper):
    save(tmp_path / "a.jpg").rename(tmp_path / f"a{suffix.upper() if upper else suffix}")
    (photo,) = pictures.find_photos(tmp_path).values()
    assert read(photo)["image_width"] == pictures.open_upright(photo).width == 64


def test_pictures_that_cannot_be_read_and_system_folders_are_named(tmp_path):
    save(tmp_path / "a.jpg")
    for name in ("b.JXL", "c.psd", "d.GIF", "e.svg", "f.dng", "g.RWL", "h.sr2", "i.gpr", "x.txt"):
        (tmp_path / name).touch()
    for name in ("@eaDir", "#recycle", ".thumbnails", "$RECYCLE.BIN", "lost+found", "sub/@eaDir"):
        save(tmp_path / name / "a.jpg" / "SYNOPHOTO_THUMB_M.jpg")
    found = pictures.scan(tmp_path)
    assert found.names == ["a.jpg"]
    assert found.raw == ["f.dng", "g.RWL", "h.sr2", "i.gpr"]
    assert found.other == ["b.JXL", "c.psd", "d.GIF", "e.svg"]
    assert set(found.system) == {"@eaDir", "#recycle", "$RECYCLE.BIN", "lost+found", "sub/@eaDir"}
    told = "\n".join(found.left_out())
    assert "RAW, not supported: 4: f.dng, g.RWL" in told and "sub/@eaDir" in told
    assert ": 4: b.JXL, c.psd, d.GIF, e.svg" in told and "x.txt" not in told


def test_a_line_break_in_a_name_is_written_out(tmp_path):
    for name in (b"two\nlines.dng", b"latin-\xe9.gif"):
        with open(os.path.join(os.fsencode(tmp_path), name), "wb"):
            pass
    for line in pictures.scan(tmp_path).left_out():
        assert line.isprintable() and line.encode()


def test_what_the_pipeline_wrote_is_no_photo(tmp_path):
    """The folder of the photos may be the data folder too, and that of the evaluation."""
    for name in ("a.jpg", "map.png", "sub/time.png", "sub/density.png", "depths/b.jpg"):
        save(tmp_path / name)
    plain = ["a.jpg", "depths/b.jpg", "map.png", "sub/density.png", "sub/time.png"]
    assert pictures.scan(tmp_path).names == plain  # a photo may be called so
    save(tmp_path / "depths" / "a.jpg.png")
    save(tmp_path / "depths" / "sub" / "time.png.png")
    (tmp_path / "depths" / "depth_model.json").write_text("{}")
    (tmp_path / "sub" / "density.html").touch()
    (tmp_path / "metrics.json").touch()
    found = pictures.scan(tmp_path)
    assert found.names == ["a.jpg", "sub/time.png"]
    assert found.own == ["depths/", "map.png", "sub/density.png"]
    (tmp_path / "depth_model.json").touch()  # the folder that was asked for is always read
    assert "a.jpg" in pictures.scan(tmp_path).names


# ---------------------------------------------------------------- large ones


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_large_pictures_are_held_one_at_a_time(tmp_path, monkeypatch, suffix):
    """Small ones side by side; what comes out is the same."""
    rng = np.random.default_rng(0)
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8)).save(path)
    alone = np.asarray(pictures.open_upright(path, max_side=45))
    inside, most, original = [0], [0], pictures._to_rgb
    together = threading.Barrier(2, timeout=0.3)

    def watched(image):
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait()  # small ones meet here, large ones wait in vain
        inside[0] -= 1
        return original(image)

    monkeypatch.setattr(pictures, "_to_rgb", watched)
    for limit, wanted in ((32_000_000, 2), (100, 1)):
        monkeypatch.setattr(pictures, "LARGE_PIXELS", limit)
        most[0] = 0
        together.reset()
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(lambda _: pictures.open_upright(path, max_side=45), range(2)))
        assert most[0] == wanted
        assert all((np.asarray(picture) == alone).all() for picture in found)


def test_a_thread_may_hold_its_large_picture_while_it_opens_it(monkeypatch):
    monkeypatch.setattr(pictures, "LARGE_PIXELS", 10)
    with pictures.one_large(11), pictures.one_large(12):
        pass
    with pytest.raises(ValueError), pictures.one_large(11):
        raise ValueError
    with ThreadPoolExecutor(1) as pool:  # the lock is free again
        assert pool.submit(lambda: pictures.one_large(11).__enter__()).result(timeout=5) is None
