"""The notebooks run from the top on any photos, and are committed executed."""

import re

import nbformat
import pytest
from conftest import REPOSITORY, quietly
from nbclient import NotebookClient

import evaluate_gps_model

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def folders(trained, tmp_path_factory) -> dict:
    output = tmp_path_factory.mktemp("evaluation")
    arguments = ["--data-dir", trained.data, "--checkpoint-dir", trained.checkpoints]
    code, printed = quietly(
        evaluate_gps_model.main, *arguments, "--output-dir", output, "--bootstrap", 50
    )
    assert code == 0, printed
    return {"DATA": trained.data, "CHECKPOINTS": trained.checkpoints, "EVALUATION": output}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_from_the_top(path, folders):
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        for name, folder in folders.items():
            cell.source = re.sub(
                rf"^{name} = .*$", lambda _, n=name, f=folder: f"{n} = Path({str(f)!r})",
                cell.source, flags=re.M,
            )  # fmt: skip
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": path.parent}})
    client.execute()
    outputs = [o for cell in notebook.cells for o in cell.get("outputs", [])]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 3
    printed = "".join(o.get("text", "") for o in outputs)
    assert "Position" in printed and "RGB + depth" in printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_committed_executed_and_holds_no_model(path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(notebook.cells) <= 16
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.outputs)
        assert not re.search(r"^\s*(class|import torch)\b", cell.source, flags=re.M)
