"""What an engine is compared with: eager PyTorch on this machine, or the golden file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError, BundleError, UsageError
from attn_export.manifest import Manifest

from .cases import Array, Case, load_reference, parity_cases
from .eager import rebuild, run_case

if TYPE_CHECKING:
    from attn_export.exporter.source import LoadedModel

ReferenceKind = Literal["auto", "eager", "golden"]


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """What is held to be true.

    Args:
        kind: ``"eager"`` or ``"golden"``; ``reason`` says why, in words.
        pairs: the golden file's cases and outputs; unused with an eager ``model``.
        dropped: cases that did not fit into the golden file.
    """

    kind: Literal["eager", "golden"]
    reason: str
    model: LoadedModel | None = None
    pairs: Sequence[tuple[Case, dict[str, Array]]] = ()
    dropped: list[str] = field(default_factory=list)

    def stream(self, bundle: Bundle) -> Iterator[tuple[Case, dict[str, Array]]]:
        """Each case with its reference outputs, one at a time."""
        if self.model is None:
            yield from self.pairs
            return
        manifest = bundle.manifest
        for case in parity_cases(manifest.inputs, _lengths(manifest)):
            yield case, run_case(self.model, case)


def _lengths(manifest: Manifest) -> list[int]:
    """The bucket edges and every length that a profile of an engine names."""
    lengths = set(manifest.buckets["edges"])
    for engine in manifest.engines.values():
        for profile in engine.profiles:
            lengths.update(profile["sequence"])
    return sorted(lengths)


def choose_oracle(bundle: Bundle, kind: ReferenceKind) -> Oracle:
    """Find the reference; ``"auto"`` takes eager PyTorch where it can be had.

    Raises:
        UsageError: for another kind; or, with ``"eager"``, if the model cannot be found.
        MissingPackage, BuildFailed: with ``"eager"``, if torch is missing or the model fails.
        BundleError: if the weights differ (``"eager"``), or the golden file is missing or altered.
    """
    if kind not in get_args(ReferenceKind):
        allowed = ", ".join(get_args(ReferenceKind))
        raise UsageError(f"reference {kind!r}: it must be one of {allowed}")
    if kind == "golden":
        return _golden(bundle, "the golden file was asked for")
    try:
        model = rebuild(bundle.manifest)
    except AttnExportError as error:
        if kind == "eager":
            raise
        return _golden(bundle, f"eager PyTorch cannot be had here: {error}")
    reason = "the model was rebuilt here, and its weights are the bundle's"
    return Oracle(kind="eager", reason=reason, model=model)


def _golden(bundle: Bundle, reason: str) -> Oracle:
    record = bundle.manifest.reference
    if record is None:
        raise BundleError(f"{bundle.directory} has no golden file ({reason}); rebuild the bundle")
    found = load_reference(bundle.verify(record))
    return Oracle(kind="golden", reason=reason, pairs=found.pairs, dropped=found.dropped)
