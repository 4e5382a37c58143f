"""Make geophoto/coastline.geojson, the land behind the maps of the report and of density.html.

Origin: Natural Earth 1:110m land (naturalearthdata.com), which is in the public domain. It is read
from land-110m.json of the npm package world-atlas 2.0.2 (TopoJSON of that data set, ISC licence),
sha256 ead5f68119c49a92…, which is named on the command line:

    npm pack world-atlas@2.0.2 && tar xzf world-atlas-2.0.2.tgz
    python data/coastline/prepare.py package/land-110m.json

Writes a GeoJSON MultiPolygon with two decimals of a degree (about a kilometre; the lines themselves
are off by tens of kilometres in places) without the islands that are too small for such maps.
"""

import itertools
import json
import math
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "geophoto" / "coastline.geojson"
DECIMALS = 2  # of a degree


def arcs_of(topology: dict) -> list[list[tuple[float, float]]]:
    """The arcs of a TopoJSON in degrees: integers add up along an arc, then scale and shift."""
    (scale_x, scale_y), (shift_x, shift_y) = (
        topology["transform"][k] for k in ("scale", "translate")
    )
    arcs = []
    for steps in topology["arcs"]:
        places = itertools.accumulate(steps, lambda a, b: (a[0] + b[0], a[1] + b[1]))
        arcs.append([(x * scale_x + shift_x, y * scale_y + shift_y) for x, y in places])
    return arcs


def ring_of(numbers: list[int], arcs: list) -> list[list[float]]:
    """One closed ring; a negative number is an arc that is run through backwards (~n).

    Longitudes go on beyond ±180° where a ring crosses the date line; what goes around the pole
    (Antarctica) is closed along it.
    """
    ring: list[list[float]] = []
    for number in numbers:
        for x, y in arcs[number] if number >= 0 else reversed(arcs[~number]):
            if ring:
                x = ring[-1][0] + (x - ring[-1][0] + 180) % 360 - 180
            point = [round(x, DECIMALS), round(y, DECIMALS)]
            if not ring or ring[-1] != point:
                ring.append(point)
    if abs(ring[-1][0] - ring[0][0]) > 180:
        ring += [[ring[-1][0], -90.0], [ring[0][0], -90.0], ring[0]]
    middle = (min(x for x, _ in ring) + max(x for x, _ in ring)) / 2
    turns = 360 * math.floor((middle + 180) / 360)
    return [[round(x - turns, DECIMALS), y] for x, y in ring]


def main(source: str) -> None:
    topology = json.loads(Path(source).read_text(encoding="utf-8"))
    arcs = arcs_of(topology)
    polygons = []
    for shape in topology["objects"]["land"]["geometries"]:
        nested = shape["arcs"] if shape["type"] == "MultiPolygon" else [shape["arcs"]]
        for rings in nested:
            made = [ring_of(numbers, arcs) for numbers in rings]
            polygons.append([ring for ring in made if len(ring) >= 4])
    content = {
        "type": "MultiPolygon",
        "origin": "Natural Earth 1:110m land, public domain; made by data/coastline/prepare.py",
        "coordinates": [rings for rings in polygons if rings],
    }
    TARGET.write_text(json.dumps(content, separators=(",", ":")), encoding="utf-8")
    points = sum(len(ring) for rings in polygons for ring in rings)
    print(f"{len(polygons)} polygons, {points} points, {TARGET.stat().st_size} bytes: {TARGET}")


if __name__ == "__main__":
    main(*sys.argv[1:])
