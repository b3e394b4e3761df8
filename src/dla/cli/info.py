"""`dla info`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from dla.cli.parser import MODEL_HELP, WIDTH, Parser, default_model, table_width
from dla.text_table import text_table
from dla.types import DEFAULT_MODEL

if TYPE_CHECKING:
    from dla.catalog import ModelInfo
    from dla.inference.open_engine import EngineChoice


DESCRIPTION = f"""\
Tell everything about one network: what it is, its classes, preprocessing, licence, data, results,
where its weights are; without a name, about the default of dla predict (the variable DLA_MODEL, else
{DEFAULT_MODEL}). Nothing is fetched: of weights that are not here it tells what is published.

Exit code 2: no such network; 3: its files are damaged, or nothing is known of it here."""

EXAMPLE = """\
  dla info
  dla info dla60
  dla info dla34 --nodes
  dla info --engines
  dla info runs/mine --format json"""


def run(argv: list[str]) -> int:
    parser = Parser("info", DESCRIPTION, EXAMPLE, "[NAME|PATH] [options]")
    parser.flag("model", nargs="?", default=default_model(), help=MODEL_HELP)
    parser.flag("--nodes", action="store_true", help="also list every aggregation node: what it takes, its channels, "
                "its stride")  # fmt: skip
    parser.flag("--engines", action="store_true", help="also time every engine with it, and say which one runs")
    parser.output_format()
    args = parser.read(argv)

    from dla.catalog import info

    found = info(args.model, nodes=args.nodes, engines=args.engines)
    if args.format == "json":
        print(json.dumps(found.to_dict(), indent=1))
        return 0
    print(found.model)
    rows = [(f"  {label}", text) for label, text in _lines(found)]
    print("\n".join(text_table(rows, "<<", table_width() or WIDTH)))
    if found.nodes is not None:
        print(f"\n{_nodes(found.nodes)}")
    if found.engines is not None:
        print(f"\n{_engines(found.engines)}")
    return 0


def _lines(found: ModelInfo) -> Iterator[tuple[str, str]]:
    _, height, width = found.input_size
    work = f"{found.params:,} parameters, {found.macs / 1e9:.2f} GMACs at {height}x{width}"
    yield "network", f"{found.architecture}, {work}"
    if found.classes:
        some = ", ".join(label for _, label in found.classes[:4])
        yield "classes", f"{found.num_classes}: {some}" + (", ..." if len(found.classes) > 4 else "")
    if found.preprocessing:
        yield "preprocessing", _preprocessing(found.preprocessing)
    if found.temperature is not None:
        yield "temperature", f"{found.temperature:g}: the scores are divided by it, fitted by dla validate --calibrate"
    if found.published:
        figures = found.published
        yield "accuracy", f"top-1 {figures['top1']} %, top-5 {figures['top5']} % on ImageNet-1k, as published"
    if found.results:
        yield "results", _results(found.results)
    if found.dataset:
        yield "data", found.dataset
    if found.recipe:
        # data and licence have lines of their own
        yield "recipe", _settings({k: v for k, v in found.recipe.items() if k not in ("dataset", "license")})
    if found.weights.state != "none":
        yield "licence", found.license or "none is stated in its files"
    if found.restrictions:
        yield "", found.restrictions
    if found.homepage:
        yield "published at", found.homepage
    yield "weights", _weights(found)
    if found.weights.path:
        yield "file", found.weights.path
    if found.sha256:
        yield "SHA-256", found.sha256
    for note in found.notes:
        yield "note", note


def _preprocessing(settings: Mapping[str, Any]) -> str:
    _, height, width = settings["input_size"]
    mean, std = (" ".join(f"{x:g}" for x in settings[key]) for key in ("mean", "std"))
    return (
        f"{height}x{width} pixels, crop {settings['crop_pct']:g} {settings['crop_mode']}, {settings['interpolation']}, "
        f"mean {mean}, std {std}, EXIF orientation {'applied' if settings['exif'] == 'apply' else 'ignored'}"
    )


def _settings(settings: Mapping[str, Any]) -> str:
    """Nested settings in one line: "epochs 15, augment.flip 0.5"."""
    return ", ".join(f"{name} {value}" for name, value in _flat(settings))


def _results(results: Mapping[str, Any]) -> str:
    per_cent = {"top1": "top-1", "top5": "top-5"}
    figures = {k: v for k, v in results.items() if k in per_cent and isinstance(v, int | float)}
    shown = {per_cent[k]: f"{100 * v:.1f} %" for k, v in figures.items()}
    return _settings(shown | {k: v for k, v in results.items() if k not in figures})


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _weights(found: ModelInfo) -> str:
    stored = found.weights
    size = "" if stored.size_bytes is None else f"{stored.size_bytes / 1e6:.1f} MB"
    if stored.state == "to download":
        return f"to download, about {size}: dla pull {found.model.partition('.')[0]}"
    if stored.state == "none":
        return "none were released; these are the figures with 1000 classes"
    return f"{stored.state}, {size}" + (f", {found.origin}" if stored.state == "cached" else "")


def _nodes(nodes: tuple[Mapping[str, Any], ...]) -> str:
    rows = [(n["name"], f"{n['channels']}", f"{n['stride']}", ", ".join(n["inputs"])) for n in nodes]
    return "\n".join(text_table([("node", "channels", "stride", "takes"), *rows], "<>><", table_width() or WIDTH))


def _engines(choice: EngineChoice) -> str:
    from dla.engines.select import pip_line

    rows = [("engine", "first answer", "one photo", "many photos", "")]
    for t in choice.timings:
        taken = [
            what for what, name in (("one", choice.best_for_one), ("many", choice.best_for_many)) if name == t.engine
        ]
        runs = f"runs for {' and '.join(taken)}" if taken else ""
        figures = (f"{t.cold_start_s:.2f} s", f"{1000 * t.latency_s:.1f} ms", f"{1 / t.per_photo_s:.1f} a second")
        rows.append((t.engine, *figures, runs))
    missing = [f"{name} is not installed: {pip_line(name)}" for name in choice.not_installed]
    return "\n".join([*text_table(rows, "<>>><"), *missing])
