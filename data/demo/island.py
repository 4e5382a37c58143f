"""An island that does not exist: terrain, soils, plants and buildings, numpy only.

`Island(seed)` builds one; camera.py photographs it, prepare.py takes the demo's photographs,
train_depth.py learns depth on other seeds. Metres everywhere: x points east, y north, z up from
sea level; the origin is the island's centre.
"""

from functools import cache

import numpy as np

LATITUDE, LONGITUDE = 38.9, -36.2  # open Atlantic, no land within hundreds of kilometres
METRES_PER_DEGREE = 6371008.8 * np.pi / 180
SIZE_M = 16384.0  # side of the square that the heightfield covers

# Per region, clockwise from north on the demo's island: grass, soil, rock, sand, shallow water
# (linear RGB), then forest, fields, dryness (0..1) and the tree that grows there.
# fmt: off
REGIONS = (
    # wetland, north
    ((0.125, 0.145, 0.055), (0.10, 0.08, 0.05), (0.20, 0.19, 0.16), (0.36, 0.33, 0.25),
     (0.10, 0.20, 0.14), 0.30, 0.05, 0.15, "reed"),
    # cloud forest, north-east
    ((0.065, 0.120, 0.032), (0.09, 0.06, 0.04), (0.10, 0.10, 0.09), (0.22, 0.20, 0.17),
     (0.05, 0.22, 0.20), 1.00, 0.00, 0.00, "broadleaf"),
    # farmland on red earth, east
    ((0.11, 0.155, 0.042), (0.28, 0.12, 0.055), (0.24, 0.17, 0.12), (0.42, 0.24, 0.14),
     (0.06, 0.24, 0.24), 0.35, 1.00, 0.30, "broadleaf"),
    # young lava, south-east
    ((0.09, 0.11, 0.045), (0.045, 0.038, 0.035), (0.055, 0.045, 0.042), (0.035, 0.034, 0.035),
     (0.02, 0.09, 0.12), 0.05, 0.00, 0.80, "shrub"),
    # palms and terraces, south
    ((0.20, 0.22, 0.06), (0.34, 0.22, 0.12), (0.30, 0.20, 0.13), (0.66, 0.50, 0.44),
     (0.06, 0.30, 0.30), 0.45, 0.25, 0.60, "palm"),
    # limestone, south-west
    ((0.24, 0.25, 0.12), (0.48, 0.42, 0.32), (0.60, 0.57, 0.49), (0.78, 0.77, 0.72),
     (0.10, 0.48, 0.46), 0.25, 0.10, 0.70, "olive"),
    # dry steppe, west
    ((0.40, 0.29, 0.10), (0.36, 0.21, 0.10), (0.36, 0.23, 0.14), (0.60, 0.37, 0.15),
     (0.05, 0.26, 0.30), 0.12, 0.05, 1.00, "shrub"),
    # heather moor, north-west
    ((0.18, 0.11, 0.13), (0.12, 0.07, 0.05), (0.22, 0.21, 0.22), (0.30, 0.27, 0.24),
     (0.04, 0.15, 0.20), 0.40, 0.00, 0.25, "conifer"),
)
ALPINE = ((0.21, 0.165, 0.075), (0.15, 0.12, 0.10), (0.135, 0.122, 0.115), (0.25, 0.23, 0.2),
          (0.05, 0.2, 0.2), 0.45, 0.0, 0.35, "conifer")
# fmt: on
TREES = ("broadleaf", "conifer", "palm", "olive", "shrub", "reed", "tuft", "rock", "cloud")
TREE_HEIGHT_M = (9.0, 12.0, 8.0, 5.0, 1.3, 1.8, 0.45, 0.9, 1.0)


# ---------------------------------------------------------------- noise


def smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    """0 below `low`, 1 above `high`, a smooth S between."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def mix(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Blend rows of colours `a` and `b` (P, 3) by `share` (P,)."""
    return a + (b - a) * share[:, None]


