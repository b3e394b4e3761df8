"""The parser of one command: flags, option files and `DLA_<FLAG>` variables; errors are sentences."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentParser

from dla.errors import UnknownNameError, UsageError
from dla.options import check_range
from dla.types import DEFAULT_MODEL

MODEL_HELP = "a network's name (see dla models), a model folder, or a .safetensors or .pth file"
WIDTH = 100  # of help and tables, in a terminal at least as wide


class _Help(argparse.RawDescriptionHelpFormatter):
    """argparse's layout in the terminal's width, with a flag and its help on one line if they fit."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=min(WIDTH, shutil.get_terminal_size().columns))

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Fill paragraphs, except those with an indented line, such as a list or an example."""
        filled = super(argparse.RawDescriptionHelpFormatter, self)._fill_text
        return "\n\n".join(p if "\n " in p or p[0] == " " else filled(p, width, indent) for p in text.split("\n\n"))


def about(doc: str | None) -> tuple[str, str]:
    """Return the description and the examples in the docstring of a command."""
    description, _, example = (doc or "").partition("\n\nexample:\n")
    return description, example.rstrip()


class Parser(ArgumentParser):
    """The parser of a command. Precedence: command line, option files in order, DLA_<FLAG> variables, defaults.

    `config` is the flag that names an option file; a command with it also has variables and --print-config. Other
    commands have no variables, so that those of one command do not affect another. `find_file` returns the path of a
    named option file, and raises if the file is invalid. `default_file` is the one that is read if none is named.
    """

    def __init__(
        self,
        command: str,
        description: str,
        example: str,
        usage: str,
        *,
        config: str | None = None,
        find_file: Callable[[str], str] | None = None,
        default_file: str | None = None,
    ) -> None:
        super().__init__(
            prog=f"dla {command}",
            description=description,
            epilog=f"example:\n{example}",
            formatter_class=_Help,
            default_env=config is not None,
            env_prefix="DLA",
            allow_abbrev=False,
            print_config=None,
            usage=f"dla {command} {usage}",
            add_help=False,
        )
        self.example = example
        self.config, self.find_file, self.default_file = config, find_file or self._option_file, default_file
        self.types: dict[str, Any] = {}
        self.ranges: dict[str, Field[Any]] = {}
        self.flag("-h", "--help", action="help", help="print this help and exit")
        if config is not None:
            self.flag("-q", "--quiet", action="store_true", help="print only results")
            kind, placeholder = ("", "FILE") if find_file is None else ("a built-in recipe, or ", "RECIPE")
            default = f" (default: {default_file})" if default_file else ""
            words = f"{kind}a YAML file with any of these options{default}"
            self.flag(config, action="config", metavar=placeholder, help=words)
            self.flag("--print-config", action="store_true", help="print all options as such a file and exit")

    def flag(self, *names: str, **settings: Any) -> None:
        """Add one argument; its default is appended to its help."""
        if settings.get("default") is not None:
            settings["help"] = _with_default(settings["help"], settings["default"])
        if _choices(settings.get("type")):
            settings.setdefault("metavar", _placeholder(settings["type"]))
        action = self.add_argument(*names, **settings)
        self.types[action.dest] = settings.get("type")

    def output_format(self) -> None:
        """Add --format for commands that print a table or JSON."""
        self.flag("--format", type=Literal["table", "json"], default="table", help="output format")

    def choices_of(self, name: str) -> tuple[str, ...]:
        """Return the values of an option that takes one of a few; () for others."""
        return _choices(self.types.get(name))

    def options(self, schema: type, **metavars: str | None) -> None:
        """Add a flag for each of these fields of a dataclass, with its type, default, range and help."""
        types, texts = get_type_hints(schema), _docstring_texts(schema)
        for f in (f for f in fields(schema) if f.name in metavars):
            text = f.metadata.get("help") or texts[f.name]
            if types[f.name] is bool:
                settings: dict[str, Any] = {"action": "store_true", "help": text}
            else:
                settings = {"type": types[f.name], "default": f.default, "help": text}
                if metavars[f.name] is not None:
                    settings["metavar"] = metavars[f.name]
            self.flag(f"--{f.name.replace('_', '-')}", **settings)
            self.ranges[f.name] = f

    def group(self, schema: type, name: str | None, skip: set[str | int] | None = None) -> None:
        """Add an option `--name.field` (`--field` if `name` is None) for each field of a dataclass not in `skip`.

        Dashes are shown, as in other flags; underscores, as in option files, work too.
        """
        from dla.storage.option_files import dotted_types  # here, because only `train` has groups

        self.add_class_arguments(schema, name, skip=skip)
        self.types |= dotted_types(schema, f"{name}." if name else "")
        group = self._action_groups[-1]
        group.title = name or schema.__name__.lower()
        for action in group._group_actions:
            if action.dest == name:  # jsonargparse's option file for the group alone
                action.help = argparse.SUPPRESS
                continue
            action.option_strings = [flag.replace("_", "-") for flag in action.option_strings]
            self._option_string_actions |= dict.fromkeys(action.option_strings, action)
            action.metavar = _placeholder(self.types[action.dest])
            action.help = _with_default((action.help or "").rstrip("."), action.default)

    def read(self, argv: Sequence[str]) -> Any:
        """Parse the arguments. Flags override option files wherever they stand, unlike in `parse_args`."""
        args = self.parse_args(self._files_first(argv))
        for name, hint in self.types.items():
            if hint is not None and args[name] is None and self.get_default(name) is not None:
                from dla.storage.option_files import check_null  # here, because few commands are given a null

                check_null(name, args[name], hint)
        for name, f in self.ranges.items():
            check_range(f"--{name.replace('_', '-')}", args[name], f)
        return args

    def print_options(self, args: Any) -> None:
        """Print the options as a file for the flag `config`."""
        print(yaml.safe_dump({name: args[name] for name in self._option_names()}, sort_keys=False), end="")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a UsageError with one sentence, in place of argparse's usage text."""
        see = f"{self.prog} --help"
        if isinstance(ex, argparse.ArgumentError) and ex.argument_name:
            flag = ex.argument_name.split("/")[-1]
            action = next(a for a in self._actions if flag in a.option_strings)
            raise UsageError(f"{flag} takes {'no' if action.nargs == 0 else 'a'} value. See: {see}")
        if unknown := re.search(r"nrecognized arguments: (\S+)", message):
            if not unknown[1].startswith("-"):
                raise UsageError(f'unexpected argument "{unknown[1]}". See: {see}')
            flags = [o for a in self._actions for o in a.option_strings if o.startswith("--")]
            raise UnknownNameError("option", unknown[1].split("=")[0], flags, see=see)
        if missing := re.search(r"arguments are required: (.*)", message):
            raise self.missing(missing[1].upper().replace(", ", " and "))
        from dla.storage.option_files import value_error

        raise UsageError(value_error(message, {name: _given(hint) for name, hint in self.types.items()}))

    def missing(self, what: str, hint: str = "") -> UsageError:
        """Return the error about missing arguments, with the command's first example."""
        verb = "are" if " and " in what else "is"
        example = self.example.partition("\n")[0].partition(" #")[0].strip()
        return UsageError(f"{what} {verb} missing{f'. {hint}' * bool(hint)}, as in: {example}")

    def _option_names(self) -> list[str]:
        """Return the names of the options that an option file can set."""
        own = self.types.keys() - {"help", "print_config", (self.config or "").strip("-")}
        return [action.dest for action in self._actions if action.option_strings and action.dest in own]

    def _files_first(self, argv: Sequence[str]) -> list[str]:
        if self.config is None:
            return list(argv)
        variable = f"DLA_{self.config.strip('-').upper()}"
        if variable in os.environ:
            os.environ[variable] = self.find_file(os.environ[variable])
        files: list[str] = []
        others: list[str] = []
        rest = iter(argv)
        for argument in rest:
            flag, equals, value = argument.partition("=")
            if flag != self.config or (not equals and (value := next(rest, "")) == ""):
                others.append(argument)
            else:
                files += [self.config, self.find_file(value)]
        if self.default_file is not None and not files and variable not in os.environ:
            files = [self.config, self.find_file(self.default_file)]
        return [*files, *others]

    def _option_file(self, name: str) -> str:
        path = Path(name)
        if not path.is_file():
            raise UsageError(f"{name} does not exist. {self.config} takes a YAML file of options")
        from dla.storage.option_files import check_null, read_options  # here, because most commands have no such file

        known = self._option_names()
        for key, value in read_options(path, "file of options", "model: dla60").items():
            if key not in known:
                raise UnknownNameError(f"option ({path})", key, known, see=f"{self.prog} --help")
            if self.types[key] is not None:
                check_null(key, value, self.types[key])
        return name


