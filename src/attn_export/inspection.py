"""What ``attn-export inspect`` shows of a graph or a bundle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn_export.bundle import Bundle
from attn_export.engines import layer_proof
from attn_export.errors import GateFailed
from attn_export.exporter.tensorrt_importers import IMPORTERS
from attn_export.lazy import require

if TYPE_CHECKING:
    from attn_export.exporter.finding import Finding

Findings = Mapping[str, Sequence["Finding"]]


def inspect(path: Path) -> dict[str, Any]:
    """The facts of a graph file (needs onnx) or of a bundle (needs nothing but its manifest).

    Raises:
        BundleError: if it is neither.
        MissingPackage: for a graph file where onnx is not installed.
    """
    if path.is_file():
        require("onnx_ir", extra="export")
        from attn_export.exporter.summary import summarise_file

        return summarise_file(path)
    return Bundle.open(path).manifest.to_json()


def lint(path: Path, version: str) -> Findings:
    """What one version of TensorRT would not take, or not fuse, by graph file; needs onnx.

    Raises:
        BundleError: if it is neither a graph nor a bundle, or a graph of it was altered.
        MissingPackage: where onnx is not installed.
    """
    require("onnx_ir", extra="export")
    from attn_export.exporter.lint import lint_file

    if path.is_file():
        return {path.name: lint_file(path, version)}
    bundle = Bundle.open(path)
    return {
        graph.path: lint_file(bundle.verify_graph(graph), version)
        for graph in bundle.manifest.graphs.values()
    }


def lint_lines(findings: Findings) -> Iterator[str]:
    """The findings as lines of text, errors first."""
    from attn_export.exporter.finding import report

    for name, found in findings.items():
        yield from (f"{name}: {line}" for line in report(found))


def require_fit(findings: Findings, path: Path, version: str) -> str:
    """The sentence that says that every graph fits.

    Raises:
        GateFailed: if TensorRT of that version would refuse or misread one.
    """
    title = IMPORTERS[version].title
    errors = sum(item.severity == "error" for found in findings.values() for item in found)
    if errors:
        noun = "error" if errors == 1 else "errors"
        raise GateFailed(f"{path} does not fit {title}: {errors} {noun}")
    return f"{path} fits {title}"


def lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """The same as lines of text."""
    if "graphs" not in facts:
        yield from _graph_lines(facts)
        return
    yield from _bundle_lines(facts)
    for precision, graph in facts["graphs"].items():
        size = sum(record["bytes"] for record in graph["files"])
        yield f"\ngraph {precision}: {graph['files'][0]['file']}, {_mib(size)}"
        yield from (f"  {line}" for line in _graph_lines(graph["summary"]))
        for reason, names in graph["keep_fp32"].items():
            yield f"  FP32 islands ({reason}): {_few(names)}"
        yield from (f"  note: {warning}" for warning in graph["warnings"])
        if graph["quantization"]:
            yield from (f"  {line}" for line in _quantization(graph["quantization"]))
    if facts["choice"]:
        yield f"\nfastest for {facts['choice']['goal']}: {facts['choice']['reason']}"
    for name, engine in facts["engines"].items():
        yield f"\nengine {name}: {_verdict(engine['parity'])}"
        yield from (f"  {line}" for line in _engine_lines(engine))


def _engine_lines(engine: Mapping[str, Any]) -> Iterator[str]:
    made_on = {key: _plain(value) for key, value in engine["environment"].items() if value}
    yield f"made on {_pairs(made_on)}"
    for profile in engine["profiles"]:
        yield f"profile {_pairs({axis: _spaced(sizes) for axis, sizes in profile.items()})}"
    for bucket in engine["buckets"]:
        yield f"bucket {_pairs(bucket)}"
    if engine["accuracy"]:
        near = "; ".join(_nearness(item) for item in engine["accuracy"]["results"])
        yield near + ("" if engine["accuracy"]["accepted"] else "; NOT near enough to FP32")
    if engine["race"]:
        race = engine["race"]
        yield (
            f"{race['median']:.2f} [{race['low']:.2f}, {race['high']:.2f}] times as fast as "
            f"{race['rival']}"
        )
    if engine["speed"]:
        reached = engine["speed"]["samples_per_s"]["median"]
        yield f"{reached:,.0f} samples/s beside the others, for {engine['speed']['goal']}"
    if engine["proof"]:
        yield from layer_proof.lines(engine["proof"])


def quantization_lines(graphs: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """What calibration made, by graph."""
    for key, facts in graphs.items():
        yield f"{key}:"
        yield from (f"  {line}" for line in _quantization(facts))


def _quantization(facts: Mapping[str, Any]) -> Iterator[str]:
    """Where the ranges came from, and how near the graph is to FP32."""
    yield (
        f"{facts['requests']} of {facts['seen']} requests of {facts['data']}, "
        f"ranges by {facts['method']}; accuracy on {facts['evaluated']}"
    )
    for item in facts["accuracy"]:
        noise = "" if item["sqnr_db"] is None else f", SQNR {item['sqnr_db']:.1f} dB"
        yield (
            f"{item['output']}: {_nearness(item)}, least {item['least_cosine']:.5f}{noise}"
            + ("" if facts["accepted"] else "; NOT near enough to FP32")
        )
    for kind, tried in facts.get("tried", {}).items():
        chosen = "chosen" if kind == facts["kind"] else "not chosen"
        near = "" if tried["near"] else ", not near enough"
        how = "; ".join(_nearness(item) for item in tried["accuracy"])
        yield f"{kind}: {tried['ms']:.0f} ms for these, {how}{near}: {chosen}"
    if facts.get("left"):
        yield f"products left as they are: {_few(facts['left'])}"
    yield from (f"note: {note}" for note in facts["notes"][:4])


def _nearness(accuracy: Mapping[str, Any]) -> str:
    labels = accuracy["labels"]
    shown = "" if labels is None else f"{labels:.2%} equal labels, "
    return f"{shown}mean cosine {accuracy['cosine']:.5f}"


def _bundle_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    model, buckets, tool = facts["model"], facts["buckets"], facts["tool"]
    yield f"model {model['name']}: {model['parameters']:,} parameters, lowering {model['lowering']}"
    if model["spec"]:
        yield f"  {_pairs(model['spec'])}"
    yield f"  weights sha256 {model['weights_sha256']}"
    yield from _tensor_lines(facts)
    edges = ", ".join(str(edge) for edge in buckets["edges"])
    yield (
        f"buckets {edges} tokens, from {buckets['source']}; padding is "
        f"{buckets['padded_share']:.1%} of all tokens"
    )
    yield f"made by attn-export {tool['version']}, python {tool['python']}"
    yield f"  {_pairs(tool['packages'])}"
    if facts["command"]:
        yield f"  {facts['command']}"


def _graph_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    stored = ", ".join(f"{dtype} {_mib(size)}" for dtype, size in summary["weight_bytes"].items())
    yield (
        f"opset {summary['opset']}, {summary['nodes']} nodes, {summary['casts']} Casts, "
        f"{summary['stored_floats']:,} stored floats; {stored}"
    )
    yield from _tensor_lines(summary)
    yield f"operators: {_pairs(summary['operators'])}"
    if summary["roles"]:
        yield f"roles: {_pairs(summary['roles'])}"
    yield f"made by {summary['producer'] or 'unknown'}; {_pairs(summary['metadata'])}".rstrip("; ")


def _tensor_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    for kind in ("inputs", "outputs"):
        for tensor in facts[kind]:
            shape = ", ".join(str(dim) for dim in tensor["shape"])
            yield f"{kind[:-1]} {tensor['name']}: {tensor['dtype']} [{shape}]"


def _verdict(parity: Mapping[str, Any] | None) -> str:
    if parity is None:
        return "parity not checked"
    return (
        f"parity {'passed' if parity['passed'] else 'FAILED'} against {parity['reference']} "
        f"PyTorch, max |difference| {parity['max_abs']:.2g}"
    )


def _pairs(mapping: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in mapping.items())


def _plain(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _spaced(sizes: Sequence[int]) -> str:
    return " ".join(map(str, sizes))


def _few(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
