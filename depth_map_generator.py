"""Give every photo of the table its depth map: Depth-Anything-V2, one .npy and one .png per photo.

Reads data/exif_data.json and the photos, writes data/depths/<photo path>.npy (float16, inverse
depth at network resolution) with a picture beside each, and data/depths/depth_model.json.

    python depth_map_generator.py
    python depth_map_generator.py --depth-model demo --data-dir data/demo
    torchrun --nproc_per_node=2 depth_map_generator.py

An interrupted run goes on with the same command. A map is made anew when its photo has another
size, time or turn, or another inode change time and other bytes: data/depth_index.jsonl remembers
them. File systems without inode change times (FAT; Windows) hide edits that keep size and time: use
--overwrite. Processes give the bytes that one process with as many threads gives; another number
of threads moves a few values by the last float16 digit.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import math
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from density import (  # before NumPy and torch: see there
    DISK_REFUSES,
    file_sha256,
    next_command,
    one_line_for_files,
    progress,
    ready_to_write,
    run_script,
    spread_order,
    stop,
    sweep_temporaries,
    write_atomically,
)

# isort: split
import numpy as np

from geophoto.depth_maps import (
    belongs_to,
    depth_file,
    depth_index,
    draw_depth,
    is_finished,
    name_fits,
    read_depth_model,
    repair_depth,
    save_contact_sheet,
)
from geophoto.depth_network import (
    load_network,
    measure_batch,
    pick_device,
    pick_precision,
    preprocess,
    speed_up,
    tensor_size,
    to_inverse,
)
from geophoto.depth_weights import KNOWN_SHA256, find_weights
from geophoto.orientations import known_tag
from geophoto.origins import (
    Origin,
    is_known,
    note_origins,
    origin_of,
    read_origins,
    renew,
    shorten_journal,
)
from geophoto.pictures import MEGAPIXELS, limit_pixels, one_large, open_upright, photo_file
from geophoto.table import read_table

# ---------------------------------------------------------------- settings
DATA_DIR = "data"  # holds exif_data.json; depths/ is written below it
IMAGE_DIR = None  # the photos; None = DATA_DIR/images
CHECKPOINT_DIR = "checkpoints"  # where weights are looked for and downloaded to
DEPTH_MODEL = "vits"  # vits, vitb, vitl, metric_hypersim_vits …, demo; or .pth, HF folder, hub id
INPUT_SIZE = 518  # shorter side of what the network sees, px; larger = finer and slower
DEVICE = "auto"  # auto = cuda, then mps, then cpu
PRECISION = "auto"  # fp32, bf16 or fp16; auto = the fastest that the device has in hardware
BATCH_SIZE = None  # photos of one shape per pass; None = 1 on the CPU (faster there), else 8
WORKERS = 2  # threads that read photos ahead, and as many that write maps
COMPILE = False  # torch.compile: minutes to start, pays for thousands of photos
FAST_DECODE = False  # read JPEGs at reduced size: faster, depth differs slightly
WRITE_PNG = True  # a picture beside each map
SIDE_BY_SIDE = False  # the picture shows photo and depth
LEGEND = False  # the picture carries a thin far-near scale
# ------------------------------------------------------------------------

WHOLE_PIXELS = 50_000_000  # larger photos are read reduced, to REDUCED_SIDE px or twice what is fed
REDUCED_SIDE = 4096
PICTURE_SETTINGS = ("side_by_side", "legend")  # a change of these redraws the pictures only

# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class Options:
    """What the run does with every photo. The first three decide whether old maps can stay."""

    sha256: str
    input_size: int
    fast_decode: bool
    side_by_side: bool
    legend: bool
    write_png: bool


@dataclass(frozen=True)
class Job:
    """One photo to work on; `draw_only` when its map is finished and only the picture is due."""

    filename: str
    photo: Path
    max_side: int | None  # px, JPEGs may be decoded down to this longer side
    draw_only: bool = False
    tag: int = 0  # EXIF orientation, 0 = none
    pixels: float = 0.0  # as stored; 0 = not known


class Beside(NamedTuple):
    """What a map needs when it is written: a small photo for its picture, and its origin."""

    small_rgb: np.ndarray | None
    origin: Origin | None


def why_redo(sidecar: dict, options: Options, data_dir: Path) -> str:
    """Why the maps made under `sidecar` cannot stay; empty when they can."""
    if not sidecar:
        foreign = next((data_dir / "depths").rglob("*.npy"), None)
        return "no readable depth_model.json says what made them" if foreign else ""
    return ", ".join(
        f"{name} was {str(sidecar.get(name))[:12]} and is {str(getattr(options, name))[:12]}"
        for name in ("sha256", "input_size", "fast_decode")
        if sidecar.get(name) != getattr(options, name)
    )


def side_to_read(width: float, height: float, options: Options) -> int | None:
    """Longer side to which a photo of this size may be decoded; None for the whole of it, as in
    the official procedure. Beyond WHOLE_PIXELS that would take 15 bytes a pixel."""
    short, long = sorted((width, height))
    if not short > 0:  # not known: nan
        return None
    needed = math.ceil(options.input_size * long / short)
    if options.fast_decode:
        return needed
    return max(REDUCED_SIDE, 2 * needed) if short * long > WHOLE_PIXELS else None


def plan_jobs(
    table, data_dir: Path, image_dir: Path, options: Options, redo: bool, redraw: bool
) -> tuple[list[Job], dict[str, tuple[str, str]]]:
    """Jobs in an order that covers the map early, and the outcome of rows that need none."""
    lat, lon = (table[f"gps_{axis}"].to_numpy(float) for axis in ("latitude", "longitude"))
    origins = read_origins(depth_index(data_dir))
    jobs, outcomes = [], {}
    for row in table.iloc[spread_order(lat, lon)].itertuples():
        name, tag = row.filename, known_tag(row.orientation_tag)
        photo, path = photo_file(image_dir, name), depth_file(data_dir, name)
        pixels = row.image_width * row.image_height
        max_side = side_to_read(row.image_width, row.image_height, options)
        if row.status == "unreadable":
            outcomes[name] = ("skipped", "unreadable according to the table")
        elif not name_fits(data_dir, name):
            outcomes[name] = ("skipped", "too long a name: none is left for its map")
        elif (redo or not is_finished(path)
              or not belongs_to(path, photo, tag, origins.get(name))):  # fmt: skip
            jobs.append(Job(name, photo, max_side, tag=tag, pixels=pixels))
        elif options.write_png and (redraw or not path.with_suffix(".png").exists()):
            jobs.append(Job(name, photo, max_side, draw_only=True, pixels=pixels))
        else:
            outcomes[name] = ("unchanged", "")
    return jobs, outcomes


def bring_index_up_to_date(table, data_dir: Path, image_dir: Path) -> None:
    """Note new inode change times of photos that still hold the bytes of their maps, so that these
    are compared once only; and forget what later lines have overtaken."""
    index = depth_index(data_dir)
    origins = read_origins(index)
    shorten_journal(index, origins)
    tags = dict(zip(table.filename, map(known_tag, table.orientation_tag), strict=True))
    renewed = []
    for name, origin in origins.items():
        photo = photo_file(image_dir, name)
        if name in tags and not is_known(origin, photo):
            with suppress(OSError):  # gone, or not to be read: the photo's own job will say so
                again = renew(origin, photo, tags[name])
                renewed += [(name, again)] if again else []
    note_origins(index, renewed)


def read_job(job: Job, options: Options) -> tuple[np.ndarray | None, Beside]:
    """What a job needs of its photo: tensor (1, 3, H, W), and what is written beside its map."""
    if job.draw_only and not options.side_by_side:
        return None, Beside(None, None)
    origin = None if job.draw_only else origin_of(job.photo, job.tag)  # before it is decoded
    small = None
    with one_large(job.pixels):
        image = open_upright(job.photo, max_side=job.max_side)
        pixels = np.asarray(image)
        if options.side_by_side:
            size = tensor_size(image.height, image.width, options.input_size)
            small = np.asarray(image.resize(size[::-1], reducing_gap=2))
        del image  # before the pixels become numbers of four bytes
        tensor = None if job.draw_only else preprocess(pixels, options.input_size)
    return tensor, Beside(small, origin)


def write_job(
    job: Job, depth: np.ndarray | Exception | None, beside: Beside, data_dir: Path, kind: str,
    options: Options,
) -> tuple[str, str]:  # fmt: skip
    """Write the picture, the map, and then its origin, without which it is as old as it looks."""
    path, warning = depth_file(data_dir, job.filename), ""
    if isinstance(depth, Exception):
        raise depth
    if depth is None:
        depth = np.load(path, allow_pickle=False)
    else:
        depth, warning = repair_depth(depth, kind)
    depth = np.asarray(depth).astype(np.float16)  # the picture shows what the file holds
    if options.write_png:
        picture = draw_depth(to_inverse(depth, kind), options.legend, beside.small_rgb)
        with write_atomically(path.with_suffix(".png")) as file:
            picture.save(file, "PNG", compress_level=4)
    if job.draw_only:
        return "redrawn", ""
    with write_atomically(path) as file:
        np.save(file, depth, allow_pickle=False)
    if beside.origin is not None:
        note_origins(depth_index(data_dir), [(job.filename, beside.origin)])
    return "written", warning


def failure(error: BaseException) -> tuple[str, str]:
    """The outcome of a photo that met `error`; a full disk ends the run."""
    if isinstance(error, OSError) and error.errno in DISK_REFUSES:
        stop(f"no space left on the disk for the depth maps ({error})")
    return "failed", f"{type(error).__name__}: {error}".splitlines()[0]


def read_ahead(
    pool: ThreadPoolExecutor, jobs: Iterable[Job], ahead: int, options: Options
) -> Iterator[tuple[Job, Future]]:
    """Jobs with the future of what they need, in order, so many of them being read ahead."""
    waiting: deque[tuple[Job, Future]] = deque()
    coming = iter(jobs)
    while True:
        for job in itertools.islice(coming, ahead - len(waiting)):
            waiting.append((job, pool.submit(read_job, job, options)))
        if not waiting:
            return
        yield waiting.popleft()


def batch_by_shape(
    reading: Iterable[tuple[Job, Future]], batch_size: int, outcomes: dict[str, tuple[str, str]]
) -> Iterator[list[tuple[Job, np.ndarray | None, Beside]]]:
    """Gather (job, tensor, Beside) of one shape; photos that failed go to `outcomes`."""
    gathered: dict[tuple, list] = {}
    for job, future in reading:
        try:
            tensor, beside = future.result()
        except Exception as error:  # one bad photo never ends a run
            outcomes[job.filename] = failure(error)
            continue
        shape = tensor.shape if tensor is not None else ()
        gathered.setdefault(shape, []).append((job, tensor, beside))
        if len(gathered[shape]) == batch_size:
            yield gathered.pop(shape)
        elif sum(map(len, gathered.values())) > 4 * batch_size:  # photos of many odd shapes
            yield gathered.pop(max(gathered, key=lambda shape: len(gathered[shape])))
    yield from gathered.values()


def run_jobs(
    network, jobs: list[Job], data_dir: Path, options: Options, kind: str, precision: str,
    batch_size: int, workers: int,
) -> tuple[dict[str, tuple[str, str]], float]:  # fmt: skip
    """Outcome of every job, and the seconds spent in the network.

    Reading and writing run in threads beside the network, at most a few photos ahead of it.
    """
    outcomes: dict[str, tuple[str, str]] = {}
    writing: deque[tuple[Job, Future]] = deque()
    network_s = 0.0
    quiet = int(os.environ.get("RANK", 0)) > 0
    with (
        ThreadPoolExecutor(workers) as readers,
        ThreadPoolExecutor(workers) as writers,
        progress(total=len(jobs), desc="depth maps", unit="photo", disable=quiet) as bar,
    ):
        reading = read_ahead(readers, jobs, workers + batch_size, options)
        batches = batch_by_shape(reading, batch_size, outcomes)
        for batch in itertools.chain(batches, [None]):  # None: wait for the last writes
            while len(writing) > (2 * workers if batch else 0):
                job, future = writing.popleft()
                error = future.exception()
                outcomes[job.filename] = failure(error) if error else future.result()
            bar.update(len(outcomes) - bar.n)
            if not batch:
                break
            depths: list[np.ndarray | Exception | None] = [None] * len(batch)
            tensors = [tensor for _, tensor, _ in batch if tensor is not None]
            if tensors:
                start = time.perf_counter()
                depths = list(measure_batch(network, tensors, precision))
                network_s += time.perf_counter() - start
            for (job, _, beside), depth in zip(batch, depths, strict=True):
                task = writers.submit(write_job, job, depth, beside, data_dir, kind, options)
                writing.append((job, task))
    return outcomes, network_s


def prepare_outputs(data_dir: Path, sidecar: dict, redo: str, redraw: bool) -> None:
    """Clear away what the coming run must not keep, then write depth_model.json.

    In this order a killed run is resumed: as long as old outputs are left, so is the old sidecar.
    """
    depths = data_dir / "depths"
    for path in depths.rglob("*.npy"):
        if redo or redraw:
            path.with_suffix(".png").unlink(missing_ok=True)
        if redo:
            path.unlink()
    with write_atomically(depths / "depth_model.json", "w", encoding="utf-8") as file:
        json.dump(sidecar, file, indent=2)
        file.write("\n")


def join_ranks() -> tuple[int, int]:
    """(rank, number of ranks) under torchrun; (0, 1) without it. Gloo serves CPU and GPU alike."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        import torch.distributed

        week = datetime.timedelta(days=7)  # ranks meet again only after all their photos
        torch.distributed.init_process_group("gloo", timeout=week)
    return int(os.environ.get("RANK", 0)), world


