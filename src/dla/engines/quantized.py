"""int8: a network whose multiplications are in 8 bits, made by NNCF from a few photos, run by OpenVINO.

Made with NNCF's overflow fix, which leaves one bit of the weights unused, so that an int8 model is right on every CPU,
those without VNNI instructions included, which add products in 16 bits.
"""

from __future__ import annotations

import io
import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dla.engines.cpu import instructions
from dla.engines.graph import Network
from dla.engines.openvino import core, import_openvino, to_openvino, without_telemetry
from dla.errors import DamagedError, UnavailableError
from dla.storage.files import JsonObject, parse_object
from dla.types import NO_PROGRESS, Array, Progress

__all__ = ["MAX_DROP", "Gate", "QuantizedModel", "parse_quantized", "quantize", "quantize_with_accuracy_control"]


FORMAT = 1
MAX_DROP = 0.005  # of top-1, as a share of the photos
# What products of 8 bits are added by, the best first: two CPUs with the same one give the same answers.
_BEST_FIRST = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "i8mm", "asimddp")
_XML, _BIN, _ABOUT = "model.xml", "model.bin", "about.json"
_MOST_BYTES = 2**31


@dataclass(frozen=True, slots=True)
class Gate:
    """What an int8 model's answers were beside those in fp32, on photos that it was not made from.

    `kind` says what `value` is a share of: "top1", the photos that are right in fp32 less those that are in int8, or
    "agreement", the photos with the same first class. `low` and `high` are its 95 % interval; `fp32` and `int8` the
    top-1 of each, where there are labels. `instructions` are the CPU's that it ran on.
    """

    passed: bool
    kind: str
    value: float
    low: float
    high: float
    photos: int
    fp32: float | None
    int8: float | None
    instructions: tuple[str, ...]

    def sentence(self) -> str:
        """For people."""
        if self.kind == "top1":
            what = f"top-1 {100 * self.int8:.1f} % in int8, {100 * self.fp32:.1f} % in fp32"  # type: ignore[operator]
            what += f": a loss of {100 * self.value:.2f} points (95 % interval {100 * self.low:.2f} to "
            what += f"{100 * self.high:.2f})"
        else:
            what = (f"the first class is fp32's on {100 * self.value:.2f} % (95 % interval {100 * self.low:.2f} to "
                    f"{100 * self.high:.2f})")  # fmt: skip
        return (
            f"{what}, on {self.photos:,} photos, on a CPU with {' '.join(self.instructions) or 'unknown instructions'}"
        )


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """A network in int8: OpenVINO's two files, what it was made from (`content` of the network), and its gates.

    `calibration` says how: NNCF's version, how many photos, and whether layers were left in fp32 by accuracy control.
    """

    xml: bytes
    weights: bytes
    content: str
    calibration: Mapping[str, Any]
    gates: tuple[Gate, ...] = ()

    @property
    def passed_here(self) -> Gate | None:
        """The gate that it passed on a CPU that multiplies 8 bits as this one does."""
        here = _by(instructions())
        return next((gate for gate in self.gates if gate.passed and _by(gate.instructions) == here), None)

    def with_gate(self, gate: Gate) -> QuantizedModel:
        """The model with one gate more, in place of an earlier one on the same kind of CPU."""
        others = tuple(g for g in self.gates if _by(g.instructions) != _by(gate.instructions))
        return replace(self, gates=(*others, gate))

    def model(self, temperature: float = 1) -> Any:
        """The `openvino.Model`, from pixels (N, H, W, 3), uint8, to probabilities (N, K).

        Raises:
            DamagedError: OpenVINO cannot read it.
        """
        try:
            model = core().read_model(model=self.xml, weights=self.weights)
            if temperature != 1:  # as `Network.at_temperature`; but this graph is OpenVINO's already
                scores = model.get_results()[0].input_value(0).get_node().input(0)
                divided = import_openvino().opset13.multiply(scores.get_source_output(), np.float32(1 / temperature))
                scores.replace_source_output(divided.output(0))
            return model
        except RuntimeError as error:
            raise DamagedError(f"the int8 model cannot be read ({str(error).splitlines()[-1]}). Make it again: "
                               "dla export --precision int8") from None  # fmt: skip

    def to_bytes(self) -> bytes:
        """One file: a zip; equal models give equal bytes."""
        about = {
            "format": FORMAT,
            "content": self.content,
            "calibration": self.calibration,
            "gates": [asdict(g) for g in self.gates],
        }
        text = json.dumps(about, indent=1, sort_keys=True).encode() + b"\n"
        whole = io.BytesIO()
        with zipfile.ZipFile(whole, "w") as file:
            for name, data in ((_ABOUT, text), (_XML, self.xml), (_BIN, self.weights)):
                info = zipfile.ZipInfo(name)
                info.compress_type = zipfile.ZIP_STORED if name == _BIN else zipfile.ZIP_DEFLATED
                file.writestr(info, data)
        return whole.getvalue()


