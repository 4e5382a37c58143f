"""Photos with known truth, made here: no download, no weights, the same on every machine.

`photo_set` is a small folder as a user would have it: 24 places with bursts, all six
orientations stored without loss, photos without EXIF, one cut off in the middle and one that is
no picture, with the table and the depth maps that the first two scripts make of it.
"""

import contextlib
import io
import os
import shutil
from dataclasses import dataclass
from datetime import datetime, timedelta
from fractions import Fraction
from pathlib import Path

import numpy as np
import piexif
import pytest
import torch
from PIL import Image

import depth_map_generator
import evaluate_gps_model
import exif_extractor
import gps_orientation_trainer
from geophoto import depth_weights, orientations, targets
from geophoto.photos import Photos
from geophoto.pictures import LIMIT_VARIABLE

pytest_plugins = ["rule_weights"]
torch.set_num_threads(1)  # for networks this small, waiting for threads is most of the work
os.environ["OMP_NUM_THREADS"] = "1"  # and the same in the scripts that tests start
REPOSITORY = Path(__file__).parents[1]
SHARED = Path(__file__).parents[2] / "shared"
PLACES = 24  # more than 1 km apart: as many groups
PHOTOS_PER_PLACE = 2
WIDTH, HEIGHT = 160, 112  # multiples of 16: a turned JPEG keeps every block


@dataclass
class PhotoSet:
    """Folders of one photo set, and the truth about each photo by its table name."""

    data: Path
    images: Path
    depth_weights: Path
    truth: dict[str, dict]


def dms(degrees: float) -> tuple:
    """Degrees as EXIF writes them: three rationals, here good to 1e-9 of a second of arc."""
    whole = int(abs(degrees))
    minutes = int((abs(degrees) - whole) * 60)
    seconds = Fraction((abs(degrees) - whole - minutes / 60) * 3600).limit_denominator(10**6)
    return (whole, 1), (minutes, 1), (max(seconds.numerator, 0), seconds.denominator)


def exif_bytes(lat, lon, altitude_m, when, orientation_tag, camera="Test One") -> bytes:
    """EXIF of one photo; None leaves a field out. `when` is local time, written with +02:00."""
    zeroth = {piexif.ImageIFD.Make: b"Maker", piexif.ImageIFD.Model: camera.encode()}
    exif, gps = {}, {}
    if orientation_tag is not None:
        zeroth[piexif.ImageIFD.Orientation] = orientation_tag
    if when is not None:
        exif[piexif.ExifIFD.DateTimeOriginal] = f"{when:%Y:%m:%d %H:%M:%S}".encode()
        exif[piexif.ExifIFD.OffsetTimeOriginal] = b"+02:00"
    if lat is not None:
        gps = {
            piexif.GPSIFD.GPSLatitudeRef: b"S" if lat < 0 else b"N",
            piexif.GPSIFD.GPSLatitude: dms(lat),
            piexif.GPSIFD.GPSLongitudeRef: b"W" if lon < 0 else b"E",
            piexif.GPSIFD.GPSLongitude: dms(lon),
        }
    if altitude_m is not None:
        gps[piexif.GPSIFD.GPSAltitudeRef] = int(altitude_m < 0)
        gps[piexif.GPSIFD.GPSAltitude] = (round(abs(altitude_m) * 100), 100)
    return piexif.dump({"0th": zeroth, "Exif": exif, "GPS": gps})


