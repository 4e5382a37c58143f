"""When photos were taken, camera by camera, and how far one gets meanwhile.

In: the table; which positions may be seen. Out: instants on one clock, the photos taken before and
after each, and the density of the distance to them, learned from the table's own placed photos.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np

import density
from geophoto.photos import Photos, read_moment, seconds_since_1970
from geophoto.products import Mixture
from geophoto.voices import MOST_FITTED, Stack, log_of

if TYPE_CHECKING:
    import pandas as pd

REACHES_KM = np.geomspace(0.002, 6000, 15)  # kernel widths of the distance travelled
LEAST_PAIRS = 12  # of placed photos that a density of distances is learned from
LARGEST_SHIFT_S = 26 * 3600  # between two cameras' clocks: zones reach from −12 to +14 hours
MATCHED_S = 1800  # photos of two cameras this near in time speak about their clocks
LEAST_MATCHED = 5
LEAST_GAIN = 0.7  # nats a matched photo must gain on average, or another person held the camera
LEAST_EVIDENCE = 6.0  # nats by which a clock difference must beat none
MOST_TIMED = 0.5  # share of a camera's photos whose UTC is known, above which its clock is
VOTERS = 400  # photos of a camera that vote on its clock

# ---------------------------------------------------------------- photos


@dataclasses.dataclass
class Shots:
    """What placing knows about N photos."""

    names: list[str]
    places: np.ndarray  # (N, 3) unit vectors, NaN = unknown, as in every float array here
    local: np.ndarray  # seconds of the camera's clock
    utc: np.ndarray  # seconds
    by_place: np.ndarray  # whether UTC is known by the position alone, and hides with it
    camera: np.ndarray  # (N,) numbers
    folder: np.ndarray
    cameras: list[str]
    picture: np.ndarray  # (N, 3) where the picture says
    radius: np.ndarray  # (N, 2) km, the picture's 50 and 90 %

    def __len__(self) -> int:
        return len(self.names)

    @property
    def days(self) -> np.ndarray:
        """Days of the camera's clock, NaN without a time."""
        return np.floor(np.where(np.isfinite(self.local), self.local, self.utc) / 86400)

    def seconds(self, visible: np.ndarray) -> np.ndarray:
        """Instants (N,) in UTC, known without the positions that are not visible: a photo whose
        offset is unknown has that of the photo nearest on the same camera's clock, else on any."""
        known = np.isfinite(self.utc) & (visible | ~self.by_place)
        told = np.where(known, self.utc, np.nan)
        ahead = self.local - told
        for same in (True, False):
            for camera in np.unique(self.camera):
                mine = self.camera == camera
                asked = np.flatnonzero(mine & ~np.isfinite(told) & np.isfinite(self.local))
                from_ = np.flatnonzero(np.isfinite(ahead) & (mine | (not same)))
                if len(asked) and len(from_):
                    near = nearest(self.local[from_], self.local[asked])
                    told[asked] = self.local[asked] - ahead[from_[near]]
        return np.where(np.isfinite(told), told, self.local)


def shots_of(table: pd.DataFrame, photos: Photos) -> Shots:
    """The photos of a table; `photos` are its rows with labels that may be trusted."""
    local, utc = (
        np.array([seconds_since_1970(read_moment(text, in_utc=name == "datetime_utc"))
                  for text in table[name]], float)
        for name in ("datetime", "datetime_utc")
    )  # fmt: skip
    cameras, camera = np.unique(np.array([c.strip() for c in photos.camera], str),
                                return_inverse=True)  # fmt: skip
    nowhere = np.full((len(photos), 3), np.nan)
    return Shots(
        names=photos.names,
        places=density.unit_vectors(photos.lat, photos.lon),
        local=local,
        utc=utc,
        by_place=(table["utc_source"] == "position_timezone").to_numpy(),
        camera=camera,
        folder=np.unique(photos.folders, return_inverse=True)[1],
        cameras=cameras.tolist(),
        picture=nowhere,
        radius=nowhere[:, :2],
    )


