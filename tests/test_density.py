"""Files and the globe: against analytic values, high precision, brute force and a kill."""

import errno
import io
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import mpmath
import networkx
import numpy as np
import pytest
import torch
from conftest import REPOSITORY, quietly
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import integrate, optimize

import density

LATITUDE = st.floats(-90, 90)
LONGITUDE = st.floats(-180, 180)
POINT = st.tuples(LATITUDE, LONGITUDE)
QUARTER_KM = density.EARTH_RADIUS_KM * np.pi / 2

# ---------------------------------------------------------------- files


def test_stop_is_one_line_and_exit_2(capsys):
    with pytest.raises(SystemExit) as end:
        density.stop("first\n   second")
    assert end.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.endswith(": first second\n") and printed.err.count("\n") == 1


def test_atomic_write_creates_folders_and_replaces(tmp_path):
    path = tmp_path / "new" / "deep" / "file.txt"
    for content in ("one", "zwei …"):
        with density.write_atomically(path, "w", encoding="utf-8") as file:
            file.write(content)
        assert path.read_text(encoding="utf-8") == content
    assert [p.name for p in path.parent.iterdir()] == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_exception_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), density.write_atomically(path) as file:
        file.write(b"new, but only half")
        raise error
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


@pytest.mark.parametrize(
    "name", ["x" * 255, "é" * 125 + ".npy", "山" * 83 + ".npy", "🏔" * 62], ids=range(4)
)
def test_atomic_write_takes_every_name_that_the_disk_takes(tmp_path, name):
    (tmp_path / name).write_bytes(b"old")  # at most 255 bytes, like the names of photos
    with density.write_atomically(tmp_path / name) as file:
        file.write(b"new")
    assert (tmp_path / name).read_bytes() == b"new"


