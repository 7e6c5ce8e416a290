"""Write the outputs in docs/planning.md again: python scripts/write_planning_doc.py.

A block that begins with a command is replaced by what the command prints: its first part, and the
tables that the comment above the block names.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import tempfile
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from attn_export.benchmarks.bench_report import BenchReport, CandidateResult
from attn_export.benchmarks.latency import Latency, histogram
from attn_export.benchmarks.loops import Prepared
from attn_export.benchmarks.stats import median_interval
from attn_export.cli_plan import plan

TARGET = Path(__file__).resolve().parent.parent / "docs" / "planning.md"
BLOCK = re.compile(r"<!-- (.+?) -->\n```\n\$ attn-export plan (.+)\n(?:.*\n)*?```")
# The CPU service's engines, from the run in docs/performance.md: samples/s, and p50, p90 and p99 in
# ms of one request of 30 tokens and of one of 52, the 99th percentile of its lengths.
TYPICAL, LONG = 30, 52
CPU_ENGINES = {
    "onnxruntime-fp32": (621.0, (3.53, 3.66, 3.88), (5.45, 6.08, 6.98)),
    "openvino-fp32": (629.0, (3.39, 3.56, 4.94), (5.17, 5.40, 8.43)),
    "openvino-bf16": (2402.0, (1.82, 1.95, 2.22), (2.28, 2.40, 2.58)),
    "onnxruntime-int8": (2242.0, (2.09, 2.18, 2.23), (2.78, 2.88, 3.02)),
    "openvino-int8": (2686.0, (1.99, 2.17, 2.52), (2.37, 2.49, 2.62)),
}


def text() -> str:
    """The page, with every output as it is now."""
    page, before = TARGET.read_text(encoding="utf-8"), Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cpu-service.json").write_text(json.dumps(cpu_service()), encoding="utf-8")
        os.chdir(folder)
        try:
            return BLOCK.sub(_block, page)
        finally:
            os.chdir(before)


def cpu_service() -> dict[str, Any]:
    """A bench.json of the engines of one bundle on one CPU."""
    results, latencies = [], {}
    for engine, (rate, typical, long) in CPU_ENGINES.items():
        results.append(_result(engine, rate))
        latencies[engine] = [_latency(TYPICAL, typical), _latency(LONG, long)]
    return BenchReport(
        model="mqa",
        data="2,000 tweets",
        sequences=2000,
        mean_length=29.9,
        max_length=128,
        batch_size=64,
        threads=4,
        rounds=9,
        quick=False,
        padded_shares={},
        results=results,
        skipped={},
        environment={"cpu": {"model": "Intel Xeon (Sapphire Rapids)", "cores": 4}},
        load_average=(0.0, 0.0),
        latencies=latencies,
    ).to_json()


def _latency(length: int, times: tuple[float, float, float]) -> Latency:
    host_ms = dict(zip(("p50", "p90", "p99"), times, strict=True))
    return Latency(batch=1, length=length, runs=200, host_ms=host_ms, histogram=histogram(times))


def _result(engine: str, rate: float) -> CandidateResult:
    return CandidateResult(
        name=f"engine-bucketed:{engine}",
        candidate="engine-bucketed",
        engine=engine,
        note="",
        prepared=Prepared(samples=2000, tokens=59802, computed_tokens=60102, batches=156),
        samples_per_s=median_interval([rate] * 9),
        rounds=[rate] * 9,
        batch_ms=None,
        ratios={},
        cold_start_s=0.4,
        cold_start_with_imports_s=0.6,
        peak_mib=500.0,
    )


def _block(found: re.Match[str]) -> str:
    wanted, arguments = found[1], found[2]
    result = CliRunner().invoke(plan, shlex.split(arguments), env={**os.environ, "COLUMNS": "100"})
    if result.exception and not isinstance(result.exception, SystemExit):
        shown = f"Error: {result.exception}"
    else:
        shown = _parts(result.output, [name.strip() for name in wanted.split(",")])
    lines = [line.rstrip() for line in shown.splitlines()]
    return "\n".join(
        [f"<!-- {wanted} -->", "```", f"$ attn-export plan {arguments}", *lines, "```"]
    )


def _parts(output: str, wanted: list[str]) -> str:
    first, *others = output.strip("\n").split("\n\n")
    chosen = [part for part in others if part.partition(":")[0] in wanted]
    return "\n\n".join([first, *chosen])


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