def meet(world: int) -> None:
    """Wait until all ranks have come this far; stop when one of them has ended."""
    if world == 1:
        return
    import torch.distributed

    try:
        torch.distributed.barrier()
    except RuntimeError:
        stop("another rank has ended early; its own message says why")


def gather_outcomes(outcomes: dict, rank: int, world: int) -> dict[str, tuple[str, str]]:
    """The outcomes of all ranks on rank 0; those of ranks that died are simply absent."""
    if world == 1:
        return outcomes
    import torch.distributed

    gathered: list[Any] | None = [None] * world if rank == 0 else None
    try:
        torch.distributed.gather_object(outcomes, gathered)
    except RuntimeError as error:
        print(f"warning: not every rank has reported: {error}", file=sys.stderr)
    for other in gathered or ():
        outcomes = outcomes | (other or {})
    return outcomes


def generate_depth_maps(
    *, data_dir: Path, image_dir: Path | None, checkpoint_dir: str, depth_model: str,
    input_size: int, device: str, precision: str, batch_size: int | None, workers: int,
    compile: bool, fast_decode: bool, write_png: bool, side_by_side: bool, legend: bool,
    overwrite: bool, contact_sheet: bool,
) -> int:  # fmt: skip
    """Do the whole stage with the settings of the same names; returns the exit code."""
    from tqdm import tqdm

    rank, world = join_ranks()
    table, image_dir = read_table(data_dir, image_dir), image_dir or data_dir / "images"
    if rank > 0:
        meet(world)  # rank 0 alone downloads, sweeps and compares bytes
    sha256 = file_sha256(find_weights(depth_model, checkpoint_dir, print, tqdm))
    if rank == 0:
        sweep_temporaries(data_dir / "depths")
        bring_index_up_to_date(table, data_dir, image_dir)
        meet(world)
    options = Options(sha256, input_size, fast_decode, side_by_side, legend, write_png)
    old = read_depth_model(data_dir)
    redo = "--overwrite" if overwrite else why_redo(old, options, data_dir)
    redraw = write_png and any(old.get(k) != getattr(options, k) for k in PICTURE_SETTINGS)
    jobs, outcomes = plan_jobs(table, data_dir, image_dir, options, bool(redo), redraw)
    if jobs and rank == 0:
        ready_to_write(data_dir / "depths")
    network, sidecar, network_s = None, old, 0.0
    if any(not job.draw_only for job in jobs):
        device = pick_device(device)
        precision = pick_precision(precision, device)
        network, info = load_network(depth_model, checkpoint_dir, device)
        network = speed_up(network, compile)
        sidecar = describe_maps(info, {} if redo else old, options, precision)
    elif redraw:
        sidecar = old | {name: getattr(options, name) for name in PICTURE_SETTINGS}
    meet(world)  # all ranks have the same plan; only now may the files change
    if rank == 0 and jobs:
        announce(sidecar, redo, len(jobs), len(table))
        prepare_outputs(data_dir, sidecar, redo, redraw)
    meet(world)
    start = time.perf_counter()
    if jobs:
        batch_size = batch_size or (8 if device.startswith("cuda") else 1)
        kind = sidecar.get("kind", "inverse depth")
        done, network_s = run_jobs(network, jobs[rank::world], data_dir, options, kind, precision,
                                   batch_size, workers)  # fmt: skip
        outcomes = gather_outcomes(outcomes | done, rank, world)
    seconds = time.perf_counter() - start
    if rank > 0:
        return 0
    if contact_sheet:
        print(f"contact sheet: {save_contact_sheet(data_dir, image_dir, list(table.filename))}")
    share = network_s / seconds
    return report(outcomes, list(table.filename), data_dir, image_dir, seconds, share)


