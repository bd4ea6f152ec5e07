"""A graph's matrices and tables of embeddings in 8 bits.

What a matrix is multiplied with is cut to 8 bits as well, with a scale for each token: an outlier costs its own token
alone, and no answer depends on what else is in the batch. (onnxruntime's ``quantize_dynamic`` has one scale for all
tokens of a batch, which changes twice as many labels. Scales for each token and each output: Dettmers et al. 2022,
https://arxiv.org/abs/2208.07339, section 2.1.) What reads one vector a text (``Gemm``) stays as it is: nothing
would be gained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def quantize(whole: Path, file: Path) -> None:
    """Write a graph again, with its matrices and tables of embeddings in 8 bits.

    Args:
        whole: the graph in float32.
        file: where to.
    """
    import onnx

    model = onnx.load(whole)
    rewritten = _Rewritten(model.graph)
    for node in model.graph.node:
        rewritten.take(node)
    del model.graph.node[:]
    model.graph.node.extend(rewritten.nodes)
    read = {name for node in rewritten.nodes for name in node.input}
    kept = [one for one in model.graph.initializer if one.name in read]
    added = [onnx.numpy_helper.from_array(one, name) for name, one in rewritten.constants.items()]
    del model.graph.initializer[:]
    model.graph.initializer.extend([*kept, *added])
    if not any(one.domain == "com.microsoft" for one in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, file)


class _Rewritten:
    """The nodes and constants of a graph that is being rewritten."""

    def __init__(self, graph: Any) -> None:
        import onnx

        self._onnx = onnx
        self._matrices = {
            one.name: one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT and len(one.dims) == 2
        }
        self._cut: set[str] = set()
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {
            "8bit_zero": np.array(128, np.uint8),
            "8bit_one": np.array(1, np.float32),
            "8bit_unit": np.array(1 / 127, np.float32),
            "8bit_least": np.array(1e-12, np.float32),
            "8bit_last": np.array([-1], np.int64),
        }

    def take(self, node: Any) -> None:
        """Add a node of the old graph, or what stands in its place."""
        read = [*node.input]
        by_rows = not any(one.name == "axis" and one.i for one in node.attribute)
        if node.op_type == "Gather" and read[0] in self._matrices and by_rows:
            self._look_up(read[0], read[1], node.output[0])
        elif node.op_type == "MatMul" and read[1] in self._matrices:
            self._multiply(read[0], read[1], node.output[0])
        else:
            self.nodes.append(node)

    def _add(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [output], **attributes))
        return output

    def _as_float(self, name: str, output: str) -> str:
        return self._add("Cast", [name], output, to=self._onnx.TensorProto.FLOAT)

    def _look_up(self, table: str, ids: str, out: str) -> None:
        """Rows of a table, each with its scale."""
        rows, scales = (self._add("Gather", [one, ids], f"{out}_of_{one}") for one in self._stored(table, 1))
        self._add("Mul", [self._as_float(rows, f"{out}_float"), scales], out)

    def _multiply(self, x: str, matrix: str, out: str) -> None:
        """Whole numbers times whole numbers, and then the scales of outputs and tokens."""
        if x not in self._cut:  # queries, keys and values read the same
            self._cut.add(x)
            self._cut_tokens(x)
        whole, scales = self._stored(matrix, 0)
        inputs = [f"{x}_8bit", whole, "8bit_one", scales, "8bit_zero"]
        self._add("MatMulIntegerToFloat", inputs, f"{out}_half", domain="com.microsoft")
        self._add("Mul", [f"{out}_half", f"{x}_scales"], out)

    def _cut_tokens(self, x: str) -> None:
        """What tokens have, in 8 bits around 128, with a scale for each."""
        ends = [self._add(kind, [x, "8bit_last"], f"{x}_{kind}") for kind in ("ReduceMax", "ReduceMin")]
        largest = self._add("Max", [ends[0], self._add("Neg", [ends[1]], f"{x}_least")], f"{x}_largest")
        self._add("Mul", [self._add("Max", [largest, "8bit_least"], f"{x}_safe"), "8bit_unit"], f"{x}_scales")
        flat = self._add("Reshape", [f"{x}_scales", "8bit_last"], f"{x}_flat")
        zeros = self._add("Expand", ["8bit_zero", self._add("Shape", [flat], f"{x}_count")], f"{x}_zeros")
        rows = self._add("Flatten", [x], f"{x}_rows", axis=-1)
        cut = self._add("QuantizeLinear", [rows, flat, zeros], f"{x}_cut", axis=0)
        self._add("Reshape", [cut, self._add("Shape", [x], f"{x}_shape")], f"{x}_8bit")

    def _stored(self, name: str, axis: int) -> tuple[str, str]:
        """The names of a matrix in 8 bits, and of its scales along an axis."""
        matrix = self._onnx.numpy_helper.to_array(self._matrices[name])
        scales = np.abs(matrix).max(axis, keepdims=True) / 127
        scales[scales == 0] = 1
        names = f"{name}_8bit_{axis}", f"{name}_scales_{axis}"
        self.constants[names[0]] = np.rint(matrix / scales).astype(np.int8)
        self.constants[names[1]] = scales.astype(np.float32) if axis else scales.astype(np.float32).ravel()
        return names
