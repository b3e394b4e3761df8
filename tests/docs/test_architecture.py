"""docs/architecture.md against the code: the map, the order of packages, and every name on the page."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

import dla
from test_imports import ORDER

ROOT = Path(__file__).parents[2]
SRC = Path(dla.__file__).parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAME = re.compile(r"`([\w/]+\.py):([\w.]+)`")


def section(title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return str(text)


MAP, WALKS, CHANGES = (section(title) for title in ("The map", "Five walks", "How to add"))


def walks() -> list[tuple[str, list[str]]]:
    """Each walk: its title and its steps."""
    parts = re.split(r"^### (.*)\n", WALKS, flags=re.MULTILINE)[1:]
    return [
        (title, re.split(r"^\d+\. ", text, flags=re.MULTILINE)[1:])
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    ]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, methods and fields of classes, and what a module assigns: `f`, `C`, `C.f`, `TABLE`."""

    def of(body: list[ast.stmt]) -> list[str]:
        names = []
        for node in body:
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                names.append(node.name)
            elif isinstance(node, ast.ClassDef):
                names += [node.name, *(f"{node.name}.{name}" for name in of(node.body))]
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names += [target.id for target in targets if isinstance(target, ast.Name)]
        return names

    return frozenset(of(ast.parse(path.read_text(encoding="utf-8")).body))


def has_code(path: Path) -> bool:
    """Whether a file is more than the docstring of a package."""
    return len(ast.parse(path.read_text(encoding="utf-8")).body) > 1 or path.name != "__init__.py"


def test_the_map_has_every_module_once() -> None:
    listed = re.findall(r"^ *- `([\w/]+\.py)`: .", MAP, re.MULTILINE)
    assert sorted(listed) == sorted(str(f.relative_to(SRC)) for f in SRC.rglob("*.py") if has_code(f))


def test_a_module_is_listed_under_its_package() -> None:
    package = ""
    for indent, path in re.findall(r"^( *)- `([\w/.]+)`: ", MAP, re.MULTILINE):
        if not indent:
            package = path
        else:
            assert package.endswith("/")
            assert path.startswith(package)


def test_the_map_is_in_import_order() -> None:
    assert tuple(re.findall(r"^- `(\w+)(?:/|\.py)`", MAP, re.MULTILINE)) == ORDER


def test_there_are_five_walks() -> None:
    assert len(walks()) == 5


@pytest.mark.parametrize(("path", "name"), sorted(set(NAME.findall(PAGE))))
def test_a_name_exists(path: str, name: str) -> None:
    assert name in names_in(SRC / path)


@pytest.mark.parametrize("steps", [steps for _, steps in walks()], ids=[title for title, _ in walks()])
def test_each_step_is_used_by_a_file_before_it(steps: list[str]) -> None:
    """The class or function of a step stands in a file of the walk so far, so that a walk cannot go astray."""
    seen = ""
    for step in steps:
        assert NAME.search(step), step
        for path, name in NAME.findall(step):
            asked = name.split(".")[0]
            assert not seen or re.search(rf"\b{asked}\b", seen), (path, name)
            seen += (SRC / path).read_text(encoding="utf-8")


def test_every_path_exists() -> None:
    """What stands in backticks and looks like a file or folder is one, in the package or in the repository."""
    for path in re.findall(r"`([\w./]+(?:/|\.py|\.md|\.toml|\.yaml))`", PAGE):
        if path not in ("README.md", "use.py"):  # written by dla export
            assert (SRC / path).exists() or (ROOT / path).exists(), path


def test_instructions_name_only_what_is_checked() -> None:
    """In the instructions every word of code is a name in a file, a path, a command or a method's fixed name."""
    allowed = re.compile(r"([\w/]+\.py:[\w.]+|[\w./]+(/|\.py|\.md|\.toml)|(dla|python|make) .*|__post_init__|export)")
    assert [code for code in re.findall(r"`([^`]+)`", CHANGES) if not allowed.fullmatch(code)] == []
