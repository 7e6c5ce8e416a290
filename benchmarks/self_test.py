"""Does the measurement find a difference where there is none? One engine against itself."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.doctor import examine
from attn_export.errors import BundleError, GateFailed, Inconclusive
from attn_export.manifest import EngineRecord

from .bench_settings import (
    checked_threads,
    chosen_engines,
    comparable_settings,
    described,
    fitting_sequences,
)
from .candidates import BUCKETED, Settings
from .devices import GPU, device_of
from .environment import environment
from .gpu_watch import GpuWatch
from .interpreter import this_interpreter
from .machine_state import MachineWatch
from .rounds import Plan, Rounds, Say
from .stats import CONFIDENCE, Interval, ratio_interval, verdict
from .workload import Ids

RUNS = 20
# 21 ratios: the interval of one run of 20 is from the 4th to the 18th, so that 3 outliers on each
# side do not count. Many short turns see less of a busy machine's drift than a few long ones.
PLAN = Plan(rounds=21, turn_s=0.3, all_s=0.3, warm_up_s=5.0, latency_s=0.0)
# A difference that would matter to somebody; and the one that the test must be able to see.
PRACTICAL, WANTED = 0.03, 0.05
SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class SelfTestReport:
    """What an engine's comparisons with itself said.

    The intervals of all runs together hold the truth with a probability of 95 %: each run's with
    1 - 0.05 / runs (Bonferroni; O. J. Dunn 1961). Otherwise one of 20 would be wrong by itself.

    Args:
        ratios: of each run, the second process over the first.
        plain: the same with the 95 % of a run alone.
        practical: differences up to here are none.
        settings: what was measured.
        notes: what a reader must know before the numbers.
    """

    engine: str
    ratios: list[Interval]
    plain: list[Interval]
    practical: float
    environment: dict[str, Any]
    settings: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION

    @property
    def false_differences(self) -> int:
        """Runs whose interval excludes 1 and whose ratio differs from 1 by more than practical."""
        return sum(is_difference(ratio, self.practical) for ratio in self.ratios)

    @property
    def excluded_by_chance(self) -> int:
        """Runs whose own 95 % interval excludes 1, however near; about one of 20 is expected."""
        return sum(verdict(ratio) != "inconclusive" for ratio in self.plain)

    @property
    def largest_difference(self) -> float:
        """The largest distance of a run's ratio from 1: 0.02 is 2 %."""
        return max(_distance(ratio.median) for ratio in self.ratios)

    @property
    def resolution(self) -> float:
        """Half of the middle run's interval: the least difference that such a run can see."""
        widths = [math.log(ratio.high / ratio.low) / 2 for ratio in self.ratios]
        return math.expm1(statistics.median(widths))

    def to_json(self) -> dict[str, Any]:
        """A plain dict, with what follows from the runs."""
        return {
            **asdict(self),
            "false_differences": self.false_differences,
            "excluded_by_chance": self.excluded_by_chance,
            "largest_difference": self.largest_difference,
            "resolution": self.resolution,
        }

    def lines(self) -> list[str]:
        """The result for the terminal, the verdict first."""
        runs, found = len(self.ratios), self.false_differences
        word = "FAIL" if found else "PASS" if self.resolution <= WANTED else "INCONCLUSIVE"
        return [
            f"[{word}] {self.engine} against itself: {found} false differences in {runs} runs",
            f"largest difference of a run: {self.largest_difference:.1%}; it counts beyond "
            f"{self.practical:.0%}, if the interval excludes 1",
            f"a run sees differences from about {self.resolution:.1%}; {CONFIDENCE:.0%} intervals "
            f"of single runs that exclude 1: {self.excluded_by_chance} (chance alone: "
            f"{(1 - CONFIDENCE) * runs:.0f})",
            *self.notes,
        ]

    def require_no_difference(self) -> None:
        """The gate.

        Raises:
            GateFailed: if a run found a difference.
            Inconclusive: if there was so much noise that a slowdown of 5 % would not be seen.
        """
        if self.false_differences:
            raise GateFailed(
                f"{self.engine} differs from itself in {self.false_differences} of "
                f"{len(self.ratios)} runs, by up to {self.largest_difference:.1%}: do not trust "
                "comparisons made on this machine in this state; see the notes, stop other work"
            )
        if self.resolution > WANTED:
            raise Inconclusive(
                f"no false difference, but the noise would hide one of {WANTED:.0%}: a run sees "
                f"differences from about {self.resolution:.1%}; stop other work and run it again"
            )


