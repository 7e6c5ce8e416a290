"""Engines of one bundle against each other: INT8 against what it replaces, one backend and another.

All of them answer the same requests in turn, so that what slows the machine slows them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from attn_export.benchmarks.devices import CPU, device_of
from attn_export.benchmarks.race import interleaved_rates, race
from attn_export.benchmarks.stats import median_interval, ratio_interval
from attn_export.benchmarks.workload import Workload, synthetic_sequences
from attn_export.bundle import Bundle
from attn_export.engines.engine import Engine, open_engine
from attn_export.engines.ranking import unsuited
from attn_export.engines.session import Goal, LoadOptions

if TYPE_CHECKING:
    from attn_export.portable import Say

UNITS = {"throughput": "samples/s", "latency": "single requests/s"}


def race_int8(bundle: Bundle, name: str, say: Say) -> None:
    """Let an INT8 engine run against the one that it replaces: FP16 on a GPU, FP32 on a CPU.

    The result stands in the engine's record. Nothing happens without such a pair.
    """
    manifest = bundle.manifest
    record = manifest.engines[name]
    if record.precision != "int8":
        return
    wanted = "fp32" if device_of(record) == CPU or "fp16" not in manifest.graphs else "fp16"
    rival = replace(record, precision=wanted).name
    if rival not in manifest.engines:
        return
    say(f"racing {name} against {rival}")
    with _loaded(bundle, (name, rival)) as (candidate, replaced):
        found = race(candidate, replaced, _requests(bundle))
    record.race = {"rival": rival, **asdict(found)}


def choose_fastest(bundle: Bundle, goal: Goal, say: Say) -> None:
    """Measure engines side by side; each one's speed and the choice stand in the manifest.

    All that passed parity and suit this machine take part, where they are of several backends:
    one backend's engines are ordered by the times that compiling recorded.

    Args:
        goal: what counts: many requests at once, or one at a time.
    """
    manifest = bundle.manifest
    names = [name for name in manifest.engines if _takes_part(bundle, name)]
    if len({manifest.engines[name].backend for name in names}) < 2:
        return
    say(f"measuring {', '.join(names)} for {goal}")
    with _loaded(bundle, names) as engines:
        rates = dict(zip(names, interleaved_rates(engines, _requests(bundle), goal), strict=True))
    for name, found in rates.items():
        speed = {"goal": goal, "samples_per_s": asdict(median_interval(found))}
        manifest.engines[name].speed = speed
    ranked = sorted(names, key=lambda name: -median_interval(rates[name]).median)
    reason = _reason(ranked, rates, goal)
    manifest.choice = {"engine": ranked[0], "goal": goal, "reason": reason}
    say(reason)


def _takes_part(bundle: Bundle, name: str) -> bool:
    record = bundle.manifest.engines[name]
    return bundle.manifest.passed(record) and unsuited(record) is None


def _reason(ranked: Sequence[str], rates: dict[str, list[float]], goal: Goal) -> str:
    first, second = ranked[:2]
    reached = median_interval(rates[first]).median
    times = ratio_interval(rates[first], rates[second])
    return (
        f"{first}: {reached:,.0f} {UNITS[goal]} here, {times.median:.2f} [{times.low:.2f}, "
        f"{times.high:.2f}] times {second}, the next best"
    )


def _requests(bundle: Bundle) -> Sequence[Any]:
    inputs = bundle.manifest.inputs
    return Workload(inputs, synthetic_sequences(inputs, bundle.manifest.max_length)).raw


@contextmanager
def _loaded(bundle: Bundle, names: Sequence[str]) -> Iterator[list[Engine]]:
    options, engines = LoadOptions(allow_host_code=True), bundle.manifest.engines
    with ExitStack() as stack:
        yield [stack.enter_context(open_engine(bundle, engines[n], options)) for n in names]
