"""Checkpoints, maps and tables of an enemy or a bad disk: one line, or a counted skip."""

import io
import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import copy_data, quietly, training_arguments

import depth_map_generator
import evaluate_gps_model
import gps_orientation_trainer as trainer
from geophoto import archives, checkpoints
from geophoto.densities import COMPANY
from geophoto.depth_maps import load_depth_map, read_depth_model

# ---------------------------------------------------------------- flipped bits


@pytest.fixture
def model(trained, tmp_path):
    for suffix in (".pth", ".private.pth", ".json"):
        shutil.copy(trained.checkpoints / f"best_gps_model_rgb{suffix}", tmp_path)
    return tmp_path / "best_gps_model_rgb.pth"


def refused(capsys, path, **options) -> str:
    """The line with which a checkpoint is refused."""
    with pytest.raises(SystemExit) as end:
        checkpoints.read_checkpoint(path, **options)
    line = capsys.readouterr().err.strip()
    assert end.value.code == 2 and "\n" not in line
    return line


@pytest.mark.parametrize("twin", [True, False])
@pytest.mark.parametrize("count", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_is_accepted(model, capsys, twin, count):
    """Anywhere: tensors, pickle, headers, paddings, seal. A padding byte that changes nothing is
    refused like any other: the seal covers every byte of the file."""
    if not twin:
        model.with_suffix(".json").unlink()
    rng, content = np.random.default_rng(int(twin)), bytearray(model.read_bytes())
    with zipfile.ZipFile(model) as archive:
        infos = archive.infolist()
    dull = [i.header_offset + int(n) for i in infos[:50] for n in rng.integers(0, 60, 2)]
    places = [*rng.choice(dull, count // 4), *(len(content) - rng.integers(1, 400, count // 4))]
    places += rng.integers(0, len(content), count - len(places)).tolist()
    for place in map(int, places):
        bit = 1 << int(rng.integers(8))
        content[place] ^= bit
        model.write_bytes(content)
        refused(capsys, model, with_private=False)
        content[place] ^= bit
    model.write_bytes(content)
    assert checkpoints.read_checkpoint(model)["format"] == checkpoints.FORMAT


@pytest.mark.parametrize("name", ["best_gps_model_rgb.private.pth"])
def test_no_flipped_bit_of_the_private_file_is_accepted(model, capsys, name):
    private = model.with_name(name)
    content = bytearray(private.read_bytes())
    for place in np.random.default_rng(2).integers(0, len(content), 20).tolist():
        content[place] ^= 4
        private.write_bytes(content)
        assert private.name in refused(capsys, model)
        content[place] ^= 4


# ---------------------------------------------------------------- altered fields

WRONG = (None, "text", [], [1.0], {}, {"a": 1}, -1, 0, 10**9, 10**30, 1e308, float("nan"),
         float("inf"), True, torch.zeros(3), torch.full((3,), torch.nan))  # fmt: skip


def places_in(value, path=()):
    """Every field of nested dicts and the first of lists; of the weights a few."""
    if path:
        yield path
    if isinstance(value, dict):
        keys = list(value)
        for key in keys[:3] + keys[-3:] if path == ("model",) else keys:
            yield from places_in(value[key], (*path, key))
    elif isinstance(value, list | tuple) and value:
        yield from places_in(value[0], (*path, 0))


def altered(content, path, change):
    """A copy with one field changed: `change` gets its owner (a dict or list) and key."""
    if len(path) == 1:
        owner = dict(content) if isinstance(content, dict) else list(content)
        change(owner, path[0])
        return owner
    owner = dict(content) if isinstance(content, dict) else list(content)
    owner[path[0]] = altered(content[path[0]], path[1:], change)
    return owner


def alterations(content):
    """Every altered content, with what was done: missing, extra, of another type or value."""
    for path in places_in(content):
        yield path, "missing", altered(content, path, lambda o, k: o.pop(k))
        for wrong in WRONG:
            yield path, wrong, altered(content, path, lambda o, k, w=wrong: o.__setitem__(k, w))
    for path in ((), *((key,) for key, value in content.items() if isinstance(value, dict))):
        extra = (*path, "extra")
        yield extra, "extra", altered(content, extra, lambda o, k: o.__setitem__(k, 1))


@pytest.mark.parametrize("step", [59, pytest.param(5, marks=pytest.mark.slow)])
def test_altered_checkpoints_answer_or_are_refused_with_one_line(trained, model, capsys, step):
    """Sealed again after the change, as an enemy would: either refused by name, or what changed is
    a value that a training could have written, with which a photo gets an answer."""
    from geophoto.photos import photos_of
    from geophoto.predictions import Predictor, held_out_answers
    from geophoto.table import read_table

    content, seen, accepted = archives.load(model), 0, 0
    photo = trained.data / "images" / "day_0" / "IMG_000.jpg"
    model.with_suffix(".json").unlink()
    checkpoints.private_file(model).unlink()
    for path, wrong, other in list(alterations(content))[::step]:
        archives.save(model, other)
        seen += 1
        try:
            read = checkpoints.read_checkpoint(model, with_private=False)
        except SystemExit as end:
            line = capsys.readouterr().err.strip()
            assert end.code == 2 and "\n" not in line, (path, wrong)
            continue
        accepted += 1
        predictor = Predictor(read, model.parent, "fp32", 0.6)
        raw, failed = predictor.look_at_all([photo, photo], lambda items, **_: items)
        for kind in COMPANY:
            answers = predictor.answers(raw, kind, [np.arange(2)])
            assert len(answers) == 2 and not failed, (path, wrong)
    assert seen > 10 and accepted < seen / 5, (seen, accepted)
    shutil.copy(trained.checkpoints / model.name, model)
    private = archives.load(trained.checkpoints / "best_gps_model_rgb.private.pth")
    photos = photos_of(read_table(trained.data), trained.data / "images")
    for path, wrong, other in list(alterations(private))[:: max(1, step // 5)]:
        archives.save(checkpoints.private_file(model), other)
        try:
            read = checkpoints.read_checkpoint(model)
        except SystemExit as end:
            line = capsys.readouterr().err.strip()
            assert end.code == 2 and "\n" not in line, (path, wrong)
            continue
        held_out_answers(read, photos, trained.data, "fp32", lambda items, **_: items)


# ---------------------------------------------------------------- hostile checkpoints


class Attack:
    """Pickled, it opens a file when it is read."""

    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return open, (str(self.victim), "w")


def zipped(records: dict[str, bytes], compress=zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compress) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return made.getvalue()


def sealed(data: bytes) -> bytes:
    made = io.BytesIO()
    sealing = archives.Sealing(made)
    sealing.write(data)
    sealing.seal()
    return made.getvalue()


def torch_pickle(kind: str, count: int, offset: int, shape: tuple, stride: tuple) -> bytes:
    """The pickle of one tensor as torch writes it, with sizes of one's choice."""

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), offset, shape, stride, False, {})

    class Storage:
        pass

    class Writer(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, Storage):
                return "storage", getattr(torch, kind), "0", "cpu", count
            return None

    made = io.BytesIO()
    Writer(made, 2).dump({"format": checkpoints.FORMAT, "model": {"x": Tensor()}})
    return made.getvalue()


def laughing() -> dict:
    """A list that holds a list twice that holds a list twice …"""
    value: list = []
    for _ in range(25):
        value = [value, value]
    return {"format": checkpoints.FORMAT, "model": value}


def nested(depth: int) -> dict:
    value: dict = {}
    for _ in range(depth):
        value = {"a": value}
    return {"format": checkpoints.FORMAT, "model": value}


def hostile_checkpoints(victim) -> dict[str, bytes]:
    one = {"a/data/0": bytes(16), "a/version": b"3\n", "a/byteorder": b"little"}

    def with_pickle(data: bytes) -> bytes:
        return sealed(zipped({"a/data.pkl": data, **one}))

    def tensor(count: int, offset: int, shape: tuple, stride: tuple) -> bytes:
        return with_pickle(torch_pickle("FloatStorage", count, offset, shape, stride))

    def saved(content) -> bytes:
        made = io.BytesIO()
        torch.save(content, made)
        return sealed(made.getvalue())

    plain = pickle.dumps({"format": checkpoints.FORMAT}, 2)
    return {
        "pickle alone": pickle.dumps(Attack(victim)),
        "torch.save of an attack": saved({"format": 9, "model": Attack(victim)}),
        "attack in a sealed pickle": with_pickle(pickle.dumps(Attack(victim), 2)),
        "names os.system": with_pickle(b"cos\nsystem\n(S'touch %a'\ntR." % str(victim)),
        "names builtins.eval": with_pickle(b"cbuiltins\neval\n(S'1'\ntR."),
        "bytearray of a terabyte": with_pickle(b"cbuiltins\nbytearray\n(L1000000000000L\ntR."),
        "memo of four billion": with_pickle(b"\x80\x02}r\xff\xff\xff\x7f."),
        "storage beyond its record": tensor(10**9, 0, (9,), (1,)),
        "tensor beyond its storage": tensor(4, 0, (99,), (1,)),
        "tensor of one number": tensor(4, 0, (10**6, 10**6), (0, 0)),
        "tensor that begins before": tensor(4, -8, (2,), (1,)),
        "negative stride": tensor(4, 3, (2,), (-1,)),
        "billion laughs": saved(laughing()),
        "nested deep": saved(nested(200)),
        "zip bomb": sealed(zipped({"a/data.pkl": plain, "a/data/0": bytes(10**8)},
                                  zipfile.ZIP_DEFLATED)),
        "absolute name": sealed(zipped({"/etc/data.pkl": plain})),
        "dotted name": sealed(zipped({"../a/data.pkl": plain, **one})),
        "two folders": sealed(zipped({"a/data.pkl": plain, "b/data.pkl": plain})),
        "empty zip": sealed(zipped({})),
        "no zip": sealed(bytes(1000)),
        "empty": b"",
        "no seal": zipped({"a/data.pkl": plain, **one}),
    }  # fmt: skip


def test_hostile_checkpoints_are_refused_and_run_nothing(tmp_path, capsys):
    victim = tmp_path / "victim"
    for what, data in hostile_checkpoints(victim).items():
        path = tmp_path / "x.pth"
        path.write_bytes(data)
        assert "no checkpoint" in refused(capsys, path), what
        assert checkpoints.resume_from(path, "identity") is None, what
        assert checkpoints.finished_score(path, "identity", 1) is None, what
        assert not victim.exists(), what


@pytest.mark.parametrize("name", ["../x.pth", "/etc/passwd", "a/b.pth", "a\\b.pth", ""])
def test_a_depth_model_is_named_without_a_folder(trained, tmp_path, capsys, name):
    content = archives.load(trained.checkpoints / "best_gps_model_depth.pth")
    content["settings"]["depth_model"]["file"] = name
    archives.save(tmp_path / "x.pth", content)
    line = refused(capsys, tmp_path / "x.pth", with_private=False)
    assert "settings.depth_model.file" in line


# ---------------------------------------------------------------- maps and tables


def npy(header: str, data: bytes = b"") -> bytes:
    padded = header.ljust(118) + "\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode() + data


def hostile_maps(victim) -> dict[str, bytes]:
    def saved(array, **options) -> bytes:
        made = io.BytesIO()
        np.save(made, array, **options)
        return made.getvalue()

    form = "{'descr': '%s', 'fortran_order': False, 'shape': %s}"
    return {
        "objects": saved(np.array([Attack(victim)], object), allow_pickle=True),
        "pickle": pickle.dumps(Attack(victim)),
        "larger than any disk": npy(form % ("<f2", "(1000000, 1000000)")),
        "cut off": npy(form % ("<f2", "(100, 100)"), bytes(50)),
        "negative shape": npy(form % ("<f2", "(-5, 5)"), bytes(50)),
        "code for a header": npy(f"__import__('os').system('touch {victim}')"),
        "texts": saved(np.array([["a", "b"]])),
        "NaN": saved(np.full((4, 4), np.nan, np.float16)),
        "infinite": saved(np.full((4, 4), np.inf, np.float16)),
        "three dimensions": saved(np.zeros((4, 4, 4), np.float16)),
        "empty": b"",
        "zip of arrays": zipped({"a.npy": saved(np.zeros((4, 4), np.float16))}),
    }


def test_hostile_maps_are_no_maps_and_run_nothing(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "x.npy"
    for what, data in hostile_maps(victim).items():
        path.write_bytes(data)
        with pytest.raises((ValueError, OSError)):
            load_depth_map(path)
            pytest.fail(what)
        assert not victim.exists(), what


HOSTILE_SIDECARS = {
    "list": "[]", "null": "null", "number": "1e308", "deep": "[" * 100_000, "cut": '{"model": "x',
    "binary": "\udcff\x00", "texts that are none": '{"model": 1, "file": [], "sha256": {}}',
    "path": '{"model": "../../etc", "file": "/etc/passwd", "sha256": "0", "kind": "inverse depth"}',
    "NaN for sizes": '{"model": "x", "file": "x.pth", "sha256": "0", "input_size": NaN}',
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE_SIDECARS)
def test_hostile_depth_model_notes_end_with_one_line_at_most(photo_set, tmp_path, what):
    data = copy_data(photo_set, tmp_path)
    note = data / "depths" / "depth_model.json"
    note.write_text(HOSTILE_SIDECARS[what], encoding="utf-8", errors="surrogateescape")
    assert isinstance(read_depth_model(data), dict)
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "depth", "--epochs", "1")
    code, printed = quietly(trainer.main, *arguments)
    assert code in (0, 2) and "Traceback" not in printed, printed
    if code == 0:  # what it says of the model is kept only as far as a checkpoint may hold it
        folders = ["--checkpoint-dir", tmp_path / "c", "--output-dir", tmp_path / "out"]
        photo = data / "images" / "day_0" / "IMG_000.jpg"
        code, printed = quietly(evaluate_gps_model.main, *folders, "--photos", photo)
        assert code == 2 and "Traceback" not in printed


def hostile_tables(rows: list[dict]) -> dict[str, str]:
    def each(**columns) -> str:
        return json.dumps([{**row, **columns} for row in rows])

    return {
        "latitude 999": each(gps_latitude=999.0),
        "text for a latitude": each(gps_latitude="north"),
        "1e308": each(gps_latitude=1e308, gps_longitude=-1e308, gps_altitude=1e308),
        "NaN": each(gps_latitude=float("nan"), gps_altitude=float("inf")),
        "lists": each(gps_latitude=[1], datetime={"a": 1}, orientation=[]),
        "absolute names": json.dumps([{**r, "filename": "/etc/passwd"} for r in rows]),
        "names above": json.dumps([{**r, "filename": f"../{r['filename']}"} for r in rows]),
        "duplicates": json.dumps(rows + rows),
        "no list": json.dumps({"rows": rows}),
        "rows that are none": json.dumps([1, None, "x", []]),
        "deep": "[" * 100_000,
        "cut": json.dumps(rows)[:-100],
        "huge whole number": each(orientation_tag=10**400, image_width=-(10**400)),
        "names of other kinds": json.dumps([{**r, "filename": 7} for r in rows]),
    }


@pytest.mark.parametrize("what", hostile_tables([]))
def test_hostile_tables_are_read_nowhere_beside_the_photos(photo_set, tmp_path, monkeypatch, what):
    data = copy_data(photo_set, tmp_path)
    rows = json.loads((data / "exif_data.json").read_text(encoding="utf-8"))
    (data / "exif_data.json").write_text(hostile_tables(rows)[what], encoding="utf-8")
    (tmp_path / "data" / "day_0").mkdir()  # what "../" would lead to
    for name in (data / "images" / "day_0").iterdir():
        shutil.copy(name, tmp_path / "data" / "day_0")
    opened: list[Path] = []
    from PIL import Image

    real = Image.open
    monkeypatch.setattr(Image, "open", lambda f, *a, **k: (opened.append(f), real(f, *a, **k))[1])
    arguments = training_arguments(data, tmp_path / "c", "--inputs", "rgb", "--epochs", "1")
    for main, more in (
        (trainer.main, arguments),
        (depth_map_generator.main, ["--data-dir", data, "--depth-model", photo_set.depth_weights,
                                    "--input-size", "56"]),
        (evaluate_gps_model.main, ["--data-dir", data, "--checkpoint-dir", tmp_path / "c",
                                   "--output-dir", tmp_path / "e", "--place"]),
    ):  # fmt: skip
        code, printed = quietly(main, *more)
        assert code in (0, 1, 2) and "Traceback" not in printed, printed
        assert code != 2 or printed.strip().splitlines()[-1].count("\n") == 0
    inside = (data / "images").resolve()
    for file in opened:
        if isinstance(file, str | Path):
            assert Path(file).resolve().is_relative_to(inside), file
