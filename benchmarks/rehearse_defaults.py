"""The real defaults, rehearsed without the real weights: ResNet50 and Depth-Anything-V2 Small.

A server on this machine stands for the hosts (GEOPHOTO_MIRROR) and serves both files with weights
made by a rule, whose sha256 replace the published ones; the download of each is cut once. Then the
four scripts run as processes at their default sizes on photos of the demo, frozen, and fine-tuning
trains for two epochs at 224 px and on a dozen photos for one epoch at 1024 px. Prints time and peak
memory of each stage. Weights made by a rule know nothing: errors are not looked at.

Fine-tuning is most of it: three ResNet50 (of RGB, and of RGB+Depth) go forward and back over 42 of
60 photos in each epoch. With --folder, stages can be run one by one.

    python benchmarks/rehearse_defaults.py
    python benchmarks/rehearse_defaults.py --photos 20 --stages table depth --folder rehearsal
    python benchmarks/rehearse_defaults.py --photos 20 --stages "fine-tuning, 224 px" \\
                                           --folder rehearsal
"""

import argparse
import contextlib
import http.server
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from rule_weights import official_shapes, rule_weights  # noqa: E402

from density import file_sha256, run_script  # noqa: E402
from geophoto import backbones, depth_weights, downloads  # noqa: E402
from geophoto.network import create_backbone  # noqa: E402
from geophoto.pictures import scan  # noqa: E402

SMALL = {"hidden": 384, "layers": 12, "side": 37, "neck": (48, 96, 192, 384), "fusion": 64,
         "head": 32}  # fmt: skip
PATCHED = """import runpy, sys
from geophoto import backbones, depth_weights
backbones.RESNET50_SHA256, depth_weights.KNOWN_SHA256["vits"] = sys.argv[1:3]
sys.argv = sys.argv[3:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
TRAIN = ["gps_orientation_trainer.py"]
TUNE = [*TRAIN, "--mode", "finetune"]
STAGES = {  # name: script and flags beside the folders
    "table": ["exif_extractor.py"],
    "depth": ["depth_map_generator.py"],
    "training, frozen": [*TRAIN, "--mode", "frozen"],
    "report": ["evaluate_gps_model.py", "--output-dir", "{root}/evaluation"],
    "fine-tuning, 224 px": [*TUNE, "--image-size", "224", "--epochs", "2"],
    "report, fine-tuned": ["evaluate_gps_model.py", "--output-dir", "{root}/evaluation2"],
    "fine-tuning, 1024 px": [*TUNE, "--image-size", "1024", "--epochs", "1", "--inputs", "rgb",
                             "--micro-batch", "1"],
}  # fmt: skip


class Host(http.server.BaseHTTPRequestHandler):
    """Files by path; the first answer for each is cut in the middle."""

    def do_GET(self):
        body = self.server.files.get(self.path)
        if body is None:
            return self.send_error(404)
        begin = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        first = int(begin[1]) if begin else 0
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        self.end_headers()
        with contextlib.suppress(OSError):  # a stage that is interrupted has gone
            self.wfile.write(body[first:] if first else body[: len(body) // 2])
        print(f"  {self.path} from byte {first:,}", flush=True)

    def log_message(self, *arguments):
        pass


def make_weights(folder: Path) -> dict[str, Path]:
    """Both files by their addresses below the mirror, made where they are not there yet; shapes and
    names are the official ones."""
    urls = backbones.RESNET50_URL, depth_weights.weights_url("vits")
    files = {url.removeprefix("https:/"): folder / url.rsplit("/", 1)[1] for url in urls}
    if all(file.is_file() for file in files.values()):
        return files
    folder.mkdir(parents=True, exist_ok=True)
    state = create_backbone("resnet50", 3).state_dict()
    values = rule_weights({k: tuple(v.shape) for k, v in state.items() if v.is_floating_point()})
    for key in values:
        if key.endswith("running_var"):
            values[key] = values[key].abs() + 0.5
    small = rule_weights(official_shapes(**SMALL))
    small["depth_head.scratch.output_conv2.2.bias"] += 2  # else ReLU cuts most of it to 0
    for file, weights in zip(files.values(), (values, small), strict=True):
        torch.save(weights, file)
    return files


def run_stage(command: list[str], environment: dict) -> tuple[float, float, str]:
    """Seconds, peak memory in GB, and the last line; the benchmark ends where a stage fails."""
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # interrupted: the stage ends with us
            process.terminate()
            process.wait()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        text = output.read()
    if process.returncode:
        sys.exit(f"{' '.join(command[-9:])} ended with {process.returncode}\n{text[-3000:]}")
    return time.monotonic() - begun, usage.ru_maxrss * 1024 / 1e9, text.strip().splitlines()[-1]


def choose_photos(source: Path, folder: Path, count: int) -> None:
    """Links to `count` photos, evenly over the sorted names."""
    if folder.is_dir():  # of an earlier call
        return
    files = sorted(Path(paths[0]) for _, paths in scan(source).files())
    folder.mkdir(parents=True)
    for i in range(min(count, len(files))):
        file = files[i * len(files) // min(count, len(files))]
        (folder / f"{i:03d}{file.suffix}").symlink_to(file.resolve())


def run_stages(root: Path, images: Path, count: int, stages: list[str]) -> None:
    """Run them in `root`, where what earlier calls left is gone on with; prints a line for each."""
    files = make_weights(root / "host")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.files = {path: file.read_bytes() for path, file in files.items()}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    mirror = f"http://127.0.0.1:{server.server_port}"
    environment = {**os.environ, downloads.MIRROR: mirror, "no_proxy": "127.0.0.1"}
    choose_photos(images, root / "data" / "images", count)
    patched = [sys.executable, "-c", PATCHED, *map(file_sha256, files.values())]
    print(f"{count} photos, {torch.get_num_threads()} threads of torch", flush=True)
    for stage in stages:
        print(f"{stage} begins at {time.strftime('%H:%M:%S')}", flush=True)
        script, *flags = (part.format(root=root) for part in STAGES[stage])
        data = root / ("few" if "1024" in stage else "data")
        models = "checkpoints_few" if "1024" in stage else "checkpoints"
        models += "_tuned" if "tuned" in stage or "tuning" in stage else ""
        folders = ["--data-dir", str(data)]
        if "1024" in stage:
            choose_photos(images, data / "images", 12)
            run_stage([sys.executable, "exif_extractor.py", *folders], environment)
        if script != "exif_extractor.py":
            folders += ["--checkpoint-dir", str(root / models)]
        if models.endswith("_tuned"):  # what is there is not downloaded again
            (root / models).mkdir(exist_ok=True)
            for file in files.values():
                if not (root / models / file.name).exists():
                    (root / models / file.name).symlink_to(file)
        start = [sys.executable] if stage == "table" else patched  # which loads torch
        seconds, gigabytes, last = run_stage([*start, script, *folders, *flags], environment)
        print(f"{stage:22} {seconds:7.1f} s {gigabytes:6.2f} GB   {last[:60]}", flush=True)
    server.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", default=str(ROOT / "data/demo/images"), help="folder of photos")
    add("--photos", type=int, default=60)
    add("--stages", nargs="+", default=list(STAGES), choices=list(STAGES))
    add("--folder", help="keep everything here for further calls; photos are those of the first")
    args = parser.parse_args()
    kept = contextlib.nullcontext(args.folder) if args.folder else tempfile.TemporaryDirectory()
    with kept as name:
        run_stages(Path(name).resolve(), Path(args.images), args.photos, args.stages)
    return 0


if __name__ == "__main__":
    run_script(main)
