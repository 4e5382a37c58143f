"""The ablation's rows and table, on photos and features that are made up."""

import dataclasses

import ablation
import numpy as np
import pytest
from bench_training import made_up

import gps_orientation_trainer as trainer
from geophoto import densities, voices
from geophoto.devices import Precision
from geophoto.network import SCALES


def test_paired_ratios_and_short_numbers():
    groups = np.arange(40) // 2
    other = np.geomspace(0.01, 100, 40)
    value, (low, high) = ablation.ratio(0.5 * other, other, groups)
    assert value == pytest.approx(0.5) and low == pytest.approx(0.5) == pytest.approx(high)
    assert ablation.ratio(np.full(40, 1e-9), np.full(40, 1e-3), groups)[0] == 1  # 1 m is enough
    assert [ablation.short(x) for x in (5931.2, 0.09041, 12.34)] == ["5931", "0.0904", "12.3"]


def test_deals_are_averaged_position_by_logarithm():
    row = {"time": np.array([1.0, np.nan]), "altitude": np.zeros(2), "turns": np.ones(2)}
    one = {"r": {**row, "gps": np.array([1.0, 4.0]), "seconds": 1.0, "metrics": {"n": 1}}}
    two = {"r": {**row, "gps": np.array([100.0, 9.0]), "seconds": 2.0, "time": row["time"] + 2}}
    found = ablation.average([one, two])["r"]
    assert found["gps"] == pytest.approx([10, 6]) and found["seconds"] == 3
    assert found["time"] == pytest.approx([2, np.nan], nan_ok=True)
    assert found["metrics"] == [{"n": 1}]


def test_halves_of_the_picture_add_up_to_the_whole(tmp_path):
    """The texture of whole levels is computed from that of their halves."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 2, (1, 3, 8, 6)).astype(np.float32)
    halves = []
    for part in (level[:, :, :4], level[:, :, 4:]):
        halves += [part.mean(axis=(2, 3)), part.std(axis=(2, 3))]
    columns = [rng.normal(0, 1, (1, 4)), np.hstack(halves)] * SCALES
    widths = [c.shape[1] for c in columns]
    held = ablation.InMemory(np.hstack(columns).astype(np.float32))
    data = dataclasses.replace(made_up(1, tmp_path), rgb=held, blocks=widths, first=sum(widths))
    whole = ablation.parts_of(data)[0]["whole"][0]
    expected = np.hstack([level.mean(axis=(2, 3)), level.std(axis=(2, 3))])
    assert whole == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_every_row_is_scored_on_the_same_photos(tmp_path, capsys):
    data = made_up(60, tmp_path)
    precision = Precision("fp32", "cpu")
    arguments = ["--mode", "frozen", "--epochs", "2", "--folds", "3"]
    options = trainer.resolve_options(trainer.parse_args(arguments), precision)
    photo_set = ablation.PhotoSet("made up", data, data, data, options, precision)
    fits = densities.fit_trust, voices.Stack.fit
    table = ablation.average([ablation.rows_of(photo_set, 0, lambda name: None)])
    assert (densities.fit_trust, voices.Stack.fit) == fits  # every patch is undone
    for name, row in table.items():
        for head in ablation.HEADS:
            assert np.isfinite(row[head]).sum() == 60, (name, head)
    recipe = table[ablation.RECIPE]["gps"]
    for name in ablation.DENSITIES:
        row = table[name]
        moved = any((row[head] != table[ablation.RECIPE][head]).any() for head in ablation.HEADS)
        assert name == "  weights without gate" or moved, name
    assert (table[ablation.OTHERS["rounding"]]["gps"] == recipe).all()  # the same features here
    same = ablation.ratio(*(table[n]["gps"] for n in 2 * ["trivial answer"]), photo_set.groups)
    assert same == (1, [1, 1])
    moved = ablation.changes(photo_set, table)
    assert moved["rounding"] == 0 and 0 < moved["folds"] < 10
    records = ablation.print_set(photo_set, table)
    ablation.print_verdicts(photo_set, table)
    ablation.print_densities(table)
    printed = capsys.readouterr().out
    assert len(records) == 4 * len(table) - 4  # no turns of simple and naive answers
    assert printed.count("*") == 4  # the best of each column
    assert "too few to prove anything" in printed and "intervals hold" in printed
