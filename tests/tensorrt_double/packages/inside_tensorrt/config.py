"""Builder configuration: flags, pools, optimization profiles, the timing cache."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .values import Dims, HostMemory, shape_of
from .world import Behaviour, World

Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
CACHE_MAGIC = b"trtTimingCache"


class OptimizationProfile(Behaviour):
    """``tensorrt.IOptimizationProfile``: (min, opt, max) of each input."""

    kind = "IOptimizationProfile"

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.shapes: dict[str, Shapes] = {}
        self.extra_memory_target = 1.0

    def set_shape(self, name: str, low: Any, best: Any, high: Any) -> None:
        shapes = shape_of(low), shape_of(best), shape_of(high)
        ordered = len({len(shape) for shape in shapes}) == 1 and all(
            0 <= a <= b <= c for a, b, c in zip(*shapes, strict=True)
        )
        if not ordered:
            raise ValueError("Shape provided for min, opt, max is inconsistent with each other.")
        self.shapes[name] = shapes

    def get_shape(self, name: str) -> list[Dims]:
        return [Dims(self.world, shape) for shape in self.shapes.get(name, ())]

    def __bool__(self) -> bool:
        return True


class TimingCache(Behaviour):
    """``tensorrt.ITimingCache``: measured tactics, for one version and one GPU only."""

    kind = "ITimingCache"

    def __init__(self, world: World, version: str, device: str, entries: Sequence[str]) -> None:
        super().__init__(world)
        self.version, self.device, self.entries = version, device, sorted(set(entries))

    def serialize(self) -> HostMemory:
        body = {"version": self.version, "device": self.device, "entries": self.entries}
        return HostMemory(self.world, CACHE_MAGIC + json.dumps(body).encode())

    def combine(self, other: TimingCache, ignore_mismatch: bool) -> bool:
        if other.version != self.version:
            return False
        if other.device != self.device and not ignore_mismatch:
            return False
        self.entries = sorted({*self.entries, *other.entries})
        return True

    def reset(self) -> bool:
        self.entries = []
        return True


class BuilderConfig(Behaviour):
    """``tensorrt.IBuilderConfig``."""

    kind = "IBuilderConfig"

    def __init__(self, world: World, logger: Any) -> None:
        super().__init__(world)
        self.logger = logger
        self.flags = world.bit("BuilderFlag", "TF32")
        self.profiles: list[OptimizationProfile] = []
        self.pools: dict[Any, int] = {}
        self.features: dict[Any, bool] = {}
        self.tactic_sources = sum(1 << int(m) for m in self._sources())
        self.timing_cache: TimingCache | None = None
        self.progress_monitor: Any = None
        self.builder_optimization_level = 3
        self.profiling_verbosity = world.enum("ProfilingVerbosity", "LAYER_NAMES_ONLY")
        self.hardware_compatibility_level = world.enum("HardwareCompatibilityLevel", "NONE")
        self.max_aux_streams = -1
        self.avg_timing_iterations = 1
        self.plugins_to_serialize: list[str] = []
        self.profile_stream = 0

    def _sources(self) -> list[Any]:
        return list(self.world.classes["TacticSource"].__members__.values())  # type: ignore[attr-defined]

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def set_flag(self, flag: Any) -> None:
        self.flags |= 1 << int(flag)

    def clear_flag(self, flag: Any) -> None:
        self.flags &= ~(1 << int(flag))

    def get_flag(self, flag: Any) -> bool:
        return bool(self.flags & 1 << int(flag))

    def has_flag(self, name: str) -> bool:
        """Whether a flag is set that this version may not even have."""
        return bool(self.flags & self.world.bit("BuilderFlag", name))

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool] = int(size)

    def get_memory_pool_limit(self, pool: Any) -> int:
        return self.pools.get(pool, 15 << 30)

    def add_optimization_profile(self, profile: OptimizationProfile) -> int:
        if not profile.shapes:
            self.world.log(self.logger, "ERROR", "The optimization profile has no shapes.")
            return -1
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def set_tactic_sources(self, sources: int) -> bool:
        self.tactic_sources = int(sources)
        return True

    def get_tactic_sources(self) -> int:
        return self.tactic_sources

    def set_preview_feature(self, feature: Any, enable: bool) -> None:
        self.features[feature] = bool(enable)

    def get_preview_feature(self, feature: Any) -> bool:
        return self.features.get(feature, False)

    def create_timing_cache(self, data: Any) -> TimingCache:
        """An empty cache for ``b""``; another version's bytes stay foreign and never combine."""
        text = bytes(data)
        version, device, entries = self.world.version, self.world.double.compute_capability, []
        if text:
            try:
                body = json.loads(text.removeprefix(CACHE_MAGIC))
                version, device, entries = body["version"], body["device"], body["entries"]
            except ValueError:
                version = "broken"
        if version != self.world.version:
            self.world.log(
                self.logger,
                "WARNING",
                "The timing cache was made by another version of TensorRT and is not used.",
            )
        return TimingCache(self.world, version, device, entries)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        foreign = cache.device != self.world.double.compute_capability
        if cache.version != self.world.version or (foreign and not ignore_mismatch):
            self.world.log(self.logger, "ERROR", "The timing cache's header does not match.")
            return False
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing_cache
