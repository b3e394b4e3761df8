"""What the bits of a run depend on besides its recipe and its photos; recorded in run.json."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from dla.verbs.ranks import Ranks

__all__ = ["change", "circumstances"]

PACKAGES = ("dla", "torch", "numpy", "pillow", "kornia")


def circumstances(device: torch.device, ranks: Ranks) -> dict[str, Any]:
    """The command, the versions of what computes, and the machine."""
    return {
        "command": sys.argv,
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES},
        "machine": {
            "device": device.type,
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "processes": ranks.world,
            "system": platform.platform(),
        },
    }


def change(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """What differs of versions and machine, and what that means, in a sentence; None where nothing does."""
    differences = [
        f"{name} {'were' if name.endswith('s') else 'was'} {old}, now {now[part].get(name)}"
        for part in ("versions", "machine")
        for name, old in before.get(part, {}).items()
        if now[part].get(name) != old
    ]
    if not differences:
        return None
    return f"{'; '.join(differences)}: the last bits may differ from those of a run that nothing interrupted"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
