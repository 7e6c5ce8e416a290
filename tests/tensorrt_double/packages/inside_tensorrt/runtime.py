"""The runtime: a plan is loaded where version and GPU fit, and refused in TensorRT's words."""

from __future__ import annotations

from typing import Any

from .engine import CudaEngine
from .plan import Plan
from .world import Behaviour, World


class Runtime(Behaviour):
    """``tensorrt.Runtime``."""

    kind = "Runtime"

    def __init__(self, world: World, logger: Any) -> None:
        super().__init__(world)
        self.logger = logger
        self.max_threads = 1
        self.engine_host_code_allowed = False
        self.temporary_directory = "/tmp"
        self.error_recorder: Any = None
        self.num_DLA_cores = 0

    def deserialize_cuda_engine(self, data: Any) -> CudaEngine | None:
        """The engine, or None after an ERROR line."""
        try:
            plan = Plan.from_bytes(bytes(data))
            self._check(plan)
        except ValueError as error:
            text = f"IRuntime::deserializeCudaEngine: Error Code 1: Serialization ({error})"
            self.world.log(self.logger, "ERROR", text)
            return None
        size = len(plan.model) >> 20
        self.world.log(self.logger, "INFO", f"Loaded engine size: {size} MiB")
        return CudaEngine(self.world, plan, self.logger)

    def _check(self, plan: Plan) -> None:
        version, here = self.world.version, self.world.double.compute_capability
        if plan.version_compatible:
            self._check_compatible(plan)
        elif self.world.lean:
            raise ValueError("The lean runtime loads version compatible engines only.")
        elif plan.version != version:
            raise ValueError(
                "The engine plan file is not compatible with this version of TensorRT, expecting "
                f"library version {version} got {plan.version}, please rebuild."
            )
        if plan.compute_capability != here:
            raise ValueError(
                "The engine plan file is generated on an incompatible device, expecting compute "
                f"{here} got compute {plan.compute_capability}, please rebuild."
            )

    def _check_compatible(self, plan: Plan) -> None:
        if not plan.lean_runtime and plan.version != self.world.version:
            # What IRuntime.load_runtime says of plans that exclude it.
            raise ValueError(
                f"The engine needs the lean runtime of {plan.version}, which is not in the plan; "
                f"this is {self.world.version}."
            )
        if _numbers(self.world.version) < _numbers(plan.version):
            raise ValueError("A version compatible engine needs this or a newer TensorRT.")
        if plan.lean_runtime and not self.engine_host_code_allowed:
            raise ValueError(
                "The engine holds host code (a lean runtime): set engineHostCodeAllowed to true "
                "if it comes from a trusted source."
            )


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]
