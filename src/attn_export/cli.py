"""The ``attn-export`` command. Each command reads options, calls one function, prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import attn_export
from attn_export.cli_bench import bench
from attn_export.cli_check import check
from attn_export.cli_estimate import estimate
from attn_export.cli_packing import packing
from attn_export.cli_plan import plan
from attn_export.cli_report import report
from attn_export.console import Steps
from attn_export.errors import GateFailed
from attn_export.exporter.tensorrt_importers import VERSIONS
from attn_export.options import (
    HELP,
    PATH,
    Group,
    backend_option,
    bundle_argument,
    command_line,
    compile_options,
    data_options,
    engine_options,
    host_code_option,
    int8_options,
    int8_options_of,
    json_option,
    model_options,
    model_source,
    speed_gate_option,
    tolerance_options,
)
from attn_export.output import print_json, print_lines, print_report

if TYPE_CHECKING:
    from attn_export.benchmarks.parity import ParityReport
    from attn_export.benchmarks.tolerances import Tolerances
    from attn_export.int8_options import Int8Options


@click.group(cls=Group, context_settings=HELP)
@click.version_option(attn_export.__version__, package_name="attn-export")
def main() -> None:
    """From a PyTorch attention model to an engine that a server can trust.

    MODEL is a built-in name (mha, gqa, mqa), package.module:factory or file.py:factory.
    DIR is a bundle, the directory that 'build' writes.

    \b
    Exit codes: 0 pass, 1 a gate failed, 2 usage, 3 this machine cannot do it,
    4 export or build failed or the bundle is broken, 5 inconclusive, 70 a defect.
    """


@main.command()
@model_options
@click.option(
    "-o", "--output", type=PATH, default="model.onnx", show_default=True, help="The graph's file."
)
@json_option
def export(model: str, output: Path, as_json: bool, **values: Any) -> None:
    """Export MODEL to one FP32 ONNX graph (opset 17) and compare it with eager PyTorch.

    \b
    Example:
        attn-export export mqa -o model.onnx
    """
    from attn_export import inspection, portable

    source = model_source(model, values)
    with Steps() as say:
        summary, verdict, notes = portable.export(
            source, output, lowering=values["lowering"], say=say
        )
    if as_json:
        print_json({"path": str(output), "verdict": verdict, "notes": notes, "graph": summary})
        return
    print_lines(inspection.lines(summary))
    click.echo(f"{output}: {verdict}")
    print_lines(f"note: {note}" for note in notes)


@main.command()
@model_options
@click.option("-o", "--output", type=PATH, help="Bundle directory [NAME-bundle].")
@click.option("--fp16", is_flag=True, help="Add the FP16 graph and engine.")
@click.option("--int8", is_flag=True, help="Add the INT8 graphs and engine; needs --data.")
@click.option("--packed", is_flag=True, help="A graph and engine that put texts into shared rows.")
@click.option("--fp16-io", is_flag=True, help="FP16 inputs and outputs too.")
@click.option("--nodes-to-exclude", multiple=True, metavar="REGEX", help="Nodes that stay FP32.")
@click.option("--op-types-to-exclude", multiple=True, metavar="OP", help="Operators that do.")
@click.option(
    "--buckets", type=click.IntRange(min=1), default=6, show_default=True, help="Length buckets."
)
@data_options
@int8_options
@speed_gate_option
@backend_option("auto")
@engine_options
@tolerance_options
@json_option
def build(  # noqa: PLR0917
    model: str,
    output: Path | None,
    fp16: bool,
    int8: bool,
    packed: bool,
    fp16_io: bool,
    nodes_to_exclude: tuple[str, ...],
    op_types_to_exclude: tuple[str, ...],
    buckets: int,
    data: Path | None,
    tokenizer: Path | None,
    speed_gate: bool,
    backend: str,
    atol: tuple[str, ...],
    rtol: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> None:
    """Build a bundle from MODEL: export, type, compile, and prove it equal to eager PyTorch.

    \b
    Examples:
        attn-export build --fp16
        attn-export build --fp16 --bf16 --int8 --data requests.jsonl
        attn-export build --fp16 gqa --kv-heads 4 -o gqa
        attn-export build --fp16 model.py:make --max-length 128
    """
    from attn_export import build as builder
    from attn_export import gates
    from attn_export.bucketing import BucketOptions
    from attn_export.portable import Fp16Options

    if not fp16 and (fp16_io or nodes_to_exclude or op_types_to_exclude):
        raise click.UsageError(
            "--fp16-io, --nodes-to-exclude and --op-types-to-exclude need --fp16"
        )
    options = compile_options(values)
    source = model_source(model, values)
    directory = output or Path(f"{source.name}-bundle")
    wanted = builder.BuildPlan(
        source=source,
        lowering=values["lowering"],
        buckets=BucketOptions(
            count=buckets,
            max_length=values["max_length"],
            data=data,
            tokenizer=tokenizer,
            profiles=options.profiles,
        ),
        fp16=Fp16Options(
            nodes_to_exclude=nodes_to_exclude,
            op_types_to_exclude=op_types_to_exclude,
            fp16_io=fp16_io,
        )
        if fp16
        else None,
        int8=int8_options_of(values, data, tokenizer) if int8 else None,
        packed=packed,
        backend=backend,
        options=options,
        tolerances=_tolerances(atol, rtol),
        command=command_line(),
    )
    with Steps() as say:
        report = builder.build(wanted, directory, say=say)
    _print_parity(report, as_json)
    click.echo(f"bundle: {directory} (attn-export inspect {directory})", err=as_json)
    gates.require_parity(report)
    gates.require_worth(directory, report, speed_gate=speed_gate)


@main.command("compile")
@bundle_argument
@backend_option("tensorrt")
@engine_options
@speed_gate_option
@tolerance_options
@json_option
def compile_(  # noqa: PLR0917
    directory: Path,
    backend: str,
    speed_gate: bool,
    atol: tuple[str, ...],
    rtol: tuple[str, ...],
    as_json: bool,
    **values: Any,
) -> None:
    """Compile the graphs of the bundle DIR for this machine and prove the engines.

    \b
    Examples:
        attn-export compile mqa-bundle --target t4
        attn-export compile mqa-bundle -b 1 1 8 -s 1 32 128
        attn-export compile mqa-bundle --backend onnxruntime
    """
    from attn_export import build as builder
    from attn_export import gates

    with Steps() as say:
        report = builder.compile_bundle(
            directory,
            backend=backend,
            options=compile_options(values),
            tolerances=_tolerances(atol, rtol),
            say=say,
        )
    _print_parity(report, as_json)
    gates.require_parity(report)
    gates.require_worth(directory, report, speed_gate=speed_gate)


@main.command()
@bundle_argument
@data_options
@int8_options
@click.option(
    "--sensitivity",
    is_flag=True,
    help="Only measure what INT8 costs by layer and role, and what to exclude.",
)
@json_option
def calibrate(
    directory: Path,
    data: Path | None,
    tokenizer: Path | None,
    sensitivity: bool,
    as_json: bool,
    **values: Any,
) -> None:
    """Add INT8 graphs to the bundle DIR: ranges from real requests, accuracy on the same.

    \b
    Examples:
        attn-export calibrate mqa-bundle --data requests.jsonl
        attn-export compile mqa-bundle --backend onnxruntime
        attn-export calibrate mqa-bundle --data requests.jsonl --sensitivity
    """
    from attn_export import build as builder
    from attn_export import inspection, int8

    options = int8_options_of(values, data, tokenizer)
    if sensitivity:
        _study(directory, options, as_json)
        return
    with Steps() as say:
        manifest = builder.calibrate_bundle(directory, replace(options, say=say))
    graphs = {k: g.quantization for k, g in manifest.graphs.items() if g.quantization}
    if as_json:
        print_json(graphs)
    else:
        print_lines(inspection.quantization_lines(graphs))
    int8.require_accurate(manifest, graphs, options)


@main.command()
@bundle_argument
@tolerance_options
@json_option
def diagnose(directory: Path, atol: tuple[str, ...], rtol: tuple[str, ...], as_json: bool) -> None:
    """Name what breaks FP16 in the bundle DIR, keep it in FP32, and rewrite the FP16 graph.

    \b
    Example:
        attn-export diagnose mqa-bundle
    """
    from attn_export.diagnose import diagnose_bundle

    with Steps() as say:
        found, fault = diagnose_bundle(directory, tolerances=_tolerances(atol, rtol), say=say)
    if as_json:
        print_json({"fp16": found.to_json(), "int8": fault.to_json() if fault else None})
    else:
        print_lines(found.lines())
        print_lines([f"INT8: {fault}"] if fault else [])
    if not found.passed:
        raise GateFailed(f"FP16 does not hold in {directory}: {found.reason}")


@main.command()
@bundle_argument
@click.option("--engine", help="One engine instead of all.")
@click.option(
    "--reference",
    type=click.Choice(["auto", "eager", "golden"]),
    default="auto",
    show_default=True,
    help="Eager PyTorch, or the outputs of it that the bundle holds.",
)
@host_code_option
@tolerance_options
@json_option
def parity(  # noqa: PLR0917
    directory: Path,
    engine: str | None,
    reference: Any,
    allow_host_code: bool,
    atol: tuple[str, ...],
    rtol: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare the engines of the bundle DIR with eager PyTorch FP32; exit 1 where they differ.

    \b
    Example:
        attn-export parity mqa-bundle --engine onnxruntime-fp16 --atol logits:5e-3
    """
    from attn_export import build as builder
    from attn_export import gates

    report, note = builder.parity(
        directory,
        engine=engine,
        reference=reference,
        tolerances=_tolerances(atol, rtol),
        allow_host_code=allow_host_code,
    )
    _print_parity(report, as_json)
    if note:
        click.echo(f"note: {note}", err=True)
    gates.require_parity(report)


