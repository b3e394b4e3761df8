"""The files around the code: changelog, contributing, workflow. What they say holds."""

from __future__ import annotations

import re
import subprocess
import tomllib
from datetime import date
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dla

ROOT = Path(__file__).parents[2]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
WORKFLOW = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text(encoding="utf-8"))
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, BUILD = PYPROJECT["project"], PYPROJECT["dependency-groups"]["build"]


def test_the_version_is_the_newest_of_the_changelog() -> None:
    headings = re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)
    released = headings[1:] if headings[0] == "Unreleased" else headings
    versions, dates = zip(*(heading.split(" - ") for heading in released), strict=True)
    assert versions[0] == dla.__version__
    assert all(date.fromisoformat(newer) >= date.fromisoformat(older) for newer, older in pairwise(dates))


def test_a_change_has_a_kind() -> None:
    kinds = re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed"}


def test_make_knows_what_contributors_are_told_to_run() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    named = {word for line in re.findall(r"\bmake ([a-z ]+?)(?:  |`)", CONTRIBUTING) for word in line.split()}
    assert named
    assert named <= set(targets)


HASHED = ("package.txt", "demo.txt", "all.txt")


def pins(file: str) -> dict[str, str]:
    """The exact versions in a file of requirements, by name."""
    text = (ROOT / "requirements" / file).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^ \n]+)", text, re.MULTILINE))


@pytest.mark.parametrize("file", HASHED)
def test_every_requirement_has_an_exact_version_and_a_hash(file: str) -> None:
    text = re.sub(r"#.*\n|\\\n", "", (ROOT / "requirements" / file).read_text())
    for line in text.splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[^ ]+( +--hash=sha256:[0-9a-f]{64})+", line)
    assert len(text.splitlines()) == len(pins(file)) > 30
    assert pins(file).items() <= pins("all.txt").items()


@pytest.mark.parametrize(
    ("file", "extras"), [("package.txt", []), ("demo.txt", ["demo"]), ("all.txt", PROJECT["optional-dependencies"])]
)
def test_the_exact_versions_are_allowed_by_pyproject(file: str, extras: list[str]) -> None:
    versions = pins(file) | pins("torch.txt")
    wanted = PROJECT["dependencies"] + BUILD + [one for e in extras for one in PROJECT["optional-dependencies"][e]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_what_builds_the_package_has_a_hash_too() -> None:
    assert set(PYPROJECT["build-system"]["requires"]) <= set(BUILD)


def commands(job: str) -> list[str]:
    return [step["run"] for step in WORKFLOW["jobs"][job]["steps"] if "run" in step]


def matrix(job: str) -> dict[str, Any]:
    found: dict[str, Any] = WORKFLOW["jobs"][job]["strategy"]["matrix"]
    return found


@pytest.mark.parametrize("job", ["test", "wheel"])
def test_the_workflow_starts_at_the_oldest_python(job: str) -> None:
    assert f">={matrix(job)['python'][0]}" == PROJECT["requires-python"]


def test_the_workflow_installs_every_extra() -> None:
    (line,) = (line for line in commands("test") if "-e" in line.split())
    assert set(re.findall(r"\[(.*)\]", line)[0].split(",")) == set(PROJECT["optional-dependencies"])


@pytest.mark.parametrize(("which", "wanted"), [("oldest", "torch=={}.*"), ("newest", "torch>={}")])
def test_the_workflow_takes_torch_from_pyproject(which: str, wanted: str) -> None:
    """The step is run as the shell of a workflow would, with pip replaced by echo."""
    (floor,) = (d.removeprefix("torch>=") for d in PROJECT["dependencies"] if d.startswith("torch>="))
    (step,) = (line for line in commands("test") if "torchvision" in line)
    script = step.replace("${{ matrix.torch }}", which).replace("python -m pip install", "echo")
    run = subprocess.run(["bash", "-e", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [wanted.format(floor), "torchvision"]


@pytest.mark.parametrize("file", ["README.md", "Makefile"])
def test_torchvision_comes_with_torch(file: str) -> None:
    """In one line, from PyTorch's index of CPU builds: beside another build of torch `import timm` fails."""
    text = (ROOT / file).read_text(encoding="utf-8").replace("$(CPU)", "https://download.pytorch.org/whl/cpu")
    text = text.replace("-r requirements/torch.txt", "torch torchvision")
    lines = [line for line in text.splitlines() if re.search(r"\btorch torchvision\b", line)]
    assert lines
    assert all(line.endswith("https://download.pytorch.org/whl/cpu") for line in lines)
    assert not re.search(r"^.*\binstall\b.*\btorch(?! torchvision)\b.*whl/cpu", text, re.MULTILINE)


def test_the_versions_of_torch_and_torchvision_fit() -> None:
    """Releases come in pairs: torchvision 0.28 with torch 2.13, and so on."""
    (major, minor, *_), (zero, vision, *_) = (list(map(int, pin.split("."))) for pin in pins("torch.txt").values())
    assert (major, minor) == (2, vision - 15)
    assert zero == 0
