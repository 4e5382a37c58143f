"""Reading processes that a hostile file cannot harm: bounded in time and memory, replaced if dead.

In: blocks of paths. Out: raw rows in the order given; the culprit of a death becomes a row.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from geophoto.labels import empty_row, read_photo

FILE_CPU_S = 0.9  # processor time for one file, twice (in its chunk, then alone): about 2 s
FILE_WAIT_S = 30.0  # longest silence of a reader, slow disks included
FILE_MEMORY = 512 << 20  # bytes a reader may take on top of what it starts with


def _limit_resources() -> None:
    """Let the system end a reader that a hostile file sends astray, in C code too."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + FILE_MEMORY, used + FILE_MEMORY))
    except (ImportError, OSError, ValueError):
        pass  # not Linux: the parsers' own bounds remain


def _serve(connection: Any, parent: int) -> None:
    """Loop of a reading process: receive paths, send raw rows, until the other end goes away."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the main process's business
    _limit_resources()
    timer = getattr(signal, "setitimer", None)
    try:
        while True:
            while not connection.poll(1.0):
                if os.getppid() != parent:  # killed: siblings may hold the pipe open
                    return
            rows = []
            for path in connection.recv():
                if timer:
                    timer(signal.ITIMER_PROF, FILE_CPU_S)  # unhandled SIGPROF ends the process
                rows.append(read_photo(path))
            if timer:
                timer(signal.ITIMER_PROF, 0)
            connection.send(rows)
    except (EOFError, OSError):
        return


class Reader:
    """A reading process and its pipe."""

    def __init__(self) -> None:
        import multiprocessing

        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, os.getpid()), daemon=True)
        self.process.start()
        other.close()
        self.deadline = math.inf
        self.task: Any = None

    def hand(self, task: Any, paths: list[str]) -> None:
        self.task, self.deadline = task, time.monotonic() + FILE_WAIT_S
        self.pipe.send(paths)

    def take(self) -> list[dict] | None:
        """The rows, or None when the process died."""
        try:
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _read_alone(path: str) -> dict:
    """Read one file of a chunk that killed or stalled its reader; the culprit becomes a row."""
    reader = Reader()
    try:
        reader.hand(None, [path])
        if not reader.pipe.poll(FILE_WAIT_S):
            return empty_row("unreadable", "reader_timeout")
        rows = reader.take()
        return rows[0] if rows else empty_row("unreadable", "reader_died")
    finally:
        reader.end()


class Crew:
    """Reading processes that work on (block, paths) in turn; results come in the order given."""

    def __init__(self, blocks: Iterator[tuple[Any, list[str]]], workers: int) -> None:
        self.numbered, self.workers = enumerate(blocks), workers
        self.idle: list[Reader] = []
        self.busy: dict[Any, Reader] = {}
        self.done: dict[int, tuple] = {}
        self.next, self.ended = 0, False
        self.hand_out()

    def hand_out(self) -> None:
        """Keep every process busy, but run at most a few blocks ahead of the results taken."""
        while not self.ended and len(self.busy) < self.workers:
            if len(self.done) >= 4 * self.workers:
                return
            step = next(self.numbered, None)
            if step is None:
                self.ended = True
                return
            place, (block, paths) = step
            if not paths:
                self.done[place] = (block, [])
                continue
            reader = self.idle.pop() if self.idle else Reader()
            reader.hand((place, block, paths), paths)
            self.busy[reader.pipe] = reader

    def collect(self) -> None:
        """Wait for rows; a process that died or fell silent is replaced, its chunk read singly."""
        from multiprocessing.connection import wait

        ready = wait(list(self.busy), timeout=0.5)
        now = time.monotonic()
        late = [pipe for pipe, reader in self.busy.items() if reader.deadline < now]
        for pipe in {*ready, *late}:
            reader = self.busy.pop(pipe)
            place, block, paths = reader.task
            rows = reader.take() if pipe in ready else None
            if rows is None:
                reader.end()
                rows = [_read_alone(path) for path in paths]
            else:
                self.idle.append(reader)
            self.done[place] = (block, rows)

    def results(self) -> Iterator[tuple]:
        try:
            while True:
                self.hand_out()  # before yielding: they read while the taker works
                if self.next in self.done:
                    yield self.done.pop(self.next)
                    self.next += 1
                elif self.busy:
                    self.collect()
                else:
                    return
        finally:
            for reader in [*self.idle, *self.busy.values()]:
                reader.end()