def picture(rng, east: float, north: float, height: float, hour: float) -> np.ndarray:
    """Upright pixels (HEIGHT, WIDTH, 3): ground colour by place, stripes by altitude, light by
    the hour; sky above (four turns) and a mast at the left (mirror images) tell the rest."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    light = 0.25 + 0.75 * np.sin(np.pi * np.clip((hour - 5) / 16, 0, 1))
    ground = np.array([60 + 180 * east, 60 + 180 * north, 120.0])
    stripes = 1 + 0.3 * np.sin(columns * (0.1 + 0.6 * height))
    pixels = ground * stripes[..., None]
    horizon = HEIGHT // 2 - 6 + 4 * np.sin(columns / 30 + 6 * east)
    sky = np.array([150.0, 190.0, 250.0]) * (1 - 0.4 * rows / HEIGHT)[..., None]
    pixels = np.where((rows < horizon)[..., None], sky, pixels)
    pixels[16:90, 22:30] = (200, 40, 40)
    return np.clip(pixels * light + rng.normal(0, 4, pixels.shape), 0, 255).astype(np.uint8)


def store(path: Path, upright: np.ndarray, name: str, exif: bytes | None) -> None:
    """Write upright pixels as a camera stores them in orientation class `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = Image.fromarray(orientations.store_as(upright, name))
    stored.save(path, quality=92, **({"exif": exif} if exif else {}))


def draw_photos(images: Path) -> dict[str, dict]:
    """Fill `images`; returns the truth of every photo by table name."""
    rng = np.random.default_rng(5)
    truth: dict[str, dict] = {}
    tags = ["Normal", "Normal", "Normal", "Rotated 90°", "Normal", "Rotated 270°", "Normal"]
    tags += ["Rotated 180°", "Normal", "Flipped H", "Normal", "Flipped V"]
    for place in range(PLACES):
        east, north = (place % 6) / 5, (place // 6) / 3
        start = datetime(2024, 6, 1 + place, 6, 10) + timedelta(minutes=35 * place)
        for shot in range(PHOTOS_PER_PLACE):
            label = {
                "lat": 46.0 + 0.06 * north + rng.normal(0, 2e-4),
                "lon": 7.0 + 0.12 * east + rng.normal(0, 2e-4),
                "altitude": 400 + 900 * north + rng.normal(0, 5),
                "when": start + timedelta(seconds=17 * shot),
                "orientation": tags[(place * PHOTOS_PER_PLACE + shot) % len(tags)],
            }
            name = f"day_{place // 12}/IMG_{place:02d}{shot}.{'JPG' if shot else 'jpg'}"
            hour = label["when"].hour + label["when"].minute / 60
            pixels = picture(rng, east, north, (label["altitude"] - 380) / 950, hour)
            tag = orientations.ORIENTATION_TAG[label["orientation"]]
            exif = exif_bytes(label["lat"], label["lon"], label["altitude"], label["when"], tag)
            store(images / name, pixels, label["orientation"], exif)
            truth[name] = label
    for number in range(3):
        pixels = picture(rng, 0.3 * number, 0.5, 0.5, 12)
        store(images / f"no exif/plain_{number}.jpg", pixels, "Normal", None)
        truth[f"no exif/plain_{number}.jpg"] = {}
    whole = (images / "day_0/IMG_000.jpg").read_bytes()
    (images / "day_0/cut.jpg").write_bytes(whole[: len(whole) * 2 // 3])
    (images / "day_0/noise.jpg").write_bytes(rng.bytes(500))
    return truth


def tiny_depth_weights(path: Path) -> Path:
    """An official-named Depth-Anything-V2 of four blocks and random weights, saved at `path`."""
    import transformers

    backbone = transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=1, mlp_ratio=2, patch_size=14,
        image_size=56, out_indices=[1, 2, 3, 4], reshape_hidden_states=False, apply_layernorm=True,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=64, neck_hidden_sizes=[16, 16, 16, 16],
        fusion_hidden_size=16, head_hidden_size=8, patch_size=14,
    )  # fmt: skip
    torch.manual_seed(1)
    network = transformers.DepthAnythingForDepthEstimation(config)
    with torch.no_grad():
        network.head.conv3.bias.fill_(0.5)  # the last ReLU would cut a random map to zeros
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(depth_weights.to_official_keys(network.state_dict()), path)
    return path


def quietly(main, *arguments) -> tuple[int, str]:
    """Run a script's main in this process; its exit code and all that it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code
    return code or 0, printed.getvalue()


@pytest.fixture(autouse=True)
def usual_pixel_limit():
    """A limit that one test's run has set is not the next one's."""
    yield
    os.environ.pop(LIMIT_VARIABLE, None)


@pytest.fixture(scope="session")
def photo_set(tmp_path_factory) -> PhotoSet:
    """Photos, table and depth maps; shared by all tests, which must not change it."""
    root = tmp_path_factory.mktemp("photo set")
    data, images = root / "data", root / "data" / "images"
    truth = draw_photos(images)
    code, printed = quietly(exif_extractor.main, "--data-dir", data, "--workers", 1)
    assert code == 0, printed
    weights = tiny_depth_weights(root / "checkpoints" / "depth_anything_v2_tiny.pth")
    code, printed = quietly(
        depth_map_generator.main, "--data-dir", data, "--depth-model", weights, "--input-size", 56
    )
    assert code == 1 and "cut.jpg" in printed, printed  # cut.jpg has a row and no whole picture
    return PhotoSet(data, images, weights, truth)


def copy_data(photo_set: PhotoSet, folder: Path) -> Path:
    """A copy that a test may change; file times are kept, so nothing in it is out of date."""
    shutil.copytree(photo_set.data, folder / "data")
    return folder / "data"


def training_arguments(data: Path, checkpoints: Path, *more) -> list[str]:
    """The quick training of these tests: a tiny network with random weights, small pictures."""
    quick = "--backbone test_resnet --no-pretrained --frozen-image-size 64 --folds 3 --epochs 25"
    folders = ["--data-dir", data, "--checkpoint-dir", checkpoints, "--precision", "fp32"]
    return [str(argument) for argument in (*folders, *quick.split(), *more)]


@dataclass
class Trained:
    """Data, checkpoints and output of a training that succeeded."""

    data: Path
    checkpoints: Path
    printed: str


@pytest.fixture(scope="session")
def trained(photo_set, tmp_path_factory) -> Trained:
    """Both models, trained frozen on the photo set; shared by all tests, which must not write."""
    root = tmp_path_factory.mktemp("trained")
    data, checkpoints = copy_data(photo_set, root), root / "checkpoints"
    checkpoints.mkdir()
    shutil.copy(photo_set.depth_weights, checkpoints)
    code, printed = quietly(gps_orientation_trainer.main, *training_arguments(data, checkpoints))
    assert code == 0, printed
    return Trained(data, checkpoints, printed)


@pytest.fixture(scope="session")
def evaluation(trained, tmp_path_factory) -> tuple[Path, str]:
    """The folder of an evaluation of both models, and what was printed; nobody may write there."""
    output = tmp_path_factory.mktemp("evaluation")
    code, printed = quietly(
        evaluate_gps_model.main, "--data-dir", trained.data, "--checkpoint-dir",
        trained.checkpoints, "--output-dir", output, "--bootstrap", 200,
    )  # fmt: skip
    assert code == 0, printed
    return output, printed


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium without any network; skipped where there is none. Of a module only: while
    it lives, no other event loop can run."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        try:
            running = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"{program} does not start: {error.message.splitlines()[0]}")
        yield running
        running.close()


@contextlib.contextmanager
def opened(browser, path: Path, width: int = 1280, scheme: str = "light"):
    """A page of a file; whatever it asks of anyone, and every error in it, fails the test."""
    view = {"width": width, "height": 900}
    context = browser.new_context(viewport=view, color_scheme=scheme, offline=True)
    page, wrong = context.new_page(), []
    page.on("request", lambda r: wrong.append(r.url) if not r.url.startswith("data:") else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda m: wrong.append(m.text) if m.type in ("error", "warning") else None)
    page.goto(path.as_uri())
    assert wrong.pop(0) == path.as_uri()
    try:
        yield page
        assert not wrong
    finally:
        context.close()


def faults(page) -> list[str]:
    """Serious faults of accessibility that axe-core finds in a page."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    found = axe.Axe().run(page).response["violations"]
    return [f"{one['id']}: {one['nodes'][0]['target']}" for one in found
            if one["impact"] in ("serious", "critical")]  # fmt: skip


def make_normalisation(lat=46.0, lon=7.0, spread_km=50.0, **more) -> targets.Normalisation:
    return targets.Normalisation(
        **{
            "centre_lat": lat,
            "centre_lon": lon,
            "spread_km": spread_km,
            "altitude_median": 500.0,
            "altitude_scale": 200.0,
            "altitude_mean": 0.1,
            "altitude_std": 0.8,
            "altitude_limit": 3.0,
            "orientation_prior": [0.5, 0.1, 0.1, 0.1, 0.1, 0.1],
            **more,
        }
    )


def make_photos(count: int, seed: int = 0, **columns) -> Photos:
    """Photos with random labels of which a tenth is missing; `columns` replaces whole columns."""
    rng = np.random.default_rng(seed)
    gaps = rng.random((3, count)) < 0.1
    values = {
        "names": [f"f{i % 3}/{i}.jpg" for i in range(count)],
        "lat": np.where(gaps[0], np.nan, rng.normal(46, 0.2, count)),
        "lon": np.where(gaps[0], np.nan, rng.normal(7, 0.2, count)),
        "minutes": np.where(gaps[1], np.nan, rng.uniform(0, 1440, count)),
        "altitude": np.where(gaps[2], np.nan, rng.gamma(2, 300, count)),
        "sun": np.where(gaps[1] | gaps[0], np.nan, rng.uniform(-20, 70, count)),
        "orientation": rng.integers(-1, 6, count),
        "seconds": rng.uniform(0, 1e5, count),
        "camera": rng.choice(["a", "b"], count),
        "files": [REPOSITORY / f"{i}.jpg" for i in range(count)],
    }
    return Photos(**{**values, **columns})


def make_batch(count=12, seed=0):
    """Outputs, targets with gaps, and their normalisation."""
    photos = make_photos(count, seed)
    normalisation = targets.Normalisation.fit(photos)
    target = targets.targets_of(photos, normalisation)
    target["view"] = target.pop("tag")
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator)

    output = {"gps": random(count, 2), "time": random(count, 2), "altitude": random(count)}
    output |= {"orientation": random(count, 6), "sun": random(count)}
    return output, target, normalisation


def network_inputs(count=2, size=64, depth=True) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"rgb": (3, size, size), "view": (3, size // 2, size // 2)}
    shapes |= {"depth": (1, size, size)} if depth else {}
    return {k: torch.randn(count, *shape, generator=generator) for k, shape in shapes.items()}
