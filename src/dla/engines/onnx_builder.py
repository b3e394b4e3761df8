"""What ONNX graphs are made with: nodes and constants one by one, and numbers that compute as in Python."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dla.types import Array
from dla.version import __version__

__all__ = ["OnnxBuilder", "Value"]


OPSET, IR_VERSION = 18, 9  # runtimes of the last years read these


class OnnxBuilder:
    """Nodes and constants of a graph to be. A result that is given no name has its number as its name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def add(self, op: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        """Add one operation; the name of its result."""
        from onnx import helper

        name = name or f"x{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Array) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def model(self, inputs: list[Any], outputs: list[Any]) -> Any:
        """The whole as an `onnx.ModelProto`; inputs and outputs are its `ValueInfoProto`s."""
        from onnx import helper

        graph = helper.make_graph(self.nodes, "dla", inputs, outputs, self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
                                 producer_name="dla", producer_version=__version__)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A result of a graph, to compute with. Plain whole numbers beside it are int64, others float32."""

    made: OnnxBuilder
    name: str

    @classmethod
    def of(cls, made: OnnxBuilder, value: float | Array) -> Value:
        """A constant."""
        return cls(made, made.constant(_typed(value)))

    def apply(self, op: str, *others: Value | float | Array, **attributes: Any) -> Value:
        """The result of any operation whose first input this is."""
        numbers = [other if isinstance(other, Value) else Value.of(self.made, other) for other in others]
        return Value(self.made, self.made.add(op, [self.name, *(n.name for n in numbers)], **attributes))

    def __add__(self, other: Value | float) -> Value:
        return self.apply("Add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self.apply("Sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self.apply("Mul", other)

    def __truediv__(self, other: Value | float) -> Value:
        """Of int64 the whole part."""
        return self.apply("Div", other)

    def __matmul__(self, other: Value) -> Value:
        return self.apply("MatMul", other)

    def __lt__(self, other: Value | float) -> Value:
        return self.apply("Less", other)

    def __gt__(self, other: Value | float) -> Value:
        return self.apply("Greater", other)

    def __ge__(self, other: Value | float) -> Value:
        return self.apply("GreaterOrEqual", other)

    def __and__(self, other: Value) -> Value:
        return self.apply("And", other)

    def choose(self, yes: Value | float, no: Value | float | Array) -> Value:
        """`yes` where this is true, else `no`."""
        return self.apply("Where", yes, no)

    def to(self, kind: type[np.generic]) -> Value:
        """The same as another type."""
        from onnx import helper

        return self.apply("Cast", to=helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


def _typed(value: float | Array) -> Array:
    if isinstance(value, np.ndarray):
        return value
    return np.array(value, np.int64 if isinstance(value, int) else np.float32)
