"""JSON made to harm, everywhere it is read: each field in turn holds what it never holds. No reader breaks."""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dla.data.split_file import restore_splits
from dla.engines.graph import OpGraph
from dla.engines.quantized import parse_quantized
from dla.errors import DamagedError, DlaError, UsageError
from dla.images.preprocessing import Preprocessing
from dla.inference.result_files import read_jsonl
from dla.storage.files import parse_json, parse_object, read_json
from dla.training.events import EpochEvent
from dla.training.run_folder import RunFolder, read_epochs
from dla.weights.model_folder import parse_config
from dla.weights.shards import join_shards, shard_names

ODD: list[Any] = [
    {}, [], {"a": {"b": []}}, [[1]], [{}], "", "\ud800", -1, 2**70, 1e300, float("nan"), float("inf"), True, None, 0.5,
    json.loads("[" * 90 + "]" * 90),
]  # fmt: skip


def altered(root: Any) -> Iterator[Any]:
    """The document with each of its values, its root too, replaced by each of the odd ones, or left out."""
    yield from ODD
    for path in list(paths(root)):
        for odd in [*ODD, KeyError]:
            other = copy.deepcopy(root)
            place = other
            for step in path[:-1]:
                place = place[step]
            if odd is KeyError:
                del place[path[-1]]
            else:
                place[path[-1]] = odd
            yield other


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from paths(inner, (*at, key))


CONFIG = {
    "architecture": "dla46_c", "num_classes": 2, "label_names": ["a", "b"], "label_descriptions": {"a": "A"},
    "model_args": {"in_chans": 3, "global_pool": "avg", "drop_rate": 0.1},
    "pretrained_cfg": {"input_size": [3, 32, 32], "crop_pct": 0.9, "mean": [0, 0, 0], "std": [1, 1, 1],
                       "interpolation": "bilinear", "crop_mode": "center"},
    "dla": {"format": 1, "temperature": 1.5, "preprocessing": {"exif": "apply"}},
}  # fmt: skip
OLDER = {"architecture": "dla46_c", "num_classes": 2, "labels": ["a", "b"], "global_pool": "avg"} | CONFIG[
    "pretrained_cfg"
]  # type: ignore[operator]
DATA = {
    "schema": "dla.data/1", "split_method": "x", "class_ids": ["a", "b"],
    "train": {"count": 3, "photos": ["a/1.jpg", "a/2.jpg", "b/1.jpg"], "targets": [0, 0, 1]},
    "val": {"count": 1, "photos": ["b/2.jpg"], "targets": [1]},
    "unreadable": [{"name": "a/x", "code": "truncated", "message": "m"}], "notes": ["n"],
}  # fmt: skip
GRAPH = {
    "ops": [
        {"op_type": "conv", "inputs": [0], "attributes": {"layer": "a", "norm": None, "eps": 0.1, "stride": 1,
         "padding": 1, "dilation": 1, "groups": 1}},
        {"op_type": "add", "inputs": [0, 1], "attributes": {}},
    ],
    "output": 2, "nodes": {"level0": 1},
}  # fmt: skip
GATE = {"passed": True, "kind": "top1", "value": 0.1, "low": 0.0, "high": 0.2, "photos": 9, "fp32": 0.5, "int8": 0.4,
        "instructions": ["avx2"]}  # fmt: skip
ABOUT = {"format": 1, "content": "0" * 32, "calibration": {"accuracy_control": False, "photos": 3}, "gates": [GATE]}
RUN = {
    "schema": "dla.run/1", "finished": True, "versions": {"torch": "1"}, "machine": {"threads": 2}, "data": {"n": 1},
    "best": {"epoch": 1, "top1": 0.5, "top1_interval": [0.4, 0.6]}, "command": ["dla"],
}  # fmt: skip
EPOCH = EpochEvent(1, 10, 0.1, 0.1, {"top1": 0.1, "top5": 0.1, "val_loss": 0.1}, 0.1, 0.1, 0.1).to_dict()
RESULT = {"schema": "dla.predict/1", "path": "a.jpg", "predictions": []}
INDEX = {"metadata": {}, "weight_map": {"a": "model-1.safetensors"}}


def read_config(data: bytes, folder: Path) -> object:
    config = parse_config(data, "config.json")
    preprocessing = Preprocessing.from_config(config.pretrained_cfg, config.exif)
    return config.to_json(), config.in_chans, config.temperature, preprocessing.scale_shift(), preprocessing.target


def read_data(data: bytes, folder: Path) -> object:
    return restore_splits(parse_object(data, "data.json"), folder / "photos")


