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
from attn_export.benchmarks.stats import median_interval, percentiles
from attn_export.cli_plan import plan

TARGET = Path(__file__).resolve().parent.parent / "docs" / "planning.md"
BLOCK = re.compile(r"<!-- (.+?) -->\n```\n\$ attn-export plan (.+)\n(?:.*\n)*?```")
# The CPU service's engines: samples/s as in docs/performance.md, and the assumed ms of one request.
CPU_ENGINES = {"onnxruntime-fp32": (594.0, 6.0), "onnxruntime-int8": (2291.0, 2.0)}


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
    """A bench.json of two engines on one CPU."""
    spread = [0.9 + 0.01 * index for index in range(21)]
    results, latencies = [], {}
    for engine, (rate, ms) in CPU_ENGINES.items():
        results.append(_result(engine, rate))
        times = [ms * factor for factor in spread]
        latencies[engine] = [
            Latency(
                batch=1,
                length=30,
                runs=len(times),
                host_ms=percentiles(times),
                histogram=histogram(times),
            )
        ]
    return BenchReport(
        model="mqa",
        data="2,000 tweets",
        sequences=2000,
        mean_length=29.9,
        max_length=128,
        batch_size=64,
        threads=4,
        rounds=7,
        quick=False,
        padded_shares={},
        results=results,
        skipped={},
        environment={"cpu": {"model": "Intel Xeon (Sapphire Rapids)", "cores": 4}},
        load_average=(0.0, 0.0),
        latencies=latencies,
    ).to_json()


def _result(engine: str, rate: float) -> CandidateResult:
    return CandidateResult(
        name=f"engine-bucketed:{engine}",
        candidate="engine-bucketed",
        engine=engine,
        note="",
        prepared=Prepared(samples=2000, tokens=59802, computed_tokens=60102, batches=156),
        samples_per_s=median_interval([rate] * 7),
        rounds=[rate] * 7,
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