@main.command()
@click.argument("path", type=PATH)
@click.option(
    "--for",
    "version",
    type=click.Choice(VERSIONS),
    help="Say instead what this TensorRT cannot read (exit 1), or reads and cannot fuse.",
)
@json_option
def inspect(path: Path, version: str | None, as_json: bool) -> None:
    """Show what is in a graph or a bundle: operators, dtypes, buckets, precision, provenance.

    \b
    Examples:
        attn-export inspect mqa-bundle
        attn-export inspect model.onnx --for tensorrt-8.6
    """
    from attn_export import inspection

    if version is not None:
        _inspect_for(path, version, as_json)
        return
    facts = inspection.inspect(path)
    if as_json:
        print_json(facts)
    else:
        print_lines(inspection.lines(facts))


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can do, and what to install for what it cannot.

    \b
    Example:
        attn-export doctor
    """
    from attn_export.engines.doctor import examine, render

    report = examine()
    if as_json:
        print_json(report.to_json())
    else:
        print_lines(render(report))


for _command in (bench, check, estimate, packing, plan, report):
    main.add_command(_command)


def _inspect_for(path: Path, version: str, as_json: bool) -> None:
    from attn_export import inspection

    findings = inspection.lint(path, version)
    if as_json:
        graphs = {name: [item.to_json() for item in found] for name, found in findings.items()}
        print_json({"path": str(path), "for": version, "graphs": graphs})
    else:
        print_lines(inspection.lint_lines(findings))
    verdict = inspection.require_fit(findings, path, version)
    if not as_json:
        click.echo(verdict)


def _study(directory: Path, options: Int8Options, as_json: bool) -> None:
    from attn_export import build as builder
    from attn_export.benchmarks.sensitivity_report import render_sensitivity

    with Steps() as say:
        report, files = builder.study_bundle(directory, replace(options, say=say))
    print_report(report, render_sensitivity, as_json=as_json)
    for line in files:
        click.echo(line, err=as_json)


def _tolerances(atol: tuple[str, ...], rtol: tuple[str, ...]) -> Tolerances:
    from attn_export.benchmarks.tolerances import Tolerances

    return Tolerances.parse(atol, rtol)


def _print_parity(report: ParityReport, as_json: bool) -> None:
    from attn_export.benchmarks.report import render_parity

    print_report(report, render_parity, as_json=as_json)
