"""Throughput and latency of one bundle: who was how fast, how long a caller waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .peers import PREFIX
from .report_candidates import (
    KINDS,
    Candidate,
    baselines,
    is_peer,
    judged,
    kind,
    left_out,
    measured_ones,
    precision,
)
from .report_data import Results
from .report_document import Bar, Bars, Histogram, Lines, Link, Note, Part, Series, Table, Verdict
from .report_numbers import measured, number, percent, spread
from .stats import coefficient_of_variation


def throughput(results: Results) -> Iterator[Part]:
    """Bars of all candidates, their table, padding, and who was left out."""
    bench = results.found.get("bench")
    if bench is None:
        yield results.missing("bench")
        return
    done = measured_ones(bench)
    yield Note(text=_how(bench))
    yield Bars(
        caption="Samples a second, with the interval of the median over rounds; x: times as fast "
        "as the first eager candidate that it is compared with",
        kinds=KINDS,
        bars=[_bar(candidate) for candidate in done],
    )
    yield _table(done)
    yield Table(
        caption="Ratios, round by round, and what their intervals allow to say",
        columns=("Candidate", "Against", "Verdict", "Times as fast", "Interval"),
        rows=[row for candidate in done for row in _ratios(candidate)],
        words=3,
        is_long=True,
    )
    shares = ", ".join(f"to the {name} {percent(s)}" for name, s in bench["padded_shares"].items())
    yield Note(text=f"Padding as a share of all tokens, if sequences were padded {shares}.")
    notes = [(str(c["name"]), str(c["note"])) for c in done if c["note"]]
    if notes:
        yield Table(caption="Notes", columns=("Candidate", "Note"), rows=notes, words=2)
    reasons = left_out(bench)
    if reasons:
        rows = [*reasons.items()]
        yield Table(caption="Not measured", columns=("Candidate", "Reason"), rows=rows, words=2)


def _how(bench: Mapping[str, Any]) -> str:
    threads = f"{bench['threads']} CPU thread{'s' * (bench['threads'] != 1)}"
    return (
        f"{bench['data']}, {bench['mean_length']:.1f} tokens on average, at most "
        f"{bench['max_length']}; batches of {bench['batch_size']} where a candidate does not "
        f"choose its own; {bench['rounds']} interleaved rounds; {threads}. Throughput counts real "
        "samples, never padding."
    )


def _bar(candidate: Candidate) -> Bar:
    rate, ratios = candidate["samples_per_s"], candidate["ratios"]
    detail = next((f"{number(ratios[name]['median'])}x" for name in baselines(candidate)), "")
    return Bar(
        label=str(candidate["name"]),
        value=float(rate["median"]),
        low=float(rate["low"]),
        high=float(rate["high"]),
        text=measured(rate),
        kind=kind(candidate),
        detail=detail,
    )


def _table(done: Sequence[Candidate]) -> Table:
    has_device = any(c.get("device_mib") is not None for c in done)
    columns = (
        *("Candidate", "Precision", "Samples/s", "Interval", "CV", "Batch p50 ms", "p90", "p99"),
        *("Padding", "Cold start s", "Peak MiB"),
        *(["Device MiB"] if has_device else []),
    )
    rows = []
    for candidate in done:
        ms = candidate["batch_ms"]
        rows.append(
            (
                str(candidate["name"]),
                precision(candidate).upper(),
                number(candidate["samples_per_s"]["median"]),
                spread(candidate["samples_per_s"]),
                percent(coefficient_of_variation(candidate["rounds"])),
                *(number(ms[key]) if ms else "-" for key in ("p50", "p90", "p99")),
                percent(candidate["padded_share"]),
                number(candidate["cold_start_s"]),
                number(candidate["peak_mib"]),
                *([_optional(candidate.get("device_mib"))] if has_device else []),
            )
        )
    return Table(caption="Every candidate", columns=columns, rows=rows, words=2)


def _optional(value: float | None) -> str:
    return "-" if value is None else number(value)


def _ratios(candidate: Candidate) -> Iterator[tuple[str, ...]]:
    for name, found in candidate["ratios"].items():
        times = number(found["median"]) + "x"
        yield str(candidate["name"]), name, judged(found), times, spread(found)


def peers(results: Results) -> Iterator[Part]:
    """What one would use instead, each run as its own documentation recommends."""
    bench = results.found.get("bench")
    if bench is None:
        yield results.missing("bench")
        return
    found = [c for c in measured_ones(bench) if is_peer(c)]
    absent = {k: v for k, v in left_out(bench).items() if k.startswith(PREFIX)}
    if not found and not absent:
        command = results.command("bench")
        yield Note(text=f"No peers were measured. Add them: {command} --peers all", is_missing=True)
        return
    words = ("Peer", "Precision", "How it was run", "Version")
    if found:
        yield Table(
            caption="The same requests, in a process of its own, from arrays to arrays",
            columns=(*words, "Samples/s", "Interval", "Max diff", "Cosine", "Parity"),
            rows=[_peer(c) for c in found],
            words=len(words),
        )
    if absent:
        yield Table(
            caption="Peers that were not measured",
            columns=("Peer", "Reason"),
            rows=[*absent.items()],
            words=2,
        )


def _peer(candidate: Candidate) -> tuple[str | Link, ...]:
    facts = candidate.get("facts") or {}
    how, docs, passed = str(facts.get("how", "-")), facts.get("docs"), facts.get("passed")
    return (
        str(candidate["name"]),
        precision(candidate).upper(),
        Link(text=how, target=str(docs)) if docs else how,
        str(facts.get("version", "-")),
        number(candidate["samples_per_s"]["median"]),
        spread(candidate["samples_per_s"]),
        _optional(facts.get("max_abs")),
        "-" if facts.get("cosine") is None else f"{facts['cosine']:.5f}",
        "-" if passed is None else ("pass" if passed else "FAIL"),
    )


def latency(results: Results) -> Iterator[Part]:
    """How long one batch takes: histograms, then percentiles."""
    bench = results.found.get("bench")
    if bench is None:
        yield results.missing("bench")
        return
    entries = [(name, e) for name, found in bench.get("latencies", {}).items() for e in found]
    if not entries:
        command = results.command("bench")
        yield Note(text=f"No latencies were measured; run: {command}", is_missing=True)
        return
    yield Note(
        text="One batch at a time, from arrays on the host to arrays on the host. Times are in "
        "milliseconds; the axes are logarithmic."
    )
    for name, entry in entries:
        histogram = entry.get("histogram")
        if histogram:
            yield Histogram(
                caption=f"{name}: {_shape(entry)}",
                x=f"ms of {entry['runs']} calls (log scale)",
                edges=histogram["edges_ms"],
                counts=histogram["counts"],
                marks=[(key, entry["host_ms"][key]) for key in ("p50", "p90", "p99")],
            )
    rows = [
        (name, _shape(e), str(e["runs"]), *(number(e["host_ms"][k]) for k in ("p50", "p90", "p99")))
        for name, e in entries
    ]
    columns = ("Candidate", "Batch", "Runs", "p50 ms", "p90 ms", "p99 ms")
    yield Table(caption="Latency", columns=columns, rows=rows, words=2)


def _shape(entry: Mapping[str, Any]) -> str:
    many = "1 request" if entry["batch"] == 1 else f"{entry['batch']} requests"
    return f"{many} of {entry['length']} tokens"


def by_length(results: Results) -> Iterator[Part]:
    """Throughput against length: each bucket's full batch, as the engine's build timed it."""
    engines = results.manifest.engines if results.manifest else {}
    series = [
        Series(
            name=name,
            points=[(b["edge"], 1e3 * b["batch"] / b["ms"]) for b in record.buckets],
            kind=kind,
        )
        for kind, (name, record) in enumerate(engines.items())
        if record.buckets
    ]
    if not series:
        yield Verdict(status="info", text="No engine was timed by length; run: attn-export compile")
        return
    yield Lines(
        caption="Throughput by length: one full batch of each bucket, timed at the build",
        x="tokens (log scale)",
        y="samples/s, one batch at a time (log scale)",
        series=series,
    )
