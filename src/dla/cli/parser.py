"""The parser of one verb: flags, config files with their `DLA_<FLAG>` variables; errors are sentences."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from dla.errors import UnknownNameError, UsageError, in_words
from dla.types import DEFAULT_MODEL

__all__ = ["Parser", "default_model"]


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse's own layout, with the flag and its help on one line where they fit."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


class Parser(ArgumentParser):
    """Command line > config files in the order given > DLA_<FLAG> variables > defaults.

    A verb without a config file (`config` is its flag) has no variables either: one verb's would disturb another.
    With `prints` there is --print-config, which prints what was parsed.
    """

    def __init__(
        self, verb: str, description: str, example: str, usage: str, *, config: str | None = None, prints: bool = True
    ) -> None:
        super().__init__(
            prog=f"dla {verb}",
            description=description,
            epilog=f"example:\n{example}",
            formatter_class=_Help,
            default_env=config is not None,
            env_prefix="DLA",
            allow_abbrev=False,
            print_config="--print-config" if prints else None,
            usage=f"dla {verb} {usage}",
        )
        self.config = config
        if config is not None:
            self.flag("-q", "--quiet", action="store_true", help="no messages, only results")
            self.flag(config, action="config", metavar="FILE", help="a YAML file with any of these options")

    def read(self, words: Sequence[str]) -> Any:
        """What the words say. `parse_args` takes them in their order; here a file of options comes before the flags."""
        return self.parse_args(_files_first(words, self.config))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """One sentence and exit code 2 instead of the usage text."""
        unknown = re.search(r"nrecognized arguments: (-\S+)", message)
        if unknown is None:
            raise UsageError(in_words(message))
        flags = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
        raise UnknownNameError("option", unknown[1].split("=")[0], flags, see=f"{self.prog} --help")

    def group(self, schema: type, name: str | None, skip: set[str | int] | None = None) -> None:
        """Add an option `--name.field`, without a name `--field`, for each field of a dataclass but those in `skip`."""
        self.add_class_arguments(schema, name, skip=skip)
        group = self._action_groups[-1]
        group.title = name or schema.__name__.lower()
        for action in group._group_actions:
            if action.dest == name:  # a file for the group alone: a second way to do what the config file does
                action.help = argparse.SUPPRESS
                continue
            if action.choices is None and not isinstance(action.metavar, str):
                action.metavar = "VALUE"
            action.help = f"{(action.help or '').rstrip('.')} (default: {_shown(action.default)})"

    def flag(self, *names: str, **settings: Any) -> None:
        """Add one argument."""
        self.add_argument(*names, **settings)


def _files_first(words: Sequence[str], flag: str | None) -> list[str]:
    files: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:
        if word == flag and (value := next(left, None)) is not None:
            files += [word, value]
        else:
            (files if word.startswith(f"{flag}=") else others).append(word)
    return [*files, *others]


def _shown(default: object) -> str:
    """As YAML has it."""
    words = {None: "null", True: "true", False: "false", "": "none"}
    if isinstance(default, str | bool | None) and default in words:
        return words[default]
    return str(list(default)) if isinstance(default, tuple) else str(default)


def default_model() -> str:
    """The network that `dla predict` takes where none is named."""
    return os.environ.get("DLA_MODEL", DEFAULT_MODEL)