def test_long_names_with_the_same_end_do_not_share_a_temporary(tmp_path):
    first, second = tmp_path / ("a" + "x" * 150), tmp_path / ("b" + "x" * 150)
    with density.write_atomically(first) as one, density.write_atomically(second) as two:
        one.write(b"1")
        two.write(b"2")
    assert (first.read_bytes(), second.read_bytes()) == (b"1", b"2")


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@pytest.mark.parametrize("number", FULL)
def test_what_the_disk_refuses_names_the_file_and_keeps_the_old(tmp_path, monkeypatch, number):
    path = tmp_path / "table.json"
    path.write_bytes(b"old")

    def refuse(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError) as refused, density.write_atomically(path) as file:
        file.write(b"new")
    assert refused.value.filename == str(path) and refused.value.errno == number
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_checkpoint_that_does_not_fit_is_named_too(tmp_path):
    """torch turns the error of the file system into one of its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limits[1]))
    try:
        with pytest.raises(OSError) as refused, density.write_atomically(tmp_path / "x") as file:
            torch.save({"a": torch.zeros(2**20)}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert refused.value.filename == str(tmp_path / "x") and not list(tmp_path.iterdir())


def test_an_error_of_the_content_stays_what_it_is(tmp_path):
    with pytest.raises(FileNotFoundError) as error, density.write_atomically(tmp_path / "x"):
        (tmp_path / "not there").read_bytes()
    assert error.value.filename == str(tmp_path / "not there")


@pytest.mark.parametrize("kind", ["file in the way", "file above", "full", "no folder possible"])
def test_a_folder_that_takes_nothing_ends_the_run_before_its_work(
    tmp_path, monkeypatch, capsys, kind
):
    folder = tmp_path / "out"
    if kind == "file in the way":
        folder.write_bytes(b"")
    elif kind == "file above":
        folder.write_bytes(b"")
        folder = folder / "deep" / "er"
    elif kind == "full":
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "full")))
    else:
        folder = Path("/proc/none/out")
    with pytest.raises(SystemExit) as end:
        density.ready_to_write(folder)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and str(folder) in error
    monkeypatch.undo()
    density.ready_to_write(tmp_path / "good" / "one")
    assert not list((tmp_path / "good" / "one").iterdir())


def test_map_of_a_folder_that_takes_nothing_is_one_line(tmp_path, monkeypatch):
    row = {"gps_latitude": 46.0, "gps_longitude": 7.0, "warnings": None}
    (tmp_path / "exif_data.json").write_text(json.dumps([row]), encoding="utf-8")
    (tmp_path / "density.png").mkdir()
    code, printed = quietly(density.main, "--data-dir", tmp_path)
    assert code == 2 and printed.count("\n") == 1 and "density.png" in printed


@pytest.mark.parametrize("width", ["0", "-1", "nan", "inf"])
def test_a_kernel_without_width_is_refused(width):
    code, printed = quietly(density.main, f"--bandwidth-km={width}")
    assert code == 2 and printed.count("\n") == 1 and "--bandwidth-km" in printed


KILLED_WRITER = """
import sys, time, density
with density.write_atomically(sys.argv[1]) as file:
    file.write(b"half of the new content")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_kill_in_mid_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "sub" / "table.json"
    path.parent.mkdir()
    path.write_bytes(b"old")
    writer = subprocess.Popen(
        [sys.executable, "-c", KILLED_WRITER, str(path)], cwd=REPOSITORY, stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"writing\n"
    assert density.sweep_temporaries(tmp_path) == 0  # its owner lives
    assert len(list(path.parent.iterdir())) == 2
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    assert path.read_bytes() == b"old"
    assert density.sweep_temporaries(tmp_path) == 1
    assert [p.name for p in path.parent.iterdir()] == ["table.json"]


def test_sweep_leaves_foreign_files_alone(tmp_path):
    strangers = ["a.tmp", ".hidden", ".x.tmp", ".x.notpid.tmp", ".x.².tmp", "..tmp", ".x.1.tmp.jpg"]
    strangers.append(f".x.{10**30}.tmp")  # no process number is that large
    for name in strangers:
        (tmp_path / name).touch()
    (tmp_path / f".x.{os.getpid()}.tmp").touch()  # of an earlier process with this number
    assert density.sweep_temporaries(tmp_path) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(strangers)
    assert density.sweep_temporaries(tmp_path / "not there") == 0


# ---------------------------------------------------------------- distance and bearing


def exact_km(lat1, lon1, lat2, lon2) -> float:
    """Great-circle distance with 50 digits (Vincenty's form on the sphere)."""
    with mpmath.workdps(50):
        a, b = mpmath.radians(lat1), mpmath.radians(lat2)
        east = mpmath.radians(mpmath.mpf(lon2) - mpmath.mpf(lon1))
        x = mpmath.cos(a) * mpmath.sin(b) - mpmath.sin(a) * mpmath.cos(b) * mpmath.cos(east)
        y = mpmath.cos(b) * mpmath.sin(east)
        z = mpmath.sin(a) * mpmath.sin(b) + mpmath.cos(a) * mpmath.cos(b) * mpmath.cos(east)
        return float(mpmath.atan2(mpmath.hypot(x, y), z) * mpmath.mpf(density.EARTH_RADIUS_KM))


@pytest.mark.parametrize(
    "lat1, lon1, lat2, lon2, km",
    [
        (0, 0, 0, 90, QUARTER_KM),
        (0, 0, 90, 123, QUARTER_KM),
        (45, -180, 45, 180, 0.0),
        (90, 0, 90, 77, 0.0),
        (-90, 10, 90, 10, 2 * 10007.557),
        (37, 20, -37, -160, 2 * 10007.557),
        (0, 179.5, 0, -179.5, 111.195),
    ],
)
def test_distance_of_known_pairs(lat1, lon1, lat2, lon2, km):
    assert density.distance_km(lat1, lon1, lat2, lon2) == pytest.approx(km, abs=2e-3)


@pytest.mark.parametrize("metres", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("lat", [0.0, 45.0, 89.0])
def test_small_distances_keep_their_digits(metres, lat):
    step = np.degrees(metres / 1000 / density.EARTH_RADIUS_KM)
    apart = density.distance_km(lat, 10.0, lat + step, 10.0)
    assert apart * 1000 == pytest.approx(exact_km(lat, 10, lat + step, 10) * 1000, abs=1e-8)
    assert apart * 1000 == pytest.approx(metres, abs=1e-8)


@given(POINT, POINT)
def test_distance_agrees_with_fifty_digits(a, b):
    assert density.distance_km(*a, *b) == pytest.approx(exact_km(*a, *b), abs=1e-10, rel=1e-14)


@given(POINT, st.floats(-1e-6, 1e-6), st.floats(-1e-6, 1e-6))
def test_distance_is_exact_beside_the_antipode(a, north, east):
    b = np.clip(-a[0] + north, -90, 90), a[1] + 180 + east
    assert density.distance_km(*a, *b) == pytest.approx(exact_km(*a, *b), abs=1e-9)


@given(POINT, POINT, POINT)
def test_distance_is_a_metric(a, b, c):
    assert density.distance_km(*a, *b) == density.distance_km(*b, *a)
    assert density.distance_km(*a, *a) == 0
    direct = density.distance_km(*a, *c)
    assert direct <= density.distance_km(*a, *b) + density.distance_km(*b, *c) + 1e-9


def test_distance_broadcasts_and_keeps_nan():
    apart = density.distance_km(np.array([0, np.nan, 10]), np.zeros(3), 0, 0)
    assert apart[0] == 0 and np.isnan(apart[1]) and apart[2] == pytest.approx(1111.95, abs=0.01)


@pytest.mark.parametrize(
    "a, b, degrees",
    [
        ((0, 0), (10, 0), 0),
        ((0, 0), (0, 10), 90),
        ((10, 0), (0, 0), 180),
        ((0, 0), (0, -10), 270),
        ((0, 0), (10, -1e-18), 0),
        ((0, 179), (0, -179), 90),
        ((50, 5), (90, 0), 0),
        ((45, 0), (45, 90), np.degrees(np.arctan(np.sqrt(2)))),
        ((45, 0), (45, -90), 360 - np.degrees(np.arctan(np.sqrt(2)))),
    ],
)
def test_bearing_of_known_pairs(a, b, degrees):
    assert density.bearing_deg(*a, *b) == pytest.approx(degrees, abs=0.01)


@given(st.tuples(st.floats(-85, 85), LONGITUDE), st.floats(0, 359.99), st.floats(0.001, 10000))
def test_bearing_inverts_the_direct_problem(start, heading, km):
    lon = np.radians(start[1])
    arc, turn = km / density.EARTH_RADIUS_KM, np.radians(heading)
    up = density.unit_vectors(*start)
    east = np.array([-np.sin(lon), np.cos(lon), 0])
    goal = np.cos(arc) * up + np.sin(arc) * (
        np.sin(turn) * east + np.cos(turn) * np.cross(up, east)
    )
    end = density.lat_lon(goal)
    miss = (density.bearing_deg(*start, *end) - heading + 180) % 360 - 180
    assert abs(miss) * arc < 1e-7  # near the start a float's last digit turns far
    assert 0 <= density.bearing_deg(*start, *end) < 360
    assert density.distance_km(*start, *end) == pytest.approx(km, abs=1e-8)


@given(POINT, st.floats(1e-3, 1e3))
def test_vectors_and_degrees_are_inverse(point, length):
    vector = density.unit_vectors(*point)
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-15)
    lat, lon = density.lat_lon(vector * length)
    assert lat == pytest.approx(point[0], abs=1e-12)
    if abs(point[0]) < 89.999999:
        assert (lon - point[1] + 180) % 360 - 180 == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("lat, lon", [(90, 0), (-90, 0), (0, 180), (0, -180), (12.5, 179.999999)])
def test_vectors_at_poles_and_date_line(lat, lon):
    back = density.lat_lon(density.unit_vectors(lat, lon))
    assert density.distance_km(*back, lat, lon) < 1e-9
    assert -90 <= back[0] <= 90 and -180 <= back[1] <= 180


def test_vectors_have_the_shape_of_their_input():
    assert density.unit_vectors(np.zeros((4, 5)), 0.0 * np.zeros((4, 5))).shape == (4, 5, 3)
    assert np.isnan(density.unit_vectors(np.nan, 3.0)).any()


# ---------------------------------------------------------------- geographic median


def test_median_is_the_place_that_brute_force_finds():
    rng = np.random.default_rng(1)
    for spread in (0.01, 1.0, 20.0):
        lat, lon = 40 + spread * rng.normal(size=41), -8 + spread * rng.normal(size=41)

        def cost(place, lat=lat, lon=lon):
            return density.distance_km(lat, lon, *place).sum()

        found = density.geographic_median(lat, lon)
        best = optimize.minimize(cost, [lat.mean(), lon.mean()], method="Nelder-Mead")
        assert cost(found) <= best.fun * (1 + 1e-4)


@settings(max_examples=30)
@given(st.integers(0, 1000), st.floats(-360, 360))
def test_median_turns_with_the_globe(seed, turn):
    rng = np.random.default_rng(seed)
    lat, lon = rng.normal(10, 3, 15), rng.normal(20, 3, 15)
    plain, turned = density.geographic_median(lat, lon), density.geographic_median(lat, lon + turn)
    assert density.distance_km(plain[0], plain[1] + turn, *turned) < 1e-3


def test_median_across_the_date_line_and_of_one_point():
    lat, lon = density.geographic_median(np.array([0, 0, 0.0]), np.array([179, -179, 180.0]))
    assert density.distance_km(lat, lon, 0, 180) < 1e-6
    assert density.geographic_median(np.array([7.0]), np.array([8.0])) == pytest.approx((7, 8))


def test_median_ignores_how_far_the_outlier_is():
    lat = np.array([1.0, 1.0, 1.0, 1.0, 60.0])
    found = density.geographic_median(lat, np.full(5, 2.0))
    assert density.distance_km(*found, 1.0, 2.0) < 1e-6


# ---------------------------------------------------------------- groups


def same_partition(a, b) -> bool:
    """Equal up to the numbers of the groups."""
    pairs = set(zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True))
    return len(pairs) == len({x for x, _ in pairs}) == len({y for _, y in pairs})


