"""Read recipes by name or from YAML files, check them, and write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, is_dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from dla.errors import UnavailableError, UnknownNameError, UsageError
from dla.storage.option_files import as_dataclass, dotted_types, read_options
from dla.training.recipe import Recipe

_RECIPES = files("dla.training").joinpath("recipes")
DEFAULT_RECIPE = "finetune-small"  # for classifiers
DEFAULT_RECIPES = {"classify": DEFAULT_RECIPE, "segment": "segment-small", "edges": "edges-small"}


def default_recipe(settings: Mapping[str, Any]) -> str:
    """Return the name of the recipe that is used where none is named, for the task in `settings`."""
    return DEFAULT_RECIPES.get(str(settings.get("task")), DEFAULT_RECIPE)


def shipped_recipes() -> list[str]:
    """Return the names of the built-in recipes."""
    return sorted(f.name.removesuffix(".yaml") for f in _RECIPES.iterdir() if f.name.endswith(".yaml"))


def find_recipe(name: str) -> Path:
    """Return the file of a recipe, given by its path or by the name of a built-in recipe.

    Raises:
        UnavailableError: a YAML file that does not exist.
        UnknownNameError: no built-in recipe has this name.
    """
    own = Path(name)
    if own.is_file():
        return own
    if name in shipped_recipes():
        return Path(str(_RECIPES)) / f"{name}.yaml"
    if own.suffix in (".yaml", ".yml"):
        raise UnavailableError(f"{name} does not exist. Give a YAML file, or one of {', '.join(shipped_recipes())}")
    raise UnknownNameError("recipe", name, shipped_recipes(), see=", ".join(shipped_recipes()))


def read_recipe(name: str) -> dict[str, Any]:
    """Return the fields that the file of the recipe `name` sets.

    Raises:
        UnavailableError, UnknownNameError: as by `find_recipe`; or a field that recipes do not have.
        UsageError: the file is not a YAML mapping.
    """
    path = find_recipe(name)
    values = read_options(path, "recipe", "epochs: 20")
    _check_fields(values, str(path))
    return values


def _check_fields(values: Mapping[str, Any], where: str, schema: type = Recipe, prefix: str = "") -> None:
    """Raise an UnknownNameError for an unknown field, and a UsageError for a group whose value is not a mapping."""
    types = get_type_hints(schema)
    for name, value in values.items():
        if name not in types:
            raise UnknownNameError(f"field of a recipe ({where})", f"{prefix}{name}", [*dotted_types(Recipe), *types])
        if is_dataclass(types[name]):
            if not isinstance(value, Mapping):
                shown = "empty" if value is None else repr(value)
                raise UsageError(f"{where}: {prefix}{name} is {shown}. Put fields under it, or leave it out")
            _check_fields(value, where, types[name], f"{prefix}{name}.")


def recipe_from(name: str | None, settings: Mapping[str, Any]) -> Recipe:
    """Return the recipe `name` (None: all defaults) with some fields set by their dotted names.

    Raises:
        UnknownNameError: there is no such recipe or field.
        UsageError: a value has the wrong type or is out of range.
    """
    values = read_recipe(name) if name else {}
    for dotted, value in settings.items():
        *groups, last = dotted.split(".")
        inner = values
        for group in groups:
            inner = inner.setdefault(group, {})
        inner[last] = value
    _check_fields(values, "settings")
    return as_dataclass(Recipe, values)


def default_output(recipe: str | None, data: str) -> Path:
    """Return `runs/<recipe>-<data>`; the config.yaml of a run is named after its folder."""
    name = "train" if recipe is None else Path(recipe).stem
    if recipe is not None and Path(recipe).name == "config.yaml":
        name = Path(recipe).resolve().parent.name
    return Path("runs") / f"{name}-{Path(data).resolve().stem}"


def to_yaml(recipe: Recipe) -> str:
    """Return the recipe as YAML that `--recipe` reads back to an equal recipe."""
    return yaml.safe_dump(_plain(asdict(recipe)), sort_keys=False, allow_unicode=True, width=120)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def differing(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the dotted name and both values of each field in which two recipes (as dicts) differ."""
    for name in [*a, *(n for n in b if n not in a)]:
        one, other = a.get(name), b.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping) and name != "sizes":
            yield from differing(one, other, f"{prefix}{name}.")
        elif one != other:
            yield f"{prefix}{name}", one, other
