"""What a measurement is asked for: checked, and written down so that two can be compared."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from attn_export import __version__
from attn_export.bundle import Bundle
from attn_export.errors import BundleError, InputError, UsageError
from attn_export.manifest import EngineRecord

from .candidates import longest_of
from .workload import Ids, synthetic_sequences

SYNTHETIC = "2,000 synthetic sequences: uniform ids, as long as tweets"


def checked_threads(threads: int | None, **counts: int) -> int:
    """The CPU threads to use; None is each CPU that this process may use.

    Raises:
        UsageError: if it or one of the other numbers is below 1, or there are fewer CPUs.
    """
    cpus = len(os.sched_getaffinity(0))
    threads = cpus if threads is None else threads
    for name, value in {"threads": threads, **counts}.items():
        if value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if threads > cpus:
        raise UsageError(f"threads is {threads}; this process may use {cpus} CPUs")
    return threads


def chosen_engines(bundle: Bundle, engine: str | None) -> dict[str, EngineRecord]:
    """The engine of that name, or all of them.

    Raises:
        BundleError: if the bundle has none.
        UsageError: if it has no such engine.
    """
    engines = bundle.manifest.engines
    if not engines:
        raise BundleError(
            f"{bundle.directory} has no engine yet; make one with 'attn-export compile'"
        )
    if engine is not None and engine not in engines:
        raise UsageError(f"unknown engine {engine!r}; the bundle has: {', '.join(engines)}")
    return {name: engines[name] for name in (engines if engine is None else [engine])}


def fitting_sequences(
    bundle: Bundle, chosen: Mapping[str, EngineRecord], given: Sequence[Ids] | None
) -> Sequence[Ids]:
    """The given sequences, if all engines take them; or synthetic ones that they take.

    Raises:
        InputError: if there are none, or one is empty or too long.
    """
    longest = min(longest_of(bundle, record) for record in chosen.values())
    if given is None:
        return synthetic_sequences(bundle.manifest.inputs, longest)
    if not given:
        raise InputError("there are no sequences to measure with; give at least one")
    for index, ids in enumerate(given):
        if not 1 <= len(ids) <= longest:
            raise InputError(
                f"sequence {index} (from 0) has {len(ids)} tokens; the engines take 1 to {longest}"
            )
    return given


def described(given: Sequence[Ids] | None) -> str:
    """What a measurement's sequences are, in words."""
    return SYNTHETIC if given is None else f"{len(given)} given sequences"


def comparable_settings(
    bundle: Bundle, sequences: Sequence[Ids], *, data: str, **given: Any
) -> dict[str, Any]:
    """The settings of a measurement: those given, the model's, and the data's fingerprint.

    Args:
        data: what the sequences are, in words.
    """
    model = bundle.manifest.model
    return {
        **given,
        "data": data,
        "data_sha256": data_sha256(sequences),
        "sequences": len(sequences),
        "max_length": bundle.manifest.max_length,
        "model": str(model.get("name", "")),
        "parameters": model.get("parameters"),
        "dimensions": model.get("spec"),
        "weights_sha256": model.get("weights_sha256"),
        "attn_export": __version__,
    }


def data_sha256(sequences: Sequence[Ids]) -> str:
    """The hash of the lengths, then of all ids, each as little-endian int32."""
    digest = hashlib.sha256(np.array([len(ids) for ids in sequences], "<i4").tobytes())
    for ids in sequences:
        digest.update(np.asarray(ids, "<i4").tobytes())
    return digest.hexdigest()
