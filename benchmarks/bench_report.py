"""What a measurement found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from attn_export import errors
from attn_export.errors import AttnExportError, BundleError, UsageError

from .devices import CPU, Device
from .latency import Histogram, Latency
from .loops import Prepared
from .stats import Interval, Verdict, coefficient_of_variation, verdict

SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """What one candidate reached.

    Args:
        name: the candidate, and the engine where it runs one.
        prepared: what each turn ran.
        samples_per_s: real samples; the median over rounds, with its interval.
        rounds: samples a second in each round.
        stable: whether its warm-up ended because the times no longer changed; ``warm_up_cv`` is
            the coefficient of variation of the last ones.
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
        facts: what it told of itself, of a peer its parity with eager FP32.
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
    stable: bool = True
    warm_up_cv: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def padded_share(self) -> float:
        """Padding, as a share of all tokens computed."""
        return 1 - self.prepared.tokens / self.prepared.computed_tokens

    @property
    def cv(self) -> float:
        """The coefficient of variation of its rounds."""
        return coefficient_of_variation(self.rounds)

    @property
    def verdicts(self) -> dict[str, Verdict]:
        """What each ratio says: faster, slower, or inconclusive."""
        return {name: verdict(ratio) for name, ratio in self.ratios.items()}

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with what follows from the rest."""
        derived = {"padded_share": self.padded_share, "cv": self.cv, "verdicts": self.verdicts}
        return {**asdict(self), **derived}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> CandidateResult:
        """The inverse of :meth:`to_json`."""
        stored = {name: data[name] for name in cls.__dataclass_fields__}
        intervals = {name: Interval(**ratio) for name, ratio in data["ratios"].items()}
        return cls(
            **{
                **stored,
                "prepared": Prepared(**data["prepared"]),
                "samples_per_s": Interval(**data["samples_per_s"]),
                "ratios": intervals,
            }
        )


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why a candidate has no numbers: the error's class and its text."""

    error: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """The result of :func:`~attn_export.benchmarks.bench.run_bench`.

    Args:
        padded_shares: padding as a share of all tokens, if every sequence were padded to the
            maximum or to its bucket's edge; what each candidate computed is in its result.
        skipped: candidates and engines that could not run here, and why.
        failed: candidates that crashed, hung or failed in the measurement, the first one first.
        load_average: of the last minute, before and after.
        latencies: by engine, of one request of typical length, of one as long as the 99th
            percentile, and of a padded batch; by the name of ``eager-dynamic``, of the requests.
        notes: what a reader must know before the numbers.
        settings: all that two reports must share to be compared, the data's sha256 and the model
            among it.
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
    failed: dict[str, Failure] = field(default_factory=dict)
    latencies: dict[str, list[Latency]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**asdict(self), "results": [result.to_json() for result in self.results]}

    @classmethod
    def from_json(cls, data: Any) -> BenchReport:
        """Read what :meth:`to_json` gave, from a file that anyone may have written.

        Raises:
            UsageError: if it is no report of ``attn-export bench``, or an older version's.
            BundleError: if it is a newer version's.
        """
        _check_schema(data)
        try:
            latencies = {name: list(map(_latency, v)) for name, v in data["latencies"].items()}
            before, after = data["load_average"]
            return cls(
                **{
                    **data,
                    "results": [CandidateResult.from_json(item) for item in data["results"]],
                    "failed": {name: Failure(**item) for name, item in data["failed"].items()},
                    "latencies": latencies,
                    "load_average": (before, after),
                }
            )
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(
                f"this report of attn-export bench is incomplete or was edited ({error!r}); run "
                "'attn-export bench' again"
            ) from error

    def require_complete(self) -> None:
        """Turn failed candidates into an error of the first one's class, after the report is kept.

        Raises:
            AttnExportError: if a candidate failed.
        """
        for failure in self.failed.values():
            kind: type[AttnExportError] = getattr(errors, failure.error)
            raise kind(
                f"{len(self.failed)} of {len(self.failed) + len(self.results)} candidates failed: "
                f"{', '.join(self.failed)}; the first reason: {failure.reason}"
            )


def _check_schema(data: Any) -> None:
    keys = ("results", "load_average", "schema_version")
    if not isinstance(data, dict) or any(key not in data for key in keys):
        raise UsageError(
            f"this is no report of 'attn-export bench' but {repr(data)[:60]}; give the bench.json "
            "that it writes into DIR/reports"
        )
    version = data["schema_version"]
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BundleError(
            f"the report has schema {version}, this version of attn-export reads {SCHEMA_VERSION}; "
            "upgrade attn-export, or run 'attn-export bench' again with this version"
        )
    if version != SCHEMA_VERSION:
        raise UsageError(
            f"the report has schema {version!r} of an older attn-export, this version reads "
            f"{SCHEMA_VERSION}; run 'attn-export bench' again"
        )


def _latency(data: Mapping[str, Any]) -> Latency:
    return Latency(**{**data, "histogram": Histogram(**data["histogram"])})
