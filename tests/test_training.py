"""Steps and epochs: parts of a batch, memory, resuming."""

import math

import pytest
import torch
from conftest import make_batch, network_inputs
from torch import nn

from geophoto import archives, devices, targets, training
from geophoto.network import GPSPredictionNet

CUDA = torch.cuda.is_available()

# ---------------------------------------------------------------- training steps


class Linear(nn.Module):
    """A network without dropout whose inputs are plain vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(8, 12)

    def forward(self, batch):
        found = self.layer(batch["x"])
        return {
            "gps": found[:, :2], "time": found[:, 2:4], "altitude": found[:, 4], "sun": found[:, 5],
            "orientation": found[:, 6:],
        }  # fmt: skip


class Crowded(Linear):
    """The same, out of memory with more than `room` photos at a time."""

    room = 3

    def forward(self, batch):
        if len(batch["x"]) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory (as a test)")
        return super().forward(batch)


def one_step(network, micro, precision=None, count=13, say=print):
    """Losses, part size and gradients of one step over a batch with gaps in its labels."""
    _, target, normalisation = make_batch(count, 4)
    batch = {"x": torch.randn(count, 8, generator=torch.Generator().manual_seed(2))}
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    precision = precision or devices.Precision("fp32", "cpu")
    losses, micro = training.train_step(
        network, batch, target, normalisation, optimiser, precision, micro, say
    )
    return losses, micro, torch.cat([p.grad.flatten() for p in network.parameters()])


@pytest.mark.parametrize("micro", [1, 2, 5, 12, 100])
def test_small_parts_give_the_gradient_of_the_whole_batch(micro):
    whole, parts = Linear(), Linear()
    losses, _, gradient = one_step(whole, 13)
    small_losses, used, small_gradient = one_step(parts, micro)
    assert used == micro
    assert small_losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(gradient, small_gradient, rtol=1e-4, atol=1e-6)
    assert torch.allclose(whole.layer.weight, parts.layer.weight, atol=1e-6)


def test_losses_of_a_step_are_means_over_the_labels_of_each_head():
    network = Linear()
    _, target, normalisation = make_batch(13, 4)
    target["altitude"][:6], target["sun"][:9] = torch.nan, torch.nan
    batch = {"x": torch.randn(13, 8, generator=torch.Generator().manual_seed(2))}
    wanted = targets.head_losses(network(batch), target, normalisation)
    precision = devices.Precision("fp32", "cpu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    found, _ = training.train_step(network, batch, target, normalisation, optimiser, precision, 4)
    assert found == pytest.approx({h: v.item() / n for h, (v, n) in wanted.items()}, rel=1e-5)
    assert len({n for _, n in wanted.values()}) > 3  # a mix-up of the counts would show


def test_a_batch_without_a_readable_photo_changes_nothing():
    network = Linear()
    before = network.layer.weight.clone()
    precision = devices.Precision("fp32", "cpu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-2)
    losses, micro = training.train_step(network, None, None, None, optimiser, precision, 4)
    assert set(losses.values()) == {0.0} and micro == 4
    assert torch.equal(network.layer.weight, before)


def test_out_of_memory_halves_the_part_and_changes_nothing_else(capsys):
    whole, crowded = Linear(), Crowded()
    losses, _, gradient = one_step(whole, 13)
    small_losses, micro, small_gradient = one_step(crowded, 64)
    assert micro == 3  # 13 → 6 → 3
    assert small_losses == pytest.approx(losses, rel=1e-5)
    assert torch.allclose(gradient, small_gradient, rtol=1e-4, atol=1e-6)
    printed = capsys.readouterr().out
    assert "out of memory: 6 photos at a time, accumulated to 13" in printed
    assert "out of memory: 3 photos" in printed


def test_out_of_memory_with_one_photo_ends_the_run(capsys):
    network = Crowded()
    network.room = 0
    with pytest.raises(SystemExit) as end:
        one_step(network, 4)
    assert end.value.code == 2
    assert "--image-size" in capsys.readouterr().err


def test_one_bf16_step_on_the_cpu():
    torch.manual_seed(0)
    network = GPSPredictionNet("test_resnet", True).train()
    before = {k: v.clone() for k, v in network.named_parameters()}
    _, target, normalisation = make_batch(4)
    precision = devices.Precision("bf16", "cpu")
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    seen = []
    hook = network.rgb_branch.conv1.register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    losses, _ = training.train_step(
        network, network_inputs(4), target, normalisation, optimiser, precision, 4
    )
    hook.remove()
    assert torch.bfloat16 in seen
    assert all(math.isfinite(v) for v in losses.values())
    assert any((v != before[k]).any() for k, v in network.named_parameters())
    assert all(torch.isfinite(v).all() for v in network.parameters())


def test_fp16_needs_cuda(capsys):
    with pytest.raises(SystemExit) as end:
        devices.Precision("fp16", "cpu")
    assert end.value.code == 2 and "bf16 or fp32" in capsys.readouterr().err


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_one_fp16_step_with_grad_scaler_and_channels_last():
    torch.manual_seed(0)
    network = GPSPredictionNet("test_resnet", True)
    network.to("cuda", memory_format=torch.channels_last).train()
    _, target, normalisation = make_batch(4)
    precision = devices.Precision("fp16", "cuda")
    assert precision.scaler.is_enabled()
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4)
    for _ in range(3):  # the first steps may be skipped while the scale is found
        losses, _ = training.train_step(
            network, network_inputs(4), target, normalisation, optimiser, precision, 4
        )
    assert all(math.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(v).all() for v in network.parameters())
    assert network.rgb_branch.conv1.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_cuda_steps_agree_with_the_cpu(name):
    if name == "bf16" and not torch.cuda.is_bf16_supported():
        pytest.skip("no bf16 on this device")
    losses, _, gradient = one_step(Linear(), 13)
    network = Linear().cuda()
    found, _, other = one_step(network, 5, devices.Precision(name, "cuda"))
    assert found == pytest.approx(losses, rel=0.02)
    assert torch.nn.functional.cosine_similarity(gradient, other.cpu(), dim=0) > 0.999


@pytest.mark.cuda
@pytest.mark.skipif(not CUDA, reason="no CUDA device")
def test_real_cuda_out_of_memory_is_survived(capsys):
    class Hungry(Linear):
        def forward(self, batch):
            free = torch.cuda.mem_get_info()[0]
            torch.empty(int(free * len(batch["x"]) / 4), dtype=torch.uint8, device="cuda")
            return super().forward(batch)

    losses, _, gradient = one_step(Linear(), 13)
    found, micro, other = one_step(Hungry().cuda(), 13, devices.Precision("fp32", "cuda"))
    assert micro <= 3 and "out of memory" in capsys.readouterr().out
    assert found == pytest.approx(losses, rel=1e-3)
    assert torch.allclose(gradient, other.cpu(), rtol=1e-2, atol=1e-4)


# ---------------------------------------------------------------- epochs


class Dropping(Linear):
    def forward(self, batch):
        dropped = nn.functional.dropout(batch["x"], 0.5, self.training)
        return super().forward({"x": dropped})


def run_fit(network, epochs, validate=None, patience=100, on_epoch=None, resume=None, ema=0.0):
    _, target, normalisation = make_batch(16, 4)
    inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2))

    def batches(epoch):
        for part in torch.randperm(16, generator=torch.Generator().manual_seed(epoch)).split(5):
            yield {"x": inputs[part]}, {k: v[part] for k, v in target.items()}

    return training.fit(
        network, batches, validate, normalisation, devices.Precision("fp32", "cpu"),
        parameters=[{"params": network.parameters(), "lr": 1e-2}],
        epochs=epochs, micro=5, weight_decay=0.01, patience=patience, seed=7, ema_decay=ema,
        on_epoch=on_epoch or (lambda row, state: None), resume=resume,
    )  # fmt: skip


def test_training_stops_early_and_keeps_the_best_weights():
    network, scores, seen = Linear(), iter([8.0, 5.0, 3.0, 4.0, 3.0, 9.0, 1.0]), []

    def validate(judged):
        assert judged is network
        seen.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"score": next(scores)}

    best = run_fit(network, 50, validate, patience=3)
    assert len(seen) == 6  # the start and five epochs: three after the best, the second
    assert (best.epoch, best.score) == (2, 3.0)
    for key, value in network.state_dict().items():
        assert torch.equal(value, seen[2][key])
        assert torch.equal(value, best.state[key])


def test_without_validation_the_last_weights_are_kept():
    network, last = Linear(), {}
    best = run_fit(network, 4, on_epoch=lambda row, state: last.update(state))
    assert best.epoch == 4
    assert torch.equal(network.layer.weight, last["model"]["layer.weight"])


def test_training_lowers_the_loss():
    history = []
    run_fit(Linear(), 60, on_epoch=lambda row, state: history.append(row))
    for head in targets.HEADS:
        assert history[-1][f"loss_{head}"] < history[0][f"loss_{head}"]


def test_averaged_weights_are_validated_and_kept():
    network, seen = Linear(), []

    def validate(judged):
        assert judged is not network
        seen.append((clone(judged), clone(network)))
        return {"score": -len(seen)}

    def clone(module):
        return module.layer.weight.detach().clone()

    best = run_fit(network, 6, validate, ema=0.9)
    assert best.epoch == 6
    assert torch.equal(network.layer.weight, seen[-1][0])  # the average becomes the network
    lag = [(average - raw).norm() for average, raw in seen]
    assert lag[0] == 0 and min(lag[1:]) > 0
    lowest = torch.stack([raw for _, raw in seen]).amin(0)
    highest = torch.stack([raw for _, raw in seen]).amax(0)
    inside = (seen[-1][0] >= lowest - 0.05) & (seen[-1][0] <= highest + 0.05)
    assert inside.all()


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_resumed_training_ends_where_the_uninterrupted_one_does(tmp_path, ema):
    torch.manual_seed(1)
    scores = {e: abs(e - 4) + 1.0 for e in range(9)}

    def scorer(start):
        epochs = iter(range(start, 9))
        return lambda judged: {"score": scores[next(epochs)]}

    straight = Dropping()
    best = run_fit(straight, 8, scorer(0), ema=ema)
    interrupted = Dropping()
    torch.manual_seed(5)  # the masks of dropout depend on the seed and the epoch alone

    def keep_and_stop(row, state):
        archives.save(tmp_path / "last.pth", state)
        if row["epoch"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_fit(interrupted, 8, scorer(0), on_epoch=keep_and_stop, ema=ema)
    torch.manual_seed(99)  # a new process starts elsewhere
    state = torch.load(tmp_path / "last.pth", weights_only=True)
    fresh, epochs = Dropping(), []
    again = run_fit(
        fresh, 8, scorer(4), ema=ema, resume=state,
        on_epoch=lambda row, _: epochs.append(row["epoch"]),
    )  # fmt: skip
    assert epochs == [4, 5, 6, 7, 8]
    assert (again.epoch, again.score) == (best.epoch, best.score) == (4, 1.0)
    assert torch.equal(fresh.layer.weight, straight.layer.weight)


# ---------------------------------------------------------------- fine-tuning
