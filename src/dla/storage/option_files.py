"""YAML files of options, checked against the types of a dataclass. Each error is one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from dla.errors import UsageError

T = TypeVar("T")

_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping",
          list: "a list", NoneType: "null"}  # fmt: skip
_MAX_BYTES, _MAX_VALUES = 1_000_000, 100_000
_MESSAGE = re.compile(r'Parser key "(?P<key>[^"]+)".*(?:Got|Given) value: ?(?P<value>.*)')


def read_options(path: Path, what: str, example: str) -> dict[str, Any]:
    """Return the fields of a YAML file, unchecked; `what` names the kind of file in messages, `example` a field.

    Raises:
        UsageError: if the file is not a YAML mapping.
    """
    values = parse_yaml(path)
    if not isinstance(values, dict):
        raise UsageError(f"{path} is not a {what}: it has no fields such as `{example}`")
    for key in values:
        if not isinstance(key, str):
            raise UsageError(f"{path}: the field {key} is not text. Write a {what} as `{example}`")
    if binary := next((key for key, value in values.items() if isinstance(value, bytes)), None):
        raise UsageError(f"{path}: {binary} is binary. Write it as text or a number")
    return values


def parse_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        UsageError: if it is not YAML, or larger, deeper or with more values than a file of options can be.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise UsageError(f"{path} has more than {_MAX_BYTES // 1000:,} kB, so it is not a file of options")
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        root = loader.get_single_node()
        if _size(root, {}) > _MAX_VALUES:
            raise UsageError(f"{path} has more than {_MAX_VALUES:,} values, so it is not a file of options")
        return None if root is None else loader.construct_document(root)
    except UsageError:
        raise
    except yaml.MarkedYAMLError as error:
        where = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UsageError(f"{path} is not valid YAML{where}: {error.problem or 'it cannot be read'}") from error
    except RecursionError as error:
        raise UsageError(f"{path} is nested too deeply for a file of options") from error
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # UnicodeDecodeError is a ValueError; the others come from values that their tags do not allow
        raise UsageError(f"{path} is not valid YAML: it has a value that cannot be read") from error


def _size(node: Any, sizes: dict[int, int]) -> int:
    """Count the values below a node; an alias counts as often as it is used."""
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = _MAX_VALUES + 1  # of a node that contains itself
        children = [child for pair in node.value for child in (pair if isinstance(pair, tuple) else (pair,))]
        sizes[id(node)] = 1 + sum(_size(child, sizes) for child in children)
    return sizes[id(node)]


def as_dataclass(schema: type[T], values: Mapping[str, Any]) -> T:
    """Return the dataclass `schema` with these values, nested dataclasses as mappings; the rest has its defaults.

    Raises:
        UsageError: if a value has another type than its field.
    """
    from jsonargparse import ArgumentError, ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(schema, None)
    try:
        parsed = parser.parse_object(dict(values))
        for name, hint in dotted_types(schema).items():
            check_null(name, parsed[name], hint)  # before the dataclasses, which check their fields further
        return schema(**parser.instantiate(parsed).as_dict())
    except ArgumentError as error:
        raise UsageError(value_error(str(error), dotted_types(schema))) from error


def check_null(name: str, value: object, hint: Any) -> None:
    """Raise a UsageError for None in a field that does not allow it, which jsonargparse accepts."""
    if value is None and NoneType not in get_args(hint):
        raise UsageError(f"{name} is null. Allowed: {_allowed(hint)}")


def dotted_types(schema: type, prefix: str = "") -> dict[str, Any]:
    """Return the type of every field by its dotted name, the fields of nested dataclasses included."""
    dotted: dict[str, Any] = {}
    types = get_type_hints(schema)
    for f in fields(schema):
        if is_dataclass(types[f.name]):
            dotted |= dotted_types(types[f.name], f"{prefix}{f.name}.")
        else:
            dotted[f"{prefix}{f.name}"] = types[f.name]
    return dotted


def value_error(message: str, types: Mapping[str, Any]) -> str:
    """Rewrite jsonargparse's message about a value as "epochs is many. Allowed: a whole number".

    Its exceptions carry only text. The field and the value are parsed from it, and the field's type gives the allowed
    values. A message of another form is returned unchanged.
    """
    message = " ".join(message.split())
    match = _MESSAGE.fullmatch(message)
    if match is None or types.get(match["key"]) is None:
        return message
    return f"{match['key']} is {match['value'] or 'nothing'}. Allowed: {_allowed(types[match['key']])}"


def _allowed(hint: Any) -> str:
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return ", ".join(map(str, args))
    if origin in (Union, UnionType):
        return ", ".join(map(_allowed, args))
    if origin is tuple:
        return f"a list of {len(args)} values"
    return _WORDS.get(origin or hint, str(hint))
