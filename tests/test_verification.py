"""Claims against pictures: p-values by count, altered claims, words of evidence, the verb."""

import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
from conftest import copy_data, make_photos, quietly, training_arguments
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import density
import evaluate_gps_model as evaluator
import gps_orientation_trainer as trainer
from geophoto import verification
from geophoto.checkpoints import read_checkpoint
from geophoto.densities import SHARES
from geophoto.photos import photos_of
from geophoto.table import read_table
from geophoto.verification import ALARM, KINDS, Calibration, Claims, alarm_at

# ---------------------------------------------------------------- p-values


def made_up(count=400, seed=0, folds=5):
    """Misfits of one cause and some noise each: claims that depend on each other; with gaps."""
    rng = np.random.default_rng(seed)
    cause = rng.gumbel(size=count)
    misfit = {kind: cause + rng.normal(0, 0.5, count) for kind in KINDS}
    misfit["sun"][rng.random(count) < 0.2] = np.nan
    return Calibration(misfit, rng.integers(0, folds, count))


def test_p_values_are_shares_of_the_other_folds():
    calibration = made_up(60)
    asked, part = np.array([-3.0, 0.2, 1.0, np.nan]), np.array([0, 1, -1, 2])
    ranks = calibration.rank("sun", asked, part)
    for rank, misfit, fold in zip(ranks, asked, part, strict=True):
        true = calibration.misfit["sun"][calibration.part != fold]
        true = true[np.isfinite(true)]
        expected = (1 + (true >= misfit).sum()) / (1 + len(true))
        assert np.isnan(rank) if np.isnan(misfit) else rank == pytest.approx(expected)


def test_claims_beyond_all_true_ones_are_ordered_and_told_honestly():
    calibration = made_up(60)
    asked, part = np.array([50.0, 60.0, 70.0]), np.zeros(3, int)
    ranks = calibration.rank("time", asked, part)
    assert (np.diff(ranks) < 0).all()
    told = np.fmax(ranks, calibration.least("time", part))
    assert told == pytest.approx(1 / (1 + (calibration.part != 0).sum()))


@pytest.mark.parametrize("kinds", [KINDS, KINDS[:1], KINDS[1:3], ("orientation",)])
def test_together_is_uniform_although_claims_depend_on_each_other(kinds):
    calibration, fresh = made_up(3000, 1), made_up(3000, 2)
    part = np.full(3000, -1)
    ranks = {kind: calibration.rank(kind, fresh.misfit[kind], part) for kind in KINDS}
    ranks |= {kind: np.full(3000, np.nan) for kind in KINDS if kind not in kinds}
    together = calibration.combine(ranks, part)
    known = np.isfinite(together)
    assert verification.kolmogorov(together) < 0.05
    assert (together[known] <= 0.05).mean() == pytest.approx(0.05, abs=0.015)


def test_together_by_brute_force():
    calibration = made_up(40, 3, folds=3)
    fresh = made_up(10, 4)
    part = np.arange(10) % 4 - 1
    ranks = {kind: calibration.rank(kind, fresh.misfit[kind], part) for kind in KINDS}
    own = {
        kind: calibration.rank(kind, calibration.misfit[kind], calibration.part) for kind in KINDS
    }
    together = calibration.combine(ranks, part)
    for i in range(10):
        mine = {kind: ranks[kind][i] for kind in KINDS if np.isfinite(ranks[kind][i])}
        products = []
        for j in range(40):
            theirs = [own[kind][j] for kind in mine]
            if calibration.part[j] != part[i] and np.isfinite(theirs).all():
                products.append(np.prod(theirs))
        as_small = sum(one <= np.prod([*mine.values()]) * (1 + 1e-9) for one in products)
        expected = (1 + as_small) / (1 + len(products))
        assert together[i] == pytest.approx(expected)


def test_nothing_to_compare_with_says_nothing():
    nothing = Calibration({kind: np.full(5, np.nan) for kind in KINDS}, np.arange(5))
    ranks = {kind: nothing.rank(kind, np.ones(3), np.full(3, -1)) for kind in KINDS}
    assert all(np.isnan(values).all() for values in ranks.values())
    assert np.isnan(nothing.combine(ranks, np.full(3, -1))).all()


def test_kolmogorov_is_scipys():
    values = np.random.default_rng(0).beta(1, 2, 50)
    assert verification.kolmogorov(values) == pytest.approx(
        stats.kstest(values, "uniform").statistic
    )
    assert np.isnan(verification.kolmogorov(np.array([np.nan])))


