"""What a plan chooses from where results are at hand, once they may stand side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from attn_export.engines.doctor import examine
from attn_export.errors import UsageError

from .devices import GPU
from .hardware import HERE
from .plan_measured import HOW, Found, machine_of, read_result
from .plan_option import MEASURED, Basis, Option, Refused

# Mean lengths further apart than this are another workload.
SAME_LENGTH = 0.05


def measured_basis(
    paths: Sequence[Path],
    *,
    machine: str | None = None,
    model: str | None = None,
    mean_length: float | None = None,
) -> Basis:
    """Everything that was measured, once all of it is of one machine and one workload.

    Args:
        machine: a GPU's name (``"t4"``) or ``"here"``: what the results must have been measured
            on; None takes the machine that they name.
        model: keep this one only.
        mean_length: tokens a request that the plan is for, where they are known.

    Raises:
        UsageError: if a file is no result, is of other hardware, lengths or models than asked
            for, or holds nothing that a plan can use.
        BundleError: if it is a newer version's.
    """
    found = [read_result(path) for path in paths]
    _require_one_machine(found)
    _require_one_length(found, mean_length)
    first = found[0].machine
    _require_asked(found[0], machine)
    pairs = _merged(found)
    on_gpu = any(device == GPU for _, device in pairs) and machine != HERE
    kept = [option for option, device in pairs if not on_gpu or device == GPU]
    refused = [item for result in found for item in result.refused]
    if model is not None:
        kept, refused = _of_model(kept, refused, model)
    if not kept:
        said = "; ".join(f"{item.name}: {item.reason}" for item in refused)
        raise UsageError(f"{_names(paths)}: nothing that a plan can use. {said or HOW}")
    return Basis(
        kind=MEASURED,
        hardware=(first.gpus or ("an unnamed GPU",))[0] if on_gpu else first.described,
        unit="GPU" if on_gpu else "machine",
        options=kept,
        refused=refused,
        notes=[note for item in found for note in item.notes],
    )


def _names(paths: Iterable[Path]) -> str:
    return ", ".join(map(str, paths))


def _of_model(
    options: list[Option], refused: list[Refused], model: str
) -> tuple[list[Option], list[Refused]]:
    models = list(dict.fromkeys(option.model for option in options))
    if model not in models:
        raise UsageError(
            f"the results are of {', '.join(models)}, not of {model}; leave --model out"
        )
    kept = [option for option in options if option.model == model]
    return kept, [item for item in refused if item.model == model]


def _merged(found: Sequence[Found]) -> list[tuple[Option, str]]:
    """All options; one of a matrix gets the single request of a bench.json of the same weights."""
    merged: dict[str, tuple[Option, str]] = {}
    for item in sorted(found, key=lambda item: not item.is_matrix):
        for option, device in item.options:
            first = merged.get(option.name)
            if first is None:
                merged[option.name] = option, device
                continue
            batches = first[0].service.batches
            if option.weights is None or option.weights != first[0].weights or 1 in batches:
                raise UsageError(
                    f"{option.name} is in more than one result ({item.path} is the last), of "
                    "another model or measured again; give one of them"
                )
            service = first[0].service.after(option.service)
            merged[option.name] = replace(first[0], service=service), device
    return list(merged.values())


def _require_one_machine(found: Sequence[Found]) -> None:
    machines = {item.machine: item.path for item in found}
    if len(machines) > 1:
        said = "; ".join(f"{path}: {machine.described}" for machine, path in machines.items())
        raise UsageError(
            f"the results are of different hardware and cannot be one plan: {said}. Measure them "
            "on one machine, or plan each alone"
        )


def _require_one_length(found: Sequence[Found], asked: float | None) -> None:
    known = [(item.mean_length, str(item.path)) for item in found if item.mean_length]
    if asked is not None:
        known.insert(0, (asked, "the lengths asked for"))
    for mean, name in known[1:]:
        if abs(mean - known[0][0]) > SAME_LENGTH * known[0][0]:
            raise UsageError(
                f"{known[0][1]}: {known[0][0]:.1f} tokens on average; {name}: {mean:.1f}. That is "
                "other work; measure with your own requests: attn-export bench DIR --data FILE"
            )


def _require_asked(found: Found, machine: str | None) -> None:
    if machine is None:
        return
    if machine == HERE:
        report = examine()
        here = machine_of({"cpu": vars(report.cpu), "cuda": {"gpus": map(vars, report.cuda.gpus)}})
        if found.machine != here:
            raise UsageError(
                f"{found.path} was measured on {found.machine.described}; this machine is "
                f"{here.described}. Measure here, or leave --here out to plan for that machine"
            )
        return
    if not any(machine in re.split(r"[^a-z0-9]+", name.lower()) for name in found.machine.gpus):
        raise UsageError(
            f"{found.path} was measured on {found.machine.described}, not on a {machine.upper()}; "
            "measure there, leave --gpu out to plan for that machine, or leave the results out "
            "for an estimate"
        )
    if not any(device == GPU for _, device in found.options):
        raise UsageError(f"{found.path} holds no engine that ran on the GPU; measure one there")
