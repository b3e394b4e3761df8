"""Commands in processes that have PyTorch from the start: for tests of what a command does, not of how it starts.

Each process is forked off one that has imported PyTorch and nothing of this library, which saves four seconds.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

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
    gc.freeze()  # a collection would write to, and so copy, all memory that is shared with the first process
    os.dup2(errors.fileno(), sys.stderr.fileno())
    errors.close()
    from dla.cli import main

    sys.exit(main(words))


def run_warm(*words: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """`python WORDS`, words being `-m MODULE ...` or `SCRIPT ...`, to its end; `env` is its whole environment."""
    (done,) = run_together([env], *words)
    return done


def run_together(envs: list[Mapping[str, str]], *words: str) -> list[subprocess.CompletedProcess[str]]:
    """As `run_warm`, as many processes at once as there are environments."""
    with tempfile.TemporaryDirectory() as aside:
        files = [(Path(aside, f"{i}.out"), Path(aside, f"{i}.err")) for i in range(len(envs))]
        processes = [WARM.Process(target=_python, args=(words, dict(env), file))
                     for env, file in zip(envs, files, strict=True)]  # fmt: skip
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        return [
            subprocess.CompletedProcess(words, process.exitcode or 0, out.read_text("utf-8"), err.read_text("utf-8"))
            for process, (out, err) in zip(processes, files, strict=True)
        ]


def _python(words: tuple[str, ...], env: dict[str, str], files: tuple[Path, Path]) -> None:
    become(env, files)
    run_python(words)


def become(env: dict[str, str], files: tuple[Path, Path]) -> None:
    """A process with this environment, and these files for what it prints on stdout and stderr."""
    gc.freeze()
    os.environ.clear()
    os.environ.update(env)
    for stream, file in zip((sys.stdout, sys.stderr), files, strict=True):
        with file.open("ab") as opened:
            os.dup2(opened.fileno(), stream.fileno())


def run_python(words: tuple[str, ...]) -> None:
    if words[0] == "-m":
        sys.argv = list(words[1:])
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = list(words)
        runpy.run_path(words[0], run_name="__main__")
