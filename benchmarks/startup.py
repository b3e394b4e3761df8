"""Measure one photo from the shell: the whole time of `dla predict`, its parts, and timm's shortest script.

    python benchmarks/startup.py [--rounds 7] [--model shipped:tiny200] [--engine auto]

Whole commands alternate, each in a process of its own; prints medians. timm's script loads the weights of a dla34 from
a file, reads, prepares and classifies the photo, and prints the five most probable classes. The parts are measured in a
separate process that runs the same steps one by one. Everything runs once before, as a warm-up. `dla predict --help`
and `dla models` come last: the cost of a command without a network. Needs the extras `dev` and `demo`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

PHOTO = Path(str(files("skimage"))) / "data" / "coffee.png"

PARTS = """
import json, sys, time
stamps = [("interpreter", time.monotonic())]
def done(part): stamps.append((part, time.monotonic()))
from dla.cli import main
import dla.cli.predict
parser = dla.cli.predict.build_parser()
args = parser.parse_args([sys.argv[1], "--model", sys.argv[2], "--engine", sys.argv[3]])
done("command line")
import numpy
done("numpy")
from dla.inference.classifier import load
done("dla")
classifier = load(args.model, engine=args.engine, photos=1)
done("network")
from dla.images.decode import read_photo
from dla.options import ReadOptions
pixels = classifier.preprocessing.pixels(read_photo(args.images[0]).image)[None]
done("photo")
classifier.engine.probabilities(pixels)
done("engine")
classifier.engine.probabilities(pixels)
done("run again")
print(json.dumps([stamps, "torch" in sys.modules, classifier.engine.name]))
"""

TIMM = """
import sys; sys.path.insert(0, sys.argv[3])
from support.oracle import timm
from PIL import Image
import torch
from safetensors.torch import load_file
model = timm.create_model("dla34").eval()
model.load_state_dict(load_file(sys.argv[2]))
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
with torch.inference_mode():
    scores = model(transform(Image.open(sys.argv[1]).convert("RGB"))[None]).softmax(1)
for probability, index in zip(*(x[0].tolist() for x in scores.topk(5))):
    print(f"{probability:.3f} {index}")
"""


def seconds(*command: str) -> float:
    began = time.monotonic()
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    return time.monotonic() - began


def parts(*words: str) -> tuple[dict[str, float], bool, str]:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PARTS, *words], capture_output=True, text=True, check=True)
    stamps, torch_loaded, engine = json.loads(done.stdout)
    found = {}
    for part, at in stamps:
        found[part], began = at - began, at
    return found, torch_loaded, engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", default="shipped:tiny200")
    parser.add_argument("--engine", default="auto")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        weights = Path(temporary) / "dla34.safetensors"
        code = (
            "import sys, dla, safetensors.torch as s; s.save_file(dla.create_model('dla34').state_dict(), sys.argv[1])"
        )
        seconds("-c", code, str(weights))
        tests = Path(__file__).parent.parent / "tests"
        theirs = ("-c", TIMM, str(PHOTO), str(weights), str(tests))
        ours = ("-m", "dla", "predict", str(PHOTO), "--model", args.model, "--engine", args.engine)
        words = (str(PHOTO), args.model, args.engine)
        seconds(*ours), seconds(*theirs), parts(*words)  # warm
        light = [("-m", "dla", "predict", "--help"), ("-m", "dla", "models")]
        [seconds(*command) for command in light]
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.rounds} rounds")
        lights = [[seconds(*command) for command in light] for _ in range(args.rounds)]
        rounds = [(seconds(*ours), seconds(*theirs), parts(*words)) for _ in range(args.rounds)]
    dla_s, timm_s = (statistics.median(column) for column in list(zip(*rounds, strict=True))[:2])
    ratios = sorted(t / d for d, t, _ in rounds)
    _, torch_loaded, engine = rounds[0][2]
    print(f"dla predict  {dla_s:.2f} s ({args.model}, {engine}, torch {'loaded' if torch_loaded else 'not loaded'})")
    print(f"timm         {timm_s:.2f} s, {statistics.median(ratios):.1f} times ({ratios[0]:.1f} to {ratios[-1]:.1f})")
    for part in rounds[0][2][0]:
        print(f"  {part:<14}{1000 * statistics.median(r[2][0][part] for r in rounds):6.0f} ms")
    for command, column in zip(light, zip(*lights, strict=True), strict=True):
        print(f"{' '.join(command[1:]):<20}{statistics.median(column):.2f} s")


if __name__ == "__main__":
    main()
