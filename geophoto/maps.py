"""Views of places: extent, coast, scale; the density of a table's photos as picture and as page.

In: latitudes and longitudes in degrees. Out: boxes, kernel widths, matplotlib's axes, PNG and HTML.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

import density
from density import distance_label
from geophoto.pictures import photo_file
from geophoto.thumbnails import MOST, thumbnails

COAST = Path(__file__).with_name("coastline.geojson")  # Natural Earth 1:110m, see its "origin"
COAST_FROM_KM = 300  # extents below are smaller than that coastline is wrong
# Streets of OpenStreetMap, drawn by CARTO. OpenStreetMap's own servers refuse pages that are opened
# from a disk, as those send no Referer.
TILES = {
    "url": "https://basemaps.cartocdn.com/rastertiles/voyager/{z}/{x}/{y}.png",
    "credit": "© OpenStreetMap contributors, © CARTO.",
}
LONELY = 5.0  # times farther out than nine tenths of the photos: not part of the first view
ASKED = 2000  # photos that say how close together all lie
PHONE_KM = 0.01  # no phone knows its position better; the least kernel
KM_PER_DEGREE = math.pi * density.EARTH_RADIUS_KM / 180
Box = tuple[float, float, float, float]  # south, west, north, east in degrees; east may exceed 180

# ---------------------------------------------------------------- views


def unwrapped(lon: np.ndarray, middle: float) -> np.ndarray:
    """Longitudes within half a turn of a middle, so that no photo set is cut at ±180°."""
    return middle + (np.asarray(lon, float) - middle + 180) % 360 - 180


def in_view(lat: np.ndarray, lon: np.ndarray) -> np.ndarray:
    """Which photos the first view of a map is made for, (N,) bool: all, but for those few (at most
    a tenth) that lie so far from the rest that the map would be mostly empty."""
    away = density.distance_km(*density.geographic_median(lat, lon), lat, lon)
    return away <= max(LONELY * float(np.quantile(away, 0.9)), 0.05)


def box_around(lat: np.ndarray, lon: np.ndarray, pad: float = 0.06, pad_km: float = 0.1) -> Box:
    """The box of places (longitudes unwrapped) with a margin of `pad` of its sides or pad_km, what
    is more; never beyond the poles."""
    middle_lat, middle_lon = (lat.min() + lat.max()) / 2, (lon.min() + lon.max()) / 2
    shrink = max(math.cos(math.radians(float(middle_lat))), 0.02)
    least = pad_km / KM_PER_DEGREE
    high = float(np.ptp(lat)) / 2 + max(float(np.ptp(lat)) * pad, least)
    wide = float(np.ptp(lon)) / 2 + max(float(np.ptp(lon)) * pad, least / shrink)
    south, north = max(middle_lat - high, -90.0), min(middle_lat + high, 90.0)
    return float(south), float(middle_lon - wide), float(north), float(middle_lon + wide)


def squared(box: Box) -> Box:
    """The box made as high as it is wide, in kilometres."""
    south, west, north, east = box
    half = extent_km(box) / 2 / KM_PER_DEGREE
    lat, lon = (south + north) / 2, (west + east) / 2
    wide = half / max(math.cos(math.radians(lat)), 0.02)
    return max(lat - half, -90.0), lon - wide, min(lat + half, 90.0), lon + wide


def extent_km(box: Box) -> float:
    """Length of the longer side of a box."""
    south, west, north, east = box
    shrink = math.cos(math.radians((south + north) / 2))
    return max(north - south, (east - west) * shrink) * KM_PER_DEGREE


@functools.cache
def coastline() -> list:
    """Rings of the world's land, [polygon][ring][[lon, lat], …] in degrees."""
    return json.loads(COAST.read_text(encoding="utf-8"))["coordinates"]


def map_options(lat: np.ndarray, lon: np.ndarray) -> dict:
    """What map.js needs to draw these places: first view, tiles, and the coast of large extents."""
    middle = density.geographic_median(lat, lon)[1]
    turned = unwrapped(lon, middle)
    seen = in_view(lat, lon)
    whole = box_around(lat, turned)
    options = {"home": box_around(lat[seen], turned[seen]), "tiles": TILES}
    return options | ({"coast": coastline()} if extent_km(whole) > COAST_FROM_KM else {})


# ---------------------------------------------------------------- matplotlib


def scale_km(across_km: float) -> float:
    """A round length of about a quarter of a map."""
    power = 10 ** math.floor(math.log10(across_km / 4))
    return max(m * power for m in (1, 2, 5) if m * power <= across_km / 4)


