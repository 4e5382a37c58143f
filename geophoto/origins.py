"""What maps and features were made from: which bytes a photo held and how it was turned.

In: files. Out: origins, remembered in journals by name; which files still are what they were.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from density import file_sha256, write_atomically

HASHING_THREADS = 4  # hashlib lets others run; more only help disks that read much at once
LINES_AT_ONCE = 256  # of a journal, written together: what a kill may cost

# ---------------------------------------------------------------- one file


class Origin(NamedTuple):
    """One state of a file: of what `os.stat` tells, of its bytes, of how its photo was turned."""

    size: int
    mtime_ns: int
    ctime_ns: int  # inode change time: no tool sets it back; Windows gives the creation time
    sha256: str
    tag: int = 0  # EXIF orientation, by which the photo was set upright; 0 = none


def file_stamp(file: Path) -> tuple[int, int, int]:
    """Size, mtime and inode change time (ns) of a file."""
    about = os.stat(file)
    return about.st_size, about.st_mtime_ns, about.st_ctime_ns


def origin_of(file: Path, tag: int = 0) -> Origin:
    """The state of a file now. Whoever decodes it afterwards has these bytes or newer ones: a
    change in between is found by the next comparison."""
    return Origin(*file_stamp(file), file_sha256(file), tag)


def renew(origin: Origin, file: Path, tag: int, sha256: str = "") -> Origin | None:
    """The same origin as of today, or None where the file is another: by size, mtime or turn.

    A new inode change time alone may come of an edit that put the mtime back, and as well of
    chmod, of a hard link or of a copied tree: then the bytes decide, by `sha256` if it is known.
    """
    size, mtime_ns, ctime_ns = file_stamp(file)
    if (size, mtime_ns, tag) != (origin.size, origin.mtime_ns, origin.tag):
        return None
    if ctime_ns == origin.ctime_ns:
        return origin
    if (sha256 or file_sha256(file)) != origin.sha256:
        return None
    return origin._replace(ctime_ns=ctime_ns)


# ---------------------------------------------------------------- journal


def read_origins(journal: Path) -> dict[str, Origin]:
    """Origins by name; of several lines for one name the last counts, damaged ones do not."""
    found: dict[str, Origin] = {}
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return found
    for line in lines:
        try:
            name, size, mtime_ns, ctime_ns, sha256, tag = json.loads(line)
        except (ValueError, TypeError, RecursionError):  # empty, or cut by a kill
            continue
        found[name] = Origin(size, mtime_ns, ctime_ns, sha256, tag)
    return found


def note_origins(journal: Path, origins: Iterable[tuple[str, Origin]]) -> None:
    """Append origins to a journal, in one write: processes and threads may do so side by side.

    Every line begins with its line break, so that one cut by a kill spoils no other.
    """
    lines = "".join(f"\n{json.dumps([name, *origin])}" for name, origin in origins)
    if lines:
        journal.parent.mkdir(parents=True, exist_ok=True)
        with open(journal, "ab", buffering=0) as file:
            file.write(lines.encode())


def shorten_journal(journal: Path, origins: dict[str, Origin]) -> None:
    """Write a journal anew where most of its lines have been overtaken by later ones."""
    if journal.is_file() and journal.read_bytes().count(b"\n") > 2 * len(origins) + 1000:
        with write_atomically(journal, "w", encoding="utf-8") as file:
            file.writelines(f"\n{json.dumps([n, *origin])}" for n, origin in origins.items())


# ---------------------------------------------------------------- many files


def known_sha256(journal: Path, names: list[str], files: list[Path], bar: Callable) -> list[str]:
    """The sha256 of each file, "" where it cannot be read; a file is read again only when its
    size, mtime or inode change time differ from those in the journal. `bar` is like tqdm."""
    known = read_origins(journal)
    shorten_journal(journal, known)

    def look(name: str, file: Path) -> tuple[str, Origin | None]:
        try:
            return name, origin_of(file)
        except OSError:
            return name, None

    new = [(n, f) for n, f in zip(names, files, strict=True) if not is_known(known.get(n), f)]
    for name, _ in new:
        known.pop(name, None)
    fresh: list[tuple[str, Origin]] = []
    with ThreadPoolExecutor(HASHING_THREADS) as pool:
        looked = pool.map(look, *zip(*new, strict=True)) if new else iter(())
        for name, origin in bar(looked, total=len(new), desc="contents", unit="file", leave=False):
            if origin is not None:
                fresh.append((name, origin))
            if len(fresh) == LINES_AT_ONCE:
                note_origins(journal, fresh)
                known.update(fresh)
                fresh = []
    note_origins(journal, fresh)
    known.update(fresh)
    return [known[name].sha256 if name in known else "" for name in names]


def is_known(origin: Origin | None, file: Path) -> bool:
    """Whether a file is as it was when its origin was noted, by its stamp alone."""
    try:
        return origin is not None and origin[:3] == file_stamp(file)
    except OSError:
        return False
