"""The bundle's own model in eager PyTorch: rebuilt, proved the same by its weights, and run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from attn_export.errors import BundleError
from attn_export.lazy import require
from attn_export.manifest import Manifest

from .cases import Array, Case
from .metrics import Comparer

if TYPE_CHECKING:
    from attn_export.exporter.source import LoadedModel, ModelSource


def source_of(manifest: Manifest) -> ModelSource:
    """Where the bundle's model came from.

    Raises:
        MissingPackage: if torch is not installed.
        BundleError: if the manifest does not say it.
    """
    require("torch", extra="export")
    from attn_export.exporter.source import ModelSource

    try:
        return ModelSource.from_json(manifest.model["source"])
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"the manifest's model source is broken ({error!r}); rebuild the bundle"
        ) from error


def rebuild(manifest: Manifest) -> LoadedModel:
    """Make the bundle's model again, in FP32 and eval mode.

    Raises:
        MissingPackage: if torch is not installed.
        BundleError: if its weights are not those of the bundle.
        UsageError, BuildFailed: if its factory or checkpoint is gone or fails.
    """
    source = source_of(manifest)
    from attn_export.exporter.source import load_model, weights_sha256

    model = load_model(source)
    found, expected = weights_sha256(model.module), manifest.model.get("weights_sha256")
    if found != expected:
        raise BundleError(
            f"the rebuilt model {source.model} has other weights than the bundle (sha256 "
            f"{found[:12]}…, the manifest says {str(expected)[:12]}…): its code, its checkpoint "
            "or torch's random numbers changed; rebuild the bundle or compare with the golden file"
        )
    return model


def rebuild_as_mha(manifest: Manifest) -> LoadedModel:
    """Make the MHA of the same size as the bundle's built-in model.

    Raises:
        MissingPackage: if torch is not installed.
        BundleError: if the manifest does not say what the model is.
    """
    source = source_of(manifest).as_mha()
    from attn_export.exporter.source import load_model

    return load_model(source)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch compute with one thread: the small batches of parity gain little from more.

    On a machine with other work its threads wait for each other instead, at 10 times the cost.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def run_case(model: LoadedModel, case: Case) -> dict[str, Array]:
    """The eager outputs of one case, by name."""
    from attn_export.exporter.eager import run_eager

    with one_thread():
        return run_eager(model.module, case.feeds)


class NoiseFloor:
    """How far eager FP16 is from eager FP32: no FP16 engine can be expected to be closer.

    Attributes:
        reason: why there is no floor, or ``""``.
    """

    def __init__(self, model: LoadedModel, outputs: Sequence[str]) -> None:
        from attn_export.exporter.eager import half

        self._module = half(model.module)
        self._comparers = {name: Comparer(name, atol=0.0, rtol=0.0) for name in outputs}
        self.reason = ""

    def add(self, case: Case, expected: Mapping[str, Array]) -> None:
        """Run one case in FP16 and compare it with its FP32 outputs."""
        from attn_export.exporter.eager import run_eager

        if self.reason:
            return
        try:
            with one_thread():
                outputs = run_eager(self._module, case.feeds)
        except RuntimeError as error:  # an operator without an FP16 kernel on this CPU
            self.reason = f"eager FP16 does not run here: {error}"
            return
        for name, comparer in self._comparers.items():
            comparer.add(outputs[name], expected[name], case=case.name)

    def max_abs(self) -> dict[str, float] | None:
        """The largest absolute error of each output, or None with a ``reason``."""
        results = [comparer.result() for comparer in self._comparers.values()]
        if not self.reason and any(result.nonfinite for result in results):
            self.reason = "eager FP16 is not finite itself"
        if self.reason:
            return None
        return {result.output: result.max_abs for result in results}