def _docstring_texts(schema: type) -> dict[str, str]:
    """Return the texts of "Args:" in the docstring of a dataclass whose fields have no help metadata."""
    if all(f.metadata.get("help") for f in fields(schema)):
        return {}
    from docstring_parser import parse

    return {p.arg_name: " ".join((p.description or "").split()).rstrip(".") for p in parse(schema.__doc__ or "").params}


def _alternatives(hint: Any) -> list[Any]:
    """Return the types that a value may have, without None."""
    union = get_origin(hint) in (Union, UnionType)
    return [kind for kind in get_args(hint) if kind is not NoneType] if union else [hint]


def _choices(hint: Any) -> tuple[str, ...]:
    """Return the values of a Literal, or of an optional one."""
    kinds = _alternatives(hint)
    return get_args(kinds[0]) if len(kinds) == 1 and get_origin(kinds[0]) is Literal else ()


def _placeholder(hint: Any) -> str:
    """Return what stands for a value of this type in --help: the choices, or a letter or word for its kind."""
    kinds = {int: "N", float: "X", str: "TEXT", tuple: "[X,X]", list: "[X,...]", dict: "{N:N,...}"}
    shown = []
    for kind in _alternatives(hint):
        choices = ("true", "false") if kind is bool else _choices(kind)
        shown.append(f"{{{','.join(choices)}}}" if choices else kinds[get_origin(kind) or kind])
    return "|".join(shown)


def _given(hint: Any) -> Any:
    """Return the type of an optional flag without its None."""
    choices = _choices(hint)
    return Literal[choices] if choices else hint


def _with_default(text: str, default: object) -> str:
    """Append the default in YAML's notation to the help, unless the help already has it.

    A help that ends with "null: WHAT" says what null, the default, means.
    """
    if "(default" in text:
        return text
    if default is None and (meaning := re.fullmatch(r"(.*?)[.;] null: (.*)", text, re.DOTALL)):
        return f"{meaning[1]} (default: {meaning[2]})"
    words = {None: "none", True: "true", False: "false", "": "none"}
    if isinstance(default, str | bool | None):
        default = words.get(default, default)
    elif isinstance(default, float):
        default = f"{default:g}"
    return f"{text} (default: {list(default) if isinstance(default, tuple) else default})"


def table_width() -> int | None:
    """Return the width at which tables wrap; None if standard output is not a terminal."""
    return min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def default_model() -> str:
    """Return the default network: that of the variable DLA_MODEL, or the built-in one."""
    return os.environ.get("DLA_MODEL", DEFAULT_MODEL)
