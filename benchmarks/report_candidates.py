"""The candidates of bench.json, as the report asks about them; schemas 1 and 2."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .candidates import BASELINES, BUCKETED, HAND_SORTED
from .peers import PREFIX
from .stats import Interval, Verdict, ratio_interval, verdict

KINDS = ("engines of the bundle", "eager PyTorch", "peers", "the engine by hand: an upper bound")
Candidate = Mapping[str, Any]
_PRECISION = re.compile(r"fp32|fp16|bf16|int8")


def measured_ones(bench: Mapping[str, Any]) -> list[Candidate]:
    """All candidates with numbers, the fastest first."""
    return sorted(bench["results"], key=lambda c: -float(c["samples_per_s"]["median"]))


def failed(bench: Mapping[str, Any]) -> dict[str, str]:
    """The candidates that crashed, hung or failed, and how; schema 1 ended at the first one."""
    return {str(k): f"{v['error']}: {v['reason']}" for k, v in bench.get("failed", {}).items()}


def left_out(bench: Mapping[str, Any]) -> dict[str, str]:
    """All candidates without numbers, and why."""
    return {**failed(bench), **{str(k): str(v) for k, v in bench["skipped"].items()}}


def is_peer(candidate: Candidate) -> bool:
    """Whether it is what one would use instead of this project."""
    return str(candidate["candidate"]).startswith(PREFIX)


def kind(candidate: Candidate) -> int:
    """The position of its kind in ``KINDS``."""
    if is_peer(candidate):
        return 2
    if candidate["engine"] is None:
        return 1
    return 3 if candidate["candidate"] == HAND_SORTED else 0


def precision(candidate: Candidate) -> str:
    """What it computes in: as a peer says it, or by its name; eager PyTorch is FP32."""
    said = (candidate.get("facts") or {}).get("precision")
    if said:
        return str(said).lower()
    text = str(candidate["engine"] or candidate["candidate"])
    found = _PRECISION.search(text)
    if candidate["engine"] and found and "FP16 in FP32" in str(candidate.get("note", "")):
        return "fp32"
    return found.group() if found else "fp32"


def engines(bench: Mapping[str, Any]) -> list[Candidate]:
    """The engines as a user would run them, the fastest first."""
    return [c for c in measured_ones(bench) if c["candidate"] == BUCKETED]


def best(bench: Mapping[str, Any], passed: Mapping[str, bool]) -> Candidate | None:
    """The fastest engine that did not fail parity."""
    return next((c for c in engines(bench) if passed.get(str(c["engine"]), True)), None)


def baselines(candidate: Candidate) -> list[str]:
    """The eager candidates that it is compared with; those on a GPU are called so."""
    named = {name.removesuffix("@gpu"): name for name in candidate["ratios"]}
    return [named[kind] for kind in BASELINES if kind in named]


def judged(found: Mapping[str, Any]) -> Verdict:
    """What a ratio of a file says."""
    return verdict(Interval(**found))


def ratio(candidate: Candidate, baseline: Candidate) -> Interval:
    """How many times as fast, round by round."""
    return ratio_interval(candidate["rounds"], baseline["rounds"])
