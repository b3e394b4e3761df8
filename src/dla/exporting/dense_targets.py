"""Dense networks in the export formats: how each file is written and run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from dla.engines.dense_files import BYTE_CLASSES, DenseFile, dense_to_onnx, dense_to_openvino
from dla.engines.graph import Network
from dla.engines.onnx import PREPARED
from dla.exporting.targets import about_texts, onnx_session, save_openvino, save_program
from dla.images.preprocessing import Preprocessing
from dla.models.dense import Dense
from dla.models.fuse import fuse_conv_bn
from dla.models.normalize import Normalize
from dla.models.registry import LOGITS
from dla.options import TargetName
from dla.types import Array

if TYPE_CHECKING:
    from dla.engines.quantized import QuantizedModel as QuantizedModel

# uint8 (N, H, W, 3) -> the pixels that the network saw, uint8 (N, h, w, 3), and logits (N, K, H, W) and the answer
# (N, H, W) at the size of the input
RunDenseFile = Callable[[Array], tuple[Array, Array, Array]]


@dataclass(frozen=True, slots=True)
class DenseSource:
    """The input of an export: a network as operations and in PyTorch, its preprocessing, and `about`, the metadata.

    `takes_photos`: photos are scaled in the file, which is `file`. `quantized` is the int8 model to write, or None.
    """

    network: Network
    model: Dense
    preprocessing: Preprocessing
    file: DenseFile
    takes_photos: bool
    about: Mapping[str, Any]
    quantized: QuantizedModel | None = None


@dataclass(frozen=True, slots=True)
class DenseTarget:
    """How a file of one format is written and opened."""

    write: Callable[[DenseSource, Path], None]
    open: Callable[[Path, DenseFile], RunDenseFile]


def _write_onnx(source: DenseSource, path: Path) -> None:
    from onnx import helper

    model = dense_to_onnx(source.network, source.file)
    helper.set_model_props(model, about_texts(source.about))
    path.write_bytes(model.SerializeToString())


def _open_onnx(path: Path, file: DenseFile) -> RunDenseFile:
    import onnx

    model = onnx.load(path)
    added = {LOGITS: onnx.TensorProto.FLOAT, PREPARED: onnx.TensorProto.UINT8}
    for name in _results(file):
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, added[name], None))
    session = onnx_session(model)

    def run(pixels_NHW3: Array) -> tuple[Array, Array, Array]:
        answer_NHW, logits_NKHW, *prepared = session.run(None, {"pixels": pixels_NHW3})
        return (prepared[0] if prepared else pixels_NHW3), logits_NKHW, answer_NHW

    return run


def _write_openvino(source: DenseSource, path: Path) -> None:
    body = source.quantized.model() if source.quantized else None
    if body is not None:
        body.reshape([-1, -1, -1, 3])
    save_openvino(dense_to_openvino(source.network, source.file, body), source.about, path)


def _open_openvino(path: Path, file: DenseFile) -> RunDenseFile:
    from dla.engines.openvino import core

    model = core().read_model(path)
    model.add_outputs(_results(file))
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels_NHW3: Array) -> tuple[Array, Array, Array]:
        outputs = compiled([pixels_NHW3])
        prepared_NHW3 = pixels_NHW3 if file.short_side is None else outputs[PREPARED]
        return prepared_NHW3, outputs[LOGITS], outputs[file.answer]

    return run


def _results(file: DenseFile) -> list[str]:
    """Return the names of the intermediate results that are compared."""
    return [LOGITS] if file.short_side is None else [LOGITS, PREPARED]


def _write_pt2(source: DenseSource, path: Path) -> None:
    scale_shift = source.network.scale_3, source.network.shift_3
    save_program(dense_to_program(source.model, *scale_shift, source.file), source.about, path)


def _open_pt2(path: Path, file: DenseFile) -> RunDenseFile:
    module = torch.export.load(path).module()

    def run(pixels_NHW3: Array) -> tuple[Array, Array, Array]:
        with torch.inference_mode():
            answer_NHW, logits_NKHW = module(torch.from_numpy(pixels_NHW3))
            return pixels_NHW3, logits_NKHW.numpy(), answer_NHW.numpy()

    return run


class _DenseProgram(nn.Module):
    """The program in a "pt2" file: pixels (N, H, W, 3) -> the answer (N, H, W) and the logits (N, K, H, W)."""

    def __init__(self, network: nn.Module, scale_3: Array, shift_3: Array, file: DenseFile) -> None:
        super().__init__()
        self.normalize, self.network, self.file = Normalize(scale_3, shift_3), network, file

    def forward(self, pixels_NHW3: Tensor) -> tuple[Tensor, Tensor]:
        logits_NKHW: Tensor = self.network(self.normalize(pixels_NHW3))
        if self.file.task == "edges":
            return logits_NKHW.sigmoid()[:, 0], logits_NKHW
        best_NHW = logits_NKHW.argmax(1)
        return (best_NHW.to(torch.uint8) if self.file.classes <= BYTE_CLASSES else best_NHW), logits_NKHW


EXAMPLE = 2, 97, 161  # batch, height and width: all sizes stay free
ABOVE_STRIDE = 33  # the smallest height and width of a "pt2" file


def dense_to_program(model: nn.Module, scale_3: Array, shift_3: Array, file: DenseFile) -> Any:
    """Build a `torch.export.ExportedProgram` from pixels, uint8 (N, H, W, 3), to the answer and the logits.

    N is dynamic, and so are H and W above the backbone's stride.
    """
    program = _DenseProgram(fuse_conv_bn(model), scale_3, shift_3, file).eval()
    example = torch.zeros(*EXAMPLE, 3, dtype=torch.uint8)
    return export(program, (example,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},))


DENSE_TARGETS: Mapping[TargetName, DenseTarget] = {
    "onnx": DenseTarget(_write_onnx, _open_onnx),
    "openvino": DenseTarget(_write_openvino, _open_openvino),
    "pt2": DenseTarget(_write_pt2, _open_pt2),
}
assert set(DENSE_TARGETS) == set(get_args(TargetName))
