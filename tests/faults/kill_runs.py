"""Runs that are killed and started again: how many end in the same bits as a run that nobody killed.

    python tests/faults/kill_runs.py [--kills 200] [--chain 1] [--seed 0] [--settings segmentation boundaries]

Each run is `dla train` on a tiny network and tiny photos, in a process of its own that is forked off one with PyTorch
imported already. SIGKILL comes at a random moment: a third of them at any time from the first instruction on, a third
within a checkpoint's writing (there is one after every step), a third within the writing of best/. Then the same
command runs again, to its end or, for --chain, to the next kill. A run ends the same when the weights, averages and
optimizer of its last checkpoint, best/model.safetensors, best/config.json and metrics.jsonl (but for its times) are
equal byte for byte. Settings alternate: threads or none, mixup and CutMix, an average, accumulation, AdamW, balanced
sampling, random sizes, distillation, early stopping, segmentation, boundaries. Prints a line a run that differs, and
the count; exit code 1 when there is one.
"""

import argparse
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # nothing may run in threads before a fork
sys.path.insert(0, str(Path(__file__).parents[1]))

import kornia.augmentation  # noqa: F401  (what a run imports late is here before the forks)
import numpy as np
import torch
import torch._dynamo  # what an optimizer imports
from PIL import Image

import dla.cli.train
import dla.training.run
from dla.cli import main
from support.ends import differing, ended_in
from support.flat_photos import PLAIN
from support.tiny import in_the_table

USUAL = ["--model", "tiny", "--epochs", "2", "--batch-size", "4", "--schedule.warmup_epochs", "0.5",
         "--save-every", "0", "-q"]  # fmt: skip
PHOTOS = ["photos", "--recipe", PLAIN, "--input.sizes", "{0: 24}", "--input.val_size", "24", "--lr", "0.05", *USUAL]
PAIRS = ["--pretrained", "false", "--repeat", "1", "--augment.crop", "[24, 32]", "--workers", "2", *USUAL]
SETTINGS = {
    "threads, average": [*PHOTOS, "--workers", "2", "--average.decay", "0.9"],
    "mixup, CutMix, accumulation": [
        *PHOTOS,
        "--workers", "0", "--average.decay", "0.9", "--augment.mixup", "0.4", "--augment.cutmix", "1",
        "--augment.mix_probability", "0.7", "--optimizer.accumulate", "2",
    ],
    "AdamW, kornia, dropout, sizes": [
        *PHOTOS,
        "--workers", "2", "--optimizer.name", "adamw", "--lr", "0.002", "--optimizer.layer_decay", "0.8",
        "--optimizer.clip_norm", "1", "--augment.brightness", "0.3", "--augment.hue", "0.1",
        "--augment.rand_operations", "2", "--augment.erase", "0.5", "--regular.drop_rate", "0.2",
        "--regular.drop_path_rate", "0.2", "--input.sizes", "{0: 16, 1: [24, 32]}",
    ],
    "distillation, balanced, early stop": [
        *PHOTOS,
        "--workers", "2", "--average.decay", "0.8", "--distill.scores", "scores.npy", "--loss.sampling", "balanced",
        "--loss.class_weights", "balanced", "--loss.label_smoothing", "0.1", "--stop.patience", "1",
    ],
    "segmentation": [
        "streets", "--task", "segment", "--recipe", "segment-small", *PAIRS, "--loss.lovasz", "0.5",
        "--augment.crop", "{0: [24, 32], 1: [30, 36]}",
    ],
    "boundaries": ["outlines", "--task", "edges", "--recipe", "edges-small", *PAIRS, "--average.decay", "0.8"],
}  # fmt: skip


