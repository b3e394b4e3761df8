"""Slow, endless and wrong requests; answers that come before the body has; and what uvicorn alone does with them."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest
import uvicorn

from support.served import Running, colored, serving, wait_until

RED = colored(200, 10, 10)
LIMIT = 0.25  # seconds for a request to come


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving(max_body=4, receive_timeout=LIMIT, max_connections=60, keep_alive=0.3) as running:
        yield running


@contextmanager
def plain_uvicorn() -> Iterator[tuple[int, uvicorn.Server]]:
    """A service of uvicorn alone: it reads what comes to /v1/predict, and answers 413, at once elsewhere."""

    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        while scope["path"] == "/v1/predict" and (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]})
        await send({"type": "http.response.body", "body": b"{}"})

    config = uvicorn.Config(app, http="httptools", log_config=None, lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        wait_until(lambda: server.started)
        yield int(listener.getsockname()[1]), server
        server.should_exit = server.force_exit = True
        thread.join(10)


def exchange(port: int, *parts: bytes, wait_s: float = 10) -> bytes | None:
    """What the server answers until it closes; None if it has not closed after `wait_s`."""
    with socket.create_connection(("127.0.0.1", port), timeout=wait_s) as connection:
        with suppress(ConnectionError):
            for part in parts:
                connection.sendall(part)
        answer = b""
        try:
            while part := connection.recv(65536):
                answer += part
        except ConnectionError:
            return answer
        except TimeoutError:
            return None
        return answer


HEAD = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\n"
LONG_HEADER = (HEAD, b"A: " + b"a" * 200_000)
SLOW = {
    "no byte": b"",
    "half a header": HEAD,
    "half a body": HEAD + b"Content-Length: 100\r\n\r\nhalf",
    "half a chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nha",
    "line ends": b"\r\n\r\n",
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW)
def test_a_request_that_does_not_come_is_closed(service: Running, sent: bytes) -> None:
    began = time.monotonic()
    answer = exchange(service.port, sent)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"slow_request"' in answer
    assert LIMIT * 0.9 < time.monotonic() - began < LIMIT + 10


def test_a_slow_request_after_an_answer_is_closed(service: Running) -> None:
    answer = exchange(service.port, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"GET /v2 HT")
    assert answer is not None
    assert answer.count(b"HTTP/1.1 200") == answer.count(b"HTTP/1.1 408") == 1


def test_slow_clients_leave_the_others_alone(service: Running) -> None:
    with closing(service.connect()) as good:
        slow = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(50)]
        for connection in slow:
            connection.sendall(SLOW["half a body"])
        for _ in range(20):
            good.request("POST", "/v1/predict", RED)
            assert good.getresponse().read()
        for connection in slow:
            connection.settimeout(5)
            assert connection.recv(1000).startswith(b"HTTP/1.1 408")
            connection.close()


@pytest.mark.parametrize("name", ["half a header", "half a body"])
def test_uvicorn_alone_waits_for_a_request(name: str) -> None:
    with plain_uvicorn() as (port, _), socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(SLOW[name])
        connection.settimeout(2 * LIMIT)
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.parametrize(
    "sent",
    [
        LONG_HEADER,
        (HEAD, b"A: " + b"a" * 70_000 + b"\r\n\r\n"),
        (HEAD, *[b"A: " + b"a" * 1000 + b"\r\n"] * 100),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n",),
        (HEAD, b"Transfer-Encoding: chunked\r\n\r\n", *[b"1" + b";" + b"a" * 100_000] * 3),
        (HEAD, b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"A: " + b"a" * 300_000),
    ],
    ids=["one header", "one whole header", "many headers", "an address", "a chunk's extension", "a trailer"],
)
def test_a_head_has_a_limit(service: Running, sent: tuple[bytes, ...]) -> None:
    answer = exchange(service.port, *sent)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 431 ")
    assert b'"code":"long_header"' in answer


def test_uvicorn_alone_takes_a_header_of_any_length() -> None:
    with plain_uvicorn() as (port, _):
        assert exchange(port, *LONG_HEADER, wait_s=LIMIT) is None
        answer = exchange(port, *LONG_HEADER, b"\r\n\r\n")
        assert answer is not None
        assert answer.startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "sent",
    [
        b"NO SENSE\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /v1/predict HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        b"POST /v1/predict HTTP/1.1\r\nHost: a\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n",
        b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(service: Running, sent: bytes) -> None:
    answer = exchange(service.port, sent)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 4")
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["code"] in ("bad_request", "not_found", "method")
    assert service.record("/v1/predict", RED)


@pytest.mark.parametrize("size", [4 * 2**20 + 1, 40 * 2**20])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_that_is_too_large_is_told(service: Running, size: int, is_chunked: bool) -> None:
    parts = iter([bytes(2**20)] * (size // 2**20) + [bytes(size % 2**20)])
    status, headers, answer = service.ask("POST", "/v1/predict", parts if is_chunked else bytes(size))
    assert (status, json.loads(answer)["error"]["code"]) == (413, "body_too_large")
    assert headers.get("connection") == "close"


def test_a_body_at_the_limit_is_taken(service: Running) -> None:
    status, _, answer = service.ask("POST", "/v1/predict", RED + bytes(4 * 2**20 - len(RED)))
    assert (status, len(json.loads(answer)["predictions"])) == (200, 5)


def test_an_early_answer_with_a_short_rest_keeps_the_connection(service: Running) -> None:
    with closing(service.connect()) as connection:
        for _ in range(20):
            connection.request("POST", "/v1/nothing", bytes(900_000))
            assert connection.getresponse().read().startswith(b'{"schema":"dla.error/1"')
            socket_before = connection.sock
            connection.request("POST", "/v1/predict", RED)
            assert b"predictions" in connection.getresponse().read()
            assert connection.sock is socket_before


def test_an_early_answer_reaches_the_client_each_time(service: Running) -> None:
    """A connection that is closed while the client sends would be reset, and the answer lost."""
    body = bytes(8 * 2**20)
    for _ in range(30):
        assert service.ask("POST", "/v1/predict", body)[0] == 413


def test_uvicorn_alone_loses_an_early_answer() -> None:
    body, lost = bytes(8 * 2**20), 0
    with plain_uvicorn() as (port, _):
        for _ in range(10):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("POST", "/", body)
                connection.getresponse().read()
            except (ConnectionError, http.client.HTTPException):
                lost += 1
            connection.close()
    assert lost > 0


def test_a_client_that_asks_first_is_answered_before_it_sends(service: Running) -> None:
    head = HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n"
    refused = exchange(service.port, head % (9 * 2**20))
    assert refused is not None
    assert refused.startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(("127.0.0.1", service.port), timeout=5) as connection:
        connection.sendall(head % len(RED))
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(RED)
        assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_requests_in_one_packet_are_answered_in_order(service: Running) -> None:
    one = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    head = b"HEAD /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    two = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = exchange(service.port, one + head + one + two)
    assert answer is not None
    assert answer.count(b'{"live":true}') == 2
    assert answer.count(b"HTTP/1.1 200 OK") == 4
    assert answer.rpartition(b"\r\n\r\n")[2].startswith(b'{"name":"dla"')


@pytest.mark.parametrize("parts", [1, 2, 300])
def test_a_wish_for_http2_is_passed_over(service: Running, parts: int) -> None:
    """Java's client asks so by default; uvicorn alone would hand over an empty body."""
    wish = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
    end = b"GET /v2 HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    data = HEAD + wish + b"Content-Length: %d\r\n\r\n" % len(RED) + RED + end
    step = -(-len(data) // parts)
    answer = exchange(service.port, *(data[at : at + step] for at in range(0, len(data), step)))
    assert answer is not None
    assert answer.count(b"dla.predict/1") == answer.count(b'"name":"dla"') == 1


@pytest.mark.parametrize("rest", [b"NO SENSE\r\n\r\n", b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", b"GET /v2 HT"])
def test_a_request_is_answered_whatever_comes_behind_it(service: Running, rest: bytes) -> None:
    request = HEAD + b"Content-Length: %d\r\n\r\n" % len(RED) + RED
    answer = exchange(service.port, request + rest)
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.count(b"dla.predict/1") == 1


def test_a_connection_too_many_is_refused_with_503(service: Running) -> None:
    wait_until(lambda: not service.service.server.server_state.connections)
    some = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(60)]
    wait_until(lambda: len(service.service.server.server_state.connections) == 60)
    answer = exchange(service.port, b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer is not None
    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1\r\n" in answer
    for connection in some:
        connection.close()
    wait_until(lambda: not service.service.server.server_state.connections)
    assert service.record("/v1/predict", RED)


def test_a_client_that_never_reads_is_let_go() -> None:
    """Its answer, the page or metrics, waits in memory only as long as others' requests."""
    with serving(receive_timeout=LIMIT) as running:
        with socket.create_connection(("127.0.0.1", running.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            request = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with suppress(ConnectionError, BlockingIOError):
                connection.setblocking(False)
                for _ in range(3000):
                    connection.send(request)
                    time.sleep(0)
            wait_until(lambda: not running.service.server.server_state.connections, 10 * LIMIT + 5)
        assert running.ask("GET", "/v2")[0] == 200


def test_connections_leave_nothing_behind(service: Running) -> None:
    """Half a request and a reset, many times: no task, no connection, no photo stays."""
    for n in range(200):
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close with a reset
        connection.sendall((SLOW["half a body"], HEAD + b"Content-Length: %d\r\n\r\n" % len(RED) + RED)[n % 2])
        connection.close()
    state = service.service.server.server_state
    wait_until(lambda: not state.connections and not state.tasks)
    wait_until(lambda: service.service.queue.photos == service.service.queue.body_bytes == 0)
    assert service.record("/v1/predict", RED)
