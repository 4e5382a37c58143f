"""Views, kernels and clusters of places; the density page in a browser without network."""

import json

import numpy as np
import pytest
from conftest import faults, opened, quietly
from PIL import Image

import density
from geophoto import maps


def town(count=60, km=1.0, lat=46.0, lon=7.0, seed=0):
    rng = np.random.default_rng(seed)
    step = km / maps.KM_PER_DEGREE
    return lat + rng.normal(0, step, count), lon + rng.normal(0, step, count)


# ---------------------------------------------------------------- views


def test_one_far_photo_changes_neither_view_nor_kernel():
    lat, lon = town()
    far_lat, far_lon = np.append(lat, -33.0), np.append(lon, 151.0)
    assert maps.in_view(lat, lon).all()
    assert maps.in_view(far_lat, far_lon).tolist() == [True] * 60 + [False]
    usual, with_far = maps.kernel_km(lat, lon), maps.kernel_km(far_lat, far_lon)
    assert with_far == pytest.approx(usual, rel=0.1) and 0.1 < usual < 1
    home = maps.map_options(far_lat, far_lon)["home"]
    assert maps.extent_km(home) < 20


def test_two_towns_are_both_in_view_and_two_clusters():
    here, there = town(40), town(20, lat=48.0, lon=11.0, seed=1)
    lat, lon = (np.concatenate(pair) for pair in zip(here, there, strict=True))
    assert maps.in_view(lat, lon).all()
    width = maps.kernel_km(lat, lon)
    assert width < 3  # an extent of 380 km
    found = maps.clusters(lat, lon, width)
    assert [len(rows) for rows in found] == [40, 20]
    assert set(found[0].tolist()) == set(range(40))


@pytest.mark.parametrize("lat", [[89.99, -89.99], [89.9, 89.95], [0.0, 0.0], [46.0, 46.0001]])
def test_boxes_hold_their_places_and_end_at_the_poles(lat):
    lat, lon = np.array(lat), np.array([179.0, 181.0])
    for box in (maps.box_around(lat, lon), maps.squared(maps.box_around(lat, lon))):
        south, west, north, east = box
        assert -90 <= south <= lat.min() <= lat.max() <= north <= 90
        assert west <= 179 and east >= 181 and maps.extent_km(box) >= 0.2


@pytest.mark.parametrize("across", [0.1, 0.9, 3.0, 47.0, 800.0])
def test_scale_is_round_and_about_a_quarter(across):
    km = maps.scale_km(across)
    assert across / 10 <= km <= across / 4
    assert f"{km:.0e}"[0] in "125"


def test_date_line_cuts_nothing():
    assert maps.unwrapped(np.array([179.0, -179.0, 0.0]), 180.0).tolist() == [179.0, 181.0, 0.0]


def test_land_lies_where_land_is():
    """Against places that everybody knows; even–odd rule over all rings."""

    def is_land(lat, lon):
        inside = False
        for rings in maps.coastline():
            for ring in rings:
                x, y = np.array(ring).T
                for turn in (-360, 0, 360):
                    a, b = x[:-1] + turn, x[1:] + turn
                    crosses = (y[:-1] > lat) != (y[1:] > lat)
                    with np.errstate(divide="ignore", invalid="ignore"):
                        at = a + (lat - y[:-1]) * (b - a) / (y[1:] - y[:-1])
                    inside ^= bool((crosses & (at > lon)).sum() % 2)
        return inside

    for place in (
        (46.5, 7.5),
        (55.7, 37.6),
        (-25.0, 134.0),
        (-80.0, 0.0),
        (67.0, 179.0),
        (40.0, -100.0),
    ):
        assert is_land(*place), place
    for place in ((0.0, -30.0), (40.0, 180.0), (-16.5, -150.0), (-60.0, 0.0), (75.0, -150.0)):
        assert not is_land(*place), place


def test_data_in_a_page_cannot_end_its_element():
    evil = "</script><script>alert(1)</script>\u2028&"
    text = maps.embed({"name": evil})
    assert "<" not in text and "&" not in text and "\u2028" not in text
    assert json.loads(text)["name"] == evil
    with pytest.raises(ValueError):
        maps.embed([float("nan")])


@pytest.mark.parametrize("width", [0.1, 1.0, 300.0])
def test_density_of_merged_photos_is_that_of_each(width):
    lat, lon = town(400, 3.0)
    at_lat, at_lon = town(300, 4.0, seed=5)
    found = maps.density_at(lat, lon, at_lat, at_lon, width)
    exact = density.density_per_km2(lat, lon, at_lat, at_lon, width)
    seen = exact > exact.max() / 1000  # what a map shows
    assert found[seen] == pytest.approx(exact[seen], rel=0.05, abs=exact.max() / 100)


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def page_file(photo_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("density")
    (folder / "exif_data.json").write_bytes((photo_set.data / "exif_data.json").read_bytes())
    code, printed = quietly(
        density.main, "--data-dir", folder, "--image-dir", photo_set.data / "images"
    )
    assert code == 0 and "49 positions" in printed, printed
    assert Image.open(folder / "density.png").size[0] > 600
    return folder / "density.html"


def test_density_page_is_hovered_brushed_and_asks_for_nothing(browser, page_file):
    with opened(browser, page_file) as page:
        assert "Kernel" in page.inner_text("#heat")
        x, y = page.evaluate(
            """() => { const box = map.svg.getBoundingClientRect(), i = 40;
               return [box.left + map.sx(map.x[i]), box.top + map.sy(map.y[i])]; }"""
        )
        page.mouse.move(x, y)
        seen = page.evaluate("map.active")
        assert page.evaluate(f"data.name[{seen}]") in page.inner_text(".tip")
        assert page.locator(".tip img").count() == 1
        page.mouse.move(5, 5)
        box = page.locator("#map svg[role]").bounding_box()
        page.mouse.move(box["x"] + 1, box["y"] + 1)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] - 1, steps=2)
        page.mouse.up()
        lon = page.evaluate("data.lon")
        border = page.evaluate("map.lonAt(map.width / 2)")
        wanted = sum(one < border for one in lon)
        assert 0 < wanted < 49
        assert page.inner_text("#count") == f"{wanted} of 49 photos selected"
        page.click("#clear")
        assert page.inner_text("#count") == "All 49 photos"


@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (1280, "dark")])
def test_density_page_fits_and_has_no_serious_fault(browser, page_file, width, scheme):
    with opened(browser, page_file, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        painted = page.evaluate(
            """() => { const c = map.canvas, all = [0, 0, c.width, c.height];
               const pixels = c.getContext("2d").getImageData(...all).data;
               return pixels.filter((v, i) => i % 4 === 3 && v > 0).length; }"""
        )
        assert painted > 50
        page.emulate_media(media="print")  # colours and photos still lie on each other
        ratios = page.evaluate(
            """() => [map.stage.clientWidth / map.stage.clientHeight, map.width / map.height]"""
        )
        assert ratios[0] == pytest.approx(ratios[1], rel=0.02)
        page.emulate_media(media="screen")
        assert faults(page) == []
