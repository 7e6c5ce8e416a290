"""What a measurement found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from .devices import CPU, Device
from .latency import Latency
from .loops import Prepared
from .stats import Interval

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """What one candidate reached.

    Args:
        name: the candidate, and the engine where it runs one.
        prepared: what each turn ran.
        samples_per_s: real samples; the median over rounds, with its interval.
        rounds: samples a second in each round.
        batch_ms: p50, p90, p99 of a batch, where batches run one after the other.
        ratios: how many times each baseline, by the baseline's name.
        cold_start_s: loading and the first request, in a fresh process after its imports (the
            files are in the page cache); ``cold_start_with_imports_s`` is from its start.
        peak_mib: the process's largest resident size.
        device: where it ran; ``eager_device`` is where the eager candidates ran that it is
            compared with.
        device_mib: on a GPU, of eager candidates all that torch ever reserved there, weights
            included; of an engine one stream's activations, inputs and outputs.
        versions: of what its process had imported.
    """

    name: str
    candidate: str
    engine: str | None
    note: str
    prepared: Prepared
    samples_per_s: Interval
    rounds: list[float]
    batch_ms: dict[str, float] | None
    ratios: dict[str, Interval]
    cold_start_s: float
    cold_start_with_imports_s: float
    peak_mib: float
    device: Device = CPU
    eager_device: Device = CPU
    device_mib: float | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def padded_share(self) -> float:
        """Padding, as a share of all tokens computed."""
        return 1 - self.prepared.tokens / self.prepared.computed_tokens


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of :func:`~attn_export.benchmarks.bench.run_bench`.

    Args:
        padded_shares: padding as a share of all tokens, if every sequence were padded to the
            maximum or to its bucket's edge; what each candidate computed is in its result.
        skipped: candidates and engines that could not run here, and why.
        load_average: of the last minute, before and after.
        latencies: of each engine on a GPU.
        notes: what a reader must know before the numbers.
    """

    model: str
    data: str
    sequences: int
    mean_length: float
    max_length: int
    batch_size: int
    threads: int
    rounds: int
    quick: bool
    padded_shares: dict[str, float]
    results: list[CandidateResult]
    skipped: dict[str, str]
    environment: dict[str, Any]
    load_average: tuple[float, float]
    latencies: dict[str, list[Latency]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        data = asdict(self)
        for entry, result in zip(data["results"], self.results, strict=True):
            entry["padded_share"] = result.padded_share
        return data
