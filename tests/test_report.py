"""The report in a browser without network: hover, brush, sort, filter; small screens, print."""

import csv
import itertools
import json
import re

import numpy as np
import pytest
from conftest import faults, make_photos, opened

from geophoto.maps import KM_PER_DEGREE
from geophoto.report_data import names_shown
from geophoto.thumbnails import MOST

PAPER, WHITE = "getComputedStyle(document.body).backgroundColor", "rgb(255, 255, 255)"


@pytest.fixture(scope="module")
def report(evaluation):
    return evaluation[0] / "report.html"


@pytest.fixture(scope="module")
def truth(evaluation) -> dict:
    """Rows of predictions.csv by model and file name."""
    with open(evaluation[0] / "predictions.csv", newline="", encoding="utf-8") as file:
        return {(row["model"], row["filename"]): row for row in csv.DictReader(file)}


def best_model(report) -> str:
    return json.loads(embedded(report, "data"))["best"]


def embedded(report, name: str) -> str:
    page = report.read_text(encoding="utf-8")
    return re.search(rf'id="{name}">(.*?)</script>', page, re.S)[1]


def names_in_gallery(page) -> list[str]:
    return page.eval_on_selector_all("#gallery button", "all => all.map((b) => b.title)")


def show_map(page) -> None:
    page.locator("#map svg[role]").scroll_into_view_if_needed()
    page.wait_for_timeout(150)  # the scrolling itself closes what is open


def show_all(page) -> None:
    while page.locator("#more").is_visible():
        page.click("#more")


# ---------------------------------------------------------------- without a browser


def test_the_page_brings_everything_along(report):
    data, pictures = (json.loads(embedded(report, name)) for name in ("data", "thumbnails"))
    assert data["models"] == ["rgb", "depth"] and len(data["photos"]["name"]) == 48
    assert len(pictures) == 48 and all(one.startswith("data:image/webp") for one in pictures)
    assert report.stat().st_size < 48 * 6_000_000 / 500 + 400_000


def test_the_first_lines_answer_six_questions(report):
    page = report.read_text(encoding="utf-8").replace("\u00a0", " ")
    first = re.sub(r"<[^>]+>", " ", page.split("<main>")[1].split("The photos that fail most")[0])
    lead = page.split('<p class="lead">')[1].split("</p>")[0]
    assert "48 held-out photos in" in lead and "groups" in lead and "taken 20" in lead
    for said in ("half of 48 photos", "nearest neighbours by", "95 % interval", "luck"):
        assert said in first, said
    for said in ("Does depth help?", "Which photos fail?", "outside their own 90 % radius"):
        assert said in first, said


def test_method_names_table_models_split_and_versions(report, trained):
    page = report.read_text(encoding="utf-8")
    for name in ("rgb", "depth"):
        twin = trained.checkpoints / f"best_gps_model_{name}.json"
        assert json.loads(twin.read_text(encoding="utf-8"))["sha256"] in page
    assert "exif_data.json, sha256" in page and "torch 2." in page and "folds 3" in page


# ---------------------------------------------------------------- in a browser


def test_hover_shows_picture_answers_and_truth(browser, report, truth):
    with opened(browser, report) as page:
        show_map(page)
        i, x, y = page.evaluate(
            """() => { const box = map.svg.getBoundingClientRect(), i = 5;
               return [i, box.left + map.sx(map.gx[i]), box.top + map.sy(map.gy[i])]; }"""
        )
        page.mouse.move(x, y)
        seen = page.evaluate("map.active")  # another answer may lie at the same place
        apart = f"Math.hypot(map.gx[{seen}] - map.gx[{i}], map.gy[{seen}] - map.gy[{i}])"
        assert page.evaluate(f"{apart} * map.k") < 16
        tip = page.locator(".tip")
        assert tip.is_visible() and tip.locator("img").get_attribute("src").startswith("data:")
        name = page.evaluate(f"photos.name[{seen}]")
        row, text = truth[best_model(report), name], tip.inner_text()
        assert name in text and f"true {row['true_time']}" in text
        assert f"{float(row['true_latitude']):.4f}° N" in text
        assert f"{float(row['latitude']):.4f}° N" in text
        assert page.locator(".active .radius").count() == 2
        page.keyboard.press("Escape")
        assert not tip.is_visible()


