"""The loop: steps, epochs, early stopping, and all that is needed to go on after a kill.

In: a network, batches, a validation. Out: the network with its best weights, and a Fit.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import nn

import density
from density import silent
from geophoto.devices import Precision, add_up, processes, rank
from geophoto.targets import HEADS, Normalisation, head_losses, labelled

# ---------------------------------------------------------------- step


def train_step(network, batch, target, normalisation, optimiser, precision, micro: int, say=silent):
    """One optimiser step over a batch in parts of `micro` photos; returns (losses, micro).

    When CUDA memory runs out the part is halved and the batch repeated: the gradient, a mean over
    the labels of the whole batch, stays the same. Under torchrun the batch is that of all
    processes together; one without photos (batch None) takes part with nothing.
    """
    if batch is None and processes() == 1:
        return dict.fromkeys(HEADS, 0.0), micro
    size = len(target["view"]) if batch else 0
    counts = torch.zeros(len(HEADS))
    if batch:
        known = labelled(target)
        counts = torch.stack([known[head].sum() for head in HEADS]).float()
    labels = dict(zip(HEADS, add_up(counts, precision.device).clamp_min(1).tolist(), strict=True))
    while True:
        optimiser.zero_grad(set_to_none=True)
        sums = torch.zeros(len(HEADS))
        out_of_memory = False
        try:
            for start in range(0, size, micro):
                part, goal = (
                    {
                        k: v[start : start + micro].to(precision.device, non_blocking=True)
                        for k, v in tensors.items()
                    }
                    for tensors in (batch, target)
                )
                with precision.autocast():
                    output = network(part)
                losses = head_losses(output, goal, normalisation)
                terms = torch.stack([losses[h][0] / labels[h] for h in HEADS])
                precision.scaler.scale(terms.sum()).backward()
                sums += terms.detach().float().cpu()
            break
        except torch.OutOfMemoryError:
            out_of_memory = True  # leave the except block first: it holds on to the tensors
        if out_of_memory:
            if micro == 1:
                density.stop("out of memory with a single photo: use a smaller --image-size")
            micro = max(1, min(micro, size) // 2)
            torch.cuda.empty_cache()
            say(f"out of memory: {micro} photos at a time, accumulated to {size}")
    learning = [p for p in network.parameters() if p.requires_grad]
    if processes() > 1:
        for parameter in learning:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        every = add_up(torch.cat([p.grad.flatten() for p in learning]), precision.device)
        for parameter, grad in zip(
            learning, every.split([p.numel() for p in learning]), strict=True
        ):
            parameter.grad.copy_(grad.view_as(parameter))
    precision.scaler.unscale_(optimiser)
    nn.utils.clip_grad_norm_(learning, 5.0)
    precision.scaler.step(optimiser)
    precision.scaler.update()
    return dict(zip(HEADS, add_up(sums, precision.device).tolist(), strict=True)), micro


# ---------------------------------------------------------------- epochs


@dataclasses.dataclass
class Fit:
    """What training leaves: the best weights, their epoch (from 1) and validation score."""

    state: dict
    epoch: int
    score: float


def fit(
    network: nn.Module,
    batches: Callable[[int], Iterator],
    validate: Callable[[nn.Module], dict] | None,
    normalisation: Normalisation,
    precision: Precision,
    *,
    parameters: list[dict],
    epochs: int,
    micro: int,
    weight_decay: float,
    patience: int,
    seed: int,
    ema_decay: float = 0.0,
    on_epoch: Callable[[dict, dict], None] = lambda row, state: None,
    resume: dict | None = None,
    say: Callable[[str], None] = silent,
) -> Fit:
    """Train with AdamW and a cosine schedule after one epoch of warm-up.

    `batches(epoch)` yields (inputs, targets), `parameters` are AdamW's groups with their learning
    rates; `validate(network)` returns a dict with `score`, lower is better: training stops after
    `patience` epochs without a better one and keeps the best weights. Without `validate` the last
    weights are kept. With `ema_decay` it is the running average of the weights that is validated
    and kept. `on_epoch` gets the epoch's figures and all that is needed to go on after a kill.
    """
    fused = precision.device.type in ("cpu", "cuda")
    optimiser = torch.optim.AdamW(parameters, weight_decay=weight_decay, fused=fused)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda e: 0.1 if e == 0 else 0.505 + 0.495 * math.cos(math.pi * e / epochs)
    )
    average, judged, steps = None, network, 0
    if ema_decay:
        from timm.utils import ModelEmaV3

        average = ModelEmaV3(network, decay=ema_decay, use_warmup=True)
        judged = average.module
    best, first = Fit(clone_state(network), 0, math.inf), 0
    if validate and not resume:  # epoch 0: what it starts from
        found = validate(judged)
        best.score = found["score"]
        on_epoch({"epoch": 0, **found}, {})
    if resume:
        network.load_state_dict(resume["model"])
        optimiser.load_state_dict(resume["optimiser"])
        schedule.load_state_dict(resume["scheduler"])
        precision.scaler.load_state_dict(resume["scaler"])
        if average:
            judged.load_state_dict(resume["average"])
        best, first = Fit(**resume["best"]), resume["epoch"]
        micro, steps = resume["micro"], resume["steps"]
    for epoch in range(first, epochs):
        if validate and epoch - best.epoch >= patience:
            break
        started = time.monotonic()
        torch.manual_seed((seed * 1000 + epoch) * 1000 + rank())  # of dropout, CUDA's too
        network.train()
        history = []
        for batch, target in batches(epoch):
            losses, micro = train_step(
                network, batch, target, normalisation, optimiser, precision, micro, say
            )
            history.append(losses)
            steps += 1
            if average:
                average.update(network, step=steps)
        schedule.step()
        means = {f"loss_{h}": statistics.fmean(row[h] for row in history) for h in HEADS}
        found = validate(judged) if validate else {"score": -epoch}  # without: the last is best
        if found["score"] < best.score:
            best = Fit(clone_state(judged), epoch + 1, found["score"])
        row = {"epoch": epoch + 1, **means, **found, "seconds": time.monotonic() - started}
        state = {
            "model": network.state_dict(),
            "optimiser": optimiser.state_dict(),
            "scheduler": schedule.state_dict(),
            "scaler": precision.scaler.state_dict(),
            "average": judged.state_dict() if average else None,
            "epoch": epoch + 1,
            "micro": micro,
            "steps": steps,
            "best": vars(best),
        }
        on_epoch(row, state)
    network.load_state_dict(best.state)
    return best


def clone_state(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}
