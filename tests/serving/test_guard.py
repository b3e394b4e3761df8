"""Who may ask: names in Host, pages of other origins, and the token."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from dla.errors import UsageError
from dla.options import ServeOptions
from dla.serving.guard import Guard, is_open_address, read_token
from support.served import Running, colored, serving

RED = colored(200, 10, 10)
TOKEN = "0123456789abcdef0123"


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with serving(allow_host=("photos.example",), cors=("https://page.example",), root_path="/dla") as running:
        yield running


def code(service: Running, method: str = "POST", path: str = "/v1/predict", **headers: str) -> str:
    """The code of the error, "" if there is none."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    status, _, answer = service.ask(method, path, RED if method == "POST" else None, named)
    return "" if status == 200 else str(json.loads(answer)["error"]["code"])


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:80", "localhost.", "127.0.0.1:1", "[::1]:80", "10.1.2.3", "photos.example:443"]
)
def test_names_and_addresses_of_the_service_pass(service: Running, host: str) -> None:
    assert code(service, Host=host) == ""


@pytest.mark.parametrize(
    "host",
    ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "[evil]", "x"],
)
def test_another_name_is_refused_except_for_health(service: Running, host: str) -> None:
    assert code(service, Host=host) == "unknown_host"
    assert code(service, Host=host, Origin=f"http://{host}") == "unknown_host"
    assert code(service, "GET", "/", Host=host) == "unknown_host"
    assert code(service, "OPTIONS", Host=host, Access_Control_Request_Method="POST", Origin="https://page.example") == (
        "unknown_host"
    )
    assert code(service, "GET", "/v2/health/ready", Host=host) == ""


def test_a_page_of_another_origin_may_not_ask(service: Running) -> None:
    own = f"127.0.0.1:{service.port}"
    assert code(service, Origin=f"http://{own}") == ""
    assert code(service, Origin=f"https://{own}", Sec_Fetch_Site="same-origin") == ""
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", f"http://{own}.evil.example"):
        assert code(service, Origin=origin) == "origin"
    assert code(service, Sec_Fetch_Site="cross-site") == "origin"
    assert code(service, Sec_Fetch_Site="none") == ""


def test_a_page_of_an_allowed_origin_may_ask(service: Running) -> None:
    headers = {"Origin": "https://page.example", "Sec-Fetch-Site": "cross-site"}
    status, given, _ = service.ask("POST", "/v1/predict", RED, headers)
    assert (status, given["access-control-allow-origin"]) == (200, "https://page.example")
    status, given, _ = service.ask("POST", "/v1/predict?topj=1", RED, headers)
    assert (status, given["access-control-allow-origin"]) == (400, "https://page.example")
    asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
    status, given, _ = service.ask("OPTIONS", "/v1/predict", None, asked)
    assert (status, "POST" in given["access-control-allow-methods"]) == (200, True)
    status, given, _ = service.ask("OPTIONS", "/v1/predict", None, asked | {"Origin": "https://evil.example"})
    assert (status, "access-control-allow-origin" in given) == (400, False)


def test_a_proxy_may_show_the_service_under_a_path(service: Running) -> None:
    assert json.loads(service.ask("GET", "/openapi.json")[2])["servers"] == [{"url": "/dla"}]
    assert service.metric('dla_requests_total{route="predict",code="200"}') > 0


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    path.chmod(0o600)
    return path


def test_a_token_is_wanted_for_all_but_health_and_the_page(token_file: Path) -> None:
    with serving(token_file=str(token_file)) as service:
        good = {"Authorization": f"Bearer {TOKEN}"}
        for method, path in (("POST", "/v1/predict"), ("GET", "/v1/model"), ("GET", "/metrics"), ("GET", "/v2")):
            assert code(service, method, path) == "no_token" if path != "/v2" else True
            assert service.ask(method, path, RED)[0] == 401
            assert service.ask(method, path, RED, {"Authorization": f"Bearer {TOKEN}x"})[0] == 401
            assert service.ask(method, path, RED, {"Authorization": TOKEN})[0] == 401
            assert service.ask(method, path, RED, good)[0] == 200
        assert service.ask("POST", "/v1/predict", RED)[1]["www-authenticate"] == "Bearer"
        for path in ("/", "/v2/health/live", "/v2/health/ready"):
            assert service.ask("GET", path)[0] == 200


def test_a_token_is_read_again(token_file: Path) -> None:
    guard = Guard(ServeOptions(token_file=str(token_file)))
    token_file.write_text("another-token-of-16")
    guard.read_token_again()
    assert guard.token == b"another-token-of-16"
    token_file.write_text("short")
    with pytest.raises(UsageError, match="16 to 4,096"):
        guard.read_token_again()
    assert guard.token == b"another-token-of-16"


@pytest.mark.parametrize(
    ("text", "mode", "words"),
    [
        (TOKEN, 0o644, "other users can read it"),
        ("", 0o600, "16 to 4,096"),
        ("two words that are long", 0o600, "one word"),
        ("ü" * 20, 0o600, "one word"),
        ("x" * 5000, 0o600, "16 to 4,096"),
    ],
)
def test_a_token_that_cannot_be_used_is_told(tmp_path: Path, text: str, mode: int, words: str) -> None:
    path = tmp_path / "token"
    path.write_text(text)
    os.chmod(path, mode)
    with pytest.raises(UsageError, match=words):
        read_token(str(path))


def test_an_address_that_others_reach_is_known() -> None:
    assert [is_open_address(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "name")] == (
        [False] * 3 + [True] * 3
    )
