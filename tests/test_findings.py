"""Sentences and verdicts follow from the numbers, also where they are odd."""

import pytest

from geophoto import findings as room
from geophoto.findings import depth_findings, depth_summary, depth_words, findings, head_findings
from geophoto.report import cards_of, table_rows


def head(key, unit, own, trivial, knn, over_trivial, over_knn, n=100, groups=30) -> dict:
    return {
        "n": n, "groups": groups, key: own, f"interval_{unit}": [own * 0.9, own * 1.1],
        f"baseline_{key}": trivial, f"knn_{key}": knn, "minus_baseline_interval": over_trivial,
        "minus_knn_interval": over_knn, "coverage50": 0.5, "coverage90": 0.9, "interval50": own,
        "interval90": 3 * own, "confident": 4, "confident_error": own / 2,
    }  # fmt: skip


def turns(n=100, accuracy=0.9, limits=(0.8, 0.97)) -> dict:
    return {"n": n, "turn_accuracy": accuracy, "turn_interval": limits and list(limits),
            "mirror_accuracy": 0.6, "stored_accuracy": 0.9, "stored_majority": 0.8,
            "six_class_accuracy": 0.6}  # fmt: skip


def block(over_trivial=(-3.0, -1.0), over_knn=(-1.0, -0.2), **more) -> dict:
    """The block of one model whose heads all stand like that to the baselines."""
    limits = [x and list(x) for x in (over_trivial, over_knn)]
    return {
        "gps": head("median_km", "km", 2.0, 4.0, 2.5, *limits, **more),
        "time": head("mean_minutes", "minutes", 60.0, 200.0, 90.0, *limits, **more),
        "altitude": head("mean_m", "m", 50.0, 90.0, 60.0, *limits, **more),
        "orientation": turns(), "sun": {"n": 0},
    }  # fmt: skip


BETTER, LEVEL, WORSE = (-2.0, -1.0), (-1.0, 1.0), (1.0, 2.0)


@pytest.mark.parametrize(
    ("trivial", "knn", "verdict", "said"),
    [
        (BETTER, BETTER, "good", "better than both, and more than luck"),
        (BETTER, LEVEL, "fair", "level with nearest neighbours"),
        (BETTER, WORSE, "fair", "nearest neighbours do better"),
        (LEVEL, LEVEL, "open", "may be luck"),
        (LEVEL, WORSE, "bad", "no clear gain"),
        (WORSE, BETTER, "bad", "worse than one fixed answer"),
        (None, None, "open", "one group"),
    ],
)
def test_verdict_is_against_both_baselines(trivial, knn, verdict, said):
    metrics = {"rgb": block(trivial, knn)}
    for one in head_findings(metrics, "rgb")[:3]:
        assert one["verdict"] == verdict and said in one["words"]
    rows = [row for row in table_rows(metrics) if row["error of"] != "Four turns missed"]
    assert {row["verdict"] for row in rows} == {verdict}


def test_one_sentence_per_head_says_all():
    found = head_findings({"rgb": block()}, "rgb")
    assert [one["head"] for one in found] == ["gps", "time", "altitude", "orientation"]
    position = f"{found[0]['text']}: {found[0]['words']}"
    for told in ("half of 100 photos", "2 km", "1.8 km to 2.2 km", "4 km", "2.5 km"):
        assert told in position
    assert len(findings({"rgb": block()}, {})) == 4


def test_errors_that_read_the_same_are_level_and_nothing_is_divided_by_nothing():
    tiny = block()
    tiny["gps"] = head("median_km", "km", 0.001, 0.0011, 0.00104, [-1e-4, -5e-5], [-5e-5, -1e-5])
    tiny["gps"]["knn_median_km"] = 0.001
    (words,) = [one["words"] for one in head_findings({"rgb": tiny}, "rgb") if one["head"] == "gps"]
    assert "level with nearest neighbours" in words
    (row,) = [row for row in table_rows({"rgb": tiny}) if row["error of"] == "Position"]
    assert row["error / trivial"] == "–"


def test_few_groups_and_few_turns_are_said():
    few = block(groups=4)
    few["orientation"] = turns(n=4, accuracy=1.0, limits=(1.0, 1.0))
    found = head_findings({"rgb": few}, "rgb")
    assert all("4 groups of photos are too few" in one["words"] for one in found[:3])
    assert all(one["verdict"] == "open" for one in found[:3])
    worse = head_findings({"rgb": block(WORSE, WORSE, groups=4)}, "rgb")
    assert worse[0]["verdict"] == "bad"
    assert found[3]["verdict"] == "open" and "too few" in found[3]["words"]


@pytest.mark.parametrize(
    ("limits", "verdict"), [((0.2, 0.9), "open"), ((0.3, 0.9), "good"), (None, "open")]
)
def test_turns_against_chance(limits, verdict):
    model = block()
    model["orientation"] = turns(limits=limits)
    assert head_findings({"rgb": model}, "rgb")[3]["verdict"] == verdict


def change(median=(-0.2, -0.1), ratio=(0.8, 0.9)) -> dict:
    return {"n": 50, "median_km": -0.15, "interval": median and list(median),
            "geometric_ratio": 0.85, "ratio_interval": ratio and list(ratio),
            "helped": 20, "hurt": 10}  # fmt: skip


@pytest.mark.parametrize(
    ("median", "ratio", "said"),
    [
        ((-0.2, -0.1), (0.8, 0.9), "helps"),
        ((-0.2, 0.1), (0.8, 0.9), "helps"),  # all errors together, though not the middle one
        ((-0.2, 0.1), (0.9, 1.1), "within the noise"),
        ((0.1, 0.2), (1.1, 1.2), "hurts"),
        ((-0.2, -0.1), (1.1, 1.2), "mixed"),
        (None, None, "unknown"),
    ],
)
def test_depth_is_judged_by_all_errors_not_by_the_median_alone(median, ratio, said):
    block = change(median, ratio)
    assert depth_words("gps", block) == said
    (line,) = depth_findings({"gps": block})
    assert line.endswith(f": {said}.") and "50 photos" in line
    summary = depth_summary({"gps": block})
    assert summary["verdict"] == {"helps": "good", "hurts": "bad", "mixed": "bad"}.get(said, "open")
    assert "20 better, 10 worse" in summary["text"]


def test_a_change_that_reads_as_nothing_is_noise():
    block = {"n": 50, "mean_minutes": 0.01, "interval": [0.005, 0.02], "helped": 0, "hurt": 1}
    assert depth_words("time", block) == "within the noise"
    assert depth_summary({}) is None


def test_labels():
    assert room.minutes_label(95) == "95 min" and room.minutes_label(186) == "3.1 h"
    assert room.percent(0.997) == "99.7 %" and room.percent(0.5) == "50 %"


def test_cards_hold_every_model_and_baseline():
    cards = cards_of({"rgb": block(), "depth": block()})
    assert [card["title"] for card in cards] == [
        "Position",
        "Time of day",
        "Altitude",
        "Orientation",
    ]
    for card in cards:
        assert [row["who"] for row in card["rows"]][:2] == ["rgb", "depth"]
        assert all(0 <= row["at"] <= 100 for row in card["rows"])
    assert cards[0]["rows"][0]["low"] < cards[0]["rows"][0]["at"] < cards[0]["rows"][0]["high"]