def describe_maps(info: dict, old: dict, options: Options, precision: str) -> dict:
    """What depth_model.json says. A run that goes on in another precision names both."""
    precisions = {precision, *old.get("precision", precision).split("+")}
    settings = {name: getattr(options, name) for name in ("input_size", "fast_decode")}
    for name in PICTURE_SETTINGS:  # unless pictures are drawn, they stay what they were
        settings[name] = getattr(options, name) if options.write_png else old.get(name, False)
    return info | {"precision": "+".join(sorted(precisions))} | settings


def report_weights(info: dict) -> None:
    """Print the sha256 beside the published one, and the licence where it is not Apache-2.0."""
    name = info["model"].removeprefix("depth_anything_v2_")
    published = KNOWN_SHA256.get(name)
    known = [known for known, sha256 in KNOWN_SHA256.items() if sha256 == info["sha256"]]
    says = f"the published {known[0]}" if known else "not a published file"
    print(f"weights {info['file']}: sha256 {info['sha256']} ({says}), {info['kind']}")
    if published and published != info["sha256"]:
        print(f"warning: {info['file']} is not the published one, sha256 {published}",
              file=sys.stderr)  # fmt: skip
    if size := re.search(r"vit[blg]$", known[0] if known else name):
        origin = "fine-tuned from weights under " if "metric" in name else ""
        print(f"licence of {size[0]}: {origin}CC-BY-NC-4.0, no commercial use (Small: Apache-2.0)")