def brute_force_groups(lat, lon, seconds, camera, folder, radius_km) -> list[int]:
    graph = networkx.Graph()
    graph.add_nodes_from(range(len(lat)))
    linked = set()
    for i in range(len(lat)):
        for j in range(i):
            near = (
                radius_km > 0 and density.distance_km(lat[i], lon[i], lat[j], lon[j]) <= radius_km
            )
            burst = camera[i] == camera[j] and abs(seconds[i] - seconds[j]) <= 60
            if near or burst:
                graph.add_edge(i, j)
            if burst:
                linked |= {i, j}
    alone = [i for i in range(len(lat)) if not np.isfinite(lat[i]) and i not in linked]
    for i in alone:
        graph.add_edges_from((i, j) for j in alone if folder[i] == folder[j])
    number = {}
    for k, part in enumerate(networkx.connected_components(graph)):
        number |= dict.fromkeys(part, k)
    return [number[i] for i in range(len(lat))]


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(1, 60),
    st.sampled_from([1.0, 0.3, 0.03, 0.0, 500.0, 30000.0]),
    st.sampled_from([(0, 0), (46, 7), (89.99, 0), (-90, 0), (10, 180), (10, -180)]),
)
def test_groups_are_the_connected_components(seed, count, radius_km, centre):
    rng = np.random.default_rng(seed)
    spread = max(radius_km, 0.03) / 111 * rng.choice([0.5, 3, 10])
    lat = np.clip(centre[0] + rng.normal(0, spread, count), -90, 90)
    east = rng.normal(0, spread, count) / max(np.cos(np.radians(centre[0])), 0.01)
    lon = (centre[1] + east + 180) % 360 - 180
    unplaced = rng.random(count) < 0.2
    lat[unplaced] = lon[unplaced] = np.nan
    seconds = rng.choice([0, 3600.0, 9000.0], count) + rng.integers(0, 400, count)
    seconds[rng.random(count) < 0.2] = np.nan
    camera, folder = rng.choice(["a", "b", ""], count), rng.choice(["x", "y"], count)
    arguments = (lat, lon, seconds, camera, folder, radius_km)
    assert same_partition(density.group_photos(*arguments), brute_force_groups(*arguments))


