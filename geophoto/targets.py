"""Labels ↔ the numbers that a network learns, and the losses between them.

In: Photos. Out: targets of order one, and answers decoded from outputs: degrees, minutes, metres.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

import density
from geophoto.photos import Photos

if TYPE_CHECKING:
    import torch

MINUTES_PER_DAY = 1440
LENGTHS = (0.1, 0.9)  # of time's answers that are believed: a regression can leave the circle
USUAL = 240.0  # minutes of scatter
HEADS = ("gps", "time", "orientation", "altitude", "sun")

# ---------------------------------------------------------------- circle


def time_point(minutes: np.ndarray) -> np.ndarray:
    """Minutes of the day → points (..., 2) = (cos, sin) on the unit circle."""
    angle = np.asarray(minutes, float) * (2 * np.pi / MINUTES_PER_DAY)
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def point_minutes(points: np.ndarray) -> np.ndarray:
    """Points (..., 2) of any length → minutes of the day, 0 ≤ m < 1440."""
    angle = np.arctan2(points[..., 1], points[..., 0])
    return (angle * (MINUTES_PER_DAY / (2 * np.pi))) % MINUTES_PER_DAY


def breadth(points: np.ndarray) -> np.ndarray:
    """How broad a density around the times of points (..., 2) should be, 1 where they scatter by
    USUAL minutes.

    A mean of points on the circle is the shorter the more they scatter: its length tells their
    circular standard deviation (Mardia & Jupp 2000, eq. 2.3.14). Of that the root: lengths that a
    regression guesses differ more than scatters do.
    """
    length = np.linalg.norm(points, axis=-1).clip(*LENGTHS)
    scatter = np.sqrt(-2 * np.log(length)) * (MINUTES_PER_DAY / (2 * np.pi))
    return np.sqrt(scatter / USUAL)


def minutes_apart(a: ArrayLike, b: ArrayLike) -> np.ndarray:
    """Circular distance of two times of day in minutes, at most 720."""
    return np.abs(
        (np.asarray(a) - np.asarray(b) + MINUTES_PER_DAY / 2) % MINUTES_PER_DAY
        - MINUTES_PER_DAY / 2
    )


def sun_height(degrees: np.ndarray) -> np.ndarray:
    """Sine of the sun's elevation: its height above the horizon, -1..1."""
    return np.sin(np.radians(degrees))


# ---------------------------------------------------------------- normalisation


@dataclasses.dataclass
class Normalisation:
    """What turns labels into targets of order one and outputs back, fitted on training photos."""

    centre_lat: float
    centre_lon: float
    spread_km: float  # root mean square distance to the centre
    altitude_median: float
    altitude_scale: float  # m; the target is asinh((altitude − median) / scale), standardised
    altitude_mean: float
    altitude_std: float
    altitude_limit: float  # largest |asinh| seen, so that sinh cannot run away
    orientation_prior: list[float]  # share of each class among the stored files
    sun_known: bool = True  # whether any photo taught its elevation

    @classmethod
    def fit(cls, photos: Photos) -> Normalisation:
        lat, lon = photos.lat[photos.placed], photos.lon[photos.placed]
        lat0, lon0 = density.geographic_median(lat, lon) if len(lat) else (0.0, 0.0)
        apart = density.distance_km(lat, lon, lat0, lon0)
        metres = photos.altitude[np.isfinite(photos.altitude)]
        median, scale = 0.0, 1.0
        squeezed = np.zeros(1)
        if len(metres):
            median = float(np.median(metres))
            quarter, three = np.percentile(metres, [25, 75])
            scale = max(float(three - quarter), 1.0)
            squeezed = np.arcsinh((metres - median) / scale)
        counts = np.bincount(np.maximum(photos.orientation, 0), minlength=6) + 0.5  # no tag: Normal
        return cls(
            centre_lat=lat0,
            centre_lon=lon0,
            spread_km=max(float(np.sqrt((apart**2).mean())) if len(lat) else 1.0, 1e-3),
            altitude_median=median,
            altitude_scale=scale,
            altitude_mean=float(squeezed.mean()),
            altitude_std=max(float(squeezed.std()), 1e-3),
            altitude_limit=float(np.abs(squeezed).max()) + 0.2,
            orientation_prior=(counts / counts.sum()).tolist(),
            sun_known=bool(np.isfinite(photos.sun).any()),
        )

    @property
    def centre(self) -> np.ndarray:
        """Unit vector (3,) of the geographic median of the training photos."""
        return density.unit_vectors(self.centre_lat, self.centre_lon)

    def altitude_target(self, metres: ArrayLike) -> np.ndarray:
        squeezed = np.arcsinh((np.asarray(metres) - self.altitude_median) / self.altitude_scale)
        return (squeezed - self.altitude_mean) / self.altitude_std

    def altitude_m(self, output: np.ndarray) -> np.ndarray:
        squeezed = np.asarray(output, float) * self.altitude_std + self.altitude_mean
        squeezed = np.clip(squeezed, -self.altitude_limit, self.altitude_limit)
        return self.altitude_median + self.altitude_scale * np.sinh(squeezed)


