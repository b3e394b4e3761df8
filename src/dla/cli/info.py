"""Show everything about one network: architecture, classes, preprocessing, licence, data, results and where its
weights are. Nothing is downloaded: for weights that are not on this machine it shows the published data.

Exit code 2: no such network; 3: its files are damaged, or nothing is known about it.

example:
  dla info
  dla info dla60
  dla info dla34 --nodes
  dla info --engines
  dla info --recipe > mine.yaml
  dla info runs/mine --format json
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import yaml

from dla.cli.parser import MODEL_HELP, WIDTH, Parser, about, default_model, table_width
from dla.errors import UnavailableError
from dla.text_table import text_table

if TYPE_CHECKING:
    from dla.catalog import ModelInfo
    from dla.inference.open_engine import EngineChoice


def build_parser() -> Parser:
    """Build the parser of the command."""
    parser = Parser("info", *about(__doc__), "[MODEL] [options]")
    parser.flag("model", metavar="MODEL", nargs="?", default=default_model(), help=MODEL_HELP)
    parser.flag("--nodes", action="store_true", help="also list the aggregation nodes with their inputs, channels and "
                "strides")  # fmt: skip
    parser.flag("--engines", action="store_true", help="also time each engine, and show which ones --engine auto uses")
    parser.flag("--recipe", action="store_true", help="print only the recipe of its training, as YAML")
    parser.output_format()
    return parser


def run(argv: list[str]) -> int:
    """Run the command; return the exit code."""
    args = build_parser().read(argv)

    from dla.catalog import info

    model = info(args.model, nodes=args.nodes, engines=args.engines)
    if args.recipe:
        if model.recipe is None:
            raise UnavailableError(f"{model.model} has no recipe: its files do not say how it was trained")
        print(yaml.safe_dump(dict(model.recipe), sort_keys=False, allow_unicode=True, width=120), end="")
        return 0
    if args.format == "json":
        print(json.dumps(model.to_dict(), indent=1))
        return 0
    print(model.model)
    rows = [(f"  {label}", text) for label, text in _lines(model)]
    print("\n".join(text_table(rows, "<<", table_width() or WIDTH)))
    if model.nodes is not None:
        print(f"\n{_nodes(model.nodes)}")
    if model.engines is not None:
        print(f"\n{_engines(model.engines)}")
    return 0


def _lines(model: ModelInfo) -> Iterator[tuple[str, str]]:
    _, height, width = model.input_size
    work = f"{model.params:,} parameters, {model.macs / 1e9:.2f} GMACs at {height}x{width}"
    yield "network", f"{model.architecture}, {work}"
    if model.classes:
        some = ", ".join(label for _, label in model.classes[:4])
        yield "classes", f"{model.num_classes}: {some}" + (", ..." if len(model.classes) > 4 else "")
    if model.preprocessing:
        yield "preprocessing", _preprocessing(model.preprocessing)
    if model.temperature is not None:
        yield "temperature", f"{model.temperature:g}: divides the scores; fitted by dla validate --calibrate"
    if model.published:
        figures = model.published
        yield "accuracy", f"top-1 {figures['top1']} %, top-5 {figures['top5']} % on ImageNet-1k, as published"
    if model.results:
        yield "results", _results(model.results)
    if model.dataset:
        yield "data", model.dataset
    if model.recipe:
        yield "recipe", _changed(model.recipe) + "; the rest by default (--recipe prints all)"
    if model.weights.state != "none":
        yield "licence", model.license or "not stated in its files"
    if model.restrictions:
        yield "", model.restrictions
    if model.homepage:
        yield "published at", model.homepage
    yield "weights", _weights(model)
    if model.weights.path:
        yield "file", model.weights.path
    if model.sha256:
        yield "SHA-256", model.sha256
    for note in model.notes:
        yield "note", note


def _preprocessing(settings: Mapping[str, Any]) -> str:
    _, height, width = settings["input_size"]
    mean, std = (" ".join(f"{x:g}" for x in settings[key]) for key in ("mean", "std"))
    size = f"{height}x{width} pixels, crop {settings['crop_pct']:g} {settings['crop_mode']}"
    if "short_side" in settings:
        short = settings["short_side"]
        size = "photos at their own size" if short is None else f"the short side at {short} pixels"
    return (
        f"{size}, {settings['interpolation']}, "
        f"mean {mean}, std {std}, EXIF orientation {'applied' if settings['exif'] == 'apply' else 'ignored'}"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    """Format nested settings in one line, as in "epochs 15, augment.flip 0.5"."""
    return ", ".join(f"{name} {value}" for name, value in _flat(settings))


def _changed(recipe: Mapping[str, Any]) -> str:
    """Return what of a recipe differs from the defaults; data and licence have lines of their own."""
    from dla.training.recipe import Recipe
    from dla.training.recipe_files import differing, to_yaml

    changed = {
        name: value for name, value, _ in differing(recipe, yaml.safe_load(to_yaml(Recipe()))) if value is not None
    }
    return _settings({name: value for name, value in changed.items() if name not in ("dataset", "license")})


def _results(results: Mapping[str, Any]) -> str:
    per_cent = {"top1": "top-1", "top5": "top-5", "miou": "mIoU", "pixel_accuracy": "pixel accuracy"}
    figures = {k: v for k, v in results.items() if k in per_cent and isinstance(v, int | float)}
    shown = {per_cent[k]: f"{100 * v:.1f} %" for k, v in figures.items()}
    return _settings(shown | {k: v for k, v in results.items() if k not in figures})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _weights(model: ModelInfo) -> str:
    stored = model.weights
    size = "" if stored.size_bytes is None else f"{stored.size_bytes / 1e6:.1f} MB"
    if stored.state == "to download":
        return f"to download, about {size}: dla pull {model.model.partition('.')[0]}"
    if stored.state == "none":
        return "none were released; the figures are for 1000 classes"
    return f"{stored.state}, {size}" + (f", {model.origin}" if stored.state == "cached" else "")


def _nodes(nodes: tuple[Mapping[str, Any], ...]) -> str:
    rows = [(n["name"], f"{n['channels']}", f"{n['stride']}", ", ".join(n["inputs"])) for n in nodes]
    return "\n".join(text_table([("node", "channels", "stride", "inputs"), *rows], "<>><", table_width() or WIDTH))


def _engines(choice: EngineChoice) -> str:
    from dla.engines.select import engine_pip_line

    rows = [("engine", "cold start", "one photo", "many photos", "")]
    for t in choice.timings:
        uses = [
            what for what, name in (("one", choice.best_for_one), ("many", choice.best_for_many)) if name == t.engine
        ]
        used = f"used for {' and '.join(uses)}" if uses else ""
        figures = (f"{t.cold_start_s:.2f} s", f"{1000 * t.latency_s:.1f} ms", f"{1 / t.per_photo_s:.1f} photos/s")
        rows.append((t.engine, *figures, used))
    missing = [f"{name} is not installed: {engine_pip_line(name)}" for name in choice.not_installed]
    return "\n".join([*text_table(rows, "<>>><"), *missing])
