"""From the socket to the last answer: signals, draining, and what happens to requests that come at the end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from dla.cli import main
from dla.errors import DamagedError, UsageError
from dla.options import ServeOptions
from dla.serving.listen import address_of, open_socket
from serving.test_http import plain_uvicorn
from support.served import MeanEngine, Running, colored, mean_classifier, serving, wait_until

RED = colored(200, 10, 10)
ROOT = Path(__file__).parents[1]
DRAIN = 0.6


def terminate(running: Running) -> None:
    """What SIGTERM does, without a signal: the service is in a thread."""
    server, loop = running.service.server, running.service.queue.loop
    loop.call_soon_threadsafe(server.handle_exit, signal.SIGTERM, None)


def test_requests_are_answered_while_the_service_drains() -> None:
    with serving(drain=DRAIN, grace=5.0) as running, closing(running.connect()) as open_before:
        open_before.connect()
        terminate(running)
        wait_until(lambda: running.ask("GET", "/v2/health/ready")[0] == 503, DRAIN)
        assert json.loads(running.ask("GET", "/v2/health/ready")[2]) == {"ready": False, "reason": "draining"}
        open_before.request("POST", "/v1/predict", RED)
        answer = open_before.getresponse()
        assert (answer.status, answer.getheader("Connection")) == (200, "close")
        assert running.record("/v1/predict", RED)["predictions"]
        wait_until(lambda: not can_connect(running.port), DRAIN + 2)


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionError:
        return False
    return True


def test_uvicorn_alone_loses_a_request_that_is_under_way() -> None:
    with plain_uvicorn() as (port, server), socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        wait_until(lambda: bool(server.server_state.connections))
        server.should_exit = True
        assert connection.recv(1) == b""  # closed, half a request in


def test_nothing_that_was_sent_is_lost_at_the_end() -> None:
    engine = MeanEngine(lambda pixels: time.sleep(0.02))
    with serving(mean_classifier(engine), drain=DRAIN, grace=5.0) as running, ThreadPoolExecutor(8) as pool:

        def client(_: int) -> tuple[int, int]:
            sent = answered = 0
            connection = running.connect()
            while True:
                try:
                    if connection.sock is None:
                        connection.connect()
                except ConnectionRefusedError:
                    return sent, answered
                sent += 1
                connection.request("POST", "/v1/predict", RED)
                answer = connection.getresponse()
                answered += answer.status == 200 and bool(answer.read())

        clients = pool.map(client, range(8))
        time.sleep(0.2)
        terminate(running)
        counts = list(clients)
    assert all(sent == answered > 0 for sent, answered in counts), counts


def test_a_request_that_does_not_end_is_cut_off_after_grace() -> None:
    is_free = threading.Event()
    network = mean_classifier(MeanEngine(lambda pixels: None if pixels.max() == 0 else is_free.wait(20) and None))
    with serving(network, drain=0.1, grace=0.5) as running, ThreadPoolExecutor(1) as pool:
        stuck = pool.submit(running.ask, "POST", "/v1/predict", RED)
        wait_until(lambda: running.service.queue.photos == 1)
        began = time.monotonic()
        terminate(running)
        status, headers, answer = stuck.result()
        assert time.monotonic() - began < 2
        assert (status, json.loads(answer)["error"]["code"], headers["connection"]) == (503, "draining", "close")
        is_free.set()


@contextmanager
def process(seconds: float = 0.0, may_reload: bool = True) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A service in a process of its own, and its port."""
    code = f"from support.served import serve_slowly; serve_slowly({seconds}, {may_reload})"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as started:
        try:
            assert started.stdout is not None
            yield started, int(started.stdout.readline())
        finally:
            started.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_the_requests_in_work(number: signal.Signals) -> None:
    with process(0.6) as (started, port), ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(Running(None, port).record, "/v1/predict", RED)  # type: ignore[arg-type]
        time.sleep(0.3)
        started.send_signal(number)
        assert waiting.result()["predictions"]
        assert started.wait(10) == -number  # raised again at the end; the command line makes it 128 + number


def test_a_second_signal_ends_the_process_at_once() -> None:
    with process(8) as (started, port), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n")
        started.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        began = time.monotonic()
        started.send_signal(signal.SIGTERM)
        started.wait(10)
        assert time.monotonic() - began < 4


def test_hanging_up_loads_the_model_anew() -> None:
    with process() as (started, port):
        running = Running(None, port)  # type: ignore[arg-type]
        started.send_signal(signal.SIGHUP)
        wait_until(lambda: running.metric("dla_reloads_total") == 1)
        assert running.record("/v1/predict", RED)["predictions"]


def test_hanging_up_a_terminal_ends_the_process() -> None:
    with process(may_reload=False) as (started, _):
        started.send_signal(signal.SIGHUP)
        assert started.wait(10) == -signal.SIGTERM


def test_the_command_prints_one_line_and_ends_with_143(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "dla", "serve", "--uds", str(tmp_path / "s"), "--drain", "0"]
    with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as started:
        assert started.stdout is not None
        assert started.stdout.readline() == f"unix:{tmp_path / 's'}\n".encode()
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(tmp_path / "s"))
            head = f"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(RED)}\r\n\r\n"
            connection.sendall(head.encode() + RED)
            assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")
        started.terminate()
        output, errors = started.communicate(timeout=20)
    assert (started.returncode, output) == (143, b"")
    assert errors.decode().splitlines()[-1] == "dla: stopping: new requests are answered for 0 s"
    assert not (tmp_path / "s").exists()


def test_a_model_that_does_not_load_ends_the_service() -> None:
    def load(options: ServeOptions) -> None:
        raise DamagedError("the weights are no weights")

    with pytest.raises(AssertionError, match="the weights are no weights"), serving(load=load):  # type: ignore[arg-type]
        pass


def test_a_port_in_use_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"dla: port {port} of 127.0.0.1: Address already in use.")
    assert f"sport = :{port}" in message


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--host", "no.such.name.invalid"], "Give an address of this machine"),
        (["--host", "192.0.2.1"], "192.0.2.1"),
        (["--port", "70000"], "--port is 70000. Allowed: 0 to 65,535"),
        (["--queue", "0"], "--queue is 0"),
        (["--token-file", "/none"], "No such file"),
        (["--cors", "*", "--token-file", "TOKEN"], "Name the origins"),
        (["--modle", "x"], "--model"),
        (["--model", "dla61"], "dla60"),
    ],
)
def test_wrong_usage_ends_at_once(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token = tmp_path / "token"
    token.write_text("0123456789abcdef")
    token.chmod(0o600)
    flags = [str(token) if flag == "TOKEN" else flag for flag in flags]
    assert main(["serve", "--port", "0", *flags]) == 2
    assert words in capsys.readouterr().err


def test_a_unix_socket_is_for_its_owner_and_group(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with open_socket(ServeOptions(uds=path)) as listener:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        assert address_of(listener, ServeOptions(uds=path)) == f"unix:{path}"
        with pytest.raises(UsageError, match="in use"):
            open_socket(ServeOptions(uds=path))
    with open_socket(ServeOptions(uds=path)):  # the file of a process that was killed
        pass


def test_addresses_are_as_a_browser_takes_them() -> None:
    for host, shown in (("127.0.0.1", "127.0.0.1"), ("localhost", "localhost")):
        options = ServeOptions(host=host, port=0)
        with open_socket(options) as listener:
            assert address_of(listener, options) == f"http://{shown}:{listener.getsockname()[1]}"