def drag(page, share: float) -> None:
    """Draw a box over the left part of the map."""
    box = page.locator("#map svg[role]").bounding_box()
    page.mouse.move(box["x"] + 2, box["y"] + 2)
    page.mouse.down()
    page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] - 2, steps=3)
    page.mouse.up()


def test_brush_filters_charts_and_gallery(browser, report, truth):
    model = best_model(report)
    lon = {name: float(row["true_longitude"]) for (m, name), row in truth.items() if m == model}
    with opened(browser, report) as page:
        show_map(page)
        border = page.evaluate("map.lonAt(map.width * 0.5)")
        drag(page, 0.5)
        wanted = {name for name, value in lon.items() if value < border}
        assert 0 < len(wanted) < 48
        assert page.inner_text("#selection").startswith(f"{len(wanted)} photos selected")
        show_all(page)
        assert set(names_in_gallery(page)) == wanted
        charts = page.inner_text("#charts")
        for head in ("Position", "Time of day", "Altitude"):
            assert f"{head}: how far off ({len(wanted)} photos)" in charts
        assert page.locator("#charts .dot.in").count() == 2 * len(wanted)
        assert page.locator("#charts .dot.out").count() == 2 * (48 - len(wanted))
        assert page.locator("#charts .faint").count() == 3
        page.click("#clear")
        assert "how far off (48 photos)" in page.inner_text("#charts")
        assert page.locator("#charts .dot.out").count() == 0


SORTS = (
    ("worst", "error_km", -1), ("best", "error_km", 1), ("time", "error_minutes", -1),
    ("altitude", "error_m", -1), ("unsure", "radius90_km", -1), ("strange", "strangeness", -1),
)  # fmt: skip


def test_gallery_sorts(browser, report, truth):
    model = best_model(report)
    with opened(browser, report) as page:
        for sort, column, sign in SORTS:
            page.select_option("#sort", sort)
            show_all(page)
            values = [sign * float(truth[model, name][column]) for name in names_in_gallery(page)]
            assert len(values) == 48
            assert all(a <= b + 1e-6 * abs(b) for a, b in itertools.pairwise(values)), sort


FILTERS = {
    "outside": lambda row: float(row["error_km"]) > float(row["radius90_km"]),
    "sure": lambda row: row["position_confident"] == "True",
    "unsure": lambda row: row["position_confident"] != "True",
    "strange": lambda row: float(row["strangeness"]) > 1,
    "turned": lambda row: row["orientation"] != row["true_orientation"],
}


def test_gallery_filters(browser, report, truth):
    with opened(browser, report) as page:
        for model, title in (("rgb", "RGB."), ("depth", "RGB + depth.")):
            page.click(f"[data-model={model}]")
            assert page.inner_text("#selection").endswith(title)
            for name, keep in FILTERS.items():
                page.select_option("#filter", name)
                show_all(page)
                wanted = {photo for (m, photo), row in truth.items() if m == model and keep(row)}
                assert set(names_in_gallery(page)) == wanted, name


def test_photos_that_depth_helps_and_hurts(browser, report, truth):
    columns = {"gps": "error_km", "time": "error_minutes", "altitude": "error_m"}
    with opened(browser, report) as page:
        for head, column in columns.items():
            page.select_option("#depth-head", head)
            least = 1e-3 if head == "gps" else 1.0
            gains = {}
            for (model, name), row in truth.items():
                if model == "rgb":
                    pair = float(row[column]), float(truth["depth", name][column])
                    gains[name] = np.log(max(pair[1], least) / max(pair[0], least))
            helped = sum(gain < -0.005 for gain in gains.values())
            hurt = sum(gain > 0.005 for gain in gains.values())
            assert page.locator("#helped figure").count() == min(6, helped), head
            assert page.locator("#hurt figure").count() == min(6, hurt), head


