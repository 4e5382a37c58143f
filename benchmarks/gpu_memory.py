"""How much GPU memory fine-tuning takes, worked out without a GPU on torch's meta device.

One forward pass in half precision of a network without storage, counting every tensor that autograd
keeps for the backward pass. To these come float32 weights, gradients, two moments of AdamW and the
averaged weights, and the half-precision copies of the weights. Not counted: CUDA itself (about
0.5 GiB), workspaces of its kernels and what the allocator leaves unused. Prints a Markdown table.

    python benchmarks/gpu_memory.py
    python benchmarks/gpu_memory.py --backbones resnet50 convnext_tiny --sizes 512 --batches 2 8
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from geophoto.network import GPSPredictionNet  # noqa: E402

PER_WEIGHT = 5 * 4 + 2  # bytes: weight, gradient, two moments, average; a copy in half precision
GIB = 2**30


def kept_for_backward(network: GPSPredictionNet, batch: dict[str, torch.Tensor]) -> int:
    """Bytes of the tensors, each storage once, that one forward pass keeps; weights left out."""
    known = {parameter.untyped_storage()._cdata for parameter in network.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage  # held, so that its address is not given to another
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        network(batch)
    return sum(storage.nbytes() for storage in kept.values())


def gib(backbone: str, use_depth: bool, size: int, photos: int) -> float:
    """GiB of fine-tuning with a batch of `photos` squares of `size` pixels."""
    with torch.device("meta"):
        network = GPSPredictionNet(backbone, use_depth).to(torch.bfloat16)
        shapes = {"rgb": (3, size), "view": (3, size // 2), "depth": (1, size)}
        batch = {
            name: torch.empty(photos, channels, side, side, dtype=torch.bfloat16)
            for name, (channels, side) in shapes.items()
            if use_depth or name != "depth"
        }
    weights = sum(parameter.numel() for parameter in network.parameters())
    return (kept_for_backward(network, batch) + PER_WEIGHT * weights) / GIB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["resnet50"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[224, 512, 1024])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    args = parser.parse_args()
    columns = [(size, photos) for size in args.sizes for photos in args.batches]
    print("| GiB | " + " | ".join(f"{size} px, batch {photos}" for size, photos in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for backbone in args.backbones:
        for use_depth in (False, True):
            name = f"{backbone}, RGB{' + depth' if use_depth else ''}"
            cells = (f"{gib(backbone, use_depth, *column):.1f}" for column in columns)
            print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
