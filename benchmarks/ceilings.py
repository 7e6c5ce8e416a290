"""The limits of this machine's CPUs, measured: products in each precision, and copies.

One process of one thread on each CPU multiplies 384 x 768 by 768 x 768, another weight each time,
with every library at hand; the best library and the best of a few rounds count. The result is kept
in the user's cache folder for this CPU and these versions of the libraries.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attn_export.bundle import write_atomic
from attn_export.engines.doctor import examine
from attn_export.errors import BuildFailed, HostError

from .hardware import HERE, Limits
from .hardware_products import NEEDS, WORK
from .interpreter import this_interpreter

log = logging.getLogger("attn_export")

SCHEMA_VERSION = 1
ROUNDS, ROUND_S = 3, 0.5
PATIENCE_S = 120.0  # for one library from its start to its end
COPY = "copy"
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_DISTRIBUTIONS = ("numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino", "torch")
Child = subprocess.Popen[str]


def measure_ceilings(say: Callable[[str], None]) -> Limits:
    """Measure what this machine can do, in about half a minute, and keep it in the cache.

    Args:
        say: told each step.

    Returns:
        Limits named ``"here"`` of tier ``"measured"``; a precision that no library at hand
        computes is absent.

    Raises:
        HostError: if not even NumPy's products and copies could be measured.
    """
    cpus, rates, load = sorted(os.sched_getaffinity(0)), {}, os.getloadavg()[0]
    if load > len(cpus) / 2:
        say(f"other work runs here (load average {load:.1f}): the limits will be too low")
    for work in WORK:
        library = work.partition("-")[0]
        missing = [name for name in NEEDS.get(library, (library,)) if not _is_installed(name)]
        if missing:
            say(f"{work}: not measured, {', '.join(missing)} is not installed")
            continue
        say(f"measuring {work}")
        try:
            rates[work] = _measured(work, cpus)
        except BuildFailed as error:
            say(f"{work}: not measured, {error}")
    reached = [f"{work} {rate / 1e9:,.0f}" for work, rate in rates.items()]
    say(f"reached, in GFLOP/s or GB/s: {', '.join(reached)}")
    limits = _limits(rates, cpus, load)
    kept = {"schema_version": SCHEMA_VERSION, "machine": _machine(), "rates": rates}
    try:
        write_atomic(_cache_file(), json.dumps({**kept, "limits": limits.to_json()}, indent=2))
    except HostError as error:
        log.warning("what was measured is not kept: %s", error)
    return limits


def known_ceilings() -> Limits | None:
    """What was measured on this machine before, with the same versions; None if nothing was."""
    try:
        kept = json.loads(_cache_file().read_text(encoding="utf-8"))
        if kept["schema_version"] != SCHEMA_VERSION or kept["machine"] != _machine():
            return None
        return Limits.from_json(kept["limits"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        log.warning("%s cannot be read (%s); measure again", _cache_file(), error)
        return None


def _limits(rates: dict[str, float], cpus: Sequence[int], load: float) -> Limits:
    best: dict[str, str] = {}
    for work in sorted(rates, key=lambda name: rates[name]):
        best[work.rpartition("-")[2]] = work
    if not {"fp32", COPY} <= best.keys():
        raise HostError("no library could multiply matrices here; see the steps above for why")
    report = examine()
    libraries = ", ".join(f"{kind} by {work.partition('-')[0]}" for kind, work in best.items())
    return Limits(
        name=HERE,
        tier="measured",
        flops={kind: rates[work] for kind, work in sorted(best.items()) if kind != COPY},
        bytes_per_s=rates[best[COPY]],
        launch_s=0.0,
        memory_bytes=report.memory_mib << 20,
        watts=None,
        source=f"one process on each of {len(cpus)} CPUs ({report.cpu.model}): {libraries}; load "
        f"average {load:.1f} before",
    )


def _measured(work: str, cpus: Sequence[int]) -> float:
    """The machine's FLOP/s or bytes/s: the best round of all processes together.

    Raises:
        BuildFailed: if a process ended, or did not end in time.
    """
    with _children(work, cpus) as children:
        for child in children:
            _answer(child)
        return max(_round(children) for _ in range(ROUNDS))


def _round(children: Sequence[Child]) -> float:
    for child in children:
        assert child.stdin
        with contextlib.suppress(BrokenPipeError):
            child.stdin.write(f"{ROUND_S}\n")
            child.stdin.flush()
    return sum(float(_answer(child)) for child in children)


def _answer(child: Child) -> str:
    assert child.stdout
    line = child.stdout.readline()
    if not line:
        raise BuildFailed(f"its process ended with exit code {child.wait()}")
    return line


@contextlib.contextmanager
def _children(work: str, cpus: Sequence[int]) -> Iterator[list[Child]]:
    """One process a CPU, ended on leaving, or after a while if one hangs."""
    interpreter = this_interpreter()
    children: list[Child] = []

    def end() -> None:
        for child in children:
            child.kill()

    watch = threading.Timer(PATIENCE_S, end)
    watch.daemon = True
    watch.start()
    try:
        for cpu in cpus:
            command = interpreter.command("attn_export.benchmarks.hardware_products")
            children.append(
                subprocess.Popen(
                    [*command, work, str(cpu)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                    env={**interpreter.environment(), **dict.fromkeys(_ONE_THREAD, "1")},
                )
            )
        yield children
    finally:
        watch.cancel()
        end()
        for child in children:
            child.communicate()


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _machine() -> dict[str, Any]:
    """What the limits depend on."""
    versions = {}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {"cpu": asdict(examine().cpu), "versions": versions}


def _cache_file() -> Path:
    """Where this machine's limits are kept (XDG Base Directory Specification)."""
    given = os.environ.get("XDG_CACHE_HOME", "")
    folder = Path(given) if Path(given).is_absolute() else Path.home() / ".cache"
    key = hashlib.sha256(json.dumps(_machine(), sort_keys=True).encode()).hexdigest()
    return folder / "attn-export" / f"ceilings-{key[:16]}.json"
