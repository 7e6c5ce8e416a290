"""manifest.json: what a bundle holds, as dataclasses, and how it is read."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from attn_export.errors import BundleError
from attn_export.spec import TensorSpec

SCHEMA_VERSION = 1


@dataclass(kw_only=True)
class FileRecord:
    """A file of the bundle and its content hash."""

    file: str
    sha256: str
    bytes: int


@dataclass(kw_only=True)
class GraphRecord:
    """One ONNX graph.

    Args:
        files: the model file first, then its external data.
        summary: what ``inspect`` shows: ops, dtypes, parameters, casts, opset.
        twin: the rounding twin that judges this graph on a CPU, or None.
        keep_fp32: names of the nodes that stay FP32, by role.
        fp16_io: float inputs and outputs are FP16 in this graph.
        lint: TensorRT versions that cannot read this graph, each with the reasons.
        quantization: where an INT8 graph's ranges came from, what was quantized and how well.
    """

    precision: str
    files: list[FileRecord]
    summary: dict[str, Any] = field(default_factory=dict)
    twin: FileRecord | None = None
    keep_fp32: dict[str, list[str]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    fp16_io: bool = False
    lint: dict[str, list[str]] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """The model file, relative to the bundle."""
        return self.files[0].file

    def typed(self, spec: TensorSpec) -> TensorSpec:
        """An input or output of the model as this graph has it."""
        is_half = self.fp16_io and spec.dtype == "float32"
        return replace(spec, dtype="float16") if is_half else spec


@dataclass(kw_only=True)
class EngineRecord:
    """One engine: a graph compiled for a backend.

    Args:
        variant: what sets it apart from the backend's other engines of this precision: a GPU and
            a version (``"sm75-10.16.1"``), an execution provider; ``""`` where there is one.
        files: what was compiled, the plan first; empty where the graph itself ships.
        profiles: what it takes: least, optimal and largest ``"batch"`` and ``"sequence"``.
        proof: which layers run in which precision, where the backend can tell.
        parity: the verdict on these very bytes: ``passed``, their sha256, the numbers.
        race: of an INT8 engine, how many times as fast it is as the ``"rival"`` it replaces.
        accuracy: of an INT8 engine, how near it is to FP32 on the requests that it was calibrated
            with, and whether that is ``"accepted"``; None where there were none when it was made.
        speed: what it reached beside the bundle's other engines when it was built: the ``"goal"``,
            and ``"samples_per_s"``.
    """

    backend: str
    precision: str
    graph: str
    variant: str = ""
    files: list[FileRecord] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    profiles: list[dict[str, list[int]]] = field(default_factory=list)
    buckets: list[dict[str, Any]] = field(default_factory=list)
    proof: dict[str, Any] | None = None
    parity: dict[str, Any] | None = None
    race: dict[str, Any] | None = None
    accuracy: dict[str, Any] | None = None
    speed: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """What commands call it."""
        return "-".join(filter(None, (self.backend, self.precision, self.variant)))


@dataclass(kw_only=True)
class Manifest:
    """The content of manifest.json.

    Args:
        choice: of several backends' engines, the ``"engine"`` that was the fastest here, the
            ``"goal"`` and the ``"reason"`` in words.
    """

    model: dict[str, Any]
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    buckets: dict[str, Any]
    graphs: dict[str, GraphRecord]
    engines: dict[str, EngineRecord] = field(default_factory=dict)
    reference: FileRecord | None = None
    calibration: FileRecord | None = None
    choice: dict[str, Any] | None = None
    tool: dict[str, Any] = field(default_factory=dict)
    command: str = ""
    schema_version: int = SCHEMA_VERSION

    @property
    def max_length(self) -> int:
        """The longest sequence the engines take: the last bucket's edge."""
        return int(self.buckets["edges"][-1])

    def shipped(self, engine: EngineRecord) -> FileRecord:
        """The file that an engine runs: its plan, or the graph itself."""
        return engine.files[0] if engine.files else self.graphs[engine.graph].files[0]

    def passed(self, engine: EngineRecord) -> bool:
        """Whether parity passed on the very bytes that it runs, and INT8 is near enough to FP32."""
        verdict, graph = engine.parity or {}, self.graphs.get(engine.graph)
        if graph is not None and graph.quantization.get("accepted") is False:
            return False
        if engine.accuracy is not None and not engine.accuracy["accepted"]:
            return False
        return bool(verdict.get("passed")) and verdict.get("sha256") == self.shipped(engine).sha256

    @property
    def files(self) -> list[FileRecord]:
        """Every file that the manifest vouches for."""
        found = [record for graph in self.graphs.values() for record in graph.files]
        found += [graph.twin for graph in self.graphs.values() if graph.twin]
        found += [record for engine in self.engines.values() for record in engine.files]
        return found + [record for record in (self.reference, self.calibration) if record]

    def to_json(self) -> dict[str, Any]:
        """A plain dict, as it stands in the file."""
        return {
            **asdict(self),
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Manifest:
        """Read a manifest's dict.

        Raises:
            BundleError: if its schema is newer than this version knows, or fields are missing.
        """
        version = data.get("schema_version")
        if not isinstance(version, int) or version > SCHEMA_VERSION:
            raise BundleError(
                f"the manifest has schema {version}, this version of attn-export reads up to "
                f"{SCHEMA_VERSION}; upgrade attn-export, or rebuild the bundle with this version"
            )
        try:
            int(data["buckets"]["edges"][-1])
            return cls(
                **{
                    **data,
                    "inputs": [TensorSpec.from_json(spec) for spec in data["inputs"]],
                    "outputs": [TensorSpec.from_json(spec) for spec in data["outputs"]],
                    "graphs": {k: _graph_record(v) for k, v in data["graphs"].items()},
                    "engines": {k: _engine_record(v) for k, v in data["engines"].items()},
                    "reference": _optional_record(data["reference"]),
                    "calibration": _optional_record(data.get("calibration")),
                }
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise BundleError(f"the manifest is broken ({error!r}); rebuild the bundle") from error


def _file_record(data: dict[str, Any]) -> FileRecord:
    record = FileRecord(**data)
    name = PurePosixPath(record.file)
    if name.is_absolute() or ".." in name.parts:
        raise BundleError(f"the manifest names {record.file!r}, which is outside the bundle")
    return record


def _optional_record(data: dict[str, Any] | None) -> FileRecord | None:
    return None if data is None else _file_record(data)


def _graph_record(data: dict[str, Any]) -> GraphRecord:
    files = [_file_record(item) for item in data["files"]]
    if not files:
        raise BundleError("the manifest names a graph without a file; rebuild the bundle")
    return GraphRecord(**{**data, "files": files, "twin": _optional_record(data["twin"])})


def _engine_record(data: dict[str, Any]) -> EngineRecord:
    files = [_file_record(item) for item in data.get("files", [])]
    return EngineRecord(**{**data, "files": files})


def read_manifest(path: Path) -> Manifest:
    """Read a manifest's file.

    Raises:
        BundleError: if it is not a manifest that this version can read.
        OSError: if it cannot be read at all.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BundleError(f"{path} is not JSON ({error}); rebuild the bundle") from error
    if not isinstance(data, dict):
        raise BundleError(f"{path} holds no JSON object; rebuild the bundle")
    return Manifest.from_json(data)