def announce(sidecar: dict, redo: str, jobs: int, rows: int) -> None:
    """Say what is about to be done and why."""
    report_weights(sidecar)
    if redo:
        print(f"all maps are made anew: {redo}")
    how = f"{sidecar['precision']}, shorter side {sidecar['input_size']} px"
    print(f"{jobs} of {rows} photos to do, {how}")


def report(
    outcomes: dict[str, tuple[str, str]], filenames: list[str], data_dir: Path, image_dir: Path,
    seconds: float, network_share: float,
) -> int:  # fmt: skip
    """Account for every row, name what went wrong, and say what comes next; the exit code."""
    lost = ("failed", "not reported: the rank that had it has ended")
    outcomes = {name: outcomes.get(name, lost) for name in filenames}
    for name, (outcome, reason) in outcomes.items():
        if reason:
            print(f"{'warning' if outcome == 'written' else outcome}: {name}: {reason}")
    counts = Counter(outcome for outcome, _ in outcomes.values())
    made = counts["written"] + counts["redrawn"]
    if made:
        print(f"{made / seconds:.2f} photos/s, {network_share:.0%} of the time in the network")
    listed = ", ".join(f"{number} {outcome}" for outcome, number in sorted(counts.items()))
    print(f"{len(outcomes)} photos in the table: {listed}")
    print(f"depth maps and pictures: {data_dir / 'depths'}")
    if counts["failed"]:
        print("failed photos are tried again by the same command")
    print(next_command("gps_orientation_trainer", data_dir, image_dir))
    return 1 if counts["failed"] else 0


