"""data/README.md describes every column, source and warning code that the code can write."""

import ast
import re

from conftest import REPOSITORY

from geophoto.table import COLUMNS

PAGE = (REPOSITORY / "data" / "README.md").read_text(encoding="utf-8")
READING = ("containers", "tags", "packets", "clocks", "sidecars", "positions", "labels", "readers")
INTERNAL = {"accuracy_m", "gps_clock", "taken_utc", "windows_1252"}  # what no table holds


def words_of(room: str) -> set[str]:
    """Texts in a room that look like a code: gps_zero, reader_error_."""
    tree = ast.parse((REPOSITORY / "geophoto" / f"{room}.py").read_text(encoding="utf-8"))
    texts = (n.value for n in ast.walk(tree) if isinstance(n, ast.Constant))
    return {t for t in texts if isinstance(t, str) and re.fullmatch(r"[a-z]+(_[a-z0-9]*)+", t)}


def described() -> set[str]:
    return set(re.findall(r"`([a-z]+[a-z0-9_]*)…?`", PAGE))


def test_every_column_is_described():
    table = PAGE.partition("## Columns")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.+?) \|", table, flags=re.M)
    assert [name for row in rows for name in re.findall(r"`(\w+)`", row)] == [*COLUMNS]


def test_every_code_is_described_and_no_other():
    written = set().union(*map(words_of, READING)) - INTERNAL - set(COLUMNS)
    assert written <= described(), written - described()
    codes = PAGE.partition("## Warnings")[2]
    listed = {
        name
        for row in re.findall(r"^\| (.+?) \|", codes, flags=re.M)
        for name in re.findall(r"`([a-z0-9_]+)…?`", row)
    }
    assert listed <= written, listed - written


def test_every_source_and_status_is_described():
    for word in ("exif", "xmp", "sidecar", "takeout", "estimate", "offset_tag", "gps_time",
                 "position_timezone", "ok", "no_exif", "empty_exif", "unreadable"):  # fmt: skip
        assert word in described()


def test_git_keeps_the_page_and_ignores_the_data():
    import subprocess

    def ignored(name: str) -> bool:
        done = subprocess.run(["git", "check-ignore", "-q", name], cwd=REPOSITORY)
        return done.returncode == 0

    if not (REPOSITORY / ".git").exists():
        return
    assert not ignored("data/README.md")
    for name in ("images/a.jpg", "images/a.jpg.xmp", "images/a.jpg.json", "exif_data.json",
                 ".exif_data.stamps", "cache/x"):  # fmt: skip
        assert ignored(f"data/{name}"), name