def read_about(data: bytes, folder: Path) -> object:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in (("about.json", data), ("model.xml", b"x"), ("model.bin", b"y")):
            archive.writestr(name, content)
    quantized = parse_quantized(file.getvalue(), "int8.zip")
    return quantized.passed_here, quantized.to_bytes(), [gate.sentence() for gate in quantized.gates]


def read_run(data: bytes, folder: Path) -> object:
    (folder / "run.json").write_bytes(data)
    best = RunFolder(folder).facts().get("best") or {}
    return f"{best['top1']:.1%} {best['top1_interval'][0]:.1%}" if "top1_interval" in best else ""


def read_metrics(data: bytes, folder: Path) -> object:
    (folder / "metrics.jsonl").write_bytes(data + b"\n")
    epochs = read_epochs(folder / "metrics.jsonl")
    return [e["epoch"] <= 3 for e in epochs], sum(e["seconds"] for e in epochs)


def read_results(data: bytes, folder: Path) -> object:
    (folder / "r.jsonl").write_bytes(data + b"\n")
    with (folder / "r.jsonl").open("rb") as file:
        return [hash(record) for record in read_jsonl(file)]


READERS: dict[str, tuple[Any, Callable[[bytes, Path], object]]] = {
    "config.json": (CONFIG, read_config),
    "older config.json": (OLDER, read_config),
    "data.json": (DATA, read_data),
    "ops": (GRAPH, lambda data, _: OpGraph.from_json(data.decode()).to_json()),
    "int8.zip": (ABOUT, read_about),
    "run.json": (RUN, read_run),
    "metrics.jsonl": (EPOCH, read_metrics),
    "result file": (RESULT, read_results),
    "index": (INDEX, lambda data, _: shard_names(data, "index")),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a/1.jpg", "a/2.jpg", "a/x", "b/1.jpg", "b/2.jpg"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).touch()
    return tmp_path


@pytest.mark.parametrize("name", READERS)
def test_no_value_of_any_field_breaks_a_reader(name: str, folder: Path) -> None:
    whole, read = READERS[name]
    read(json.dumps(whole).encode(), folder)
    refused: list[DlaError] = []
    for document in altered(whole):
        try:
            read(json.dumps(document).encode(), folder)
        except DlaError as error:
            refused.append(error)
    assert {error.exit_code for error in refused} <= {2, 3}
    assert not any("\n" in str(error) for error in refused)
    assert len(refused) > 5 or name == "metrics.jsonl"  # whose damaged lines are left out


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("depth", [101, 500, 990, 100_000])
def test_deep_json(name: str, depth: int, folder: Path) -> None:
    whole, read = READERS[name]
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    inside = json.dumps(whole | {"odd": 0}).encode().replace(b'"odd": 0', b'"odd": ' + deep)
    for data in (deep, inside):
        if name == "metrics.jsonl":
            read(data, folder)
            assert read_epochs(folder / "metrics.jsonl") == []
            continue
        with pytest.raises(DlaError) as caught:
            read(data, folder)
        assert caught.value.exit_code in (2, 3)


def test_what_json_parses_can_be_written_again(tmp_path: Path) -> None:
    deepest = "[" * 100 + "]" * 100
    assert json.dumps(parse_json(deepest.encode(), "x")) == deepest
    (tmp_path / "f.json").write_text('{"a":' + deepest + "}")
    with pytest.raises(DamagedError, match="is not valid JSON: it is nested deeper than 100 levels"):
        read_json(tmp_path / "f.json")


def test_the_list_of_a_run_with_values_that_cannot_be_keys(folder: Path) -> None:
    for field, odd in (("photos", ["a/1.jpg", {}]), ("targets", [0, []])):
        saved = copy.deepcopy(DATA)
        saved["val"] = {"count": 2, "photos": ["a/1.jpg", "b/2.jpg"], "targets": [0, 1], field: odd}
        with pytest.raises(UsageError, match="was altered"):
            restore_splits(saved, folder / "photos")


@pytest.mark.parametrize("name", ["../x.safetensors", "/x.safetensors", "a/x.safetensors", ".x.safetensors", "x.pth",
                                  "a\\x.safetensors", "", "x.safetensors\n", 3, None, []])  # fmt: skip
def test_an_index_names_files_of_its_own_folder_only(name: Any) -> None:
    read: list[str] = []

    def note(name: str) -> bytes:
        read.append(name)
        return b""

    with pytest.raises(DamagedError):
        join_shards(json.dumps({"weight_map": {"a": name}}).encode(), "index", note)
    assert read == []
