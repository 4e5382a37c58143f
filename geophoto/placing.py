"""Where photos without a position were taken, from all that is known of them.

In: Shots, of which some may be seen. Out: densities on the sphere, stacked of what the time, the
picture, the day and the folder say, on placed photos whose positions were hidden; points, radii,
confidence, and in words what carried each.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

import density
from geophoto.baselines import SURE
from geophoto.densities import LEVELS, wanted_levels
from geophoto.mixtures import CANDIDATES, Ranges, draw_ranges
from geophoto.products import ANYWHERE_KM, NEVER, Mixture, joined, product
from geophoto.resampling import resampled_weights
from geophoto.timelines import Anchors, Shots, Timeline
from geophoto.voices import Stack, log_of, softmax

LEAST_PLACED = 10  # photos with a position, below which nothing can be learned
STRETCH_GAP_S = 6 * 3600  # a pause that ends a stretch of photos
SOON_S = 3600  # photos with a placed one this near in time have levels of their own,
LEAST_JUDGED = 20  # if so many were hidden
FOLDS = 3  # of stretches, for levels and confidence
RESAMPLES, ONE_ERROR = 200, 0.84  # of those stretches; a standard error above the middle
MOST_HIDDEN = 500  # photos that one hiding judges
MOST_SURE_KM = 5.0  # 90 % radius beyond which no answer is confident
BLOCK = 1000  # photos placed at once
PICTURE_WIDTHS = (0.15, 0.5, 1.0, 2.5)  # of kernels on the picture's place, in its 50 % radii
NEAR_KM = (0.1, 1.0, 10.0)  # of kernels on places of the same day or folder
SHARES = (0.05, 0.3, 1.0)  # of kernels on all places, in their spread
FEW_PLACES, MANY_PLACES = 12, 64  # of a day or folder, and of all
KEPT = 48  # kernels of a product
VOICES = ("before or after", "other side", "both sides", "time and picture", "all",
          *(f"picture {w}" for w in PICTURE_WIDTHS), *(f"day {w}" for w in NEAR_KM),
          *(f"folder {w}" for w in NEAR_KM), *(f"anywhere {w}" for w in SHARES),
          "floor")  # fmt: skip
PRIOR = np.array([name.startswith("anywhere") for name in VOICES])

# ---------------------------------------------------------------- voices


@dataclasses.dataclass
class Told:
    """What each voice says of Q photos, and by which photos."""

    voices: list[Mixture]  # in the order of VOICES
    gate: np.ndarray  # (Q, 2) log seconds to the nearest placed photo, log km of the picture
    near: Anchors
    far: Anchors
    near_after: np.ndarray  # (Q,) whether the nearer was taken after the photo

    def kernel_logs(self, truth: np.ndarray) -> np.ndarray:
        """Log density of each voice at the true places, (Q, V); a silent one says the prior."""
        logs = np.stack([voice.log_at(truth) for voice in self.voices], axis=1)
        prior = np.logaddexp.reduce(logs[:, PRIOR], axis=1) - math.log(PRIOR.sum())
        return np.where(self.silent, prior[:, None], logs)

    @property
    def silent(self) -> np.ndarray:
        return np.stack([voice.silent for voice in self.voices], axis=1)

    @property
    def supported(self) -> np.ndarray:
        """Which photos more is known of than a day and a folder: those are never confident."""
        return (self.near.row >= 0) | ~self.voices[VOICES.index("picture 1.0")].silent

    def spoken(self, weights: np.ndarray) -> np.ndarray:
        """Weights (Q, V) of those that speak; a silent one's is the prior's."""
        spoken = np.where(self.silent, 0, weights)
        spoken[:, PRIOR] += ((weights - spoken).sum(axis=1) / PRIOR.sum())[:, None]
        return spoken

    def blend(self, weights: np.ndarray) -> Mixture:
        """The density of all voices with weights (Q, V)."""
        logs = np.where(weights > 0, log_of(weights), NEVER)
        return joined(self.voices, logs)


def spread_km(places: np.ndarray) -> float:
    """Median distance of places (N, 3) to their middle, at least 100 m."""
    middle = places.mean(axis=0)
    middle /= max(np.linalg.norm(middle), 1e-12)
    return max(float(np.median(density.arc_km(places, middle))), 0.1)


def thinned(rows: np.ndarray, count: int) -> np.ndarray:
    return rows[:: max(1, math.ceil(len(rows) / count))]


def around_groups(timeline: Timeline, asked: np.ndarray, group: np.ndarray) -> list[Mixture]:
    """Kernels of NEAR_KM on at most FEW_PLACES placed photos of the group (N,) of each photo asked,
    evenly thinned in time; silent without any."""
    shots, rows, seconds = timeline.shots, timeline.placed, timeline.seconds
    chosen = np.full((len(asked), FEW_PLACES), -1)
    ordered = rows[np.argsort(seconds[rows], kind="stable")]
    members = {one: thinned(ordered[group[ordered] == one], FEW_PLACES)
               for one in np.unique(group[asked][np.isfinite(group[asked])])}  # fmt: skip
    for i, one in enumerate(group[asked]):
        mine = members.get(one, rows[:0])
        chosen[i, : len(mine)] = mine
    there = chosen >= 0
    centres = np.where(there[..., None], shots.places[chosen], (0.0, 0.0, 1.0))
    logs = np.where(there, -np.log(np.maximum(there.sum(axis=1, keepdims=True), 1)), NEVER)
    return [Mixture(centres, logs, np.full(logs.shape, km)) for km in NEAR_KM]


def around_picture(shots: Shots, asked: np.ndarray) -> list[Mixture]:
    """One kernel for each of PICTURE_WIDTHS on what the pictures say."""
    half = shots.radius[asked, :1]
    return [Mixture.around(shots.picture[asked], half * width, np.zeros_like(half))
            for width in PICTURE_WIDTHS]  # fmt: skip


def listen(timeline: Timeline, asked: np.ndarray, picture_logs: np.ndarray) -> Told:
    """What every voice says about the rows `asked`, none of which is visible."""
    shots, places = timeline.shots, timeline.places
    sides = [timeline.anchors(asked, after) for after in (False, True)]
    after = sides[1].gap_s < sides[0].gap_s
    near, far = (swap(sides, after == flip) for flip in (True, False))
    towards, beyond = timeline.around(near), timeline.around(far)
    both = product(towards, beyond, KEPT)
    alone = around_picture(shots, asked)
    picture = joined(alone, np.broadcast_to(picture_logs, (len(asked), len(alone))))
    picture = dataclasses.replace(picture, logs=np.where(
        alone[0].silent[:, None], NEVER, picture.logs))  # fmt: skip
    count, rows = len(asked), thinned(timeline.placed, MANY_PLACES)
    centres = np.broadcast_to(shots.places[rows], (count, len(rows), 3))
    even = np.full((count, len(rows)), -math.log(len(rows)))
    spread = spread_km(places)
    anywhere = [Mixture(centres, even, np.full(even.shape, share * spread)) for share in SHARES]
    one = np.zeros((count, 1))
    floor = Mixture(np.broadcast_to([0.0, 0.0, 1.0], (count, 1, 3)), one, one + ANYWHERE_KM)
    party = timeline.parties()[shots.camera]
    days = shots.days * len(shots.cameras) + party  # other people's days tell nothing
    voices = [
        towards, beyond, both, product(towards, picture, KEPT), product(both, picture, KEPT),
        *alone,
        *around_groups(timeline, asked, days),
        *around_groups(timeline, asked, shots.folder.astype(float)),
        *anywhere, floor,
    ]  # fmt: skip
    gap = np.minimum(near.gap_s, timeline.longest_s)
    half = np.fmin(shots.radius[asked, 0], spread)
    gate = np.stack([np.log(np.maximum(gap, 1)), np.log(np.maximum(half, 1e-3))], axis=1)
    return Told(voices, gate, near, far, after)


def swap(sides: list[Anchors], after: np.ndarray) -> Anchors:
    """The anchors of the side after where `after`, else of that before."""
    before, later = (vars(side) for side in sides)
    return Anchors(**{name: np.where(after, later[name], before[name]) for name in before})


# ---------------------------------------------------------------- hiding


def stretches(shots: Shots, rows: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """Number of the stretch of each of the rows: photos without a pause between them, at least ten
    stretches in all; photos without a time are one each."""
    order = np.argsort(seconds[rows], kind="stable")
    timed = order[np.isfinite(seconds[rows][order])]
    number = np.zeros(len(rows), int)
    breaks = np.diff(seconds[rows][timed]) > STRETCH_GAP_S
    number[timed] = np.concatenate([[0], np.cumsum(breaks)]) if len(timed) else []
    if breaks.sum() + 1 < LEAST_PLACED:
        number[timed] = np.arange(len(timed)) * LEAST_PLACED // max(len(timed), 1)
    untimed = order[len(timed) :]
    number[untimed] = number.max(initial=0) + 1 + np.arange(len(untimed))
    return number


def hidings(
    shots: Shots,
    rows: np.ndarray,
    seconds: np.ndarray,
    seed: int = 0,
    rounds: int = 2,
    share: float = 0.25,
    most: int = MOST_HIDDEN,
) -> Iterator[tuple[str, np.ndarray]]:
    """Ways in which positions are missing: single photos, whole stretches, one camera of those in a
    stretch. Yields the way and the rows hidden together, at most MOST_HIDDEN."""
    rng = np.random.default_rng(seed)
    number = stretches(shots, rows, seconds)
    for _ in range(rounds):
        single = rng.permutation(rows)[: max(1, int(share * len(rows)))]
        yield "single photos", single[:most]
        few = rng.permutation(number.max() + 1)
        for part in np.array_split(few, min(round(1 / share), len(few))):
            yield "whole stretches", rows[np.isin(number, part)][:most]
    for camera in np.unique(shots.camera[rows]):
        mine = shots.camera[rows] == camera
        shared = np.intersect1d(number[mine], number[~mine])
        half = rng.permutation(shared)[: math.ceil(len(shared) / 2)]
        chosen = rows[mine & np.isin(number, half)][:most]
        if len(chosen):
            yield "one camera of several", chosen


# ---------------------------------------------------------------- what is learned


@dataclasses.dataclass
class Placer:
    """Everything learned from the photos that may be seen, ready to place others."""

    timeline: Timeline
    stack: Stack
    picture_logs: np.ndarray  # (PICTURE_WIDTHS,) log weights of the picture's kernels
    levels: np.ndarray  # (2, 2) shares of the densities that held 50 and 90 % of those hidden:
    # with a placed photo within SOON_S, and without

    @property
    def sure_within_km(self) -> float:
        """The 90 % radius up to which an answer is confident: a tenth of what one errs by saying
        the middle of all places (geometric mean), and at most MOST_SURE_KM."""
        lat, lon = density.lat_lon(self.timeline.places)
        middle = density.unit_vectors(*density.geographic_median(lat, lon))
        apart = density.arc_km(middle, self.timeline.places)
        error = math.exp(np.log(np.maximum(apart, density.LEAST_RADIUS_KM)).mean())
        return min(SURE["gps"] * error, MOST_SURE_KM)

    def see(self, visible: np.ndarray) -> Placer:
        return dataclasses.replace(self, timeline=self.timeline.see(visible))

    def ranges(self, asked: np.ndarray) -> tuple[Told, np.ndarray, Ranges, np.ndarray]:
        """What was told of the rows, their points (Q, 3), how far from them shares lie, and how
        much of the density at the point each voice carries (Q, V)."""
        told = listen(self.timeline, asked, self.picture_logs)
        weights = told.spoken(self.stack.weights(told.gate))
        mixture = told.blend(weights)
        draws, best = mixture.draws(), mixture.strongest(CANDIDATES)
        middle = self.timeline.places.mean(axis=0)
        middle = middle / max(np.linalg.norm(middle), 1e-12)
        middle = np.broadcast_to(middle, (len(asked), 1, 3))
        points, ranges = draw_ranges(np.concatenate([best.centres, middle], axis=1), draws)
        logs = np.stack([voice.log_at(points) for voice in told.voices], axis=1)
        carried = softmax(np.where(weights > 0, log_of(weights) + logs, NEVER))
        return told, points, ranges, carried

    def answer(self, asked: np.ndarray) -> Answers:
        parts, within = [], self.sure_within_km
        for rows in np.array_split(asked, max(1, math.ceil(len(asked) / BLOCK))):
            told, points, ranges, carried = self.ranges(rows)
            soon = told.near.gap_s <= SOON_S
            reach = [np.where(soon, *map(ranges.distances, level)) for level in self.levels.T]
            half = np.maximum(reach[0], density.LEAST_RADIUS_KM)
            most = np.maximum(reach[1], half)
            sure = (most <= within) & told.supported
            parts.append(Answers(points, half, most, sure, carried, told.near, told.far,
                                 told.near_after))  # fmt: skip
        return Answers.of(parts)


@dataclasses.dataclass
class Answers:
    """Of Q photos: points (Q, 3), radii in km, whether confident, the share (Q, V) of each voice in
    the density at the point, and the placed photos before and after."""

    points: np.ndarray
    half_km: np.ndarray
    most_km: np.ndarray
    confident: np.ndarray
    carried: np.ndarray
    near: Anchors
    far: Anchors
    near_after: np.ndarray

    @classmethod
    def of(cls, parts: list[Answers]) -> Answers:
        def whole(name: str):
            values = [getattr(part, name) for part in parts]
            if isinstance(values[0], Anchors):
                return Anchors(*(np.concatenate(v) for v in zip(*(vars(a).values() for a in values),
                                                                strict=True)))  # fmt: skip
            return np.concatenate(values)

        return cls(*(whole(field.name) for field in dataclasses.fields(cls)))


# ---------------------------------------------------------------- learning


def learn_voices(shots: Shots, visible: np.ndarray) -> Placer:
    """Distances, clocks and the stack of voices, by hiding positions of the visible photos."""
    timeline = Timeline(shots, visible)
    rows = timeline.placed
    spread = spread_km(timeline.places)
    prior = np.full(len(shots), np.nan)
    base = shots.places[thinned(rows, 300)]
    for part in np.array_split(rows, math.ceil(len(rows) / BLOCK)):
        apart = density.arc_km(shots.places[part][:, None], base[None])
        logs = density.kernel_log_per_km2(apart, np.maximum(0.3 * spread, 0.1))
        near = np.logaddexp.reduce(logs, axis=1) - math.log(len(base))
        floor = -math.log(4 * math.pi * density.EARTH_RADIUS_KM**2)
        prior[part] = np.logaddexp(math.log(0.9) + near, math.log(0.1) + floor)
    timeline.learn(prior)
    picture_logs = weigh_picture(shots, rows)
    found, gates = [], []
    for _, hidden in hidings(shots, rows, timeline.seconds):
        seen = visible.copy()
        seen[hidden] = False
        if seen[rows].any():
            told = listen(timeline.see(seen), hidden, picture_logs)
            found.append(told.kernel_logs(shots.places[hidden]))
            gates.append(told.gate)
    stack = Stack.fit(1.0, np.concatenate(found), np.concatenate(gates))
    return Placer(timeline, stack, picture_logs, np.array([LEVELS, LEVELS]))


def weigh_picture(shots: Shots, rows: np.ndarray) -> np.ndarray:
    """Log weights of the picture's kernels at the placed rows."""
    asked = rows[np.isfinite(shots.radius[rows, 0])]
    if not len(asked):
        return np.full(len(PICTURE_WIDTHS), -math.log(len(PICTURE_WIDTHS)))
    logs = np.stack([voice.log_at(shots.places[asked]) for voice in around_picture(shots, asked)],
                    axis=1)  # fmt: skip
    stack = Stack.fit(1.0, logs, np.zeros((len(asked), 2)))
    return np.log(softmax(stack.offset))


