"""The house: packages form one list, a module imports only from those before its own, and a name stands once."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import dla

ROOT = Path(dla.__file__).parent
ORDER = (
    "errors",
    "version",
    "types",
    "options",
    "text_table",
    "storage",
    "models",
    "images",
    "metrics",
    "weights",
    "data",
    "engines",
    "drawing",
    "html_report",
    "inference",
    "training",
    "catalog",
    "evaluation",
    "exporting",
    "benchmarking",
    "bulk",
    "serving",
    "__init__",
    "cli",
    "__main__",
)
FILES = sorted(ROOT.rglob("*.py"))
Import = tuple[int, str]  # the line, and the dotted name of what is imported


def module_of(file: Path) -> str:
    """dla/models/tree.py -> "dla.models.tree"; a package is called like its folder."""
    parts = ("dla", *file.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = frozenset(module_of(file) for file in FILES)


def imported(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
    """Every module that an import names: at the top, inside functions and under `TYPE_CHECKING`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                here = module.split(".")
                up = here[: len(here) - node.level + is_package]
                base = ".".join([*up, base]) if base else ".".join(up)
            for alias in node.names:
                name = f"{base}.{alias.name}"
                yield node.lineno, name if name in MODULES or base == "dla" else base


def imports_of(file: Path) -> list[Import]:
    return list(imported(file.read_text(), module_of(file), file.name == "__init__.py"))


def package_of(module: str) -> str:
    """The entry of `ORDER` that a module belongs to; a name of `dla` that is no module belongs to its `__init__`."""
    part = module.partition(".")[2].partition(".")[0]
    return part if part in ORDER else "__init__"


def against_the_order(module: str, imports: list[Import]) -> list[str]:
    here = ORDER.index(package_of(module))
    return [
        f"{module}:{line} imports {name}, which stands after {package_of(module)}"
        for line, name in imports
        if name.split(".")[0] == "dla" and ORDER.index(package_of(name)) > here
    ]


def test_every_room_is_in_the_list() -> None:
    rooms = {p.stem for p in ROOT.iterdir() if p.suffix == ".py" or (p.is_dir() and list(p.rglob("*.py")))}
    assert rooms == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_point_to_earlier_packages(file: Path) -> None:
    assert against_the_order(module_of(file), imports_of(file)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("dla.models.tree", "import dla.images.decode"),
        ("dla.models.tree", "from ..images.decode import read_photo"),
        ("dla.models.build", "def f():\n    from dla.weights.load import open_model"),
        ("dla.images.decode", "from dla import load"),
        ("dla.data.dataset", "from dla import training"),
        ("dla.training.run", "from ..cli import main"),
        ("dla.html_report.page", "if TYPE_CHECKING:\n    from dla.inference.classifier import Prediction"),
    ],
)
def test_an_import_against_the_order_is_seen(module: str, line: str) -> None:
    (told,) = against_the_order(module, list(imported(line, module)))
    assert f"{module}:{1 + line.count(chr(10))}" in told


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, or none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_in_a_circle() -> None:
    graph = {}
    for file in FILES:
        module = module_of(file)
        names = {name for _, name in imports_of(file)} & MODULES
        # The front door names everything, lazily, and a package's own `__init__` is not what its modules come through.
        graph[module] = set() if module == "dla" else names - {module, "dla"}
    assert circle(graph) == []


def test_a_circle_is_seen() -> None:
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}


def more_than_once(names: Iterator[tuple[str, str]]) -> dict[str, list[str]]:
    places: dict[str, list[str]] = {}
    for name, place in names:
        places.setdefault(name, []).append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_a_file_name_stands_once() -> None:
    apart = {"__init__.py", "html.py"}
    files = [file for file in FILES if file.parent.name != "cli" and file.name not in apart]
    assert more_than_once((file.name, str(file.relative_to(ROOT))) for file in files) == {}


def test_a_class_name_stands_once() -> None:
    classes = (
        (node.name, f"{file.relative_to(ROOT)}:{node.lineno}")
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    assert more_than_once(classes) == {}


def test_a_file_stays_readable() -> None:
    too_long = {str(f.relative_to(ROOT)): n for f in FILES if (n := len(f.read_text().splitlines())) > 400}
    assert too_long == {}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function's body, its docstring not counted."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return body[-1].end_lineno - body[0].lineno + 1 if body and body[-1].end_lineno else 0


def test_a_function_stays_short() -> None:
    too_long = {
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}": code_lines(node)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and code_lines(node) > 50
    }
    assert too_long == {}


def test_a_small_file_has_more_than_one_user() -> None:
    """A file under 60 lines that one module imports belongs into that module; commands are apart."""
    users = Counter(name for file in FILES for name in {name for _, name in imports_of(file)})
    small = [f for f in FILES if f.name != "__init__.py" and len(f.read_text().splitlines()) < 60]
    lonely = [module_of(f) for f in small if f.parent.name != "cli" and users[module_of(f)] == 1]
    assert lonely == []


def test_networks_stand_on_torch_alone() -> None:
    for file in (ROOT / "models").glob("*.py"):
        for line, name in imports_of(file):
            top, *rest = name.split(".")
            assert top in {"torch", "dla"} | sys.stdlib_module_names, f"{file.name}:{line} imports {name}"
            assert top != "dla" or rest[0] in {"errors", "types", "models"}, f"{file.name}:{line} imports {name}"


@pytest.mark.parametrize("part", ["images", "data", "metrics", "html_report"])
def test_data_and_measurement_never_meet_networks(part: str) -> None:
    for file in (ROOT / part).rglob("*.py"):
        for line, name in imports_of(file):
            assert not name.startswith(("dla.models", "dla.weights")), f"{file.name}:{line} imports {name}"


def test_the_table_needs_no_torch_in_its_text() -> None:
    assert not [name for _, name in imports_of(ROOT / "models" / "registry.py") if name.split(".")[0] == "torch"]


def test_the_front_door_and_the_table_load_no_torch() -> None:
    code = "import sys, dla, dla.models.registry, dla.types; print(sorted(m for m in sys.modules if '.' not in m))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ast.literal_eval(run.stdout))
    assert not loaded & {"torch", "numpy", "PIL", "openvino", "onnxruntime", "huggingface_hub", "safetensors"}


def test_each_public_name_is_what_its_module_has() -> None:
    stub = list(imported((ROOT / "__init__.pyi").read_text(), "dla", is_package=True))
    names = [alias.asname for node in ast.walk(ast.parse((ROOT / "__init__.pyi").read_text()))
             if isinstance(node, ast.ImportFrom) for alias in node.names]  # fmt: skip
    assert sorted(dla.__all__) == sorted(names)
    assert len(set(names)) == len(names) == len(stub)
    for (_, module), name in zip(stub, names, strict=True):
        assert getattr(dla, name) is getattr(importlib.import_module(module), name)
    with pytest.raises(AttributeError, match="nosuch"):
        dla.nosuch  # noqa: B018


def test_no_module_is_called_like_a_public_function() -> None:
    functions = {name for name in dla.__all__ if not isinstance(getattr(dla, name), (type, str))}
    assert functions
    assert not functions & {module_of(file).removeprefix("dla.") for file in FILES}