def dress_axis(axis, box: Box) -> None:
    """Make an axis the map of a box: its limits, land or grid, a scale bar where it can be true."""
    from matplotlib.collections import PolyCollection

    south, west, north, east = box
    across = extent_km(box)
    stretch = max(math.cos(math.radians((south + north) / 2)), 0.05)
    axis.set_facecolor("#f3f7fa")
    if across > COAST_FROM_KM:
        rings = [
            np.asarray(rings[0], float) + np.array([turn, 0])
            for rings in coastline() for turn in (-360, 0, 360)
        ]  # fmt: skip
        axis.add_collection(
            PolyCollection(rings, facecolor="#e9e4d8", edgecolor="#c9c4b8", lw=0.5, zorder=0)
        )
    axis.set(xlim=(west, east), ylim=(south, north), xlabel="longitude (°)", ylabel="latitude (°)")
    axis.set_aspect(1 / stretch)
    axis.ticklabel_format(useOffset=False)
    axis.locator_params(nbins=4)
    if across < 5000:
        bar = scale_km(across)
        length = bar / KM_PER_DEGREE / stretch
        x, y = east - length - 0.04 * (east - west), south + 0.05 * (north - south)
        axis.plot([x, x + length], [y, y], color="#222", lw=2, solid_capstyle="butt", zorder=6)
        axis.annotate(distance_label(bar), (x + length / 2, y), (0, 3), textcoords="offset points",
                      ha="center", fontsize=8, zorder=6)  # fmt: skip


# ---------------------------------------------------------------- density


def kernel_km(lat: np.ndarray, lon: np.ndarray) -> float:
    """Kernel width for clusters: half the median distance to the √N-th nearest photo, so that one
    far photo changes nothing; at least PHONE_KM."""
    from scipy.spatial import cKDTree  # 100,000 photos: no matrix of all pairs

    vectors = density.unit_vectors(lat, lon)
    k = min(math.ceil(math.sqrt(len(vectors))), len(vectors) - 1)
    if k < 1:
        return PHONE_KM
    asked = vectors[:: math.ceil(len(vectors) / ASKED)]
    chord = cKDTree(vectors).query(asked, [k + 1])[0][:, 0]
    apart = 2 * density.EARTH_RADIUS_KM * np.arcsin(np.clip(chord / 2, 0, 1))
    return max(float(np.median(apart)) / 2, PHONE_KM)


def clusters(lat: np.ndarray, lon: np.ndarray, width_km: float) -> list[np.ndarray]:
    """Rows of photos that a chain of steps of six kernel widths connects, most photos first; what
    lies alone is in none."""
    nothing = [""] * len(lat)
    unknown = np.full(len(lat), np.nan)
    group = density.group_photos(lat, lon, unknown, nothing, nothing, 6 * width_km)
    order = np.argsort(group, kind="stable")
    parts = np.split(order, np.cumsum(np.bincount(group))[:-1])
    return sorted((part for part in parts if len(part) > 1), key=len, reverse=True)


def density_at(lat, lon, at_lat, at_lon, width_km: float) -> np.ndarray:
    """density.density_per_km2 at the points of a map, (M,), for 100,000 photos too: photos closer
    together than a third of the kernel are taken as one place, and what is more than five widths
    away counts nothing."""
    from scipy.spatial import cKDTree

    vectors = density.unit_vectors(lat, lon)
    points = density.unit_vectors(at_lat, at_lon)
    cell = np.floor(vectors / (width_km / 3 / density.EARTH_RADIUS_KM)).astype(np.int64)
    _, cell_of, counts = np.unique(cell, axis=0, return_inverse=True, return_counts=True)
    centres = np.zeros((len(counts), 3))
    np.add.at(centres, cell_of.ravel(), vectors)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    reach = 2 * math.sin(min(5 * width_km / density.EARTH_RADIUS_KM, math.pi) / 2)
    tree, total = cKDTree(points), np.zeros(len(points))
    for centre, count in zip(centres, counts, strict=True):
        rows = tree.query_ball_point(centre, reach)
        apart = density.arc_km(points[rows], centre)
        total[rows] += count * np.exp(density.kernel_log_per_km2(apart, width_km))
    return total


def draw_density(lat, lon, width_km: float, path: Path) -> None:
    """Draw photos per km²: the first view and, where clusters are small in it, the three largest,
    each with the kernel that can be seen in it."""
    from matplotlib.figure import Figure  # not pyplot: a notebook's own plots go on

    lon = unwrapped(lon, density.geographic_median(lat, lon)[1])
    seen = in_view(lat, lon)
    views = [(box_around(lat[seen], lon[seen], 0.06, max(4 * width_km, 0.1)), width_km)]
    for rows in clusters(lat, lon, width_km)[:3]:
        width = kernel_km(lat[rows], lon[rows])
        box = box_around(lat[rows], lon[rows], 0.1, max(4 * width, 0.05))
        if len(rows) >= 3 and extent_km(box) < extent_km(views[0][0]) / 5:
            views.append((squared(box), width))
    figure = Figure(figsize=(7.2, 6.2) if len(views) == 1 else (11.6, 6.6), layout="constrained")
    if len(views) == 1:
        axes = [figure.subplots()]
    else:
        grid = figure.add_gridspec(len(views) - 1, 2, width_ratios=(2.2, 1))
        axes = [figure.add_subplot(grid[:, 0])]
        axes += [figure.add_subplot(grid[n, 1]) for n in range(len(views) - 1)]
    for number, (axis, (box, width)) in enumerate(zip(axes, views, strict=True)):
        draw_panel(figure, axis, box, (lat, lon), width)
        if number:
            axis.set(xlabel="", ylabel="")
            axis.locator_params(nbins=3)
    outside = int((~seen).sum())
    if outside:
        axes[0].set_xlabel(f"longitude (°); {outside} photos lie outside this view")
    with density.write_atomically(path) as file:
        figure.savefig(file, format="png", dpi=130)


