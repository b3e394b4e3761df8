"""Runs the blocks of one page in order, in this process, which stands in a folder with cat.jpg and photos/.

Python blocks share their names, as a reader's session would. Of a bash block each line runs: `dla` here, what has a
pipe in a shell. `dla serve` goes on to the end of the page, on a port of its own.
"""

import gc
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

# Lines that need the network or hours; test_blocks.py holds them against Makefile and pyproject.toml.
NOT_RUN = re.compile(
    r"(pip (install|wheel) |make |python3? -m venv |\. \.venv/bin/activate|python (benchmarks|examples|tools)/).*"
)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of each block."""
    yield from BLOCK.findall(page.read_text(encoding="utf-8"))


SERVED = "http://127.0.0.1:8080"  # where the page says that its service is


def serve(words: list[str], services: ExitStack) -> str:
    """Start a service; its address once it answers."""
    started = services.enter_context(subprocess.Popen([*words, "--port", "0"], stdout=subprocess.PIPE, text=True))
    services.callback(started.terminate)
    assert started.stdout is not None
    return started.stdout.readline().strip()


def run_line(line: str) -> None:
    words = [os.path.expanduser(word) for word in shlex.split(line, comments=True)]
    if re.search(r"[|>]", line):
        subprocess.run(["bash", "-o", "pipefail", "-c", line], check=True)
    elif words[:2] == ["dla", "train"]:  # hours: that it is understood must do
        code([*words[1:], "--print-config"])
    elif words[:2] == ["dla", "bench"] or "int8" in words:  # minutes, pages run beside each other; hundreds of photos
        understand(*words[1:])
    elif words and words[0] == "dla":
        code(words[1:])
    elif words[:1] == ["curl"]:
        subprocess.run([*words, "--fail", "--silent"], check=True)
    elif words[:1] == ["python"] and not NOT_RUN.fullmatch(line):
        subprocess.run([sys.executable, *words[1:]], check=True)
    elif words and not NOT_RUN.fullmatch(line):
        raise SystemExit(f"nobody runs this line: {line}")


def understand(command: str, *words: str) -> None:
    importlib.import_module(f"dla.cli.{command}").build_parser().parse_args(list(words))


def code(words: list[str]) -> None:
    from dla.cli import main

    try:
        found = main(words)
    except SystemExit as stop:
        found = int(stop.code or 0)
    if found != 0:
        raise SystemExit(f"dla {shlex.join(words)}: exit code {found}")


def run(page: Path) -> int:
    names: dict[str, object] = {"__name__": "__main__"}
    count, address = 0, SERVED
    with ExitStack() as services:
        for language, text in blocks(page):
            text = text.replace(SERVED, address)
            if language == "python":
                exec(compile(text, f"{page.name}, block {count + 1}", "exec"), names)
            elif language == "bash":
                for line in re.sub(r"\\\n\s*", " ", text).splitlines():
                    if line.startswith("dla serve "):
                        address = serve(shlex.split(line, comments=True), services)
                    else:
                        run_line(line)
            else:
                continue
            count += 1
    return count


def run_alone(page: Path, folder: Path, env: dict[str, str], log: Path) -> None:
    """Be a process for this page alone: its folder, its environment, and `log` for what it prints."""
    gc.freeze()  # as in support.warm
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    with log.open("wb") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    print(f"{run(page)} blocks ran", flush=True)
