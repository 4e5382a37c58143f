"""Models that may be given away: no position, time or name of a training photo is in them.

In: a checkpoint and where its training photos were taken. Out: the same without its gallery, and
with a centre that is none of these places.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

import density
from geophoto.archives import save
from geophoto.checkpoints import read_checkpoint, write_twin
from geophoto.targets import Normalisation, decode_gps, encode_gps

APART_KM = 1.5  # of the centre from every training photo, at least
FARTHEST_KM = 200.0  # that it is moved


def without_gallery(content: dict, lat: np.ndarray, lon: np.ndarray) -> dict:
    """The public part of a checkpoint without its gallery, for training photos at (N,) degrees.

    The densities are those fitted without one. The centre of the positions, which can be a photo's
    own, moves away from all of them, and the position head with it: its answers stay.
    """
    old = Normalisation(**content["normalisation"])
    new = Normalisation(**{**content["normalisation"], **free_centre(old, lat, lon)})
    weights = dict(content["model"])
    turn, shift = between_frames(old, new)
    layer, bias = weights["heads.gps.weight"], weights["heads.gps.bias"]
    weights["heads.gps.weight"] = (turn @ layer.double()).to(layer.dtype)
    weights["heads.gps.bias"] = (turn @ bias.double() + shift).to(bias.dtype)
    return {
        **content,
        "model": weights,
        "normalisation": vars(new),
        "gallery": None,
        "densities": content["densities_alone"] or content["densities"],
        "densities_alone": None,
        "settings": {**content["settings"], "gallery": False},
    }


def free_centre(scale: Normalisation, lat: np.ndarray, lon: np.ndarray) -> dict[str, float]:
    """The place nearest to the centre that lies APART_KM from all positions, of a raster around it;
    where these fill FARTHEST_KM, the one farthest from them."""
    known = np.isfinite(lat)
    places = density.unit_vectors(lat[known], lon[known])
    centre = density.unit_vectors(scale.centre_lat, scale.centre_lon)
    start = Normalisation(**{**vars(scale), "spread_km": 1.0})
    best, widest = centre, -1.0
    angle = np.radians(np.arange(0, 360, 15.0))
    around = np.stack([np.sin(angle), np.cos(angle)], axis=1)
    for away in np.arange(0.0, FARTHEST_KM, APART_KM / 3):
        tried = decode_gps(torch.from_numpy(away * around), start).numpy()
        nearest = (tried @ places.T).argmax(axis=1) if len(places) else None
        apart = np.inf if nearest is None else density.arc_km(tried, places[nearest])
        apart = np.broadcast_to(apart, len(tried))
        if apart.max() > widest:
            best, widest = tried[apart.argmax()], float(apart.max())
        if widest >= APART_KM:
            break
    lat0, lon0 = density.lat_lon(best)
    return {"centre_lat": round(float(lat0), 3), "centre_lon": round(float(lon0), 3)}


def between_frames(old: Normalisation, new: Normalisation) -> tuple[torch.Tensor, torch.Tensor]:
    """Matrix (2, 2) and shift (2,) that turn offsets around the old centre into those around the
    new one; exact there, and to the square of the move elsewhere."""
    step = 1e-3
    tried = torch.tensor([[0.0, 0.0], [step, 0.0], [0.0, step]], dtype=torch.float64)
    lat, lon = density.lat_lon(decode_gps(tried, old).numpy())
    found = torch.from_numpy(encode_gps(lat, lon, new))
    return ((found[1:] - found[0]) / step).T, found[0]


def strip(path: Path) -> Path:
    """Write a copy of a model that may be given away, beside it; returns its file."""
    content = read_checkpoint(path, with_private=False)
    target = path.with_name(f"{path.stem}_shared.pth")
    if content["gallery"] is not None:
        if content["densities_alone"] is None:
            density.stop(f"{path} has no densities without its gallery: train again")
        content = without_gallery(content, content["gallery"]["lat"], content["gallery"]["lon"])
    save(target, content)
    write_twin(target, content)
    return target