def nearest(known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Index of the value of `known` nearest to each of `asked`."""
    order = np.argsort(known, kind="stable")
    ends = known[order]
    after = np.searchsorted(ends, asked).clip(0, len(ends) - 1)
    before = (after - 1).clip(0)
    return order[np.where(asked - ends[before] <= ends[after] - asked, before, after)]


# ---------------------------------------------------------------- how far one gets


def gate_of(gaps_s: np.ndarray) -> np.ndarray:
    logs = np.log(np.maximum(gaps_s, 1.0))
    return np.stack([logs, logs**2], axis=1)


@dataclasses.dataclass
class Travel:
    """How far apart two photos are that were taken a time apart: kernels of several widths whose
    weights depend on the logarithm of that time."""

    stack: Stack

    @classmethod
    def fit(cls, a: np.ndarray, b: np.ndarray, gaps_s: np.ndarray) -> Travel | None:
        """From pairs of places (P, 3); None where there are too few."""
        if len(gaps_s) < LEAST_PAIRS:
            return None
        thin = slice(None, None, max(1, math.ceil(len(gaps_s) / MOST_FITTED)))
        apart = density.arc_km(a[thin], b[thin])
        logs = density.kernel_log_per_km2(apart[:, None], REACHES_KM)
        return cls(Stack.fit(1.0, logs, gate_of(gaps_s[thin])))

    @property
    def longest_s(self) -> float:
        """The longest time that it was learned from."""
        return float(np.exp(self.stack.gate_high[0]))

    def around(self, places: np.ndarray, gaps_s: np.ndarray) -> Mixture:
        """Where one may be after gaps (Q,), or was before, from places (Q, 3)."""
        weights = log_of(self.stack.weights(gate_of(gaps_s)))
        return Mixture.around(places, np.broadcast_to(REACHES_KM, weights.shape), weights)

    def expected(self, gaps_s: np.ndarray) -> np.ndarray:
        """Expected log distance."""
        return self.stack.weights(gate_of(gaps_s)) @ np.log(REACHES_KM)


def pairs_along(seconds: np.ndarray, camera: np.ndarray, rows: np.ndarray) -> tuple:
    """Pairs (first, second) of rows of one camera, 1, 2, 4, 8 … photos apart in time."""
    order = rows[np.lexsort((seconds[rows], camera[rows]))]
    found = []
    for lag in itertools.takewhile(lambda lag: lag < len(order), (2**k for k in range(40))):
        first, second = order[:-lag], order[lag:]
        same = camera[first] == camera[second]
        found.append(np.stack([first[same], second[same]]))
    return tuple(np.concatenate(found, axis=1)) if found else (rows[:0], rows[:0])


# ---------------------------------------------------------------- clocks


@dataclasses.dataclass
class Track:
    """The placed photos of one camera in the order of its time."""

    rows: np.ndarray
    seconds: np.ndarray
    places: np.ndarray


@dataclasses.dataclass
class Clock:
    """What one camera's clock is beside another's, from photos that both placed."""

    shift_s: float  # to be added to a time of the first to have it on the second's clock
    gain: float  # nats a photo gains from the other camera's nearest in time
    matched: int

    @property
    def together(self) -> bool:
        """Whether they went together: else another person held the other camera."""
        return self.matched >= LEAST_MATCHED and self.gain >= LEAST_GAIN


def compare_clocks(a: Track, b: Track, travel: Travel, prior: np.ndarray) -> Clock:
    """Shift and trust of camera a's clock beside b's; `prior` is the log density (len(a),) at a's
    photos of knowing nothing but where photos were taken. Tried are shifts for which photos of both
    stood at one place, and none at all."""
    tried = np.concatenate([[0.0], candidate_shifts(a, b)])
    scores = np.array([shift_score(s, a, b, travel, prior)[0] for s in tried])
    best = int(scores.argmax())
    if scores[best] < scores[0] + LEAST_EVIDENCE + math.log(len(tried)):
        best = 0
    total, matched = shift_score(tried[best], a, b, travel, prior)
    return Clock(float(tried[best]), total / max(matched, 1), matched)


def candidate_shifts(a: Track, b: Track, count: int = 40) -> np.ndarray:
    """Shifts in seconds that most pairs of photos taken at one place speak for."""
    votes, apart = [], []
    for i in range(0, len(a.rows), max(1, math.ceil(len(a.rows) / VOTERS))):
        low, high = np.searchsorted(
            b.seconds, a.seconds[i] + np.array([-LARGEST_SHIFT_S, LARGEST_SHIFT_S])
        )
        thin = slice(low, high, max(1, (high - low) // (5 * VOTERS)))
        votes.append(b.seconds[thin] - a.seconds[i])
        apart.append(density.arc_km(b.places[thin], a.places[i]))
    every, far = np.concatenate(votes or [np.zeros(0)]), np.concatenate(apart or [np.zeros(0)])
    if not len(every):
        return every
    close = np.sort(every[far <= max(np.quantile(far, 0.02), 0.03)])
    crowd = np.searchsorted(close, close + 60) - np.searchsorted(close, close - 60)
    found: list[float] = []
    for i in np.argsort(-crowd, kind="stable"):
        if all(abs(close[i] - other) > 60 for other in found):
            near = close[np.abs(close - close[i]) <= 60]
            found.append(float(np.median(near)))
        if len(found) == count:
            break
    return np.array(found)


def shift_score(
    shift_s: float, a: Track, b: Track, travel: Travel, prior: np.ndarray
) -> tuple[float, int]:
    """Nats that a's photos gain when b's nearest in time says where they are, and how many had
    one."""
    near = nearest(b.seconds, a.seconds + shift_s)
    gaps = np.abs(b.seconds[near] - a.seconds - shift_s)
    met = gaps <= MATCHED_S
    if not met.any():
        return 0.0, 0
    told = travel.around(b.places[near[met]], gaps[met]).log_at(a.places[met])
    mixed = np.logaddexp(math.log(0.9) + told, math.log(0.1) + prior[met])
    return float((mixed - prior[met]).sum()), int(met.sum())


# ---------------------------------------------------------------- before and after


@dataclasses.dataclass
class Anchors:
    """For Q photos the placed one before (or after) that says most: row −1 = there is none."""

    row: np.ndarray
    gap_s: np.ndarray
    shift_s: np.ndarray  # added to the photo's time to have it on the other camera's clock
    other: np.ndarray  # whether another camera took it


class Timeline:
    """The placed photos that may be seen, in the order of time, each camera on its own clock."""

    def __init__(self, shots: Shots, visible: np.ndarray) -> None:
        self.shots = shots
        self.seconds = shots.seconds(visible)
        placed = visible & np.isfinite(shots.places[:, 0])
        self.placed = np.flatnonzero(placed)
        placed &= np.isfinite(self.seconds)
        self.rows = np.flatnonzero(placed)
        self.clocks: dict[tuple[int, int], Clock] = {}
        self.same: Travel | None = None
        self.across: Travel | None = None
        self.tracks = self.tracks_of(placed)

    @property
    def places(self) -> np.ndarray:
        """Of the placed photos that may be seen."""
        return self.shots.places[self.placed]

    @property
    def longest_s(self) -> float:
        """The longest time over which photos say where others are; one second without any."""
        return self.same.longest_s if self.same else 1.0

    def tracks_of(self, placed: np.ndarray) -> dict[int, Track]:
        found = {}
        for camera in np.unique(self.shots.camera[placed]).tolist():
            rows = np.flatnonzero(placed & (self.shots.camera == camera))
            rows = rows[np.argsort(self.seconds[rows], kind="stable")]
            found[camera] = Track(rows, self.seconds[rows], self.shots.places[rows])
        return found

    def learn(self, prior: np.ndarray) -> None:
        """Learn distances and clocks; `prior` are log densities (N,) at the photos' places."""
        places, camera = self.shots.places, self.shots.camera
        first, second = pairs_along(self.seconds, camera, self.rows)
        gaps = np.abs(self.seconds[first] - self.seconds[second])
        self.same = Travel.fit(places[first], places[second], gaps)
        if self.same is None:
            return
        for one, other in itertools.permutations(self.tracks, 2):
            a, b = self.tracks[one], self.tracks[other]
            self.clocks[one, other] = compare_clocks(a, b, self.same, prior[a.rows])
        self.compare_with_the_timed(prior, self.same)
        apart = []
        for (one, other), clock in self.clocks.items():
            if self.together(one, other):
                a, b = self.tracks[one], self.tracks[other]
                near = nearest(b.seconds, a.seconds + clock.shift_s)
                gap = np.abs(b.seconds[near] - a.seconds - clock.shift_s)
                apart.append((a.places, b.places[near], gap))
        if apart:
            self.across = Travel.fit(*(np.concatenate(part) for part in zip(*apart, strict=True)))

    def compare_with_the_timed(self, prior: np.ndarray, travel: Travel) -> None:
        """Cameras that know their UTC share one time: beside one of them alone a camera may have
        too few photos at the same places, beside all of them enough to tell its clock."""
        own = ~self.shots.by_place & np.isfinite(self.shots.utc)
        timed = {
            camera for camera, track in self.tracks.items() if own[track.rows].mean() > MOST_TIMED
        }
        for one in self.tracks.keys() - timed:
            a, b = self.tracks[one], self.joined_track(timed)
            if len(timed) < 2 or any(self.together(one, other) for other in timed):
                continue
            clock = compare_clocks(a, b, travel, prior[a.rows])
            back = compare_clocks(b, a, travel, prior[b.rows])
            if clock.together and back.together:
                for other in timed:
                    self.clocks[one, other] = clock
                    self.clocks[other, one] = dataclasses.replace(back, shift_s=-clock.shift_s)

    def joined_track(self, cameras: set[int]) -> Track:
        rows = np.concatenate([self.tracks[camera].rows for camera in sorted(cameras)])
        rows = rows[np.argsort(self.seconds[rows], kind="stable")]
        return Track(rows, self.seconds[rows], self.shots.places[rows])

    def together(self, one: int, other: int) -> bool:
        """Whether two cameras went together, seen from both."""
        pairs = (one, other), (other, one)
        return all(pair in self.clocks and self.clocks[pair].together for pair in pairs)

    def parties(self) -> np.ndarray:
        """Number of the party of each camera: those that went together, all others alone."""
        party = np.arange(len(self.shots.cameras))
        for one, other in self.clocks:
            if self.together(one, other):
                party[party == party[one]] = party[other]
        return party

    def see(self, visible: np.ndarray) -> Timeline:
        """The same knowledge of distances and clocks over other visible photos."""
        other = Timeline(self.shots, visible)
        other.clocks, other.same, other.across = self.clocks, self.same, self.across
        return other

    def anchors(self, asked: np.ndarray, after: bool) -> Anchors:
        """The photo before or after each of the rows `asked` that tells its place best."""
        count = len(asked)
        best = np.full(count, np.inf)
        found = Anchors(np.full(count, -1), np.full(count, np.inf), np.zeros(count),
                        np.zeros(count, bool))  # fmt: skip
        camera = self.shots.camera[asked]
        for one, other in itertools.product(np.unique(camera).tolist(), self.tracks):
            clock = self.clocks.get((one, other), Clock(0, 0, 0))
            travel = self.same if one == other else self.across
            if travel is None or (one != other and not self.together(one, other)):
                continue
            track, mine = self.tracks[other], np.flatnonzero(camera == one)
            moment = self.seconds[asked[mine]] + clock.shift_s
            at = np.searchsorted(track.seconds, moment, side="right") - (not after)
            there = (at >= 0) & (at < len(track.rows)) & np.isfinite(moment)
            near = at.clip(0, len(track.rows) - 1)
            gaps = np.abs(track.seconds[near] - moment)
            there &= gaps <= travel.longest_s
            cost = np.where(there, travel.expected(np.where(there, gaps, 1.0)), np.inf)
            better = cost < best[mine]
            rows = mine[better]
            best[rows], found.row[rows] = cost[better], track.rows[near[better]]
            found.gap_s[rows], found.shift_s[rows] = gaps[better], clock.shift_s
            found.other[rows] = one != other
        return found

    def around(self, anchors: Anchors) -> Mixture:
        """Densities from one side's anchors; silent where there is none."""
        there = anchors.row >= 0
        places = np.where(there[:, None], self.shots.places[anchors.row], np.nan)
        gaps = np.where(there, anchors.gap_s, 1.0)
        if self.same is None:
            widths = np.full((len(gaps), len(REACHES_KM)), np.nan)
            return Mixture.around(places, widths, widths)
        mine, across = self.same.around(places, gaps), self.across
        if across is None or not anchors.other.any():
            return mine
        logs = np.where(anchors.other[:, None], across.around(places, gaps).logs, mine.logs)
        return dataclasses.replace(mine, logs=logs)
