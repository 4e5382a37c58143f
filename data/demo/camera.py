"""A camera on the island: light, weather, and the picture with the exact depth of every pixel.

`render(island, camera, when)` is the whole of it: every image column is a vertical plane that cuts
the terrain in a profile; land, sea and sky are then shaded pixel by pixel, and plants, buildings
and clouds painted in front, far ones first. Numpy only; the sun is astral's.
"""

from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from astral import Observer
from astral.sun import azimuth, elevation
from island import (
    LATITUDE,
    LONGITUDE,
    SIZE_M,
    TREE_HEIGHT_M,
    Island,
    bilinear,
    mix,
    smoothstep,
    tiled,
)

FAR_M = 60000.0  # the open sea is drawn to here; also the largest depth stored
SNOW_LINE_M = 1350.0
MIST_M = 110.0  # height in which the morning mist thins to 1/e


@dataclass(frozen=True)
class Camera:
    """Where it stands and how it looks: the optical axis is level, a lens shift moves the horizon.

    `focal` is the focal length in picture widths of the longer side, `horizon` the row of the
    horizon as a fraction of the height (0 = top edge).
    """

    x: float
    y: float
    height: float  # of the lens above the ground
    heading_deg: float
    focal: float = 0.75
    horizon: float = 0.45
    width: int = 640
    rows: int = 480


# ---------------------------------------------------------------- light and weather


@dataclass(frozen=True)
class Light:
    """Sun, sky and air at one moment; colours are linear RGB radiances."""

    sun: np.ndarray  # unit vector towards the sun (east, north, up)
    sun_deg: float
    key: np.ndarray  # unit vector of the strongest light: sun or moon
    key_rgb: np.ndarray
    zenith: np.ndarray
    horizon: np.ndarray
    warm: np.ndarray  # extra glow along the horizon towards the sun
    ambient: np.ndarray
    haze: float  # extinction per metre at sea level of the deep layer
    mist: float  # and of the shallow morning layer
    cover: float  # clouds 0..1
    cirrus: float
    cap: float  # cumulus over the summit 0..1
    lamps: float  # share of lamps and windows lit
    drift: np.ndarray  # position of the cloud sheet (m)
    season: float  # 0 midsummer .. 1 midwinter


_SUN_TABLE = (  # elevation: sun rgb | zenith rgb | horizon rgb | warm rgb
    (-18, (0, 0, 0), (0.0016, 0.0026, 0.0065), (0.003, 0.004, 0.008), (0, 0, 0)),
    (-12, (0, 0, 0), (0.003, 0.006, 0.017), (0.010, 0.014, 0.026), (0.010, 0.005, 0.003)),
    (-6, (0, 0, 0), (0.014, 0.028, 0.075), (0.055, 0.058, 0.095), (0.16, 0.055, 0.018)),
    (-2, (0.02, 0.005, 0.001), (0.045, 0.080, 0.18), (0.17, 0.15, 0.19), (0.60, 0.22, 0.06)),
    (1, (0.75, 0.22, 0.05), (0.075, 0.13, 0.28), (0.33, 0.27, 0.28), (0.95, 0.38, 0.10)),
    (6, (2.1, 1.02, 0.42), (0.10, 0.20, 0.43), (0.52, 0.48, 0.46), (0.75, 0.38, 0.14)),
    (15, (2.9, 2.0, 1.25), (0.11, 0.25, 0.56), (0.62, 0.68, 0.74), (0.30, 0.20, 0.10)),
    (35, (3.1, 2.7, 2.15), (0.11, 0.27, 0.64), (0.62, 0.76, 0.90), (0.08, 0.06, 0.03)),
    (75, (3.3, 3.0, 2.6), (0.10, 0.27, 0.66), (0.60, 0.78, 0.95), (0.02, 0.02, 0.01)),
)


def light_at(when: datetime, seed: int = 1) -> Light:
    """Sun by astronomy; weather by the day's own luck and the island's daily round.

    Mornings are clear and cool with mist in the hollows; heat builds cumulus over the summit in
    the afternoon; evenings are hazier and dustier, so dusk is warmer than dawn.
    """
    observer = Observer(LATITUDE, LONGITUDE)
    height, bearing = elevation(observer, when), np.radians(azimuth(observer, when))
    up = np.radians(height)
    sun = np.array([np.sin(bearing) * np.cos(up), np.cos(bearing) * np.cos(up), np.sin(up)])
    columns = [
        np.array(
            [
                np.interp(height, [r[0] for r in _SUN_TABLE], [r[k][c] for r in _SUN_TABLE])
                for c in range(3)
            ]
        )
        for k in range(1, 5)
    ]
    key_rgb, zenith, horizon, warm = columns
    hour = when.hour + when.minute / 60 + when.second / 3600
    rng = np.random.default_rng([seed, when.toordinal(), 3])
    luck, haze_luck, drift = rng.random(), rng.random(), rng.uniform(0, 12000, 2)
    heat = float(smoothstep(10.5, 15.0, hour) * (1 - smoothstep(19.0, 21.5, hour)))
    late = float(smoothstep(13.0, 18.0, hour))
    early = float(1 - smoothstep(7.0, 11.0, hour))
    # Dust of the day: evening light is more orange, dawn pinker and paler.
    key_rgb = (
        key_rgb
        * mix_rgb((1, 1, 1), (0.92, 0.98, 1.12), early)
        * mix_rgb((1, 1, 1), (1.12, 0.93, 0.66), late)
    )
    warm = warm * mix_rgb((0.62, 0.64, 1.2), (1.35, 0.95, 0.55), late)
    zenith = (
        zenith
        * mix_rgb((1, 1, 1), (0.84, 1.0, 1.22), early)
        * mix_rgb((1, 1, 1), (1.25, 1.02, 0.80), late)
    )
    horizon = (
        horizon
        * mix_rgb((1, 1, 1), (0.92, 1.02, 1.12), early)
        * mix_rgb((1, 1, 1), (1.22, 1.0, 0.74), late)
    )
    key = sun
    if height < -3:  # the moon, high in the south
        key = np.array([0.45, -0.55, 0.70])
        key_rgb = key_rgb + np.array([0.024, 0.028, 0.036])
    ambient = 0.75 * zenith + 0.45 * horizon + 0.12 * warm
    return Light(
        sun=sun.astype("f4"),
        sun_deg=height,
        key=(key / np.linalg.norm(key)).astype("f4"),
        key_rgb=key_rgb.astype("f4"),
        zenith=zenith.astype("f4"),
        horizon=horizon.astype("f4"),
        warm=warm.astype("f4"),
        ambient=ambient.astype("f4"),
        haze=(2.2e-5 + 2.0e-5 * haze_luck**2) * (1 + 1.1 * late + 0.5 * early),
        mist=(0.6 + haze_luck) * 7e-4 * early,
        cover=0.03 + 0.10 * luck**2 + 0.56 * heat * (0.6 + 0.4 * luck),
        cirrus=late * rng.uniform(0.3, 0.7),
        cap=heat * (0.35 + 0.65 * luck),
        lamps=float(smoothstep(1.0, -5.0, height)) * (1.0 if hour > 12 else 0.35),
        drift=(drift + 9.0 * hour * 60).astype("f4"),
        season=float(0.5 + 0.5 * np.cos((when.timetuple().tm_yday - 20) / 365.25 * 2 * np.pi)),
    )


