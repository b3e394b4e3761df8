"""Several processes of one run; two real ones on gloo."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import dla
from dla.errors import UsageError
from dla.training.distributed import Ranks, process_group
from support.torchrun import torchrun, two_ranks

SCRIPT = Path(__file__).with_name("ranks_script.py")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_by_itself() -> None:
    with process_group() as ranks:
        assert ranks == Ranks(0, 1, 0)
        assert ranks.is_main
        assert ranks.shard([1, 2, 3]) == [1, 2, 3]
        assert ranks.sum(torch.ones(2)).tolist() == [1, 1]
        assert ranks.max(7) == 7
        assert ranks.broadcast_object(lambda: "made") == "made"
        ranks.barrier()


def test_processes_that_cannot_meet_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert Ranks.from_env().local_world == 2
    with (
        pytest.raises(UsageError, match="WORLD_SIZE is 2, but the processes cannot connect.*torchrun"),
        process_group("cpu"),
    ):
        pass
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UsageError, match="LOCAL_RANK is 1, and this machine has 1 GPUs"), process_group("cuda"):
        pass


@given(st.integers(0, 300), st.integers(1, 9))
def test_shares_hold_every_row_once_and_are_even(count: int, world: int) -> None:
    shares = [Ranks(rank, world).shard(range(count)) for rank in range(world)]
    assert sorted(row for share in shares for row in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@given(st.permutations(range(11)))
def test_rows_come_back_in_their_order(rows: list[int]) -> None:
    gathered = Ranks().gather_rows(np.array(rows) * 2, np.array(rows), 11)
    assert gathered.tolist() == [2 * row for row in range(11)]


@pytest.mark.parametrize("rows", [[0, 1, 1], [0, 1, 3], [0, 1]])
def test_a_row_that_is_missing_or_there_twice_is_our_mistake(rows: list[int]) -> None:
    with pytest.raises(ValueError, match="not 0 to 2, each once"):
        Ranks().gather_rows(np.zeros((len(rows), 2)), np.array(rows), 3)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "the variable RANK is x, but must be a whole number"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2, LOCAL_RANK 0, WORLD_SIZE 2: ranks count from 0"),
        ({"RANK": "0", "WORLD_SIZE": "-1"}, "the variable WORLD_SIZE is -1"),
    ],
)
def test_variables_that_cannot_be(variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(dla.UsageError, match=message):
        Ranks.from_env()


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    for done in two_ranks(SCRIPT, tmp_path, "all"):
        assert done.returncode == 0, done.stderr
    main, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert main["ranks"] == [0, 2, 0]
    assert second["ranks"] == [1, 2, 1]
    assert (main["rows"], second["rows"]) == ([0, 2, 4, 6], [1, 3, 5])
    assert main["pid"] != second["pid"] != os.getpid()
    for found in (main, second):
        assert found["sum"] == [4.0, 4.0]
        assert found["largest"] == [15, 2]
        assert found["from_main"] == {"pid": main["pid"], "none": None}
        assert found["gathered"] == [[10.0 * row, row + 0.25] for row in range(7)]
        assert found["spread"] == [0.0] * 3
        assert found["waited"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "sentences", "code"),
    [
        ("error on the second", ["this one has three legs"], 2),
        ("error on both", ["both stumble, left", "both stumble, right"], 1),
    ],
)
def test_an_error_on_one_ends_all_with_one_sentence(what: str, sentences: list[str], code: int, tmp_path: Path) -> None:
    both = two_ranks(SCRIPT, tmp_path, what)
    assert all(done.returncode != 0 for done in both)
    assert both[1].returncode == code
    lines = "".join(done.stderr for done in both).splitlines()
    (said,) = [line for line in lines if line.startswith("dla: ")]
    assert any(sentence in said for sentence in sentences)
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_a_killed_process_ends_all_with_one_sentence(tmp_path: Path) -> None:
    done = torchrun(SCRIPT, tmp_path, "killed")
    assert done.returncode != 0
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("dla: ")]
    assert "another process of this run ended or cannot be reached" in said
    assert "exitcode  : -9 " in done.stderr
    assert done.stderr.count("Traceback") == 1  # torchrun's own