def parse_quantized(data: bytes, where: str) -> QuantizedModel:
    """What `to_bytes` wrote; `where` names it in messages.

    Raises:
        DamagedError: it is not such a file, or not whole.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(info.file_size for info in file.infolist()) > _MOST_BYTES:
                raise ValueError("it is larger than any network")
            if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in file.infolist()):
                raise ValueError("it is packed in another way")
            about, xml, weights = (file.read(name) for name in (_ABOUT, _XML, _BIN))
        root = JsonObject(parse_object(about, _ABOUT), _ABOUT)
        root.get("format", int, str(FORMAT), lambda version: version == FORMAT)
        content, calibration = root.get("content", str, "a text"), root.get("calibration", dict, "an object")
        gates = tuple(_gate(gate) for gate in root.get("gates", list, "a list"))
        return QuantizedModel(xml, weights, content, calibration, gates)
    except (
        zipfile.BadZipFile,
        zlib.error,
        DamagedError,
        EOFError,
        KeyError,
        OverflowError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise DamagedError(
            f"{where} is no whole int8 model ({error}). Make it again: dla export --precision int8"
        ) from None


def _gate(fields: Mapping[str, Any]) -> Gate:
    return Gate(**{**fields, "instructions": tuple(fields["instructions"])})


def quantize(network: Network, pixels: Sequence[Array], progress: Progress = NO_PROGRESS) -> QuantizedModel:
    """The network in 8 bits, the ranges of its maps taken from photos: uint8 (H, W, 3), all of the network's size.

    `progress` is told of each photo each time that it goes through the network.

    Raises:
        UnavailableError: NNCF is not installed.
    """
    with _nncf() as nncf:
        model = to_openvino(network, pixels[0].shape[:2])
        settings = _settings(nncf, network, len(pixels))
        quantized = nncf.quantize(model, _dataset(nncf, pixels, progress), advanced_parameters=_fix(nncf), **settings)
    return _quantized_model(quantized, network, nncf, {"photos": len(pixels), "accuracy_control": False})


def quantize_with_accuracy_control(
    network: Network, pixels: Sequence[Array], targets_N: Array, progress: Progress = NO_PROGRESS
) -> QuantizedModel:
    """The same, with those layers left in fp32 without which the photos' own top-1 would fall by over `MAX_DROP`.

    Raises:
        UnavailableError: NNCF is not installed.
    """

    def top1(compiled: Any, photos: Any) -> tuple[float, list[float]]:
        found = [compiled(photo)[0].argmax() for photo in photos]
        right = [float(k == target) for k, target in zip(found, targets_N.tolist(), strict=False)]
        return float(np.mean(right)), right

    with _nncf() as nncf:
        model, photos = to_openvino(network, pixels[0].shape[:2]), _dataset(nncf, pixels, progress)
        settings = _settings(nncf, network, len(pixels)) | {"advanced_quantization_parameters": _fix(nncf)}
        quantized = nncf.quantize_with_accuracy_control(model, photos, photos, top1, max_drop=MAX_DROP, **settings)
    return _quantized_model(quantized, network, nncf, {"photos": len(pixels), "accuracy_control": True})


def _by(instructions: tuple[str, ...]) -> str:
    """The best of a CPU's instructions for products of 8 bits; "" where it has none of them, or none are known."""
    return next((name for name in _BEST_FIRST if name in instructions), "")


def _dataset(nncf: Any, pixels: Sequence[Array], progress: Progress) -> Any:
    def taken(photo_1HW3: Array) -> Array:
        progress.advance()
        return photo_1HW3

    progress.start("calibrating")  # NNCF decides how often it goes through the photos
    return nncf.Dataset([photo_HW3[None] for photo_HW3 in pixels], taken)


def _settings(nncf: Any, network: Network, photos: int) -> dict[str, Any]:
    layers = [op.attributes["layer"] for op in network.graph.ops if op.op_type == "conv"]
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": photos,
        "fast_bias_correction": False,
        # the first layer and the last stay in fp32: little work, and half of the error (docs/results.md)
        "ignored_scope": nncf.IgnoredScope(names=[layers[0], layers[-1]]),
    }


def _fix(nncf: Any) -> Any:
    return nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)


def _quantized_model(model: Any, network: Network, nncf: Any, calibration: dict[str, Any]) -> QuantizedModel:
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside, _XML)
        import_openvino().save_model(model, file, compress_to_fp16=False)
        xml, weights = file.read_bytes(), file.with_suffix(".bin").read_bytes()
    return QuantizedModel(xml, weights, network.content, {"nncf": nncf.__version__, **calibration})


@contextmanager
def _nncf() -> Iterator[Any]:
    """NNCF, imported so that it tells nobody, and quiet: what it draws of its progress is not for stdout."""
    import_openvino()
    try:
        with without_telemetry():
            import nncf
    except ImportError:
        raise UnavailableError("int8 models are made by NNCF: pip install 'dla[export]'") from None
    nncf.set_log_level(40)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield nncf