def thin_air(light: Light, height: float) -> Light:
    """The light at a height (m) above the sea: the higher, the deeper the blue of the sky."""
    share = 1 - np.exp(-height / 1800)
    zenith = light.zenith * (1 - share * np.array([0.60, 0.42, 0.16], "f4"))
    horizon = light.horizon * (1 - share * np.array([0.30, 0.16, 0.02], "f4"))
    return replace(light, zenith=zenith.astype("f4"), horizon=horizon.astype("f4"))


def mix_rgb(a, b, share: float) -> np.ndarray:
    """Blend of two colours."""
    return np.array(a) * (1 - share) + np.array(b) * share


def clear_sky(light: Light, rays: np.ndarray) -> np.ndarray:
    """Radiance of the cloudless sky along unit `rays` (P, 3); below the horizon as at it."""
    up = np.clip(rays[:, 2], 0, 1)
    towards = rays @ light.sun
    flat = rays[:, :2] @ (light.sun[:2] / (np.linalg.norm(light.sun[:2]) + 1e-6))
    sky = mix(
        np.broadcast_to(light.horizon, rays.shape),
        np.broadcast_to(light.zenith, rays.shape),
        np.power(up, 0.5) * 0.93 + 0.07 * up,
    )
    glow = np.exp(-up / 0.16) * (0.30 + 0.70 * np.clip(0.5 + 0.5 * flat, 0, 1) ** 3)
    sky = sky + glow[:, None] * light.warm
    halo = (
        0.0035 / (1.0025 - np.clip(towards, -1, 1)) ** 1.05 * np.clip(light.sun_deg / 3 + 1, 0, 1)
    )
    return sky + halo[:, None] * (0.25 * light.key_rgb + 0.25 * light.warm) * (light.sun_deg > -3)


def cloudy_sky(island: Island, light: Light, rays: np.ndarray) -> np.ndarray:
    """The sky with its sheets of cloud, the sun's disc, and stars at night; (P, 3)."""
    sky = clear_sky(light, rays)
    up = np.clip(rays[:, 2], 0, 1)
    towards = rays @ light.sun
    if light.sun_deg > -1.2:
        sky = sky + (smoothstep(0.99993, 0.99997, towards) * 25)[:, None] * (light.key_rgb + 0.05)
    if light.sun_deg < -7:
        u, v = (rays[:, 0] / (1 + up)) * 420, (rays[:, 1] / (1 + up)) * 420
        star = island.hash[u.astype(int) & 255, v.astype(int) & 255]
        spot = np.hypot(u % 1 - 0.3 - 0.4 * star[:, 1], v % 1 - 0.3 - 0.4 * star[:, 2])
        shine = (star[:, 0] > 0.982) * np.exp(-((spot / 0.16) ** 2)) * star[:, 3] ** 2
        sky = (
            sky
            + (shine * smoothstep(0.03, 0.25, up) * smoothstep(-7, -13, light.sun_deg))[:, None]
            * 0.16
        )
    reach = 1900.0 / (up + 0.05)
    x, y = rays[:, 0] * reach + light.drift[0], rays[:, 1] * reach + light.drift[1]
    lit_rgb = 0.42 * light.key_rgb * (light.sun_deg > -3) + 1.0 * light.ambient + 0.35 * light.warm
    dark_rgb = 0.55 * light.ambient + 0.08 * light.warm
    fade = smoothstep(0.015, 0.16, up)
    if light.cirrus > 0.02:
        veil = tiled(island.clouds[..., :1], x * 0.35 + 0.2 * y, y * 1.3, 45.0)[:, 0]
        sky = mix(
            sky, lit_rgb * 0.9 + 0 * sky, smoothstep(0.1, 2.2, veil) * fade * light.cirrus * 0.8
        )
    broad = tiled(island.clouds[..., :1], x, y, 9.0)[:, 0]
    torn = tiled(island.fine[..., :1], x, y, 13.0)[:, 0]
    body = broad + 0.16 * torn
    edge = 1.75 - 2.3 * light.cover
    alpha = smoothstep(edge, edge + 0.55, body) * fade
    step = light.key[:2] * 260
    ahead = tiled(island.clouds[..., :1], x + step[0], y + step[1], 9.0)[:, 0]
    bright = np.clip(0.62 + 0.9 * (broad - ahead) - 0.28 * (body - edge) + 0.1 * torn, 0, 1)
    silver = np.clip(towards, 0, 1) ** 12 * (1 - alpha) * 1.2
    cloud = mix(np.broadcast_to(dark_rgb, sky.shape), np.broadcast_to(lit_rgb, sky.shape), bright)
    cloud = cloud * (1 + silver[:, None])
    return mix(sky, cloud.astype("f4"), alpha * 0.95)


def veil_depth(light: Light, eye: float, height: np.ndarray, distance: np.ndarray) -> tuple:
    """Optical depth of haze and of mist between the eye and points at `height` and `distance`."""
    depths = []
    for density, scale in ((light.haze, 1400.0), (light.mist, 80.0)):
        a, b = max(eye, 0.0) / scale, np.maximum(height, 0) / scale
        rise = b - a
        rise = np.where(np.abs(rise) < 1e-3, 1e-3, rise)
        depths.append(density * distance * np.clip((np.exp(-a) - np.exp(-b)) / rise, 0, 1))
    return depths[0], depths[1]


# ---------------------------------------------------------------- rendering


