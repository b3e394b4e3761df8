"""Print a script that completes commands, options, their values and files. Load it in every new shell:

  bash   eval "$(dla completion bash)" in ~/.bashrc
  zsh    dla completion zsh > DIR/_dla, with a folder DIR of your $fpath

example:
  dla completion bash > ~/.local/share/bash-completion/completions/dla
  dla completion zsh > ~/.zfunc/_dla
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from dla.cli import COMMANDS
from dla.cli.parser import Parser, about
from dla.errors import UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable

# Functions that complete names or files, for metavars of flags whose value may be either.
_FUNCTION = {
    "bash": '{name}() {{ compgen -W "{words}" -- "$1"; compgen -f -- "$1"; }}',
    "zsh": '{name}() {{ _alternative "names:name:({words})" "files:file:_files" }}',
}


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("completion", *about(__doc__), "bash|zsh")
    parser.flag("shell", metavar="{bash,zsh}", type=Literal["bash", "zsh"], help="the shell that reads the script")
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)
    try:
        import shtab
    except ImportError:
        raise UnavailableError("dla completion needs shtab: pip install shtab") from None
    functions = [
        _FUNCTION[args.shell].format(name=_function(metavar), words=" ".join(words))
        for metavar, words in _names().items()
    ]
    print(shtab.complete(_all_commands(), args.shell, preamble="\n".join(functions)), end="")
    return 0


def _all_commands() -> argparse.ArgumentParser:
    """Return one parser of all commands; to run one, only its own is built."""
    root = argparse.ArgumentParser("dla", add_help=False)
    commands = root.add_subparsers()
    for name, what in COMMANDS.items():
        module = importlib.import_module(f"dla.cli.{name}")
        if hasattr(module, "build_parser"):
            _add(commands, name, what, module.build_parser)
        else:
            inner = commands.add_parser(name, help=what, add_help=False).add_subparsers()
            for word, purpose in module.SUBCOMMANDS.items():
                _add(inner, word, purpose, partial(module.build_subparser, word))
    return root


def _add(commands: Any, name: str, what: str, build: Callable[[], Parser]) -> None:
    parser = build()
    for action in parser._actions:
        choices = parser.choices_of(action.dest)
        if choices:
            action.choices = choices
        elif completer := _completer(action.metavar):
            action.complete = completer  # type: ignore[attr-defined]  # shtab's attribute
    commands.add_parser(name, help=what, parents=[parser], add_help=False)


def _completer(metavar: str | tuple[str, ...] | None) -> Mapping[str, Any] | None:
    """Return what completes a value with this placeholder, by shell."""
    import shtab

    if metavar in _names():
        return dict.fromkeys(_FUNCTION, _function(str(metavar)))
    if metavar == "DIR":
        return shtab.DIRECTORY
    return shtab.FILE if metavar in ("FILE", "IMAGE", "OUT", "DATA") else None


def _function(metavar: str) -> str:
    return f"_dla_{metavar.lower()}"


def _names() -> dict[str, Iterable[str]]:
    """Return the known names of a value, by its placeholder."""
    from dla.models.registry import TABLE
    from dla.training.recipe_files import shipped_recipes
    from dla.weights.spec import shipped_names

    models = [*TABLE, *(f"shipped:{name}" for name in shipped_names())]
    return {"MODEL": models, "RECIPE": shipped_recipes()}
