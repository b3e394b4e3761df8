"""The export formats: how each is written and run."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from dla.engines.graph import Network
from dla.engines.onnx_builder import OLDEST_RUNTIME
from dla.engines.quantized import QuantizedModel
from dla.images.preprocessing import Preprocessing
from dla.models.dla import DLA
from dla.models.fuse import fuse_conv_bn
from dla.models.normalize import Normalize
from dla.options import TargetName, cores
from dla.types import Array

# uint8 (N, H, W, 3) -> the preprocessed pixels, uint8 (N, H, W, 3), and the probabilities (N, K)
RunFile = Callable[[Array], tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class ExportSource:
    """The input of an export: a network as operations and in PyTorch, its preprocessing, and `about`, the metadata.

    `network` includes the temperature, `model` does not. `takes_photos`: include the preprocessing in the file.
    `quantized` is the int8 model to write instead of the network, or None.
    """

    network: Network
    model: DLA
    temperature: float
    preprocessing: Preprocessing
    takes_photos: bool
    about: Mapping[str, Any]
    quantized: QuantizedModel | None = None

    @property
    def above_stride(self) -> bool:
        """Return whether the network's input size is larger than its output stride."""
        stride: int = self.model.feature_info[-1]["reduction"]
        return min(self.preprocessing.size) > stride

    @property
    def inside(self) -> Preprocessing | None:
        """Return the preprocessing to include in the file, or None."""
        return self.preprocessing if self.takes_photos else None


@dataclass(frozen=True, slots=True)
class Target:
    """One export format. `file` is the name of the file to open; `packages` are needed to write and to run it.

    `runs_in` names the runtime, and its oldest release where that is tested.
    `takes_photos`: the file can include the preprocessing. `any_size`: H and W are free, however small.
    """

    title: str
    file: str
    packages: tuple[str, ...]
    runs_in: str
    takes_photos: bool
    any_size: bool
    write: Callable[[ExportSource, Path], None]
    open: Callable[[Path, bool], RunFile]

    @property
    def runtime(self) -> str:
        """Return the package that runs the file, with its installed version."""
        return f"{self.packages[0]} {version(self.packages[0])}"


def _write_onnx(source: ExportSource, path: Path) -> None:
    from onnx import helper

    from dla.engines.onnx import to_onnx

    model = to_onnx(source.network, preprocessing=source.inside)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = len(source.about["class_ids"])
    helper.set_model_props(model, about_texts(source.about))
    path.write_bytes(model.SerializeToString())


def _open_onnx(path: Path, takes_photos: bool) -> RunFile:
    import onnx

    from dla.engines.onnx import PREPARED

    model = onnx.load(path)
    if takes_photos:
        model.graph.output.append(onnx.helper.make_tensor_value_info(PREPARED, onnx.TensorProto.UINT8, None))
    session = onnx_session(model)

    def run(pixels_NHW3: Array) -> tuple[Array, Array]:
        probabilities_NK, *prepared = session.run(None, {"pixels": pixels_NHW3})
        return (prepared[0] if takes_photos else pixels_NHW3), probabilities_NK

    return run


def onnx_session(model: Any) -> Any:
    """Open an `onnx.ModelProto` in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = cores(), 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _write_openvino(source: ExportSource, path: Path) -> None:
    from dla.engines.openvino import to_openvino

    size = source.preprocessing.size if source.takes_photos else None
    if source.quantized is None:
        model = to_openvino(source.network, size)
    else:
        model = source.quantized.model(source.temperature)
        model.reshape([-1, *(size or (-1, -1)), 3])
    if source.inside is not None:
        from dla.engines.onnx import PREPARED
        from dla.engines.openvino import add_preprocessing_to

        model = add_preprocessing_to(model, source.inside, PREPARED)
    save_openvino(model, source.about, path)


def save_openvino(model: Any, about: Mapping[str, Any], path: Path) -> None:
    """Write an `openvino.Model` with its metadata."""
    from dla.engines.openvino import import_openvino

    for key, text in about_texts(about).items():
        model.set_rt_info(text, ["dla", key])
    try:
        import_openvino().save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from error


def _open_openvino(path: Path, takes_photos: bool) -> RunFile:
    from dla.engines.onnx import PREPARED
    from dla.engines.openvino import core

    model = core().read_model(path)
    if takes_photos:
        model.add_outputs(PREPARED)
    compiled = core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(pixels_NHW3: Array) -> tuple[Array, Array]:
        outputs = compiled([pixels_NHW3])
        return (outputs[PREPARED] if takes_photos else pixels_NHW3), outputs["probabilities"]

    return run


def _write_pt2(source: ExportSource, path: Path) -> None:
    scale_shift = source.network.scale_3, source.network.shift_3
    program = to_program(source.model, *scale_shift, source.temperature, source.preprocessing.size)
    save_program(program, source.about, path)


def save_program(program: Any, about: Mapping[str, Any], path: Path) -> None:
    """Write a `torch.export.ExportedProgram` with its metadata."""
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={"about.json": json.dumps(about)})
    path.write_bytes(file.getvalue())


def _open_pt2(path: Path, takes_photos: bool) -> RunFile:
    module = torch.export.load(path).module()

    def run(pixels_NHW3: Array) -> tuple[Array, Array]:
        with torch.inference_mode():
            return pixels_NHW3, module(torch.from_numpy(pixels_NHW3)).numpy()

    return run


def about_texts(about: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata's values as strings, those of other types as JSON."""
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}


_ONNX_RUNTIMES = f"ONNX Runtime {OLDEST_RUNTIME} or newer"
TARGETS: Mapping[TargetName, Target] = {
    "onnx": Target("ONNX", "model.onnx", ("onnxruntime", "onnx"), _ONNX_RUNTIMES, True, True, _write_onnx, _open_onnx),
    "openvino": Target("OpenVINO", "model.xml", ("openvino",), "OpenVINO", True, True, _write_openvino, _open_openvino),
    "pt2": Target("PyTorch", "model.pt2", ("torch",), "PyTorch", False, False, _write_pt2, _open_pt2),
}
assert set(TARGETS) == set(get_args(TargetName))


class _Program(nn.Module):
    """The program in a "pt2" file: pixels (N, H, W, 3) -> probabilities (N, K)."""

    def __init__(self, network: nn.Module, scale_3: Array, shift_3: Array, temperature: float) -> None:
        super().__init__()
        self.normalize, self.network, self.temperature = Normalize(scale_3, shift_3), network, temperature

    def forward(self, pixels_NHW3: Tensor) -> Tensor:
        # as `dla.metrics.calibration.apply_temperature`, which is NumPy and cannot be exported
        probabilities_NK: Tensor = (self.network(self.normalize(pixels_NHW3)) / self.temperature).softmax(1)
        return probabilities_NK


def to_program(model: nn.Module, scale_3: Array, shift_3: Array, temperature: float, size: tuple[int, int]) -> Any:
    """Build a `torch.export.ExportedProgram` from preprocessed pixels, uint8 (N, H, W, 3), to probabilities (N, K).

    N is dynamic, and so are H and W above the network's stride. If `size`, (height, width), is not above the stride, H
    and W are fixed to it.
    """
    program = _Program(fuse_conv_bn(model), scale_3, shift_3, temperature).eval()
    example = torch.zeros(2, *size, 3, dtype=torch.uint8)
    return export(program, (example,), dynamic_shapes=({0: Dim.AUTO, 1: Dim.AUTO, 2: Dim.AUTO},))
