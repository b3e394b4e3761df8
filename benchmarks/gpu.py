"""Compare the library with timm on an NVIDIA GPU, in three parts with time limits.

    python benchmarks/gpu.py --output DIR [--only correctness inference training] [--models NAME ...]
    python benchmarks/gpu.py --output DIR --rehearse

correctness  All twelve networks compared with timm's with the same weights (fp32 without TF32, and bf16): the largest
             difference over the largest value, of logits, maps, training outputs, statistics and gradients. Then the
             tests marked `gpu`.
inference    dla34, dla60, dla102: eager fp32, bf16 in channels_last, CUDA graphs of both; photos from ordinary memory
             to probabilities there, by `dla.load` and by hand with timm; a process from its start to the first answer;
             dla34 compiled. "dla" is the network of `dla.create_model`, "dla.load's" has its batch norm folded.
training     A `dla train` killed by SIGKILL and started again: whether it ends bitwise equal to an uninterrupted run.
             Steps and peak memory of dla34 and dla60, with and without gradient checkpointing.

Both sides have the same weights, type, layout and batch, and alternate: medians, the speed relative to timm (median and
range of the rounds), and the fraction of the GPU's peak, which is measured by a large matrix product in the same run.
Each part writes DIR/PART.json after every row and starts no row after its time limit (`--seconds`: by default 120, 180
and 180); missing rows are listed. It runs from `src/` and needs PyTorch for CUDA, timm 1.0.31 and pytest, but not
OpenVINO. Without a GPU it says so and does nothing; `--rehearse` then runs everything that needs none, at small sizes.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests")]
sys.path.insert(0, str(Path(__file__).parent))
PARTS = {"correctness": 120.0, "inference": 180.0, "training": 180.0}
NO_GPU = "no NVIDIA GPU that PyTorch can use is here: nothing is measured (--rehearse runs what needs none)"


def measure(part: str, args: argparse.Namespace, room: Path) -> None:
    """Run one part and write its record."""
    from gpu_record import Here, Record, facts

    here = Here("cpu" if args.rehearse else "cuda", room)
    record = Record(
        args.output / f"{part}.json", part, PARTS[part] if args.seconds is None else args.seconds, facts(here.device)
    )
    record.write()
    small = ("dla46_c",) if args.rehearse else ()
    models = tuple(args.models or small)
    if part == "correctness":
        from gpu_correctness import correctness

        correctness(here, record, models)
    elif part == "inference":
        from gpu_inference import MODELS, inference

        inference(here, record, models or MODELS)
    else:
        from gpu_training import MODELS, training

        training(here, record, models or MODELS)
    record.write(finished=True)


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the JSON and the logs go")
    parser.add_argument("--only", nargs="+", choices=tuple(PARTS), default=list(PARTS), help="parts (default: all)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="other networks than a part's own")
    parser.add_argument("--seconds", type=float, help="of each part, in place of its own time")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small, without what needs a GPU")
    return parser.parse_args(words)


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))
    if args.rehearse:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # several processes on few cores
    import torch

    if not args.rehearse and not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as room:
        os.environ["DLA_CACHE"] = str(Path(room) / "cache")
        for part in args.only:
            measure(part, args, Path(room))
    return 0


def compiled(name: str, batch: str, room: str) -> None:
    """Measure one row of `inference` in this process and print it as JSON."""
    from gpu_inference import compile_and_time

    own = Path(tempfile.mkdtemp(dir=room))
    try:
        print(json.dumps(compile_and_time(name, int(batch), own)))
    finally:
        shutil.rmtree(own, ignore_errors=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compiled"]:
        compiled(*sys.argv[2:5])
        sys.exit(0)
    sys.exit(main())
