"""The house: imports point down, the networks know torch only, and the front door is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dla

ROOT = Path(dla.__file__).parent
FLOORS = {
    0: {"errors", "records", "version", "nets", "weights"},
    1: {"images", "data", "metrics", "report", "engines", "shipped"},
    2: {"verbs", "recipes"},
    3: {"cli"},
    4: {"", "__init__", "__main__"},
}
FILES = sorted(ROOT.rglob("*.py"))


def module_of(file: Path) -> str:
    """dla/nets/tree.py -> "dla.nets.tree"; a package is called like its folder."""
    parts = ("dla", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(source: str, module: str, is_package: bool) -> Iterator[str]:
    """Every module that the source names in an import, wherever it stands; names of `dla` as modules of it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                up = here[: len(here) - node.level + is_package]
                base = ".".join([*up, base]) if base else ".".join(up)
            yield from (f"{base}.{alias.name}" for alias in node.names) if base == "dla" else (base,)


def imports_of(file: Path) -> list[str]:
    return list(imported(file.read_text(), module_of(file), file.name == "__init__.py"))


def floor(module: str) -> int:
    """The floor a module of dla lives on; a name that is no module belongs to the front door."""
    part = module.partition(".")[2].partition(".")[0]
    return next((number for number, parts in FLOORS.items() if part in parts), max(FLOORS))


def pointing_up(module: str, names: list[str]) -> list[str]:
    return [name for name in names if name.split(".")[0] == "dla" and floor(name) > floor(module)]


def test_every_part_of_the_package_has_a_floor() -> None:
    parts = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p.is_dir() and p.name != "__pycache__")}
    assert parts <= set().union(*FLOORS.values())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_down(file: Path) -> None:
    assert pointing_up(module_of(file), imports_of(file)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dla.nets.tree", "import dla.images.read"),
        ("dla.nets.tree", "from ..images.read import read_photo"),
        ("dla.weights.load", "def f():\n    from dla.verbs import predict"),
        ("dla.images.read", "from dla import load"),
        ("dla.data.open", "from dla import verbs"),
        ("dla.verbs.train.run", "from ...cli import main"),
        ("dla.recipes.schema", "from dla import cli"),
    ],
)
def test_an_arrow_that_points_up_is_seen(module: str, line: str) -> None:
    assert len(pointing_up(module, list(imported(line, module, is_package=False)))) == 1


def test_networks_stand_on_torch_alone() -> None:
    for file in (ROOT / "nets").glob("*.py"):
        for name in imports_of(file):
            top, *rest = name.split(".")
            assert top in {"torch", "dla"} | sys.stdlib_module_names, f"{file.name}: {name}"
            # The factory opens released weights when it is asked to; nothing else leaves the folder.
            allowed = {"errors", "nets"} | ({"weights"} if file.name == "build.py" else set())
            assert top != "dla" or rest[0] in allowed, f"{file.name}: {name}"


def test_the_table_needs_no_torch_in_its_text() -> None:
    assert not [name for name in imports_of(ROOT / "nets" / "table.py") if name.split(".")[0] == "torch"]


@pytest.mark.parametrize("part", ["images", "data", "metrics", "report"])
def test_data_and_measurement_never_meet_networks(part: str) -> None:
    for file in (ROOT / part).rglob("*.py"):
        assert not [name for name in imports_of(file) if name.startswith("dla.nets")], file


def test_the_front_door_and_the_table_load_no_torch() -> None:
    code = "import sys, dla, dla.nets.table, dla.errors; print(sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(run.stdout))
    assert not loaded & {"torch", "numpy", "PIL", "openvino", "onnxruntime", "huggingface_hub", "safetensors"}


def test_no_module_is_called_like_a_public_function() -> None:
    functions = {name for name in dla.__all__ if not isinstance(getattr(dla, name), (type, str))}
    assert functions
    assert not functions & {module_of(file).removeprefix("dla.") for file in FILES}