def test_keys_move_and_zoom_the_map(browser, report):
    with opened(browser, report) as page:
        page.focus("#map svg[role]")
        before = page.evaluate("[map.cx, map.k]")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("+")
        after = page.evaluate("[map.cx, map.k]")
        assert after[0] > before[0] and after[1] == 2 * before[1]
        assert "outside this view" in page.inner_text("#map .note")
        page.keyboard.press("Enter")
        inside = page.evaluate("state.selected.size")
        assert 0 < inside < 48
        assert page.inner_text("#count").startswith(f"{inside} of 48 photos")
        page.keyboard.press("Escape")
        assert page.evaluate("state.selected") is None
        page.click("#map button[aria-label='Show all photos']")
        assert "All 48 photos are in view" in page.inner_text("#map .note")


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_every_screen_shows_all_and_has_no_serious_fault(browser, report, width, scheme):
    with opened(browser, report, width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert (page.evaluate(PAPER) == WHITE) == (scheme == "light")
        for where in ("#charts svg", "#reliability svg", "#risk svg", "#map svg", ".confusion"):
            assert page.locator(where).first.bounding_box()["width"] > 200, where
        assert faults(page) == []


def test_a_finger_shows_a_photo_and_still_scrolls_the_page(browser, report):
    view = {"width": 390, "height": 800}
    with browser.new_context(viewport=view, has_touch=True, is_mobile=True) as context:
        page = context.new_page()
        page.goto(report.as_uri())
        show_map(page)
        x, y = page.evaluate(
            """() => { const box = map.svg.getBoundingClientRect(), i = 5;
               return [box.left + map.sx(map.x[i]), box.top + map.sy(map.y[i])]; }"""
        )
        page.touchscreen.tap(x, y)
        page.wait_for_timeout(100)
        assert page.locator(".tip").is_visible() and page.evaluate("map.active") >= 0
        assert page.evaluate("getComputedStyle(map.svg).touchAction") == "pan-y"
        page.click("[data-tool=move]")
        assert page.evaluate("getComputedStyle(map.svg).touchAction") == "none"


def test_print_is_light_and_has_every_section(browser, report):
    with opened(browser, report, scheme="dark") as page:
        assert page.pdf(format="A4").startswith(b"%PDF")
        page.emulate_media(media="print")
        assert (
            page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        )
        assert not page.locator("#more").is_visible() and page.locator("#gallery li").count() >= 24
        assert page.locator("#gallery img").last.evaluate("image => image.naturalWidth") > 50


def test_streets_are_asked_for_only_on_request(browser, report):
    with browser.new_context() as context:
        context.set_offline(True)
        page, asked = context.new_page(), []
        page.goto(report.as_uri())
        page.on("request", lambda request: asked.append(request.url))
        assert not asked
        page.click(".online")
        page.wait_for_function("map.failed")
        assert asked and all(url.startswith("https://basemaps.cartocdn.com/") for url in asked)
        assert "did not load" in page.inner_text("#map .note")


def test_page_of_many_photos_says_which_are_left_out():
    names = [f"{i:04}.jpg" for i in range(MOST + 500)]
    photos = make_photos(len(names), names=names)
    km = np.arange(len(names), dtype=float)[::-1]
    photos.lat[:], photos.lon[:] = 0.0, km / KM_PER_DEGREE
    zeros = np.zeros(len(names))
    answers = {"lat": zeros, "lon": zeros, "minutes": zeros, "altitude": zeros}
    found = {"answers": answers, "trivial": answers, "knn_errors": {}}
    chosen, told = names_shown({"rgb": (found, photos, zeros)})
    assert len(chosen) == MOST and f"{MOST} of {MOST + 500} photos" in told
    assert set(names[:500]) < set(chosen) and set(names[-500:]) < set(chosen)
    few = photos.take(np.arange(10))
    assert names_shown({"rgb": (found, few, zeros)}) == (names[:10], "")
