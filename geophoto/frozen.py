"""Heads on frozen features: ridge starts, rehearsals, folds.

In: FrozenData, fold numbers. Out: held-out answers with baselines, and every choice made.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from geophoto.baselines import (
    answer_errors,
    choose_knn,
    knn_answers,
    labelled_neighbours,
    mean_error,
    mean_figures,
    trivial_answers,
    validation_figures,
)
from geophoto.densities import as_plain, combine_folds, fit_densities, gallery_of, hold_out, thinned
from geophoto.devices import one_thread
from geophoto.features import FrozenData
from geophoto.fusing import choose_fusing, judge_fused
from geophoto.network import PredictionHeads
from geophoto.orientations import ORIENTATION_CLASSES, agree_views, turns_right
from geophoto.photos import Photos
from geophoto.targets import (
    HEADS,
    Normalisation,
    decode,
    encode_gps,
    sun_height,
    targets_of,
    time_point,
)
from geophoto.training import fit
from geophoto.verification import judge_held_out

RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # tried as a start
LOGIT_SCALE = 8.0  # of the ridge's ±1 targets, so that the softmax starts decided, not certain
MOST_FOR_AXES = 3000  # photos that principal axes are found on: the work grows with the cube
FEW_FOR_CHOICES = 2000  # with fewer training photos, choices are made on every other fold in turn

# ---------------------------------------------------------------- heads


class Ridge:
    """Ridge regression of `wanted` (N, C) on centred `axes` (N, H), for any penalty from one
    decomposition. A penalty of 1 weighs the photos like the prior: `middle`, or else their mean."""

    @one_thread()
    def __init__(
        self, axes: torch.Tensor, wanted: torch.Tensor, middle: float | None = None
    ) -> None:
        axes, self.mean = axes.double(), wanted.mean(0)
        self.middle = self.mean if middle is None else middle
        strength, self.vectors = torch.linalg.eigh(axes.T @ axes / axes.shape[1])
        self.strength = strength.clamp_min(0)[:, None]
        self.goal = self.vectors.T @ (axes.T @ (wanted - self.mean).double()) / axes.shape[1]

    @torch.no_grad()
    def set(self, layer: nn.Linear, penalty: float) -> None:
        layer.weight.copy_((self.vectors @ (self.goal / (self.strength + penalty))).T)
        layer.bias.copy_((self.mean + penalty * self.middle) / (1 + penalty))


class HeadTrainer:
    """Heads on the frozen features of the photos `rows`.

    They start as ridge regressions on principal axes: a closed form beats gradient descent from
    random weights when photos are few and features many. Training goes on from there for as many
    epochs as validation asks for, which may be none.
    """

    def __init__(self, data: FrozenData, rows: np.ndarray, precision, options: dict, seed: int):
        torch.manual_seed(seed)
        self.data, self.rows, self.precision = data, rows, precision
        self.options, self.seed = options, seed
        self.photos = data.photos.take(rows)
        self.normalisation = Normalisation.fit(self.photos)
        self.targets = targets_of(data.photos, self.normalisation)
        self.trivial = trivial_answers(self.photos)
        self.heads = PredictionHeads(
            data.blocks, data.grid, options["hidden"], data.depth is not None
        )
        seen = rows[:: max(1, len(rows) // 200)]
        some = rows[:: math.ceil(len(rows) / MOST_FOR_AXES)]
        self.heads.fit_axes(pooled=data.pooled(some), grid=data.grids(seen).flatten(0, 1).numpy())
        self.heads.to(precision.device)
        self.axes, self.grid_axes = self.project()
        middle_m = self.normalisation.altitude_target(self.normalisation.altitude_median)
        self.ridges = {
            head: self.ridge(self.axes[rows], wanted, middle)
            for head, wanted, middle in (
                ("gps", encode_gps(self.photos.lat, self.photos.lon, self.normalisation), None),
                ("time", time_point(self.photos.minutes), None),
                ("altitude", self.normalisation.altitude_target(self.photos.altitude), middle_m),
                ("sun", sun_height(self.photos.sun), None),
            )
        }
        classes = LOGIT_SCALE * np.eye(len(ORIENTATION_CLASSES))
        self.ridges["orientation"] = self.ridge(
            self.grid_axes[seen].flatten(0, 1), np.tile(classes, (len(seen), 1))
        )
        self.untrained = self.learned()

    @torch.no_grad()
    def project(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The axes of all photos (N, hidden) and of their six views (N, 6, hidden), once for all
        epochs and predictions."""
        count, hidden = len(self.data.photos), self.options["hidden"]
        # made whole: parts kept between features that come and go would break the memory up
        axes = torch.empty(count, hidden)
        views = torch.empty(count, len(ORIENTATION_CLASSES), hidden)
        for part in torch.arange(count).split(256):
            for found, name, features in (
                (axes, "pooled", torch.from_numpy(self.data.pooled(part.numpy()))),
                (views, "grid", self.data.grids(part.numpy())),
            ):
                found[part] = self.heads.project(name, features.to(self.precision.device)).cpu()
        return axes, views

    @staticmethod
    def ridge(axes: torch.Tensor, wanted: np.ndarray, middle: Any = None):
        """Ridge of the labelled rows, or None without any."""
        wanted = wanted.reshape(len(wanted), -1)
        known = np.isfinite(wanted[:, 0])
        if not known.any():
            return None
        return Ridge(axes[known], torch.from_numpy(wanted[known]), middle)

    def forget(self) -> None:
        """Undo all training: what comes next does not depend on what was trained before."""
        self.heads.load_state_dict(self.untrained, strict=False)

    def start(self, head: str, penalty: float) -> None:
        """Set one head to a ridge regression."""
        if self.ridges[head]:
            self.ridges[head].set(getattr(self.heads, head), penalty)

    def batches(self, epoch: int) -> Iterator:
        """Shuffled batches, every photo in a random one of the six orientations."""
        rng, rows = np.random.default_rng((self.seed, epoch)), self.rows
        parts = math.ceil(len(rows) / self.options["batch_size"])
        for part in np.array_split(rng.permutation(rows), parts):
            view = rng.integers(0, len(ORIENTATION_CLASSES), len(part))
            target = {k: self.targets[k][part] for k in ("point", "time", "altitude", "sun")}
            yield (
                {"pooled": self.axes[part], "grid": self.grid_axes[part, view]},
                {**target, "view": torch.from_numpy(view)},
            )

    @one_thread()
    def train(self, ridges: dict[str, float], epochs: int, validation=None) -> list[dict]:
        """Start all heads and train them for so many epochs; returns the epochs' figures. With
        validation photos it may end earlier and the figures hold their score, epoch 0 first."""
        torch.manual_seed(self.seed)
        self.forget()
        for head in HEADS:
            self.start(head, ridges[head])
        history: list[dict] = []
        options = self.options
        self.states: list[dict[str, torch.Tensor]] = []

        def on_epoch(row: dict, state: dict) -> None:
            history.append(row)
            self.states.append(self.learned())

        fit(
            self.heads,
            self.batches,
            None if validation is None else lambda _: self.figures(validation),
            self.normalisation,
            self.precision,
            parameters=[{"params": self.heads.parameters(), "lr": options["learning_rate"]}],
            epochs=epochs,
            micro=options["batch_size"],
            weight_decay=options["weight_decay"],
            patience=options["patience"],
            seed=self.seed,
            on_epoch=on_epoch,
        )
        return history

    def learned(self) -> dict[str, torch.Tensor]:
        """A copy of all that training changes."""
        named = self.heads.named_parameters()
        return {k: v.detach().clone() for k, v in named if v.requires_grad}

    def go_back(self, epoch: int) -> None:
        """Restore the heads as they were after that epoch of the last training; 0 = its start."""
        self.heads.load_state_dict(self.states[epoch], strict=False)

    @torch.inference_mode()
    def predict(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """Raw outputs for the photos `rows`; `views` holds the logits of all six views."""
        self.heads.eval()
        found: dict[str, list] = {}
        for part in torch.from_numpy(rows).split(4096):
            output = self.heads.answer(self.axes[part].to(self.precision.device))
            logits = self.heads.orient(self.grid_axes[part].to(self.precision.device))
            output["views"] = agree_views(logits)
            for key, value in output.items():
                found.setdefault(key, []).append(value.float().cpu().numpy())
        return {key: np.concatenate(parts) for key, parts in found.items()}

    def figures(self, rows: np.ndarray) -> dict:
        return validation_figures(
            self.predict(rows), self.data.photos.take(rows), self.trivial, self.normalisation
        )

    def gallery(self) -> dict:
        return gallery_of(self.predict(self.rows)["trunk"], self.photos)

    def neighbours(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The photos most similar on the principal axes of the features."""
        return labelled_neighbours(self.axes[rows], self.axes[self.rows], self.photos)


# ---------------------------------------------------------------- folds


def choose_ridges(pairs: list[tuple[HeadTrainer, np.ndarray]]) -> dict[str, float]:
    """For each head the ridge with the least error over the validation photos of all pairs."""
    costs: dict[str, list[float]] = {head: [] for head in HEADS}
    for trainer, _ in pairs:
        trainer.forget()  # one that has served another fold chooses as one made anew
    for ridge in RIDGES:
        errors: dict[str, list[np.ndarray]] = {head: [] for head in HEADS}
        for trainer, rows in pairs:
            for head in HEADS:
                trainer.start(head, ridge)
            prediction, photos = trainer.predict(rows), trainer.data.photos.take(rows)
            found = answer_errors(decode(prediction, trainer.normalisation), photos)
            right = turns_right(prediction["views"][photos.orientation >= 0])
            for head, miss in {**found, "orientation": 1.0 - right.ravel()}.items():
                errors[head].append(miss)
        for head in HEADS:
            costs[head].append(mean_error(head, np.concatenate(errors[head])))
    return {head: RIDGES[int(np.argmin(costs[head]))] for head in HEADS}


def rehearse(data: FrozenData, fold_of, fold: int, precision, options: dict, shared: dict) -> dict:
    """Make every choice without the photos of `fold`: train without one more fold, validate on
    it; with few photos each of the others is left out in turn and the choice is made on all. What
    is trained without two folds serves both of them: `shared` keeps it until then."""
    folds = int(fold_of.max()) + 1
    left_out = [(fold + k) % folds for k in range(1, folds)]
    if (fold_of != fold).sum() > FEW_FOR_CHOICES:
        left_out = left_out[:1]
    pairs = []
    for other in left_out:
        one, two = sorted((fold, other))
        trainer = shared.pop((one, two), None)
        if trainer is None:
            train = np.flatnonzero((fold_of != fold) & (fold_of != other))
            seed = options["seed"] * 1000 + 100 + folds * one + two
            trainer = HeadTrainer(data, train, precision, options, seed)
            if len(left_out) > 1:
                shared[one, two] = trainer
        pairs.append((trainer, np.flatnonzero(fold_of == other)))
    ridges = choose_ridges(pairs)
    histories = [trainer.train(ridges, options["epochs"], rows) for trainer, rows in pairs]
    epochs = range(min(map(len, histories)))
    epoch = min(epochs, key=lambda e: sum(history[e]["score"] for history in histories))
    for trainer, _ in pairs:
        trainer.go_back(epoch)
    photos = data.photos
    asked = [
        (
            trainer.predict(rows),
            trainer.gallery() if options["gallery"] else None,
            photos.take(rows),
            trainer.normalisation,
        )
        for trainer, rows in pairs
    ]
    return {
        "ridges": ridges,
        "epoch": epoch,
        "figures": mean_figures([history[epoch] for history in histories]),
        "history": [
            {"fold": fold + 1, "left_out": other + 1, **row}
            for other, history in zip(left_out, histories, strict=True)
            for row in history
        ],
        "densities": fit_densities(asked),
        "k": choose_knn(
            [
                (trainer.neighbours(few), trainer.photos, photos.take(few))
                for trainer, rows in pairs
                for few in thinned([rows])
            ]
        ),
    }


def train_fold(
    data: FrozenData, fold_of, fold: int, precision, options: dict, shared: dict
) -> dict:
    """One fold: every choice made on the other folds, then trained on all of them; returns
    held-out answers for the photos of `fold` with baselines and what was chosen. `shared` is one
    dict for all folds, see rehearse."""
    photos, seed = data.photos, options["seed"] * 1000 + fold
    test, known = np.flatnonzero(fold_of == fold), np.flatnonzero(fold_of != fold)
    choice = rehearse(data, fold_of, fold, precision, options, shared)
    trainer = HeadTrainer(data, known, precision, options, seed)
    trainer.train(choice["ridges"], choice["epoch"])
    prediction, asked = trainer.predict(test), photos.take(test)
    gallery = trainer.gallery() if options["gallery"] else None
    knn = knn_answers(trainer.neighbours(test), trainer.photos, choice["k"], len(test))
    own = asked, trainer.normalisation
    held = hold_out(choice["densities"], prediction, gallery, *own)
    reaches = held.pop("reaches")
    return {
        **choice,
        **held,
        "judged": judge_held_out(held["answers"] | reaches, *own),
        "fused": judge_fused(choice["densities"], prediction, gallery, held["answers"], *own),
        "densities": as_plain(choice["densities"]),
        "rows": test,
        "trivial": {key: np.full(len(test), value) for key, value in trainer.trivial.items()},
        "knn_errors": answer_errors(knn, asked),  # its answers are training positions
        "prior": np.tile(trainer.normalisation.orientation_prior, (len(test), 1)),
    }


# ---------------------------------------------------------------- all


def merge(results: list[dict], part: str, count: int) -> dict[str, np.ndarray]:
    """One part of what all folds returned, its columns in the order of the photos."""
    merged = {}
    for key, first in results[0][part].items():
        dtype = np.float32 if key == "views" else np.float64
        merged[key] = np.full((count, *first.shape[1:]), np.nan, dtype)
        for result in results:
            merged[key][result["rows"]] = result[part][key]
    return merged


def final_densities(results: list[dict], fold_of, photos: Photos) -> dict:
    """The densities of the final model from what all folds held out, and how photos of one burst or
    folder are fused, for a checkpoint."""
    fuse = choose_fusing(merge(results, "fused", len(photos)), fold_of, photos)
    return as_plain({**combine_folds(results), "fuse": fuse})


def in_order(results: list[dict], count: int) -> dict:
    """Held-out answers of all folds in the order of the photos, as tensors."""
    merged: dict[str, Any] = {
        part: {key: torch.from_numpy(column) for key, column in merge(results, part, count).items()}
        for part in ("answers", "trivial", "knn_errors", "log_likelihood", "judged")
    }
    prior = np.empty((count, len(ORIENTATION_CLASSES)))
    for result in results:
        prior[result["rows"]] = result["prior"]
    return {**merged, "prior": torch.from_numpy(prior)}