def test_groups_across_the_date_line_and_around_a_pole():
    nothing = np.full(4, np.nan), ["c"] * 4, [""] * 4
    lat, lon = np.array([0, 0, 0, 0.0]), np.array([179.999, -179.999, 180, 0])
    groups = density.group_photos(lat, lon, *nothing, 1.0)
    assert groups[0] == groups[1] == groups[2] != groups[3]
    lat, lon = np.array([89.999, 89.999, 89.999, 89.0]), np.array([0, 120, -120, 0.0])
    groups = density.group_photos(lat, lon, *nothing, 1.0)
    assert groups[0] == groups[1] == groups[2] != groups[3]


def test_a_burst_links_neighbours_in_time_and_cameras_do_not_mix():
    nowhere = np.full(5, np.nan), np.full(5, np.nan)
    seconds = np.array([0, 60.0, 120.0, 180.1, 60.0])
    groups = density.group_photos(*nowhere, seconds, list("aaaab"), list("vwxyz"), 1.0)
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3


def test_groups_do_not_depend_on_the_order():
    rng = np.random.default_rng(3)
    lat, lon, seconds = rng.normal(0, 0.01, 50), rng.normal(0, 0.01, 50), rng.uniform(0, 5e3, 50)
    camera, folder, order = rng.choice(["a", "b"], 50), np.array(["f"] * 50), rng.permutation(50)
    one = density.group_photos(lat, lon, seconds, camera, folder, 0.3)
    two = density.group_photos(*(v[order] for v in (lat, lon, seconds, camera, folder)), 0.3)
    assert same_partition(one[order], two)


