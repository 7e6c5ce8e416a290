"""What is measured. Each candidate is a model loaded in one way and run in another.

Beside an engine on a CPU or a GPU runs eager PyTorch on the same device:

* ``eager-mha-padded``: the same-sized MHA in eager FP32, batches padded to the model's maximum;
* ``eager-padded``: the model itself, likewise;
* ``eager-dynamic``: the model itself, sorted, batches padded to their own longest;
* on a GPU also ``eager-half-padded`` (all in FP16), ``eager-autocast-padded`` (FP16 where torch
  holds that safe) and ``eager-compiled-padded`` (``torch.compile``, FP32).

Each engine is run as

* ``engine-padded``: batches padded to the maximum;
* ``engine-bucketed``: the engine's ``run_many``, which sorts, pads and restores the order;
* ``hand-sorted``: a loop by hand over the same engine with all arrays made beforehand, the best
  of several budgets: what ``run_many`` could reach at most.

Beside them run the peers that were asked for, ``peer-...``: see :mod:`.peers`.

Except for ``engine-bucketed``, feeds are made outside of the timing. All of them begin with NumPy
arrays on the host and end with NumPy arrays on the host.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.engines.engine import Engine
from attn_export.engines.fitting import run_fitted
from attn_export.engines.profiles import Profile, largest_batches
from attn_export.engines.session import LoadOptions, Session, backend
from attn_export.manifest import EngineRecord
from attn_export.spec import TensorSpec

from .devices import CPU, GPU, Device, device_of
from .loops import BatchLoop, Candidate, HandSorted, HandStreamed, RunMany
from .peer_making import make_peer
from .peers import PREFIX
from .workload import padded_batches, sorted_batches

EAGER_MHA, EAGER_PADDED, EAGER_DYNAMIC = "eager-mha-padded", "eager-padded", "eager-dynamic"
# How torch runs the ones that a GPU has besides.
GPU_STYLES = {
    "eager-half-padded": "half",
    "eager-autocast-padded": "autocast",
    "eager-compiled-padded": "compiled",
}
BASELINES = (EAGER_MHA, EAGER_PADDED, EAGER_DYNAMIC)
EAGER: dict[Device, tuple[str, ...]] = {CPU: BASELINES, GPU: (*BASELINES, *GPU_STYLES)}
PADDED, BUCKETED, HAND_SORTED = "engine-padded", "engine-bucketed", "hand-sorted"
ENGINE = (PADDED, BUCKETED, HAND_SORTED)
MIB = 1 << 20
# What makes of a backend's package a session; it is imported before the loading is timed.
PACKAGES = {"tensorrt": ("tensorrt", "cuda.bindings.runtime")}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a candidate is made.

    Args:
        engine: the engine's name in the manifest; None for eager candidates and peers.
        threads: CPU threads, the same for all candidates.
        batch_size: of all candidates but the sorted ones.
        eager_device: where an eager candidate or a peer runs, and where those run that an engine is
            compared with.
        allow_host_code: run the code that a version-compatible plan may carry.
        sequences: the file of the measurement's own sequences, for a peer to calibrate on.
    """

    candidate: str
    engine: str | None
    threads: int
    batch_size: int
    eager_device: Device = CPU
    allow_host_code: bool = False
    sequences: str = ""

    @property
    def peer(self) -> str | None:
        """The name of the peer that this is, or None."""
        return self.candidate.removeprefix(PREFIX) if self.candidate.startswith(PREFIX) else None

    @property
    def is_sorted(self) -> bool:
        """Whether it makes its own batches of all sequences."""
        return self.candidate in (BUCKETED, HAND_SORTED) or self.peer is not None

    @property
    def name(self) -> str:
        """The candidate; after a colon the engine, and after an @ the device that is no CPU."""
        if self.engine is None and self.eager_device == GPU:
            return f"{self.candidate}@gpu"
        return ":".join(filter(None, (self.candidate, self.engine)))


@dataclass(frozen=True, kw_only=True)
class Made:
    """A candidate, ready to answer.

    Args:
        inputs: what it takes.
        session: the engine's; None for eager candidates and peers.
        rest: give back the device memory that it needs only while it runs.
        device_mib: how much device memory it needed at most, or None where that is not known.
        facts: what it tells of itself; of a peer see :func:`.peer_making.make_peer`.
    """

    candidate: Candidate
    inputs: list[TensorSpec]
    session: Session | None = None
    rest: Callable[[], None] = lambda: None
    device_mib: Callable[[], float | None] = lambda: None
    facts: dict[str, Any] = field(default_factory=dict)