# ---------------------------------------------------------------- command line


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Settings from the command line, with the constants above as defaults."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("--data-dir", default=DATA_DIR, help="folder of exif_data.json and depths/")
    add("--image-dir", default=IMAGE_DIR, help="the photos (default: DATA_DIR/images)")
    add("--checkpoint-dir", default=CHECKPOINT_DIR, help="folder of the weights")
    models = "vits, vitb, vitl, metric_hypersim_vits …, demo; a .pth, a folder or a hub id"
    add("--depth-model", default=DEPTH_MODEL, help=models)
    add("--input-size", type=int, default=INPUT_SIZE, help="shorter side in px (%(default)s)")
    add("--device", default=DEVICE, help="auto, cpu, cuda, cuda:1, mps")
    add("--precision", default=PRECISION, choices=("auto", "fp32", "bf16", "fp16"))
    add("--batch-size", type=int, default=BATCH_SIZE, help="photos per pass (1 on CPU, else 8)")
    add("--workers", type=int, default=WORKERS, help="reading and writing threads (%(default)s)")
    add("--compile", action=switch, default=COMPILE, help="torch.compile the network")
    add("--fast-decode", action=switch, default=FAST_DECODE, help="read JPEGs at reduced size")
    add("--write-png", action=switch, default=WRITE_PNG, help="a picture beside each map")
    add("--side-by-side", action=switch, default=SIDE_BY_SIDE, help="pictures: photo | depth")
    add("--legend", action=switch, default=LEGEND, help="pictures with a thin far-near scale")
    add("--overwrite", action="store_true", help="make all maps anew")
    add("--pixel-limit", type=float, default=MEGAPIXELS, metavar="MP",
        help="larger photos are refused, megapixels (%(default)g)")  # fmt: skip
    add("--contact-sheet", action="store_true", help="also write depths/contact_sheet.jpg")
    args = parser.parse_args(argv)
    for name in ("input_size", "workers", "batch_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            stop(f"--{name.replace('_', '-')} must be at least 1")
    return args


def main(argv: list[str] | None = None) -> int:
    """Make the depth maps; returns the exit code."""
    args = vars(parse_args(argv))
    for name in ("data_dir", "image_dir"):
        args[name] = Path(args[name]) if args[name] else None
    limit_pixels(args.pop("pixel_limit"))
    with one_line_for_files():
        return generate_depth_maps(**args)


if __name__ == "__main__":
    run_script(main)
