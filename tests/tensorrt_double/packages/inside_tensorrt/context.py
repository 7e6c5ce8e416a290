"""The execution context: shapes, addresses, memory, and a run that really computes."""

from __future__ import annotations

import ctypes
import importlib
import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from .engine import CudaEngine
from .plan import TensorPlan
from .values import NUMPY, Dims, shape_of
from .world import Behaviour, World

GRAPH_TYPES = {  # ONNX Runtime's names
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
ALIGNMENT = 256  # bytes; the real library asks this of device memory


def device() -> Any:
    """The GPU of the CUDA double."""
    return importlib.import_module("cuda.bindings.device_double").DEVICE


class ExecutionContext(Behaviour):
    """``tensorrt.IExecutionContext``."""

    kind = "IExecutionContext"

    def __init__(self, world: World, engine: CudaEngine, owns_memory: bool) -> None:
        super().__init__(world)
        self.engine = engine
        self.owns_memory = owns_memory
        self.memory: tuple[int, int | None] | None = None
        self.needed: int | None = None
        self.name = ""
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.settled = False  # whether a run has followed the last change of shapes
        self.changes = 0
        self.profiler: Any = None
        self.error_recorder: Any = None
        self.debug_sync = False
        self.enqueue_emits_profile = True
        self.persistent_cache_limit = 0
        self.nvtx_verbosity = world.enum("ProfilingVerbosity", engine.plan.verbosity)
        self._choose_default_profile()

    def _choose_default_profile(self) -> None:
        """Profile 0, where no other context keeps it from this one."""
        problem = self._profile_problem(0)
        if problem is None:
            self.engine.chosen[self] = self.profile = 0
        else:
            self._refuse(problem)
            self.world.log(
                self.engine.logger,
                "WARNING",
                "Could not set default profile 0 for execution context. Profile index must be set "
                "explicitly.",
            )
        self._fix_shapes()

    def allocate(self) -> bool:
        """Take memory of its own from the device, until the context dies; False without room."""
        address = device().allocate(self.engine.device_memory_size, "device")
        if address is None:
            return self._refuse("the activation memory could not be allocated")
        weakref.finalize(self, device().free, address, "device")
        return True

    def axis_sizes(self) -> dict[str, int]:
        """The size of each named axis once all input shapes are set; nothing before."""
        specified = self.all_binding_shapes_specified
        return self.engine.axis_sizes(self.shapes) if specified else {}

    def _fix_shapes(self) -> None:
        fixed = [tensor for tensor in self.engine.plan.inputs if -1 not in tensor.shape]
        self.shapes = {tensor.name: tuple(tensor.shape) for tensor in fixed}
        self.settled = False
        self.changes += 1
        self.needed = None

    def _refuse(self, text: str) -> bool:
        line = f"IExecutionContext: Error Code 3: API Usage Error ({text})"
        self.world.log(self.engine.logger, "ERROR", line)
        return False

    @property
    def active_optimization_profile(self) -> int:
        return self.profile

    @active_optimization_profile.setter
    def active_optimization_profile(self, index: int) -> None:
        self.set_optimization_profile_async(index, 0)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        """Choose a profile; the input shapes are forgotten.

        Raises:
            RuntimeError: where the documentation says False (TensorRT's python/src/infer/
                pyCore.cpp, context_set_optimization_profile_async).
        """
        problem = self._profile_problem(index)
        if problem:
            self._refuse(problem)
            raise RuntimeError("Error in set optimization profile async.")
        self.engine.chosen[self] = index
        self.profile = index
        self._fix_shapes()
        return True

    def _profile_problem(self, index: int) -> str | None:
        if not 0 <= index < self.engine.num_optimization_profiles:
            return f"Profile index {index} is outside [0, {self.engine.num_optimization_profiles})."
        others = {chosen for context, chosen in self.engine.chosen.items() if context is not self}
        if index in others and not self.engine.plan.profile_sharing:
            return (
                f"Profile {index} has been chosen by another IExecutionContext. Use another "
                "profileIndex or destroy the IExecutionContext that use this profile."
            )
        return None

    def set_input_shape(self, name: str, shape: Any) -> bool:
        sizes = shape_of(shape)
        if self.profile < 0:
            return self._refuse("No optimization profile has been chosen.")
        tensor = self.engine.tensor(name)
        if tensor is None or tensor not in self.engine.plan.inputs:
            return self._refuse(f"{name} is no input.")
        low, _, high = self.engine.profile_shapes(name, self.profile)
        fits = len(sizes) == len(low) and all(
            a <= size <= b for a, size, b in zip(low, sizes, high, strict=True)
        )
        if not fits:
            return self._refuse(
                f"Set dimension {list(sizes)} for tensor {name} does not satisfy any optimization "
                f"profiles. Valid range for profile {self.profile}: {low}..{high}."
            )
        if self.shapes.get(name) != sizes:
            self.shapes[name] = sizes
            self.settled = False
            self.changes += 1
        return True

    def get_tensor_shape(self, name: str) -> Dims:
        tensor = self.engine.tensor(name)
        if tensor is None:
            return Dims(self.world, ())
        if tensor in self.engine.plan.inputs:
            return Dims(self.world, self.shapes.get(name, tensor.shape))
        if len(self.shapes) < len(self.engine.plan.inputs):
            return Dims(self.world, tensor.shape)
        return Dims(self.world, self.engine.output_shapes(self.shapes)[name])

    @property
    def all_binding_shapes_specified(self) -> bool:
        return len(self.shapes) == len(self.engine.plan.inputs)

    @property
    def all_shape_inputs_specified(self) -> bool:
        return True

    def infer_shapes(self) -> list[str]:
        """Names of inputs without a shape; RuntimeError where two inputs do not agree."""
        missing = [t.name for t in self.engine.plan.inputs if t.name not in self.shapes]
        if not missing:
            self.engine.output_shapes(self.shapes)
        return missing

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.engine.tensor(name) is None:
            return False
        self.addresses[name] = int(memory)
        return True

    def get_tensor_address(self, name: str) -> int:
        return self.addresses.get(name, 0)

    def get_max_output_size(self, name: str) -> int:
        """The output's bytes at the active profile's largest shapes."""
        largest = {
            tensor.name: self.engine.profile_shapes(tensor.name, max(0, self.profile))[2]
            for tensor in self.engine.plan.inputs
        }
        return _bytes(self.engine.tensors[name], self.engine.output_shapes(largest)[name])

    def _set_memory(self, memory: int, size: int | None) -> None:
        if self.owns_memory:
            self._refuse("setDeviceMemory: the context has memory of its own.")
        elif memory % ALIGNMENT:
            self._refuse(f"setDeviceMemory: {memory:#x} is not {ALIGNMENT}-byte aligned.")
        else:
            self.memory = (int(memory), size)

    device_memory = property(None, lambda self, memory: self._set_memory(memory, None))

    def set_device_memory(self, memory: int, size: int) -> None:
        self._set_memory(memory, int(size))

    def update_device_memory_size_for_shapes(self) -> int:
        """The bytes that the present shapes need; the context then asks for no more."""
        if not self.all_binding_shapes_specified:
            self._refuse("updateDeviceMemorySizeForShapes: not all input shapes are set.")
            return 0
        self.needed = max(1, sum(math.prod(shape) for shape in self.shapes.values())) * 512
        return self.needed

    def report_to_profiler(self) -> bool:
        return self.profiler is not None

    def execute_async_v3(self, stream: int) -> bool:
        """Check what the real one checks, then queue a run on the stream."""
        problem = self._problem(stream)
        if problem:
            return self._refuse(f"enqueueV3: {problem}")
        shapes = dict(self.shapes) | self.engine.output_shapes(self.shapes)
        run = Run(self.engine, shapes, dict(self.addresses), self._scratch())
        if not run.fits():
            return self._refuse("enqueueV3: a tensor's memory is smaller than its shape")
        self.settled = True
        if device().capturing(stream):
            run.unchanged = self._watch()
        return not device().enqueue(stream, run)

    def _watch(self) -> Callable[[], bool]:
        """Whether this context is alive and as it is now, which a captured graph relies on."""
        shown, changes = self._shown, self.changes
        return lambda: bool(shown and shown()) and self.changes == changes

    def _problem(self, stream: int) -> str | None:
        """The first reason not to run."""
        return next(self._problems(stream), None)

    def _problems(self, stream: int) -> Iterator[str]:
        if self.world.double.fail_execute:
            yield "Error Code 1: Cuda Runtime (unspecified launch failure)"
        if self.profile < 0:
            yield "No optimization profile has been chosen."
        for name in self.infer_shapes():
            yield f"the shape of {name} is not set"
        for name in self.engine.tensors:
            if not self.addresses.get(name):
                yield f"The address of {name} is not set (address != nullptr)"
        if not self.owns_memory and not device().holds(*self._scratch()):
            yield f"device memory is missing or smaller than {self._needed()} bytes"
        if not device().has_stream(stream):
            yield "the stream does not exist"
        if device().capturing(stream) and not self.settled:
            yield (
                "the stream is capturing, and shapes have changed since the last run: "
                "operation not permitted when stream is capturing"
            )

    def _needed(self) -> int:
        of_profile = self.engine.get_device_memory_size_for_profile(self.profile)
        return of_profile if self.needed is None else self.needed

    def _scratch(self) -> tuple[int, int]:
        """(address, bytes) of the activation memory; (0, 0) where the context owns it."""
        if self.owns_memory:
            return 0, 0
        address, size = self.memory or (0, None)
        short = size is not None and size < self._needed()
        return (-1 if short or not address else address), self._needed()


class Run:
    """One queued execution: what it reads and writes is fixed, as in a CUDA graph."""

    def __init__(
        self,
        engine: CudaEngine,
        shapes: dict[str, Any],
        addresses: dict[str, int],
        scratch: tuple[int, int],
    ) -> None:
        self.engine, self.shapes, self.addresses = engine, shapes, addresses
        self.scratch = scratch
        self.unchanged: Callable[[], bool] = lambda: True

    def fits(self) -> bool:
        """Whether every address still holds as much as its tensor needs."""
        inside = all(
            device().holds(self.addresses[name], _bytes(tensor, self.shapes[name]))
            for name, tensor in self.engine.tensors.items()
        )
        return inside and (self.scratch == (0, 0) or device().holds(*self.scratch))

    def __call__(self) -> str | None:
        """Compute; the name of the CUDA error if memory is gone."""
        if not self.fits() or not self.unchanged():
            return "cudaErrorIllegalAddress"
        plan, session = self.engine.plan, self.engine.session()
        wanted = {node.name: GRAPH_TYPES[node.type] for node in session.get_inputs()}
        # Weak typing may bind other types than the graph's: INT32 for INT64, HALF for FLOAT.
        feeds = {t.name: self._view(t).astype(wanted[t.name]) for t in plan.inputs}
        if self.scratch != (0, 0):
            ctypes.memset(self.scratch[0], 0xA5, self.scratch[1])  # the engine writes all over it
        outputs = session.run([tensor.name for tensor in plan.outputs], feeds)
        for tensor, value in zip(plan.outputs, outputs, strict=True):
            self._view(tensor)[...] = value
        return None

    def _view(self, tensor: TensorPlan) -> Any:
        shape = self.shapes[tensor.name]
        memory = (ctypes.c_char * _bytes(tensor, shape)).from_address(self.addresses[tensor.name])
        return np.frombuffer(memoryview(memory), NUMPY[tensor.dtype]).reshape(shape)


def _bytes(tensor: TensorPlan, shape: Any) -> int:
    return int(math.prod(shape)) * np.dtype(NUMPY[tensor.dtype]).itemsize