class _View:
    """One photograph in the making: the camera's geometry and the profile of every column."""

    def __init__(self, island: Island, camera: Camera, light: Light):
        self.island, self.camera, self.light = island, camera, light
        self.focal = camera.focal * max(camera.width, camera.rows)
        a = np.radians(camera.heading_deg)
        self.forward = np.array([np.sin(a), np.cos(a)])
        self.right = np.array([np.cos(a), -np.sin(a)])
        self.eye = max(float(island.ground(camera.x, camera.y)), 0.0) + camera.height
        self.horizon_row = camera.horizon * camera.rows
        near = np.geomspace(0.8, 2000, 380)
        self.z = np.concatenate([near, np.arange(2000 + 30, 15500, 30)]).astype("f4")
        self.columns = ((np.arange(camera.width) + 0.5) - camera.width / 2) / self.focal
        self._profile()
        self.sunlit = self._cast_relief()
        low = np.stack(
            [
                self.forward[0] + self.columns * self.right[0],
                self.forward[1] + self.columns * self.right[1],
                0.04 + 0 * self.columns,
            ],
            1,
        )
        self.air = (
            clear_sky(light, (low / np.linalg.norm(low, axis=1, keepdims=True)).astype("f4")) * 0.93
        )

    def _profile(self) -> None:
        """Tangent of elevation of the ground at every step of every column, and its running max."""
        z, t = self.z[None], self.columns[:, None].astype("f4")
        x = self.camera.x + z * (self.forward[0] + t * self.right[0]).astype("f4")
        y = self.camera.y + z * (self.forward[1] + t * self.right[1]).astype("f4")
        near = int(np.searchsorted(self.z, 1500))
        height = np.empty(x.shape, "f4")
        height[:, near:] = self.island._at(
            self.island.heights, self.island.spacing, x[:, near:], y[:, near:]
        )[..., 0]
        height[:, :near] = self.island.ground(
            x[:, :near], y[:, :near], z[:, :near] / self.focal * 3
        )
        # Far forests are part of the relief; nearer trees are painted one by one.
        part = slice(int(np.searchsorted(self.z, 150)), int(np.searchsorted(self.z, 5000)))
        c, n = self.island.cover_spacing, len(self.island.cover)
        i = np.clip((x[:, part] + SIZE_M / 2) / c, 0, n - 1).astype(np.int32)
        j = np.clip((y[:, part] + SIZE_M / 2) / c, 0, n - 1).astype(np.int32)
        crown = tiled(self.island.crowns[..., :1], x[:, part], y[:, part], 0.9)[..., 0]
        rise = np.take(self.island.canopy.ravel(), j * n + i) * crown
        rise *= smoothstep(170, 280, self.z[part]) * (1 - smoothstep(2000, 4500, self.z[part]))
        height[:, part] += rise
        self.tangent = ((np.maximum(height, 0) - self.eye) / z).astype("f8")
        self.tops = np.maximum.accumulate(self.tangent, axis=1)

    def hit(self, column: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        """Depth z (m along the optical axis) where rays meet land or sea; inf for the sky."""
        steps = len(self.z)
        keys = (np.clip(self.tops, -90, 90) + 200.0 * np.arange(len(self.columns))[:, None]).ravel()
        k = np.searchsorted(keys, tangent + 200.0 * column) - column * steps
        inside = np.clip(k, 1, steps - 1)
        before, after = self.tangent[column, inside - 1], self.tangent[column, inside]
        share = np.clip((tangent - before) / np.where(after > before, after - before, 1), 0, 1)
        z = self.z[inside - 1] + share * (self.z[inside] - self.z[inside - 1])
        z = np.where(k <= 0, self.z[0], z)
        with np.errstate(divide="ignore"):
            sea = np.where(
                tangent < 0, np.minimum(self.eye / -np.minimum(tangent, -1e-9), FAR_M), np.inf
            )
        return np.where(k >= steps, sea, z)

    def shade(self, column: np.ndarray, tangent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Colours (P, 3) and depth (P,) of rays given by their column and tangent of elevation."""
        t = self.columns[column]
        flat = self.forward[None] + t[:, None] * self.right[None]
        rays = np.concatenate([flat, tangent[:, None]], 1).astype("f4")
        length = np.linalg.norm(rays, axis=1)
        rays /= length[:, None]
        z = self.hit(column, tangent)
        sky = ~np.isfinite(z)
        colour = np.empty((len(z), 3), "f4")
        if sky.any():
            colour[sky] = self._veiled_sky(rays[sky], column[sky])
        ground = ~sky
        if ground.any():
            zg = z[ground].astype("f4")
            x = (self.camera.x + zg * flat[ground, 0]).astype("f4")
            y = (self.camera.y + zg * flat[ground, 1]).astype("f4")
            height = (self.eye + zg * tangent[ground]).astype("f4")
            base = self.island._at(self.island.terrain, self.island.spacing, x, y)
            far = (np.abs(x) > SIZE_M / 2 - 50) | (np.abs(y) > SIZE_M / 2 - 50)
            wet = ((base[:, 0] <= 0) & (height < 0.6)) | far
            distance = zg * length[ground]
            lit = np.empty((len(zg), 3), "f4")
            if wet.any():
                depth = np.where(far[wet], -60, base[wet, 0])
                lit[wet] = self._sea(x[wet], y[wet], depth, rays[ground][wet], distance[wet])
            dry = ~wet
            if dry.any():
                lit[dry] = self._land(x[dry], y[dry], height[dry], base[dry], zg[dry])
            colour[ground] = self._veil(lit, column[ground], height, distance)
        return colour, z

    def _veiled_sky(self, rays: np.ndarray, column: np.ndarray) -> np.ndarray:
        sky = cloudy_sky(self.island, self.light, rays)
        mist = (
            self.light.mist
            * MIST_M
            * np.exp(-max(self.eye, 0) / MIST_M)
            / np.maximum(rays[:, 2], 0.03)
        )
        return mix(sky, np.take(self.air, column, 0), 1 - np.exp(-mist))

    def _veil(self, lit, column, height, distance) -> np.ndarray:
        haze, mist = veil_depth(self.light, self.eye, height, distance)
        air = np.take(self.air, column, 0)
        # Thin haze is bluer than the horizon, as it scatters blue first.
        blue = np.array([0.75, 0.95, 1.25], "f4")
        thick = 1 - np.exp(-(haze[:, None] * blue + mist[:, None])).astype("f4")
        return lit * (1 - thick) + air * thick

    def _cast_relief(self) -> np.ndarray:
        """Share of direct light on the coarse grid, (n, n, 1): mountains and clouds in its way."""
        key, island = self.light.key, self.island
        flat = float(np.hypot(key[0], key[1])) + 1e-6
        ux, uy, rise = key[0] / flat, key[1] / flat, key[2] / flat
        ground, c, n = island.coarse, island.cover_spacing, len(island.coarse)
        open_ = np.ones((n, n), "f4")
        for step in np.geomspace(50, 6000, 20):
            i, j = round(float(ux * step / c)), round(float(uy * step / c))
            here = (slice(max(0, -j), n - max(0, j)), slice(max(0, -i), n - max(0, i)))
            there = (slice(max(0, j), n + min(0, j)), slice(max(0, i), n + min(0, i)))
            gap = ground[here] - ground[there] + np.float32(rise * step + 5)
            gap *= np.float32(1 / (0.06 * step + 8))
            open_[here] = np.minimum(open_[here], np.clip(gap + 0.5, 0, 1))
        axis = ((np.arange(n) + 0.5) * c - SIZE_M / 2).astype("f4")
        lift = 1500 / max(float(key[2]), 0.1)
        x, y = np.meshgrid(
            axis + key[0] * lift + self.light.drift[0], axis + key[1] * lift + self.light.drift[1]
        )
        broad = tiled(island.clouds[..., :1], x, y, 9.0)[..., 0]
        edge = 1.75 - 2.3 * self.light.cover
        return (open_ * (1 - 0.75 * smoothstep(edge - 0.1, edge + 0.5, broad)))[..., None]

    def _sun_reaches(self, x, y) -> np.ndarray:
        """Share of direct light at points (P,)."""
        return self.island._at(self.sunlit, self.island.cover_spacing, x, y)[..., 0]

    def _land(self, x, y, height, base, z) -> np.ndarray:
        """Radiance of ground: soil, grass, forest, fields, sand, snow, in sun and shade."""
        island, light = self.island, self.light
        footprint = z / self.focal
        cover = self._cover_at(x, y)
        a = tiled(island.tile, x, y, 1.7)
        grit = tiled(island.fine[..., :1], x, y, 2.3)[:, 0] * (
            1 - 0.6 * smoothstep(3, 14, footprint)
        )
        b, c = np.zeros((len(x), 3), "f4"), np.zeros(len(x), "f4")
        near = np.flatnonzero(footprint < 1.5)
        b[near] = tiled(island.tile, y[near], x[near], 0.11)
        near = np.flatnonzero(footprint < 0.12)
        c[near] = tiled(island.fine[..., :1], x[near], y[near], 0.03)[:, 0]
        c *= 1 - smoothstep(0.02, 0.12, footprint)
        crags, bumps = island._relief(base, footprint * 3)
        sharp = 0.5 + 0.5 * (1 - smoothstep(0.25, 1.2, footprint))
        gx = base[:, 1] + crags * a[:, 1] / 1.7 * sharp + bumps * b[:, 2] / 0.11
        gy = base[:, 2] + crags * a[:, 2] / 1.7 * sharp + bumps * b[:, 1] / 0.11
        steep = np.hypot(base[:, 1], base[:, 2])
        slope = 0.75 * steep + 0.25 * np.hypot(gx, gy)
        fleck = 0.35 * b[:, 0] * (1 - smoothstep(0.3, 1.5, footprint)) + 0.45 * c + 0.45 * grit
        grass, soil, rock, sand = cover[:, :3], cover[:, 3:6], cover[:, 6:9], cover[:, 9:12]
        dry = cover[:, 17] * (1 - 0.45 * light.season)
        green = grass * np.clip(1 + 0.12 * a[:, 0] + 0.28 * fleck, 0.4, 2)[:, None]
        bare = smoothstep(-0.2, 0.9, 0.55 * a[:, 0] + 0.7 * fleck + 1.5 * dry - 0.75)
        albedo = mix(green, soil * np.clip(1 + 0.25 * fleck, 0.4, 2)[:, None], bare)
        albedo = self._fields(albedo, cover, x, y, fleck)
        strata = np.sin(height * 0.16 + 1.6 * a[:, 0]) * np.sin(height * 0.043 + 0.8 * a[:, 0])
        stone = np.clip(1 + 0.30 * fleck + 0.16 * a[:, 0] + 0.16 * strata, 0.3, 2)
        albedo = mix(
            albedo,
            rock * stone[:, None],
            smoothstep(0.50, 0.80, slope + 0.08 * a[:, 0] + 0.12 * fleck),
        )
        woods = smoothstep(0.25, 0.6, cover[:, 15] + 0.03 * a[:, 0]) * (
            1 - smoothstep(0.95, 1.3, slope)
        )
        gx, gy, albedo = self._forest(x, y, z, woods, grass, soil, fleck, gx, gy, albedo)
        beach = smoothstep(4.5, 2.0, base[:, 0] + 0.5 * a[:, 0]) * smoothstep(0.35, 0.2, steep)
        damp = 0.62 + 0.38 * smoothstep(0.05, 0.7, base[:, 0])
        albedo = mix(albedo, sand * (damp * (1 + 0.08 * fleck))[:, None], beach)
        line = SNOW_LINE_M - 300 * light.season + 90 * a[:, 0] + 60 * fleck
        snow = smoothstep(line, line + 160, height) * smoothstep(1.05, 0.75, slope + 0.15 * fleck)
        white = np.array([0.82, 0.85, 0.90], "f4") * (1 + 0.03 * fleck)[:, None]
        albedo = mix(albedo, white, snow)
        damped = 1 - 0.6 * snow
        normal = np.stack([-gx * damped, -gy * damped, np.ones_like(gx)], 1)
        normal /= np.sqrt((normal**2).sum(1, keepdims=True))
        return self._lit(np.clip(albedo, 0.005, 1), normal, x, y, z)

    def _cover_at(self, x, y) -> np.ndarray:
        """Soils and plants at points, (P, 18): each takes one of the four cells around at random.

        On average that is the bilinear blend, at a fifth of the cost.
        """
        c, n = self.island.cover_spacing, len(self.island.cover)
        jitter = np.random.default_rng(5).random((2, len(x)), dtype=np.float32) - 0.5
        i = np.clip((x + SIZE_M / 2) / c + jitter[0], 0, n - 1).astype(np.int32)
        j = np.clip((y + SIZE_M / 2) / c + jitter[1], 0, n - 1).astype(np.int32)
        return np.take(self.island.cover.reshape(n * n, -1), j * n + i, 0, mode="clip")

    def _forest(self, x, y, z, woods, grass, soil, fleck, gx, gy, albedo):
        """Forest floor nearby, crowns farther off: changes the slopes and the albedo."""
        here = np.flatnonzero(woods > 0.01)
        if len(here) == 0:
            return gx, gy, albedo
        share, grass, fleck = woods[here], grass[here], fleck[here]
        far = smoothstep(150, 280, z[here])
        crown = tiled(self.island.crowns, x[here], y[here], 0.9)
        detail = 1 - smoothstep(2.0, 9.0, z[here] / self.focal)
        leaf = 0.36 * grass + np.array([0.008, 0.018, 0.005], "f4")
        tone = (
            0.30
            + 0.85 * (crown[:, 0] * detail + 0.5 * (1 - detail))
            + 0.5 * (crown[:, 3] - 0.5) * detail
        )
        leaf = leaf * np.clip(tone + 0.25 * fleck, 0.15, 2)[:, None]
        litter = (0.22 * soil[here] + 0.28 * grass) * np.clip(1 + 0.35 * fleck, 0.3, 2)[:, None]
        albedo[here] = mix(albedo[here], mix(litter, leaf, far), share)
        gx[here] += share * far * detail * crown[:, 1] * 4.5
        gy[here] += share * far * detail * crown[:, 2] * 4.5
        return gx, gy, albedo

    @staticmethod
    def _fields(albedo, cover, x, y, fleck) -> np.ndarray:
        """Patchwork of crops where `cover` says farmland."""
        farm = cover[:, 16]
        here = np.flatnonzero(farm > 0.15)
        if len(here) == 0:
            return albedo
        u, v = 0.8 * x[here] + 0.6 * y[here], 0.8 * y[here] - 0.6 * x[here]
        u, v = u + 14 * np.sin(v / 110), v + 16 * np.sin(u / 150)
        i, j = np.floor(u / 95), np.floor(v / 62)
        pick = np.modf(np.abs(np.sin(i * 12.9898 + j * 78.233) * 437.5453))[0]
        crops = np.array(
            [
                (0.13, 0.19, 0.05),
                (0.42, 0.32, 0.12),
                (0.24, 0.12, 0.06),
                (0.20, 0.22, 0.08),
                (0.09, 0.14, 0.05),
            ],
            "f4",
        )
        crop = crops[(pick * 5).astype(int) % 5] * (0.85 + 0.3 * np.modf(pick * 37)[0])[:, None]
        furrow = np.sin(v * 2.2) * 0.08
        edge = np.minimum(
            np.minimum(u - i * 95, (i + 1) * 95 - u), np.minimum(v - j * 62, (j + 1) * 62 - v)
        )
        crop = crop * np.clip(1 + 0.4 * fleck[here] + furrow, 0.4, 2)[:, None]
        crop = mix(
            np.array([[0.035, 0.07, 0.02]], "f4") + 0 * crop, crop, smoothstep(0.8, 2.2, edge)
        )
        out = albedo.copy()
        out[here] = mix(albedo[here], crop.astype("f4"), smoothstep(0.2, 0.45, farm[here]))
        return out

    def _lit(self, albedo, normal, x, y, z) -> np.ndarray:
        light = self.light
        facing = np.clip(normal @ light.key, 0, 1)
        direct = facing * self._sun_reaches(x, y)
        under = self._tree_shade(x, y, z)
        direct *= under
        sky = 0.55 + 0.45 * normal[:, 2]
        ambient = (sky * (0.6 + 0.4 * under))[:, None] * light.ambient
        bounce = (1 - normal[:, 2])[:, None] * 0.05 * light.key_rgb * max(light.key[2], 0)
        return albedo * (direct[:, None] * light.key_rgb + ambient + bounce)

    def _tree_shade(self, x, y, z) -> np.ndarray:
        """1 in the open, less in the shadow of the trees near the camera (from their raster)."""
        out = np.ones(len(x), "f4")
        near = np.flatnonzero(z < 240)
        if len(near) == 0:
            return out
        key = self.light.key
        flat = float(np.hypot(key[0], key[1])) + 1e-6
        rise = max(float(key[2]) / flat, 0.2)  # longer shadows are too faint to see
        px, py = (
            x[near] - np.float32(self.camera.x - 256),
            y[near] - np.float32(self.camera.y - 256),
        )
        blur = np.random.default_rng(6).random((2, len(near)), dtype=np.float32) - 0.5
        px, py = px + 0.7 * blur[0], py + 0.7 * blur[1]
        shaded = np.zeros(len(near), bool)
        for step in np.geomspace(0.4, 42, 15):
            i = (2 * px + np.float32(2 * key[0] / flat * step)).astype(np.int32)
            j = (2 * py + np.float32(2 * key[1] / flat * step)).astype(np.int32)
            shaded |= np.take(self.raster.ravel(), j * 1024 + i, mode="clip") > step * rise
        out[near] -= 0.84 * shaded
        return out

    def _sea(self, x, y, depth, rays, distance) -> np.ndarray:
        """Radiance of water: sky and sun mirrored by waves, the bottom shining through, surf."""
        island, light = self.island, self.light
        rows = distance / self.focal
        swell = tiled(island.tile, x, y + light.drift[0], 0.9)
        chop = tiled(island.tile, y, x, 0.16)
        graze = np.clip(-rays[:, 2], 0.004, 1)
        fade_swell = 1 - smoothstep(0.5, 5.0, rows / graze**0.5)
        fade_chop = 1 - smoothstep(0.05, 0.5, rows / graze**0.5)
        nx = 0.55 * swell[:, 1] * fade_swell + 0.30 * chop[:, 2] * fade_chop
        ny = 0.55 * swell[:, 2] * fade_swell + 0.30 * chop[:, 1] * fade_chop
        normal = np.stack([-nx, -ny, np.ones_like(nx)], 1)
        normal /= np.linalg.norm(normal, axis=1, keepdims=True)
        facing = np.clip(-np.einsum("ij,ij->i", rays, normal), 0.03, 1)
        mirror = 0.02 + 0.75 * (1 - np.maximum(facing, 0.12)) ** 5
        bounce = rays + 2 * facing[:, None] * normal
        bounce[:, 2] = np.abs(bounce[:, 2]) + 0.05
        bounce /= np.linalg.norm(bounce, axis=1, keepdims=True)
        sky = clear_sky(light, bounce)
        cover = island._at(island.cover[..., 9:15], island.cover_spacing, x, y)
        clear = np.exp(np.minimum(depth, 0)[:, None] * np.array([0.30, 0.11, 0.12], "f4"))
        down = light.key_rgb * max(light.key[2], 0) * 0.55 + light.ambient
        body = mix(
            np.array([[0.006, 0.035, 0.065]], "f4") + 0 * sky,
            cover[:, 3:] * 0.8,
            np.exp(np.minimum(depth, 0) / 7.0),
        )
        body = (body * (1 - clear) + cover[:, :3] * 0.75 * clear) * down
        colour = mix(body, sky, mirror)
        half = light.sun[None] - rays
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        tilt = (half / np.maximum(half[:, 2:], 0.02))[:, :2] + np.stack([nx, ny], 1)
        spread = 0.010 + 0.030 * (1 - fade_swell) + 0.02 * (1 - fade_chop)
        glint = np.exp(-np.clip((tilt**2).sum(1) / spread, 0, 60)) / spread * 0.02
        shine = np.clip(light.sun_deg / 2 + 0.8, 0, 1)
        colour = colour + (glint * mirror * 5 * shine)[:, None] * light.key_rgb
        lines = np.sin(depth * 5.0 + 3.0 * swell[:, 0] + 1.2 * chop[:, 0] * fade_chop)
        surf = smoothstep(-2.2, -0.15, depth) * smoothstep(0.2, 0.9, lines + 0.4 * swell[:, 0])
        surf = np.maximum(surf, smoothstep(-0.28, -0.05, depth + 0.1 * chop[:, 0] * fade_chop))
        caps = smoothstep(2.6, 3.2, swell[:, 0] + 0.5 * chop[:, 0]) * 0.6 * fade_swell
        foam = np.clip(surf * 0.85 + caps, 0, 1)
        white = 0.75 * (light.ambient + 0.5 * light.key_rgb * max(light.key[2], 0.05))
        return mix(colour, white + 0 * colour, foam).astype("f4")

    # -------- things that stand on the ground

    def plants(self) -> dict:
        """Trees, shrubs, tufts and boulders near the camera: arrays of position, kind and size."""
        island, camera = self.island, self.camera
        parts = []
        for layer, (pitch, reach) in enumerate(((5.5, 250.0), (2.3, 48.0), (0.62, 13.0))):
            low = np.floor(np.array([camera.x - reach, camera.y - reach]) / pitch).astype(int)
            count = int(2 * reach / pitch) + 1
            i, j = np.meshgrid(low[0] + np.arange(count), low[1] + np.arange(count))
            r = island.hash[(j + 37 * layer) & 255, i & 255].reshape(-1, 6)
            x = ((i.ravel() + 0.1 + 0.8 * r[:, 0]) * pitch).astype("f4")
            y = ((j.ravel() + 0.1 + 0.8 * r[:, 1]) * pitch).astype("f4")
            dx, dy = x - camera.x, y - camera.y
            z = dx * self.forward[0] + dy * self.forward[1]
            side = dx * self.right[0] + dy * self.right[1]
            room = (0.5 * camera.width / self.focal) * np.abs(z) + 8
            # Trees beside and behind the camera are kept for their shadows.
            keep = np.hypot(dx, dy) < reach
            keep &= (np.abs(side) < room) & (z > (1.2, 1.5, 1.0)[2 - layer]) if layer else True
            x, y, z, r = x[keep], y[keep], z[keep], r[keep]
            parts.append(self._grow(layer, x, y, z, r))
        return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

    def _grow(self, layer, x, y, z, r) -> dict:
        island = self.island
        base = island._at(island.terrain, island.spacing, x, y)
        cover = island._at(island.cover, island.cover_spacing, x, y)
        share = np.cumsum(island._at(island.trees, island.cover_spacing, x, y), -1)
        slope = np.hypot(base[:, 1], base[:, 2])
        kind = np.clip((share < r[:, 2:3]).sum(1), 0, 5)
        height = base[:, 0]
        if layer == 0:
            grows = (
                (r[:, 3] < smoothstep(0.05, 0.7, cover[:, 15]) * 0.9) & (height > 3) & (slope < 1.1)
            )
            kind = np.where((height > 700) & (kind < 4), 1, kind)
            grows &= np.hypot(x - self.camera.x, y - self.camera.y) > 15
        elif layer == 1:
            scrub = 0.05 + 0.25 * cover[:, 15] + 0.10 * cover[:, 17]
            stones = (
                0.03 + 0.30 * smoothstep(0.3, 0.9, slope) + 0.10 * smoothstep(900, 1300, height)
            )
            rocky = r[:, 4] < stones / (stones + scrub)
            grows = (r[:, 3] < stones + scrub) & (height > 2.5) & (rocky | (height < 1500))
            kind = np.where(rocky, 7, np.where(kind == 5, 5, 4))
        else:
            grows = (
                (r[:, 3] < 0.75 - 0.55 * cover[:, 17])
                & (height > 4.5)
                & (height < 1450)
                & (slope < 0.8)
            )
            grows &= cover[:, 16] < 0.3
            kind = np.full(len(x), 6)
        size = np.take(TREE_HEIGHT_M, kind) * (0.6 + 0.8 * r[:, 5])
        size = size * np.where(kind < 4, 1 - 0.55 * smoothstep(800, 1400, height), 1)
        tint = cover[:, :3] * (0.75 + 0.5 * r[:, 4:5])
        tint[kind < 4] = 0.55 * tint[kind < 4] + np.array([0.018, 0.021, 0.006])
        tint[kind == 7] = cover[kind == 7, 6:9] * (0.8 + 0.4 * r[kind == 7, 4:5])
        fields = {
            "x": x,
            "y": y,
            "z": z,
            "kind": kind,
            "size": size,
            "tint": tint,
            "pick": (r[:, 5] * 97 % 1 * 8).astype(int),
        }
        chosen = {k: v[grows] for k, v in fields.items()}
        chosen["base"] = island.ground(chosen["x"], chosen["y"], chosen["z"] / self.focal * 3)
        return chosen

    def cast_shadows(self, plants: dict) -> None:
        """Raster of crowns around the camera, 0.5 m a cell: height above ground, 0 for none."""
        self.raster = np.zeros((1024, 1024), "f4")
        tall = np.flatnonzero(plants["size"] > 1.0)
        x = ((plants["x"][tall] - self.camera.x + 256) * 2).astype(int)
        y = ((plants["y"][tall] - self.camera.y + 256) * 2).astype(int)
        size, inside = plants["size"][tall], (x > 8) & (x < 1015) & (y > 8) & (y < 1015)
        for dx in range(-6, 7):
            for dy in range(-6, 7):
                away = 0.5 * np.hypot(dx, dy)
                fits = inside & (away <= size * 0.26)
                self.raster[y[fits] + dy, x[fits] + dx] = size[fits] * (1 - 0.16 * away)

    def paint(self, colour: np.ndarray, depth: np.ndarray, plants: dict) -> None:
        """Draw faces, plants and summit clouds into the picture, far ones first."""
        items = self._visible_plants(plants, depth) + [(puff[0], 2, puff) for puff in self._puffs()]
        centre = self.island.face_centre
        offset = centre[:, :2] - [self.camera.x, self.camera.y]
        z, side = offset @ self.forward, offset @ self.right
        seen = (z > 2) & (np.abs(side) < z * 0.5 * self.camera.width / self.focal + 25)
        pixels = self.island.face_reach / np.maximum(z, 1) * self.focal
        # By day a window is worth drawing from a few pixels on; what hills hide is not drawn.
        seen &= pixels > np.where(self.island.face_glass & (self.light.lamps < 0.02), 3.5, 1.5)
        where = np.flatnonzero(seen)
        u = side[where] / z[where] * self.focal + self.camera.width / 2
        v = self.horizon_row - (centre[where, 2] - self.eye) / z[where] * self.focal
        u = np.clip(u, 0, self.camera.width - 1).astype(int)
        v = np.clip(v, 0, self.camera.rows - 1).astype(int)
        seen[where] = (depth[v, u] > z[where] - 30) | (pixels[where] > 25)
        lit = self._sun_reaches(centre[:, 0], centre[:, 1])
        items += [(float(z[k]), 1, k) for k in np.flatnonzero(seen)]
        items.sort(key=lambda item: -item[0])
        for _, what, k in items:
            if what == 0:
                self._stamp(colour, depth, *k)
            elif what == 1:
                self._fill(colour, depth, *self.island.faces[k], float(lit[k]))
            else:
                self._stamp_cloud(colour, depth, *k)

    def _visible_plants(self, plants: dict, depth: np.ndarray) -> list:
        """The plants in front of the ground seen behind them: (depth, 0, what _stamp needs)."""
        width, rows = self.camera.width, self.camera.rows
        z = np.maximum(plants["z"], 0.5)
        dx, dy = plants["x"] - self.camera.x, plants["y"] - self.camera.y
        pixels = plants["size"] / z * self.focal
        centre = (dx * self.right[0] + dy * self.right[1]) / z * self.focal + width / 2
        foot = (
            self.horizon_row - (plants["base"] - 0.04 * plants["size"] - self.eye) / z * self.focal
        )
        seen = (plants["z"] > 1) & (pixels > 2.5) & (pixels < 900)
        seen &= (centre + pixels / 2 > 0) & (centre - pixels / 2 < width)
        seen &= (foot > 0) & (foot - pixels < rows)
        column = np.clip(centre, 0, width - 1).astype(int)
        open_ = np.zeros(len(z), bool)
        for share in (0.1, 0.5, 0.95):
            open_ |= depth[np.clip(foot - share * pixels, 0, rows - 1).astype(int), column] > z
        lit = self._sun_reaches(plants["x"], plants["y"])
        haze, mist = veil_depth(self.light, self.eye, plants["base"] + plants["size"] / 2, z)
        veil = 1 - np.exp(-(haze + mist))
        chosen = np.flatnonzero(seen & open_)
        keys = zip(
            *(
                v[chosen].tolist()
                for v in (z, centre, foot, pixels, plants["kind"], plants["pick"], lit, veil)
            ),
            plants["tint"][chosen].astype("f4"),
            strict=True,
        )
        return [(key[0], 0, key) for key in keys]

    def _puffs(self) -> list:
        """Cumulus that the day's heat gathers over the heights: depth, side, up, size, specimen."""
        if self.light.cap < 0.05:
            return []
        top = np.unravel_index(np.argmax(self.island.coarse), self.island.coarse.shape)
        c = self.island.cover_spacing
        centre = np.array([(top[1] + 0.5) * c, (top[0] + 0.5) * c]) - SIZE_M / 2
        r = self.island.hash[int(self.light.drift[0]) & 255, :16]
        out = []
        for k in range(int(3 + 11 * self.light.cap)):
            x, y = (
                centre + (r[k, :2] - 0.5) * (2200 + 3200 * r[k, 4]) - [self.camera.x, self.camera.y]
            )
            z = x * self.forward[0] + y * self.forward[1]
            size = (700 + 900 * r[k, 2]) * (0.5 + 0.6 * self.light.cap)
            if z > 1300:
                out.append(
                    (
                        float(z),
                        float(x * self.right[0] + y * self.right[1]),
                        float(1350 + 700 * r[k, 3] + 150 * self.light.cap - self.eye),
                        float(size),
                        k % 4,
                    )
                )
        return out

    def _window(self, left, top, size, shape):
        """Pixel box of a square sprite and the indices into a pyramid level of `shape` cells."""
        x0, x1 = max(0, int(np.floor(left))), min(self.camera.width, int(np.ceil(left + size)))
        y0, y1 = max(0, int(np.floor(top))), min(self.camera.rows, int(np.ceil(top + size)))
        if x0 >= x1 or y0 >= y1:
            return None
        i = np.clip(((np.arange(x0, x1) + 0.5 - left) * (shape / size)).astype(int), 0, shape - 1)
        j = np.clip(((np.arange(y0, y1) + 0.5 - top) * (shape / size)).astype(int), 0, shape - 1)
        return x0, x1, y0, y1, i, j

    def _relight(self, cells, tint, wood, sun_share, mirror=1):
        """Radiance of sprite cells (h, w, 6), which are premultiplied by their alpha."""
        light = self.light
        key = np.array(
            [mirror * (light.key[:2] @ self.right), light.key[2], -(light.key[:2] @ self.forward)],
            "f4",
        )
        flat = cells / np.maximum(cells[..., :1], 1e-3)
        facing = np.clip(0.25 + 0.75 * (flat[..., 3:] @ key), 0.03, 1)[..., None]
        base = tint + (wood - tint) * flat[..., 2:3]
        base *= flat[..., 1:2]
        sky = 0.6 + 0.4 * flat[..., 4:5]
        return base * (
            facing * (np.float32(1.15 * sun_share) * light.key_rgb) + sky * light.ambient
        )

    def _stamp(
        self, colour, depth, z, centre, foot, pixels, kind, pick, sun_share, veil, tint
    ) -> None:
        """Paint one plant or boulder whose foot stands at pixel (centre, foot)."""
        pyramid = self.island.sprites[kind][pick % 4]
        level = pyramid[int(np.clip(np.round(np.log2(512 / pixels)), 0, len(pyramid) - 1))]
        box = self._window(centre - pixels / 2, foot - pixels, pixels, len(level))
        if box is None:
            return
        x0, x1, y0, y1, i, j = box
        if pick >= 4:
            i = len(level) - 1 - i
        cells = level[j[:, None], i[None]].astype("f4", copy=False)
        alpha = cells[..., 0] * (depth[y0:y1, x0:x1] > z)
        if not alpha.any():
            return
        paint = self._relight(
            cells, tint, np.array([0.10, 0.07, 0.05], "f4"), sun_share, -1 if pick >= 4 else 1
        )
        paint *= 1 - veil
        paint += self.air[min(max(int(centre), 0), len(self.air) - 1)] * veil
        patch = colour[y0:y1, x0:x1]
        patch += alpha[..., None] * (paint - patch)
        depth[y0:y1, x0:x1][alpha > 0.5] = z

    def _veil_one(self, paint, z, height):
        haze, mist = veil_depth(self.light, self.eye, np.array([height]), np.array([z]))
        thick = float(1 - np.exp(-(haze[0] + mist[0])))
        return paint * (1 - thick) + self.air[len(self.air) // 2] * thick

    def _stamp_cloud(self, colour, depth, z, side, up, size, pick) -> None:
        pixels = size / z * self.focal
        centre, middle = (
            side / z * self.focal + self.camera.width / 2,
            self.horizon_row - up / z * self.focal,
        )
        pyramid = self.island.sprites[8][pick]
        level = pyramid[int(np.clip(np.floor(np.log2(512 / max(pixels, 1))), 0, 5))]
        box = self._window(centre - pixels / 2, middle - pixels * 0.6, pixels, len(level))
        if box is None:
            return
        x0, x1, y0, y1, _, _ = box
        scale = len(level) / pixels
        i = (np.arange(x0, x1) + 0.5 - centre + pixels / 2) * scale - 0.5
        j = (np.arange(y0, y1) + 0.5 - middle + pixels * 0.6) * scale - 0.5
        cells = bilinear(level.astype("f4", copy=False), *np.meshgrid(i, j))
        soft = np.clip((depth[y0:y1, x0:x1] - z) / 500 + 0.5, 0, 1)
        alpha = cells[..., :1] * soft[..., None] * 0.9
        paint = self._relight(cells, np.array([0.62, 0.62, 0.64], "f4"), np.zeros(3, "f4"), 0.75)
        paint = self._veil_one(paint + 0.10 * self.light.warm, z, 1500)
        patch = colour[y0:y1, x0:x1]
        patch += alpha * (paint - patch)

    def _fill(self, colour, depth, vertices, albedo, glow, sun_share) -> None:
        """Draw one convex face with soft edges against the depth buffer."""
        offset = vertices - np.array([self.camera.x, self.camera.y, self.eye], "f4")
        z = offset[:, :2] @ self.forward
        if z.min() < 0.8:
            return
        u = offset[:, :2] @ self.right / z * self.focal + self.camera.width / 2
        v = self.horizon_row - offset[:, 2] / z * self.focal
        x0, x1 = (
            int(max(0, np.floor(u.min() - 1))),
            int(min(self.camera.width, np.ceil(u.max() + 1))),
        )
        y0, y1 = (
            int(max(0, np.floor(v.min() - 1))),
            int(min(self.camera.rows, np.ceil(v.max() + 1))),
        )
        if x0 >= x1 or y0 >= y1:
            return
        px, py = np.arange(x0, x1)[None] + 0.5, np.arange(y0, y1)[:, None] + 0.5
        du, dv = np.roll(u, -1) - u, np.roll(v, -1) - v
        sign = np.sign((u * np.roll(v, -1) - np.roll(u, -1) * v).sum()) or 1.0
        inside = np.full((y1 - y0, x1 - x0), np.inf)
        for a, b, c, d in zip(u, v, du, dv, strict=True):
            inside = np.minimum(
                inside, sign * ((py - b) * c - (px - a) * d) / (np.hypot(c, d) + 1e-9)
            )
        inverse = self._inverse_depth(u, v, 1 / z, px, py)
        seen = inverse * 1.004 > 1 / depth[y0:y1, x0:x1]
        alpha = np.clip(inside + 0.5, 0, 1) * seen
        normal = np.cross(vertices[1] - vertices[0], vertices[2] - vertices[0])
        normal = normal / (np.linalg.norm(normal) + 1e-9)
        normal = normal * (1 if normal @ offset[0] < 0 else -1)
        light, middle = self.light, vertices.mean(0)
        sun = float(np.clip(normal @ light.key, 0, 1)) * sun_share
        paint = albedo * (sun * light.key_rgb + (0.6 + 0.4 * normal[2]) * light.ambient)
        if glow and light.lamps > 0.02:
            paint = paint + np.array([0.75, 0.42, 0.15]) * 0.45 * light.lamps
        paint = self._veil_one(paint, float(z.mean()), middle[2])
        patch = colour[y0:y1, x0:x1]
        patch += alpha[..., None] * (paint - patch)
        depth[y0:y1, x0:x1] = np.where(alpha > 0.5, 1 / inverse, depth[y0:y1, x0:x1])

    @staticmethod
    def _inverse_depth(u, v, inverse, px, py) -> np.ndarray:
        """Inverse depth of a plane at pixels, from three of its corners (it is affine there)."""
        a, b = (u[1] - u[0], v[1] - v[0]), (u[2] - u[0], v[2] - v[0])
        area = a[0] * b[1] - a[1] * b[0]
        if abs(area) < 1e-3:
            return np.full((len(py), px.shape[1]), inverse.mean())
        d1, d2 = inverse[1] - inverse[0], inverse[2] - inverse[0]
        du, dv = (d1 * b[1] - d2 * a[1]) / area, (d2 * a[0] - d1 * b[0]) / area
        plane = inverse[0] + du * (px - u[0]) + dv * (py - v[0])
        return np.clip(plane, inverse.min(), inverse.max())

    def shine(self, colour, depth) -> None:
        """Add the glow of lamps and lit windows."""
        if self.light.lamps < 0.03:
            return
        lamps = self.island.lamps
        offset = lamps[:, :3] - np.array([self.camera.x, self.camera.y, self.eye], "f4")
        z, side = offset[:, :2] @ self.forward, offset[:, :2] @ self.right
        on = (z > 3) & (
            self.island.hash[3, np.arange(len(lamps)) & 255, 0] < self.light.lamps + 0.15
        )
        for k in np.flatnonzero(on):
            u = side[k] / z[k] * self.focal + self.camera.width / 2
            v = self.horizon_row - offset[k, 2] / z[k] * self.focal
            i, j = int(u), int(v)
            if (
                not (0 <= i < self.camera.width and 0 <= j < self.camera.rows)
                or depth[j, i] < z[k] * 0.985
            ):
                continue
            power = lamps[k, 6] * (self.focal / z[k]) ** 2 * 0.05 * self.light.lamps
            for radius, share in (
                (0.8 + 0.12 * self.focal / z[k], 1.0),
                (5 + 0.5 * self.focal / z[k], 0.06),
            ):
                r = int(3 * radius) + 1
                x0, x1, y0, y1 = (
                    max(0, i - r),
                    min(self.camera.width, i + r + 1),
                    max(0, j - r),
                    min(self.camera.rows, j + r + 1),
                )
                far = (np.arange(x0, x1)[None] + 0.5 - u) ** 2 + (
                    np.arange(y0, y1)[:, None] + 0.5 - v
                ) ** 2
                peak = min(2.5, power / radius**2 + 0.02) * share
                colour[y0:y1, x0:x1] += (peak * np.exp(-far / radius**2))[..., None] * lamps[k, 3:6]


def _film_curve() -> np.ndarray:
    """8-bit sRGB of linear light in steps of 1/512 up to 8; ACES curve as fitted by Narkowicz."""
    x = (np.arange(8 * 512) + 0.5) / 512 * 0.85
    filmic = x * (2.51 * x + 0.03) / (x * (2.43 * x + 0.59) + 0.14)
    return (np.clip(filmic, 0, 1) ** (1 / 2.2) * 255 + 0.5).astype(np.uint8)


_CURVE = _film_curve()


def expose(colour: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Develop linear radiance to 8-bit sRGB as a small camera does; also the exposure factor."""
    luminance = colour @ np.array([0.21, 0.72, 0.07], "f4")
    mean = float(np.exp(np.log(luminance + 1e-4).mean()))
    gain = 0.235 / (mean + 0.020) * 2 ** rng.normal(0, 0.12)
    rows, width = luminance.shape
    v, u = np.meshgrid(np.linspace(-1, 1, rows), np.linspace(-1, 1, width), indexing="ij")
    falloff = (1 - 0.14 * (u**2 + v**2) * rng.uniform(0.6, 1.3)).astype("f4")
    balance = np.exp(np.array([1, 0, -1]) * rng.normal(0, 0.015)).astype("f4")
    x = colour * (gain * falloff[..., None] * balance)
    x += 0.16 * (
        (x @ np.array([0.21, 0.72, 0.07], "f4"))[..., None] - x
    )  # film is never pure green
    grain = 0.004 + 0.012 * np.clip(np.log2(gain) / 4, 0, 1.5)
    x = x + rng.standard_normal(x.shape, dtype=np.float32) * grain * np.sqrt(np.maximum(x, 0.004))
    return np.take(_CURVE, (np.clip(x, 0, 7.99) * 512).astype(np.int32), mode="clip"), gain


def render(
    island: Island, camera: Camera, when: datetime, noise_seed: int = 0
) -> tuple[np.ndarray, np.ndarray, float]:
    """Take a photograph: RGB (rows, width, 3) uint8, depth (rows, width) float32, exposure gain.

    Depth is metres along the optical axis, exact where a pixel shows one thing; sky = inf.
    """
    light = light_at(when, island.seed)
    height = max(float(island.ground(camera.x, camera.y)), 0.0) + camera.height
    view = _View(island, camera, thin_air(light, height))
    plants = view.plants()
    view.cast_shadows(plants)
    rows, width = camera.rows, camera.width
    tangents = (view.horizon_row - (np.arange(rows) + 0.5)) / view.focal
    column = np.broadcast_to(np.arange(width)[None], (rows, width)).ravel()
    tangent = np.broadcast_to(tangents[:, None], (rows, width)).ravel()
    colour, depth = view.shade(column, tangent)
    colour, depth = colour.reshape(rows, width, 3), depth.reshape(rows, width)
    # Pixels on an outline are sampled three times.
    inverse = 1 / depth
    jump = np.abs(np.diff(inverse, axis=0)) > 0.25 * np.minimum(inverse[1:], inverse[:-1]) + 1e-7
    edge = np.zeros((rows, width), bool)
    edge[1:] |= jump
    edge[:-1] |= jump
    edge = np.flatnonzero(edge)
    if len(edge) > rows * width // 20:  # a forest is all outline: some of it will do
        edge = edge[:: len(edge) // (rows * width // 20) + 1]
    if len(edge):
        total = colour.reshape(-1, 3)[edge].copy()
        for shift in (-0.33, 0.33):
            total += view.shade(column[edge], tangent[edge] + shift / view.focal)[0]
        colour.reshape(-1, 3)[edge] = total / 3
    depth = depth.astype("f4")
    view.paint(colour, depth, plants)
    view.shine(colour, depth)
    photo, gain = expose(colour, np.random.default_rng([island.seed, noise_seed, 11]))
    return photo, depth, gain
