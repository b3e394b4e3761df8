"""Against a small hub on loopback, in processes of their own: huggingface_hub reads its variables on import."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from torch import nn

from dla.errors import DamagedError
from dla.weights.load import load_model
from dla.weights.spec import open_files
from support.hub_server import Hub

pytestmark = pytest.mark.slow

REPO = "timm/dla46x_c.in1k"
CONFIG, WEIGHTS = b'{"architecture": "dla46x_c"}', os.urandom(100_000)
FILES = {"config.json": CONFIG, "model.safetensors": WEIGHTS}
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens there

# Waiting between huggingface_hub's retries is left out; the retries are not.
CLIENT = """
import hashlib, json, resource, sys, time, warnings
time.sleep = lambda seconds: None
warnings.simplefilter("error")
from dla.errors import DlaError
from dla.weights.hub import fetch
assert "huggingface_hub" not in sys.modules
for line in sys.stdin:
    repo, revision, limit, repair = json.loads(line)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        got = fetch(repo, revision, repair=repair)
        digest = hashlib.sha256(got.weights).hexdigest()
        answer = {"commit": got.commit, "sha256": digest, "config": got.config.decode()}
    except DlaError as error:
        answer = {"error": type(error).__name__, "exit": error.exit_code, "message": str(error)}
    print(json.dumps(answer), flush=True)
