"""`dla models`: one table of networks and weights, at once and without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from dla.cli import main
from dla.models.registry import TABLE
from dla.weights.load import load_any
from dla.weights.spec import resolve_source, shipped_names
from support.packages import PARSER, packages_of
from support.released import put_in_cache, released

STATES = {"to download", "cached", "shipped", "none"}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no way to any server."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("socket.socket.connect", lambda *to: pytest.fail(f"connects to {to[1:]}"))
    return tmp_path


def table(capsys: pytest.CaptureFixture[str]) -> tuple[list[str], dict[str, str]]:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return lines, {line.split()[0]: line for line in lines[1 : lines.index("")]}


def records(capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, object]]:
    assert main(["models", "--format", "json"]) == 0
    return {r["model"]: r for r in json.loads(capsys.readouterr().out)}


def test_each_network_and_each_shipped_one_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    lines, rows = table(capsys)
    assert list(rows) == [*TABLE, *(f"shipped:{name}" for name in shipped_names())]
    assert lines[0].split() == ["network", "params", "GMACs", "top-1", "classes", "MB", "weights", "licence"]
    assert rows["dla60"].split() == [
        "dla60", "22.0", "M", "4.24", "77.0", "1000", "~88.1", "to", "download", "bsd-3-clause",
    ]  # fmt: skip
    assert {name for name, line in rows.items() if line.endswith("unknown")} == {"dla60_res2net", "dla60_res2next"}
    assert rows["dla34_half"].split()[-1] == "none"
    assert "shipped, default" in rows["shipped:tiny200"]
    assert "non-commercial" in rows["shipped:tiny200"]


def test_in_a_terminal_the_table_fits_and_nothing_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = table(capsys)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    lines, _ = table(capsys)
    assert max(map(len, lines)) <= 100
    assert len(lines) > len(whole)
    assert " ".join(" ".join(lines).split()) == " ".join(" ".join(whole).split())


def test_what_is_cached_is_measured(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put_in_cache(cache, "dla46x_c")
    weights = records(capsys)["dla46x_c"]["weights"]
    size = len(released("dla46x_c")["model.safetensors"])
    assert weights == {"state": "cached", "size_bytes": size, "estimated": False, "path": str(path)}
    _, rows = table(capsys)
    assert " 4.3  cached" in rows["dla46x_c"]
    (path.parent / "config.json").unlink()  # half a network is none
    assert records(capsys)["dla46x_c"]["weights"]["state"] == "to download"


def test_json_says_what_the_networks_say(capsys: pytest.CaptureFixture[str]) -> None:
    found = records(capsys)
    assert list(found) == [*TABLE, *(f"shipped:{name}" for name in shipped_names())]
    for name, record in found.items():
        assert record["schema"] == "dla.models/1"
        assert record["weights"]["state"] in STATES
        if record["weights"]["state"] == "to download":
            assert resolve_source(name).kind == "hub"
            assert (record["num_classes"], record["params"]) == (1000, TABLE[name].params)
            assert record["weights"]["size_bytes"] == 4 * record["params"]
            assert record["weights"]["estimated"] is True
        if record["weights"]["state"] == "shipped":
            opened = load_any(name)
            assert record["architecture"] == opened.config.architecture
            assert record["params"] == sum(p.numel() for p in opened.model.parameters())
            assert record["num_classes"] == opened.model.num_classes
            assert record["weights"]["size_bytes"] == Path(record["weights"]["path"]).stat().st_size
            assert record["top1"] is None if opened.config.task != "classify" else 0 < record["top1"] < 100
    assert found["dla34_half"]["weights"]["state"] == "none"
    assert found["dla34_half"]["num_classes"] is None


def test_foreign_variables_change_nothing(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = table(capsys)
    monkeypatch.setenv("DLA_FORMAT", "jsonl")
    assert table(capsys) == expected
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "~nosuch/hub")  # the home of nobody is a plain name
    assert table(capsys) == expected


def test_it_loads_the_parser_and_little_of_the_hub() -> None:
    done, loaded = packages_of(["models"], "huggingface_hub.file_download")
    assert done.returncode == 0, done.stderr
    assert loaded <= PARSER | {"huggingface_hub"}


def test_a_cache_that_may_not_be_read_is_an_empty_one(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    put_in_cache(cache, "dla46x_c")

    def refuse(path: Path) -> bool:
        raise PermissionError(path)

    monkeypatch.setattr(Path, "is_file", refuse)
    assert main(["models"]) == 0
    assert "cached" not in capsys.readouterr().out
