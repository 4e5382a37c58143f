"""Training alone and beside a process that keeps every core busy with threads that spin.

Features are cached by the first run and not timed. Prints the seconds of a training, alone
and beside the busy process, and their ratio (goal on two cores: at most 3). `--beside ROOT` does the
same with the code of another checkout, in turns.

    python benchmarks/busy_machine.py
    python benchmarks/busy_machine.py --beside ../before --rounds 3
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPIN = "import torch; a = torch.rand(700, 700)\nwhile True: a = a @ a; a /= a.max()"
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


def train(root: Path) -> float:
    """Seconds of a training by hand, without what make sets."""
    command = [sys.executable, "gps_orientation_trainer.py", "--data-dir", "data/demo",
               "--checkpoint-dir", "checkpoints/busy", "--inputs", "rgb", "--mode", "frozen",
               "--backbone", "tf_efficientnet_lite0", "--overwrite"]  # fmt: skip
    usual = {k: v for k, v in os.environ.items() if not k.startswith("OMP_")}
    begun = time.monotonic()
    subprocess.run(command, cwd=root, env=usual, check=True, **QUIET)
    return time.monotonic() - begun


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--beside", type=Path, help="another checkout, its demo rendered too")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    roots = [ROOT, *([args.beside.resolve()] if args.beside else [])]
    if not all((root / "data/demo/exif_data.json").is_file() for root in roots):
        print("no demo: run make demo first", file=sys.stderr)
        return 2
    for root in roots:
        train(root)  # fills the cache of features
    for root in roots:
        alone = statistics.median(train(root) for _ in range(args.rounds))
        busy = subprocess.Popen([sys.executable, "-c", SPIN], **QUIET)
        try:
            beside = statistics.median(train(root) for _ in range(args.rounds))
        finally:
            busy.kill()
        print(f"{root.name}: {alone:.1f} s alone, {beside:.1f} s beside a busy process: "
              f"{beside / alone:.1f} times", flush=True)  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
