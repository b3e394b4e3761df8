"""Compare the engines with timm eager and with hand-written code, with the same float32 weights, in the same run.

    python benchmarks/engines.py one [--models dla34 dla60 dla46_c] [--rounds 7]
    python benchmarks/engines.py folder [--models ...] [--photos 1000] [--rounds 5]
    python benchmarks/engines.py parity [--models shipped:tiny200 dla46_c] [--photos 500]

one     One image at 224x224, pixels to probabilities: timm's network as its users run it; ONNX Runtime and OpenVINO by
        hand, on timm's network as exported by torch.onnx; each engine of dla, from `dla.load(engine=...)`; int8; bf16
        if the CPU has instructions for it.
folder  JPEGs of about 500x375 from the disk to their classes: a plain timm loop with the best of 0, 1 and 2 workers;
        the faster runtime by hand, with photos decoded and prepared by timm's transform in threads; `dla predict`; the
        same in int8, and in bf16 if the CPU has it.
parity  The largest difference of any probability from PyTorch's on the same pixels of real photos; every photo whose
        first class differs, with its margin.

Every case runs once in each round; prints medians, and the ratio to timm in the same round with its range. Weights are
random, with batch-norm statistics of photos; their int8 models have passed no gate and only serve to measure speed.
Needs the extras `dev`, `demo`, `engines` and `export`.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image
from predict import make_model, make_photos, ours, theirs

TESTS = Path(__file__).parent.parent / "tests"
ENGINES = ("openvino", "onnx", "torch")


def timms(name: str, model: Path):  # timm has no types
    """Return timm's network with the weights of a model folder, and its transform."""
    sys.path.insert(0, str(TESTS))
    from safetensors.torch import load_file

    from support.oracle import timm

    network = timm.create_model(name).eval()
    network.load_state_dict(load_file(model / "model.safetensors"))
    return network, timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))


def export(name: str, model: Path, file: Path) -> None:
    """Export timm's network with a softmax to an ONNX file with PyTorch's exporter."""
    import torch

    network = torch.nn.Sequential(timms(name, model)[0], torch.nn.Softmax(1)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network, torch.zeros(1, 3, 224, 224), file, dynamo=False, input_names=["x"],
                          dynamic_axes={"x": {0: "batch"}})  # fmt: skip


def openvino_by_hand(file: Path, hint: str):
    from dla.engines.openvino import import_openvino

    core = import_openvino().Core()
    network = core.read_model(file)
    network.reshape([1, 3, 224, 224])
    return core.compile_model(network, "CPU", {"PERFORMANCE_HINT": hint, "INFERENCE_PRECISION_HINT": "f32"})


def one(name: str, model: Path, rounds: int) -> None:
    """Measure the milliseconds for one image of each case in each round."""
    import onnxruntime
    import torch

    import dla

    export(name, model, file := model / "timm.onnx")
    pixels_1HW3 = np.random.default_rng(0).integers(0, 256, (1, 224, 224, 3), np.uint8)
    x = (pixels_1HW3.transpose(0, 3, 1, 2) / 255 - 0.45).astype(np.float32) / 0.22
    network, tensor = timms(name, model)[0], torch.from_numpy(x)
    session, request = onnxruntime.InferenceSession(file), openvino_by_hand(file, "LATENCY").create_infer_request()
    cases: dict[str, Callable[[], object]] = {
        "timm": lambda: network(tensor).softmax(1),
        "by hand: OpenVINO": lambda: request.infer({0: x}, share_inputs=True),
        "by hand: ONNX Runtime": lambda: session.run(None, {"x": x}),
    }
    for engine in ENGINES:
        run = dla.load(str(model), engine=engine, photos=1).engine.probabilities
        cases[f"dla: {engine}"] = lambda run=run: run(pixels_1HW3)
    for precision, said in reduced().items():
        run = dla.load(str(model), precision=precision, photos=1).engine.probabilities
        cases[f"dla: {said}"] = lambda run=run: run(pixels_1HW3)
    with torch.inference_mode():
        times: dict[str, list[float]] = {case: [] for case in cases}
        for number in range(rounds + 1):
            for case, run_once in cases.items():
                time.sleep(0.3)  # ONNX Runtime's threads go on spinning for a while
                run_once()
                each = sorted(timed(run_once) for _ in range(5))[2]
                if number:  # the first one warms
                    times[case].append(1000 * each)
    print_cases(name, times, "ms", lambda t, d: t / d)


def reduced() -> dict[str, str]:
    """Return the reduced precisions of this CPU and their titles."""
    from dla.engines.cpu import has_bf16

    return {"int8": "int8, ungated"} | ({"bf16": "bf16"} if has_bf16() else {})


def timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def print_cases(name: str, figures: dict[str, list[float]], unit: str, ratio: Callable[[float, float], float]) -> None:
    first = next(iter(figures))
    for case, values in figures.items():
        ratios = sorted(ratio(t, d) for t, d in zip(figures[first], values, strict=True))
        print(f"{name:9}{case:24}{statistics.median(values):8.1f} {unit}   {statistics.median(ratios):5.2f} "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)  # fmt: skip


