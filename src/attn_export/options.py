"""Click options that several commands share, and the group that turns errors into exit codes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from attn_export.errors import AttnExportError, UsageError

if TYPE_CHECKING:
    from attn_export.engines.session import CompileOptions
    from attn_export.exporter.source import ModelSource
    from attn_export.int8_options import Int8Options

Command = TypeVar("Command", bound=Callable[..., Any])
PATH = click.Path(path_type=Path)
HELP = {"help_option_names": ["-h", "--help"]}

# Spellings of other tools -> ours.
FOREIGN = {
    "--minShapes": "-b/--batch-size and -s/--seq-len, each MIN OPT MAX",
    "--optShapes": "-b/--batch-size and -s/--seq-len, each MIN OPT MAX",
    "--maxShapes": "-b/--batch-size and -s/--seq-len, each MIN OPT MAX",
    "--onnx": "the argument MODEL, or a bundle for 'attn-export compile'",
    "--saveEngine": "-o/--output, a bundle directory",
    "--memPoolSize": "--workspace MIB",
    "--builderOptimizationLevel": "--optimization-level",
    "--timingCacheFile": "nothing (the bundle keeps the timing cache)",
    "--errorOnTimingCacheMiss": "--error-on-timing-cache-miss",
    "--versionCompatible": "--version-compatible embedded",
    "--excludeLeanRuntime": "--version-compatible lean",
    "--hardwareCompatibilityLevel": "--same-compute-capability",
    "--stronglyTyped": "nothing (the precision is in the graph)",
    "--precision": "--fp16 or --int8",
    "--calib": "--data (the bundle keeps the ranges)",
    "--fp32-layers": "--nodes-to-exclude",
    "--layerPrecisions": "--nodes-to-exclude",
    "--keep-io-types": "nothing (inputs and outputs stay FP32 unless --fp16-io)",
}


class PositiveNumber(click.FloatRange):
    """A number above zero that is neither infinite nor NaN, which FloatRange lets through."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number.", param, ctx)
        return number


@contextlib.contextmanager
def _orderly_end() -> Iterator[None]:
    """While it lasts SIGTERM unwinds the stack, so that processes and partial files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Group(click.Group):
    """Errors of ours become one line and their exit code; a bug keeps its traceback (70)."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the command line; SIGTERM ends it as orderly as Ctrl-C does."""
        try:
            with _orderly_end():
                return super().main(*args, **kwargs)
        except SystemExit as end:
            from attn_export.engines.build_thread import is_left_running

            if is_left_running():
                # Python's own way out could crash in the library, and the exit code be lost.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(end.code if isinstance(end.code, int) else 1)
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except AttnExportError as error:
            click.echo(f"Error: {error}", err=True)
            ctx.exit(error.exit_code)
        except click.NoSuchOption as error:
            if error.option_name not in FOREIGN:
                raise
            hint = f"{error.message} Here it is {FOREIGN[error.option_name]}."
            raise click.UsageError(hint, error.ctx) from error
        except KeyboardInterrupt:
            click.echo("Interrupted; nothing was changed.", err=True)
            ctx.exit(130)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except Exception:
            traceback.print_exc()
            click.echo("This is a defect of attn-export; please report it.", err=True)
            ctx.exit(70)


def _together(*decorators: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


def _dimension(name: str, text: str) -> Callable[[Command], Command]:
    return click.option(name, type=click.IntRange(min=0), help=f"Built-in models: {text}.")


model_argument = click.argument("model", default="mqa")

dimension_options = _together(
    _dimension("--vocab-size", "tokens in the vocabulary [30522]"),
    _dimension("--hidden-size", "hidden size M [768]"),
    _dimension("--heads", "query heads H [12]"),
    _dimension("--kv-heads", "key/value heads K, for gqa [the most that divide H, up to a third]"),
    _dimension("--layers", "layers L [12]"),
    _dimension("--positions", "longest sequence of the position table [128]"),
    _dimension("--classes", "classes [3]"),
    _dimension("--ffn-size", "width of a feed-forward block, 0 for none [0]"),
)

model_options = _together(
    model_argument,
    dimension_options,
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Seed of built-in weights."
    ),
    click.option("--weights", type=PATH, help="Checkpoint: .safetensors, .pt, .pth or .bin."),
    click.option("--max-length", type=click.IntRange(min=1), help="Longest sequence, in tokens."),
    click.option(
        "--lowering",
        type=click.Choice(["expand", "fold"]),
        default="fold",
        show_default=True,
        help="How shared key/value heads are written.",
    ),
)