def test_groups_of_many_photos_hold_all_their_neighbours():
    rng = np.random.default_rng(0)
    lat, lon = rng.normal(50, 0.3, 6000), rng.normal(8, 0.3, 6000)
    groups = density.group_photos(lat, lon, np.full(6000, np.nan), [""] * 6000, [""] * 6000, 1)
    vectors = density.unit_vectors(lat, lon)
    assert len(groups) == 6000
    for i in range(0, 6000, 397):  # a photo's group holds all within the radius
        near = density.arc_km(vectors, vectors[i]) <= 1
        assert set(groups[near]) == {groups[i]}


@pytest.mark.parametrize(
    "apart_m, radius_km", [(5000, 1.0), (500, 0.3), (200, 0.1), (50, 0.03), (2, 0.0)]
)
def test_split_radius_shrinks_until_groups_are_enough(apart_m, radius_km):
    lat = 50 + np.arange(30) * apart_m / 111195
    never = np.full(30, np.nan)
    groups, used, _ = density.group_for_split(lat, np.zeros(30), never, [""] * 30, [""] * 30, 10)
    assert used == radius_km
    assert len(set(groups)) == 30


def test_split_radius_shrinks_for_one_crowded_place():
    lat = np.concatenate([np.full(5, 10.0), 50 + np.arange(5) * 0.002, 20 + np.arange(10.0)])
    # half of the photos within 250 m of the next, yet 300 m would still leave 11 groups
    lat[:5] = 50.0 + 0.01 + np.arange(5) * 0.002
    never = np.full(20, np.nan)
    groups, used, _ = density.group_for_split(lat, np.zeros(20), never, [""] * 20, [""] * 20, 4)
    assert used == 0.1
    assert np.bincount(groups).max() <= 8


def test_split_without_any_fair_radius_uses_bursts():
    place = np.full(12, 5.0)
    seconds = np.repeat([0, 1000.0, 2000.0, 3000.0], 3)
    groups, used, by = density.group_for_split(place, place, seconds, ["c"] * 12, [""] * 12, 10)
    assert used == 0.0 and by == "bursts"
    assert same_partition(groups, np.repeat(np.arange(4), 3))


