"""Plots: what stands beside their axes can be read, whatever the errors are."""

import numpy as np
import pytest
from conftest import make_photos

from geophoto import plots


def model_of(photos, away_km: np.ndarray) -> tuple:
    """One model whose answers lie so far east of the truth."""
    step = away_km / 111.195 / np.cos(np.radians(photos.lat))
    answers = {"lat": photos.lat, "lon": photos.lon + step, "minutes": photos.minutes,
               "altitude": photos.altitude}  # fmt: skip
    found = {"answers": answers, "trivial": answers, "knn_errors": {"gps": away_km}}
    return found, photos, np.zeros(len(photos), int)


def figure_of(monkeypatch, draw, *arguments):
    """The figure that a plot would save, drawn."""
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: kept.append(figure) or path)
    draw(*arguments)
    kept[0].canvas.draw()
    return kept[0]


@pytest.mark.parametrize(
    ("low", "high"), [(0.2, 0.9), (0.5, 3.0), (0.01, 5.0), (1e-3, 1e-3), (0.001, 15_000.0)]
)
def test_distances_are_never_powers_of_ten(monkeypatch, tmp_path, low, high):
    photos = make_photos(60, lat=np.full(60, 46.0), lon=np.full(60, 7.0))
    models = {"rgb": model_of(photos, np.geomspace(low, high, 60))}
    axis = figure_of(monkeypatch, plots.plot_position_errors, models, tmp_path).axes[0]
    left, right = axis.get_xlim()
    ticks = axis.xaxis.get_ticklabels(which="both")
    texts = [t.get_text() for t in ticks if left <= t.get_position()[0] <= right and t.get_text()]
    assert texts and all(text.endswith("m") for text in texts), texts
    assert not any("10^" in text or "×" in text for text in texts)


def test_a_far_photo_leaves_the_map_full_and_is_told(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)
    lat, lon = np.append(rng.normal(80, 0.01, 40), -60.0), np.append(rng.normal(7, 0.01, 40), -90.0)
    photos = make_photos(41, lat=lat, lon=lon)
    axis = figure_of(
        monkeypatch, plots.plot_map, {"rgb": model_of(photos, np.full(41, 0.5))}, tmp_path
    ).axes[0]
    south, north = axis.get_ylim()
    assert 79.9 < south < 80 < north < 80.1 and "1 photos lie outside" in axis.get_title()


def test_a_world_of_photos_ends_at_the_poles(monkeypatch, tmp_path):
    photos = make_photos(3, lat=np.array([85.0, -85.0, 0.0]), lon=np.array([0.0, 120.0, -120.0]))
    axis = figure_of(
        monkeypatch, plots.plot_map, {"rgb": model_of(photos, np.full(3, 100.0))}, tmp_path
    ).axes[0]
    assert axis.get_ylim() == (-90.0, 90.0)