def targets_of(photos: Photos, normalisation: Normalisation) -> dict[str, torch.Tensor]:
    """Targets per photo, NaN (or class -1) where the label is missing."""
    import torch

    return {
        "point": torch.from_numpy(density.unit_vectors(photos.lat, photos.lon)),
        "time": torch.from_numpy(time_point(photos.minutes)).float(),
        "altitude": torch.from_numpy(normalisation.altitude_target(photos.altitude)).float(),
        "sun": torch.from_numpy(sun_height(photos.sun)).float(),
        "tag": torch.from_numpy(photos.orientation),
    }


def encode_gps(lat: np.ndarray, lon: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """The inverse of decode_gps: degrees → (east, north) offsets (N, 2) in units of the spread."""
    centre = normalisation.centre_lat, normalisation.centre_lon
    away = density.distance_km(*centre, lat, lon) / normalisation.spread_km
    angle = np.radians(density.bearing_deg(*centre, lat, lon))
    return np.stack([away * np.sin(angle), away * np.cos(angle)], axis=-1)


def decode_gps(output: torch.Tensor, normalisation: Normalisation) -> torch.Tensor:
    """(east, north) offsets (B, 2) in units of the spread → unit vectors (B, 3), float64.

    Inverse azimuthal-equidistant projection (Snyder 1987, p. 195) in vector form: it has neither
    a pole nor a seam, and its value and gradient are finite at (0, 0).
    """
    import torch

    lat0, lon0 = math.radians(normalisation.centre_lat), math.radians(normalisation.centre_lon)
    centre = density.unit_vectors(normalisation.centre_lat, normalisation.centre_lon)
    east = np.array([-math.sin(lon0), math.cos(lon0), 0.0])
    north = np.array(
        [-math.sin(lat0) * math.cos(lon0), -math.sin(lat0) * math.sin(lon0), math.cos(lat0)]
    )
    frame = torch.from_numpy(np.stack([east, north])).to(output.device)
    offset = output.double() * (normalisation.spread_km / density.EARTH_RADIUS_KM)
    angle = (offset.square().sum(1, keepdim=True) + 1e-30).sqrt()
    sideways = torch.sinc(angle / math.pi) * (offset @ frame)
    return torch.from_numpy(centre).to(output.device) * torch.cos(angle) + sideways


def decode(prediction: dict, normalisation: Normalisation) -> dict[str, np.ndarray]:
    """Raw outputs of the heads → lat, lon (deg), minutes, altitude (m), the sun's elevation (deg;
    NaN where it was never learned: it has no density that could be absent)."""
    import torch

    height = prediction["sun"].astype(float)
    if not normalisation.sun_known:
        height = np.full_like(height, np.nan)
    place = decode_gps(torch.from_numpy(prediction["gps"]), normalisation)
    lat, lon = density.lat_lon(place.numpy())
    return {
        "lat": lat,
        "lon": lon,
        "minutes": point_minutes(prediction["time"]),
        "altitude": normalisation.altitude_m(prediction["altitude"]),
        "sun": np.degrees(np.arcsin(np.clip(height, -1, 1))),
    }


# ---------------------------------------------------------------- losses


def great_circle_km(u: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Distance of unit vectors (B, 3) in km with finite gradients from 0 to the antipode."""
    import torch

    def norm(difference: torch.Tensor) -> torch.Tensor:
        return (difference.square().sum(-1) + 1e-24).sqrt()

    return 2 * density.EARTH_RADIUS_KM * torch.atan2(norm(u - v), norm(u + v))


def labelled(target: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Which photos of a batch teach each head, (B,) bool."""
    import torch

    return {
        "gps": torch.isfinite(target["point"][:, 0]),
        "time": torch.isfinite(target["time"][:, 0]),
        "orientation": target["view"] >= 0,
        "altitude": torch.isfinite(target["altitude"]),
        "sun": torch.isfinite(target["sun"]),
    }


def head_losses(
    output: dict[str, torch.Tensor],
    target: dict[str, torch.Tensor],
    normalisation: Normalisation,
) -> dict[str, tuple[torch.Tensor, int]]:
    """Per head the summed loss over the labelled photos of a batch, and their number.

    gps: great-circle km / spread; time: squared chord on the unit circle; altitude: squared
    error of the standardised asinh; sun: squared error of the sine; orientation: cross-entropy of
    the view shown.
    """
    from torch.nn import functional as F

    known = labelled(target)
    placed, timed, viewed = known["gps"], known["time"], known["orientation"]
    point = decode_gps(output["gps"][placed], normalisation)
    away = great_circle_km(point, target["point"][placed]) / normalisation.spread_km
    per_head = {
        "gps": away,
        "time": (output["time"][timed].float() - target["time"][timed]).square().mean(1),
        "orientation": F.cross_entropy(
            output["orientation"][viewed].float(), target["view"][viewed], reduction="none"
        ),
    }
    for head in ("altitude", "sun"):
        off = output[head][known[head]].float() - target[head][known[head]]
        per_head[head] = off.square()
    return {head: (loss.sum(), len(loss)) for head, loss in per_head.items()}
