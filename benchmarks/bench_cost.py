"""What a prediction costs: seconds a photo and memory, measured of one model alone.

Takes the model through decoding, depth where it uses it, network and answer, photo by photo; the
first photo is not counted. Prints one JSON object: photos, seconds_a_photo (median), peak_mib (of
the process, on a GPU of its tensors), parameters, checkpoint_mib, device.

    python benchmarks/bench_cost.py
    python benchmarks/bench_cost.py --checkpoint checkpoints/best_gps_model_rgb.pth
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from geophoto.checkpoints import read_checkpoint  # noqa: E402
from geophoto.pictures import list_photos  # noqa: E402
from geophoto.predictions import Predictor, predict_unlabelled  # noqa: E402


def peak_mib(device: str) -> float | None:
    """Most memory so far in MiB: of CUDA's tensors, else of this process; None where unknown."""
    import torch

    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss may be that of the process that started this one
        line = next(one for one in status.read_text().splitlines() if one.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on a Mac


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT / "checkpoints/demo/best_gps_model.pth"
    parser.add_argument("--checkpoint", default=str(default), help="the model")
    parser.add_argument("--images", default=str(ROOT / "data/demo/images"), help="folder of photos")
    parser.add_argument("--photos", type=int, default=20, help="so many, spread over the folder")
    args = parser.parse_args()
    path = Path(args.checkpoint)
    predictor = Predictor(read_checkpoint(path), path.parent, "auto", 0.6)
    every = sorted(list_photos([args.images]).items())
    files = every[:: max(1, len(every) // (args.photos + 1))][: args.photos + 1]
    took = []
    for file in files:
        begun = time.monotonic()
        found = predict_unlabelled(predictor, [file], lambda items, **_: items)
        if len(found):  # what cannot be read costs nothing
            took.append(time.monotonic() - begun)
    device = predictor.precision.device.type
    print(json.dumps({
        "photos": len(took) - 1,
        "seconds_a_photo": statistics.median(took[1:]),
        "peak_mib": peak_mib(device),
        "parameters": sum(p.numel() for p in predictor.network.parameters()),
        "checkpoint_mib": path.stat().st_size / 2**20,
        "device": device,
    }))  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
