"""Measure `dla serve`: right answers, cost, limits, its end, and other servers with the same model.

    python benchmarks/serve.py ROW... [--seconds 10]

Rows: identical, answers, overhead, throughput, latency, overload, sigterm, reload, early, slow, hostile, clients,
peers, disk, offline; `all` runs every one. Each prints lines that begin with its name, and `ok` or `MISSED` where there
is a bar. Rates need a quiet machine; CPU milliseconds, counts, and yes or no do not.

Needs the extras `serve` and `bench`. `overhead` and `peers` need wrk, `slow` slowhttptest, `early` curl and httpx,
`disk` strace, `offline` unshare and ip (all in Debian). `peers` runs what is installed of FastAPI, LitServe and
BentoML. `clients` needs environments of their own:

    --triton PYTHON    with tritonclient[http]
    --kserve PYTHON    with kserve
    --schemathesis EXE
"""

import argparse
import collections
import contextlib
import http.client
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

import dla

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "src" / "dla" / "shipped" / "photos").glob("*.jpg"))
PATH = "/v1/predict"


def say(row: str, text: str, ok: bool | None = None) -> None:
    print(f"{row}: {text}" + ("" if ok is None else f"  {'ok' if ok else 'MISSED'}"), flush=True)


class Served:
    """A service in a process of its own."""

    def __init__(self, *flags: str, code: str | None = None, script: tuple[str, ...] = ()) -> None:
        words = ["-c", code] if code is not None else script or ["-m", "dla", "serve", "--port", "0", *flags]
        command = [sys.executable, *words]
        self.errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.errors, stdin=subprocess.DEVNULL,
                                        text=True, cwd=ROOT)  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        if not line:
            self.errors.seek(0)
            raise SystemExit(self.errors.read().decode())
        self.port, self.pid = int(line.rpartition(":")[2]), self.process.pid
        for _ in range(600):  # some servers listen a while later
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", self.port)).close()
                return
            time.sleep(0.1)
        self.process.kill()
        raise SystemExit("it does not listen")

    def __enter__(self) -> "Served":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()

    def connect(self, timeout: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: object = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def cpu_s(self) -> float:
        """CPU seconds of the process and those that it has started."""
        main = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (main, *main.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    def state(self) -> dict[str, int]:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        return {
            "rss_kb": int(status["VmRSS"].split()[0]),
            "threads": int(status["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{self.pid}/fd")),
        }


def photos(count: int, seed: int = 0) -> list[bytes]:
    """JPEGs of about 34 kB, each another crop."""
    generator, sources, found = np.random.default_rng(seed), [Image.open(p).convert("RGB") for p in PHOTOS], []
    for i in range(count):
        source = sources[i % len(sources)]
        share = generator.uniform(0.4, 0.9)
        w, h = int(source.width * share), int(source.height * share)
        left, top = int(generator.integers(source.width - w)), int(generator.integers(source.height - h))
        file = io.BytesIO()
        source.crop((left, top, left + w, top + h)).resize((480, 360)).save(file, "JPEG", quality=88)
        found.append(file.getvalue())
    return found


def predicted(data: list[bytes], model: str = "shipped:tiny200") -> list[dict[str, object]]:
    return [p.to_dict() for p in dla.load(model, engine="openvino").predict(data)]


def same(found: dict, expected: dict, within: float = 1e-6) -> bool:
    if "error" in expected:
        return found["error"] == expected["error"]
    pairs = zip(found["predictions"], expected["predictions"], strict=True)
    return all(
        {**a, "probability": 0} == {**b, "probability": 0} and abs(a["probability"] - b["probability"]) <= within
        for a, b in pairs
    )


def identical(args: argparse.Namespace) -> None:
    """Ordinary and hostile photos: the record of `dla predict`, for `dla predict` by the command line."""
    sys.path.insert(0, str(ROOT / "tests"))
    from support.photos import troubled_folder

    with tempfile.TemporaryDirectory() as folder, Served("--engine", "openvino") as served:
        troubled_folder(Path(folder) / "troubled")
        paths = [p for p in [*PHOTOS, *sorted(Path(folder, "troubled").iterdir())] if p.stat().st_size]
        words = [sys.executable, "-m", "dla", "predict", "--engine", "openvino", "--format", "jsonl", "-q"]
        done = subprocess.run([*words, *map(str, paths)], capture_output=True, text=True)
        count = 0
        for path, line in zip(paths, done.stdout.splitlines(), strict=True):
            expected = json.loads(line.replace(json.dumps(str(path))[1:-1], "input 0"))
            count += same(json.loads(served.ask("POST", PATH, path.read_bytes())[1]), expected)
        say("identical", f"{count} of {len(paths)} photos", count == len(paths))


def answers(args: argparse.Namespace) -> None:
    """10,000 requests, 32 connections, 200 photos: each answer its own photo's, nothing grows."""
    data = photos(200)
    expected = predicted(data)
    states, statuses, wrong = [], collections.Counter(), 0
    with Served() as served:

        def client(numbers: range) -> None:
            nonlocal wrong
            connection = served.connect()
            for n in numbers:
                connection.request("POST", PATH, data[n % 200])
                answer = connection.getresponse()
                body = answer.read()
                statuses[answer.status] += 1
                wrong += answer.status != 200 or not same(json.loads(body), expected[n % 200], 1e-5)

        for begin, end in ((0, 2000), (2000, 10_000)):
            with ThreadPoolExecutor(32) as pool:
                list(pool.map(client, [range(begin + k, end, 32) for k in range(32)]))
            time.sleep(6)  # idle connections are closed
            states.append(served.state())
    grown = states[1]["rss_kb"] / states[0]["rss_kb"]
    flat = grown < 1.05 and all(states[0][k] == states[1][k] for k in ("threads", "descriptors"))
    say("answers", f"{dict(statuses)}, {wrong} wrong", wrong == 0 and set(statuses) == {200})
    say("answers", f"after 2,000: {states[0]}, after 10,000: {states[1]}", flat)


NULL = """
import sys
sys.path.insert(0, {tests!r})
from support.served import serve_nothing
serve_nothing()
"""
BARE = """
import socket, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
async def echo(request):
    await request.body()
    return Response(b"x" * 560, media_type="application/json")
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
app = Starlette(routes=[Route("/v1/predict", echo, methods=["POST"])])
config = uvicorn.Config(app, http="httptools", loop="asyncio", log_config=None, access_log=False)
uvicorn.Server(config).run([listener])
"""
FORM_HEAD = b'--xyzxyz\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'
FORM_TYPE = "multipart/form-data; boundary=xyzxyz"


def wrk(served: Served, body: bytes, kind: str, seconds: float, connections: int = 8) -> dict[str, float]:
    """Requests a second, CPU milliseconds a request and failures under wrk."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "body").write_bytes(body)
        Path(folder, "post.lua").write_text(
            f'local f = io.open("{folder}/body", "rb"); wrk.body = f:read("*a"); f:close(); wrk.method = "POST"\n'
            f'wrk.headers["Content-Type"] = "{kind}"\n'
        )
        before = served.cpu_s()
        words = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", f"{folder}/post.lua"]
        done = subprocess.run([*words, f"http://127.0.0.1:{served.port}{PATH}"], capture_output=True, text=True)
        text = done.stdout
    count = int(next(line.split()[0] for line in text.splitlines() if " requests in " in line))
    failed = sum(int(line.split()[-1]) for line in text.splitlines() if "Non-2xx" in line)
    return {"per_s": count / seconds, "cpu_ms": 1000 * (served.cpu_s() - before) / count, "failed": failed}


def overhead(args: argparse.Namespace) -> None:
    """CPU a request with an engine that does nothing, over a bare echo of the same 34 kB."""
    photo = photos(1)[0]
    form = FORM_HEAD + photo + b"\r\n--xyzxyz--\r\n"
    with Served(code=BARE) as bare, Served(code=NULL.format(tests=str(ROOT / "tests"))) as null:
        figures = collections.defaultdict(list)
        for _ in range(3):
            figures["bare"].append(wrk(bare, photo, "image/jpeg", args.seconds))
            figures["raw"].append(wrk(null, photo, "image/jpeg", args.seconds))
            figures["form"].append(wrk(null, form, FORM_TYPE, args.seconds))
    cpu = {name: statistics.median(f["cpu_ms"] for f in rounds) for name, rounds in figures.items()}
    for name, most, most_ms in (("raw", 2, 0.5), ("form", 3, 0.8)):
        ratio = cpu[name] / cpu["bare"]
        say("overhead", f"{name} {cpu[name]:.2f} CPU ms a request, {ratio:.1f} x bare ({cpu['bare']:.2f})",
            ratio <= most or cpu[name] <= most_ms)  # fmt: skip


def run_clients(served: Served, data: list[bytes], clients: int, seconds: float) -> tuple[float, list[float]]:
    """Photos a second by so many clients, and the seconds of each request."""
    times, end = [], time.monotonic() + seconds

    def client(number: int) -> None:
        connection, n = served.connect(), number
        while time.monotonic() < end:
            began = time.perf_counter()
            connection.request("POST", PATH, data[n % len(data)])
            connection.getresponse().read()
            times.append(time.perf_counter() - began)
            n += clients

    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(client, range(clients)))
    return len(times) / seconds, times


def throughput(args: argparse.Namespace) -> None:
    """16 clients over `Classifier.predict` of the same photos, in turns."""
    data = photos(64)
    for model, least in (("shipped:tiny200", 0.85), ("dla34", 0.95)):
        with contextlib.ExitStack() as stack:
            if model == "dla34":
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "dla34"
                network = dla.create_model("dla34", num_classes=1000)
                labels = [f"class {k}" for k in range(1000)]
                dla.save(network, folder, labels=labels, preprocessing=dla.Preprocessing())
                model = str(folder)
            classifier = dla.load(model, engine="openvino")
            served = stack.enter_context(Served("--model", model, "--engine", "openvino"))
            ratios = []
            for _ in range(5):
                began, count = time.perf_counter(), 0
                while time.perf_counter() - began < args.seconds:
                    count += sum(1 for _ in classifier.predict(data))
                bare = count / (time.perf_counter() - began)
                ratios.append(run_clients(served, data, 16, args.seconds)[0] / bare)
            median = statistics.median(ratios)
            say("throughput", f"{Path(model).name}: {median:.2f} of bare ({min(ratios):.2f} to {max(ratios):.2f}), "
                f"bare {bare:.0f} photos/s", median >= least)  # fmt: skip


def latency(args: argparse.Namespace) -> None:
    """One client, after many have asked: p50 over `Classifier.predict` of one photo, and p99."""
    data = photos(32)
    classifier = dla.load(engine="openvino", photos=1)
    with Served("--engine", "openvino") as served:
        run_clients(served, data, 8, 2)
        bare = []
        for photo in data * 10:
            began = time.perf_counter()
            classifier.predict(photo)
            bare.append(time.perf_counter() - began)
        times = sorted(run_clients(served, data, 1, args.seconds)[1])
    p50, p99, base = times[len(times) // 2], times[int(len(times) * 0.99)], statistics.median(bare)
    say("latency", f"p50 {1000 * p50:.1f} ms, bare {1000 * base:.1f} ms", p50 <= base + 0.001)
    say("latency", f"p99 {1000 * p99:.1f} ms", p99 <= 2 * p50)


def overload(args: argparse.Namespace) -> None:
    """Four times as many clients as there are places: 200 and 503 only, and normal a second later."""
    data, statuses, late = photos(16), collections.Counter(), []
    with Served("--queue", "16") as served:
        rate = run_clients(served, data, 8, 3)[0]
        end = time.monotonic() + args.seconds

        def client(number: int) -> None:
            connection = served.connect()
            while time.monotonic() < end:
                began = time.perf_counter()
                connection.request("POST", PATH, data[number % 16])
                answer = connection.getresponse()
                answer.read()
                statuses[answer.status] += 1
                if answer.status == 200:
                    late.append(time.perf_counter() - began)
                elif answer.getheader("Retry-After") != "1":
                    statuses["no Retry-After"] += 1

        with ThreadPoolExecutor(64) as pool:
            list(pool.map(client, range(64)))
        p99, bound = sorted(late)[int(len(late) * 0.99)], 1.2 * 16 / rate + 0.1
        say("overload", f"{dict(statuses)}", set(statuses) == {200, 503})
        say("overload", f"p99 of the answered {p99:.2f} s, 16 places at {rate:.0f}/s: {bound:.2f} s", p99 <= bound)
        time.sleep(1)
        again = run_clients(served, data, 8, 3)[0]
        say("overload", f"afterwards {again:.0f} photos/s, before {rate:.0f}", again > 0.7 * rate)


def sigterm(args: argparse.Namespace) -> None:
    """SIGTERM at 20 moments under 8 clients that keep their connections: what was sent is answered."""
    data, lost, sent = photos(8), 0, 0
    for _ in range(20):
        with Served("--drain", "0.5") as served, ThreadPoolExecutor(8) as pool:

            def client(number: int, served: Served = served) -> tuple[int, int]:
                asked = answered = 0
                connection = served.connect()
                while True:
                    try:
                        if connection.sock is None:
                            connection.connect()
                    except ConnectionRefusedError:
                        return asked, answered
                    asked += 1
                    with contextlib.suppress(ConnectionError, http.client.HTTPException):
                        connection.request("POST", PATH, data[number])
                        answered += connection.getresponse().read().startswith(b'{"schema":"dla.predict/1"')

            clients = [pool.submit(client, n) for n in range(8)]
            time.sleep(random.uniform(0.2, 1))
            os.kill(served.pid, signal.SIGTERM)
            for asked, answered in (future.result() for future in clients):
                sent, lost = sent + asked, lost + asked - answered
            code = served.process.wait(30)
            if code != 143:
                say("sigterm", f"exit code {code}", False)
    say("sigterm", f"{lost} of {sent} requests sent and not answered", lost == 0)


def reload(args: argparse.Namespace) -> None:
    """A good, a half-copied and a damaged folder under load: no request fails."""
    data, statuses, is_over = photos(8), collections.Counter(), threading.Event()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        shutil.copytree(ROOT / "src" / "dla" / "shipped" / "tiny200", folder)
        with Served("--model", str(folder)) as served, ThreadPoolExecutor(8) as pool:

            def client(number: int) -> None:
                connection = served.connect()
                while not is_over.is_set():
                    connection.request("POST", PATH, data[number])
                    answer = connection.getresponse()
                    answer.read()
                    statuses[answer.status] += 1

            clients = [pool.submit(client, n) for n in range(8)]
            counts = []
            weights = (folder / "model.safetensors").read_bytes()
            for content in (weights, weights[: len(weights) // 2], weights[:100] + b"\xff" * 100 + weights[200:]):
                (folder / "model.safetensors").write_bytes(content)
                os.kill(served.pid, signal.SIGHUP)
                time.sleep(6)
                text = served.ask("GET", "/metrics")[1].decode()
                names = ("dla_reloads_total ", "dla_reload_failures_total ")
                counts.append(tuple(int(line.split()[1]) for line in text.splitlines() if line.startswith(names)))
            is_over.set()
            for future in clients:
                future.result()
        say("reload", f"{dict(statuses)}; reloads and failures {counts}",
            set(statuses) == {200} and counts == [(1, 0), (1, 1), (1, 2)])  # fmt: skip


def early(args: argparse.Namespace) -> None:
    """413 before the body is read, seen by three clients 1,000 times each."""
    import httpx

    body, count = bytes(3 * 2**20), 1000
    with Served("--max-body", "1") as served, tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        url = f"http://127.0.0.1:{served.port}{PATH}"
        found = sum(served.ask("POST", PATH, body)[0] == 413 for _ in range(count))
        say("early", f"http.client {found} of {count}", found == count)
        with httpx.Client() as client:
            found = 0
            for _ in range(count):
                with contextlib.suppress(httpx.HTTPError):
                    found += client.post(url, content=body).status_code == 413
        say("early", f"httpx {found} of {count}", found == count)
        words = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}\n", "--data-binary", f"@{file.name}"]
        for name, extra in (("curl", []), ("curl without Expect", ["-H", "Expect:"])):
            done = (subprocess.run([*words, *extra, url], capture_output=True, text=True) for _ in range(count // 2))
            found = sum(one.stdout.strip() == "413" and one.returncode == 0 for one in done)
            say("early", f"{name} {found} of {count // 2}", found == count // 2)


def slow(args: argparse.Namespace) -> None:
    """slowhttptest with slow headers and slow bodies on 200 connections, beside a good client."""
    data = photos(4)
    for kind in ("-H", "-B"):
        with Served("--receive-timeout", "5") as served, ThreadPoolExecutor(1) as pool:
            words = ["slowhttptest", kind, "-c", "200", "-r", "100", "-i", "2", "-l", "20", "-x", "24", "-p", "3"]
            good = pool.submit(run_clients, served, data, 1, 18)
            url = f"http://127.0.0.1:{served.port}{PATH}"
            text = subprocess.run([*words, "-u", url], capture_output=True, text=True).stdout
            _, times = good.result()
            ended = re.search(r"Test ended on (\d+)", text)
            in_time = ended is not None and int(ended[1]) <= 8
            say("slow", f"{kind}: good client {len(times)} answers, slowest {max(times):.2f} s", max(times) < 2)
            say("slow", f"{kind}: all 200 slow ones closed after {ended and ended[1]} s", in_time)


def hostile(args: argparse.Namespace) -> None:
    """Long headers, lying lengths, bombs: memory flat, health within 50 ms, the next request works.

    The form of 20 MB is a form, so it gets a record with an error; all others get 4xx or are closed.
    """
    bomb = io.BytesIO()
    Image.new("1", (30_000, 30_000)).save(bomb, "PNG")
    head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
    form = head + b"Content-Type: multipart/form-data; boundary=xyz\r\nContent-Length: %d\r\n\r\n"
    part = b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    cases = {
        "a header of 60 MB": [head, b"A: ", *[b"a" * 2**20] * 60],
        "CL and TE": [head + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        "two lengths": [head + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd"],
        "a negative length": [head + b"Content-Length: -1\r\n\r\n"],
        "a length that is too long": [head + b"Content-Length: 100\r\n\r\nabc"],
        "a bomb": [head + b"Content-Length: %d\r\n\r\n" % len(bomb.getvalue()), bomb.getvalue()],
        "20 MB of CR": [form % (len(part) + 20 * 2**20 + 9), part, b"\r" * 20 * 2**20, b"\r\n--xyz--"],
        "100,000 parts": [form % (100_000 * (len(part) + 2)), (part + b"\r\n") * 100_000],
        "100,000 headers": [form % (100_000 * 6 + 7), b"--xyz\r\n", b"A: b\r\n" * 100_000],
        "33 MB in chunks": [
            head + b"Transfer-Encoding: chunked\r\n\r\n",
            *[b"100000\r\n" + bytes(2**20) + b"\r\n"] * 33,
        ],
    }
    photo = photos(1)[0]
    with Served("--receive-timeout", "3") as served:
        served.ask("POST", PATH, photo)
        for name, parts in cases.items():
            before, health, is_over = served.state()["rss_kb"], [], threading.Event()

            def probe(health: list[float] = health, is_over: threading.Event = is_over) -> None:
                while not is_over.is_set():
                    began = time.perf_counter()
                    served.ask("GET", "/v2/health/live")
                    health.append(time.perf_counter() - began)
                    time.sleep(0.01)

            thread = threading.Thread(target=probe)
            thread.start()
            answer = b""
            with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
                with contextlib.suppress(OSError):
                    for data in parts:
                        connection.sendall(data)
                with contextlib.suppress(OSError):
                    answer = connection.recv(100)
            is_over.set()
            thread.join()
            grown = (served.state()["rss_kb"] - before) / 1024
            works = served.ask("POST", PATH, photo)[0] == 200
            status = answer[9:12].decode() or "closed"
            worst = sorted(health)[int(len(health) * 0.99)]
            say("hostile", f"{name}: {status}, memory {grown:+.0f} MB, health p99 {1000 * worst:.0f} ms",
                works and (status[0] in "4c" or name == "20 MB of CR") and worst < 0.05)  # fmt: skip


def clients(args: argparse.Namespace) -> None:
    """Triton's and KServe's clients as they are, and schemathesis against /openapi.json."""
    here = Path(__file__).parent
    with Served() as served:
        url = f"127.0.0.1:{served.port}"
        for name, python in (("triton", args.triton), ("kserve", args.kserve)):
            if python is not None:
                words = [python, str(here / "serve_clients.py"), name, url, str(PHOTOS[0])]
                done = subprocess.run(words, capture_output=True, text=True)
                say("clients", f"{name}: {(done.stdout or done.stderr).strip().splitlines()[-1]}", done.returncode == 0)
        if args.schemathesis is not None:
            words = [
                args.schemathesis,
                "run",
                f"http://{url}/openapi.json",
                "--max-examples",
                "50",
                "--no-color",
                "--exclude-checks",
                "positive_data_acceptance",
            ]  # bytes that are no photo fit the description
            done = subprocess.run(words, capture_output=True, text=True)
            say("clients", f"schemathesis: {done.stdout.strip().splitlines()[-1]}", done.returncode == 0)


def peers(args: argparse.Namespace) -> None:
    """Other servers with the same `dla.load()`, one worker each, under the same load."""
    photo, here = photos(1)[0], Path(__file__).parent
    form = FORM_HEAD + photo + b"\r\n--xyzxyz--\r\n"
    rows: dict[str, Any] = {"dla serve": Served}
    for name in ("fastapi", "litserve", "bentoml"):
        rows[name] = partial(Served, script=(str(here / "serve_peers.py"), name))
    for name, start in rows.items():
        body, kind = (form, FORM_TYPE) if name == "litserve" else (photo, "image/jpeg")
        try:
            with start() as served:
                end = time.monotonic() + 60
                while served.ask("POST", PATH, body, {"Content-Type": kind})[0] != 200:
                    if time.monotonic() > end:
                        raise SystemExit("it does not answer")
                    time.sleep(0.5)
                wrk(served, body, kind, 3, 16)
                figures = wrk(served, body, kind, args.seconds, 16)
        except SystemExit as error:
            say("peers", f"{name}: not run: {str(error).strip().splitlines()[-1:]}")
            continue
        say("peers", f"{name}: {figures['per_s']:.1f} requests/s, {figures['cpu_ms']:.1f} CPU ms a request, "
            f"{figures['failed']} failed")  # fmt: skip


def disk(args: argparse.Namespace) -> None:
    """No file is created while photos of 5 MB are posted as forms."""
    body = FORM_HEAD + photos(1)[0] + bytes(5_000_000) + b"\r\n--xyzxyz--\r\n"
    with Served() as served, tempfile.NamedTemporaryFile("r") as file:
        trace = subprocess.Popen(
            ["strace", "-f", "-qq", "-e", "trace=openat,creat", "-o", file.name, "-p", str(served.pid)]
        )
        time.sleep(1)
        for _ in range(20):
            served.ask("POST", PATH, body, {"Content-Type": FORM_TYPE})
        trace.terminate()
        trace.wait()
        created = [line for line in file.read().splitlines() if "O_CREAT" in line or "creat(" in line]
    say("disk", f"{len(created)} files created {created[:1]}", not created)


def offline(args: argparse.Namespace) -> None:
    """The service in a network of its own, with loopback alone: it starts, answers, and connects to nobody."""
    code = (
        "import subprocess, sys; subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True); "
        "sys.path.insert(0, 'benchmarks'); import serve; served = serve.Served(); "
        "status = served.ask('POST', serve.PATH, serve.photos(1)[0])[0]; served.__exit__(); sys.exit(status != 200)"
    )
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    say("offline", f"exit code {done.returncode} {done.stderr.strip()[-200:]}", done.returncode == 0)


ROWS = (
    identical, answers, overhead, throughput, latency, overload, sigterm, reload, early, slow, hostile, clients, peers,
    disk, offline,
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="+", choices=["all", *(row.__name__ for row in ROWS)])
    parser.add_argument("--seconds", type=float, default=10)
    for name in ("triton", "kserve", "schemathesis"):
        parser.add_argument(f"--{name}")
    args = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, dla {dla.__version__}")
    for row in ROWS:
        if row.__name__ in args.rows or "all" in args.rows:
            row(args)


if __name__ == "__main__":
    main()
