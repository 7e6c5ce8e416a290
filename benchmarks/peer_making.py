"""Make a peer, and hold its first answers to eager FP32 on batches of the golden file."""

from __future__ import annotations

import importlib
import importlib.metadata
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn_export.bundle import Bundle
from attn_export.errors import BundleError

from .cases import Case, load_reference, masked_rows
from .devices import Device
from .metrics import Array, Comparer
from .peer_loop import Outputs, PeerLoop, Way, failures_in_one_line
from .peers import check_peer
from .tolerances import Tolerances

PARITY_CASES = 6


@dataclass(frozen=True, kw_only=True)
class PeerTask:
    """What a peer's maker is given.

    Args:
        threads: CPU threads.
        sequences: the file of the measurement's own sequences, for calibration.
        folder: an empty one; it lives as long as the peer.
        stack: closed at the peer's end.
    """

    bundle: Bundle
    threads: int
    device: Device
    sequences: Path
    folder: Path
    stack: ExitStack


def make_peer(
    bundle: Bundle, name: str, *, threads: int, device: Device, sequences: Path, stack: ExitStack
) -> tuple[PeerLoop, dict[str, Any]]:
    """Make a peer of a bundle's model; its loop, and the facts about it.

    The facts are ``precision``, ``how``, ``docs``, ``version``, the seconds of ``made_s``, and
    from the comparison with eager FP32 ``max_abs``, ``cosine`` and ``passed``, by the preset
    tolerance of its precision.

    Raises:
        MissingPackage, HostError: if it cannot run here.
        BuildFailed: if it fails.
        BundleError: if the bundle has no golden file to hold it to.
    """
    peer = check_peer(name)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    task = PeerTask(
        bundle=bundle,
        threads=threads,
        device=device,
        sequences=sequences,
        folder=folder,
        stack=stack,
    )
    start = time.perf_counter()
    module, _, function = peer.maker.partition(":")
    with failures_in_one_line():
        maker: Callable[[PeerTask], Sequence[Way]] = getattr(
            importlib.import_module(module), function
        )
        ways = maker(task)
        made_s = time.perf_counter() - start
        parity = _parity(bundle, peer.precision, ways[0].run)
    facts = {
        "precision": peer.precision,
        "how": peer.how,
        "docs": peer.docs,
        "version": ", ".join(filter(None, map(_version, peer.packages))),
        "made_s": made_s,
        **parity,
    }
    return PeerLoop(ways), facts


def _version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:  # the same module from another distribution
        return ""


def _parity(
    bundle: Bundle, precision: str, run: Callable[[dict[str, Array]], Outputs]
) -> dict[str, Any]:
    comparers = {}
    for spec in bundle.manifest.outputs:
        least = Tolerances().least_cosine(spec.name, precision)
        atol, rtol = Tolerances().allowed(spec.name, precision)
        comparers[spec.name] = Comparer(spec.name, atol=atol, rtol=rtol, least_cosine=least)
    for case, expected in _golden(bundle):
        outputs = run(dict(case.feeds))
        for output, comparer in comparers.items():
            comparer.add(outputs[output], expected[output], case=case.name)
    results = [comparer.result() for comparer in comparers.values()]
    cosines = [result.cosine for result in results if result.cosine is not None]
    return {
        "max_abs": max(result.max_abs for result in results),
        "cosine": min(cosines, default=None),
        "passed": all(result.passed for result in results),
    }


def _golden(bundle: Bundle) -> list[tuple[Case, dict[str, Array]]]:
    """A few batches of different lengths with eager PyTorch's FP32 outputs, padding included.

    Rows without any real token are left out: what a model makes of them is its own affair. So are
    sizes of 1, for which torch.compile makes kernels of their own.
    """
    manifest = bundle.manifest
    if manifest.reference is None:
        raise BundleError("the bundle has no golden file to hold a peer to; rebuild the bundle")
    pairs = load_reference(bundle.directory / manifest.reference.file).pairs
    kept = [
        pair
        for pair in pairs
        if pair[0].batch > 1
        and pair[0].length > 1
        and not masked_rows(manifest.inputs, pair[0]).any()
    ] or pairs
    return kept[:: max(1, len(kept) // PARITY_CASES)]
