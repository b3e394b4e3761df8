"""Checkpoints: whole or not there, found out when altered, the last two and the best kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import dla
from dla.training.checkpoints import Checkpoints
from support.progress import Recorder
from support.warm import run_warm

pytestmark = pytest.mark.slow

FACTS = {"epoch": 1, "rates": [0.1, 1e-300, 1 / 3], "nothing": None, "10": {"2": "ä"}}


def tensors(value: float) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3,), value), "b": torch.arange(4), "c": torch.tensor(value, dtype=torch.bfloat16)}


def saved(folder: Path, *steps: int, best: int | None = None) -> Checkpoints:
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, tensors(step), {**FACTS, "step": step}, best=step == best)
    return checkpoints


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


class Silent(Recorder):
    def log(self, sentence: str) -> None:
        pytest.fail(f"said: {sentence}")


silent = Silent()


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    found = saved(tmp_path / "new" / "folder", 10).load_newest(silent)
    assert found is not None
    assert found[1] == {**FACTS, "step": 10}
    for name, tensor in tensors(10).items():
        assert found[0][name].dtype == tensor.dtype
        assert torch.equal(found[0][name], tensor)


def test_the_memory_layout_comes_back(tmp_path: Path) -> None:
    last = torch.randn(4, 3, 5, 5).to(memory_format=torch.channels_last)
    state = {"last": last, "usual": torch.randn(4, 3, 5, 5), "flat": torch.randn(4, 3, 1, 1), "turned": last[0].mT}
    Checkpoints(tmp_path).save(1, state, {})
    found = Checkpoints(tmp_path).load_newest(silent)
    assert found is not None
    for name, tensor in state.items():
        assert torch.equal(found[0][name], tensor)
    assert found[0]["last"].stride() == last.stride()
    assert found[0]["usual"].is_contiguous()


def test_the_files_are_for_anyone(tmp_path: Path) -> None:
    saved(tmp_path, 10)
    assert names(tmp_path) == ["000001-step-10"]
    assert torch.equal(load_file(tmp_path / "000001-step-10" / "state.safetensors")["a"], torch.full((3,), 10.0))
    assert json.loads((tmp_path / "000001-step-10" / "state.json").read_text())["step"] == 10


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 1, 2, 3, 4, 5, best=2)
    assert names(tmp_path) == ["000002-step-2", "000004-step-4", "000005-step-5"]
    assert json.loads((tmp_path / "000002-step-2" / "state.json").read_text())["best"]
    checkpoints.save(6, tensors(6), {}, best=True)
    assert names(tmp_path) == ["000005-step-5", "000006-step-6"]


def test_the_same_step_twice_is_two_checkpoints(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 8)
    checkpoints.save(8, tensors(9), {"later": True})
    found = checkpoints.load_newest(silent)
    assert found is not None
    assert found[1] == {"later": True}


def test_none_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "new").load_newest(silent) is None
    assert Checkpoints(tmp_path).load_newest(silent) is None


ALTERED = {
    "tensors cut": ("state.safetensors", lambda b: b[:-4]),
    "tensors flipped": ("state.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1])),
    "tensors empty": ("state.safetensors", lambda b: b""),
    "tensors gone": ("state.safetensors", None),
    "facts cut": ("state.json", lambda b: b[:-9]),
    "facts edited": ("state.json", lambda b: b.replace(b'"epoch": 1', b'"epoch": 2')),
    "facts of another kind": ("state.json", lambda b: b"[1]"),
    "facts empty": ("state.json", lambda b: b""),
    "facts gone": ("state.json", None),
}


@pytest.mark.parametrize("kind", ALTERED)
def test_an_altered_one_is_said_and_the_one_before_is_taken(kind: str, tmp_path: Path) -> None:
    checkpoints, progress = saved(tmp_path, 10, 20), Recorder()
    name, alter = ALTERED[kind]
    path = tmp_path / "000002-step-20" / name
    if alter is None:
        path.unlink()
    else:
        before = path.read_bytes()
        path.write_bytes(alter(before))
        assert path.read_bytes() != before
    found = checkpoints.load_newest(progress)
    assert found is not None
    assert found[1]["step"] == 10
    (text,) = progress.said
    assert "000002-step-20" in text
    assert "skipped, renamed to damaged-000002-step-20" in text
    assert names(tmp_path) == ["000001-step-10", "damaged-000002-step-20"]
    checkpoints.save(20, tensors(20), {"step": 20})
    assert names(tmp_path) == ["000001-step-10", "000002-step-20", "damaged-000002-step-20"]
    (tmp_path / "000002-step-20" / "state.json").write_bytes(b"again")
    assert checkpoints.load_newest(progress) is not None
    assert names(tmp_path) == ["000001-step-10", "damaged-000002-step-20"]


def test_when_none_is_whole_the_run_begins_again_and_says_so(tmp_path: Path) -> None:
    checkpoints, progress = saved(tmp_path, 10, 20), Recorder()
    for path in tmp_path.glob("*/state.safetensors"):
        path.write_bytes(b"")
    assert checkpoints.load_newest(progress) is None
    assert len(progress.said) == 3
    assert progress.said[-1] == f"no checkpoint in {tmp_path} is intact: the run starts again from the first step"
    assert names(tmp_path) == ["damaged-000001-step-10", "damaged-000002-step-20"]


def test_what_a_crash_left_half_written_is_no_checkpoint_and_goes_away(tmp_path: Path) -> None:
    checkpoints = saved(tmp_path, 10)
    half = tmp_path / ".part-000002-step-20"
    half.mkdir()
    (half / "state.safetensors").write_bytes(b"half")
    found = checkpoints.load_newest(silent)
    assert found is not None
    assert found[1]["step"] == 10
    checkpoints.save(20, tensors(20), {})
    assert names(tmp_path) == ["000001-step-10", "000002-step-20"]


SAVE = """
import sys, torch, resource
from pathlib import Path
import dla
from dla.training.checkpoints import Checkpoints
limit = int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    Checkpoints(Path(sys.argv[1])).save(30, {"a": torch.zeros(5000)}, {"x": "y" * 30_000})
except dla.DlaError as error:
    print(error.exit_code, error)
"""


@pytest.mark.parametrize("room", [10_000, 24_000])
def test_without_room_it_is_said_and_nothing_is_lost(
    room: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Room for half the tensors; for them, but not for the facts."""
    checkpoints = saved(tmp_path, 10, 20)
    script = tmp_path_factory.mktemp("script") / "save.py"
    script.write_text(SAVE)
    done = run_warm(str(script), str(tmp_path), str(room), env=os.environ)
    assert done.stdout == (
        f"1 the checkpoint {tmp_path}/000003-step-30 cannot be written: File too large. Run the same command again "
        f"to continue from {tmp_path}/000002-step-20\n"
    )
    assert names(tmp_path) == ["000001-step-10", "000002-step-20"]
    found = checkpoints.load_newest(silent)
    assert found is not None
    assert found[1]["step"] == 20


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        dla.DlaError,
        match=r"file/checkpoints/000001-step-1 cannot be written: Not a directory\. There is no earlier one",
    ):
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, tensors(1), {})
    assert os.listdir(tmp_path) == ["file"]
