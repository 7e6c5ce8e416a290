"""The tables of the GPU check's report: one function a step, from what its tasks measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .gpu_check_outcome import Outcome

Rows = Iterable[Sequence[object]]


def table(header: Sequence[str], rows: Rows) -> Iterator[str]:
    """A Markdown table; nothing where there is no row."""
    listed = [[_cell(value) for value in row] for row in rows]
    if listed:
        yield "| " + " | ".join(header) + " |"
        yield "|" + "---|" * len(header)
        yield from ("| " + " | ".join(row) + " |" for row in listed)
        yield ""


def _cell(value: object) -> str:
    if value is None:
        return "-"
    text = str(value)
    if isinstance(value, float):
        text = f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return text.replace("|", "\\|").replace("\n", " ")


def compile_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Builds, layer proofs, and the time of full batches."""
    engines = [
        (outcome.name.partition(" ")[2], name, engine)
        for outcome in outcomes
        for name, engine in outcome.numbers["engines"].items()
    ]
    yield from table(
        (
            "bundle",
            "precision",
            "build s",
            "plan MiB",
            "device MiB",
            "GEMMs below FP32",
            "attention",
        ),
        (
            (
                bundle,
                engine["precision"],
                engine["build_s"],
                engine["plan_mib"],
                engine["device_mib"],
                _share(engine),
                ", ".join(f"{n} {state}" for state, n in engine["attention"].items()) or None,
            )
            for bundle, _, engine in engines
        ),
    )
    yield from table(
        ("bundle", "precision", "ms of a full batch (tokens: batch, ms)", "largest error"),
        (
            (
                bundle,
                engine["precision"],
                "; ".join(f"{b['edge']}: {b['batch']}, {b['ms']}" for b in engine["buckets"]),
                (engine["parity"] or {}).get("max_abs"),
            )
            for bundle, _, engine in engines
        ),
    )
    notes = {note for _, _, engine in engines for note in engine["notes"]}
    yield from (f"- TensorRT or its build noted: {note}" for note in sorted(notes))


def _share(engine: dict[str, Any]) -> object:
    if engine["precision"] == "fp32":
        return None
    share = (engine["proof"] or {}).get("gemm_share")
    return "not visible" if share is None else share


def cache_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Both build times."""
    yield from table(
        ("task", "first build s", "again s"),
        ((o.name, o.numbers["build_s"]["first"], o.numbers["build_s"]["again"]) for o in outcomes),
    )


def parity_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Errors of each engine and output."""
    yield from table(
        ("task", "engine", "CUDA graphs", "cases", "output", "largest error", "atol", "verdict"),
        (
            (
                outcome.name,
                row["engine"],
                "on" if row["cuda_graphs"] else "off",
                row["cases"],
                output["output"],
                output["max_abs"],
                output["atol"],
                output["verdict"],
            )
            for outcome in outcomes
            for row in outcome.numbers["engines"]
            for output in row["outputs"]
        ),
    )


def runtime_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What was compared, memory, and the latency of one sequence."""
    yield from table(
        ("task", "what", "number"),
        (
            (outcome.name, key, value)
            for outcome in outcomes
            if "engines" not in outcome.numbers  # a build, of the engine that is compared with
            for key, value in _flat(outcome.numbers)
        ),
    )
    for outcome in outcomes:
        yield from (f"- {outcome.name}: {line}" for line in outcome.numbers.get("warnings", ()))


def _flat(numbers: dict[str, Any]) -> Iterator[tuple[str, object]]:
    for key, value in numbers.items():
        if isinstance(value, list):
            continue
        if isinstance(value, dict):
            yield from ((f"{key} {name}", inner) for name, inner in value.items())
        else:
            yield key, value


def opinion_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Each engine and profile through both runtimes."""
    yield from table(
        (
            "task",
            "engine",
            "profile",
            "batch",
            "length",
            "agrees",
            "same bits",
            "largest difference",
        ),
        (
            (
                outcome.name,
                row["engine"],
                row["profile"],
                row["batch"],
                row["length"],
                row["agrees"],
                row["same_bits"],
                row["max_abs"],
            )
            for outcome in outcomes
            for row in outcome.numbers["shapes"]
        ),
    )


def layer_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Shares of the time by precision, and the slowest layers."""
    for outcome in outcomes:
        for engine in outcome.numbers["engines"]:
            shares = ", ".join(f"{kind} {share:.1%}" for kind, share in engine["shares"].items())
            yield (
                f"{outcome.name}, {engine['engine']}, batch {engine['batch']}, {engine['length']} "
                f"tokens, mean of {engine['runs']} runs: {engine['total_ms']:.3f} ms in layers "
                f"({shares})"
            )
            yield ""
            slowest = engine["slowest"]
            rows = ((layer["layer"], layer["ms"], layer["precision"]) for layer in slowest)
            yield from table(("layer", "ms", "precision"), rows)


def bench_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Every candidate of the measurement."""
    for outcome in outcomes:
        report = outcome.numbers["report"]
        yield (
            f"{outcome.name}: {report['data']}, {report['mean_length']:.1f} tokens on average, "
            f"batch {report['batch_size']}, {report['rounds']} rounds"
        )
        yield ""
        yield from table(
            ("candidate", "samples/s", "95 % interval", "p50 ms a batch", "note"),
            (
                (
                    result["name"],
                    result["samples_per_s"]["median"],
                    "{low:.4g} to {high:.4g}".format(**result["samples_per_s"]),
                    (result["batch_ms"] or {}).get("p50"),
                    result["note"],
                )
                for result in report["results"]
            ),
        )
        ratio = outcome.numbers["fp16_over_fp32"]
        if ratio is not None:
            yield f"FP16 engine over FP32 engine, padded: {ratio:.2f}x"
            yield ""
        for name, why in report["skipped"].items():
            yield f"- not run: {name}: {why}"
            yield ""


def padded_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Latency and throughput over batch and length."""
    yield from table(
        ("task", "precision", "length", "batch", "p50 ms", "p99 ms", "device ms", "samples/s"),
        (
            (
                outcome.name,
                row["precision"],
                row["length"],
                row["batch"],
                row["p50_ms"],
                row["p99_ms"],
                row["device_ms"],
                row["samples_per_s"],
            )
            for outcome in outcomes
            for row in outcome.numbers.get("rows", ())
        ),
    )


def lean_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The version-compatible plan beside the native one."""
    yield from table(
        ("task", "what", "value"),
        (
            (outcome.name, key, value)
            for outcome in outcomes
            for key, value in outcome.numbers.items()
            if isinstance(value, int | float | str)
        ),
    )


def export_tables(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """What was exported."""
    yield from table(
        ("task", "parameters", "bucket edges", "not for"),
        (
            (
                outcome.name,
                outcome.numbers["parameters"],
                ", ".join(map(str, outcome.numbers["edges"])),
                ", ".join(sorted({v for found in outcome.numbers["lint"].values() for v in found})),
            )
            for outcome in outcomes
        ),
    )


TABLES: dict[str, Callable[[Sequence[Outcome]], Iterator[str]]] = {
    "export": export_tables,
    "compile": compile_tables,
    "cache": cache_tables,
    "parity": parity_tables,
    "runtime": runtime_tables,
    "opinion": opinion_tables,
    "layers": layer_tables,
    "bench": bench_tables,
    "padded": padded_tables,
    "lean": lean_tables,
}
