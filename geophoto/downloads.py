"""A named file from the network: resumed where it was cut, checked by sha256, whole or not at all.

In: an address, a sha256, a place. Out: the file, or an OSError that says why there is none.
"""

from __future__ import annotations

import http.client
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from density import file_sha256, one_line_for_files

MIRROR = "GEOPHOTO_MIRROR"  # environment variable: MIRROR/host/path is asked instead of the host
TIMEOUT_S = 30.0  # without a byte
CHUNK = 1 << 20  # bytes read at once: the bar counts MiB
AGENT = {"User-Agent": "geophoto"}  # some hosts refuse Python's own name


def plain(items, **about):
    """The bar of those who want none."""
    return items


def address(url: str) -> str:
    """Where `url` is asked for: itself, or the same host and path below the mirror."""
    mirror = os.environ.get(MIRROR, "").rstrip("/")
    return f"{mirror}/{url.split('://', 1)[1]}" if mirror else url


def fetch(url: str, path: Path, sha256: str, bar: Callable = plain, tries: int = 3) -> None:
    """Download `url` to `path`, through the proxies that the environment names.

    What a cut or killed download left in PATH.<sha256>.partial is gone on with. Raises OSError when
    `tries` in a row failed, at once where the file is not there, no host has that name or the bytes
    are others (these are then removed). A disk that refuses ends the run with one line.
    """
    partial = path.with_name(f"{path.name}.{sha256[:8]}.partial")
    with one_line_for_files():
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(partial, "ab")  # noqa: SIM115
    with file:
        _wait_for_others(file)
        if path.is_file():  # another run was faster
            return
        for attempt in range(1, tries + 1):
            try:
                _append(url, file, bar, path.name)
                break
            except urllib.error.HTTPError as error:
                error.close()
                if error.code == 416:  # nothing lies beyond what is there: the sha256 will tell
                    break
                if (error.code < 500 and error.code != 429) or attempt == tries:
                    what = f"{address(url)} answers {error.code} {error.reason}"
                    raise OSError(what) from error
            except (OSError, http.client.HTTPException) as error:
                unknown = isinstance(getattr(error, "reason", None), socket.gaierror)
                if unknown or attempt == tries:
                    raise OSError(f"{address(url)}: {getattr(error, 'reason', error)}") from error
            time.sleep(attempt)
        if (found := file_sha256(partial)) != sha256:
            partial.unlink()
            raise OSError(f"{address(url)} has the sha256 {found}, not {sha256}")
        os.fsync(file.fileno())
        os.replace(partial, path)


def _wait_for_others(file) -> None:
    """Two runs at once do not write into one file (Windows has no such lock)."""
    with suppress(ImportError):
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)


def _append(url: str, file, bar: Callable, title: str) -> None:
    """The bytes of `url` that `file` lacks, all of them, or an OSError."""
    have = file.seek(0, os.SEEK_END)
    asked = urllib.request.Request(
        address(url), headers=AGENT | ({"Range": f"bytes={have}-"} if have else {})
    )
    with urllib.request.urlopen(asked, timeout=TIMEOUT_S) as answer:
        if have and answer.status != 206:  # this host cannot resume: it sends all anew
            file.truncate(0)
            have = 0
        length = answer.headers.get("Content-Length")
        end = have + int(length) if length else None

        def chunks() -> Iterator[bytes]:
            while block := answer.read(CHUNK):
                yield block

        total = None if end is None else -(-(end - have) // CHUNK)
        for block in bar(chunks(), desc=title, total=total, unit="MiB"):
            with one_line_for_files():
                file.write(block)
                file.flush()
            have += len(block)
        if end is not None and have < end:
            raise ConnectionError(f"cut after {have:,} of {end:,} bytes")
