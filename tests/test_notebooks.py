"""The notebooks run from the top on any photos, live parts included, and are committed executed."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from conftest import REPOSITORY, quietly
from nbclient import NotebookClient

import evaluate_gps_model

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
QUICK = ["--backbone", "test_resnet", "--no-pretrained"]
LIVE = {  # the same trainings, quick
    "FROZEN": ["--mode", "frozen", "--inputs", "both", "--folds", 3, "--frozen-image-size", 64],
    "TUNED": ["--mode", "finetune", "--inputs", "rgb", "--image-size", 64, "--epochs", 2],
}
LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory) -> tuple[Path, Path, Path]:
    """Data, checkpoints and evaluation of the notebooks' own, as they write there."""
    root = tmp_path_factory.mktemp("notebooks")
    paths = root / "data", root / "checkpoints", root / "evaluation"
    shutil.copytree(trained.data, paths[0])
    shutil.copytree(trained.checkpoints, paths[1])
    flags = zip(("--data-dir", "--checkpoint-dir", "--output-dir"), paths, strict=True)
    arguments = [one for pair in flags for one in pair]
    code, printed = quietly(evaluate_gps_model.main, *arguments, "--bootstrap", 50)
    assert code == 0, printed
    return paths


def adapted(path: Path, folders: tuple):
    """A notebook without outputs, for other photos and quick trainings."""
    notebook = nbformat.read(path, as_version=4)
    names, paths = "DATA, CHECKPOINTS, EVALUATION", [str(path) for path in folders]
    lines = {names: f"{names} = map(Path, {paths!r})", "ROOT": f"ROOT = Path({str(REPOSITORY)!r})"}
    lines |= {name: f"{name} = {[*flags, *QUICK]!r}" for name, flags in LIVE.items()}
    for cell in notebook.cells:
        for start, line in lines.items():
            cell.source = re.sub(
                rf"^{start} = .*(\n {{5,}}.*)*$", lambda _, t=line: t, cell.source, flags=re.M
            )
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def texts(notebook) -> str:
    """All that a notebook's cells have printed or shown as text."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    plain = [output.get("data", {}).get("text/plain", "") for output in outputs]
    return "".join([*plain, *(output.get("text", "") for output in outputs)])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_the_top(path, folders):
    notebook = adapted(path, folders)
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 4
    assert not [output for output in outputs if output.get("name") == "stderr"]
    printed = texts(notebook)
    assert "Position" in printed and "RGB + depth" in printed
    if "Prediction" in path.stem:
        models = folders[1] / "notebook"
        log = (models / "training.log").read_text(encoding="utf-8")
        assert "fold 3/3" in log and (models / "best_gps_model_depth.pth").is_file()
        assert "epoch 2/2" in (folders[1] / "notebook-few/training.log").read_text()
        assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 1
        assert "photos placed" in printed
    else:
        assert "Does depth help?" in printed and "times as long" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed_and_holds_no_model(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(notebook.cells) <= 25 and path.stat().st_size <= 2_000_000
    outputs = [output for cell in cells for output in cell.outputs]
    assert outputs and not [o for o in outputs if o.output_type == "error" or "stderr" in str(o)]
    told = (
        str(notebook.metadata) + texts(notebook) + "".join(cell.source for cell in notebook.cells)
    )
    assert not re.search(r"[Ww]arning:|/home/|/Users/|/tmp/|/work/|[A-Z]:\\", told)
    for cell in cells:
        assert not re.search(r"^\s*(class|def|import torch)\b", cell.source, flags=re.M)
        assert max(map(len, cell.source.splitlines())) <= 130


# ---------------------------------------------------------------- in JupyterLab


@pytest.fixture
def lab(tmp_path):
    """Address and folder of a JupyterLab on loopback."""
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", "--allow-root"]
    command += [f"--port={port}", f"--ServerApp.root_dir={tmp_path}", "--IdentityProvider.token="]
    log = (tmp_path / "lab.log").open("wb")
    own = {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "settings")}
    running = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            time.sleep(0.3)
            try:
                LOOPBACK.open(f"{address}/api", timeout=2).close()
                break
            except OSError:
                assert running.poll() is None, (tmp_path / "lab.log").read_text()
        yield address, tmp_path
    finally:
        running.terminate()
        running.wait(60)
        log.close()


def drive(page, address: str, models: Path, photo: Path, shots: Path) -> None:
    """Run all, watch the training, stop it, go on, upload a photo; a picture of every step."""
    log = models / "training.log"

    def until(true, seconds: float = 100) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                page.screenshot(path=shots / "late.png")
                raise TimeoutError(f"see {shots / 'late.png'}")
            page.wait_for_timeout(100)

    def lines() -> list[str]:
        text = log.read_text(encoding="utf-8") if log.is_file() else ""
        return text.splitlines()

    def folds() -> int:
        return sum(line.startswith("fold") for line in lines())

    def picture(cell) -> str:
        return cell.locator("img").first.get_attribute("src", timeout=60_000)

    page.goto(f"{address}/lab/tree/notebook.ipynb?reset")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
    page.wait_for_selector("text=/Python 3.*Idle/", timeout=60_000)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    training = page.locator(".jp-CodeCell", has_text="frozen.watch()")
    seen = {picture(training)}
    until(lambda: folds() >= 1)
    until(lambda: len(seen | {picture(training)}) > 1, 10)  # drawn again in place
    page.screenshot(path=shots / "live.png")
    training.locator("button", has_text="Stop").click()
    until(lambda: any("interrupted" in line for line in lines()), 20)
    asking = page.locator(".jp-CodeCell", has_text="ask(inquiry")
    until(lambda: asking.locator("img").count() == 1)
    page.wait_for_selector("text=/Python 3.*Idle/", timeout=240_000)
    page.screenshot(path=shots / "stopped.png")
    done = folds()
    training.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    until(lambda: any(line.startswith("going on from") for line in lines()), 60)
    until(lambda: (models / "best_gps_model.pth").is_file())
    assert done < folds()
    page.wait_for_selector("text=/Python 3.*Idle/", timeout=60_000)
    page.screenshot(path=shots / "finished.png")
    before = picture(asking)
    with page.expect_file_chooser() as chooser:
        asking.locator("button", has_text="upload").click()
    chooser.value.set_files(photo)
    until(lambda: picture(asking) != before, 60)
    page.screenshot(path=shots / "uploaded.png")


@pytest.mark.slow
def test_a_person_trains_stops_goes_on_and_asks(lab, browser, folders):
    """In a browser: windows so high that JupyterLab has all cells in the page."""
    address, folder = lab
    path = REPOSITORY / "notebooks" / "GPS_Prediction_Workflow.ipynb"
    notebook = adapted(path, folders)
    for cell in notebook.cells:  # long enough to be stopped
        cell.source = cell.source.replace("'--folds', 3", "'--folds', 8")
    nbformat.write(notebook, folder / "notebook.ipynb")
    models, photo = folders[1] / "notebook", next(folders[0].rglob("plain_0.jpg"))
    shutil.rmtree(models, ignore_errors=True)  # of the tests above
    page = browser.new_page(viewport={"width": 1400, "height": 9000})
    drive(page, address, models, photo, folder)
    page.close()