tolerance_options = _together(
    click.option("--atol", multiple=True, metavar="[OUTPUT:]VALUE", help="Absolute tolerance."),
    click.option("--rtol", multiple=True, metavar="[OUTPUT:]VALUE", help="Relative tolerance."),
)

data_options = _together(
    click.option(
        "--data",
        type=PATH,
        help="Requests: .jsonl, .csv, .parquet, .txt, .npz, a datasets directory, module:function.",
    ),
    click.option("--tokenizer", type=PATH, help="tokenizer.json, for texts."),
)


def backend_option(default: str) -> Callable[[Command], Command]:
    """``--backend`` with a command's own default."""
    return click.option(
        "--backend",
        default=default,
        show_default=True,
        help="auto, tensorrt, onnxruntime, openvino or a plug-in's name.",
    )


def _shape(short: str, name: str, text: str) -> Callable[[Command], Command]:
    return click.option(
        short, name, type=(int, int, int), multiple=True, metavar="MIN OPT MAX", help=text
    )


engine_options = _together(
    _shape("-b", "--batch-size", "Samples of one optimization profile; repeat for more."),
    _shape("-s", "--seq-len", "Its tokens. Without both: one profile for each bucket."),
    click.option("--target", help="GPU to build for: t4, l4, a10, a100, h100 [the one here]."),
    click.option(
        "--provider",
        type=click.Choice(["cpu", "cuda", "tensorrt"]),
        default="cpu",
        show_default=True,
        help="ONNX Runtime's execution provider.",
    ),
    click.option(
        "--for",
        "goal",
        type=click.Choice(["throughput", "latency"]),
        default="throughput",
        show_default=True,
        help="What a CPU's threads are set for.",
    ),
    click.option("--bf16", is_flag=True, help="A BF16 engine too, on a CPU that computes it."),
    click.option("--workspace", type=click.IntRange(min=1), help="TensorRT workspace, in MiB."),
    click.option(
        "--optimization-level", type=click.IntRange(0, 5), help="How long TensorRT searches."
    ),
    click.option(
        "--error-on-timing-cache-miss",
        is_flag=True,
        help="Fail rather than time a tactic that the bundle's timing cache lacks.",
    ),
    click.option(
        "--version-compatible",
        type=click.Choice(["lean", "embedded"]),
        help="A plan for the lean runtime of this version, or with it inside, for newer ones.",
    ),
    click.option(
        "--same-compute-capability",
        is_flag=True,
        help="A plan for every GPU of this compute capability; may cost speed.",
    ),
    click.option("--timeout", type=click.FloatRange(min=1), help="Seconds for one engine."),
    click.option(
        "--min-fp16-share",
        type=click.FloatRange(0, 1),
        default=0.9,
        show_default=True,
        help="Least share of the GEMM layers in FP16 or INT8.",
    ),
)

int8_options = _together(
    click.option(
        "--calibration-samples",
        type=click.IntRange(min=1),
        default=512,
        show_default=True,
        help="Requests of --data that the ranges come from.",
    ),
    click.option(
        "--calibration-method",
        type=click.Choice(["auto", "minmax", "percentile", "entropy", "mse"]),
        default="auto",
        show_default=True,
        help="How a range is chosen from what was seen.",
    ),
    click.option(
        "--int8-exclude",
        multiple=True,
        metavar="REGEX|@FILE",
        help="Nodes that stay as they are; a file has one a line.",
    ),
    click.option("--int8-residuals", is_flag=True, help="Residual adds and GEMM outputs too."),
    click.option("--int8-attention", is_flag=True, help="The attention's own products too."),
    click.option(
        "--smooth-quant",
        type=click.FloatRange(0, 1),
        metavar="ALPHA",
        help="Move outliers from norms into the weights (SmoothQuant; 0.5 is usual).",
    ),
    click.option("--skip-bad-rows", is_flag=True, help="Leave broken rows of --data out."),
    click.option(
        "--allow-synthetic", is_flag=True, help="Calibrate on random ids; they say little."
    ),
    click.option(
        "--min-agreement",
        type=click.FloatRange(0, 1),
        default=0.99,
        show_default=True,
        help="Least share of labels equal to FP32's.",
    ),
    click.option(
        "--min-cosine", type=click.FloatRange(0, 1), help="Ask for this mean cosine instead."
    ),
)