@pytest.mark.parametrize("hours, count, by", [(1.5, 900, "days"), (0.75, 1407, "days")])
def test_a_fixed_camera_is_split_by_whole_days(hours, count, by):
    place, seconds = np.full(count, 7.5), 1e9 + 3600 * hours * np.arange(count)
    groups, radius, found = density.group_for_split(
        place, place, seconds, ["c"] * count, [""] * count, 10
    )
    assert (radius, found) == (0.0, by)
    local = np.floor((seconds + 240 * 7.5) / 86400)
    assert same_partition(groups, local)


def test_one_day_at_one_place_is_split_where_nothing_was_taken_for_hours():
    seconds = np.concatenate([k * 5 * 3600 + 61 * np.arange(20) for k in range(4)]) - 3e9
    place = np.full(80, 1e-6)
    groups, _, by = density.group_for_split(place, place, seconds, ["c"] * 80, [""] * 80, 6)
    assert by in ("days", "gaps")
    assert len(set(groups)) >= 3


@pytest.mark.parametrize("count, least", [(40, 6), (315, 10), (60, 40)])
def test_one_burst_is_cut_into_stretches_at_its_widest_gaps(count, least):
    rng = np.random.default_rng(count)
    seconds = np.cumsum(rng.uniform(1, 50, count))
    place = np.full(count, 46.0)
    groups, _, by = density.group_for_split(
        place, place, seconds, ["drone"] * count, [""] * count, least
    )
    assert by == "stretches" and least // 2 <= len(set(groups)) <= least
    assert (np.diff(groups[np.argsort(seconds)]) != 0).sum() == len(set(groups)) - 1
    assert np.bincount(groups).max() <= 0.4 * count
    gaps, cut = np.diff(seconds), np.diff(groups) != 0
    assert gaps[cut].mean() > gaps.mean()


def test_one_burst_without_a_time_stays_one_group_and_says_so():
    place, never = np.full(20, 3.0), np.full(20, np.nan)
    groups, _, by = density.group_for_split(place, place, never, [""] * 20, [""] * 20, 10)
    assert by == "bursts" and len(groups) == 20


# ---------------------------------------------------------------- kernel and density


@pytest.mark.parametrize("bandwidth_km", [0.001, 1.0, 300.0, 5000.0, 20000.0, 1e6])
def test_kernel_holds_one_photo(bandwidth_km):
    radius = density.EARTH_RADIUS_KM
    end = min(np.pi * radius, 40 * bandwidth_km)

    def ring(km):
        circumference = 2 * np.pi * radius * np.sin(km / radius)
        return np.exp(density.kernel_log_per_km2(km, bandwidth_km)) * circumference

    total = integrate.quad(ring, 0, end, points=[end / 40, end / 10], limit=200)[0]
    assert total == pytest.approx(1, abs=1e-6)


def test_kernel_is_a_gaussian_at_ten_metres():
    drop = density.kernel_log_per_km2(0.01, 0.01) - density.kernel_log_per_km2(0.0, 0.01)
    assert drop == pytest.approx(-0.5, abs=1e-6)  # a float32 dot product gives −24193


@given(st.floats(0, 20015), st.floats(0, 20015), st.floats(0.001, 1e5))
def test_kernel_falls_with_distance(near, far, bandwidth_km):
    near, far = sorted((near, far))
    values = density.kernel_log_per_km2(np.array([near, far]), bandwidth_km)
    assert np.isfinite(values).all() and values[0] >= values[1]


