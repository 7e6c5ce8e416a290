"""What a reader must see first: verdicts, the best engine, and what makes the numbers doubtful."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from attn_export.manifest import Manifest

from .report_candidates import (
    Candidate,
    baselines,
    best,
    engines,
    failed,
    is_peer,
    judged,
    measured_ones,
    precision,
    ratio,
)
from .report_data import Results, guarded
from .report_document import Status, Tile, Verdict
from .report_numbers import measured, number, percent, plural, spread
from .self_test import WANTED
from .stats import verdict

QUICK = "A quick run gives a first impression; measure without --quick to quote numbers"
GATES: dict[str, Status] = {"pass": "pass", "fail": "fail", "error": "fail", "skipped": "info"}


def passed_parity(results: Results) -> dict[str, bool]:
    """Which engines are equal to eager PyTorch: by parity.json, else by the manifest."""
    found: dict[str, bool] = {}
    if results.manifest is not None:
        for name, engine in results.manifest.engines.items():
            if engine.parity is not None:
                found[name] = results.manifest.passed(engine)
    for entry in results.found.get("parity", {}).get("engines", []):
        name, accepted = str(entry["engine"]), True
        if results.manifest is not None and name in results.manifest.engines:
            graph = results.manifest.graphs.get(results.manifest.engines[name].graph)
            accepted = graph is None or graph.quantization.get("accepted") is not False
        found[name] = bool(entry["passed"]) and accepted
    return found


def verdicts(results: Results) -> Iterator[Verdict]:
    """All verdicts, by source; a source that is broken gives one that says so."""
    makers: tuple[tuple[str, Callable[[Results], Iterator[Verdict]]], ...] = (
        ("matrix", _matrix),
        ("parity", _parity),
        ("bench", _bench),
        ("check", _check),
        ("self-test", _self_test),
        ("bench", _doubts),
    )
    for name, make in makers:
        yield from guarded(
            results,
            name,
            lambda make=make: [*make(results)],  # type: ignore[misc]
            lambda text: [Verdict(status="warning", text=text)],
        )
    for text in results.problems.values():
        yield Verdict(status="warning", text=text)


def tiles(results: Results) -> Iterator[Tile]:
    """The few large numbers at the top of the page."""
    for name, make in (("bench", _speed_tiles), ("parity", _parity_tiles)):
        yield from guarded(
            results,
            name,
            lambda make=make: [*make(results)],  # type: ignore[misc]
            lambda text: [],
        )


def _speed_tiles(results: Results) -> Iterator[Tile]:
    bench = results.found.get("bench")
    fastest = bench and best(bench, passed_parity(results))
    if not bench or not fastest:
        return
    rate = fastest["samples_per_s"]
    yield Tile(
        title="Samples a second",
        value=number(rate["median"]),
        detail=f"{spread(rate)} by {fastest['engine']}, the fastest engine that passed parity",
    )
    for name in baselines(fastest)[:1]:
        found = fastest["ratios"][name]
        yield Tile(
            title="Times as fast as eager PyTorch",
            value=f"{number(found['median'])}x",
            detail=f"{spread(found)} against {name}",
        )


def _parity_tiles(results: Results) -> Iterator[Tile]:
    passed = passed_parity(results)
    if passed:
        yield Tile(
            title="Engines that passed parity",
            value=f"{sum(passed.values())} of {len(passed)}",
            detail=", ".join(passed),
        )
    manifest = results.manifest
    if manifest is None:
        return
    chosen = (manifest.choice or {}).get("engine")
    for name, engine in sorted(manifest.engines.items(), key=lambda item: item[0] != chosen):
        accuracy = (engine.accuracy or {}).get("results") or manifest.graphs[
            engine.graph
        ].quantization.get("accuracy")
        if accuracy and accuracy[0].get("labels") is not None:
            yield Tile(
                title="INT8 gives FP32's label",
                value=percent(accuracy[0]["labels"]),
                detail=f"of {accuracy[0]['requests']:,} requests, by {name}",
            )
            return


def _parity(results: Results) -> Iterator[Verdict]:
    report = results.found.get("parity")
    passed = passed_parity(results)
    if not passed and results.manifest is not None:
        yield Verdict(
            status="warning",
            text=f"No engine was compared with eager PyTorch; run: {results.command('parity')}",
        )
    details = {str(entry["engine"]): entry for entry in (report or {}).get("engines", [])}
    for name, is_equal in passed.items():
        entry = details.get(name)
        said = f"Parity of {name} with eager PyTorch FP32 {'passed' if is_equal else 'FAILED'}"
        if entry is not None and report is not None:
            outputs = [output for run in entry["runs"] for output in run["outputs"]]
            said += f" in {report['cases']} cases: {_nearness(outputs)}"
        yield Verdict(status="pass" if is_equal else "fail", text=said)
    for name, reason in (report or {}).get("skipped", {}).items():
        yield Verdict(status="warning", text=f"{name} was not compared: {reason}")
    if results.manifest is not None:
        yield from _stale(results.manifest, details)


def _nearness(outputs: Sequence[Mapping[str, Any]]) -> str:
    """The worst of some outputs, in the number that they were judged by."""
    by_cosine = [o for o in outputs if o["least_cosine"] is not None]
    if by_cosine:
        worst = min(by_cosine, key=lambda o: float(o["cosine"] or 0.0))
        return f"cosine {worst['cosine'] or 0.0:.4f}, at least {worst['least_cosine']:g} is asked"
    largest = max(outputs, key=lambda o: float(o["max_abs"]))
    return (
        f"largest difference {number(largest['max_abs'])}, {largest['atol']:g} + "
        f"{largest['rtol']:g} x |reference| is allowed"
    )


def _stale(manifest: Manifest, details: Mapping[str, Any]) -> Iterator[Verdict]:
    for name, entry in details.items():
        engine = manifest.engines.get(name)
        if engine is None or manifest.shipped(engine).sha256 != entry["sha256"]:
            yield Verdict(
                status="warning",
                text=f"parity.json speaks of another build of {name} than the bundle holds",
            )


def _bench(results: Results) -> Iterator[Verdict]:
    bench = results.found.get("bench")
    if bench is None:
        return
    passed = passed_parity(results)
    fastest = best(bench, passed)
    if fastest is None:
        yield Verdict(status="fail", text="No engine that was measured passed parity")
    else:
        yield _fastest(fastest)
        yield from _against_peers(bench, passed)
    for name, reason in failed(bench).items():
        yield Verdict(status="fail", text=f"{name} failed: {reason}")


def _fastest(fastest: Candidate) -> Verdict:
    said = f"{fastest['engine']}: {measured(fastest['samples_per_s'])} samples/s"
    against = baselines(fastest)
    ratios = fastest["ratios"]
    is_clear = bool(against) and all(judged(ratios[name]) == "faster" for name in against)
    told = ", ".join(f"{measured(ratios[name], 'x')} {name}" for name in against)
    return Verdict(
        status="pass" if is_clear else "warning",
        text=f"Fastest engine that passed parity: {said}" + (f"; {told}" if told else ""),
    )


def _against_peers(bench: Mapping[str, Any], passed: Mapping[str, bool]) -> Iterator[Verdict]:
    """Of each precision and device the fastest peer beside our fastest engine."""
    done = measured_ones(bench)
    peers = [c for c in done if is_peer(c) and (c.get("facts") or {}).get("passed") is not False]
    ours = [c for c in engines(bench) if passed.get(str(c["engine"]), True)]
    for place in dict.fromkeys(map(_place, peers)):
        peer = next(c for c in peers if _place(c) == place)
        mine = next((c for c in ours if _place(c) == place), None)
        if mine is None:
            yield Verdict(
                status="info",
                text=f"{peer['name']} computes in {place}; the bundle has no such engine",
            )
            continue
        found = ratio(mine, peer)
        status: dict[str, Status] = {"faster": "pass", "slower": "fail", "inconclusive": "warning"}
        word = verdict(found)
        yield Verdict(
            status=status[word],
            text=f"{place}: {mine['engine']} is {measured(vars(found), 'x')} as fast as "
            f"{peer['name']}, the fastest peer ({word})",
        )


def _place(candidate: Candidate) -> str:
    """What is fair to compare: ``"FP16 on the GPU"``."""
    return f"{precision(candidate).upper()} on the {str(candidate['device']).upper()}"


def _doubts(results: Results) -> Iterator[Verdict]:
    bench = results.found.get("bench")
    for text in _doubtful(results, bench) if bench else ():
        yield Verdict(status="warning", text=text)


def _doubtful(results: Results, bench: Mapping[str, Any]) -> Iterator[str]:
    """What makes the measurement doubtful."""
    yield from map(str, bench["notes"])
    if bench.get("quick"):
        yield QUICK
    weights = (bench.get("settings") or {}).get("weights_sha256")
    held = results.manifest.model.get("weights_sha256") if results.manifest else None
    if weights and held and weights != held:
        yield "bench.json speaks of other weights than the bundle holds"


def _check(results: Results) -> Iterator[Verdict]:
    report = results.found.get("check")
    for gate in report["results"] if report else ():
        word = str(gate["verdict"])
        yield Verdict(
            status=GATES.get(word, "warning"),
            text=f"Gate {gate['gate']} of {gate['engine']}: {word}: {gate['text']}",
        )
    yield from (Verdict(status="warning", text=str(n)) for n in (report or {}).get("notes", []))


def _self_test(results: Results) -> Iterator[Verdict]:
    report = results.found.get("self-test")
    if report is None:
        return
    runs, wrong = len(report["ratios"]), int(report["false_differences"])
    sees = float(report["resolution"])
    yield Verdict(
        status="fail" if wrong else "pass" if sees <= WANTED else "warning",
        text=f"Self-test: {report['engine']} against itself showed "
        f"{plural(wrong, 'false difference')} in {plural(runs, 'run')}; a run sees differences "
        f"from about {percent(sees)}",
    )


def _matrix(results: Results) -> Iterator[Verdict]:
    report = results.found.get("matrix")
    if report is None:
        return
    cells = report["cells"]
    done = sum(1 for cell in cells if cell["samples_per_s"])
    failed = [cell for cell in cells if cell["failed"]]
    yield Verdict(
        status="fail" if failed else "pass",
        text=f"Matrix: {done} of {len(cells)} cells measured, {len(failed)} failed",
    )
    engines = [f for f in report["factors"] if f["name"] == "engine" and f["batch"] == 64]
    if engines:
        top = max(engines, key=lambda f: float(f["ratio"]["median"]))
        of, against = top["of"], top["against"]
        yield Verdict(
            status="pass" if judged(top["ratio"]) == "faster" else "warning",
            text=f"Best at batch 64: {of['model'].upper()} {of['variant']} {of['mode']}, "
            f"{measured(top['ratio'], 'x')} eager {against['model'].upper()} FP32 "
            f"{against['mode']}",
        )
    for name, bundle in results.bundles.items():
        equal = passed_parity(bundle)
        wrong = [engine for engine, is_equal in equal.items() if not is_equal]
        said = f"parity failed: {', '.join(wrong)}" if wrong else "all engines passed parity"
        if equal:
            yield Verdict(status="fail" if wrong else "pass", text=f"{name}: {said}")
    doubts = [*map(str, report.get("notes", [])), *([QUICK] if report["settings"]["quick"] else [])]
    yield from (Verdict(status="warning", text=text) for text in doubts)
