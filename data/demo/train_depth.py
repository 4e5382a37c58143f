"""Train the demo's depth model: a small Depth-Anything-V2 that has seen rendered islands only.

Renders islands of other seeds than the demo's (data/cache/demo_depth), learns their exact depth,
writes checkpoints/depth_anything_v2_demo.pth under the official key names. Eight minutes of
rendering on two cores, then an hour on one; the same command resumes an interrupted run.

    python data/demo/train_depth.py
    python data/demo/train_depth.py --evaluate

It is a demo model: good on these islands, not meant for real photographs.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from density import stop, sweep_temporaries, write_atomically  # noqa: E402

# ---------------------------------------------------------------- settings

OUTPUT = ROOT / "checkpoints" / "depth_anything_v2_demo.pth"  # the model
CACHE_DIR = ROOT / "data" / "cache" / "demo_depth"  # rendered scenes, state to resume from
ISLANDS = 120  # training islands, seeds 1001 and up
SCENES = 50  # photos planned on each; one per visit is rendered, about half of them
MINUTES = 60.0  # of training, rendering not counted; a slower machine learns less
LEARNING_RATE = 1.2e-3  # peak, AdamW
THREADS = 1  # CPU threads of the training; more only on idle cores
SEED = 1  # of the initial weights and of the crops
TEST_ISLANDS = 16  # unseen islands for --evaluate, seeds 9001 and up; four photos of each

# ----------------------------------------------------------------

WIDTH, HEIGHT = 448, 336  # of the rendered scenes
HIDDEN, LAYERS, PROJECTS, FUSION, HEAD = 128, 6, (24, 48, 96, 128), 32, 16
# Until which share of the time: (rows, columns) fed to the network, and batch. Coarse pictures
# teach the layout cheaply.
PHASES = (
    (0.25, (126, 168), 16),
    (0.70, (168, 224), 12),
    (1.00, (252, 336), 6),
)
POWER = 1 / 3  # the network learns inverse depth to this power: mountains count as stones do

# ---------------------------------------------------------------- scenes


def render_island(seed: int, scenes: int, folder: Path) -> Path:
    """One picture per visit of an island's plan, with inverse depth; cached as .npz."""
    from camera import Camera, render
    from island import Island
    from prepare import plan_shots

    path = folder / f"island_{seed}.npz"
    if path.exists():
        return path
    island = Island(seed)
    visits = {(shot.place, shot.when.date()): shot
              for shot in plan_shots(island, scenes, WIDTH, HEIGHT, seed)}  # fmt: skip
    photos, inverses = [], []
    for shot in visits.values():
        photo, depth, _ = render(island, Camera(**shot.view), shot.when, shot.number)
        if photo.shape[0] > photo.shape[1]:  # cut portraits square-ish, so that all are one shape
            top = (photo.shape[0] - HEIGHT) // 2
            pad = ((0, 0), (0, WIDTH - photo.shape[1]))
            photo = np.pad(photo[top : top + HEIGHT], (*pad, (0, 0)), mode="reflect")
            depth = np.pad(depth[top : top + HEIGHT], pad, mode="reflect")
        photos.append(photo)
        inverses.append((1 / depth).astype(np.float16))
    with write_atomically(path) as file:
        np.savez(file, photos=np.stack(photos), inverses=np.stack(inverses))
    return path


def render_scenes(islands: int, scenes: int, folder: Path, workers: int) -> list[Path]:
    """Scenes of all training islands; what is cached is not rendered again."""
    from concurrent.futures import ProcessPoolExecutor

    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    sweep_temporaries(folder)
    seeds = range(1001, 1001 + islands)
    with ProcessPoolExecutor(workers) as pool:
        jobs = pool.map(render_island, seeds, [scenes] * islands, [folder] * islands)
        return list(tqdm(jobs, total=islands, desc="islands"))


# ---------------------------------------------------------------- network


