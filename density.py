"""What the four scripts share: files written whole or not at all, and geometry on the globe.

Reads data/exif_data.json, draws the density of its photos: data/density.png and data/density.html.

    python density.py
    python density.py --data-dir data/demo
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NoReturn

EARTH_RADIUS_KM = 6371.0088  # mean radius R1 of the IUGG (WGS84)

# ---------------------------------------------------------------- files


def stop(message: str) -> NoReturn:
    """End the run with exit code 2 and one line on stderr: the user must change something."""
    print(f"{Path(sys.argv[0]).name}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)


@contextmanager
def write_atomically(path: str | Path, mode: str = "wb", **open_options) -> Iterator[IO]:
    """Open a temporary file beside `path`; on success it is synced and takes the name at once.

    After an exception or a kill the old content of `path` is intact. Parent folders are created.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name[-100:]}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, **open_options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep_temporaries(folder: str | Path) -> int:
    """Remove what killed runs left below `folder`; temporaries of living processes stay."""
    removed = 0
    for file in Path(folder).rglob(".*.tmp"):
        pid = file.name.split(".")[-2]
        if pid.isdigit() and (int(pid) == os.getpid() or not _process_lives(int(pid))):
            file.unlink(missing_ok=True)
            removed += 1
    return removed


def _process_lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
