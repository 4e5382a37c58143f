"""What makes the demo like a real collection: a companion's camera, and claims to be checked.

A second camera went along, without GPS and with a clock 37 minutes fast. Its owner strayed minutes
and a stone's throw from the walkers; where both stood together, a few of its photos were placed by
hand, in sidecars. A dozen photos of others lie apart, in claims/: of half of them EXIF says what is
not so, one of each kind of FALSE. In: the plan's shots. Out: the same, some of them exchanged.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np

SECOND = ("Vesper", "Pocket 3", "Vesper 5.2mm f/2.2", (28,), 5.4, (2.2,), "VPK{:05d}.JPG")
CLOCK_MINUTES = 37  # that the second camera's clock is ahead
STRAYED_M, STRAYED_S = (60, 250), (180, 1200)  # from the walkers' photo
SHARE, BY_HAND = 0.16, 0.17  # of all photos: the second camera's; of these: placed by hand
FALSE = (
    "position moved by 3× the spread", "position moved by 1× the spread", "clock off by 12 hours",
    "clock off by 6 hours", "position of another photo", "turned by a quarter",
)  # fmt: skip
TRUE = "true"  # the claim of as many others
FEW = 100  # photos of a set below which no claims are made


def with_second_camera(shots: list, camera: int, seed: int, stray) -> list:
    """The second photo of some visits is the companion's; `stray` gives the view from elsewhere."""
    rng = np.random.default_rng([seed, 21])
    visit = [(shot.place, shot.when.date()) for shot in shots]
    able = [
        i for i in range(1, len(shots))
        if shots[i].exif == "full" and visit[i] == visit[i - 1] and visit[i] != visit[max(i - 2, 0)]
    ]  # fmt: skip
    count = min(round(SHARE * len(shots)), len(able))
    chosen = np.sort(rng.choice(len(able), count, replace=False)) if count else []
    by_hand = set(rng.permutation(count)[: round(BY_HAND * count)].tolist())
    found = list(shots)
    for number, k in enumerate(chosen):
        shot = shots[able[k]]
        kind = "placed by hand" if number in by_hand else "second"
        if kind == "second":
            later = float(rng.uniform(*STRAYED_S)) * rng.choice([-1, 1])
            shot = stray(shot, STRAYED_M, rng)
            shot = replace(shot, when=shot.when + timedelta(seconds=round(later, 2)))
        found[able[k]] = replace(
            shot, filename=f"{shot.when:%Y-%m-%d}/{SECOND[6].format(212 + number)}",
            camera=camera, focal_35mm=SECOND[3][0], f_number=SECOND[5][0], exif=kind,
            said={"when": shot.when + timedelta(minutes=CLOCK_MINUTES)},
        )  # fmt: skip
    return found


def with_claims(shots: list, seed: int) -> list:
    """Some photos, all taken by day and upright, become claims, half of them false."""
    if len(shots) < FEW:
        return shots
    rng = np.random.default_rng([seed, 22])
    able = [
        i for i, shot in enumerate(shots)
        if shot.exif == "full" and shot.tag == 1 and 10 <= shot.when.hour < 16
    ]  # fmt: skip
    around = np.array([(shot.view["x"], shot.view["y"]) for shot in shots])
    spread = float(np.median(np.linalg.norm(around - np.median(around, axis=0), axis=1)))
    kinds = (*FALSE, *[TRUE] * len(FALSE))
    chosen = rng.choice(able, len(kinds), replace=False).tolist()
    found = list(shots)
    for kind, i in zip(kinds, chosen, strict=True):
        view, said = shots[i].view, {}
        if kind == "turned by a quarter":
            said["tag"] = 6
        elif kind.startswith("clock"):
            said["when"] = shots[i].when - timedelta(hours=12 if "12" in kind else 6)
        elif kind.startswith("position moved"):
            angle, step = rng.uniform(0, 2 * np.pi), spread * (3 if "3" in kind else 1)
            x, y = around[i] + step * np.array([np.sin(angle), np.cos(angle)])
            said["view"] = {**view, "x": float(x), "y": float(y)}
        elif kind == "position of another photo":
            x, y = around[int(rng.choice(able))]
            said["view"] = {**view, "x": float(x), "y": float(y)}
        found[i] = replace(shots[i], said=said, claim=kind)
    return found


def sidecar(lat: float, lon: float) -> str:
    """XMP of a position that somebody set by hand."""

    def angle(degrees: float, letters: str) -> str:
        whole = int(abs(degrees))
        return f"{whole},{(abs(degrees) - whole) * 60:.6f}{letters[int(degrees < 0)]}"

    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">\n'
        ' <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">\n'
        '  <rdf:Description rdf:about="" xmlns:exif="http://ns.adobe.com/exif/1.0/"\n'
        f'   exif:GPSLatitude="{angle(lat, "NS")}" exif:GPSLongitude="{angle(lon, "EW")}"/>\n'
        " </rdf:RDF>\n</x:xmpmeta>\n"
    )
