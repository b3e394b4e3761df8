"""Compare the photos per second of `dla predict` and of a plain timm loop; measure its memory at 20,000 inputs.

    python benchmarks/predict.py [--photos 1000] [--rounds 3] [--models dla34 dla60]
    python benchmarks/predict.py --memory

Both sides get the same JPEGs of about 500x375 (crops of photos bundled with scikit-image and scikit-learn), the same
float32 weights (random, batch-norm statistics calibrated on some of the photos) and the same batch size. timm's side is
its dataset, loader and transform with the best of 0, 1 and 2 workers; dla's is the command. Runs alternate; times are
medians of the loops, without start-up. Every photo whose first class differs is listed with its margin.
Needs the extra `dev` for timm and `demo` for the photos.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = {
    "skimage": ("data/chelsea.png", "data/coffee.png", "data/rocket.jpg", "data/astronaut.png"),
    "sklearn": ("datasets/images/china.jpg", "datasets/images/flower.jpg"),
}
BATCH = 8


def make_photos(folder: Path, count: int) -> None:
    """Write crops of real photos, scaled to about 500x375, as JPEGs of ordinary quality."""
    generator = np.random.default_rng(0)
    sources = [Image.open(Path(str(files(p))) / n).convert("RGB") for p, names in SOURCES.items() for n in names]
    for i in range(count):
        source = sources[i % len(sources)]
        share = generator.uniform(0.5, 1.0)
        w, h = source.width * share, source.width * share * 0.75
        if h > source.height:
            w, h = source.height / 0.75 * share, source.height * share
        left, top = generator.uniform(0, source.width - w), generator.uniform(0, source.height - h)
        size = (500 + int(generator.integers(-20, 21)), 375 + int(generator.integers(-20, 21)))
        photo = source.resize(size, Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
        photo.save(folder / f"{i:04d}.jpg", quality=88)


def make_model(name: str, photos: Path, folder: Path) -> None:
    """Write a model with random weights and batch-norm statistics of real photos, which keep activations in range."""
    import torch

    from dla import Preprocessing
    from dla.models.build import build
    from dla.weights.model_folder import ModelConfig, write_folder

    torch.manual_seed(0)
    model, preprocessing = build(name).train(), Preprocessing()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None
    scale, shift = (torch.from_numpy(a)[:, None, None] for a in preprocessing.scale_shift())
    chosen = sorted(photos.iterdir())[:: max(1, len(list(photos.iterdir())) // 32)][:32]
    pixels = np.stack([preprocessing.pixels(Image.open(p).convert("RGB")) for p in chosen])
    with torch.no_grad():
        for start in (0, 16):
            model(torch.from_numpy(pixels[start : start + 16]).permute(0, 3, 1, 2).float() * scale + shift)
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in ("url", "hf_hub_id")}
    write_folder(folder, model.state_dict(), ModelConfig(name, 1000, pretrained_cfg=cfg))


def timm_loop(name: str, photos: Path, model: Path, workers: int, out: Path) -> None:
    """Run the plain loop and print its seconds. Runs in a process of its own."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    import torch
    from safetensors.torch import load_file

    from support.oracle import timm

    network = timm.create_model(name).eval()
    network.load_state_dict(load_file(model / "model.safetensors"))
    config = timm.data.resolve_data_config({}, model=network)
    dataset = timm.data.create_dataset("", root=str(photos))
    loader = timm.data.create_loader(
        dataset, batch_size=BATCH, use_prefetcher=False, num_workers=workers, device=torch.device("cpu"), **config
    )
    began, found = time.perf_counter(), []
    with torch.inference_mode():
        for x, _ in loader:
            found += network(x).softmax(1).topk(5)[1].tolist()
    seconds = time.perf_counter() - began
    names = [os.path.basename(n) for n in dataset.filenames()]
    out.write_text(json.dumps(dict(zip(names, found, strict=True))))
    print(f"seconds {seconds:.3f}")


def ours(photos: Path, model: Path, out: Path, *flags: str) -> float:
    command = [sys.executable, "-m", "dla", "predict", str(photos), "--model", str(model), "--batch-size", str(BATCH)]
    done = subprocess.run([*command, *flags, "--force", "-o", str(out)], capture_output=True, text=True, check=True)
    found = re.search(r"([\d.]+) s, ", done.stderr)
    assert found, done.stderr
    return float(found[1])


def theirs(name: str, photos: Path, model: Path, workers: int, out: Path) -> float:
    words = ["--timm", name, str(photos), str(model), str(workers), str(out)]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def compare(name: str, photos: Path, work: Path, rounds: int) -> None:
    model, count = work / name, len(list(photos.iterdir()))
    make_model(name, photos, model)
    trial = work / "trial"
    trial.mkdir(exist_ok=True)
    for path in sorted(photos.iterdir())[:100]:
        (trial / path.name).write_bytes(path.read_bytes())
    by_workers = {n: theirs(name, trial, model, n, work / "t.json") for n in (0, 1, 2)}
    workers = min(by_workers, key=lambda n: by_workers[n])
    pairs = [
        (theirs(name, photos, model, workers, work / "theirs.json"), ours(photos, model, work / "ours.jsonl"))
        for _ in range(rounds)
    ]
    timm_s, dla_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = sorted(t / d for t, d in pairs)
    print(
        f"{name:8}  timm {count / timm_s:6.1f} photos/s ({workers} workers)   dla {count / dla_s:6.1f}   "
        f"ratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {rounds} rounds)"
    )
    differing(json.loads((work / "theirs.json").read_text()), work / "ours.jsonl")


def differing(theirs_by_name: dict[str, list[int]], ours_file: Path) -> None:
    records = [json.loads(line) for line in ours_file.read_text().splitlines()]
    different = [r for r in records if r["predictions"][0]["index"] != theirs_by_name[os.path.basename(r["path"])][0]]
    print(f"{'':8}  first class differs on {len(different)} of {len(records)} photos")
    for r in different:
        first, second = r["predictions"][:2]
        print(f"{'':10}{os.path.basename(r['path'])}  margin {first['probability'] - second['probability']:.2e}")


def memory(photos: Path, work: Path) -> None:
    """Measure the command's peak memory with the built-in network, for 1,000 and 20,000 paths on standard input."""
    paths = sorted(map(str, photos.iterdir()))
    peaks = {}
    for count in (1_000, 20_000):
        listed = work / "list.txt"
        listed.write_text("\n".join((paths * (count // len(paths) + 1))[:count]))
        command = [sys.executable, "-m", "dla", "predict", "-", "-q", "--force", "-o", str(work / "out.jsonl")]
        with listed.open() as lines, subprocess.Popen(command, stdin=lines) as process:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0
        assert sum(1 for _ in (work / "out.jsonl").open()) == count
        peaks[count] = usage.ru_maxrss / 1024
        print(f"{count:6,} inputs: peak {peaks[count]:.0f} MB")
    print(f"ratio {peaks[20_000] / peaks[1_000]:.3f}")


def main() -> None:
    if sys.argv[1:2] == ["--timm"]:
        name, photos, model, workers, out = sys.argv[2:]
        timm_loop(name, Path(photos), Path(model), int(workers), Path(out))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", default=["dla34", "dla60"])
    parser.add_argument("--memory", action="store_true", help="peak memory instead of speed")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        photos = work / "photos"
        photos.mkdir()
        make_photos(photos, args.photos)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {args.photos} photos")
        if args.memory:
            memory(photos, work)
        else:
            for name in args.models:
                compare(name, photos, work, args.rounds)


if __name__ == "__main__":
    main()
