"""Commands in processes that have PyTorch from the start: for tests of what a command does, not of how it starts.

Each process is forked off one that has imported PyTorch and nothing of this library, which saves four seconds.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from multiprocessing.connection import Connection

WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(["torch", "torch._dynamo"])  # the second is what an optimizer imports


class WarmCommand:
    """`dla WORDS` as `subprocess.Popen` has it, with what is written on standard error to read."""

    def __init__(self, words: list[str]) -> None:
        reader, writer = WARM.Pipe(duplex=False)
        self.process = WARM.Process(target=_run, args=(words, writer))
        self.process.start()
        writer.close()
        self.stderr = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
        reader.close()
        assert self.process.pid is not None
        self.pid = self.process.pid

    def __enter__(self) -> WarmCommand:
        return self

    def __exit__(self, *error: object) -> None:
        self.stderr.close()
        self.wait()

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int:
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()


def _run(words: list[str], errors: Connection) -> None:
    os.dup2(errors.fileno(), sys.stderr.fileno())
    errors.close()
    from dla.cli import main

    sys.exit(main(words))
