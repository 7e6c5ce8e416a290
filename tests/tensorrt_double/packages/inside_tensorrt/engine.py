"""The engine: what it takes and gives, its profiles, its memory."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .inspector import EngineInspector
from .plan import Plan, TensorPlan
from .values import Dims, HostMemory
from .world import Behaviour, World

if TYPE_CHECKING:
    from .context import ExecutionContext


class RuntimeConfig(Behaviour):
    """``tensorrt.IRuntimeConfig``."""

    kind = "IRuntimeConfig"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.strategy = world.enum("ExecutionContextAllocationStrategy", "STATIC")

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy

    def get_execution_context_allocation_strategy(self) -> Any:
        return self.strategy


class CudaEngine(Behaviour):
    """``tensorrt.ICudaEngine``."""

    kind = "ICudaEngine"

    def __init__(self, world: World, plan: Plan, logger: Any) -> None:
        super().__init__(world)
        self.plan = plan
        self.logger = logger
        self.tensors = {tensor.name: tensor for tensor in [*plan.inputs, *plan.outputs]}
        self.name = plan.name
        self.num_io_tensors = len(self.tensors)
        self.num_optimization_profiles = max(1, len(plan.profiles))
        self.num_layers = len(plan.layers)
        self.refittable = False
        self.has_implicit_batch_dimension = False
        self.num_aux_streams = 0
        self.error_recorder: Any = None
        self.profiling_verbosity = world.enum("ProfilingVerbosity", plan.verbosity)
        self.hardware_compatibility_level = world.enum("HardwareCompatibilityLevel", "NONE")
        # 8.6 gives a profile to one living context at a time.
        self.chosen: weakref.WeakKeyDictionary[ExecutionContext, int] = weakref.WeakKeyDictionary()
        self._session: Any = None

    def session(self) -> Any:
        """The graph in ONNX Runtime, made once; it computes what the plan promises."""
        if self._session is None:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            options.log_severity_level = 3
            self._session = onnxruntime.InferenceSession(
                self.plan.model, options, providers=["CPUExecutionProvider"]
            )
        return self._session

    def tensor(self, name: str) -> TensorPlan | None:
        """A tensor by name; an unknown one is logged, as every query of the real engine does."""
        if name not in self.tensors:
            self.world.log(
                self.logger,
                "ERROR",
                f"ICudaEngine: Error Code 3: API Usage Error (Given invalid tensor name: {name}. "
                "Get valid tensor names with getIOTensorName())",
            )
        return self.tensors.get(name)

    def get_tensor_name(self, index: int) -> str | None:
        names = list(self.tensors)
        return names[index] if 0 <= index < len(names) else None

    def get_tensor_mode(self, name: str) -> Any:
        tensor = self.tensor(name)
        member = "NONE" if tensor is None else "INPUT" if tensor in self.plan.inputs else "OUTPUT"
        return self.world.enum("TensorIOMode", member)

    def get_tensor_shape(self, name: str) -> Dims:
        tensor = self.tensor(name)
        return Dims(self.world, tensor.shape if tensor else ())

    def get_tensor_dtype(self, name: str) -> Any:
        tensor = self.tensor(name)
        return self.world.enum("DataType", tensor.dtype if tensor else "FLOAT")

    def get_tensor_location(self, name: str) -> Any:
        return self.world.enum("TensorLocation", "DEVICE")

    def get_tensor_format(self, name: str, profile_index: int = 0) -> Any:
        return self.world.enum("TensorFormat", "LINEAR")

    def is_shape_inference_io(self, name: str) -> bool:
        return False

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """Least, optimal and largest shape; a fixed input is the same thrice."""
        tensor = self.tensor(name)
        if tensor is None or not 0 <= profile_index < self.num_optimization_profiles:
            self.world.log(self.logger, "ERROR", f"no profile {profile_index} of {name}")
            return []
        return [Dims(self.world, shape) for shape in self.profile_shapes(name, profile_index)]

    def profile_shapes(self, name: str, index: int) -> list[list[int]]:
        """The same, as plain lists."""
        fixed = [self.tensors[name].shape] * 3
        return self.plan.profiles[index].get(name, fixed) if self.plan.profiles else fixed

    def _memory(self, index: int) -> int:
        """Activation bytes of a profile: grows with its largest input; a multiple of 512."""
        tokens = sum(
            math.prod(map(abs, self.profile_shapes(tensor.name, index)[2]))
            for tensor in self.plan.inputs
        )
        return max(1, tokens) * 512

    @property
    def device_memory_size(self) -> int:
        return max(map(self._memory, range(self.num_optimization_profiles)))

    @property
    def device_memory_size_v2(self) -> int:
        return self.device_memory_size

    def get_device_memory_size_for_profile(self, profile_index: int) -> int:
        return self._memory(profile_index)

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return self._memory(profile_index)

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig(self.world)

    def create_execution_context(self, strategy: Any = None) -> ExecutionContext | None:
        """With memory of its own, unless the strategy (or runtime config) is USER_MANAGED."""
        if isinstance(strategy, RuntimeConfig):
            strategy = strategy.strategy
        managed = strategy is not None and strategy.name == "USER_MANAGED"
        return self._new_context(owns_memory=not managed)

    def create_execution_context_without_device_memory(self) -> ExecutionContext | None:
        return self._new_context(owns_memory=False)

    def _new_context(self, *, owns_memory: bool) -> ExecutionContext | None:
        """None where it meets a capture: it may synchronise the device, which breaks both.

        That a synchronisation does so in any mode: github.com/NVIDIA/TensorRT, number 2888.
        """
        from .context import ExecutionContext, device

        if device().break_captures():
            text = "Cuda Runtime (operation not permitted when stream is capturing)"
            self.world.log(self.logger, "ERROR", f"createExecutionContext: Error Code 1: {text}")
            return None
        context = ExecutionContext(self.world, self, owns_memory=owns_memory)
        return context if not owns_memory or context.allocate() else None

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self.world, self.plan)

    def serialize(self) -> HostMemory:
        return HostMemory(self.world, self.plan.to_bytes())

    def get_aliased_input_tensor(self, name: str) -> None:
        return None

    def axis_sizes(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, int]:
        """The size of each named axis for these input shapes.

        Raises:
            RuntimeError: if two inputs give one axis two sizes.
        """
        axes: dict[str, int] = {}
        for tensor in self.plan.inputs:
            for axis, size in zip(tensor.axes, inputs[tensor.name], strict=True):
                if axis and axes.setdefault(axis, size) != size:
                    raise RuntimeError(f"axis {axis} is {axes[axis]} and {size}")
        return axes

    def output_shapes(self, inputs: Mapping[str, Sequence[int]]) -> dict[str, list[int]]:
        """Each output's shape for these input shapes; -1 where an axis is not known.

        Raises:
            RuntimeError: if two inputs give one axis two sizes.
        """
        axes = self.axis_sizes(inputs)
        return {
            tensor.name: [
                size if size != -1 else axes.get(axis, -1)
                for size, axis in zip(tensor.shape, tensor.axes, strict=True)
            ]
            for tensor in self.plan.outputs
        }
