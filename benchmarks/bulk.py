"""Fly bulk runs through everything that goes wrong, and measure what they cost.

    python benchmarks/bulk.py flight [--photos 2000]   # every runner, killed nodes, drivers and actors, a busy bucket
    python benchmarks/bulk.py plan [--rows 5000000]    # a list and a column of addresses: seconds and memory
    python benchmarks/bulk.py silence                  # 95 s of a local Ray: sockets, connections, reports
    python benchmarks/bulk.py rate [--photos 20000]    # dla bulk predict against dla predict, in 4 blocks
    python benchmarks/bulk.py tar [--photos 2000]      # dla predict of a tar against its photos as files

Everything is on this machine: S3 by moto on 127.0.0.1, a Ray cluster of a head without cores and two raylets with one
each. Byte identity, counts and CPU time hold on a busy machine; `rate` and `tar` want a quiet one. Needs the extras
`dev`, `demo`, `bulk` and `ray`. Ends with exit code 1 if a bar is missed.
"""

import argparse
import hashlib
import json
import os
import re
import resource
import secrets
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from support.photos import crops, jpeg
from support.sockets import LISTEN, descendants, is_loopback, sockets

KEY, SECRET = "AKIDOFTHEFLIGHT01234", f"secret-{secrets.token_hex(12)}"
DLA = [sys.executable, "-m", "dla"]
KILLER = """\
import os, sys
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith("killer.jpg"):
        os.kill(os.getpid(), 11)
sys.addaudithook(hook)
"""
missed: list[str] = []


def told(what: str, passed: bool, figure: object = "") -> None:
    print(f"{'pass' if passed else 'MISS'}  {what:62} {figure}", flush=True)
    if not passed:
        missed.append(what)


def photos_in(folder: Path, count: int, bad: int) -> Path:
    """Distinct photos of some 10 kB, of which every count / bad-th is damaged."""
    folder.mkdir(parents=True)
    for n, crop in enumerate(crops(count)):
        is_bad = bad and n % (count // bad) == count // bad - 1
        (folder / f"{n:05}.jpg").write_bytes(b"no photo" if is_bad else jpeg(crop.resize((160, 120))))
    return folder


class Bucket:
    """moto in a thread; it can be made to answer 503 for a while."""

    def __init__(self) -> None:
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Silent(WSGIRequestHandler):
            def log(self, *_: object) -> None:
                pass

        inner = DomainDispatcherApplication(create_backend_app)
        self.busy_until = 0.0
        self.refused = 0

        def app(environ: Any, start: Any) -> Any:
            if time.monotonic() < self.busy_until:
                self.refused += 1
                start("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate</Message></Error>"]
            return inner(environ, start)

        self.server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Silent)
        Thread(target=self.server.serve_forever, daemon=True).start()
        os.environ |= {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server.port}", "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1",
        }  # fmt: skip
        from pyarrow.fs import S3FileSystem

        S3FileSystem(endpoint_override=os.environ["AWS_ENDPOINT_URL"], allow_bucket_creation=True).create_dir("flight")


