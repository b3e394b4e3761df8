"""int8 models: networks with 8-bit multiplications, quantized by NNCF from a few photos and run by OpenVINO.

NNCF's overflow fix is on. It leaves one bit of the weights unused, so that int8 models are correct on every CPU,
including those without VNNI instructions, which add products in 16 bits.
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
from dla.errors import DamagedError, import_optional, pip_line
from dla.models.registry import LOGITS
from dla.storage.files import JsonObject, parse_object
from dla.types import NO_PROGRESS, Array, Progress

FORMAT = 1
KINDS = ("top1", "agreement", "miou", "ods")  # of gates
MAX_DROP = 0.005  # of top-1, as a share of the photos
# Instruction sets that add 8-bit products, the best first: CPUs with the same best one give the same results.
_BEST_FIRST = ("amx_int8", "avx512_vnni", "avx512f", "avx_vnni", "avx2", "i8mm", "asimddp")
_XML, _BIN, _ABOUT = "model.xml", "model.bin", "about.json"
_MOST_BYTES = 2**31
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)  # what reading a damaged file raises


@dataclass(frozen=True, slots=True)
class Gate:
    """An accuracy check: an int8 model compared with fp32 on photos that it was not calibrated on.

    `value` is a fraction from 0 to 1, by `kind`: for "top1", "miou" and "ods", the loss of top-1 accuracy, mean IoU or
    ODS from fp32 to int8; for "agreement", the photos with the same first class. `low` and `high` are its 95 %
    interval, None for "ods"; `fp32` and `int8` the score of each, if there are labels.
    `instructions` are the instruction sets of the CPU that it ran on.
    """

    passed: bool
    kind: str
    value: float
    low: float | None
    high: float | None
    photos: int
    fp32: float | None
    int8: float | None
    instructions: tuple[str, ...]

    def sentence(self) -> str:
        """Describe the outcome in one sentence."""
        interval = ""
        if self.low is not None and self.high is not None:
            interval = f" (95 % interval {100 * self.low:.2f} to {100 * self.high:.2f})"
        if self.kind == "ods":
            what = f"ODS {self.int8:.4f} in int8, {self.fp32:.4f} in fp32: a loss of {self.value:.4f}"
        elif self.kind in ("top1", "miou"):
            score = {"top1": "top-1", "miou": "mIoU"}[self.kind]
            what = f"{score} {100 * self.int8:.1f} % in int8, {100 * self.fp32:.1f} % in fp32"  # type: ignore[operator]
            what += f": a loss of {100 * self.value:.2f} points"
        else:
            what = f"the first class is fp32's on {100 * self.value:.2f} %"
        on = " ".join(self.instructions) or "unknown instructions"
        return f"{what}{interval}, on {self.photos:,} photos, on a CPU with {on}"


@dataclass(frozen=True, slots=True)
class QuantizedModel:
    """A network in int8: OpenVINO's two files, the network's `content` hash, and the accuracy checks so far.

    `calibration` holds NNCF's version, the number of photos, and whether accuracy control left layers in fp32.
    """

    xml: bytes
    weights: bytes
    content: str
    calibration: Mapping[str, Any]
    gates: tuple[Gate, ...] = ()

    @property
    def passed_here(self) -> Gate | None:
        """Return the gate that it passed on a CPU with the same best int8 instructions; None if there is none."""
        here = _best_int8(instructions())
        return next((gate for gate in self.gates if gate.passed and _best_int8(gate.instructions) == here), None)

    def with_gate(self, gate: Gate) -> QuantizedModel:
        """Return a copy with `gate` added; it replaces an earlier one of the same kind of CPU."""
        others = tuple(g for g in self.gates if _best_int8(g.instructions) != _best_int8(gate.instructions))
        return replace(self, gates=(*others, gate))

    def model(self, temperature: float = 1) -> Any:
        """Return the `openvino.Model`, from pixels (N, H, W, 3), uint8, to probabilities (N, K).

        Raises:
            DamagedError: OpenVINO cannot read it.
        """
        try:
            model = core().read_model(model=self.xml, weights=self.weights)
            if temperature != 1:  # as `Network.at_temperature`, but in OpenVINO's graph
                scores = model.get_results()[0].input_value(0).get_node().input(0)
                divided = import_openvino().opset13.multiply(scores.get_source_output(), np.float32(1 / temperature))
                scores.replace_source_output(divided.output(0))
            return model
        except (RuntimeError, IndexError):
            raise DamagedError(
                "the int8 model cannot be read: its network is damaged. Make it again: dla export --precision int8"
            ) from None

    def to_bytes(self) -> bytes:
        """Serialize to the bytes of a zip file; equal models give equal bytes."""
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
    """Parse what `to_bytes` wrote; `where` names it in messages.

    Raises:
        DamagedError: the bytes are not a complete int8 model.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(info.file_size for info in file.infolist()) > _MOST_BYTES:
                raise ValueError("it is larger than any network")
            if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in file.infolist()):
                raise ValueError("it uses another compression")
            about, xml, weights = (file.read(name) for name in (_ABOUT, _XML, _BIN))
        root = JsonObject(parse_object(about, _ABOUT), _ABOUT)
        root.get("format", int, str(FORMAT), lambda version: version == FORMAT)
        calibration = root.object("calibration")
        calibration.get("accuracy_control", bool, "true or false")
        gates = tuple(_gate(gate) for gate in root.objects("gates"))
        return QuantizedModel(xml, weights, root.get("content", str, "a text"), calibration.fields, gates)
    except (*_BAD_ZIP, DamagedError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise DamagedError(
            f"{where} is damaged: it is not a complete int8 model ({error}). Make it again: dla export --precision int8"
        ) from None


def _gate(saved: JsonObject) -> Gate:
    kind = saved.get("kind", str, ", ".join(KINDS), lambda kind: kind in KINDS)
    needed = {"default": None} if kind == "agreement" else {}
    interval = {"default": None} if kind == "ods" else {}

    def share(name: str, **default: Any) -> float:
        value: float = saved.get(name, (int, float), "a number from -1 to 1", lambda n: -1 <= n <= 1, **default)
        return value

    return Gate(
        passed=saved.get("passed", bool, "true or false"),
        kind=kind,
        value=share("value"),
        low=share("low", **interval),
        high=share("high", **interval),
        photos=saved.get("photos", int, "a number"),
        fp32=share("fp32", **needed),
        int8=share("int8", **needed),
        instructions=saved.texts("instructions"),
    )


def quantize(network: Network, pixels: Sequence[Array], progress: Progress = NO_PROGRESS) -> QuantizedModel:
    """Quantize a network to int8, calibrated on photos, uint8 (H, W, 3), all of the network's input size.

    Photos for a dense network may have any sizes, and its int8 model takes any.

    `progress` advances whenever a photo passes through the network.

    Raises:
        UnavailableError: NNCF is not installed.
    """
    with _nncf() as nncf:
        model = to_openvino(network, None, LOGITS) if network.is_dense else to_openvino(network, pixels[0].shape[:2])
        settings = _settings(nncf, network, len(pixels))
        quantized = nncf.quantize(model, _dataset(nncf, pixels, progress), advanced_parameters=_fix(nncf), **settings)
    return _quantized_model(quantized, network, nncf, {"photos": len(pixels), "accuracy_control": False})


def quantize_with_accuracy_control(
    network: Network, pixels: Sequence[Array], targets_N: Array, progress: Progress = NO_PROGRESS
) -> QuantizedModel:
    """Quantize like `quantize`, but keep layers in fp32 until top-1 on the photos drops by at most `MAX_DROP`.

    Raises:
        UnavailableError: NNCF is not installed.
    """

    def top1(compiled: Any, photos: Any) -> tuple[float, list[float]]:
        predicted = [compiled(photo)[0].argmax() for photo in photos]
        correct = [float(k == target) for k, target in zip(predicted, targets_N.tolist(), strict=False)]
        return float(np.mean(correct)), correct

    with _nncf() as nncf:
        model, photos = to_openvino(network, pixels[0].shape[:2]), _dataset(nncf, pixels, progress)
        settings = _settings(nncf, network, len(pixels)) | {"advanced_quantization_parameters": _fix(nncf)}
        quantized = nncf.quantize_with_accuracy_control(model, photos, photos, top1, max_drop=MAX_DROP, **settings)
    return _quantized_model(quantized, network, nncf, {"photos": len(pixels), "accuracy_control": True})


def _best_int8(instructions: tuple[str, ...]) -> str:
    """Return the best of a CPU's instruction sets for 8-bit products; "" where there are none, or none are known."""
    return next((name for name in _BEST_FIRST if name in instructions), "")


def _dataset(nncf: Any, pixels: Sequence[Array], progress: Progress) -> Any:
    def transform(photo_1HW3: Array) -> Array:
        progress.advance()
        return photo_1HW3

    progress.start("calibrating")  # without a total: NNCF decides how often it goes through the photos
    return nncf.Dataset([photo_HW3[None] for photo_HW3 in pixels], transform)


def _settings(nncf: Any, network: Network, photos: int) -> dict[str, Any]:
    layers = [op.attributes["layer"] for op in network.graph.ops if op.op_type == "conv"]
    return {
        "preset": nncf.QuantizationPreset.MIXED,
        "target_device": nncf.TargetDevice.CPU,
        "subset_size": photos,
        "fast_bias_correction": network.is_dense,  # the exact one takes hours for maps of this size
        # the first and last layers stay in fp32: they take little time and cause half of the error (docs/results.md)
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
    """Import NNCF without telemetry, and keep its progress bars off stdout."""
    import_openvino()
    with without_telemetry():
        nncf = import_optional("nncf", f"int8 models are made by NNCF: {pip_line('export')}")
    nncf.set_log_level(40)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield nncf
