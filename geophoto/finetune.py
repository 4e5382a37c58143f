"""Fine-tuning end to end: photos decoded to training size, loaders, parameter groups.

In: Photos, a network. Out: batches, raw predictions of the whole network, the checkpoint's content.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn

import density
from density import silent
from geophoto.baselines import trivial_answers, validation_figures
from geophoto.densities import answers_of, as_plain, fit_densities, gallery_of
from geophoto.depth_maps import belongs_to, depth_file, depth_index, load_depth_map
from geophoto.devices import Precision, processes, rank
from geophoto.features import depth_input, picture_pixels, pixel_inputs
from geophoto.fusing import choose_fusing, judge_fused
from geophoto.network import GPSPredictionNet, predict_batch
from geophoto.orientations import ORIENTATION_CLASSES
from geophoto.origins import file_stamp, read_origins
from geophoto.photos import Photos
from geophoto.pictures import open_upright
from geophoto.targets import Normalisation, targets_of
from geophoto.training import fit

# ---------------------------------------------------------------- pixels


class PixelCache:
    """Photos decoded to training size, as raw bytes on disk that all workers and processes share.
    A photo counts once its flag is set, which is last."""

    def __init__(self, folder: Path, count: int, size: int) -> None:
        self.about = folder, count, size
        folder.mkdir(parents=True, exist_ok=True)
        self.whole = self.map("whole", (count, size, size, 3))
        self.square = self.map("square", (count, size // 2, size // 2, 3))
        self.there = self.map("there", (count,))

    def __reduce__(self):
        return PixelCache, self.about  # a spawned worker opens the files, it does not copy them

    def map(self, name: str, shape: tuple) -> np.memmap:
        file = self.about[0] / f"{name}.raw"
        with file.open("ab") as handle:
            if hasattr(os, "posix_fallocate"):  # a sparse map on a full disk: SIGBUS
                os.posix_fallocate(handle.fileno(), 0, math.prod(shape))
            else:
                handle.truncate(math.prod(shape))
        return np.memmap(file, np.uint8, "r+", shape=shape)

    def pixels(self, row: int, decode: Callable[[], tuple]) -> tuple[np.ndarray, np.ndarray]:
        if not self.there[row]:
            self.whole[row], self.square[row] = decode()
            self.there[row] = 1
        return self.whole[row], self.square[row]


def pixel_cache(
    photos: Photos, size: int, folder: Path, limit_gb: float, say: Callable[[str], None] = silent
) -> PixelCache | None:
    """The cache if all photos fit in so many GB and on the disk, otherwise None and a line."""
    needed = len(photos) * size * size * 3 * 1.25 / 1e9
    folder.mkdir(parents=True, exist_ok=True)
    states = [(str(file), *file_stamp(file)) for file in photos.files]
    key = hashlib.sha256(json.dumps([states, photos.tag.tolist()]).encode()).hexdigest()[:16]
    current = folder / f"pixels-{size}-{key}"
    taken = sum(file.stat().st_size for file in current.glob("*.raw"))  # by an earlier run
    room = min(limit_gb, (0.9 * shutil.disk_usage(folder).free + taken) / 1e9)
    if needed <= room:
        for other in folder.glob("pixels-*"):  # of photos or a size no longer asked for
            if other != current:
                shutil.rmtree(other, ignore_errors=True)
        return PixelCache(current, len(photos), size)
    say(f"photos are decoded anew in every epoch: keeping them takes {needed:.1f} GB, "
          f"--cache-gb and the disk allow {room:.1f}")  # fmt: skip
    return None


class PhotoSet(torch.utils.data.Dataset):
    """Photos as network inputs; `epoch` chooses the view shown, None gives all six.

    A photo that cannot be read is None: it is left out of its batch and named once.
    """

    def __init__(
        self, photos: Photos, size: int, network, data_dir: Path | None, cache=None, say=silent
    ) -> None:
        self.photos, self.size, self.data_dir, self.cache = photos, size, data_dir, cache
        self.say, self.named = say, set[int]()
        self.backbone = network.rgb_branch
        self.epoch: int | None = None
        self.origins = read_origins(depth_index(data_dir)) if data_dir is not None else {}

    def __len__(self) -> int:
        return len(self.photos)

    def decode(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        photo = open_upright(self.photos.files[row], max_side=2 * self.size)
        return picture_pixels(photo, self.size)

    def depth_map(self, row: int) -> np.ndarray:
        name, file = self.photos.names[row], self.photos.files[row]
        assert self.data_dir is not None
        path, tag = depth_file(self.data_dir, name), int(self.photos.tag[row])
        if path.is_file() and not belongs_to(path, file, tag, self.origins.get(name)):
            raise ValueError("its depth map was made before the photo was changed")
        return load_depth_map(path)

    def __getitem__(self, row: int):
        try:
            read = functools.partial(self.decode, row)
            pixels = self.cache.pixels(row, read) if self.cache else read()
            inputs = pixel_inputs(pixels[0], pixels[1], self.backbone)
            if self.data_dir is not None:
                inputs["depth"] = depth_input(self.depth_map(row), self.size)
        except (OSError, ValueError, SyntaxError) as error:
            if row not in self.named:
                self.say(f"left out: {self.photos.names[row]}: {error}")
                self.named.add(row)
            return None
        if self.epoch is None:
            return inputs, row, -1
        view = int(np.random.default_rng((self.epoch, row)).integers(len(ORIENTATION_CLASSES)))
        inputs["view"] = inputs.pop("views")[view]
        return inputs, row, view


def collate(items: list):
    """Stack the readable items of a batch; None when there is none."""
    items = [item for item in items if item is not None]
    if not items:
        return None
    inputs = {k: torch.stack([item[0][k] for item in items]) for k in items[0][0]}
    return inputs, np.array([item[1] for item in items]), torch.tensor([i[2] for i in items])


def photo_loader(dataset: PhotoSet, batch_size: int, precision, order=None):
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        collate_fn=collate,
        num_workers=min(8, (os.cpu_count() or 2) // 2) if precision.device.type == "cuda" else 0,
        pin_memory=precision.device.type == "cuda",
    )


def predict_photos(
    network, dataset: PhotoSet, rows: np.ndarray, precision, bar, title: str
) -> dict:
    """The same as predict_readable; the run ends where no photo can be read."""
    found = predict_readable(network, dataset, rows, precision, bar, title)
    if not found:
        density.stop(f"none of the {len(rows)} {title} could be read")
    return found


@torch.inference_mode()
def predict_readable(
    network, dataset: PhotoSet, rows: np.ndarray, precision, bar, title: str
) -> dict:
    """Raw outputs of the whole network, as HeadTrainer.predict, with the `rows` that were read;
    empty without any. Under torchrun the processes share the work and all get the result."""
    network.eval()
    dataset.epoch = None
    found: dict[str, list] = {}
    loader = photo_loader(dataset, 4, precision, rows[rank() :: processes()].tolist())
    for item in bar(loader, desc=title, unit="batch", leave=False):
        if item is None:
            continue
        inputs, read, _ = item
        for key, value in predict_batch(network, inputs, precision).items():
            found.setdefault(key, []).append(value)
        found.setdefault("rows", []).append(read)
    if processes() > 1:
        every: list = [None] * processes()
        torch.distributed.all_gather_object(every, found)
        keys = set().union(*every)
        found = {key: [x for part in every for x in part.get(key, [])] for key in keys}
    if not found:
        return {}
    order = np.argsort(np.concatenate(found["rows"]))
    return {name: np.concatenate(parts)[order] for name, parts in found.items()}


# ---------------------------------------------------------------- run


def learning_groups(network: GPSPredictionNet, options: dict) -> list[dict]:
    """AdamW's parameter groups: backbones without their first frozen stages, and heads."""
    from timm.models import group_parameters

    backbones = [b for b in (network.rgb_branch, network.depth_branch) if b is not None]
    for backbone in backbones:
        stages = group_parameters(backbone, backbone.group_matcher(coarse=True))
        if options["freeze_stages"] > len(stages):
            density.stop(f"--freeze-stages: this backbone has only {len(stages)} stages")
        frozen = {n for stage in sorted(stages)[: options["freeze_stages"]] for n in stages[stage]}
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(name not in frozen)
    learning = [p for b in backbones for p in b.parameters() if p.requires_grad]
    rate = options["learning_rate"]
    return [
        {"params": learning, "lr": rate},
        {"params": list(network.heads.parameters()), "lr": rate * options["head_rate"]},
    ]


