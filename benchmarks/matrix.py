"""The exercise's matrix: every model, run in every way, at every batch size, padded and bucketed.

A cell answers groups of B requests of mixed lengths that arrive together. Its latency is the time
until all of a group are answered, its throughput counts real requests. *Padded* is one batch of
exactly B, all padded to the maximum. *Bucketed* is an engine's own scheduling (``run_many``) of
the group; for eager PyTorch the group is sorted, cut by the bucket edges, and each part padded to
its own longest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.doctor import examine
from attn_export.errors import InputError, UsageError

from .bench_settings import checked_threads, data_sha256
from .candidates import longest_of
from .devices import GPU, TorchCuda, eager_device
from .environment import environment
from .gpu_watch import GpuWatch
from .interpreter import this_interpreter
from .machine_state import MachineWatch
from .matrix_cell import BATCHES, EAGER_AUTOCAST
from .matrix_lineup import Contestant, contestants, device_of_all, require_same_size
from .matrix_report import MatrixReport
from .matrix_rounds import MatrixPlan, MatrixRounds, Say, Setting
from .torch_probe import probe_torch
from .workload import Ids, save_sequences, synthetic_sequences

FULL = MatrixPlan(rounds=7, samples=64, turn_s=0.25, warm_up_s=0.5)
QUICK = MatrixPlan(rounds=2, samples=1, turn_s=0.1, warm_up_s=0.1)
# The source exercise's data: 2,500 samples.
SAMPLES = 2500
SYNTHETIC = "2,500 synthetic sequences: uniform ids, as long as tweets"


def run_matrix(
    bundles: Mapping[str, Bundle],
    *,
    sequences: Sequence[Ids] | None = None,
    quick: bool = False,
    batches: Sequence[int] = BATCHES,
    threads: int | None = None,
    say: Say = lambda text: None,
) -> MatrixReport:
    """Measure three models of one size in eager PyTorch and as engines.

    Args:
        bundles: by the model's name, ``"mha"``, ``"gqa"`` and ``"mqa"``.
        sequences: int32 ids, each of shape [tokens]; None for 2,500 as long as tweets.
        quick: short turns and two rounds: a first impression.
        batches: the batch sizes.
        threads: CPU threads of every candidate, or None for each CPU that this process may use.
        say: told each step.

    Raises:
        UsageError: models of different size, a batch below 1, more threads than CPUs.
        InputError: no sequences, or one that the models do not take.
    """
    plan = QUICK if quick else FULL
    if not batches:
        raise UsageError("there are no batch sizes; give at least one")
    batches = sorted(set(batches))
    threads = checked_threads(threads, batch_size=batches[0])
    require_same_size(bundles)
    lineup = contestants(bundles)
    length = _longest(bundles, lineup)
    data = SYNTHETIC if sequences is None else f"{len(sequences)} given sequences"
    sequences = _sequences(bundles, length, sequences)
    engines = device_of_all(bundles, lineup)
    torch = probe_torch(this_interpreter()) if engines == GPU else TorchCuda(available=False)
    device = eager_device(engines, torch)
    host, watch, machine = examine(), GpuWatch(), MachineWatch()
    with machine, ExitStack() as stack:
        if engines == GPU:
            stack.enter_context(watch)
        path = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "sequences.npz"
        save_sequences(path, _shuffled(sequences))
        setting = Setting(bundles=bundles, data=path, length=length, device=device, threads=threads)
        field = MatrixRounds(lineup, batches, setting, plan, say=say, stack=stack)
        field.prepare()
        for number in range(1, plan.rounds + 1):
            field.run(f"round {number} of {plan.rounds}")
    across = f"EAGER ON THE CPU: {torch.problem}; the engines ran on the GPU"
    return MatrixReport(
        settings={
            "data": data,
            "data_sha256": data_sha256(sequences),
            "sequences": len(sequences),
            "mean_length": float(np.mean([len(ids) for ids in sequences])),
            "max_length": length,
            "batches": batches,
            "threads": threads,
            "rounds": plan.rounds,
            "quick": quick,
            "samples_a_turn": {str(batch): batch * plan.groups(batch) for batch in batches},
            "device": engines,
            "eager_device": device,
            EAGER_AUTOCAST: "fp16" if device == GPU else "bf16",
            "peak_mib": {e.contestant.variant: e.memory for e in field.entries if e.memory},
            "models": {name: _model(bundle) for name, bundle in bundles.items()},
        },
        environment=environment(host, watch, machine),
        load_average=machine.load_average,
        cells=[cell for entry in field.entries for cell in entry.cells()],
        notes=[*([across] if device != engines else []), *machine.notes, *watch.notes],
    )


def _longest(bundles: Mapping[str, Bundle], lineup: Sequence[Contestant]) -> int:
    """The most tokens that all of them take: what padded batches are padded to."""
    lengths = [bundle.manifest.max_length for bundle in bundles.values()]
    for entry in lineup:
        if entry.engine is not None:
            bundle = bundles[entry.model]
            lengths.append(longest_of(bundle, bundle.manifest.engines[entry.engine]))
    return min(lengths)


def _sequences(
    bundles: Mapping[str, Bundle], longest: int, given: Sequence[Ids] | None
) -> Sequence[Ids]:
    """The given sequences, if all models take them; or synthetic ones."""
    inputs = bundles["mha"].manifest.inputs
    if given is None:
        made = synthetic_sequences(inputs, longest)
        return [*made, *synthetic_sequences(inputs, longest, seed=1)][:SAMPLES]
    if not given:
        raise InputError("there are no sequences to measure with; give at least one")
    limit = next(spec.limit for spec in inputs if spec.role == "ids") or 0
    for index, ids in enumerate(given):
        if not 1 <= len(ids) <= longest:
            raise InputError(
                f"sequence {index} (from 0) has {len(ids)} tokens; the models take 1 to {longest}"
            )
        if not 0 <= min(ids) <= max(ids) < limit:
            wrong = min(ids) if min(ids) < 0 else max(ids)
            raise InputError(
                f"sequence {index} (from 0) has the id {wrong}; the models take 0 to {limit - 1}: "
                "use the tokenizer of their vocabulary"
            )
    return given


def _shuffled(sequences: Sequence[Ids]) -> list[Ids]:
    """In an order of their own: files are often sorted, and requests do not arrive so."""
    order = np.random.default_rng(0).permutation(len(sequences))
    return [sequences[index] for index in order.tolist()]


def _model(bundle: Bundle) -> dict[str, Any]:
    model = bundle.manifest.model
    return {
        **{key: model.get(key) for key in ("parameters", "weights_sha256", "source")},
        "edges": bundle.manifest.buckets["edges"],
        "tool": bundle.manifest.tool,
    }
