"""Small pictures of photos inside a page, which then stays one file and needs no network.

In: files of photos. Out: data URIs within a budget of bytes.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from geophoto.pictures import open_upright

BUDGET = 4_000_000  # characters of all pictures of a page together
MOST = 2000  # pictures on one page; more could not be told apart at what would be left for each
SIDES = ((250, 240), (500, 200), (1000, 144), (MOST, 112))  # up to so many photos: longest side
QUALITIES = (72, 56, 40, 24, 8)  # of WebP, tried until the picture is small enough
SMALLER = 3  # times the side is halved where even the last quality is too large
THREADS = 4  # Pillow lets others run while it decodes


def thumbnails(files: list[Path], bar: Callable = lambda each, **_: each) -> list[str | None]:
    """A WebP picture of each photo as a data URI, upright; None for what cannot be read.

    At most MOST files. The more there are, the smaller the pictures: together they stay within
    BUDGET. `bar` is like tqdm.
    """
    side = next((side for count, side in SIDES if len(files) <= count), SIDES[-1][1])
    limit = BUDGET // max(len(files), 1)

    def make(file: Path) -> str | None:
        with suppress(OSError, ValueError):  # gone, or no photo any more
            return data_uri(file, side, limit)
        return None

    with ThreadPoolExecutor(THREADS) as pool:
        made = pool.map(make, files)
        return list(bar(made, total=len(files), desc="thumbnails", unit=" photos", leave=False))


def data_uri(file: Path, side: int, limit: int) -> str:
    """One photo as a WebP data URI of at most `limit` characters, of less quality and then smaller
    where it must be; raises OSError or ValueError as `open_upright` does."""
    picture = open_upright(file, side)
    tries = [(side, quality) for quality in QUALITIES]
    tries += [(side >> n, QUALITIES[-2]) for n in range(1, SMALLER + 1)]
    for longest, quality in tries:
        picture.thumbnail((longest, longest))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=quality, method=4)
        uri = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
        if len(uri) <= limit:
            break
    return uri