class Flight:
    """The photos of a flight, in a bucket, and what each run of them gives."""

    def __init__(self, folder: Path, count: int) -> None:
        from dla.storage.stores import open_store

        self.folder, self.count = folder, count
        self.bucket = Bucket()
        self.store = open_store("s3://flight/")
        self.logs: list[str] = []
        for photo in sorted(photos_in(folder / "photos", count, count // 100).iterdir()):
            self.store.write(f"s3://flight/photos/{photo.name}", photo.read_bytes())
        self.dla("bulk", "plan", "s3://flight/photos/", "-o", "s3://flight/m.parquet")

    def dla(self, *words: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
        done = subprocess.run([*DLA, *words], capture_output=True, text=True, env=os.environ | (environment or {}))
        self.logs += [done.stdout, done.stderr]
        if done.returncode != code:
            told(f"exit code of {' '.join(words)[:40]}", False, f"{done.returncode}: {done.stderr[-2000:]}")
        return done.stderr

    def command(self, output: str, *words: str) -> list[str]:
        fixed = ["bulk", "predict", "s3://flight/m.parquet", "--rows-per-shard", "50", "-v"]
        return [*fixed, "-o", f"s3://flight/{output}", *words]

    def start(self, output: str, *words: str) -> subprocess.Popen[str]:
        log = (self.folder / f"{output}.log").open("a+")
        return subprocess.Popen([*DLA, *self.command(output, *words)], stderr=log, text=True)

    def end(self, driver: subprocess.Popen[str], output: str, code: int = 1) -> str:
        driver.wait(600)
        text = (self.folder / f"{output}.log").read_text()
        self.logs.append(text)
        if driver.returncode != code:
            told(f"exit code of {output}", False, f"{driver.returncode}: {text[-2000:]}")
        return text

    def parts(self, output: str) -> dict[str, str]:
        return {stored.uri.rpartition("/")[2]: hashlib.sha256(self.store.read(stored.uri)).hexdigest()
                for stored in self.store.walk(f"s3://flight/{output}")}  # fmt: skip

    def made(self, output: str) -> int:
        return len(self.parts(output)) - 1

    def until(self, output: str, share: float) -> None:
        wanted = share * self.count / 50
        end = time.monotonic() + 600
        while sum(1 for _ in self.store.walk(f"s3://flight/{output}")) - 1 < wanted and time.monotonic() < end:
            time.sleep(0.1)

    def same(self, what: str, output: str, figure: object = "") -> None:
        told(f"{what}: the same files", self.parts(output) == self.reference, figure)

    def each_once(self, output: str) -> None:
        file = self.folder / f"{output}.jsonl"
        self.dla("bulk", "collect", f"s3://flight/{output}", "-o", str(file), code=1)
        names = [json.loads(line)["path"] for line in file.read_text().splitlines()]
        expected = [f"s3://flight/photos/{n:05}.jpg" for n in range(self.count)]
        told(f"{output}: {self.count:,} records, each once", names == expected)


@contextmanager
def cluster() -> Iterator[tuple[Any, list[Any]]]:
    """A Ray cluster of three raylets on the loopback address: a head without cores, and two with one each."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token",
                   "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # fmt: skip
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [found.add_node(num_cpus=1) for _ in range(2)]
    try:
        yield found, nodes
    finally:
        with suppress(Exception):
            found.shutdown()


def cpu_seconds(process: int) -> float:
    """The CPU time of a process and of all that it has started, those that have ended included."""
    total = 0
    for one in descendants(process):
        with suppress(OSError, IndexError):
            words = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
            total += sum(map(int, words[11:15]))
    return total / os.sysconf("SC_CLK_TCK")


def cpu_of_shards(flight: Flight, output: str, *words: str) -> float:
    """The CPU time of a run a shard, from the fifth shard on, so that starts are left out."""
    driver = subprocess.Popen(
        [*DLA, *flight.command(output, *words)], stderr=subprocess.DEVNULL, start_new_session=True
    )
    samples: list[tuple[int, float]] = []
    while driver.poll() is None:
        samples.append((sum(1 for _ in flight.store.walk(f"s3://flight/{output}")) - 1, cpu_seconds(driver.pid)))
        time.sleep(0.3)
    last = flight.count // 50 - 2
    first = next(s for s in samples if s[0] >= 5)
    end = next(s for s in samples if s[0] >= last)
    return (end[1] - first[1]) / (end[0] - first[0])


def flight(count: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        air = Flight(Path(base), count)
        air.dla(*air.command("local"), code=1)
        air.reference = air.parts("local")
        told("local", air.made("local") == count // 50, f"{air.made('local')} shards")
        air.each_once("local")
        for job in range(3):
            air.dla(*air.command("jobs", "--shard", f"{job}/3"), code=1)
        air.same("--shard 0/3 to 2/3", "jobs")
        air.dla(*air.command("one", "--runner", "ray"), code=1)
        air.same("Ray on one node", "one")
        driver_is_killed(air)
        busy_bucket(air)
        full_disk(air)
        killer(air)
        costs = [cpu_of_shards(air, f"cpu{i}", *(("--runner", "ray") if i % 2 else ())) for i in range(4)]
        ratio = (costs[1] + costs[3]) / (costs[0] + costs[2])
        told("CPU time of Ray over local, starts left out, <= 1.15", ratio <= 1.15, f"{ratio:.3f}")
        with cluster() as (found, nodes):
            on_two_nodes(air, found, nodes)
        texts = [*air.logs, *(air.store.read(s.uri).decode("latin-1") for s in air.store.walk("s3://flight/")
                              if "/photos/" not in s.uri)]  # fmt: skip
        texts += [
            p.read_text(errors="replace") for p in Path("/tmp/ray").rglob("*") if p.is_file() and not p.is_symlink()
        ]
        told(
            "keys in files and logs", not any(k in text for text in texts for k in (KEY, SECRET)), f"{len(texts)} read"
        )


def on_two_nodes(air: Flight, found: Any, nodes: list[Any]) -> None:
    ray = ("--runner", "ray", "--address", found.address)
    text = air.end(air.start("two", *ray), "two")
    air.same("Ray on two nodes", "two")
    shares = [int(n) for n in re.findall(r"(\d+) by node", text)]
    least = min(shares) / sum(shares) if len(shares) == 2 else 0.0
    told("share of each node >= 25 %", least >= 0.25, shares)

    driver = air.start("actor", *ray)
    air.until("actor", 0.3)
    actors = [p for p in everything() if b"ray::_Actor" in command_line(p)]
    os.kill(actors[0], signal.SIGKILL)
    air.end(driver, "actor")
    air.same("SIGKILL of an actor at 30 %", "actor", f"of {len(actors)} actors")

    driver = air.start("raylet", *ray)
    air.until("raylet", 0.3)
    raylet = nodes[1].all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGKILL)
    air.end(driver, "raylet")
    air.same("SIGKILL of a raylet at 30 %", "raylet")
    air.each_once("raylet")


def driver_is_killed(air: Flight) -> None:
    driver = air.start("driver", "--runner", "ray")
    air.until("driver", 0.5)
    driver.kill()
    driver.wait()
    time.sleep(5)  # its workers end with it, in the middle of a shard or after it
    before = air.made("driver")
    text = air.end(air.start("driver", "--runner", "ray"), "driver")
    earlier = int(re.findall(r"\(([\d,]+) of them in an earlier run\)", text)[-1].replace(",", ""))
    air.same("SIGKILL of the driver at 50 %", "driver", f"{earlier:,} of {air.count:,} photos were there")
    told("only missing shards run again", earlier >= 50 * before > 0, f"{before} shards were there")


def busy_bucket(air: Flight) -> None:
    driver = air.start("busy")
    air.until("busy", 0.3)
    air.bucket.busy_until = time.monotonic() + 10
    air.end(driver, "busy")
    air.same("503 for 10 s", "busy", f"{air.bucket.refused} refused requests")


def full_disk(air: Flight) -> None:
    output = air.folder / "full"
    command = [*DLA, "bulk", "predict", "s3://flight/m.parquet", "-o", str(output), "--rows-per-shard", "50"]

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))  # as a full disk: a part is larger

    full = subprocess.run(command, capture_output=True, text=True, preexec_fn=no_room)
    told(
        "a part that cannot be written ends the run, exit 1", full.returncode == 1, full.stderr.splitlines()[-1][-100:]
    )
    told("nothing half-written is left", all(p.name == "run.json" for p in output.iterdir()))
    again = subprocess.run(command, capture_output=True, text=True)
    same = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in output.iterdir()} == air.reference
    told("the same command then finishes it", again.returncode == 1 and same)


def killer(air: Flight) -> None:
    folder = air.folder / "deadly"
    folder.mkdir()
    for photo in sorted((air.folder / "photos").iterdir())[:49]:
        (folder / photo.name).symlink_to(photo)
    (folder / "00020killer.jpg").symlink_to(air.folder / "photos" / "00020.jpg")
    hook = air.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILLER)
    environment = {"PYTHONPATH": os.pathsep.join([str(hook), *filter(None, [os.environ.get("PYTHONPATH")])])}
    manifest = str(air.folder / "deadly.parquet")
    air.dla("bulk", "plan", str(folder), "-o", manifest)
    results = []
    for runner in ("local", "ray"):
        output = air.folder / f"deadly-{runner}"
        air.dla("bulk", "predict", manifest, "-o", str(output), "--runner", runner, "--rows-per-shard", "50", code=1,
                environment=environment)  # fmt: skip
        results.append({p.name: p.read_bytes() for p in output.iterdir()})
    records = air.folder / "deadly.jsonl"
    air.dla("bulk", "collect", str(air.folder / "deadly-local"), "-o", str(records), code=1)
    codes = [json.loads(line).get("error", {}).get("code") for line in records.read_text().splitlines()]
    told("a deadly photo: 49 answers, 1 worker_died", codes.count(None) == 49 and codes[21] == "worker_died")
    told("the same by every runner", results[0] == results[1])


def everything() -> list[int]:
    return [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]


def command_line(process: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes()
    return b""


def plan(rows: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as base:
        # in pieces: the peak memory of a process begins with that of the one that started it
        schema = pa.schema([("url", pa.string())])
        with pq.ParquetWriter(f"{base}/t.parquet", schema) as table, open(f"{base}/t.txt", "w") as lines:
            for first in range(0, rows, 100_000):
                addresses = [f"s3://bucket/photos/{n % 1000:03}/{n:08}.jpg" for n in range(first, first + 100_000)]
                table.write_table(pa.table({"url": addresses}))
                lines.writelines(f"{address}\n" for address in addresses)
        for name in ("t.parquet", "t.txt"):
            began = time.monotonic()
            process = subprocess.Popen([*DLA, "bulk", "plan", f"{base}/{name}", "-o", f"{base}/m.parquet", "--force"])
            _, _, used = os.wait4(process.pid, 0)
            seconds, megabytes = time.monotonic() - began, used.ru_maxrss / 1e3
            told(f"plan of {rows:,} addresses in {name}: 60 s, 1 GB", seconds <= 60 and megabytes <= 1000,
                 f"{seconds:.1f} s, {megabytes:.0f} MB")  # fmt: skip
        began = time.monotonic()
        out = Path(base) / "out"
        os.environ |= {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}  # nobody answers: only the start counts
        command = [*DLA, "bulk", "predict", f"{base}/m.parquet", "-o", str(out)]
        driver = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)
        while driver.poll() is None and not any(b"spawn_main" in command_line(p) for p in descendants(driver.pid)):
            time.sleep(0.05)
        seconds = time.monotonic() - began
        peak = int(re.findall(r"VmHWM:\s+(\d+)", Path(f"/proc/{driver.pid}/status").read_text())[0]) / 1e3
        driver.terminate()
        driver.communicate()
        told("start to the first worker: 60 s, 1 GB", seconds <= 60 and peak <= 1000, f"{seconds:.1f} s, {peak:.0f} MB")


IDLE = """\
import os, sys, time
from dla.bulk.ray_pool import import_ray, open_ray
from dla.bulk.shard import BulkJob
job = BulkJob("predict", "shipped:tiny200", {"threads": 1}, "", "", 1, os.getcwd())
with open_ray(job, None, 2) as pool:
    import ray
    print(ray.get_runtime_context().gcs_address, flush=True)
    time.sleep(95)
"""


def token_of(process: int) -> str:
    with suppress(OSError):
        found = re.search(rb"RAY_AUTH_TOKEN=([^\0]+)", Path(f"/proc/{process}/environ").read_bytes())
        return found[1].decode() if found else ""
    return ""


def silence() -> None:
    from socket import create_server

    with create_server(("127.0.0.1", 0)) as reports:
        reports.settimeout(0.05)
        environment = os.environ | {"RAY_USAGE_STATS_REPORT_URL": f"http://127.0.0.1:{reports.getsockname()[1]}"}
        idle = subprocess.Popen([sys.executable, "-c", IDLE], env=environment, stdout=subprocess.PIPE, text=True,
                                start_new_session=True)  # fmt: skip
        assert idle.stdout is not None
        address = idle.stdout.readline().strip()
        connect = f"import ray; ray.init(address={address!r}, logging_level='ERROR'); print(len(ray.nodes()))"
        token = next(t for t in map(token_of, descendants(idle.pid)) if t)
        for what, known in (("with", {"RAY_AUTH_TOKEN": token, "RAY_AUTH_MODE": "token"}), ("without", {})):
            others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")} | known
            others |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}
            command = [sys.executable, "-c", connect]
            stranger = subprocess.run(command, env=others, capture_output=True, text=True, timeout=60)
            told(f"another process {what} the token", (stranger.returncode == 0) == (what == "with"),
                 "connects" if stranger.returncode == 0 else "is refused")  # fmt: skip
        listening, outside = set[str](), set[str]()
        while idle.poll() is None:
            for local, remote, state in sockets(descendants(idle.pid)):
                listening |= {local} if state == LISTEN else set()
                outside |= {
                    a for a in (remote,) if state != LISTEN and not is_loopback(a) and a not in ("0.0.0.0", "::")
                }
            time.sleep(0.2)
        told("listening sockets on the loopback address only", all(map(is_loopback, listening)), sorted(listening))
        told("connections outside in 95 s", not outside, sorted(outside))
        try:
            reports.accept()
            told("no usage report", False)
        except TimeoutError:
            told("no usage report", True)


def rate(count: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = photos_in(Path(base) / "few", 500, 0)
        many = Path(base) / "photos"
        many.mkdir()
        few = sorted(folder.iterdir())
        for n in range(count):
            os.link(few[n % 500], many / f"{n:06}.jpg")
        names = sorted(map(str, many.iterdir()))
        paces: dict[str, list[float]] = {"bulk": [], "predict": []}
        peaks = []
        for block in range(4):
            mine = names[block * count // 4 : (block + 1) * count // 4]
            listed = Path(base) / f"{block}.txt"
            listed.write_text("\n".join(mine))
            subprocess.run([*DLA, "bulk", "plan", str(listed), "-o", f"{base}/{block}.parquet", "-q"], check=True)
            bulk = [*DLA, "bulk", "predict", f"{base}/{block}.parquet", "-o", f"{base}/out{block}", "-q"]
            bulk += ["--rows-per-shard", "250"]  # so that no process waits long for the other at the end
            single = [*DLA, "predict", "-", "-o", f"{base}/{block}.jsonl", "-q"]
            for kind, command in (("bulk", bulk), ("predict", single))[:: 1 if block % 2 else -1]:
                with listed.open() as lines:
                    summary = f"{base}/summary.json"
                    process = subprocess.Popen([*command, "--summary", summary], stdin=lines)
                    _, _, used = os.wait4(process.pid, 0)
                seconds = json.loads(Path(summary).read_text())["seconds"]
                paces[kind].append(len(mine) / seconds)
                if kind == "bulk":
                    peaks.append(used.ru_maxrss / 1e3)
            print(
                f"block {block}: " + ", ".join(f"{kind} {pace[-1]:.1f}/s" for kind, pace in paces.items()), flush=True
            )
        ratio = statistics.median(a / b for a, b in zip(paces["bulk"], paces["predict"], strict=True))
        told("rate over dla predict >= 0.95", ratio >= 0.95, f"{ratio:.3f}")
        told("memory of the driver flat", max(peaks) < 1.05 * min(peaks), f"{min(peaks):.0f} to {max(peaks):.0f} MB")


def tar(count: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        folder = photos_in(Path(base) / "photos", count, 0)
        with tarfile.open(f"{base}/photos.tar", "w") as archive:
            for photo in sorted(folder.iterdir()):
                archive.add(photo, photo.name)
        seconds: dict[str, list[float]] = {"files": [], "tar": []}
        probabilities = {}
        for n in range(4):
            for kind, name in (("files", "photos"), ("tar", "photos.tar"))[:: 1 if n % 2 else -1]:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(
                    [*DLA, "predict", f"{base}/{name}", "-o", f"{base}/{kind}.jsonl", "-q", "--force"], check=True
                )
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                seconds[kind].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
                lines = Path(f"{base}/{kind}.jsonl").read_text().splitlines()
                probabilities[kind] = [json.loads(line)["predictions"] for line in lines]
        told("the same bits", probabilities["tar"] == probabilities["files"])
        ratio = statistics.median(seconds["tar"]) / statistics.median(seconds["files"])
        told("CPU time of a tar over files <= 1.02", ratio <= 1.02, f"{ratio:.3f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["flight", "plan", "silence", "rate", "tar"])
    parser.add_argument("--photos", type=int)
    parser.add_argument("--rows", type=int, default=5_000_000)
    arguments = parser.parse_args()
    runs: dict[str, Callable[[], None]] = {
        "flight": lambda: flight(arguments.photos or 2000), "plan": lambda: plan(arguments.rows), "silence": silence,
        "rate": lambda: rate(arguments.photos or 20_000), "tar": lambda: tar(arguments.photos or 2000),
    }  # fmt: skip
    runs[arguments.what]()
    sys.exit(bool(missed))
