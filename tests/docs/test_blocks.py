"""Every block and command of the docs runs, offline: with the network that comes along, or with a hub on loopback."""

import json
import os
import re
import shutil
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

import dla
from support import hub_server
from support.photos import crops, jpeg
from support.run_page import blocks, run_alone
from support.small_models import write_dense, write_small
from support.warm import WARM

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "commands.md")]
RUNNING = ("python", "bash")
KNOWN = {*RUNNING, "json", "bibtex", ""}
OTHERS = {  # options of pip, torchrun, Slurm, systemd, useradd, and of the scripts in benchmarks/
    "--again", "--array",
    "--cpus-per-task", "--extra-index-url", "--find-links", "--force-reinstall", "--gpus-per-node",
    "--home-dir", "--index-url", "--job-name", "--max-restarts", "--memory", "--nnodes", "--no-build-isolation",
    "--no-deps", "--no-index", "--now", "--nproc-per-node", "--ntasks-per-node", "--only", "--only-binary",
    "--open-mode",
    "--rdzv-backend", "--rdzv-endpoint", "--rdzv-id", "--rehearse", "--requeue", "--require-hashes", "--shell",
    "--signal", "--since", "--system", "--time",
}  # fmt: skip
FLAG = re.compile(r"(?<![\w-])--[a-z][\w.-]*\w")


@pytest.fixture(scope="module")
def hub() -> Iterator[hub_server.Hub]:
    """The released networks that the docs name, with weights of no worth."""
    with hub_server.serve() as running:
        for name in ("dla34", "dla60"):
            model = dla.create_model(name)
            config = {"architecture": name, "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg}
            files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(model.state_dict())}
            running.add(f"timm/{name}.in1k", files)
        yield running


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all pages, as a reader has: weights are downloaded and traced once."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """The folder of someone who reads the docs: one photo, a few in folders, a set of two classes to train on."""
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for i, photo in enumerate(crops(4)):
        (tmp_path / ("photos" if i < 2 else "photos/more") / f"{i}.jpg").write_bytes(jpeg(photo))
    Image.open(tmp_path / "photos" / "0.jpg").save(tmp_path / "cat.jpg")
    for i, photo in enumerate(crops(16)):
        path = tmp_path / "flowers" / ("train" if i < 12 else "val") / ("rose" if i % 2 else "tulip") / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(photo))
    (tmp_path / "src").symlink_to(ROOT / "src")  # as in a copy of the repository
    return tmp_path


def write_streets(desk: Path) -> None:
    """Photos with masks of three classes, networks for them, and a file of the authors'."""
    names = ["road", "tree", "sky"]
    for i, photo in enumerate(crops(6)):
        split = desk / "streets" / ("train" if i < 4 else "val")
        for folder in ("images", "masks"):
            (split / folder).mkdir(parents=True, exist_ok=True)
        (split / "images" / f"{i}.jpg").write_bytes(jpeg(photo))
        ids_HW = np.arange(photo.height)[:, None] * 3 // photo.height + np.zeros((1, photo.width), int)
        Image.fromarray(ids_HW.astype(np.uint8)).save(split / "masks" / f"{i}.png")
    (desk / "streets" / "classes.json").write_text(json.dumps({"classes": names}))
    for run in ("street", "streets", "a", "b"):
        write_dense(desk / "runs" / run / "best", names)
    for folder in ("bsds500/images", "bsds500/boundaries", "other/maps"):
        (desk / folder).mkdir(parents=True)
    for i, photo in enumerate(crops(2)):
        (desk / "bsds500" / "images" / f"{i}.jpg").write_bytes(jpeg(photo))
        lines_HW = np.zeros((photo.height, photo.width), np.uint8)
        lines_HW[photo.height // 2] = 255
        for path in ("bsds500/boundaries/%d_1.png", "bsds500/boundaries/%d_2.png", "other/maps/%d.png"):
            Image.fromarray(lines_HW).save(desk / (path % i))
    write_dense(desk / "runs" / "edges" / "best", ["boundary"])
    for name in ("photo.jpg", "street.jpg"):
        shutil.copy(desk / "cat.jpg", desk / name)
    (desk / "classes.txt").write_text("".join(f"class {k}\n" for k in range(19)))
    theirs = dla.Dense.over(dla.create_model("dla34"), 19, up="authors")
    torch.save(theirs.state_dict(), desk / "dla34up.pth")


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if any(language in RUNNING for language, _ in blocks(p))],
                         ids=lambda p: p.stem)  # fmt: skip