def deal_parts(fold_of: np.ndarray) -> dict[str, np.ndarray]:
    """Rows of test, validation and training photos, 15/15/70 %, from folds 0..19."""
    parts = {"test": fold_of < 3, "val": (fold_of >= 3) & (fold_of < 6), "train": fold_of >= 6}
    return {name: np.flatnonzero(chosen) for name, chosen in parts.items()}


def fuse_validation(
    densities: dict, found: dict, gallery: dict | None, asked: Photos, scale: Normalisation
) -> dict[str, dict]:
    """How validation photos of one burst or folder are fused: chosen on each half of the groups of
    the split in turn and told on the other, by the densities that were fitted on both."""
    answers = answers_of(found, gallery, densities, scale)
    judged = judge_fused(densities, found, gallery, answers, asked, scale)
    halves = np.unique(asked.group, return_inverse=True)[1] % 2
    return choose_fusing(judged, halves, asked)


def train_network(
    photos: Photos, rows: dict[str, np.ndarray], network: GPSPredictionNet, dataset: PhotoSet,
    precision: Precision, options: dict, bar: Callable, say: Callable[[str], None],
    on_epoch: Callable[[dict, dict], None], resume: dict | None,
) -> dict:  # fmt: skip
    """Train everything on `rows["train"]`; returns what the checkpoint holds beside split and
    metrics. `on_epoch` and `resume`: see training.fit."""
    train = photos.take(rows["train"])
    normalisation, trivial = Normalisation.fit(train), trivial_answers(train)
    targets = targets_of(photos, normalisation)
    network.to(precision.device).to(memory_format=torch.channels_last)
    network.fixed_statistics = options["pretrained"]  # a few photos at a time would blur them
    if options["compile"]:
        network.compile()

    def batches(epoch: int) -> Iterator:
        order = np.random.default_rng((options["seed"], epoch)).permutation(rows["train"])
        dataset.epoch = epoch
        mine, size = order[rank() :: processes()].tolist(), options["batch_size"]
        steps = math.ceil(math.ceil(len(order) / processes()) / size)  # as many on every process
        loader = photo_loader(dataset, size, precision, mine)
        items = itertools.islice(itertools.chain(loader, itertools.repeat(None)), steps)
        for item in bar(items, total=steps, desc=f"epoch {epoch + 1}", unit="batch", leave=False):
            if item is None:
                yield None, None
                continue
            batch, read, view = item
            goal = {k: targets[k][read] for k in ("point", "time", "altitude", "sun")}
            yield batch, {**goal, "view": view}

    def predict(part: str, judged: nn.Module = network) -> dict:
        return predict_photos(judged, dataset, rows[part], precision, bar, f"{part} photos")

    def validate(judged: nn.Module) -> dict:
        found = predict("val", judged)
        return validation_figures(found, photos.take(found["rows"]), trivial, normalisation)

    names = ("epochs", "weight_decay", "patience", "seed", "ema_decay")
    best = fit(
        network, batches, validate, normalisation, precision,
        parameters=learning_groups(network, options),
        micro=options["micro_batch"] or options["batch_size"],
        on_epoch=on_epoch, resume=resume, say=say, **{name: options[name] for name in names},
    )  # fmt: skip
    found = predict("train")
    gallery = gallery_of(found["trunk"], photos.take(found["rows"])) if options["gallery"] else None
    found = predict("val")
    asked = photos.take(found["rows"])
    densities = fit_densities([(found, gallery, asked, normalisation)])
    densities["fuse"] = fuse_validation(densities, found, gallery, asked, normalisation)
    alone = fit_densities([(found, None, asked, normalisation)]) if gallery else None
    return {
        "normalisation": vars(normalisation),
        "densities": as_plain(densities),
        "densities_alone": alone and as_plain(alone),
        "gallery": gallery,
        "held_out": None,
        "epoch": best.epoch,
    }
