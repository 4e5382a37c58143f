"""Reading processes that a hostile file cannot harm: bounded in time and memory, replaced if dead.

In: blocks of photos, each with the files beside it. Out: raw rows in the order given; the culprit
of a death becomes a row.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from geophoto.labels import empty_row, read_photo
from geophoto.table import stamp_beside

FILE_CPU_S = 0.9  # processor time for one file, twice (in its chunk, then alone): about 2 s
FILE_WAIT_S = 30.0  # longest silence of a reader, slow disks included
Files = tuple[str, ...]  # a photo and, where it has them, its XMP sidecar and Takeout file or ""
FILE_MEMORY = 512 << 20  # bytes a reader may take on top of what it starts with


def _limit_memory() -> None:
    """Let the system refuse a reader more memory than any header needs, in C code too."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + FILE_MEMORY, used + FILE_MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # not Linux: the parsers' own bounds remain


def _serve(pipe: Any, other_end: Any) -> None:
    """Loop of a reading process: receive paths, send raw rows, until the other end goes away.

    Forked readers hold the other ends of older ones: when their parent is killed, the youngest
    sees its pipe end first, and with it goes the last hold on the next.
    """
    import signal

    other_end.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    _limit_memory()
    timer = getattr(signal, "setitimer", None)
    with contextlib.suppress(EOFError, OSError):
        while True:
            rows = []
            for paths in pipe.recv():
                if timer:
                    timer(signal.ITIMER_PROF, FILE_CPU_S)  # unhandled SIGPROF ends the process
                rows.append(read_photo(*paths))
            pipe.send(rows)


class Reader:
    """A reading process and the pipe to it."""

    def __init__(self) -> None:
        import multiprocessing

        context: Any = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.pipe), daemon=True)
        self.process.start()
        other.close()

    def hand(self, files: list[Files]) -> None:
        with contextlib.suppress(OSError):  # dead: `take` will see it
            self.pipe.send(files)

    def take(self) -> list[dict] | str:
        """The rows of what was handed, or why there are none."""
        try:
            return self.pipe.recv() if self.pipe.poll(FILE_WAIT_S) else "reader_timeout"
        except (EOFError, OSError):
            return "reader_died"

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _read_alone(paths: Files) -> dict:
    """Read one photo of a chunk that killed or stalled its reader; the culprit becomes a row.

    Where it has files beside it, one of these may be the culprit: then the photo is read without.
    """
    reader = Reader()
    reader.hand([paths])
    rows = reader.take()
    reader.end()
    if not isinstance(rows, str):
        return rows[0]
    row = _read_alone(paths[:1]) if any(paths[1:]) else empty_row("unreadable", rows)
    if row["status"] != "unreadable":
        guilty = zip(("sidecar_damaged", "takeout_damaged"), paths[1:], strict=False)
        codes = [row["warnings"], *(code for code, path in guilty if path)]
        row["warnings"] = ";".join(filter(None, codes))
        row["stamp"] += stamp_beside(paths[1:])
    return row


def read_blocks(
    blocks: Iterable[tuple[Any, list[Files]]], workers: int, meanwhile: Callable[[], None]
) -> Iterator[tuple[Any, list[dict]]]:
    """Yield (block, rows of its files) in the order given; every reader holds one block at most.

    A reader that died or fell silent is replaced, and what it held is read photo by photo.
    `meanwhile` is called whenever files are being read, before they are waited for.
    """
    idle: list[Reader] = []
    busy: deque[tuple[Any, list[Files], Reader]] = deque()

    def oldest() -> tuple[Any, list[dict]]:
        block, files, reader = busy.popleft()
        if files:
            meanwhile()
        rows = reader.take()
        if isinstance(rows, str):
            reader.end()
            return block, [_read_alone(paths) for paths in files]
        idle.append(reader)
        return block, rows

    try:
        for block, files in blocks:
            done = [oldest()] if len(busy) == workers else []
            reader = idle.pop() if idle else Reader()
            reader.hand(files)
            busy.append((block, files, reader))
            yield from done  # after handing on: they read while the taker works
        while busy:
            yield oldest()
    finally:
        for reader in [*idle, *(reader for *_, reader in busy)]:
            reader.end()
