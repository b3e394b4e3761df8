"""The processes below another one, and the TCP sockets that they have."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

LISTEN = "0A"


def descendants(process: int) -> set[int]:
    """All processes below one, and those in its session: Ray's detach themselves."""
    session = _stat(process)[3]
    below = {process}
    found = {int(p.name): _stat(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdigit()}
    while more := {n for n, s in found.items() if s and n not in below and (int(s[1]) in below or s[3] == session)}:
        below |= more
    return below


def _stat(process: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return []


def sockets(processes: set[int]) -> Iterator[tuple[str, str, str]]:
    """The local address, the remote one and the state of each TCP socket of these processes."""
    inodes = set()
    for process in processes:
        with suppress(OSError):
            for link in Path(f"/proc/{process}/fd").iterdir():
                with suppress(OSError):
                    inodes.add(str(link.readlink()))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if f"socket:[{words[9]}]" in inodes:
                yield _address(words[1]), _address(words[2]), words[3]


def _address(text: str) -> str:
    number = bytes.fromhex(text.partition(":")[0])
    words = b"".join(number[i : i + 4][::-1] for i in range(0, len(number), 4))
    return str(ipaddress.ip_address(words))


def is_loopback(address: str) -> bool:
    one = ipaddress.ip_address(address)
    mapped = getattr(one, "ipv4_mapped", None)
    return (mapped or one).is_loopback
