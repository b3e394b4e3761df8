"""`dla models`."""

from __future__ import annotations

from dla.cli.parser import Parser
from dla.nets.table import TABLE, Row


def run(words: list[str]) -> int:
    about = "List the networks: size, work and published accuracy on ImageNet-1k."
    Parser("models", about, "  dla models", "").parse_args(words)
    print(f"{'network':<16}{'params':>9}{'GMACs':>8}{'top-1':>8}{'top-5':>8}   weights")
    for r in TABLE.values():
        print(_line(r))
    return 0


def _line(r: Row) -> str:
    accuracy = f"{r.top1:8.1f}{r.top5:8.1f}" if r.top1 is not None else f"{'':16}"
    licence = "licence unknown" if r.licence == "unknown" else r.licence
    weights = f"{r.tag}   {licence}" if r.tag else "none"
    return f"{r.name:<16}{r.params / 1e6:7.1f} M{r.macs / 1e9:8.2f}{accuracy}   {weights}"