def by_hand(name: str, photos: Path, model: Path, runtime: str) -> None:
    """Run one runtime with threads that decode and prepare by timm's transform, and print the seconds.

    Runs in a process of its own.
    """
    transform, paths = timms(name, model)[1], sorted(photos.iterdir())

    def prepare(path: Path) -> np.ndarray:
        return transform(Image.open(path).convert("RGB")).numpy()[None]

    found: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        if runtime == "openvino":
            from dla.engines.openvino import import_openvino

            queue = import_openvino().AsyncInferQueue(openvino_by_hand(model / "timm.onnx", "THROUGHPUT"))
            queue.set_callback(lambda request, _: found.append(int(request.get_output_tensor().data.argmax())))
            began = time.perf_counter()
            for x in ahead(pool, prepare, paths):
                queue.start_async({0: x}, share_inputs=True)
            queue.wait_all()
        else:
            import onnxruntime

            session = onnxruntime.InferenceSession(model / "timm.onnx")
            began = time.perf_counter()
            for x in ahead(pool, prepare, paths):
                found.append(int(session.run(None, {"x": x})[0].argmax()))
    print(f"seconds {time.perf_counter() - began:.3f}")
    assert len(found) == len(paths)


def ahead(pool: ThreadPoolExecutor, work: Callable[[Path], np.ndarray], paths: list[Path]):
    """Yield results in order, computing at most a dozen ahead."""
    waiting = [pool.submit(work, path) for path in paths[:12]]
    for path in [*paths[12:], *[None] * len(waiting)]:
        yield waiting.pop(0).result()
        if path is not None:
            waiting.append(pool.submit(work, path))


def folder(name: str, model: Path, photos: Path, rounds: int, work: Path) -> None:
    """Measure the photos per second of each case in each round; every run is a process of its own."""
    export(name, model, model / "timm.onnx")
    trial = work / "trial"
    trial.mkdir(exist_ok=True)
    for path in sorted(photos.iterdir())[:100]:
        (trial / path.name).write_bytes(path.read_bytes())
    workers = min((0, 1, 2), key=lambda n: theirs(name, trial, model, n, work / "t.json"))
    runtime = min(("openvino", "onnx"), key=lambda r: hand(name, trial, model, r))
    count = len(list(photos.iterdir()))
    ours(trial, model, work / "ours.jsonl")
    cases: dict[str, Callable[[], float]] = {
        f"timm, {workers} workers": lambda: theirs(name, photos, model, workers, work / "theirs.json"),
        f"by hand: {runtime}": lambda: hand(name, photos, model, runtime),
        "dla predict": lambda: ours(photos, model, work / "ours.jsonl"),
    }
    for precision, said in reduced().items():
        words = ("--precision", precision)
        cases[f"dla predict, {said}"] = lambda words=words: ours(photos, model, work / "reduced.jsonl", *words)
    speeds: dict[str, list[float]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, run in cases.items():
            speeds[case].append(count / run())
    print_cases(name, speeds, "photos/s", lambda t, d: d / t)


def parity(source: str, photos: Path) -> None:
    """Compare each engine's probabilities with PyTorch's."""
    import dla

    classifier = dla.load(source, engine="torch")
    pixels = [classifier.preprocessing.pixels(Image.open(path).convert("RGB")) for path in sorted(photos.iterdir())]
    batches = [np.stack(pixels[i : i + 8]) for i in range(0, len(pixels), 8)]
    expected_NK = np.concatenate([classifier.engine.probabilities(batch) for batch in batches])
    for engine in ("openvino", "onnx"):
        run = dla.load(source, engine=engine).engine.probabilities
        found_NK = np.concatenate([run(batch) for batch in batches])
        disagreements = np.flatnonzero(found_NK.argmax(1) != expected_NK.argmax(1))
        largest = np.abs(found_NK - expected_NK).max()
        print(f"{Path(source).name:16}{engine:10}{len(pixels)} photos: largest difference {largest:.1e}, "
              f"{len(disagreements)} first classes differ", flush=True)  # fmt: skip
        for n in disagreements:
            second, first = np.sort(expected_NK[n])[-2:]
            print(f"{'':26}{sorted(photos.iterdir())[n].name}  margin {first - second:.1e}")


def hand(name: str, photos: Path, model: Path, runtime: str) -> float:
    words = ["--by-hand", name, str(photos), str(model), runtime]
    done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    if sys.argv[1:2] == ["--by-hand"]:
        name, photos, model, runtime = sys.argv[2:]
        by_hand(name, Path(photos), Path(model), runtime)
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("one", "folder", "parity"))
    parser.add_argument("--models", nargs="+", default=["dla34", "dla60", "dla46_c"])
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (photos := work / "photos").mkdir()
        make_photos(photos, 32 if args.what == "one" else args.photos)
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        for name in args.models:
            if ":" not in name:
                make_model(name, photos, work / name)
            if args.what != "parity":
                from dla.benchmarking.bench import add_random_int8

                add_random_int8(work / name)
            if args.what == "parity":
                parity(name if ":" in name else str(work / name), photos)
            elif args.what == "one":
                one(name, work / name, args.rounds)
            else:
                folder(name, work / name, photos, args.rounds, work)


if __name__ == "__main__":
    main()