"""


def environment(hub: Hub, home: Path) -> dict[str, str]:
    kept = ("PATH", "PYTHONPATH", "SYSTEMROOT", "LD_LIBRARY_PATH")
    return {key: os.environ[key] for key in kept if key in os.environ} | {
        "HOME": str(home),
        "HF_HOME": str(home),
        "HF_ENDPOINT": hub.endpoint,
        "NO_PROXY": "*",
        "HF_HUB_ETAG_TIMEOUT": "120",
    }


class Client:
    """A process with its own environment, in which `fetch` is called."""

    def __init__(self, hub: Hub, home: Path, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT],
            env=environment(hub, home) | env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, repo: str = REPO, revision: str | None = None, limit: int = 0, repair: bool = False) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps([repo, revision, limit, repair]) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout
        assert self.process.stderr
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def fetch(self, **what: Any) -> dict[str, Any]:
        self.ask(**what)
        return self.answer()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        _, self.stderr = self.process.communicate(timeout=60)


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Iterator[Client]:
    with Client(hub, tmp_path) as running:
        yield running


def fetch_anew(hub: Hub, home: Path, repair: bool = False, **env: str) -> dict[str, Any]:
    with Client(hub, home, **env) as fresh:
        return fresh.fetch(repair=repair)


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def blob(home: Path, digest: str) -> Path:
    return home / "hub" / f"models--{REPO.replace('/', '--')}" / "blobs" / digest


def leftovers(home: Path) -> list[Path]:
    return list(home.rglob("*.incomplete"))


def test_download_then_cache(hub: Hub, client: Client, tmp_path: Path) -> None:
    commit = hub.add(REPO, FILES)
    expected = {"commit": commit, "sha256": sha256(WEIGHTS), "config": CONFIG.decode()}
    assert client.fetch() == expected
    assert hub.downloads() == 1
    asked = len(hub.requests)
    assert client.fetch() == expected
    assert len(hub.requests) == asked, "a cached network asks the hub nothing"
    assert fetch_anew(hub, tmp_path, HF_ENDPOINT=NOWHERE) == expected
    assert fetch_anew(hub, tmp_path, HF_HUB_OFFLINE="1") == expected
    elsewhere = {"HF_HOME": "/nowhere", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_ENDPOINT": NOWHERE}
    assert fetch_anew(hub, tmp_path, **elsewhere) == expected


def test_weights_in_several_files_are_verified_each(hub: Hub, client: Client, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    save_torch_state_dict({name: torch.rand(100) for name in "abc"}, folder, max_shard_size=500)
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | {"config.json": CONFIG}
    shards = sorted(name for name in files if name.startswith("model-0"))
    assert len(shards) == 3
    hub.add(REPO, files)
    (folder / "config.json").write_bytes(CONFIG)
    assert client.fetch()["sha256"] == sha256(open_files(str(folder)).weights)  # the folder's, see test_shards
    assert hub.downloads() == 3
    cached = blob(tmp_path, sha256(files[shards[1]]))
    cached.write_bytes(files[shards[1]][:-1])
    assert f"{shards[1]} of {REPO} is damaged in the cache" in client.fetch()["message"]
    assert "sha256" in client.fetch(repair=True)
    hub.add(REPO, {name: data for name, data in files.items() if name != shards[2]})
    answer = client.fetch(revision="main", repo=REPO)
    assert "sha256" in answer  # the cached commit is whole
    with Client(hub, tmp_path / "new") as fresh:
        assert f"has no {shards[2]}, which its model.safetensors.index.json names" in fresh.fetch()["message"]


def test_every_byte_that_arrives_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    code = (
        "import json; from support.progress import Recorder; from dla.weights.pull import pull; seen = Recorder()\n"
        f"for pulled in pull(['hf-hub:{REPO}'], progress=seen): assert pulled.error is None, pulled.error\n"
        "print(json.dumps([list(vars(piece).values()) for piece in seen.pieces]))\n"
    )
    env = environment(hub, tmp_path)
    env["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stderr == ""
    counts = [len(FILES[name]) for name in ("config.json", "model.safetensors")]
    assert json.loads(done.stdout) == [[f"fetching {REPO}", count, "bytes", count] for count in counts]


def test_nothing_is_told_about_this_machine(hub: Hub, client: Client) -> None:
    hub.add(REPO, FILES)
    client.fetch()
    assert hub.agents == {"dla"}
    assert all("/resolve/" in path or path.startswith("/cdn/") for _, path, _ in hub.requests), hub.requests
    assert {token for _, _, token in hub.requests} == {""}


def test_token(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    fetch_anew(hub, tmp_path, HF_TOKEN="hf_secret")
    tokens = {path.split("/")[1] == "cdn": token for _, path, token in hub.requests}
    assert tokens == {False: "Bearer hf_secret", True: ""}, "to the hub, not to where the hub redirects"


def test_revisions(hub: Hub, client: Client) -> None:
    other = FILES | {"model.safetensors": os.urandom(1000)}
    first = hub.add(REPO, FILES)
    second = hub.add(REPO, other, branch="next")
    assert client.fetch()["commit"] == first
    assert client.fetch(revision="next")["commit"] == second
    assert client.fetch(revision=second)["sha256"] == sha256(other["model.safetensors"])
    assert client.fetch(revision=first)["commit"] == first
    assert hub.downloads() == 2


def test_config_and_weights_are_of_one_commit(hub: Hub, client: Client) -> None:
    first = hub.add(REPO, FILES)
    hub.cuts = 100
    assert "error" in client.fetch()
    hub.cuts = 0
    hub.add(REPO, FILES | {"model.safetensors": b"newer"})
    assert client.fetch() == {"commit": first, "sha256": sha256(WEIGHTS), "config": CONFIG.decode()}


def test_a_repository_with_only_pytorch_weights(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add(REPO, {"config.json": CONFIG, "pytorch_model.bin": WEIGHTS})
    assert client.fetch()["sha256"] == sha256(WEIGHTS)
    assert fetch_anew(hub, tmp_path, HF_ENDPOINT=NOWHERE)["sha256"] == sha256(WEIGHTS)


BY_HAND = f"or put config.json and model.safetensors of {REPO} into a folder and pass its path as the model."
MISSING = f"config.json of {REPO} is not in the cache (CACHE) and "


NO_REPOSITORY = ("the hub (HUB) has no such repository, or it is private (%s for "
                 f"HUB/{REPO}/resolve/v9/config.json). Check the name, or set HF_TOKEN.")  # fmt: skip
NO_PERMISSION = "the hub (HUB) requires permission for it (403). Request access on its page, then set HF_TOKEN."
REFUSALS = {
    (401, "RepoNotFound"): NO_REPOSITORY % 401,
    (404, "RepoNotFound"): NO_REPOSITORY % 404,
    (403, "GatedRepo"): NO_PERMISSION,
    (403, ""): NO_PERMISSION,
    (404, "RevisionNotFound"): 'the hub (HUB) has no revision "v9" of it. Try it without @v9',
    (429, ""): "the hub (HUB) received too many requests (429). Wait some minutes, or set HF_TOKEN.",
    (503, ""): "the hub (HUB) answers with status 503. Try again later",
}


def test_refusals(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    for (hub.refuse, hub.error_code), said in REFUSALS.items():
        expected = (MISSING + said).replace("HUB", hub.endpoint).replace("CACHE", str(tmp_path / "hub"))
        answer = client.fetch(revision="v9")
        assert answer == {"error": "UnavailableError", "exit": 3, "message": expected}
    assert len(hub.requests) == len(REFUSALS), "asked once"


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_told_in_one_message(hub: Hub, tmp_path: Path, status: int) -> None:
    hub.add(REPO, FILES)
    with Client(hub, tmp_path) as client:
        hub.refuse = status
        client.fetch()
        hub.refuse, hub.busy = 0, 2
        assert client.fetch()["sha256"] == sha256(WEIGHTS)
    assert client.stderr == ""


def test_no_network(hub: Hub, tmp_path: Path) -> None:
    answer = fetch_anew(hub, tmp_path, HF_ENDPOINT=NOWHERE)
    start, end = MISSING.replace("CACHE", str(tmp_path / "hub")) + f"the hub ({NOWHERE}) cannot be reached: ", BY_HAND
    assert answer["exit"] == 3
    assert answer["message"].startswith(start)
    assert answer["message"].endswith(f" refused. Check the connection, {end}")


def test_offline_without_cache(hub: Hub, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    answer = fetch_anew(hub, tmp_path, HF_HUB_OFFLINE="1")
    expected = MISSING.replace("CACHE", str(tmp_path / "hub")) + f"HF_HUB_OFFLINE is set. Unset it, {BY_HAND}"
    assert answer == {"error": "UnavailableError", "exit": 3, "message": expected}
    assert not hub.requests


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"model.safetensors": WEIGHTS}, "has no config.json, so it is not a model that can be loaded."),
        (
            {"config.json": CONFIG},
            "has no weights: neither model.safetensors, pytorch_model.bin nor model.safetensors.index.json.",
        ),
    ],
)
def test_repository_of_something_else(hub: Hub, client: Client, files: dict[str, bytes], said: str) -> None:
    hub.add(REPO, files)
    answer = client.fetch()
    assert answer["message"] == f"{REPO} on the hub ({hub.endpoint}) {said}"
    assert answer["exit"] == 3


@pytest.mark.parametrize("first", [{"config.json": CONFIG}, {"README.md": b"soon"}])
def test_a_repository_that_is_completed_later(hub: Hub, client: Client, first: dict[str, bytes]) -> None:
    """That something was missing once is no reason not to look again."""
    hub.add(REPO, first)
    assert "has no " in client.fetch()["message"]
    assert "has no " in client.fetch()["message"]
    commit = hub.add(REPO, FILES)
    assert client.fetch()["commit"] == commit


def test_a_cut_connection_is_taken_up_again(hub: Hub, client: Client) -> None:
    hub.add(REPO, FILES)
    hub.cuts = 1
    assert client.fetch()["sha256"] == sha256(WEIGHTS)
    assert hub.downloads() == 2


@pytest.mark.parametrize("fault", ["cuts", "short"])
def test_a_download_that_never_ends_whole(hub: Hub, client: Client, tmp_path: Path, fault: str) -> None:
    hub.add(REPO, FILES)
    setattr(hub, fault, 100)
    answer = client.fetch()
    assert answer["error"] == "UnavailableError"
    assert f"model.safetensors of {REPO} is not in the cache" in answer["message"]
    assert f"the hub ({hub.endpoint}) broke off: " in answer["message"]
    assert answer["message"].endswith(BY_HAND)
    assert not leftovers(tmp_path)
    setattr(hub, fault, 0)
    assert client.fetch()["sha256"] == sha256(WEIGHTS)


def test_altered_on_the_way(hub: Hub, client: Client) -> None:
    hub.add(REPO, FILES)
    hub.altered = True
    answer = client.fetch()
    assert answer["error"] == "DamagedError"
    assert answer["message"].startswith(f"model.safetensors of {REPO} at ")
    assert answer["message"].endswith("does not have the announced digest and was deleted. Try again.")
    hub.altered = False
    assert client.fetch()["sha256"] == sha256(WEIGHTS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", WEIGHTS[:50_000]),
        ("model.safetensors", b""),
        ("model.safetensors", WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1])),
        ("config.json", CONFIG.replace(b"46x", b"60x")),
    ],
)
def test_damage_in_the_cache(hub: Hub, client: Client, tmp_path: Path, name: str, content: bytes) -> None:
    hub.add(REPO, FILES)
    client.fetch()
    digest = sha256(WEIGHTS) if name != "config.json" else hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest()
    file = blob(tmp_path, digest)
    assert file.stat().st_size == len(FILES[name])
    file.write_bytes(content)
    answer = client.fetch()
    assert (answer["error"], answer["exit"]) == ("DamagedError", 3)
    assert answer["message"].startswith(f"{name} of {REPO} is damaged in the cache ({len(content)} bytes, digest ")
    assert f"Try: dla pull hf-hub:{REPO}, or delete " in answer["message"]
    offline = {"error": "UnavailableError", "exit": 3, "message": (
        f"{name} of {REPO} is damaged in the cache ({tmp_path / 'hub'}) and HF_HUB_OFFLINE is set. Unset it, "
        f"{BY_HAND}"
    )}  # fmt: skip
    assert fetch_anew(hub, tmp_path, repair=True, HF_HUB_OFFLINE="1") == offline
    told = Path(answer["message"].split("or delete ")[1].split(" to fetch it again.")[0])
    assert told.samefile(file)
    told.unlink()
    assert client.fetch()["sha256"] == sha256(WEIGHTS)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 64 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(hub: Hub, small_disk: Path) -> None:
    hub.add(REPO, FILES)
    check_no_space(fetch_anew(hub, small_disk), small_disk)


def test_a_limit_on_file_sizes(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    check_no_space(client.fetch(limit=60_000), tmp_path)


def check_no_space(answer: dict[str, Any], home: Path) -> None:
    said = f"no space is left for model.safetensors of {REPO} in the cache ({home / 'hub'}). Free some, or set HF_HOME."
    assert answer == {"error": "UnavailableError", "exit": 3, "message": said}
    assert not leftovers(home)


def test_a_cache_that_cannot_be_written(hub: Hub, client: Client, tmp_path: Path) -> None:
    hub.add(REPO, FILES)
    (tmp_path / "hub").write_text("a file where the folder should be")
    answer = client.fetch()
    assert (answer["error"], answer["exit"]) == ("UnavailableError", 3)
    assert answer["message"].startswith(f"the cache ({tmp_path / 'hub'}) cannot be written: ")
    assert answer["message"].endswith(". Set HF_HOME to a writable folder.")


def test_two_processes_at_once(hub: Hub, tmp_path: Path) -> None:
    commit = hub.add(REPO, FILES)
    hub.meeting = threading.Barrier(2)
    with Client(hub, tmp_path) as one, Client(hub, tmp_path) as other:
        for client in (one, other):
            client.ask()
        answers = [client.answer() for client in (one, other)]
    assert answers == [{"commit": commit, "sha256": sha256(WEIGHTS), "config": CONFIG.decode()}] * 2
    assert not leftovers(tmp_path)


def test_impossible_names(hub: Hub, client: Client) -> None:
    for repo in ("a--b/c", "a/b..c", "a/-b"):
        answer = client.fetch(repo=repo)
        assert answer["error"] == "UsageError"
        assert answer["message"] == f'"{repo}" is not a repository name. Allowed: owner/name'
    assert not hub.requests


def test_a_network_of_timm_from_the_hub(
    hub: Hub, client: Client, tmp_path: Path, timm_folder: Path, timm_model: nn.Module
) -> None:
    files = {name: (timm_folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    commit = hub.add(REPO, files)
    client.fetch()
    x_N3HW = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for source in ("dla46x_c", "dla46x_c.in1k", f"hf-hub:{REPO}", f"HF_HUB:{REPO}@{commit}"):
        opened = load_model(source, cache_dir=tmp_path / "hub")
        with torch.no_grad():
            torch.testing.assert_close(opened.model.eval()(x_N3HW), timm_model(x_N3HW), atol=1e-5, rtol=1e-5)
        assert opened.origin == f"{REPO}@{commit}"
        assert opened.digest == sha256(files["model.safetensors"])
        assert opened.config.label_names == tuple("abcde")


def test_a_repository_that_holds_another_architecture(
    hub: Hub, client: Client, tmp_path: Path, timm_folder: Path
) -> None:
    files = {name: (timm_folder / name).read_bytes() for name in ("config.json", "model.safetensors")}
    hub.add("timm/dla34.in1k", files)
    client.fetch(repo="timm/dla34.in1k")
    with pytest.raises(DamagedError, match=r"is a dla46x_c by its config.json, but dla34 was asked for"):
        load_model("dla34", cache_dir=tmp_path / "hub")