speed_gate_option = click.option(
    "--speed-gate/--no-speed-gate",
    default=True,
    show_default=True,
    help="An INT8 engine must be faster than the one it replaces.",
)

host_code_option = click.option(
    "--allow-host-code",
    is_flag=True,
    help="Load plans that carry their own TensorRT runtime, which is code.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")

bundle_argument = click.argument("directory", metavar="DIR", type=PATH)

DIMENSIONS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "heads": "num_heads",
    "kv_heads": "num_kv_heads",
    "layers": "num_layers",
    "positions": "max_length",
    "classes": "num_classes",
    "ffn_size": "ffn_size",
}


def model_source(model: str, values: dict[str, Any]) -> ModelSource:
    """The model that the shared options describe."""
    from attn_export.lazy import require

    require("torch", extra="export")
    from attn_export.exporter.source import BUILTIN, ModelSource

    given = {DIMENSIONS[k]: values[k] for k in DIMENSIONS if values[k] is not None}
    return ModelSource(
        model=model,
        options=given,
        weights=str(values["weights"]) if values["weights"] else None,
        seed=values["seed"],
        max_length=None if model in BUILTIN else values["max_length"],
    )


def compile_options(values: dict[str, Any]) -> CompileOptions:
    """What :data:`engine_options` says.

    Raises:
        UsageError: if a profile's numbers do not ascend, or -b and -s do not pair.
    """
    from attn_export.engines.profiles import given_profiles
    from attn_export.engines.session import CompileOptions

    batches, sequences = values["batch_size"], values["seq_len"]
    return CompileOptions(
        provider=values["provider"],
        goal=values["goal"],
        bf16=values["bf16"],
        target=values["target"],
        profiles=given_profiles(batches, sequences) if batches or sequences else (),
        workspace_mib=values["workspace"],
        optimization_level=values["optimization_level"],
        error_on_cache_miss=values["error_on_timing_cache_miss"],
        version_compatible=values["version_compatible"],
        same_compute_capability=values["same_compute_capability"],
        timeout_s=values["timeout"],
        least_fp16_share=values["min_fp16_share"],
    )


def int8_options_of(
    values: dict[str, Any], data: Path | None, tokenizer: Path | None
) -> Int8Options:
    """What :data:`int8_options` and ``--data`` say.

    Raises:
        UsageError: if a file of node names cannot be read, or a name is no regular expression.
    """
    from attn_export.int8_options import Int8Options

    return Int8Options(
        data=str(data) if data else None,
        tokenizer=tokenizer,
        samples=values["calibration_samples"],
        skip_bad_rows=values["skip_bad_rows"],
        method=values["calibration_method"],
        exclude=tuple(_expressions(values["int8_exclude"])),
        residuals=values["int8_residuals"],
        attention=values["int8_attention"],
        smooth=values["smooth_quant"],
        allow_synthetic=values["allow_synthetic"],
        min_agreement=values["min_agreement"],
        min_cosine=values["min_cosine"],
    )


def _expressions(given: tuple[str, ...]) -> Iterator[str]:
    """Regular expressions as they are, and the node names of files, which mean themselves."""
    for text in given:
        if not text.startswith("@"):
            yield text
            continue
        try:
            lines = Path(text[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--int8-exclude {text}: the file cannot be read: {error}") from error
        yield from (re.escape(line.strip()) for line in lines if line.strip())


def command_line() -> str:
    """How this command was called, for the manifest."""
    import shlex

    return shlex.join(["attn-export", *sys.argv[1:]])