def new_network(seed: int):
    """The demo's Depth-Anything-V2 with fresh weights, built by the depth stage's own loader."""
    import torch
    from transformers import DepthAnythingForDepthEstimation

    from geophoto.depth_network import network_config, use_official_positions

    torch.manual_seed(seed)
    shapes = {"pretrained.pos_embed": (1, 1 + 37 * 37, HIDDEN),
              "depth_head.scratch.layer1_rn.weight": (FUSION, PROJECTS[0], 3, 3),
              "depth_head.scratch.output_conv2.0.weight": (HEAD, FUSION // 2, 3, 3)}  # fmt: skip
    for k, width in enumerate(PROJECTS):
        shapes[f"depth_head.projects.{k}.weight"] = (width, HIDDEN, 1, 1)
    for k in range(LAYERS):
        shapes[f"pretrained.blocks.{k}.mlp.fc1.weight"] = (4 * HIDDEN, HIDDEN)
    network = DepthAnythingForDepthEstimation(
        network_config({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    )
    # Smooth positions mean the same at every input size, which noise would not.
    row, column = np.meshgrid(np.linspace(-1, 1, 37), np.linspace(-1, 1, 37), indexing="ij")
    waves = np.pi * np.linspace(0.25, 4, HIDDEN // 4)
    grid = [f(axis[..., None] * waves) for axis in (row, column) for f in (np.sin, np.cos)]
    grid = torch.tensor(np.concatenate(grid, -1).reshape(1, -1, HIDDEN), dtype=torch.float32)
    with torch.no_grad():
        network.backbone.embeddings.position_embeddings[:, 1:] = 0.3 * grid
        network.head.conv3.bias.fill_(0.3)  # the last layer is a ReLU: start above its dead half
    return use_official_positions(network)


def save_network(network, path: Path) -> None:
    """Write the weights as a plain float16 state dict under the official key names."""
    import torch

    from geophoto.depth_weights import to_official_keys

    state = to_official_keys(network.state_dict())
    with write_atomically(path) as file:
        torch.save({key: value.half() for key, value in state.items()}, file)


# ---------------------------------------------------------------- training


class Scenes:
    """All cached scenes in memory; `batch` cuts random crops of them."""

    def __init__(self, paths: list[Path]):
        archives = [np.load(path) for path in paths]
        self.photos = [photo for archive in archives for photo in archive["photos"]]
        self.targets = [(inverse.astype(np.float32) ** POWER).astype(np.float16)
                        for archive in archives for inverse in archive["inverses"]]  # fmt: skip

    def batch(self, rng: np.random.Generator, size: int, shape: tuple[int, int]):
        """Photos (B, 3, h, w) normalised, and inverse depth ** POWER (B, h, w); sky = 0."""
        import cv2
        import torch

        from geophoto.depth_network import IMAGENET_MEAN, IMAGENET_STD

        photos, targets = [], []
        for k in rng.integers(0, len(self.photos), size):
            photo, target = self.photos[k], self.targets[k]
            scale = rng.uniform(0.55, 1) ** 0.5  # crops change the framing, not the geometry
            h, w = int(HEIGHT * scale), int(WIDTH * scale)
            y, x = rng.integers(0, HEIGHT - h + 1), rng.integers(0, WIDTH - w + 1)
            photo, target = photo[y : y + h, x : x + w], target[y : y + h, x : x + w]
            photo = cv2.resize(photo, shape[::-1], interpolation=cv2.INTER_AREA).astype(np.float32)
            target = target.astype(np.float32)
            target = cv2.resize(target, shape[::-1], interpolation=cv2.INTER_AREA)
            photo = photo / 255 * rng.uniform(0.8, 1.2) * rng.uniform(0.93, 1.07, 3)
            photo = (np.clip(photo, 0, 1) - IMAGENET_MEAN) / IMAGENET_STD
            if rng.random() < 0.5:  # depth has no handedness
                photo, target = photo[:, ::-1], target[:, ::-1]
            photos.append(photo.transpose(2, 0, 1).astype(np.float32))
            targets.append(np.ascontiguousarray(target))
        return torch.from_numpy(np.stack(photos)), torch.from_numpy(np.stack(targets))


def depth_loss(predicted, target):
    """Scale- and shift-invariant error plus its gradients at four scales (MiDaS), sky included."""

    def aligned(x):
        flat = x.flatten(1)
        middle = flat.median(1, keepdim=True).values
        spread = (flat - middle).abs().mean(1, keepdim=True).clamp_min(0.02)
        return ((flat - middle) / spread).view_as(x)

    difference = aligned(predicted) - aligned(target)
    loss = difference.abs().mean() + 0.3 * (predicted - target).abs().mean()
    for k in range(4):
        part = difference[:, :: 2**k, :: 2**k]
        loss = loss + 0.25 * ((part[:, 1:] - part[:, :-1]).abs().mean()
                              + (part[:, :, 1:] - part[:, :, :-1]).abs().mean())  # fmt: skip
    return loss


def train(
    paths: list[Path], minutes: float, peak: float, seed: int, state_path: Path, output: Path
):
    """Train through PHASES for so many minutes, saving the state now and then; resumes from it."""
    import torch

    from geophoto.depth_network import pick_precision

    half = pick_precision("auto", "cpu") == "bf16"
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)
    network = new_network(seed).train().to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=0.02, betas=(0.9, 0.98))
    step, spent, losses = 0, 0.0, []
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        network.load_state_dict(state["network"])
        optimiser.load_state_dict(state["optimiser"])
        step, spent = state["step"], state["seconds"]
    scenes, began = Scenes(paths), time.time() - spent
    print(f"{len(scenes.photos)} scenes, {sum(p.numel() for p in network.parameters()):,} weights")
    done = spent / (60 * minutes)
    while done < 1:
        shape, size = next(phase for until, *phase in PHASES if done < until)
        for group in optimiser.param_groups:
            group["lr"] = float(peak * min((step + 1) / 40, 0.51 + 0.5 * np.cos(np.pi * done)))
        photos, targets = scenes.batch(np.random.default_rng([seed, step]), size, shape)
        photos = photos.to(memory_format=torch.channels_last)
        with autocast:
            predicted = network(pixel_values=photos).predicted_depth
        loss = depth_loss(predicted.float(), targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
        step, spent = step + 1, time.time() - began
        done = spent / (60 * minutes)
        if step % 50 == 0 or done >= 1:
            print(f"step {step:5d}  loss {np.mean(losses[-48:]):.4f}  "
                  f"{spent / 60:.1f} of {minutes:g} min", flush=True)  # fmt: skip
            with write_atomically(state_path) as file:
                torch.save({"network": network.state_dict(), "optimiser": optimiser.state_dict(),
                            "step": step, "seconds": spent}, file)  # fmt: skip
            save_network(network, output)


# ---------------------------------------------------------------- evaluation


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two vectors (ties share their mean rank)."""

    def ranks(x):
        _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
        return (np.cumsum(counts) - (counts - 1) / 2)[inverse]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def score_photo(predicted: np.ndarray, depth: np.ndarray) -> tuple[float, float]:
    """Spearman with the true inverse depth of the prediction, and of the pixel row; no sky."""
    import cv2

    predicted = cv2.resize(
        predicted.astype(np.float32), depth.shape[::-1], interpolation=cv2.INTER_LINEAR
    )
    land = np.isfinite(depth)
    rows = np.broadcast_to(np.arange(len(depth))[:, None], depth.shape)
    truth = 1 / depth[land]
    return rank_correlation(predicted[land], truth), rank_correlation(rows[land], truth)


def unseen_photos(island_seed: int, count: int, width: int = 640, height: int = 480) -> list[tuple]:
    """(photo, depth) of `count` visits to an island, spread over the hours."""
    from camera import Camera, render
    from island import Island
    from prepare import plan_shots

    island = Island(island_seed)
    shots = plan_shots(island, 40, width, height, island_seed)
    shots = sorted({(s.place, s.when.date()): s for s in shots}.values(), key=lambda s: s.when.hour)
    picked = [shots[k] for k in np.linspace(0, len(shots) - 1, count).astype(int)]
    return [render(island, Camera(**s.view), s.when, s.number)[:2] for s in picked]


def median_interval(values: np.ndarray, rounds: int = 2000) -> tuple[float, float]:
    """Bootstrap 95 % interval of the median."""
    rng = np.random.default_rng(0)
    medians = np.median(rng.choice(values, (rounds, len(values))), axis=1)
    return tuple(np.percentile(medians, [2.5, 97.5]))


def evaluate(
    model: Path, islands: int, sizes: tuple[int, ...] = (518, 364, 252, 168)
) -> dict[int, dict]:
    """Print and return, per input size, how well the model orders the depth of unseen islands."""
    import torch
    from tqdm import tqdm

    from geophoto.depth_network import build_network, estimate_depth
    from geophoto.depth_weights import read_state_dict

    network = build_network(read_state_dict(model))
    print(f"{model.name}: {sum(p.numel() for p in network.parameters()):,} weights")
    scores = {size: [] for size in sizes}
    with torch.inference_mode():
        for seed in tqdm(range(9001, 9001 + islands), desc="unseen islands"):
            for photo, depth in unseen_photos(seed, 4):
                if np.isfinite(depth).mean() > 0.05:
                    for size in sizes:
                        scores[size].append(
                            score_photo(estimate_depth(network, photo, size), depth)
                        )
    table = {}
    print("Spearman with the true inverse depth, sky left out; median per photo")
    print(
        f"{'input':>6} {'photos':>6} {'model':>7} {'row':>7} {'gain':>7}  95 % interval of the gain"
    )
    for size, pairs in scores.items():
        model_scores, row_scores = np.array(pairs).T
        gain = model_scores - row_scores
        low, high = median_interval(gain)
        table[size] = {"n": len(gain), "model": float(np.median(model_scores)),
                       "row": float(np.median(row_scores)), "gain": float(np.median(gain)),
                       "interval": (float(low), float(high))}  # fmt: skip
        row = table[size]
        print(f"{size:6d} {row['n']:6d} {row['model']:7.4f} {row['row']:7.4f} {row['gain']:+7.4f}"
              f"  {low:+.4f} to {high:+.4f}")  # fmt: skip
    return table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Command line; every setting above has its flag."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default=OUTPUT, type=Path, help="the model's file")
    parser.add_argument("--cache-dir", default=CACHE_DIR, type=Path, help="scenes and state")
    parser.add_argument("--islands", default=ISLANDS, type=int, help="training islands")
    parser.add_argument("--scenes", default=SCENES, type=int, help="photos planned on each")
    parser.add_argument("--minutes", default=MINUTES, type=float, help="of training")
    parser.add_argument("--learning-rate", default=LEARNING_RATE, type=float, help="its peak")
    parser.add_argument("--threads", default=THREADS, type=int, help="CPU threads of the training")
    parser.add_argument("--seed", default=SEED, type=int, help="of weights and crops")
    parser.add_argument("--test-islands", default=TEST_ISLANDS, type=int, help="for --evaluate")
    parser.add_argument("--evaluate", action="store_true", help="only score the model there is")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Train, or with --evaluate only score; returns the exit code."""
    import torch

    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    if not args.evaluate:
        scenes = render_scenes(args.islands, args.scenes, args.cache_dir, args.threads + 1)
        state = args.cache_dir / "state.pth"
        train(scenes, args.minutes, args.learning_rate, args.seed, state, args.output)
    elif not args.output.exists():
        stop(f"no model at {args.output}: train it first, without --evaluate")
    evaluate(args.output, args.test_islands)
    return 0


if __name__ == "__main__":
    sys.exit(main())