@dataclass
class Command:
    """One `dla train`, with its photos and folder, and the seconds that it takes."""

    words: list[str]
    folder: Path
    seconds: float = 0.0

    def start(self) -> int:
        """A process that runs it; its number."""
        process = os.fork()
        if process:
            return process
        code = 70
        try:
            log = os.open(self.folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            code = main(["train", *self.words, "--output", str(self.folder)])
        except SystemExit as stop:
            code = int(stop.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)

    def finish(self) -> None:
        status = os.waitpid(self.start(), 0)[1]
        if status:
            raise SystemExit(f"{self.folder}: {self.folder.with_suffix('.log').read_text()[-3000:]}")

    def kill(self, dice: random.Random) -> bool:
        """Start it and kill it; False when it was faster."""
        process = self.start()
        for pause in moments(self, dice):
            if os.waitpid(process, os.WNOHANG)[0]:
                return False
            time.sleep(pause)
        os.kill(process, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(process, 0)[1])


def moments(command: Command, dice: random.Random) -> Iterator[float]:
    """Seconds to wait, again and again, until it is time."""
    kind = dice.choice(("any time", "a checkpoint", "best"))
    if kind == "any time":
        yield dice.uniform(0, command.seconds)
        return
    where, what = ("checkpoints", ".part-") if kind == "a checkpoint" else ("best", ".part")
    folder = command.folder / where
    for _ in range(dice.randint(1, 4)):
        while not (folder.is_dir() and any(what in name for name in os.listdir(folder))):
            yield 0.001
        yield dice.uniform(0, 0.02)


def make_photos(folder: Path) -> None:
    """Three classes of noise around a colour, of 8, 5 and 3 photos; and the scores of a teacher."""
    generator = np.random.default_rng(0)
    for split, counts in (("train", (8, 5, 3)), ("val", (2, 2, 1))):
        for i, name in enumerate(("blue", "green", "red")):
            (folder / split / name).mkdir(parents=True)
            for j in range(counts[i]):
                pixels = generator.integers(0, 120, (30, 36, 3)) + 100 * np.eye(3)[i]
                Image.fromarray(pixels.astype(np.uint8)).save(folder / split / name / f"{j}.png")
    np.save(folder.parent / "scores.npy", generator.normal(size=(16, 3)).astype(np.float32))


def make_pairs(room: Path) -> None:
    """A bright rectangle on noise in each of six photos, with its mask, and with its outline by two annotators."""
    generator = np.random.default_rng(1)
    for j in range(6):
        split = "train" if j < 4 else "val"
        pixels = generator.integers(0, 120, (30, 36, 3))
        mask = np.zeros((30, 36), np.uint8)
        mask[4 + j : 20 + j, 6:26] = 1
        pixels[mask == 1] += 100
        outline = np.zeros((30, 36), bool)
        outline[4 + j, 6:26] = outline[4 + j : 20 + j, 6] = True
        for data in ("streets", "outlines"):
            (room / data / split / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(room / data / split / "images" / f"{j}.png")
        for place in (room / "streets" / split / "masks", room / "outlines" / split / "boundaries"):
            place.mkdir(exist_ok=True)
        Image.fromarray(mask).save(room / "streets" / split / "masks" / f"{j}.png")
        for annotator in range(2):
            moved = Image.fromarray(np.roll(outline, annotator, 0))
            moved.save(room / "outlines" / split / "boundaries" / f"{j}_{annotator}.png")


def measure(kills: int, chain: int, seed: int, room: Path, settings: list[str]) -> int:
    dice = random.Random(seed)
    make_photos(room / "photos")
    make_pairs(room)
    commands = {name: Command(SETTINGS[name], room / f"whole {i}") for i, name in enumerate(settings)}
    wanted = {}
    for name, command in commands.items():
        began = time.monotonic()
        command.finish()
        command.seconds = time.monotonic() - began
        wanted[name] = ended_in(command.folder)
    done = same = runs = early = 0
    with suppress(KeyboardInterrupt):  # what is counted by then is told
        while done < kills:
            name = settings[runs % len(settings)]
            whole = commands[name]
            command, hits = Command(whole.words, room / f"killed {runs}", whole.seconds), 0
            for _ in range(chain):
                hits += command.kill(dice)
            command.finish()
            found = differing(wanted[name], ended_in(command.folder))
            done, early, same, runs = done + hits, early + chain - hits, same + (not found), runs + 1
            if found:
                print(f"run {runs} ({name}): other {', '.join(found)}", flush=True)
            shutil.rmtree(command.folder)
    print(f"{done} kills in {runs} runs ({early} came too late): {same} of {runs} ended bit-identical")
    return 0 if same == runs > 0 else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--chain", type=int, default=1, help="kills a run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    dla.cli.train.build_parser()
    gc.freeze()  # a child copies no memory for what it does not change
    with in_the_table(), tempfile.TemporaryDirectory() as room:
        os.chdir(room)
        sys.exit(measure(args.kills, args.chain, args.seed, Path(room), args.settings))