@given(st.floats(0, 1e5), st.floats(0, 1e5))
def test_what_lies_farther_misfits_more(a, b):
    reach = np.sort(np.random.default_rng(1).gamma(1, 10, (1, len(SHARES))), axis=1)
    near, far = (
        verification.nearer_share(np.array([d]), reach)[0] for d in sorted((float(a), float(b)))
    )
    assert 0 <= near <= far


def test_misfit_is_the_share_at_its_reach():
    reach = np.linspace(1, 30, len(SHARES))[None]
    for share, distance in zip(SHARES, reach[0], strict=True):
        found = verification.nearer_share(np.array([distance]), reach)[0]
        assert 1 - np.exp(-found) == pytest.approx(share)
    assert np.isnan(verification.nearer_share(np.array([np.nan]), reach))


# ---------------------------------------------------------------- claims


def test_claims_are_moved_delayed_and_turned():
    claims = Claims.of(make_photos(40))
    groups = np.arange(40) // 2
    tried = {name: (c, rows) for name, c, rows in verification.alterations(claims, 30.0, groups)}
    assert len(tried) == 6
    for times in (1, 3):
        moved, rows = tried[f"moved by {times}× the spread"]
        km = density.distance_km(claims.lat, claims.lon, moved.lat, moved.lon)
        assert km[rows] == pytest.approx(30 * times) and np.isnan(km[~rows]).all()
    for hours in (6, 12):
        late, rows = tried[f"clock off by {hours} hours"]
        apart = np.abs((late.minutes - claims.minutes)[rows] % 1440 - 720)
        assert apart == pytest.approx(abs(720 - 60 * hours))
        assert np.abs(late.seconds - claims.seconds)[np.isfinite(claims.seconds)] == pytest.approx(
            3600 * hours
        )
    swapped, rows = tried["position of another photo"]
    assert set(swapped.lat[rows]) <= set(claims.lat) and (swapped.lat != claims.lat)[rows].all()
    turned, rows = tried["turned by a quarter"]
    assert (turned.orientation != claims.orientation)[rows].all()


def test_the_sun_follows_from_position_and_utc():
    photos = dataclasses.replace(
        make_photos(3), lat=np.array([0.0, 0.0, np.nan]), lon=np.zeros(3),
        seconds=np.array([951_825_600.0 - 12 * 3600, 951_825_600.0, 0]), sun=np.ones(3),
    )  # fmt: skip  # noon and midnight of 28 and 29 February 2000 on the equator
    sun = Claims.of(photos).sun()
    assert sun[0] > 75 or sun[1] > 75
    assert min(sun[:2]) < -75 and np.isnan(sun[2])
    unknown = dataclasses.replace(photos, sun=np.full(3, np.nan))  # seconds may be local time
    assert np.isnan(Claims.of(unknown).sun()).all()


def test_evidence_names_what_speaks_against_and_no_verdict():
    row = {
        "p_position": 0.2, "p_time": 0.03, "p_sun": 0.004, "p_orientation": float("nan"),
        "claimed_time": "03:10", "time": "14:20", "claimed_sun_deg": -31.6, "sun_deg": 40.2,
        "distance_km": 2.0,
    }  # fmt: skip
    assert verification.evidence(row) == [
        "at the claimed place and time the sun stood at -32°, the picture looks like 40°; "
        "fewer than 1 in 100 true claims look like this",
        "the claimed hour, 03:10, lies outside the 95 % interval around 14:20; "
        "3 in 100 true claims look like this",
    ]
    quiet = row | {"p_time": 0.5, "p_sun": 0.11}
    assert verification.evidence(quiet) == []
    row |= {"p_position": 0.07, "p_orientation": 0.01, "claimed_orientation": "Normal",
            "orientation": "Rotated 90°", "orientation_chance": 0.02}  # fmt: skip
    told = " | ".join(verification.evidence(row))
    assert "outside the 90 % interval, 2 km from the answer; 7 in 100" in told
    assert "stored as Normal, to which the picture gives 2% (most to Rotated 90°)" in told
    assert not re.search("false|fake|wrong|forged", told)


# ---------------------------------------------------------------- the verb


def verify(data, checkpoints, output, *more):
    return quietly(
        evaluator.main, "--data-dir", data, "--checkpoint-dir", checkpoints, "--output-dir", output,
        "--precision", "fp32", "--verify", *more,
    )  # fmt: skip


def read_found(output) -> dict:
    return json.loads((output / "verification.json").read_text(encoding="utf-8"))


