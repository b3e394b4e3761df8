"""`dla pull`, against a hub on loopback, in processes of their own: huggingface_hub reads its variables on import."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support import hub_server
from support.released import released
from support.warm import run_warm

pytestmark = pytest.mark.slow

NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub() -> Iterator[hub_server.Hub]:
    """A hub with two of the smallest released networks."""
    with hub_server.serve() as running:
        for name in ("dla46_c", "dla46x_c"):
            running.add(f"timm/{name}.in1k", released(name))
        yield running


def environment(hub: hub_server.Hub, home: Path) -> dict[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "DLA_"))}
    return clean | {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "*"}


@pytest.fixture
def dla(hub: hub_server.Hub, tmp_path: Path) -> Run:
    """Runs a command with an empty cache."""
    clean = environment(hub, tmp_path)

    def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
        return run_warm("-m", "dla", *words, env=clean | env)

    return run


def digest(name: str) -> str:
    return hashlib.sha256(released(name)["model.safetensors"]).hexdigest()


def weights_of(home: Path, name: str) -> Path:
    (path,) = (home / "hf" / "hub" / f"models--timm--{name}.in1k" / "snapshots").glob("*/model.safetensors")
    return path.resolve()


def test_fetched_once_then_told_without_the_network(hub: hub_server.Hub, dla: Run) -> None:
    done = dla("pull", "dla46x_c", "dla46_c")
    assert (done.returncode, done.stderr) == (0, "")
    first, second = done.stdout.splitlines()
    assert first.split() == [
        "dla46x_c", "4.3", "MB", "downloaded", "SHA-256", digest("dla46x_c")[:12],
        "~/hf/hub/models--timm--dla46x_c.in1k",
    ]  # fmt: skip
    assert second.startswith("dla46_c ")
    assert max(map(len, done.stdout.splitlines())) <= 100
    asked = len(hub.requests)
    for where in ({}, {"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOWHERE}):
        again = dla("pull", "dla46x_c", "dla46_c", **where)
        assert (again.returncode, again.stderr) == (0, "")
        assert again.stdout == done.stdout.replace("downloaded", "cached    ")
    assert len(hub.requests) == asked
    listed = dla("models").stdout
    assert listed.count("cached") == 2


def test_what_cannot_be_had_does_not_stop_the_rest(hub: hub_server.Hub, dla: Run) -> None:
    done = dla("pull", "dla34", "dla46x_c", "hf-hub:me/mine")
    assert done.returncode == 3
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["dla46x_c"]
    missing, other = done.stderr.splitlines()
    assert missing.startswith("dla: dla34: config.json of timm/dla34.in1k is not in the cache (")
    assert f"and the hub ({hub.endpoint}) has no such repository" in missing
    assert other.startswith("dla: hf-hub:me/mine: config.json of me/mine is not in the cache (")
    for where, said in (({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set"), ({"HF_ENDPOINT": NOWHERE}, "reached")):
        done = dla("pull", "dla46_c", **where)
        assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
        assert said in done.stderr


def test_all_are_the_twelve(hub: hub_server.Hub, dla: Run) -> None:
    done = dla("pull", "all", HF_HUB_OFFLINE="1")
    assert (done.returncode, len(done.stderr.splitlines())) == (3, 12)
    done = dla("pull", "all")
    assert (done.returncode, len(done.stdout.splitlines()), len(done.stderr.splitlines())) == (3, 2, 10)


def test_verify(hub: hub_server.Hub, dla: Run, tmp_path: Path) -> None:
    nothing = dla("pull", "--verify")
    assert (nothing.returncode, nothing.stdout) == (0, "")
    assert "no released weights are in the cache" in nothing.stderr
    dla("pull", "dla46_c", "dla46x_c")
    asked = len(hub.requests)

    done = dla("pull", "--verify")
    assert (done.returncode, done.stderr) == (0, "")
    ticks = done.stdout.splitlines()
    assert [line.split()[:2] for line in ticks] == [["✓", "dla46_c"], ["✓", "dla46x_c"]]
    assert max(map(len, ticks)) <= 100
    assert digest("dla46_c")[:12] in ticks[0]

    named = dla("pull", "--verify", "dla46x_c", "dla60")
    assert named.returncode == 3
    whole, missing = named.stdout.splitlines()
    assert whole == ticks[1]
    assert missing == f"✗ dla60: timm/dla60.in1k is not in the cache ({tmp_path / 'hf' / 'hub'}). Try: dla pull dla60"

    damaged = weights_of(tmp_path, "dla46x_c")
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    done = dla("pull", "--verify")
    assert done.returncode == 3
    assert done.stdout.splitlines()[0] == ticks[0]
    assert "✗ dla46x_c: model.safetensors of timm/dla46x_c.in1k is damaged in the cache" in done.stdout
    assert f"Try: dla pull hf-hub:timm/dla46x_c.in1k, or delete {damaged} to fetch it again." in done.stdout
    assert len(hub.requests) == asked

    offline = dla("pull", "dla46x_c", HF_ENDPOINT="http://127.0.0.1:9")
    assert (offline.returncode, damaged.exists()) == (3, True)
    repaired = dla("pull", "dla46_c", "dla46x_c")
    assert [line.split()[3:5] for line in repaired.stdout.splitlines()] == [
        ["cached", "SHA-256"],
        ["downloaded", "SHA-256"],
    ]
    assert dla("pull", "--verify").stdout.splitlines() == ticks


def test_whole_files_of_another_network_do_not_pass(hub: hub_server.Hub, dla: Run) -> None:
    hub.add("timm/dla46_c.in1k", released("dla46_c") | {"model.safetensors": released("dla46x_c")["model.safetensors"]})
    assert dla("pull", "dla46_c").returncode == 0
    done = dla("pull", "--verify")
    assert done.returncode == 3
    assert "does not hold the weights of dla46_c" in done.stdout
    assert "These are the weights of dla46x_c." in done.stdout


def test_an_output_of_plain_letters(hub: hub_server.Hub, dla: Run, tmp_path: Path) -> None:
    dla("pull", "dla46_c")
    command = [sys.executable, "-m", "dla", "pull", "--verify"]
    env = environment(hub, tmp_path) | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith("ok dla46_c ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to download: name networks"),
        (["dla46_c", "dla61"], 'no network is called "dla61". Nearest: dla60'),
        (["shipped:tiny200"], "shipped:tiny200 is a local model, which cannot be pulled"),
        (["dla34_half"], "dla34_half has no released weights"),
        (["--verify", "dla61"], 'no network is called "dla61"'),
    ],
)
def test_wrong_names_fetch_nothing(words: list[str], said: str, hub: hub_server.Hub, dla: Run) -> None:
    done = dla("pull", *words)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (2, "", 1)
    assert said in done.stderr
    assert hub.requests == []
