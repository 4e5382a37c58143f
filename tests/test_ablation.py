"""The ablation's rows and table, on photos and features that are made up."""

import dataclasses

import ablation
import numpy as np
import pytest
from bench_training import made_up

import gps_orientation_trainer as trainer
from geophoto.devices import Precision
from geophoto.network import SCALES


def test_paired_ratios_and_short_numbers():
    groups = np.arange(40) // 2
    other = np.geomspace(0.01, 100, 40)
    value, (low, high) = ablation.ratio(0.5 * other, other, groups)
    assert value == pytest.approx(0.5) and low == pytest.approx(0.5) == pytest.approx(high)
    assert ablation.ratio(np.full(40, 1e-9), np.full(40, 1e-3), groups)[0] == 1  # 1 m is enough
    assert [ablation.short(x) for x in (5931.2, 0.09041, 12.34)] == ["5931", "0.0904", "12.3"]


def test_halves_of_the_picture_add_up_to_the_whole():
    """The texture of whole levels is computed from that of their halves."""
    rng = np.random.default_rng(0)
    level = rng.normal(0, 2, (1, 3, 8, 6)).astype(np.float32)
    halves = []
    for part in (level[:, :, :4], level[:, :, 4:]):
        halves += [part.mean(axis=(2, 3)), part.std(axis=(2, 3))]
    columns = [rng.normal(0, 1, (1, 4)), np.hstack(halves)] * SCALES
    data = dataclasses.replace(
        made_up(10),
        pooled=np.hstack(columns).astype(np.float32),
        blocks=[c.shape[1] for c in columns],
    )
    whole = ablation.parts_of(data)[0]["whole"][0]
    expected = np.hstack([level.mean(axis=(2, 3)), level.std(axis=(2, 3))])
    assert whole == pytest.approx(expected, abs=1e-5)


@pytest.mark.slow
def test_every_row_is_scored_on_the_same_photos(capsys):
    data = made_up(60)
    precision = Precision("fp32", "cpu")
    arguments = ["--mode", "frozen", "--epochs", "2", "--folds", "3"]
    options = trainer.resolve_options(trainer.parse_args(arguments), precision)
    photo_set = ablation.PhotoSet("made up", data, data, options, precision)
    table = ablation.rows_of(photo_set, lambda name: None)
    for name, row in table.items():
        for head in ("gps",) if name.startswith("classes") else ablation.HEADS:
            assert np.isfinite(row[head]).sum() == 60, (name, head)
    same = ablation.ratio(*(table[n]["gps"] for n in 2 * ["trivial answer"]), photo_set.groups)
    assert same == (1, [1, 1])
    records = ablation.print_set(photo_set, table)
    ablation.print_verdicts(photo_set, table)
    printed = capsys.readouterr().out
    assert len(records) > 4 * len(table) and printed.count("*") == 5  # the best of each column
    assert "too few to prove anything" in printed and "NOT better" in printed
