"""A plan, deserialised: one TensorRT engine, held against what the bundle says of it.

Where TensorRT's versions differ, the attribute itself is asked for, never a version number.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from attn_export.errors import BundleError, HostError
from attn_export.spec import BATCH, SEQUENCE, TensorSpec

from .cuda_runtime import MIB, DeviceBuffer, Stream
from .profiles import Profile
from .trt_api import make_log, version
from .trt_failures import is_out_of_memory

REBUILD = "run 'attn-export compile DIR' here"
# trt.nptype needs NumPy types that newer versions of NumPy no longer have.
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "UINT8": "uint8",
}


class PlanEngine:
    """TensorRT's engine, from which execution contexts are made.

    Args:
        trt: the module ``tensorrt`` or ``tensorrt_lean``.
        captures: capture CUDA graphs.
        host_code: run the code that a version-compatible plan may carry.

    Attributes:
        captures: whether CUDA graphs are captured; off once a capture failed.
        activation_bytes: device memory that one context needs while it runs.
        setting_up: to hold while a context is made or a graph captured. TensorRT may synchronise
            the whole device for a new context, which breaks a capture in any thread, whatever its
            mode (github.com/NVIDIA/TensorRT, number 2888).

    Raises:
        BundleError: if TensorRT refuses the plan, or it is not what the specs say.
        HostError: if TensorRT cannot start, or the plan does not fit into the GPU's memory.
    """

    def __init__(
        self,
        trt: Any,
        plan: bytes,
        *,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        profiles: Sequence[Profile],
        captures: bool,
        host_code: bool,
    ) -> None:
        self.captures = captures
        self.setting_up = threading.Lock()
        self._trt = trt
        self._log = make_log(trt)
        self._runtime = self._make_runtime()
        if host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise self._refused(len(plan))
        self._check_tensors(inputs, outputs)
        self._check_profiles(inputs, profiles)
        size = "device_memory_size_v2"
        if not hasattr(self._engine, size):
            size = "device_memory_size"
        self.activation_bytes = int(getattr(self._engine, size))

    def new_context(self, profile: int, stream: Stream, memory: DeviceBuffer) -> Any:
        """An execution context of one profile, whose activations are in ``memory``.

        Contexts may share that memory as long as only one of them runs at a time.

        Raises:
            HostError: if TensorRT makes none.
        """
        strategies = getattr(self._trt, "ExecutionContextAllocationStrategy", None)
        if strategies is None:
            context = self._engine.create_execution_context_without_device_memory()
        else:
            context = self._engine.create_execution_context(strategies.USER_MANAGED)
        if context is None:
            raise self.failure("made no execution context")
        # Plans are built DETAILED for the inspector, which this leaves as it is; annotations in
        # such detail would slow every enqueue down (docstring of IExecutionContext).
        context.nvtx_verbosity = self._trt.ProfilingVerbosity.LAYER_NAMES_ONLY
        # On the stream that it will run on, so that no run can overtake the switch.
        try:
            taken = context.set_optimization_profile_async(profile, stream.handle)
        except RuntimeError:  # where its documentation says False (TensorRT's pyCore.cpp)
            taken = False
        if not taken:
            raise self.failure(f"did not take optimization profile {profile}")
        # After the profile, as trtexec does: what it must hold depends on that.
        if hasattr(context, "set_device_memory"):
            context.set_device_memory(memory.address, memory.size)
        else:
            context.device_memory = memory.address
        return context

    def inspector_json(self, context: Any) -> str | None:
        """What TensorRT says of the layers at a context's shapes; None from the lean runtime."""
        if not hasattr(self._trt, "EngineInspector"):
            return None
        inspector = self._engine.create_engine_inspector()
        inspector.execution_context = context
        form = self._trt.LayerInformationFormat.JSON
        return str(inspector.get_engine_information(form))

    def failure(self, what: str) -> HostError:
        """An error of TensorRT's, with the last lines of its log."""
        return HostError(f"TensorRT {what}: {self._lines()}")

    def close(self) -> None:
        """Free the engine, after its contexts."""
        self._engine = None
        self._runtime = None

    def _make_runtime(self) -> Any:
        try:
            return self._trt.Runtime(self._log)
        except (RuntimeError, TypeError) as error:  # the factory gave a null pointer
            lines = "; ".join(self._log.errors()) or str(error)
            raise HostError(
                f"TensorRT {version(self._trt)} cannot start: {lines}; the driver may be too old "
                "for it; run 'attn-export doctor'"
            ) from error

    def _lines(self) -> str:
        return "; ".join(self._log.errors()) or "it gave no reason"

    def _refused(self, size: int) -> BundleError | HostError:
        lines = self._lines()
        if is_out_of_memory(self._log):
            return HostError(
                f"no room on the GPU for an engine of {size / MIB:.0f} MiB; free memory that other "
                f"processes hold: {lines}"
            )
        return BundleError(
            "the plan is corrupted or was built by another TensorRT or for another GPU; "
            f"{REBUILD}: {lines}"
        )

    def _check_tensors(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        engine, mode = self._engine, self._trt.TensorIOMode
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        for specs, wanted, kind in (
            (inputs, mode.INPUT, "inputs"),
            (outputs, mode.OUTPUT, "outputs"),
        ):
            found = [name for name in names if engine.get_tensor_mode(name) == wanted]
            expected = [spec.name for spec in specs]
            if sorted(found) != sorted(expected):
                raise _mismatch(f"has the {kind} {', '.join(found)}", ", ".join(expected))
        for spec in (*inputs, *outputs):
            dtype = DTYPES.get(engine.get_tensor_dtype(spec.name).name, "another dtype")
            if dtype != spec.dtype:
                raise _mismatch(f"has {spec.name} as {dtype}", spec.dtype)
            shape = tuple(engine.get_tensor_shape(spec.name))
            if not _fits(shape, spec.shape):
                raise _mismatch(f"has {spec.name} of shape {list(shape)}", str(list(spec.shape)))

    def _check_profiles(self, inputs: Sequence[TensorSpec], profiles: Sequence[Profile]) -> None:
        engine = self._engine
        if engine.num_optimization_profiles != len(profiles):
            raise _mismatch(
                f"has {engine.num_optimization_profiles} optimization profiles", str(len(profiles))
            )
        for index, profile in enumerate(profiles):
            for spec in inputs:
                shapes = engine.get_tensor_profile_shape(spec.name, index)
                found = [tuple(shape) for shape in shapes]
                wanted = [
                    sized(spec, batch, length)
                    for batch, length in zip(profile.batch, profile.sequence, strict=True)
                ]
                if found != wanted:
                    raise _mismatch(
                        f"takes {spec.name} from {found[0]} to {found[2]} in profile {index}",
                        f"{wanted[0]} to {wanted[2]}",
                    )


def sized(spec: TensorSpec, batch: int, length: int) -> tuple[int, ...]:
    """A tensor's shape at one batch size and length."""
    sizes = {BATCH: batch, SEQUENCE: length}
    return tuple(sizes[size] if isinstance(size, str) else size for size in spec.shape)


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        -1 in (size, want) or isinstance(want, str) or size == want
        for size, want in zip(shape, expected, strict=True)
    )


def _mismatch(found: str, expected: str) -> BundleError:
    return BundleError(
        f"the plan {found}, the manifest says {expected}: they are not of one build; {REBUILD}"
    )
