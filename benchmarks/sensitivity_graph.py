"""A Q/DQ graph of which any part can be run quantized, the rest in FP32.

The numbers are those of the rounding itself: ONNX Runtime is kept from fusing Q and DQ into its
own INT8 kernels. Weights stay in the graph's file; a choice costs a session and no file.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from attn_export.calibration.graph_structure import read_structure
from attn_export.calibration.placement import Edge
from attn_export.errors import BuildFailed, InputError
from attn_export.lazy import require
from attn_export.spec import SEQUENCE, TensorSpec

from .accuracy import Accuracy, compare_output

Array = np.ndarray[Any, Any]
Feeds = Mapping[str, Array]
Answers = dict[str, Array | list[Array]]


class SwitchedGraph:
    """A Q/DQ graph whose quantized edges (node, index of its input) can be chosen from."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._model = read_structure(path)
        makers = {name: node for node in self._model.graph.node for name in node.output}
        self._sources = {
            (node.name, index): makers[maker.input[0]].input[0]
            for node in self._model.graph.node
            for index, name in enumerate(node.input)
            if (maker := makers.get(name)) is not None and maker.op_type == "DequantizeLinear"
        }

    def model(self, edges: Collection[Edge]) -> onnx.ModelProto:
        """The graph with these edges quantized and no others."""
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        for node in model.graph.node:
            for index in range(len(node.input)):
                source = self._sources.get((node.name, index))
                if source is not None and (node.name, index) not in edges:
                    node.input[index] = source
        for op in ("DequantizeLinear", "QuantizeLinear"):  # in this order: a Q feeds its DQ alone
            read = {name for node in model.graph.node for name in node.input}
            kept = [n for n in model.graph.node if n.op_type != op or n.output[0] in read]
            del model.graph.node[:]
            model.graph.node.extend(kept)
        return model

    def answers(
        self, edges: Collection[Edge], batches: Iterable[Feeds], outputs: Sequence[TensorSpec]
    ) -> Answers:
        """Run all batches; rows in their order. An output with a sequence axis is a list of rows.

        Raises:
            BuildFailed: if ONNX Runtime cannot open the graph.
            InputError: if it refuses a batch.
        """
        session = self._session(edges)
        names = [spec.name for spec in outputs]
        rows: dict[str, list[Array]] = {name: [] for name in names}
        for feeds in batches:
            try:
                values = session.run(names, dict(feeds))
            except Exception as error:
                shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
                raise InputError(f"ONNX Runtime failed on the feeds {shapes}: {error}") from error
            for name, value in zip(names, values, strict=True):
                rows[name].extend(value)
        return {
            spec.name: rows[spec.name] if SEQUENCE in spec.shape else np.stack(rows[spec.name])
            for spec in outputs
        }

    def _session(self, edges: Collection[Edge]) -> Any:
        ort = require("onnxruntime", extra="cpu")
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # its errors arrive as exceptions
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path",
            str(self._path.parent.absolute()),
        )
        try:
            return ort.InferenceSession(
                self.model(edges).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
                # A kernel slower than the Add and the norm that it replaces.
                disabled_optimizers=["SkipLayerNormFusion"],
            )
        except Exception as error:
            raise BuildFailed(
                f"ONNX Runtime {ort.__version__} cannot open the Q/DQ graph: {error}"
            ) from error


class Trials:
    """One set of requests: what FP32 answers, and how near each choice of edges comes to it.

    Attributes:
        runs: how many choices were run; FP32 and those that came again are not counted.
    """

    def __init__(
        self, graph: SwitchedGraph, batches: Sequence[Feeds], outputs: Sequence[TensorSpec]
    ) -> None:
        self._graph, self._batches, self._outputs = graph, batches, outputs
        self._expected = graph.answers((), batches, outputs)
        self._found: dict[frozenset[Edge], tuple[Accuracy, ...]] = {}
        self.runs = 0

    def measure(self, edges: Collection[Edge]) -> tuple[Accuracy, ...]:
        """One result for each output."""
        key = frozenset(edges)
        if key not in self._found:
            got = self._expected
            if key:
                got = self._graph.answers(key, self._batches, self._outputs)
                self.runs += 1
            self._found[key] = tuple(
                compare_output(name, expected, got[name])
                for name, expected in self._expected.items()
            )
        return self._found[key]
