"""What files were made from: which changes are changes, and journals that survive kills."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from geophoto import origins

# ---------------------------------------------------------------- one file


def put_back_time(file, about) -> None:
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def edit_in_place(file):
    about, whole = file.stat(), bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)
    put_back_time(file, about)


def replace_with_old_time(file):
    """As `cp -p other file` and `mv` do."""
    about, other = file.stat(), file.with_name("other")
    other.write_bytes(bytes(reversed(file.read_bytes())))
    put_back_time(other, about)
    os.replace(other, file)


def grow_with_old_time(file):
    about = file.stat()
    file.write_bytes(file.read_bytes() + b"!")
    put_back_time(file, about)


def restore_an_older_one(file):
    file.write_bytes(b"what it was last year")
    os.utime(file, (1e9, 1e9))


def touch(file):
    os.utime(file, (1e9, 1e9))


CHANGES = (edit_in_place, replace_with_old_time, grow_with_old_time, restore_an_older_one, touch)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_file_is_noticed(tmp_path, change):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"some picture")
    origin = origins.origin_of(file, 6)
    assert origins.renew(origin, file, 6) == origin
    change(file)
    assert origins.renew(origin, file, 6) is None


def test_another_turn_is_another_origin(tmp_path):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"some picture")
    assert origins.renew(origins.origin_of(file, 1), file, 6) is None
    assert origins.renew(origins.origin_of(file), file, 1) is None


def make_executable(file):
    file.chmod(0o755)


def link_and_unlink(file):
    os.link(file, file.with_name("b.jpg"))
    file.with_name("b.jpg").unlink()


def rename_and_back(file):
    file.rename(file.with_name("c.jpg"))
    file.with_name("c.jpg").rename(file)


def copy_over_itself(file):
    shutil.copy2(file, file.with_name("d.jpg"))
    os.replace(file.with_name("d.jpg"), file)


def write_the_same(file):
    about = file.stat()
    file.write_bytes(file.read_bytes())
    put_back_time(file, about)


HARMLESS = (make_executable, link_and_unlink, rename_and_back, copy_over_itself, write_the_same)


@pytest.mark.parametrize("change", HARMLESS)
def test_a_file_that_holds_the_same_bytes_is_the_same(tmp_path, change, monkeypatch):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"some picture")
    origin = origins.origin_of(file)
    change(file)
    again = origins.renew(origin, file, 0)
    assert again is not None and again.ctime_ns == file.stat().st_ctime_ns
    monkeypatch.setattr(origins, "file_sha256", pytest.fail)  # compared once: never read again
    assert origins.renew(again, file, 0) == again


def test_a_time_to_come_is_a_time_as_any_other(tmp_path, monkeypatch):
    file = tmp_path / "a.jpg"
    file.write_bytes(b"some picture")
    os.utime(file, (4e9, 4e9))
    origin = origins.origin_of(file)
    monkeypatch.setattr(origins, "file_sha256", pytest.fail)
    assert origins.renew(origin, file, 0) == origin


# ---------------------------------------------------------------- journal


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.text(min_size=1, max_size=9).filter(str.isprintable),
                       st.integers(0, 8)), min_size=1, max_size=9),
    st.integers(0, 400),
)  # fmt: skip
def test_a_cut_journal_loses_only_its_last_lines(tmp_path_factory, entries, cut):
    journal = tmp_path_factory.mktemp("journal") / "deep" / "j.jsonl"
    written = [(name, origins.Origin(1, 2, 3, "ab", tag)) for name, tag in entries]
    sizes = []
    for entry in written:
        origins.note_origins(journal, [entry])
        sizes.append(journal.stat().st_size)
    assert origins.read_origins(journal) == dict(written)
    os.truncate(journal, min(cut, sizes[-1]))
    whole = [e for e, size in zip(written, sizes, strict=True) if size <= min(cut, sizes[-1])]
    assert origins.read_origins(journal) == dict(whole)
    origins.note_origins(journal, [("next", written[0][1])])
    assert origins.read_origins(journal) == {**dict(whole), "next": written[0][1]}


@pytest.mark.parametrize(
    "damage", [b"", b"\xff\xfe", b"[]\n{}\nnull\n7", b'["a", 1]', b"[" * 50_000, b"\n\n\n"]
)
def test_lines_that_are_none_are_passed_over(tmp_path, damage):
    journal = tmp_path / "j.jsonl"
    journal.write_bytes(damage)
    entry = ("a", origins.Origin(1, 2, 3, "ab"))
    origins.note_origins(journal, [entry])
    assert origins.read_origins(journal) == dict([entry])


def test_threads_and_processes_write_side_by_side(tmp_path):
    journal = tmp_path / "j.jsonl"
    write = (
        "import sys; from pathlib import Path; from geophoto.origins import *\n"
        "for i in range(300): note_origins(Path(sys.argv[1]), "
        "[(f'{sys.argv[2]}/{i}.jpg', Origin(i, 2, 3, 'f' * 64))])"
    )
    command = [sys.executable, "-c", write, str(journal)]
    others = [subprocess.Popen([*command, n], cwd=REPOSITORY) for n in ("one", "two")]

    def work(name: str) -> None:
        for i in range(300):
            origins.note_origins(journal, [(f"{name}/{i}.jpg", origins.Origin(i, 2, 3, "f" * 64))])

    threads = [threading.Thread(target=work, args=(n,)) for n in ("three", "four")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait() for other in others] == [0, 0]
    assert len(origins.read_origins(journal)) == 1200


def test_an_overgrown_journal_is_shortened(tmp_path):
    journal = tmp_path / "j.jsonl"
    for i in range(3):
        origins.note_origins(journal, [(f"{n}", origins.Origin(i, 2, 3, "a")) for n in range(900)])
    known = origins.read_origins(journal)
    origins.shorten_journal(journal, known)
    assert journal.read_text().count("\n") == 2700  # not worth it yet
    origins.note_origins(journal, [(f"{n}", origins.Origin(9, 2, 3, "a")) for n in range(900)])
    known = origins.read_origins(journal)
    origins.shorten_journal(journal, known)
    assert journal.read_text().count("\n") == 900 and origins.read_origins(journal) == known


# ---------------------------------------------------------------- many files


def test_only_new_and_changed_files_are_read(tmp_path, monkeypatch):
    journal, folder = tmp_path / "cache" / "contents.jsonl", tmp_path / "p"
    folder.mkdir()
    names = [f"{i}.jpg" for i in range(5)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(b"%d" % (number // 2))
    files = [folder / name for name in names]
    first = origins.known_sha256(journal, names, files, tqdm)
    assert first[0] == first[1] != first[2] and len(set(first)) == 3
    looked, original = [], origins.origin_of
    monkeypatch.setattr(origins, "origin_of", lambda f, tag=0: looked.append(f) or original(f, tag))
    assert origins.known_sha256(journal, names, files, tqdm) == first and not looked
    edit_in_place(files[0])
    files[2].unlink()
    again = origins.known_sha256(journal, names, files, tqdm)
    assert sorted(looked) == [files[0], files[2]] and again[2] == "" and again[0] != first[0]
    assert again[3:] == first[3:] and again[1] == first[1]
    assert len(json.loads(journal.read_text().splitlines()[-1])) == 6
