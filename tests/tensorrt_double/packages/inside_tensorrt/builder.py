"""The builder: checks, progress, failures on request, and the plan."""

from __future__ import annotations

import time
from typing import Any

from .checks import problems
from .config import BuilderConfig, OptimizationProfile
from .network import Layer, Network, Tensor
from .plan import LayerPlan, Plan, TensorPlan
from .values import HostMemory
from .world import Behaviour, World

FAILURES = {
    "tactic": "Error Code 10: Internal Error (Could not find any implementation for node {node}.)",
    "memory": (
        "Error Code 2: OutOfMemory (Requested amount of GPU memory (17179869184 bytes) could not "
        "be allocated. There may not be enough free memory for allocation to succeed.)"
    ),
}


class _Cancelled(Exception):
    """The progress monitor said no."""


class Builder(Behaviour):
    """``tensorrt.Builder``."""

    kind = "Builder"

    def __init__(self, world: World, logger: Any) -> None:
        super().__init__(world)
        self.logger = logger
        self.max_threads = 1
        self.num_DLA_cores = 0
        self.platform_has_fast_fp16 = True
        self.platform_has_fast_int8 = True
        self.platform_has_tf32 = float(world.double.compute_capability) >= 8
        self.error_recorder: Any = None
        self._log("INFO", "[MemUsageChange] Init CUDA: CPU +2, GPU +0, now: CPU 39, GPU 105 (MiB)")

    def _log(self, severity: str, text: str) -> None:
        self.world.log(self.logger, severity, text)

    def create_network(self, flags: int = 0) -> Network:
        network = Network(self.world, self.logger, int(flags))
        if network.has_implicit_batch_dimension:
            self._log("WARNING", "The implicit batch dimension mode has been deprecated.")
        return network

    def create_builder_config(self) -> BuilderConfig:
        return BuilderConfig(self.world, self.logger)

    def create_optimization_profile(self) -> OptimizationProfile:
        return OptimizationProfile(self.world)

    def is_network_supported(self, network: Network, config: BuilderConfig) -> bool:
        return next(problems(network, config), None) is None

    def reset(self) -> None:
        """Nothing is kept between builds."""

    def build_serialized_network(
        self, network: Network, config: BuilderConfig, kernel_text: Any = None
    ) -> HostMemory | None:
        """The plan, or None after an ERROR line."""
        self.world.double.builds += 1
        begun = time.perf_counter()
        self._log("VERBOSE", f"Original: {network.num_layers} layers")
        problem = next(problems(network, config), None)
        if problem:
            self._log("ERROR", problem)
            return None
        try:
            self._work(network, config)
        except _Cancelled:
            self._log("INFO", "Engine building was cancelled by the progress monitor.")
            return None
        if self._fails(network, config):
            return None
        self._remember(network, config)
        seconds = time.perf_counter() - begun
        self._log("INFO", f"Engine generation completed in {seconds:.4f} seconds.")
        plan = _plan(self.world, network, config)
        return HostMemory(self.world, plan.to_bytes())

    def _work(self, network: Network, config: BuilderConfig) -> None:
        """Two nested phases, with the seconds that the test asked for spread over their steps."""
        profiles = max(1, len(config.profiles))
        pause = self.world.double.slow_build_s / (profiles * 4)
        monitor = config.progress_monitor
        outer = "Building Engine"
        if monitor is None:
            time.sleep(self.world.double.slow_build_s)
            return
        monitor.phase_start(outer, None, profiles)
        try:
            for index in range(profiles):
                inner = f"Tactic Selection for profile {index}"
                monitor.phase_start(inner, outer, 4)
                try:
                    for step in range(4):
                        time.sleep(pause)
                        self._step(monitor, inner, step)
                finally:
                    monitor.phase_finish(inner)
                self._step(monitor, outer, index)
        finally:
            monitor.phase_finish(outer)

    def _step(self, monitor: Any, phase: str, step: int) -> None:
        if not monitor.step_complete(phase, step):
            raise _Cancelled

    def _fails(self, network: Network, config: BuilderConfig) -> bool:
        asked = self.world.double.fail_build
        if asked == "conflict":
            asked = "tactic" if config.has_flag("OBEY_PRECISION_CONSTRAINTS") else None
        if asked is None:
            return False
        names = [layer.name for layer in network.layers if layer.op not in ("Constant", "Shape")]
        node = f"{{ForeignNode[{names[0]}...{names[-1]}]}}"
        text = FAILURES.get(asked, asked).format(node=node)
        self._log("WARNING", "Skipping tactic 0x0000000000000000 due to insufficient memory.")
        self._log("ERROR", f"IBuilder::buildSerializedNetwork: {text}")
        return True

    def _remember(self, network: Network, config: BuilderConfig) -> None:
        if config.has_flag("DISABLE_TIMING_CACHE"):
            return
        if config.timing_cache is None:
            text = "Local timing cache in use. Profiling results in this builder pass will not be"
            self._log("INFO", f"{text} stored.")
            return
        cache = config.timing_cache
        cache.entries = sorted({*cache.entries, *(layer.name for layer in network.layers)})


def _plan(world: World, network: Network, config: BuilderConfig) -> Plan:
    values = {v.name: v for v in [*network.model.graph.input, *network.model.graph.output]}

    def described(tensor: Tensor) -> TensorPlan:
        value = values.get(tensor.name)
        axes = [d.dim_param for d in value.type.tensor_type.shape.dim] if value else []
        return TensorPlan(tensor.name, tensor.dtype.name, tensor.shape.values, axes)

    return Plan(
        version=world.version,
        compute_capability=world.double.compute_capability,
        name=network.name,
        verbosity=config.profiling_verbosity.name,
        version_compatible=config.has_flag("VERSION_COMPATIBLE"),
        lean_runtime=not config.has_flag("EXCLUDE_LEAN_RUNTIME"),
        profile_sharing=_shares_profiles(world, config),
        inputs=[described(tensor) for tensor in network.inputs],
        outputs=[described(tensor) for tensor in network.outputs],
        layers=[
            LayerPlan(
                layer.name,
                layer.op,
                _computes_in(layer, network, config),
                [described(tensor) for tensor in layer.inputs],
                [described(tensor) for tensor in layer.outputs],
            )
            for layer in network.layers
            if layer.op != "Constant"
        ],
        profiles=[
            {name: [list(shape) for shape in shapes] for name, shapes in profile.shapes.items()}
            for profile in config.profiles
        ],
        model=network.model.SerializeToString(),
    )


def _shares_profiles(world: World, config: BuilderConfig) -> bool:
    """From 10 on always; 8.6 only with the preview feature."""
    if world.major >= 10:
        return True
    return config.get_preview_feature(world.enum("PreviewFeature", "PROFILE_SHARING_0806"))


def _computes_in(layer: Layer, network: Network, config: BuilderConfig) -> str:
    """The DataType member that the engine runs a layer in."""
    own = str(layer.outputs[0].dtype.name) if layer.outputs else "FLOAT"
    if network.strongly_typed or not layer.computes_floats or not config.has_flag("FP16"):
        return own
    held = config.has_flag("OBEY_PRECISION_CONSTRAINTS") or config.has_flag(
        "PREFER_PRECISION_CONSTRAINTS"
    )
    return str(layer.pinned.name) if layer.precision_is_set and held else "HALF"