def test_density_against_the_textbook_formula():
    rng = np.random.default_rng(2)
    lat, lon = rng.uniform(-80, 80, 700), rng.uniform(-180, 180, 700)
    at_lat, at_lon = rng.uniform(-90, 90, 9), rng.uniform(-180, 180, 9)
    kappa = (density.EARTH_RADIUS_KM / 2000) ** 2
    dot = density.unit_vectors(at_lat, at_lon) @ density.unit_vectors(lat, lon).T
    norm = kappa / (4 * np.pi * np.sinh(kappa))  # of the von Mises–Fisher density on the sphere
    wanted = (norm * np.exp(kappa * dot)).sum(axis=1) / density.EARTH_RADIUS_KM**2
    found = density.density_per_km2(lat, lon, at_lat, at_lon, 2000)
    assert found == pytest.approx(wanted, rel=1e-9)


# ---------------------------------------------------------------- mixtures


def test_distinct_places_share_the_probability():
    lat, lon = np.array([10.0, 10.001, 20.0, 30.0]), np.array([5.0, 5.0, 5.0, 5.0])
    centres = density.unit_vectors(lat, lon)
    weights = np.array([0.35, 0.2, 0.44, 0.01])  # the first two are one place, the last too rare
    draws = np.repeat(centres, (1000 * weights).astype(int), axis=0)
    places = density.distinct_places(centres, draws, 5.0, 3)
    assert [round(p[0]) for p in places] == [10, 20]
    assert [p[2] for p in places] == pytest.approx([0.55, 0.44], abs=0.01)
    assert density.distinct_places(centres, draws, 5.0, 1) == places[:1]


# ---------------------------------------------------------------- order and cells


@given(st.lists(st.one_of(POINT, st.just((np.nan, np.nan))), max_size=70))
def test_spread_order_is_a_permutation_with_the_unplaced_last(points):
    lat, lon = np.array(points, float).reshape(-1, 2).T
    order = density.spread_order(lat, lon)
    assert sorted(order.tolist()) == list(range(len(points)))
    placed = np.isfinite(lat[order])
    assert (np.sort(placed)[::-1] == placed).all()


def test_every_beginning_of_spread_order_covers_the_map():
    lat, lon = (v.ravel() for v in np.meshgrid(np.arange(0, 32.0), np.arange(0, 32.0)))
    order = density.spread_order(lat, lon)
    vectors = density.unit_vectors(lat, lon)
    for count in (16, 64, 256):
        shown = vectors[order[:count]]
        farthest = max(density.arc_km(shown, v).min() for v in vectors)
        assert farthest < 3.5 * 111.2 * 32 / np.sqrt(count)


@settings(max_examples=40, deadline=None)
@given(POINT, st.sampled_from([0.1, 1.0, 10.0, 100.0]))
def test_cells_move_no_farther_than_a_cell_and_only_once(point, cell_km):
    lat, lon = density.cell_centre(*point, cell_km)
    assert density.distance_km(*point, lat, lon) <= 3 * cell_km
    again = density.cell_centre(lat, lon, cell_km)
    assert density.distance_km(*again, lat, lon) < 1e-6


def test_cells_join_neighbours_and_grow_with_their_size():
    near, far = (46.5001, 7.5001), (46.6, 7.6)
    assert density.cell_centre(*near, 100.0) == density.cell_centre(46.5002, 7.5002, 100.0)
    assert density.cell_centre(*near, 1.0) != density.cell_centre(*far, 1.0)


# ---------------------------------------------------------------- the map


def write_positions(folder, places, warnings="") -> None:
    rows = [{"gps_latitude": a, "gps_longitude": b, "warnings": warnings} for a, b in places]
    (folder / "exif_data.json").write_text(json.dumps(rows), encoding="utf-8")


def test_map_of_the_photo_set(photo_set, tmp_path):
    (tmp_path / "exif_data.json").write_bytes((photo_set.data / "exif_data.json").read_bytes())
    code, printed = quietly(density.main, "--data-dir", tmp_path)
    assert code == 0 and "49 positions" in printed  # 48 and the one cut off
    pixels = np.asarray(Image.open(tmp_path / "density.png").convert("RGB"))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    page = (tmp_path / "density.html").read_text(encoding="utf-8")
    content = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    shown = np.stack([content["lat"], content["lon"]], axis=1)
    assert len(content["name"]) == len(shown) == 49
    truth = [(label["lat"], label["lon"]) for label in photo_set.truth.values() if label]
    apart = density.distance_km(*shown.T[:, :, None], *np.array(truth).T[:, None])
    assert apart.min(axis=0).max() < 1e-3