def change_table(trained, folder, change):
    """A copy of the data whose table a function of the rows has changed."""
    data = folder / "data"
    shutil.copytree(trained.data, data)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    change(rows)
    (data / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")
    return data


@pytest.fixture(scope="module")
def verified(trained, tmp_path_factory):
    output = tmp_path_factory.mktemp("verified")
    code, printed = verify(trained.data, trained.checkpoints, output)
    assert code == 1 and "left out: day_0/cut.jpg: " in printed, printed  # half a photo
    return output, printed


def test_checkpoints_hold_the_misfits_of_true_claims(trained):
    checkpoint = read_checkpoint(trained.checkpoints / "best_gps_model_rgb.pth")
    held, names = checkpoint["held_out"], checkpoint["split"]["names"]
    photos = photos_of(read_table(trained.data), trained.data / "images")
    claims = Claims.of(photos.take(np.array([photos.names.index(name) for name in names])))
    found = verification.misfits({**held["answers"], **held["judged"]}, claims)
    for kind in KINDS:
        np.testing.assert_allclose(
            found[kind], held["judged"][f"misfit_{kind}"], rtol=1e-5, atol=1e-6
        )
    share = 1 - np.exp(-held["judged"]["misfit_position"])
    inside = density.distance_km(
        held["answers"]["lat"], held["answers"]["lon"], claims.lat, claims.lon
    )
    for i, reach in enumerate(held["judged"]["gps_reach"]):
        assert np.interp(inside[i], [0, *reach], [0, *SHARES]) == pytest.approx(
            min(share[i], SHARES[-1]), abs=1e-6
        )


@given(st.lists(st.floats(1e-4, 1), min_size=1, max_size=60))
def test_alarms_are_at_most_the_share_that_is_said(p):
    p = np.array(p)
    at = alarm_at(p)
    assert 0 < at <= ALARM and (p <= at).mean() <= ALARM
    greater = np.append(p[p <= ALARM], ALARM)
    assert all((p <= one).mean() > ALARM for one in greater[greater > at])


def test_all_held_out_photos_are_ranked_and_true_claims_raise_few_alarms(verified):
    output, printed = verified
    content = read_found(output)
    summary, rows = content["summary"], content["photos"]
    assert summary["judged"] == summary["held_out"] == len(rows) == 48
    assert [row["p"] for row in rows] == sorted(row["p"] for row in rows)
    assert summary["false_alarms"] <= ALARM and summary["claims"] == dict.fromkeys(KINDS, 48)
    assert all(summary["kolmogorov"][kind] < 0.35 for kind in (*KINDS, "together"))
    assert summary["rates"]["moved by 3× the spread"]["n"] == 48
    assert "48 photos judged, 48 of them held out in training; " in printed.splitlines()[-1]
    assert "false alarms" in printed and "% of 48 found" in printed


def much_moved(row):
    row["gps_latitude"] += 3.0


def to_the_antipode(row):
    row["gps_latitude"], row["gps_longitude"] = -row["gps_latitude"], row["gps_longitude"] - 180


def null_island(row):
    row["gps_latitude"], row["gps_longitude"] = 0.01, 0.01


def twelve_hours_late(row):
    hour = (int(row["datetime"][11:13]) + 12) % 24
    for key in ("datetime", "datetime_at_place"):
        if row[key]:
            row[key] = f"{row[key][:11]}{hour:02d}{row[key][13:]}"


@pytest.mark.parametrize(
    "lie, kind",
    [(much_moved, "position"), (to_the_antipode, "position"), (null_island, "position"),
     (twelve_hours_late, "time")],
)  # fmt: skip
def test_altered_claims_come_before_true_ones(trained, verified, tmp_path, lie, kind):
    chosen = "day_0/IMG_031.JPG"

    def change(rows):
        lie(next(row for row in rows if row["filename"] == chosen))

    data = change_table(trained, tmp_path, change)
    code, printed = verify(data, trained.checkpoints, tmp_path / "out")
    assert code == 1, printed  # cut.jpg
    rows = {row["filename"]: row for row in read_found(tmp_path / "out")["photos"]}
    before = {row["filename"]: row for row in read_found(verified[0])["photos"]}
    assert rows[chosen][f"p_{kind}"] < before[chosen][f"p_{kind}"]
    assert rows[chosen][f"p_{kind}"] < 0.2
    for name in set(rows) - {chosen}:
        assert rows[name][f"p_{kind}"] == before[name][f"p_{kind}"]


def test_photos_that_the_model_has_never_seen_are_judged(trained, verified, tmp_path):
    """The table of another day: other names, one file gone, one row without claims."""

    def change(rows):
        del rows[12:]
        for row in rows:
            shutil.copy(
                tmp_path / "data" / "images" / row["filename"],
                tmp_path / "data" / "images" / f"new {row['filename'].replace('/', ' ')}",
            )
            row["filename"] = f"new {row['filename'].replace('/', ' ')}"

    data = change_table(trained, tmp_path, change)
    content_rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    names = [row["filename"] for row in content_rows if row["gps_latitude"] is not None]
    (data / "images" / names[0]).unlink()
    model = tmp_path / "c"
    model.mkdir()
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(
            trained.checkpoints / f"best_gps_model_rgb{suffix}", model / f"best_gps_model{suffix}"
        )
    code, printed = verify(data, model, tmp_path / "out")
    assert code == 1 and f"left out: {names[0]}: " in printed, printed
    content = read_found(tmp_path / "out")
    summary = content["summary"]
    assert summary["held_out"] == 0 and summary["rates"] == {}
    assert summary["false_alarms"] is None and summary["unread"] == 1
    assert {row["filename"] for row in content["photos"]} == set(names[1:])
    assert not any(row["held_out"] for row in content["photos"])
    assert all(0 < row["p"] <= 1 for row in content["photos"])


def test_a_finetuned_model_judges_its_test_photos(photo_set, tmp_path):
    data = copy_data(photo_set, tmp_path)
    quick = ["--mode", "finetune", "--image-size", "64", "--batch-size", "16", "--epochs", "1"]
    quick += ["--inputs", "rgb"]
    code, printed = quietly(trainer.main, *training_arguments(data, tmp_path / "c", *quick))
    assert code == 0, printed
    code, printed = verify(data, tmp_path / "c", tmp_path / "out")
    assert code == 1, printed  # cut.jpg
    split = read_checkpoint(tmp_path / "c" / "best_gps_model.pth")["split"]
    test = {n for n, part in zip(split["names"], split["part"], strict=True) if part == "test"}
    content = read_found(tmp_path / "out")
    assert {row["filename"] for row in content["photos"]} == test - {"day_0/cut.jpg"}
    assert content["summary"]["trained_on"] == len(split["names"]) - len(test)


@pytest.mark.parametrize("agrees", [True, False])
def test_what_is_marked_on_the_page_is_said_in_words(verified, tmp_path, agrees):
    """An orientation with a low p-value, which all the same is the likeliest, is no evidence."""
    content = read_found(verified[0])
    row = content["photos"][0] | {f"p_{kind}": 0.9 for kind in verification.KINDS}
    row |= {"p": 0.9, "p_orientation": 0.001, "claimed_orientation": "Normal"}
    row |= {"orientation": "Normal" if agrees else "Rotated 90°", "orientation_chance": 0.4}
    row["evidence"] = "; also ".join(verification.evidence(row))
    verification.write_page(tmp_path / "x.html", [row], content["summary"], "rgb")
    page = (tmp_path / "x.html").read_text(encoding="utf-8")
    assert page.count('class="low"') == (0 if agrees else 1)
    assert (">nothing<" in page) == agrees


def test_the_page_is_one_file_and_names_are_text(verified, tmp_path):
    page = (verified[0] / "verification.html").read_text(encoding="utf-8")
    assert "http" not in page and "src=" not in page and "<script" not in page
    assert "How much is found" in page and page.count("<tr>") >= 48
    assert re.search(r"spread of the training photos is [\d,.]+ k?m\.", page)
    content = read_found(verified[0])
    rows = [content["photos"][0] | {"filename": "<script>alert(1)</script>"}]
    verification.write_page(tmp_path / "x.html", rows, content["summary"], "rgb")
    assert "<script>" not in (tmp_path / "x.html").read_text(encoding="utf-8")


def test_json_of_claims_is_all_that_stands_on_stdout(trained, tmp_path, capsys):
    folders = ["--data-dir", trained.data, "--checkpoint-dir", trained.checkpoints]
    arguments = [*folders, "--output-dir", tmp_path, "--verify", "--json"]
    assert evaluator.main([str(one) for one in arguments]) == 1  # cut.jpg
    out, err = capsys.readouterr()
    assert json.loads(out) == read_found(tmp_path) and "photos judged" in err


def without_claims(rows):
    for row in rows:
        row |= dict.fromkeys(("datetime", "datetime_utc", "datetime_at_place", "gps_latitude",
                              "gps_longitude", "orientation", "orientation_tag"))  # fmt: skip


def test_a_table_without_claims_and_two_verbs_are_one_line(trained, tmp_path):
    data = change_table(trained, tmp_path, without_claims)
    code, printed = verify(data, trained.checkpoints, tmp_path / "out")
    assert code == 2 and "no photo of the table has a claim" in printed.splitlines()[-1]
    code, printed = verify(data, trained.checkpoints, tmp_path / "out", "--photos", "x.jpg")
    assert code == 2 and printed.count("\n") == 1
