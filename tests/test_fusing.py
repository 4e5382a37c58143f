"""Photos of one burst or folder asked together: products against numpy and a fine grid, and a
choice of the exponent that follows what was planted."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from conftest import make_photos, quietly
from hypothesis import given, settings
from hypothesis import strategies as st
from test_densities import HEADS, SCALE, fit, fitted, make_evidence, make_prediction, shifted

import density
import evaluate_gps_model as evaluator
from geophoto import archives, checkpoints, densities, fusing
from geophoto.findings import fuse_words
from geophoto.voices import Sphere, log_sum

# ---------------------------------------------------------------- who belongs together


def test_bursts_are_of_one_camera_within_a_minute_and_no_time_is_no_company():
    seconds = np.array([0.0, 50, 100, 20, np.nan, np.nan, 400])
    camera, folders = np.array(list("aaabaaa")), list("xyxxxxx")
    burst = fusing.groups_of("burst", folders, seconds, camera)
    assert len({*burst[:3]}) == 1 and len({*burst[2:]}) == 5
    assert (fusing.groups_of("folder", folders, seconds, camera) == [0, 1, 0, 0, 0, 0, 0]).all()


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=150), st.randoms(use_true_random=False))
def test_stretches_hold_every_photo_once_whatever_the_order(groups, random):
    groups, names = np.array(groups), [f"{i:04d}.jpg" for i in range(len(groups))]
    parts = fusing.stretches(groups, names)
    assert sorted(np.concatenate(parts)) == list(range(len(groups)))
    for rows in parts:
        assert len(rows) <= fusing.MOST_TOGETHER and len({*groups[rows]}) == 1
    order = np.array(random.sample(range(len(groups)), len(groups)))
    again = fusing.stretches(groups[order], [names[i] for i in order])
    assert [order[rows].tolist() for rows in again] == [rows.tolist() for rows in parts]


# ---------------------------------------------------------------- products


def test_the_product_of_two_normals_is_the_normal_of_the_textbook():
    x = np.linspace(-20, 20, 4001)
    logs = np.stack([-0.5 * ((x - m) / s) ** 2 - np.log(s) for m, s in ((-1.0, 1.0), (2.0, 2.0))])
    logs -= log_sum(logs)[:, None]
    for chances, wider in zip(fusing.pool(logs, (0.0, 1.0)), (1, 2), strict=True):
        product = (chances - fusing.DOUBT * np.exp(logs).mean(axis=0)) / (1 - fusing.DOUBT)
        assert product.min() > -1e-12 and product.sum() == pytest.approx(1)
        mean = (-1.0 / 1 + 2.0 / 4) / (1 + 1 / 4)
        assert product @ x == pytest.approx(mean, abs=1e-3)
        assert product @ (x - mean) ** 2 == pytest.approx(wider / (1 + 1 / 4), rel=1e-3)


def test_the_product_of_two_von_mises_adds_their_vectors():
    angle = 2 * np.pi * np.arange(1440) / 1440
    logs = np.stack([3 * np.cos(angle - 1.0), 5 * np.cos(angle - 2.0)])
    logs -= log_sum(logs)[:, None]
    (chances,) = fusing.pool(logs, (0.0,))
    total = 3 * np.exp(1j) + 5 * np.exp(2j)
    wanted = np.exp(abs(total) * np.cos(angle - np.angle(total)))
    wanted = 0.98 * wanted / wanted.sum() + 0.02 * np.exp(logs).mean(axis=0)
    assert chances == pytest.approx(wanted, rel=1e-9)


LOGS = st.lists(st.lists(st.floats(-30, 0), min_size=6, max_size=6), min_size=1, max_size=5)


@settings(deadline=None, max_examples=50)
@given(LOGS)
def test_a_pool_is_a_density_never_far_below_the_mean_and_copies_change_nothing(rows):
    logs = np.array(rows)
    logs -= log_sum(logs)[:, None]
    chances = fusing.pool(logs, fusing.EXPONENTS)
    assert chances.sum(axis=1) == pytest.approx(1)
    assert (chances >= (1 - 1e-9) * fusing.DOUBT * np.exp(logs).mean(axis=0)).all()
    copies = fusing.pool(np.repeat(logs[:1], 4, axis=0), (1.0,))
    assert copies[0] == pytest.approx(np.exp(logs[0]), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("silent", [False, True])
def test_densities_at_many_places_are_those_of_their_kernels(silent):
    one, members = fit("gps", "neighbour"), make_evidence("gps", "neighbour", 5, 3)
    if silent:  # of a model without a gallery
        nothing = {"near": members.near[:, :0], "prior": members.prior[:0]}
        members = dataclasses.replace(members, similar=members.similar[:, :0], **nothing)
    space = Sphere(SCALE.spread_km)
    places = np.concatenate([one.draws(members, space)[:, ::50].reshape(-1, 3), members.head])
    found = fusing.log_densities(one, members, space, places)
    for j, weights in enumerate(one.weights(members, space)):
        asked = dataclasses.replace(members.take(np.full(len(places), j)), truth=places)
        logs = asked.kernel_logs(space, one.stack.temperature)
        wanted = np.logaddexp.reduce(np.log(weights) + logs, axis=1)
        assert found[j] == pytest.approx(wanted, abs=0.02)  # 2 % where a metre decides


def test_fused_draws_lie_as_a_fine_grid_says():
    """Two photos whose heads say places 40 km apart, each with some doubt."""
    one, members = fit("gps", "head", off=0.3), make_evidence("gps", "nobody", 2, 3)
    members.head[:] = density.unit_vectors(np.array([46.0, 46.3]), np.array([7.0, 7.2]))
    space = Sphere(SCALE.spread_km)
    lat, lon = (axis.ravel() for axis in np.meshgrid(*[np.linspace(-3, 3, 201)] * 2))
    grid = density.unit_vectors(46.15 + lat, 7.1 + lon)
    cell = np.log(np.cos(np.radians(46.15 + lat)))  # its area
    logs = fusing.log_densities(one, members, space, grid) + cell
    logs -= log_sum(logs)[:, None]
    fused = fusing.fuse("gps", one, members, SCALE, fusing.EXPONENTS)
    tried = zip(fused.points, fused.draws, fusing.EXPONENTS, strict=True)
    for point, draws, exponent in tried:
        wanted = fusing.pool(logs - cell, (exponent,), -cell)[0]
        for km in (10, 20, 40, 80):
            inside = wanted[density.arc_km(grid, point) <= km].sum()
            found = (density.arc_km(draws, point) <= km).mean()
            assert found == pytest.approx(inside, abs=0.06), (exponent, km)


@pytest.mark.parametrize("head", HEADS)
def test_copies_of_a_photo_that_count_as_one_are_that_photo(head):
    one, photo = fit(head, "neighbour"), make_evidence(head, "neighbour", 1, 5)
    points, ranges = one.ranges(head, photo, SCALE)
    fused = fusing.fuse(head, one, photo.take(np.zeros(5, int)), SCALE, (1.0,))
    assert fused.points == pytest.approx(points, abs=1e-12)
    levels = (0.2, 0.5, 0.9)
    assert fused.ranges.distances(levels) == pytest.approx(ranges.distances(levels), rel=1e-6)
    if head == "gps":
        own = one.draws(photo, Sphere(SCALE.spread_km))[0]
        assert (np.sort(fused.draws[0], axis=0) == np.sort(own, axis=0)).all()


def test_a_large_company_of_strangers_is_finite():
    for head in HEADS:
        one, members = fit(head, "nobody"), make_evidence(head, "nobody", fusing.MOST_TOGETHER, 5)
        members = dataclasses.replace(members, away=np.full(len(members), 1e3))
        fused = fusing.fuse(head, one, members, SCALE, fusing.EXPONENTS)
        assert np.isfinite(fused.points).all() and np.isfinite(fused.ranges.distances([0.99])).all()
        assert len(fused.ranges.far) == len(fusing.EXPONENTS)


# ---------------------------------------------------------------- answers


def chosen(exponent: float | None = 0.5) -> dict:
    choice = {"exponent": exponent, "levels": [0.5, 0.9], "photos": 99, "groups": 20,
              "change": -0.123, "interval": [-0.18, -0.05]}  # fmt: skip
    return {kind: dict.fromkeys(HEADS, choice) for kind in densities.COMPANY}


def asked_together(company, order=None, exponent: float | None = 0.5):
    every, gallery = fitted(make_photos(60))
    every["fuse"] = chosen(exponent)
    asked = make_prediction(9, 3)
    asked = {key: values[np.arange(9) if order is None else order] for key, values in asked.items()}
    gathered = densities.gather_all(asked, gallery, SCALE)
    own = densities.answers_of(asked, gallery, every, SCALE, gathered)
    return own, *fusing.fuse_answers(own, "burst", company, every, gathered, SCALE)


def test_photos_alone_keep_their_answers_to_the_bit_and_company_shares_one():
    company = [np.array([0]), np.array([1, 4, 6]), *np.array([2, 3, 5, 7, 8])[:, None]]
    own, fused, places = asked_together(company)
    alone = np.array([0, 2, 3, 5, 7, 8])
    for key, values in own.items():
        assert (fused[key][alone] == values[alone]).all(), key
    for key in ("lat", "lon", "minutes", "altitude", "radius90_km", "time50_minutes"):
        assert len({*fused[key][[1, 4, 6]]}) == 1 and np.isfinite(fused[key]).all(), key
    for head in HEADS:
        assert fused[f"{head}_fused"].tolist() == [0, 2, 0, 0, 2, 0, 2, 0, 0]
    assert set(places) == {1, 4, 6} and sum(chance for *_, chance in places[4]) <= 1 + 1e-9


def test_an_answer_does_not_depend_on_the_order_of_the_photos():
    order = np.random.default_rng(2).permutation(9)
    groups, names = np.array([0, 0, 1, 1, 1, 2, 3, 0, 3]), [f"{i}.jpg" for i in range(9)]
    _, fused, _ = asked_together(fusing.stretches(groups, names))
    turned = fusing.stretches(groups[order], [names[i] for i in order])
    _, again, _ = asked_together(turned, order)
    for key, values in fused.items():
        assert again[key] == pytest.approx(values[order], rel=1e-9), key


def test_where_no_gain_is_clear_all_answers_stay():
    own, fused, places = asked_together([np.arange(9)], exponent=None)
    assert not places and all((fused[key] == values).all() for key, values in own.items())
    assert not any(fused[f"{head}_fused"].any() for head in HEADS)


# ---------------------------------------------------------------- the choice


def planted(head: str, knows: str, copies: bool = False, size: int = 4) -> tuple[dict | None, dict]:
    """The choice on 40 companies of `size` photos of one truth that err independently of each
    other, or as one; and the choice among halves of them."""
    one, tables, count = fit(head, knows, off=0.3), [], len(fusing.EXPONENTS)
    for company in range(40):
        members = make_evidence(head, knows, size, 100 + company, off=0.3)
        rng = np.random.default_rng(company)
        truth = np.repeat(members.truth[:1], size, axis=0)
        if copies:
            members = members.take(np.zeros(size, int))
        elif knows == "head":
            members = dataclasses.replace(members, head=shifted(head, truth, 0.3, rng))
        members = dataclasses.replace(members, truth=truth)
        fused = fusing.fuse(head, one, members, SCALE, fusing.EXPONENTS)
        error = densities.distance_of(head, fused.points[:, None], truth[None], SCALE)
        answer = one.answer(head, members, SCALE)["point"]
        own = densities.distance_of(head, answer, truth, SCALE)
        shares = fused.ranges.shares_within(error)
        tables.append(np.column_stack([own, error.T, shares.T]))
    table, company = np.concatenate(tables), np.repeat(np.arange(40), size)
    assert table.shape[1] == 1 + 2 * count
    return fusing.choose_exponent(head, table, company % 5, (company, company // 2)), table


@pytest.mark.parametrize("head", HEADS)
def test_photos_that_err_independently_are_found_to_help_each_other(head):
    choice, table = planted(head, "head")
    assert choice is not None and choice["exponent"] is not None
    assert choice["interval"][1] < 0 and -0.6 < choice["change"] < -0.2  # by √4 at best
    column = fusing.EXPONENTS.index(choice["exponent"]) + 1
    shares = table[:, column + len(fusing.EXPONENTS)]
    for level, share in zip((0.5, 0.9), choice["levels"], strict=True):
        assert (shares <= share).mean() >= level
    words = fuse_words("burst", {head: choice})
    assert "no clear gain" not in words and f"{choice['photos']} held-out photos" in words


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("knows", "copies"), [("head", True), ("nobody", False)])
def test_copies_and_noise_are_left_alone(head, knows, copies):
    choice, table = planted(head, knows, copies)
    assert choice is not None and choice["exponent"] is None
    assert choice["interval"][1] >= 0
    if copies:  # as one photo they are no better than it, nor worse
        assert table[:, len(fusing.EXPONENTS)] == pytest.approx(table[:, 0], rel=1e-6, abs=1e-6)


def test_few_companies_prove_nothing_and_none_nothing_at_all():
    count, rng = len(fusing.EXPONENTS), np.random.default_rng(0)
    table = np.column_stack([np.full(30, 9.0), np.ones((30, count)), rng.random((30, count))])
    table[20:, 0] = np.nan
    for groups, clear in ((10, True), (9, False)):
        unit = np.arange(30) % groups
        choice = fusing.choose_exponent("time", table, np.arange(30) % 5, (unit, unit))
        assert choice["photos"] == 20 and choice["groups"] == groups
        assert (choice["exponent"] is not None) == clear
        assert choice["change"] == pytest.approx(-8 / 9)
        assert all(0 <= level <= 1 for level in choice["levels"])
    nothing = np.full_like(table, np.nan)
    assert fusing.choose_exponent("time", nothing, np.arange(30), (np.arange(30),)) is None


def test_the_gain_told_has_not_seen_the_photo_it_is_told_of():
    """Each part has an exponent that suits itself alone: chosen on the others it does harm."""
    parts = np.repeat(np.arange(5), 8)
    table = np.full((40, 1 + 2 * 5), 10.0)
    table[:, 6:] = 0.5
    for part in range(5):
        table[parts == part, 1 + part] = 1.0
        for other in set(range(5)) - {part}:
            table[parts == part, 1 + other] = 11.0
    choice = fusing.choose_exponent("time", table, parts, (np.arange(40), np.arange(40)))
    assert choice["change"] > 0 and choice["exponent"] is None


def test_held_out_photos_are_judged_where_they_have_company_and_a_label():
    photos = make_photos(60)
    every, gallery = fitted(photos)
    pairs = {"seconds": np.repeat(np.arange(12) * 1e4, 2), "camera": np.full(24, "a")}
    asked = make_photos(24, seed=8, names=[f"{i // 8}/{i:02d}" for i in range(24)], **pairs)
    found = make_prediction(24, 3)
    answers = densities.answers_of(found, gallery, every, SCALE)
    judged = fusing.judge_fused(every, found, gallery, answers, asked, SCALE)
    assert set(judged) == {f"{kind}_{head}" for kind in densities.COMPANY for head in HEADS}
    for kind in densities.COMPANY:
        assert (np.isfinite(judged[f"{kind}_gps"]).all(axis=1) == asked.placed).all()
        own = density.distance_km(answers["lat"], answers["lon"], asked.lat, asked.lon)
        assert judged[f"{kind}_gps"][:, 0] == pytest.approx(own, nan_ok=True)
    alone = dataclasses.replace(asked, seconds=np.arange(24) * 1e4)
    lonely = fusing.judge_fused(every, found, gallery, answers, alone, SCALE)
    assert np.isnan(lonely["burst_gps"]).all()
    assert (lonely["folder_time"] == judged["folder_time"])[np.isfinite(asked.minutes)].all()


# ---------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def fusing_model(trained, tmp_path_factory):
    """The trained model, as if fusing bursts had been found to gain for positions and time."""
    folder = tmp_path_factory.mktemp("fusing")
    content = archives.load(trained.checkpoints / "best_gps_model_rgb.pth")
    measured = content["densities"]["fuse"]
    content["densities"]["fuse"] = {**measured, "burst": {**chosen()["burst"], "altitude": None}}
    archives.save(folder / "best_gps_model.pth", content)
    return folder, measured


def ask(folder, output, *more) -> tuple[list[dict], str]:
    arguments = ["--checkpoint-dir", folder, "--output-dir", output, "--precision", "fp32"]
    code, printed = quietly(evaluator.main, *arguments, *more)
    assert code == 0, printed
    content = json.loads((output / "photos.json").read_text(encoding="utf-8"))
    return content["photos"], printed


def test_bursts_are_asked_together_and_the_gain_is_told(trained, fusing_model, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(trained.data / "images" / "day_1", photos / "day_1")
    shutil.copytree(trained.data / "images" / "no exif", photos / "no exif")
    folder, _ = fusing_model
    single, printed = ask(folder, tmp_path / "one", "--photos", photos)
    assert "fused" not in printed and not any(row["fused_with"] for row in single)
    rows, printed = ask(folder, tmp_path / "two", "--photos", photos, "--fuse", "burst")
    assert "fused by burst: position errors −12 % (95 % interval −18 % to −5 %, 99" in printed
    assert [row["filename"] for row in rows] == [row["filename"] for row in single]
    pairs = {}
    for row, own in zip(rows, single, strict=True):
        if "no exif" in row["filename"]:
            assert row == own
            continue
        assert row["fused_with"] == 1 and row["fused"] == "position, time"
        assert row["altitude_m"] == own["altitude_m"] and row["orientation"] == own["orientation"]
        name = row["filename"].rsplit("/", 1)[1][:6]  # IMG_12: two photos, seconds apart
        pairs.setdefault(name, []).append((row["latitude"], row["time"], row["radius90_km"]))
    assert len(pairs) == 12 and all(len(p) == 2 and p[0] == p[1] for p in pairs.values())


def test_a_model_without_a_clear_gain_leaves_answers_and_says_so(trained, fusing_model, tmp_path):
    asked = ["--photos", trained.data / "images" / "day_1" / "IMG_120.jpg",
             trained.data / "images" / "day_1" / "IMG_121.JPG"]  # fmt: skip
    folder, _ = fusing_model
    content = archives.load(folder / "best_gps_model.pth")
    content["densities"]["fuse"]["folder"] = chosen(None)["folder"]
    content["densities"]["fuse"]["burst"] = dict.fromkeys(HEADS)
    archives.save(tmp_path / "best_gps_model.pth", content)
    single, _ = ask(tmp_path, tmp_path / "out", *asked)
    for kind, words in (("folder", "no clear gain for"), ("burst", "not measured")):
        rows, printed = ask(tmp_path, tmp_path / "out", *asked, "--fuse", kind)
        assert rows == single and f"fused by {kind}: {words}" in printed
        assert printed.count("; answers are those of single photos") == 1


def test_fusing_is_measured_in_training_and_told_in_the_report(trained, evaluation, fusing_model):
    metrics = json.loads((evaluation[0] / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["rgb"]["fuse"] == fusing_model[1]
    for choice in metrics["rgb"]["fuse"]["burst"].values():
        assert choice["photos"] == 48 and choice["groups"] == 24
        assert choice["interval"][0] <= choice["change"] <= choice["interval"][1]
    assert "RGB, fused by burst: " in evaluation[1]
    page = (evaluation[0] / "report.html").read_text(encoding="utf-8")
    assert "Do photos of one burst or folder help each other?" in page
    card = (trained.checkpoints / "best_gps_model_rgb.md").read_text(encoding="utf-8")
    assert "Photos asked together (`--fuse`) by burst: " in card


def test_to_fuse_without_photos_is_a_mistake():
    for wrong in (["--fuse", "burst"], ["--fuse", "folder", "--place"]):
        code, printed = quietly(evaluator.main, *wrong)
        assert code == 2 and "--fuse goes with --photos" in printed and printed.count("\n") == 1


def test_a_stripped_model_has_measured_nothing(trained, tmp_path):
    content = checkpoints.read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    every = [c for kind in content["densities_alone"]["fuse"].values() for c in kind.values()]
    assert len(every) == 6 and set(every) == {None}