def band_noise(rng: np.random.Generator, cells: int, waves: float) -> np.ndarray:
    """Periodic noise of about `waves` waves per side, (cells, cells) float32, unit variance.

    Drawn in the frequency domain in an order that does not depend on `cells`: the same generator
    gives the same landscape at every resolution.
    """
    reach = int(min(np.ceil(waves * 2), cells // 2 - 1))
    full = int(np.ceil(waves * 2))
    draws = rng.standard_normal((2 * full + 1, full + 1, 2), dtype=np.float32)
    draws = draws[full - reach : full + reach + 1, : reach + 1]
    rows = np.arange(-reach, reach + 1)
    frequency = np.hypot(rows[:, None], np.arange(reach + 1)[None]) + 1e-9
    weight = np.exp(-((np.log(frequency / waves) / 0.45) ** 2)).astype(np.float32)
    spectrum = np.zeros((cells, cells // 2 + 1), np.complex64)
    spectrum[rows, : reach + 1] = (draws[..., 0] + 1j * draws[..., 1]) * weight
    noise = np.fft.irfft2(spectrum, s=(cells, cells)).astype(np.float32)
    return noise / noise.std()


def fractal_tile(rng: np.random.Generator, cells: int, slope: float) -> np.ndarray:
    """A periodic 1/f^slope texture and its two derivatives per cell, (cells + 1, cells + 1, 3)."""
    frequency = np.hypot(np.fft.fftfreq(cells)[:, None], np.fft.rfftfreq(cells)[None]) * cells
    frequency[0, 0] = 1e9
    white = np.fft.rfft2(rng.standard_normal((cells, cells)))
    tile = np.fft.irfft2(white * np.maximum(frequency, 2.0) ** -slope, s=(cells, cells))
    tile /= tile.std()
    dx = (np.roll(tile, -1, 1) - np.roll(tile, 1, 1)) / 2
    dy = (np.roll(tile, -1, 0) - np.roll(tile, 1, 0)) / 2
    return np.pad(np.stack([tile, dx, dy], -1), ((0, 1), (0, 1), (0, 0)), mode="wrap").astype("f4")


def crown_tile(rng: np.random.Generator, cells: int, pitch: int) -> np.ndarray:
    """A periodic forest from above: crown height 0..1, derivatives, tint; (cells + 1, ..., 4)."""
    yy, xx = np.mgrid[:cells, :cells].astype(np.float32)
    best, tint = np.zeros((cells, cells), "f4"), np.zeros((cells, cells), "f4")
    count = cells // pitch
    random = rng.random((count, count, 4), dtype=np.float32)
    for dj in (-1, 0, 1):
        for di in (-1, 0, 1):
            j, i = (yy // pitch).astype(int) + dj, (xx // pitch).astype(int) + di
            r = random[j % count, i % count]
            cy, cx = (j + 0.2 + 0.6 * r[..., 0]) * pitch, (i + 0.2 + 0.6 * r[..., 1]) * pitch
            reach = pitch * (0.62 + 0.3 * r[..., 2])
            dome = np.sqrt(np.clip(1 - ((yy - cy) ** 2 + (xx - cx) ** 2) / reach**2, 0, 1))
            dome *= 0.6 + 0.4 * r[..., 2]
            tint = np.where(dome > best, r[..., 3], tint)
            best = np.maximum(best, dome)
    dx = (np.roll(best, -1, 1) - np.roll(best, 1, 1)) / 2
    dy = (np.roll(best, -1, 0) - np.roll(best, 1, 0)) / 2
    return np.pad(np.stack([best, dx, dy, tint], -1), ((0, 1), (0, 1), (0, 0)), mode="wrap")


def bilinear(grid: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Values of `grid` (n, m, C) at column `u`, row `v` (any float shape), clamped to the edge."""
    rows, columns = grid.shape[:2]
    u, v = np.clip(u, 0, columns - 1.001), np.clip(v, 0, rows - 1.001)
    i, j = u.astype(np.int32), v.astype(np.int32)
    fu, fv = (u - i).astype("f4", copy=False), (v - j).astype("f4", copy=False)
    flat, index = grid.reshape(rows * columns, -1), j * columns + i
    if flat.shape[1] == 1:
        flat = flat[:, 0]
    else:
        fu, fv = fu[..., None], fv[..., None]
    top, low = np.take(flat, index, 0, mode="clip"), np.take(flat, index + columns, 0, mode="clip")
    top += (np.take(flat, index + 1, 0, mode="clip") - top) * fu
    low += (np.take(flat, index + columns + 1, 0, mode="clip") - low) * fu
    low -= top
    low *= fv
    top += low
    return top if flat.ndim == 2 else top[..., None]


def tiled(tile: np.ndarray, x: np.ndarray, y: np.ndarray, metres: float) -> np.ndarray:
    """Periodic `tile` at world positions, one cell every `metres`."""
    cells = tile.shape[0] - 1
    u, v = x * (1 / (metres * cells)), y * (1 / (metres * cells))  # np.mod is many times slower
    u -= np.floor(u)
    v -= np.floor(v)
    return bilinear(tile, u * cells, v * cells)


@cache
def textures() -> tuple:
    """Noise tiles, crowns, random table and sprites: the same on every island."""
    rng = np.random.default_rng(7)
    tile = fractal_tile(rng, 512, 1.7)
    return (
        tile,
        fractal_tile(rng, 512, 1.15),
        fractal_tile(rng, 1024, 1.75),
        crown_tile(rng, 512, 8),
        rng.random((256, 256, 6), dtype=np.float32),
        make_sprites(rng, tile),
    )


# ---------------------------------------------------------------- the island


class Island:
    """Terrain and everything that stands on it; the same seed gives the same island.

    `cells` is the resolution of the heightfield (a coarser one is quicker to build).
    """

    def __init__(self, seed: int, cells: int = 1024):
        self.seed, self.cells = seed, cells
        self.spacing = SIZE_M / cells
        rng = np.random.default_rng([seed, 1])
        self.tile, self.fine, self.clouds, self.crowns, self.hash, self.sprites = textures()
        turn = 0.0 if seed == 1 else rng.uniform(0, 2 * np.pi)
        height = self._raise_terrain(rng, turn)
        dy, dx = np.gradient(height, self.spacing)
        self.terrain = np.stack([height, dx, dy], -1).astype("f4")
        self.heights = np.ascontiguousarray(self.terrain[..., :1])
        self._settle_regions(rng, turn, height, np.hypot(dx, dy))
        self.faces, self.lamps = [], []
        self.landmarks = self._build_landmarks(np.random.default_rng([seed, 2]), turn)
        self._index_faces()

    def _raise_terrain(self, rng: np.random.Generator, turn: float) -> np.ndarray:
        axis = ((np.arange(self.cells) + 0.5) * self.spacing - SIZE_M / 2).astype("f4")
        x, y = np.meshgrid(axis, axis)
        rough, gx, gy, amplitude = 0.0, 0.0, 0.0, 1.0
        low = []
        for waves in (2, 4, 8, 16, 33, 66, 130, 260):
            noise = band_noise(rng, self.cells, waves)
            low.append(noise) if waves <= 8 else None
            dy, dx = np.gradient(noise, self.spacing * waves / SIZE_M * 6)
            gx, gy = gx + dx, gy + dy
            # Octaves fade on slopes that the larger ones made: sharp ridges, smooth valleys.
            rough = rough + amplitude * noise / (1 + 0.9 * (gx**2 + gy**2))
            amplitude *= 0.52
        wx, wy = x + 500 * low[1] + 220 * low[2], y + 500 * np.roll(low[1], 300, 0) - 220 * low[2]
        c, s = np.cos(turn), np.sin(turn)
        along, across = (c * wx + s * wy) / 1.15, (c * wy - s * wx)
        inland = 1 - np.hypot(along, across) / 5600 + 0.07 * low[0] + 0.03 * rough
        land = smoothstep(0.0, 0.35, inland)
        height = 170 * inland + 130 * land
        peak = np.array([-500 + rng.uniform(-400, 400), 500 + rng.uniform(-400, 400)])
        massif = 0.0
        second = turn + rng.uniform(1.5, 3.0)
        for px, py, top, reach in (
            (*peak, 1750, 1900),
            (peak[0] + 2700 * np.cos(second), peak[1] + 2700 * np.sin(second), 520, 1300),
            (
                peak[0] - 2600 * np.cos(second + 0.7),
                peak[1] - 2600 * np.sin(second + 0.7),
                420,
                1200,
            ),
        ):
            ex, ey = wx - px, wy - py
            distance = np.hypot(ex, ey)
            angle = np.arctan2(ey, ex) + 0.25 * low[2]
            gully = sum(
                np.abs(np.sin(k * angle / 2 + rng.uniform(0, 6) + 0.3 * low[1])) * w
                for k, w in ((5, 0.5), (11, 0.32), (23, 0.18))
            )
            cone = top * np.exp(-((distance / reach) ** 1.1))
            carve = 0.55 * smoothstep(150, 1500, distance) * (1 - gully)
            massif = massif + cone * (1 - carve)
        height = height + land * (massif + rough * (26 + 0.13 * massif))
        cliff = smoothstep(0.2, 1.2, low[2] + 0.5 * low[1])
        height = height + 55 * cliff * smoothstep(0.004, 0.022, inland)
        # Ground just above the sea is drawn out flat: beaches and coastal plains.
        flat = 1 - cliff
        height = np.where(
            (height > 0) & (height < 60), height * (1 - flat * 0.75 * (1 - height / 60)), height
        )
        return height.astype("f4")

    def _settle_regions(self, rng, turn, height, slope) -> None:
        """Soils, plants and moisture on a grid of a quarter of the resolution: `self.cover`."""
        step = max(1, self.cells // 512)
        self.coarse = height[::step, ::step].copy()
        h, slope = self.coarse, slope[::step, ::step]
        n = len(h)
        self.cover_spacing = SIZE_M / n
        axis = ((np.arange(n) + 0.5) * self.cover_spacing - SIZE_M / 2).astype("f4")
        x, y = np.meshgrid(axis, axis)
        wander = [band_noise(rng, n, 5), band_noise(rng, n, 5), band_noise(rng, n, 14)]
        px, py = x + 350 * wander[0] + 120 * wander[2], y + 350 * wander[1]
        order = np.arange(8) if self.seed == 1 else rng.permutation(8)
        rows = [REGIONS[k] for k in order]
        centres = [
            (4000 * np.sin(k * np.pi / 4 + turn), 4000 * np.cos(k * np.pi / 4 + turn))
            for k in range(8)
        ]
        weights = [
            np.exp(-((px - cx) ** 2 + (py - cy) ** 2) / (2 * 1150.0**2)) + 1e-9
            for cx, cy in centres
        ]
        weights.append(smoothstep(450, 1100, h))
        rows.append(ALPINE)
        weights = np.stack(weights, -1)
        weights = weights**2.2
        weights /= weights.sum(-1, keepdims=True)
        table = np.array([np.concatenate([*row[:5], row[5:8]]) for row in rows], "f4")
        cover = weights.astype("f4") @ table
        trees = np.zeros((9, len(TREES)), "f4")
        for k, row in enumerate(rows):
            trees[k, TREES.index(row[8])] = 1
        self.trees = weights.astype("f4") @ trees[:, :6]
        patches = smoothstep(-0.5, 0.6, band_noise(rng, n, 30) + 0.6 * wander[2])
        belt = smoothstep(4, 14, h) * (1 - smoothstep(1150, 1450, h + 60 * wander[2]))
        forest = np.clip(
            cover[..., 15] * (0.25 + patches) * belt * (1 - smoothstep(0.9, 1.5, slope)), 0, 1
        )
        fields = cover[..., 16] * smoothstep(8, 16, h) * (1 - smoothstep(0.18, 0.32, slope))
        cover[..., 15] = forest * (1 - 0.85 * fields)
        cover[..., 16] = fields * (1 - smoothstep(350, 500, h))
        self.cover = np.ascontiguousarray(cover)
        self.canopy = 8 * smoothstep(0.25, 0.6, cover[..., 15]) * (h > 2)

    # -------- looking things up

    def _at(self, grid: np.ndarray, spacing: float, x, y) -> np.ndarray:
        half = SIZE_M / 2
        return bilinear(grid, (x + half) / spacing - 0.5, (y + half) / spacing - 0.5)

    def ground(self, x, y, footprint=0.0) -> np.ndarray:
        """Terrain height (m) at positions, with the small relief that `footprint` (m) resolves."""
        x, y = np.asarray(x, "f4"), np.asarray(y, "f4")
        base = self._at(self.terrain, self.spacing, x, y)
        amplitude_a, amplitude_b = self._relief(base, footprint)
        height = base[..., 0]
        height = height + amplitude_a * tiled(self.tile[..., :1], x, y, 1.7)[..., 0]
        return height + amplitude_b * tiled(self.tile[..., :1], y, x, 0.11)[..., 0]

    @staticmethod
    def _relief(base: np.ndarray, footprint) -> tuple[np.ndarray, np.ndarray]:
        """Amplitudes (m) of the two layers of small relief: crags on slopes, bumps underfoot."""
        slope = np.hypot(base[..., 1], base[..., 2])
        shore = smoothstep(0.5, 10, base[..., 0])
        crags = shore * (0.25 + 7 * smoothstep(0.25, 1.3, slope))
        bumps = (0.05 + 0.10 * shore + 0.25 * smoothstep(0.3, 1, slope)) * (base[..., 0] > 0.3)
        return crags, bumps * (1 - smoothstep(0.25, 0.9, np.asarray(footprint, "f4")))

    def find(self, bearing_deg, distance, low, high, steepest=0.25) -> tuple[float, float]:
        """The place nearest to a wanted one whose height and slope fit."""
        n = len(self.coarse)
        axis = (np.arange(n) + 0.5) * self.cover_spacing - SIZE_M / 2
        x, y = np.meshgrid(axis, axis)
        angle = np.radians(bearing_deg)
        dy, dx = np.gradient(self.coarse, self.cover_spacing)
        away = np.hypot(x - distance * np.sin(angle), y - distance * np.cos(angle))
        fits = (self.coarse > low) & (self.coarse < high) & (np.hypot(dx, dy) < steepest)
        best = np.argmin(np.where(fits, away, 1e9))
        return float(x.flat[best]), float(y.flat[best])

    # -------- buildings

    def _build_landmarks(self, rng: np.random.Generator, turn: float) -> dict:
        """Houses, towers and turbines as convex faces; returns name → (x, y)."""
        t = np.degrees(turn)
        places = {}

        def put(name, x, y):
            places[name] = (x, y)
            return x, y, float(self.ground(x, y))

        x, y, z = put("lighthouse", *self.find(225 + t, 5600, 6, 60))
        for k in range(6):
            colour = (0.75, 0.74, 0.70) if k % 2 == 0 else (0.55, 0.06, 0.04)
            self._tower(x, y, z + 4 * k, 4, 2.6 - 0.2 * k, 2.4 - 0.2 * k, colour)
        self._tower(x, y, z + 24, 2.5, 1.7, 1.5, (0.05, 0.05, 0.05))
        self.lamps.append((x, y, z + 25.5, 1.0, 0.93, 0.7, 14.0))
        self._house(rng, x + 9, y + 5, (0.7, 0.68, 0.62), 1.0)
        self._town(rng, "town", self.find(100 + t, 4700, 5, 60, 0.12), 90, 330)
        self._town(rng, "village", self.find(10 + t, 4300, 4, 70, 0.2), 26, 150)
        self._town(rng, "hamlet", self.find(268 + t, 3600, 60, 260, 0.25), 16, 130)
        places["town"], places["village"] = self._towns[0], self._towns[1]
        x, y, z = put("mast", *self.find(150 + t, 2600, 350, 900))
        for k in range(9):
            colour = (0.6, 0.05, 0.03) if k % 2 else (0.7, 0.7, 0.68)
            self._tower(x, y, z + 9 * k, 9, 1.3 - 0.1 * k, 1.2 - 0.1 * k, colour)
        self.lamps.append((x, y, z + 81, 1.0, 0.05, 0.03, 3.0))
        x, y, z = put("chapel", *self.find(205 + t, 3700, 60, 330))
        self._house(rng, x, y, (0.78, 0.76, 0.70), 1.5)
        self._tower(x + 8, y + 3, z - 1, 13, 2.2, 2.2, (0.78, 0.76, 0.70))
        self._tower(x + 8, y + 3, z + 12, 4, 2.4, 0.1, (0.35, 0.12, 0.06))
        x, y, z = put("observatory", *self.find(330 + t, 1500, 1100, 1700, 0.6))
        self._tower(x, y, z - 2, 9, 7, 7, (0.8, 0.8, 0.8))
        self._tower(x, y, z + 7, 4, 7, 5, (0.85, 0.85, 0.85))
        self._tower(x, y, z + 11, 2, 5, 1.0, (0.85, 0.85, 0.85))
        for k in range(7):
            x, y = self.find(280 + t + 4 * k, 3300 + 220 * (k % 3), 150, 700, 0.5)
            self._turbine(x, y, rng.uniform(0, 2), rng.uniform(-0.5, 0.5))
        places["turbines"] = (x, y)
        x, y, z = put("viaduct", *self.find(60 + t, 3900, 30, 200, 0.4))
        for k in range(-6, 7):
            self._box(x + 14 * k, y, z + 13, 7.1, 2.5, 1.2, (0.42, 0.40, 0.36))
            bottom = float(self.ground(x + 14 * k, y)) - 2
            self._box(
                x + 14 * k, y, bottom, 1.1, 1.6, max(1.0, z + 13 - bottom), (0.36, 0.34, 0.31)
            )
        for _ in range(14):
            angle = rng.uniform(0, 2 * np.pi)
            sx, sy = 6300 * np.cos(angle), 6300 * np.sin(angle)
            if self.ground(sx, sy) < -3:
                self._boat(rng, sx, sy)
        for x, y in places.values():
            self._clear(x, y, 60)
        return places

    def _clear(self, x, y, radius) -> None:
        """No trees within `radius` of a building."""
        c = self.cover_spacing
        n = len(self.cover)
        j, i = np.mgrid[:n, :n]
        near = np.hypot((i + 0.5) * c - SIZE_M / 2 - x, (j + 0.5) * c - SIZE_M / 2 - y) < radius
        self.cover[near, 15] *= 0.1
        self.cover[near, 16] *= 0.2

    def _face(self, vertices, colour, glow=0.0) -> None:
        self.faces.append((np.asarray(vertices, "f4"), np.asarray(colour, "f4"), glow))

    def _box(self, x, y, z, rx, ry, height, colour, angle=0.0) -> None:
        c, s = np.cos(angle), np.sin(angle)
        corner = [
            (x + c * a * rx - s * b * ry, y + s * a * rx + c * b * ry)
            for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))
        ]
        for k in range(4):
            (ax, ay), (bx, by) = corner[k], corner[(k + 1) % 4]
            self._face(
                [(ax, ay, z), (bx, by, z), (bx, by, z + height), (ax, ay, z + height)], colour
            )
        self._face([(px, py, z + height) for px, py in corner], colour)

    def _tower(self, x, y, z, height, low, high, colour, sides=8) -> None:
        a = np.arange(sides + 1) * 2 * np.pi / sides
        for k in range(sides):
            ring = [
                (x + r * np.cos(a[j]), y + r * np.sin(a[j]), h)
                for j, r, h in (
                    (k, low, z),
                    (k + 1, low, z),
                    (k + 1, high, z + height),
                    (k, high, z + height),
                )
            ]
            self._face(ring, colour)

    def _house(self, rng, x, y, wall, scale=1.0, roof=None) -> None:
        angle = rng.uniform(0, np.pi)
        rx, ry = scale * rng.uniform(4, 6.5), scale * rng.uniform(3, 4.2)
        tall = scale * rng.choice([3.2, 3.4, 6.0])
        z = float(self.ground(x, y)) - 0.8
        tall += 0.8
        roof = (0.36, 0.13, 0.07) if roof is None else roof
        self._box(x, y, z, rx, ry, tall, wall, angle)
        c, s = np.cos(angle), np.sin(angle)

        def at(a, b, h):
            return (x + c * a - s * b, y + s * a + c * b, z + h)

        top, ox, oy = tall + 0.55 * ry, rx + 0.4, ry + 0.4
        self._face([at(-ox, -oy, tall), at(ox, -oy, tall), at(ox, 0, top), at(-ox, 0, top)], roof)
        self._face([at(ox, oy, tall), at(-ox, oy, tall), at(-ox, 0, top), at(ox, 0, top)], roof)
        for side in (-1, 1):
            self._face(
                [at(side * rx, -ry, tall), at(side * rx, ry, tall), at(side * rx, 0, top)], wall
            )
            for floor in range(int(tall // 2.9)):
                for a in np.arange(-rx + 1.4, rx - 1, 2.3):
                    lit = 1.0 if rng.random() < 0.55 else 0.0
                    b, h = side * (ry + 0.06), 1.8 + 2.7 * floor
                    pane = [
                        at(a - 0.5, b, h),
                        at(a + 0.5, b, h),
                        at(a + 0.5, b, h + 1.2),
                        at(a - 0.5, b, h + 1.2),
                    ]
                    self._face(pane, (0.05, 0.06, 0.07), lit)
                    if lit and rng.random() < 0.5:
                        self.lamps.append(
                            (*at(a, side * (ry + 0.3), h + 0.6), 1.0, 0.62, 0.25, 0.35)
                        )

    def _town(self, rng, name, centre, houses, reach) -> None:
        self._towns = [*getattr(self, "_towns", []), centre]
        placed = []
        for _ in range(houses * 6):
            x, y = np.array(centre) + rng.normal(0, reach / 2, 2)
            base = self._at(self.terrain, self.spacing, np.float32(x), np.float32(y))
            far = all(abs(x - a) + abs(y - b) > 19 for a, b in placed)
            if base[0] > 2.5 and np.hypot(base[1], base[2]) < 0.4 and far and len(placed) < houses:
                placed.append((x, y))
                wall = np.array(
                    [(0.75, 0.72, 0.65), (0.7, 0.55, 0.38), (0.72, 0.66, 0.5), (0.5, 0.55, 0.58)][
                        rng.integers(4)
                    ]
                ) * rng.uniform(0.8, 1.05)
                self._house(rng, x, y, wall)
                if rng.random() < 0.5:
                    z = float(self.ground(x + 8, y)) + 5
                    self._tower(x + 8, y, z - 5, 5, 0.09, 0.07, (0.2, 0.2, 0.2), 4)
                    self.lamps.append((x + 8, y, z, 1.0, 0.75, 0.4, 2.2))
        self._clear(*centre, reach)

    def _turbine(self, x, y, spin, yaw) -> None:
        z = float(self.ground(x, y))
        white = (0.78, 0.78, 0.78)
        self._tower(x, y, z - 2, 52, 1.7, 1.0, white, 6)
        c, s = np.cos(yaw), np.sin(yaw)
        hub = np.array([x + 2.2 * c, y + 2.2 * s, z + 50])
        across = np.array([-s, c, 0.0])
        for k in range(3):
            a = spin + k * 2 * np.pi / 3
            out = across * np.cos(a) + np.array([0, 0, np.sin(a)])
            side = across * -np.sin(a) + np.array([0, 0, np.cos(a)])
            self._face(
                [
                    hub - side * 0.6,
                    hub + out * 6 - side * 1.1,
                    hub + out * 24,
                    hub + out * 5 + side * 0.9,
                ],
                white,
            )

    def _boat(self, rng, x, y) -> None:
        self._box(x, y, 0, 4.5, 1.3, 1.2, (0.7, 0.7, 0.68), rng.uniform(0, 3))
        self._face([(x, y, 1.5), (x + 3.5, y, 1.7), (x, y, 11)], (0.8, 0.78, 0.72))

    def _index_faces(self) -> None:
        self.face_centre = np.array([v.mean(0) for v, _, _ in self.faces])
        self.face_reach = np.array([np.ptp(v, axis=0).max() for v, _, _ in self.faces])
        self.face_glass = self.face_reach < 1.7
        self.lamps = np.array(self.lamps, "f4")


# ---------------------------------------------------------------- plants and rocks as sprites


def _paint_blobs(size: int, blobs: np.ndarray) -> np.ndarray:
    """Paint little spheres (u, v, depth, radius, shade, wood, normal x, y), far ones first.

    Returns (2 size, 2 size, 6): alpha, shade, wood, and the normal right, up, towards the viewer.
    Opaque with hard edges: halved once, the edges are soft.
    """
    big = 2 * size
    blobs = blobs[np.argsort(-blobs[:, 2], kind="stable")].astype("f4")
    reach = int(np.ceil(2 * blobs[:, 3].max()))
    oy, ox = np.mgrid[-reach : reach + 1, -reach : reach + 1].reshape(2, -1)
    column = np.floor(blobs[:, :1] * big).astype(int) + ox[None]
    row = np.floor((1 - blobs[:, 1:2]) * big).astype(int) + oy[None]
    dx = (column + 0.5 - blobs[:, :1] * big) / (2 * blobs[:, 3:4])
    dy = (row + 0.5 - (1 - blobs[:, 1:2]) * big) / (2 * blobs[:, 3:4])
    inside = (dx**2 + dy**2 < 1) & (column >= 0) & (column < big) & (row >= 0) & (row < big)
    which, offset = np.nonzero(inside)
    winner = np.full(big * big, -1)
    winner[row[inside] * big + column[inside]] = np.arange(len(which))  # the nearest comes last
    hit = np.flatnonzero(winner >= 0)
    which, offset = which[winner[hit]], offset[winner[hit]]
    dx, dy, blob = dx[which, offset], dy[which, offset], blobs[which]
    bulge = np.sqrt(np.clip(1 - dx**2 - dy**2, 0.05, 1))
    normal = np.stack([0.5 * dx + blob[:, 6], -0.5 * dy + blob[:, 7], 0.6 * bulge], -1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    sprite = np.zeros((big * big, 6), "f4")
    sprite[hit] = np.concatenate([np.ones((len(hit), 1)), blob[:, 4:6], normal], 1)
    return sprite.reshape(big, big, 6)


def _plant(rng: np.random.Generator, kind: str, size: int) -> np.ndarray:
    """One random specimen, painted `size` pixels tall."""
    b = []

    def wood(points, radius, shade=0.8):
        b.extend(
            (u, v, 0.3, radius * size, shade * rng.uniform(0.7, 1.1), 1, 0, 0.2) for u, v in points
        )

    if kind in ("broadleaf", "olive", "shrub"):
        low = {"broadleaf": 0.30, "olive": 0.32, "shrub": 0.05}[kind]
        if kind != "shrub":
            wood([(0.5 + 0.02 * np.sin(9 * v), v) for v in np.linspace(0, 0.6, 60)], 0.016)
        lobes = [
            (rng.uniform(0.3, 0.7), rng.uniform(low + 0.12, 0.84), rng.uniform(0.13, 0.24))
            for _ in range(9)
        ] + [(0.5, (low + 1) / 2 + 0.03, 0.26)]
        for u, v, reach in lobes:
            for _ in range(650):
                d = rng.normal(size=3)
                d *= reach * rng.uniform(0.8, 1.0) / np.linalg.norm(d)
                pu, pv = u + d[0], v + 0.8 * d[1]
                if low < pv < 0.99 and 0.02 < pu < 0.98:
                    nx, ny = (
                        1.6 * (pu - 0.5) + d[0] / reach * 0.5,
                        1.1 * (pv - low - 0.2) + d[1] / reach * 0.5,
                    )
                    shade = (0.45 + 0.5 * (pv - low) / (1 - low)) * rng.uniform(0.75, 1.15)
                    b.append((pu, pv, d[2], rng.uniform(0.003, 0.007) * size, shade, 0, nx, ny))
    elif kind == "conifer":
        wood([(0.5, v) for v in np.linspace(0, 0.9, 80)], 0.011)
        for _ in range(5200):
            v = 1 - rng.uniform(0, 0.93) ** 0.75
            tier = 0.75 + 0.35 * ((v * 11) % 1 < 0.55)
            reach = (0.27 * (1 - v) ** 0.85 * tier + 0.010) * rng.uniform(0.8, 1.1)
            a, r = rng.uniform(0, 2 * np.pi), np.sqrt(rng.random())
            shade = (0.45 + 0.5 * r) * rng.uniform(0.75, 1.15)
            b.append(
                (
                    0.5 + reach * r * np.cos(a),
                    v - 0.25 * reach * r,
                    reach * np.sin(a),
                    rng.uniform(0.002, 0.005) * size,
                    shade,
                    0,
                    np.cos(a) * 0.9,
                    0.35,
                )
            )
    elif kind == "palm":
        lean = rng.uniform(-0.12, 0.12)
        wood([(0.5 + lean * (v / 0.7) ** 2, v) for v in np.linspace(0, 0.72, 90)], 0.014, 1.0)
        for k in range(17):
            a, lift = k * 2.4 + rng.uniform(0, 0.5), rng.uniform(0.05, 0.24)
            for t in np.linspace(0.02, 1, 60):
                u = 0.5 + lean * 1.06 + 0.36 * t * np.cos(a)
                v = 0.73 + lift * t - (lift + 0.2) * t**2.2
                for side in (-1, 1):
                    b.append(
                        (
                            u + side * 0.006,
                            v - 0.035 * (1 - abs(2 * t - 1)) * rng.random(),
                            np.sin(a) * t,
                            0.006 * size,
                            rng.uniform(0.6, 1),
                            0,
                            0.5 * np.cos(a),
                            0.5,
                        )
                    )
    elif kind in ("reed", "tuft"):
        for _ in range(80):
            u0, top = np.clip(rng.normal(0.5, 0.13), 0.15, 0.85), rng.uniform(0.4, 0.97)
            tip, v0 = 0.9 * (u0 - 0.5) + rng.normal(0, 0.09), rng.uniform(0, 0.07)
            tone, depth = rng.uniform(0.55, 1.1), rng.random() + 8 * v0
            for t in np.linspace(0, 1, 34):
                b.append(
                    (
                        u0 + tip * t**2,
                        v0 + top * t * (1 - 0.25 * abs(tip) * t) * 0.92,
                        depth,
                        (0.009 - 0.007 * t) * size,
                        tone * (0.4 + 0.6 * t),
                        0,
                        tip,
                        0.6,
                    )
                )
    return _paint_blobs(size, np.array(b))


def _solid(rng: np.random.Generator, kind: str, tile: np.ndarray, size: int) -> np.ndarray:
    """A boulder or a cumulus cloud from noise: a bulging disc with a torn edge."""
    i, j = rng.integers(0, 380, 2)
    stride = 1 if kind == "rock" else 2
    noise = np.tile(tile[:-1, :-1, 0], (3, 3))[
        i : i + size * stride : stride, j : j + size * stride : stride
    ]
    v, u = np.meshgrid(np.linspace(1, 0, size), np.linspace(-1, 1, size), indexing="ij")
    if kind == "rock":
        body = 1 - (u / 0.8) ** 2 - ((v - 0.05) / 0.8) ** 2 + 0.16 * noise
        alpha = smoothstep(0.0, 0.04, body)
    else:
        towers = 0.45 + 0.35 * np.exp(-(((u - rng.uniform(-0.4, 0.4)) / 0.35) ** 2))
        body = (
            1
            - (u / 0.85) ** 2
            - (np.maximum(v - 0.25, (0.25 - v) * 3.2) / towers) ** 2
            + 0.38 * noise
        )
        alpha = (
            smoothstep(0.0, 0.55, body) * smoothstep(1.0, 0.8, np.abs(u)) * smoothstep(0, 0.1, v)
        )
    if kind == "rock":
        bulge = np.sqrt(np.clip(body, 0.02, 1.5)) + 0.35 * noise
    else:  # light on a cloud follows its billows, not every wisp
        wave = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
        billow = np.fft.irfft2(
            np.fft.rfft2(body) * np.exp(-((wave * size / 10) ** 2)), s=body.shape
        )
        bulge = 0.6 * np.sqrt(np.clip(billow, 0.02, 1.5)) + 0.01 * noise
    gy, gx = np.gradient(bulge, 2.0 / size)
    normal = np.stack([-gx, gy, np.full_like(gx, 1.3)], -1)
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
    shade = np.clip(0.8 + (0.15 if kind == "rock" else 0.02) * noise + 0.25 * (v - 0.4), 0.3, 1.1)
    sprite = np.concatenate(
        [alpha[..., None], shade[..., None], np.zeros((size, size, 1)), normal], -1
    )
    sprite[..., 1:] *= alpha[..., None]
    return sprite.astype("f4")


def make_sprites(rng: np.random.Generator, tile: np.ndarray) -> list[list[list[np.ndarray]]]:
    """Four specimens of each of TREES, each as a pyramid of halved sizes (premultiplied)."""
    families = []
    for kind in TREES:
        family = []
        for _ in range(4):
            solid = kind in ("rock", "cloud")
            level = _solid(rng, kind, tile, 512) if solid else _plant(rng, kind, 256)
            pyramid = [level.astype(np.float16)]
            while len(level) > 4:
                level = level.reshape(len(level) // 2, 2, len(level) // 2, 2, 6).mean((1, 3))
                pyramid.append(level)
            family.append(pyramid)
        families.append(family)
    return families
