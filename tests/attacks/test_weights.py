"""Files made to harm: refused in words of ours, nothing executed, nothing outside the folder touched."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from dla.errors import DamagedError, UnavailableError
from dla.models.build import build
from dla.weights.load import load_model
from dla.weights.model_folder import ModelConfig, write_folder
from dla.weights.state_files import parse_weights, read_state


class Bomb:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.marker,)


def check_bomb_is_live(data: bytes, marker: Path) -> None:
    """Without this the tests below could not fail."""
    torch.load(io.BytesIO(data), weights_only=False)
    assert marker.exists()
    marker.unlink()


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.bin", "w.pth.tar"])
def test_a_pickle_bomb(tmp_path: Path, name: str, zipped: bool) -> None:
    marker = tmp_path / "executed"
    torch.save(
        {"fc.weight": torch.zeros(2), "fc.bias": Bomb(marker)}, tmp_path / name, _use_new_zipfile_serialization=zipped
    )
    check_bomb_is_live((tmp_path / name).read_bytes(), marker)
    with pytest.raises(UnavailableError) as raised:
        load_model(str(tmp_path / name))
    assert not marker.exists()
    assert str(raised.value) == (
        f"{tmp_path / name} holds more than tensors (getattr); it was not loaded and nothing in it was executed. "
        "Try: convert it to .safetensors on a machine where you trust it."
    )


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_bare_pickle(tmp_path: Path, protocol: int, name: str) -> None:
    marker = tmp_path / "executed"
    data = pickle.dumps(Bomb(marker), protocol)
    pickle.loads(data)
    assert marker.exists()
    marker.unlink()
    with pytest.raises(UnavailableError):
        parse_weights(data, name)
    assert not marker.exists()


def test_a_bomb_beside_good_weights(tmp_path: Path) -> None:
    """In a folder with safetensors the pickle is not even opened."""
    marker = tmp_path / "executed"
    model = build("dla46_c", num_classes=2)
    write_folder(tmp_path / "m", model.state_dict(), ModelConfig("dla46_c", 2))
    torch.save(Bomb(marker), tmp_path / "m" / "pytorch_model.bin")
    assert load_model(str(tmp_path / "m")).report.notes == ()
    assert not marker.exists()


def test_a_whole_module_is_not_unpickled(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(UnavailableError, match=r"holds more than tensors \(torch\.nn\.modules\.linear\.Linear\)"):
        read_state(tmp_path / "w.pth")


def test_a_zip_bomb() -> None:
    """PyTorch would unfold it; here 20 kB stay 20 kB."""
    stored, packed = io.BytesIO(), io.BytesIO()
    torch.save({"a": torch.zeros(5_000_000)}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert len(packed.getvalue()) < 50_000
    packed.seek(0)
    assert torch.load(packed, weights_only=True)["a"].numel() == 5_000_000
    with pytest.raises(DamagedError, match="is a compressed archive, which PyTorch does not write"):
        parse_weights(packed.getvalue(), "w.pth")


def test_a_tensor_larger_than_its_file(tmp_path: Path) -> None:
    """A terabyte by stride 0: refused by its shape, before anything looks at its values."""
    state = build("dla46_c", num_classes=2).state_dict()
    state["fc.bias"] = torch.zeros(1).expand(2**40)
    torch.save(state, tmp_path / "w.pth")
    assert (tmp_path / "w.pth").stat().st_size < 10_000_000
    with pytest.raises(DamagedError, match="fc.bias: 1099511627776 in the file, 2 in the network"):
        load_model(str(tmp_path / "w.pth"), architecture="dla46_c")


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def safetensors_file(header: Any, data: bytes = bytes(16), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


LIES = {
    "header beyond the file": safetensors_file({"a": tensor(0, 16, [4])}, length=10_000),
    "header of 16 exabytes": safetensors_file({"a": tensor(0, 16, [4])}, length=2**64 - 1),
    "header shorter than it is": safetensors_file({"a": tensor(0, 16, [4])}, length=10),
    "data beyond the file": safetensors_file({"a": tensor(0, 1600, [400])}),
    "data before the file": safetensors_file({"a": tensor(-16, 0, [4])}),
    "overlapping": safetensors_file({"a": tensor(0, 16, [4]), "b": tensor(8, 16, [2])}),
    "with a hole": safetensors_file({"a": tensor(0, 4, [1]), "b": tensor(12, 16, [1])}),
    "more data than told": safetensors_file({"a": tensor(0, 8, [2])}),
    "backwards": safetensors_file({"a": tensor(16, 0, [4])}),
    "shape larger than data": safetensors_file({"a": tensor(0, 16, [2**40])}),
    "shape that overflows": safetensors_file({"a": tensor(0, 16, [2**62, 2**62])}),
    "negative shape": safetensors_file({"a": tensor(0, 16, [-4])}),
    "unknown type": safetensors_file({"a": tensor(0, 16, [4], "PICKLE")}),
    "no json": safetensors_file(b"{" * 100),
    "deep json": safetensors_file(b'{"a":' + b"[" * 100_000),
    "a list": safetensors_file([1, 2]),
    "not unicode": safetensors_file(b'{"\xff\xff": 1}'),
    "nothing but a length": struct.pack("<Q", 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header(tmp_path: Path, lie: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(LIES[lie])
    with pytest.raises(DamagedError) as raised:
        read_state(path)
    assert str(raised.value).startswith(f"{path} is truncated or damaged (")


def test_the_truth_is_read() -> None:
    """The same bytes with a true header: the lies above are what is refused."""
    read = parse_weights(safetensors_file({"a": tensor(0, 8, [2]), "b": tensor(8, 16, [2])}), "w.safetensors")
    assert {name: value.tolist() for name, value in read.state.items()} == {"a": [0.0, 0.0], "b": [0.0, 0.0]}


PATHS = ["..", "../../etc/passwd", "/etc/passwd", "C:\\Windows", "~/x", "http://127.0.0.1:9/x", "file:///etc/passwd"]


@pytest.mark.parametrize("path", PATHS)
def test_paths_in_a_config_lead_nowhere(tmp_path: Path, path: str) -> None:
    """Where a path could do harm it is refused; where timm keeps addresses it is kept as text and never followed."""
    model = build("dla46_c", num_classes=2)
    folder = tmp_path / "m"
    write_folder(folder, model.state_dict(), ModelConfig("dla46_c", 2))
    good = json.loads((folder / "config.json").read_text())

    def opened(**changes: Any) -> Any:
        (folder / "config.json").write_text(json.dumps(good | changes))
        return load_model(str(folder))

    for field in ({"architecture": path}, {"model_args": {"block": path}}, {"model_args": {"global_pool": path}}):
        with pytest.raises(DamagedError, match=r"m.config\.json: "):
            opened(**field)
    with pytest.raises(DamagedError, match=r"m.config\.json: "):
        opened(model_args={path: 1})
    followed = dict.fromkeys(("file", "url", "hf_hub_id", "hf_hub_filename", "custom_load", "source"), path)
    loaded = opened(label_names=[path, "b"], pretrained_cfg=followed, dla={"data": path})
    assert torch.equal(loaded.model.fc.weight, model.fc.weight), "the weights are those of the folder"
    assert loaded.config.label_names == (path, "b")
    write_folder(tmp_path / "out", loaded.model.state_dict(), loaded.config)
    assert sorted(entry.name for entry in tmp_path.rglob("*") if entry.is_file()) == [
        "config.json", "config.json", "model.safetensors", "model.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("root", [{"num_classes": 10**6}, {"model_args": {"in_chans": 65_536}}])
def test_a_config_that_asks_for_memory(tmp_path: Path, root: dict[str, Any]) -> None:
    """The network is built without memory until the weights have proved to fit."""
    write_folder(tmp_path, build("dla46_c", num_classes=2).state_dict(), ModelConfig("dla46_c", 2))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | root))
    with pytest.raises(DamagedError, match="tensors of another shape"):
        load_model(str(tmp_path))