def learn_to_place(shots: Shots, visible: np.ndarray) -> Placer:
    """The whole: levels come from stretches that the voices were not learned from,
    hidden whole and singly."""
    placer = learn_voices(shots, visible)
    rows = placer.timeline.placed
    number = stretches(shots, rows, placer.timeline.seconds)
    deal = np.random.default_rng(1).permutation(number.max() + 1) % FOLDS
    judged: list[tuple] = []
    for fold in range(FOLDS):
        held = rows[deal[number] == fold]
        learned = visible.copy()
        learned[held] = False
        if not len(held) or learned[rows].sum() < LEAST_PLACED:
            continue
        judge = learn_voices(shots, learned)
        some = np.random.default_rng(fold).permutation(held)
        ways = [held[:MOST_HIDDEN], *(s[:MOST_HIDDEN] for s in np.array_split(some, 4) if len(s))]
        for hidden in ways:
            seen = visible.copy()
            seen[hidden] = False
            told, points, ranges, _ = judge.see(seen).ranges(hidden)
            share = ranges.shares_within(density.arc_km(points, shots.places[hidden]))
            soon, single = told.near.gap_s <= SOON_S, hidden is not ways[0]
            stretch = number[np.searchsorted(rows, hidden)]
            judged.append((share, stretch, soon, soon == single))
    return settle(placer, *map(np.concatenate, zip(*judged, strict=True))) if judged else placer


def settle(
    placer: Placer, share: np.ndarray, stretch: np.ndarray, soon: np.ndarray, counts: np.ndarray
) -> Placer:
    """Set levels by photos (H,) whose positions were hidden: the share of the density nearer than
    the truth, their stretch, whether a placed photo is near in time, whether they count. Those with
    and without one apart (Mondrian), where there are enough; photos hidden singly speak for the
    first, those of whole stretches for the second."""
    levels = []
    for kind in (True, False):
        chosen = counts & (soon == kind)
        mine = chosen if chosen.sum() >= LEAST_JUDGED else np.ones_like(chosen)
        levels.append(careful_levels(share[mine], stretch[mine]))
    return dataclasses.replace(placer, levels=np.array(levels))


def careful_levels(share: np.ndarray, stretch: np.ndarray) -> np.ndarray:
    """Shares of the densities that held LEVELS of the hidden photos, and one standard error more,
    by a bootstrap of stretches: those are few however many photos they hold."""
    wanted = wanted_levels(len(share))
    found = [np.quantile(share, wanted, weights=times, method="inverted_cdf")
             for times in resampled_weights(stretch, RESAMPLES, 0)]  # fmt: skip
    return np.quantile(found, ONE_ERROR, axis=0)
