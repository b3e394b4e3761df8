"""A builder of ONNX graphs, and graph values with Python's arithmetic operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np

from dla.types import Array
from dla.version import __version__

OPSET, IR_VERSION = 18, 9
OLDEST_RUNTIME = "1.17"  # of ONNX Runtime, that runs the graphs


class OnnxBuilder:
    """Collect the nodes and constants of an ONNX graph. Results without a name are named by their number."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.numbers = count()

    def add(self, op: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        """Add one operation and return the name of its result."""
        from onnx import helper

        name = name or f"x{next(self.numbers)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Array) -> str:
        """Add a constant and return its name."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """Return the `onnx.ModelProto`; `inputs` and `outputs` are `ValueInfoProto`s."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "dla", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="dla", producer_version=__version__)  # fmt: skip


def _operator(op: str) -> Callable[[Value, Value | float], Value]:
    return lambda value, other: value.apply(op, other)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A result in a graph, with arithmetic operators. Python ints become int64 constants, floats float32."""

    builder: OnnxBuilder
    name: str

    @classmethod
    def of(cls, builder: OnnxBuilder, value: float | Array) -> Value:
        """Add a constant and return its value."""
        return cls(builder, builder.constant(_typed(value)))

    def apply(self, op: str, *others: Value | float | Array, **attributes: Any) -> Value:
        """Add an operation with this value as its first input and return its result."""
        values = [other if isinstance(other, Value) else Value.of(self.builder, other) for other in others]
        return Value(self.builder, self.builder.add(op, [self.name, *(v.name for v in values)], **attributes))

    __add__ = _operator("Add")
    __sub__ = _operator("Sub")
    __mul__ = _operator("Mul")
    __truediv__ = _operator("Div")  # truncates int64 values
    __matmul__ = _operator("MatMul")
    __lt__ = _operator("Less")
    __gt__ = _operator("Greater")
    __ge__ = _operator("GreaterOrEqual")
    __and__ = _operator("And")

    def choose(self, yes: Value | float, no: Value | float | Array) -> Value:
        """Return `yes` where this is true, else `no`."""
        return self.apply("Where", yes, no)

    def to(self, kind: type[np.generic]) -> Value:
        """Cast to another type."""
        from onnx import helper

        return self.apply("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def _typed(value: float | Array) -> Array:
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, np.int64 if isinstance(value, int) else np.float32)