@pytest.mark.parametrize(
    "places",
    [
        [(46.0, 7.0)],
        [(46.0, 7.0)] * 3,
        [(0.0, 179.9999), (0.001, -179.9999), (None, None)],
        [(-89.9999, 0.0), (-89.9999, 120.0), (-89.9999, -120.0)],
        [(60.0, -170.0), (-60.0, 170.0), (10.0, 0.0)],
    ],
    ids=["one", "same", "date line", "pole", "world"],
)
def test_map_of_difficult_places(tmp_path, places):
    write_positions(tmp_path, places)
    code, printed = quietly(density.main, "--data-dir", tmp_path)
    assert code == 0, printed
    assert (tmp_path / "density.png").read_bytes()[1:4] == b"PNG"


@pytest.mark.parametrize("content", [None, "{", "[1]", '[{"gps_latitude": 1}]', "[]"])
def test_map_without_a_table_is_one_line_and_exit_2(tmp_path, content):
    if content is not None:
        (tmp_path / "exif_data.json").write_text(content, encoding="utf-8")
    code, printed = quietly(density.main, "--data-dir", tmp_path)
    assert code == 2 and printed.count("\n") == 1 and "exif_data.json" in printed


def test_map_leaves_doubted_positions_out(tmp_path):
    write_positions(tmp_path, [(0.0, 0.0)], "gps_zero;no_time")
    assert quietly(density.main, "--data-dir", tmp_path)[0] == 2


# ---------------------------------------------------------------- progress, interruptions


def test_a_log_gets_a_line_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(density, "LOG_SECONDS", 0.2)
    begun = time.monotonic()
    for _ in density.progress(range(300), desc="photos", unit="photo"):
        time.sleep(0.003)
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 2 + (time.monotonic() - begun) / 0.2
    assert all(re.match(r"photos: \d+ of 300, .* passed, .* left", line) for line in lines)


def test_short_work_leaves_no_line_in_a_log(capsys):
    assert list(density.progress(range(1000), desc="photos")) == list(range(1000))
    with density.progress(total=5, desc="photos") as bar:
        bar.update(5)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    list(density.progress(range(3), desc="photos"))
    assert "\r" in sys.stderr.getvalue() and "100%" in sys.stderr.getvalue()


WAITING = """
import density, os, sys, time
def main():
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
density.run_script(main)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_script_with_one_line(number):
    """And a process forked from it, which a handler of the script's must not keep alive."""
    script = subprocess.Popen(
        [sys.executable, "-c", WAITING], cwd=REPOSITORY, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,  # what a shell runs in the background ignores Ctrl-C: not this one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    child = int(script.stdout.readline())
    os.kill(child, signal.SIGTERM)
    script.send_signal(number)
    _, told = script.communicate(timeout=20)  # ends when the child has let go of the pipes too
    assert script.returncode == 128 + number
    assert told.strip().endswith("interrupted; the same command goes on from here")
    assert told.strip().count("\n") == 0 and "Traceback" not in told


@pytest.mark.parametrize(
    ("km", "text"),
    [(0.001, "1 m"), (0.4444, "444 m"), (0.9994, "999 m"), (0.9996, "1 km"), (4.254, "4.25 km"),
     (9.996, "10 km"), (999.7, "1,000 km"), (12_100.4, "12,100 km")],
)  # fmt: skip
def test_distances_are_never_in_powers_of_ten(km, text):
    assert density.distance_label(km) == text


@given(st.floats(1e-6, 20_100))
def test_a_distance_as_people_say_it_is_read_back(km):
    number, unit = density.distance_label(km).replace(",", "").split()
    assert float(number) * {"m": 1e-3, "km": 1}[unit] == pytest.approx(km, rel=0.05)
    assert "e+" not in number
