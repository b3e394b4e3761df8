"""`dla train`."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from dla.cli.parser import Parser
from dla.recipes.schema import Recipe

if TYPE_CHECKING:
    from dla.verbs.train.fit import Epoch

EXAMPLE = "  dla train photos/ --epochs 10 --output runs/mine"


def build_parser() -> Parser:
    parser = Parser("train", "Train a network on photos of your own.", EXAMPLE, "DATA [options]", config="--recipe")
    parser.flag("data", help="a folder with train/ and val/ (a folder a class), or train.parquet and val.parquet")
    parser.flag("--output", default="runs/new", help="the run's folder; a stopped run goes on there")
    parser.flag("--workers", type=int, default=2, help="threads that crop and resize (default: 2)")
    parser.flag("--device", default="cpu", help="cpu, cuda, ... (default: cpu)")
    parser.fields(Recipe)
    return parser


def run(words: list[str]) -> int:
    parser = build_parser()
    args = parser.parse_args([_recipe(words, i) for i in range(len(words))])
    values = parser.instantiate(args).as_dict()
    own = {k: values.pop(k) for k in ("data", "output", "workers", "device")}
    quiet = values.pop("quiet")
    values.pop("recipe")

    from dla.verbs.train.run import Listener, train

    listener = Listener() if quiet else Listener(said=_say, epoch=_epoch, step=_progress())
    best = train(own["data"], Recipe(**values), own["output"], workers=own["workers"], device=own["device"],
                 listener=listener)  # fmt: skip
    listener.said(f"Model: {best}")
    return 0


def _recipe(words: list[str], i: int) -> str:
    """The word itself, or the file of the recipe that comes along under this name."""
    before, own = (words[i - 1] if i else ""), words[i]
    shipped = files("dla.recipes") / f"{own}.yaml"
    return str(shipped) if before == "--recipe" and shipped.is_file() and not Path(own).exists() else own


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _epoch(epoch: Epoch) -> None:
    _say(
        f"epoch {epoch.epoch + 1}  loss {epoch.loss:.3f}  val {epoch.top1:.1%} / {epoch.top5:.1%}  "
        f"{epoch.photos_per_second:.0f} photos/s  {epoch.seconds:.0f} s"
    )


def _progress() -> Callable[[int, int, int, float], None]:
    last = time.monotonic()

    def step(epoch: int, step: int, steps: int, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            _say(f"  epoch {epoch + 1}  step {step}/{steps}  loss {loss:.3f}")

    return step
