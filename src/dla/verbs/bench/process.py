"""The side of a benchmark that tells the arms when to run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from dla.errors import CheckError, DlaError, UnavailableError, UsageError
from dla.verbs.bench.arm import Arm

__all__ = ["Running", "Turn"]

_BY_EXIT_CODE = {kind.exit_code: kind for kind in (DlaError, UsageError, UnavailableError, CheckError)}


@dataclass(frozen=True, slots=True)
class Turn:
    """The seconds of each call of one turn, and the process's largest memory so far in bytes."""

    seconds: tuple[float, ...]
    memory: int | None


class Running:
    """An arm that is being started; `wait` for it before its first turn. A context: at its end the process ends.

    `cache` is the folder for compiled networks in place of the user's.
    """

    def __init__(self, arm: Arm, cache: str | None = None) -> None:
        self.arm = arm
        self.said = tempfile.TemporaryFile()  # noqa: SIM115  # what its libraries say, in case that it ends too early
        env = os.environ | ({"DLA_CACHE": cache} if cache else {})
        # -P: a file in the current folder that is called like a module is not imported
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "dla.verbs.bench.arm", json.dumps(asdict(arm))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.said, env=env, text=True, encoding="utf-8",
        )  # fmt: skip

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.said):
            if file is not None:
                with suppress(BrokenPipeError):
                    file.close()

    def wait(self) -> None:
        """Until it is ready.

        Raises:
            DlaError: it cannot run here; of the kind, and with the message, that it has by itself.
        """
        answer = self._answer()
        if answer:
            raise _BY_EXIT_CODE[answer["exit_code"]](answer["message"])

    def turn(self) -> Turn:
        """Let it run for one turn."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write("\n")
            self.process.stdin.flush()
        answer = self._answer()
        return Turn(tuple(answer["seconds"]), answer["memory"])

    def _answer(self) -> Mapping[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)  # type: ignore[no-any-return]

    def _ended(self) -> DlaError:
        code = self.process.wait()
        self.said.seek(0)
        last = self.said.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        return DlaError(f"the process that ran {self.arm.engine} {how}" + (f": {last}" if last else ""))