def test_every_block_runs(page: Path, hub: hub_server.Hub, home: Path, desk: Path) -> None:
    if page.stem == "first-hour":
        write_small(desk / "runs" / "finetune-small-flowers" / "best", ["rose", "tulip"])
    if page.stem in ("data", "decoder", "export", "validate"):
        write_streets(desk)
    if page.stem in ("segment", "edges"):
        shutil.copy(desk / "cat.jpg", desk / "street.jpg")
        names = ["road", "tree", "sky"] if page.stem == "segment" else ["boundary"]
        write_dense(desk / "runs" / page.stem / "best", names)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DLA_", "TORCH_", "XDG_"))}
    env = clean | {"HOME": str(home), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "*", "OMP_NUM_THREADS": "1",
                   "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}  # fmt: skip
    process = WARM.Process(target=run_alone, args=(page, desk, env, log := desk / "log.txt"))
    process.start()
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]
    expected = sum(language in RUNNING for language, _ in blocks(page))
    assert log.read_text().endswith(f"{expected} blocks ran\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_nothing_that_runs_hides_in_another_block(page: Path) -> None:
    for language, text in blocks(page):
        assert language in KNOWN
        if language == "json":
            for one in [text] if text.startswith("{\n") else text.splitlines():
                json.loads(one)
        if language not in RUNNING:
            assert not re.search(r"^\$? *(dla|pip|make|python) ", text, re.MULTILINE), text


def test_lines_that_are_not_run_are_possible() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    lines = [line for page in PAGES for language, text in blocks(page) if language == "bash"
             for line in text.splitlines()]  # fmt: skip
    assert any(line.startswith("pip install .") for line in lines)
    for line in lines:
        if line.startswith("make "):
            assert line.split()[1] in targets
        for named in re.findall(r"^pip install .*\.\[([\w,]+)\]", line):
            assert set(named.split(",")) <= set(extras)
        for script in re.findall(r"^python ((?:examples|benchmarks)/\S+)", line):
            assert (ROOT / script).exists()


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "docs" / "commands.md", *sorted(ROOT.glob("[C-QS-Z]*.md"))], ids=lambda p: p.name
)
def test_links_lead_somewhere(page: Path) -> None:
    text = BLOCKLESS.sub("", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        assert file.exists(), target
        if anchor:
            assert anchor in [_anchor(h) for h in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)], target


def test_the_index_has_every_page() -> None:
    linked = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert sorted([*linked, "README.md"]) == sorted({*linked, *(p.name for p in (ROOT / "docs").glob("*.md"))})


def test_extras_are_spelled_in_one_way() -> None:
    """The name is not published yet: what `pip install dla` finds is not ours."""
    texts = [*PAGES, *(ROOT / "src").rglob("*.py"), *ROOT.glob("*.md")]
    spelled = {word for path in texts for word in re.findall(r"pip install ['\"]?[.\w]*\[\w+\]'?", path.read_text())}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert spelled == {f"pip install '.[{extra}]'" for extra in {*extras} - {"demo", "dev"}}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_flag_is_one(page: Path) -> None:
    def flags(path: Path) -> set[str]:
        return set(FLAG.findall(path.read_text()))

    assert flags(page) - OTHERS <= flags(ROOT / "docs" / "commands.md")


BLOCKLESS = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
