"""Where a network runs: device, number format, and the processes of torchrun.

In: what the user wants. Out: Precision; ranks; sums over processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any, TypeVar

import torch

import density

T = TypeVar("T")
MOST_STREAMS = 8  # photos in work at once on a CPU: each takes memory


class Precision:
    """Device and number format of the forward pass; GradScaler where fp16 needs it."""

    def __init__(self, wanted: str = "auto", device: str | None = None) -> None:
        if device is None:
            cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
            device = "cuda" if cuda else "mps" if mps else "cpu"
        self.device = torch.device(device)
        if wanted == "auto":
            wanted = "fp32"
            if self.device.type == "cuda":
                wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp16"
            elif self.device.type == "cpu" and torch.cpu._is_avx512_bf16_supported():
                wanted = "bf16"
        if wanted == "fp16" and self.device.type != "cuda":
            density.stop("--precision fp16 needs CUDA; use bf16 or fp32")
        self.name = wanted
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=wanted == "fp16")

    def autocast(self):
        if self.name == "fp32":
            return contextlib.nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device.type, dtype)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Work of one core, also as a decorator: matrices so small that a second thread would wait and
    be waited for longer than it works."""
    usual = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(usual)


@contextlib.contextmanager
def photo_threads(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """Threads that work on a photo each. Beside a GPU two load photos ahead. On a CPU a photo is
    one core's work from its file to its features: the layers are small, and cores that share one
    wait for each other (0.59 of the time on two cores, the numbers are the same)."""
    if device.type != "cpu":
        with ThreadPoolExecutor(2) as pool:
            yield pool
        return
    cores = torch.get_num_threads()
    count = min(cores, MOST_STREAMS)
    with one_thread():  # and what follows has all cores again
        each = (cores // count,)
        with ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=each) as pool:
            try:
                yield pool
            finally:
                pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C: not what waits


def processes() -> int:
    """How many processes train together (torchrun); 1 without it."""
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is; 0 does all the writing."""
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def add_up(values: torch.Tensor, device) -> torch.Tensor:
    """The sum of `values` over all processes, where they were."""
    if processes() == 1:
        return values
    there = values.to(device)
    torch.distributed.all_reduce(there)
    return there.to(values.device)


def wait_for_all() -> None:
    """Go on when every process has come this far."""
    if processes() > 1:
        torch.distributed.barrier()


def from_first(work: Callable[[], T]) -> T:
    """What the first process worked out, given to all."""
    found: list[Any] = [work() if rank() == 0 else None]
    if processes() > 1:
        torch.distributed.broadcast_object_list(found)
    return found[0]


def from_all(value: Any) -> list:
    """What every process gives, in all of them, in the order of their ranks."""
    if processes() == 1:
        return [value]
    held = [None] * processes()
    torch.distributed.all_gather_object(held, value)
    return held


def part_company() -> bool:
    """End the work in several processes; True in the first, which goes on alone."""
    first = rank() == 0
    torch.distributed.destroy_process_group()
    return first


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Under torchrun: join the other processes; all but the first are silent."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    patience = timedelta(days=1)  # a part of 100,000 photos may take hours longer than another
    torch.distributed.init_process_group("nccl" if cuda else "gloo", timeout=patience)
    try:
        with open(os.devnull, "w") as nowhere:
            quiet = contextlib.redirect_stdout(nowhere) if rank() else contextlib.nullcontext()
            with quiet:
                yield
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