def draw_panel(figure, axis, box: Box, places: tuple, width_km: float) -> None:
    """One view: density in colour, photos as dots, how many they are in the title."""
    from matplotlib.colors import LogNorm

    lat, lon = places
    south, west, north, east = box
    width_km = max(width_km, extent_km(box) / 100)
    rows, columns = np.linspace(south, north, 200), np.linspace(west, east, 200)
    at = np.meshgrid(rows, columns, indexing="ij")
    value = density_at(lat, lon, at[0].ravel(), at[1].ravel(), width_km).reshape(at[0].shape)
    dress_axis(axis, box)
    norm = LogNorm(value.max() / 1e3, value.max(), clip=False)
    shown = np.ma.masked_less(value, value.max() / 1e3)
    mesh = axis.pcolormesh(columns, rows, shown, norm=norm, cmap="YlGnBu", shading="gouraud",
                           alpha=0.8, zorder=2)  # fmt: skip
    size, alpha = (5, 0.7) if len(lat) <= 5000 else (1, 0.2)  # else they hide the colours
    axis.scatter(lon, lat, s=size, color="#b3432b", linewidths=0, alpha=alpha, zorder=3)
    figure.colorbar(mesh, label="photos per km²", shrink=0.8)
    inside = (lat >= south) & (lat <= north) & (lon >= west) & (lon <= east)
    axis.set_title(
        f"{int(inside.sum())} photos, kernel {distance_label(width_km)}", loc="left", fontsize=10
    )


def write_density_page(
    path: Path, names: list[str], lat: np.ndarray, lon: np.ndarray, image_dir: Path,
    width_km: float, bar: Callable,
) -> None:  # fmt: skip
    """The same as a page to zoom in, with thumbnails; nothing is loaded but on request. Of more
    than MOST photos, those with a picture are spread over the map."""
    chosen = density.spread_order(lat, lon)[:MOST]
    files = [photo_file(image_dir, names[i]) for i in chosen]
    pictures: list[str | None] = [None] * len(names)
    for i, picture in zip(chosen, thumbnails(files, bar), strict=True):
        pictures[i] = picture
    found = clusters(lat, lon, width_km)
    groups = [cluster_row(lat[rows], lon[rows]) for rows in found[:12]]
    rest = len(names) - sum(one["count"] for one in groups)
    alone = f"{rest} more photos lie alone or in smaller clusters." if rest else ""
    content = {
        "name": names, "lat": np.round(lat, 6).tolist(), "lon": np.round(lon, 6).tolist(),
        "map": map_options(lat, lon) | {"heatKm": width_km}, "clusters": groups,
    }  # fmt: skip
    write_page(path, "density.html.j2", data=embed(content), pictures=embed(pictures),
               count=len(names), groups=groups, alone=alone)  # fmt: skip


def cluster_row(lat: np.ndarray, lon: np.ndarray) -> dict:
    """What the page tells of a cluster: how many photos, where, and the box that shows it."""
    middle = density.geographic_median(lat, lon)
    place = (f"{abs(middle[0]):.3f}° {'S' if middle[0] < 0 else 'N'} "
             f"{abs(middle[1]):.3f}° {'W' if middle[1] < 0 else 'E'}")  # fmt: skip
    box = box_around(lat, unwrapped(lon, middle[1]), 0.1)
    return {"count": len(lat), "place": place, "box": box}


# ---------------------------------------------------------------- pages


def embed(value) -> str:
    """JSON that may stand inside a script element: nothing in it can end the element."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def write_page(path: Path, template: str, **content) -> None:
    """Fill a template of this folder; values of `data` and `pictures` are JSON from `embed`."""
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    page = jinja2.Environment(autoescape=True, loader=loader).get_template(template)
    safe = {key: jinja2.utils.markupsafe.Markup(content.pop(key)) for key in ("data", "pictures")}
    # a name may hold half of a pair of characters, which UTF-8 has not; JSON reads its escape
    poor = {"encoding": "utf-8", "errors": "backslashreplace"}
    with density.write_atomically(path, "w", **poor) as file:
        file.write(page.render(**content, **safe))
