"""What a backbone costs frozen: seconds for the features of 100 photos (RGB), and its size.

Random weights, which are as fast as any; the same photos in turns, so that a busy machine hurts all
alike. Prints a Markdown table.

    python benchmarks/bench_backbones.py
    python benchmarks/bench_backbones.py --images data/images --photos 100
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from bench_predict import as_photos, plain_bar  # noqa: E402

from geophoto.devices import Precision  # noqa: E402
from geophoto.features import cached_rgb  # noqa: E402
from geophoto.network import create_network  # noqa: E402
from geophoto.pictures import list_photos  # noqa: E402

NAMES = ("tf_efficientnet_lite0", "resnet50", "convnext_tiny", "vit_small_patch14_dinov2",
         "vit_small_patch16_dinov3")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", default=str(ROOT / "data/demo/images"), help="folder of photos")
    parser.add_argument("--backbones", nargs="+", default=NAMES)
    parser.add_argument("--photos", type=int, default=20)
    parser.add_argument("--size", type=int, default=448, help="pixels")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    files = list(list_photos([args.images]).values())[: args.photos]
    photos = as_photos(files)
    first, precision = as_photos(files[:1]), Precision("auto")
    took = dict.fromkeys(args.backbones, float("inf"))
    weights = {}
    for number in range(args.rounds):
        for name in args.backbones:
            network = create_network(name, False, 0).eval()
            weights[name] = sum(one.numel() for one in network.rgb_branch.parameters())
            for part in (first, photos):  # the first photo builds the kernels
                with tempfile.TemporaryDirectory() as cache:
                    begun = time.monotonic()
                    cached_rgb(network, part, Path(cache), args.size, precision, plain_bar)
                    seconds = time.monotonic() - begun
            took[name] = min(took[name], seconds)
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    print("| backbone | million weights | MB | seconds per 100 photos |\n|---|---|---|---|")
    for name, seconds in took.items():
        million = weights[name] / 1e6
        each = 100 * seconds / len(photos)
        print(f"| `{name}` | {million:.1f} | {4 * million:.0f} | {each:.0f} |")


if __name__ == "__main__":
    main()