def import_packages(bundle: Bundle, settings: Settings) -> None:
    """Import what the candidate needs, so that its loading can be timed apart.

    A peer imports what it needs while it is made.
    """
    if settings.peer is not None:
        return
    if settings.engine is None:
        names = ["torch", "attn_export.exporter.source", "attn_export.exporter.eager"]
    else:
        module = backend(bundle.manifest.engines[settings.engine].backend)
        name = module.__name__.rpartition(".")[2]  # our backends are named after their package
        names = [*PACKAGES.get(name, (name,))]
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):  # loading says what is missing, and how
            importlib.import_module(name)


def make(bundle: Bundle, settings: Settings, stack: ExitStack) -> Made:
    """Load a candidate's model; it is freed when ``stack`` closes.

    Raises:
        AttnExportError: if the model cannot be rebuilt, or the engine or peer not be loaded.
    """
    if settings.peer is not None:
        return _make_peer(bundle, settings, settings.peer, stack)
    if settings.engine is None:
        return _make_eager(bundle, settings)
    return _make_engine(bundle, settings, bundle.manifest.engines[settings.engine], stack)


def longest_of(bundle: Bundle, record: EngineRecord) -> int:
    """The most tokens of a sequence that an engine takes."""
    lengths = [int(profile["sequence"][2]) for profile in record.profiles]
    return max(lengths, default=bundle.manifest.max_length)


def padded_size(profiles: Sequence[Profile], size: int) -> int:
    """The samples of a batch padded to the longest sequence: ``size`` where the profiles allow."""
    return min([size, *largest_batches(profiles)[-1:]])


def _make_eager(bundle: Bundle, settings: Settings) -> Made:
    from .eager import rebuild, rebuild_as_mha

    manifest = bundle.manifest
    model = (rebuild_as_mha if settings.candidate == EAGER_MHA else rebuild)(manifest)
    import torch

    from attn_export.exporter.eager import Style, styled

    torch.set_num_threads(settings.threads)
    style: Style = "fp32"
    if settings.candidate in GPU_STYLES:
        style = GPU_STYLES[settings.candidate]  # type: ignore[assignment]
    on_gpu = settings.eager_device == GPU
    run = styled(model.module, style, "cuda:0" if on_gpu else "cpu")
    size = settings.batch_size
    plan: Any = partial(padded_batches, batch_size=size, length=manifest.max_length)
    if settings.candidate == EAGER_DYNAMIC:
        plan = partial(sorted_batches, batch_size=size)
    loop = BatchLoop(run, plan)
    if not on_gpu:
        return Made(candidate=loop, inputs=manifest.inputs)
    return Made(
        candidate=loop,
        inputs=manifest.inputs,
        rest=torch.cuda.empty_cache,
        device_mib=lambda: torch.cuda.max_memory_reserved() / MIB,
    )


def _make_peer(bundle: Bundle, settings: Settings, name: str, stack: ExitStack) -> Made:
    loop, facts = make_peer(
        bundle,
        name,
        threads=settings.threads,
        device=settings.eager_device,
        sequences=Path(settings.sequences),
        stack=stack,
    )
    return Made(candidate=loop, inputs=bundle.manifest.inputs, facts=facts)


def _make_engine(
    bundle: Bundle, settings: Settings, record: EngineRecord, stack: ExitStack
) -> Made:
    def load(threads: int) -> Session:
        options = LoadOptions(threads=threads, allow_host_code=settings.allow_host_code)
        session: Session = backend(record.backend).load(bundle, record, options)
        stack.callback(session.close)
        return session

    def loop() -> Candidate:
        if settings.candidate == PADDED:
            return _padded(session, settings.batch_size)
        if settings.candidate == BUCKETED:
            return RunMany(Engine(session, record, check_ids=False), session)
        if device_of(record) == GPU:
            return HandStreamed(session)
        pool = stack.enter_context(ThreadPoolExecutor(settings.threads))
        return HandSorted(session, load(1), pool)

    def device_mib() -> float | None:
        found = getattr(session, "device_bytes", None)
        return None if found is None else found / MIB

    session = load(settings.threads)
    return Made(
        candidate=loop(), inputs=list(session.inputs), session=session, device_mib=device_mib
    )


def _padded(session: Session, size: int) -> BatchLoop:
    length, most = session.buckets[-1], padded_size(session.profiles, size)
    plan = partial(padded_batches, batch_size=most, length=length)
    detail = ""
    if most < size:
        detail = f"batches of {most}: its profiles take no more at {length} tokens"
    return BatchLoop(partial(run_fitted, session), plan, profiles=session.profiles, detail=detail)