def run_self_test(
    bundle: Bundle,
    *,
    sequences: Sequence[Ids] | None = None,
    engine: str | None = None,
    threads: int | None = None,
    runs: int = RUNS,
    plan: Plan = PLAN,
    say: Say = lambda text: None,
) -> SelfTestReport:
    """Compare an engine with itself many times, as ``bench`` compares two: an A/A test.

    Each run starts two new processes with the same settings: memory that happens to lie better in
    one of them is a part of the noise.

    Args:
        sequences: as for :func:`~attn_export.benchmarks.bench.run_bench`.
        engine: None for the bundle's first one that passed parity.
        threads: CPU threads of each, or None for each CPU that this process may use.

    Raises:
        UsageError: unknown engine; more threads than CPUs; runs below 1.
        InputError: no sequences, or one that is empty or longer than the engine takes.
        BundleError: no engine, none that passed parity, or an altered file.
        AttnExportError: if a process fails.
    """
    threads = checked_threads(threads, runs=runs, rounds=plan.rounds)
    name, record = _chosen(bundle, engine)
    data, sequences = described(sequences), fitting_sequences(bundle, {name: record}, sequences)
    settings = Settings(candidate=BUCKETED, engine=name, threads=threads, batch_size=64)
    host, watch, machine = examine(), GpuWatch(), MachineWatch()
    rates = []
    with machine, ExitStack() as stack:
        if device_of(record) == GPU:
            stack.enter_context(watch)
        for number in range(1, runs + 1):
            say(f"run {number} of {runs}")
            rates.append(_one_run(bundle, sequences, settings, plan))
    confidence = 1 - (1 - CONFIDENCE) / runs
    return SelfTestReport(
        engine=name,
        ratios=[ratio_interval(second, first, confidence) for first, second in rates],
        plain=[ratio_interval(second, first) for first, second in rates],
        practical=PRACTICAL,
        environment=environment(host, watch, machine),
        settings=comparable_settings(
            bundle, sequences, data=data, threads=threads, runs=runs, **asdict(plan)
        ),
        notes=[*watch.notes, *machine.notes],
    )


def _chosen(bundle: Bundle, engine: str | None) -> tuple[str, EngineRecord]:
    for name, record in chosen_engines(bundle, engine).items():
        if engine is not None or bundle.manifest.passed(record):
            return name, record
    raise BundleError(
        f"no engine of {bundle.directory} has passed parity; run 'attn-export parity', or name an "
        "engine with --engine"
    )


def is_difference(ratio: Interval, practical: float = PRACTICAL) -> bool:
    """Whether a ratio's interval excludes 1 and the ratio is farther from it than matters."""
    return verdict(ratio) != "inconclusive" and _distance(ratio.median) > practical


def _distance(ratio: float) -> float:
    """The same for twice as fast and half as fast."""
    return math.expm1(abs(math.log(ratio)))


def _one_run(
    bundle: Bundle, sequences: Sequence[Ids], settings: Settings, plan: Plan
) -> tuple[list[float], list[float]]:
    """The samples a second of both processes, round by round."""
    here = this_interpreter()
    with ExitStack() as stack:
        field = Rounds(
            bundle, sequences, plan, eager=here, engine=here, say=lambda text: None, stack=stack
        )
        for _ in range(2):
            field.start(settings)
        if not field.failed:
            field.prepare()
            for _ in range(plan.rounds):
                field.run("")
        for failure in field.failed.values():
            raise failure
        first, second = field.entries
        return first.rounds, second.rounds
