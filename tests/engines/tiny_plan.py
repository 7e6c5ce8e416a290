"""The tiny encoder of conftest.py as a TensorRT plan, and helpers to run it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from attn_export.bundle import Bundle
from attn_export.engines.cuda_driver import Gpu
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.profiles import Profile
from attn_export.engines.session import CompileOptions, LoadOptions
from attn_export.engines.trt_api import is_strongly_typed
from attn_export.engines.trt_builder import BuildRequest, build_plan
from attn_export.engines.trt_engine import PlanEngine
from attn_export.engines.trt_lane import Lane
from attn_export.engines.trt_session import TensorRTSession, open_plan
from attn_export.spec import TensorSpec

T4 = Gpu(name="Tesla T4", compute_capability="7.5", memory_mib=15109)
PROFILES = (
    Profile(batch=(1, 2, 4), sequence=(1, 3, 4)),
    Profile(batch=(2, 3, 4), sequence=(5, 8, 16)),
)


@dataclass(frozen=True, kw_only=True)
class TinyPlan:
    """A plan and all that it is opened with."""

    trt: Any
    plan: bytes
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[Profile, ...] = PROFILES

    def open(
        self, *, lean: bool = False, host_code: bool = False, **options: Any
    ) -> TensorRTSession:
        """Open it; ``options`` are those of LoadOptions."""
        return open_plan(
            self.plan,
            inputs=self.inputs,
            outputs=self.outputs,
            profiles=self.profiles,
            options=LoadOptions(**options),
            lean=lean,
            host_code=host_code,
        )

    def engine(self, *, captures: bool = True) -> PlanEngine:
        """The engine alone."""
        return PlanEngine(
            self.trt,
            self.plan,
            inputs=self.inputs,
            outputs=self.outputs,
            profiles=self.profiles,
            captures=captures,
            host_code=False,
        )

    def lane(self, engine: PlanEngine) -> Lane:
        """A lane alone."""
        return Lane(engine, inputs=self.inputs, outputs=self.outputs, profiles=self.profiles)

    def feeds(self, batch: int, length: int, seed: int = 0) -> dict[str, Any]:
        """Feeds that differ from seed to seed, with some padding."""
        feeds = seeded_feeds(self.inputs, batch, length)
        feeds["input_ids"] = (feeds["input_ids"] + 7 * seed) % 50
        feeds["attention_mask"][0, 1 + seed % length :] = 0
        return feeds

    def with_spec(self, name: str, changes: dict[str, Any]) -> TinyPlan:
        """The same plan, said to have another input or output."""
        return replace(
            self,
            inputs=tuple(replace(s, **changes) if s.name == name else s for s in self.inputs),
            outputs=tuple(replace(s, **changes) if s.name == name else s for s in self.outputs),
        )


def build_tiny(
    bundle: Bundle, trt: Any, *, profiles: tuple[Profile, ...] = PROFILES, **options: Any
) -> TinyPlan:
    """Build it with the TensorRT that is installed; ``options`` are those of CompileOptions."""
    built = build_plan(
        BuildRequest(
            graph=bundle.directory / "model.onnx",
            precision="fp32",
            typed=is_strongly_typed(trt),
            profiles=profiles,
            inputs=bundle.manifest.inputs,
            outputs=bundle.manifest.outputs,
            gpu=T4,
            options=CompileOptions(**options),
        )
    )
    return TinyPlan(
        trt=trt,
        plan=built.plan,
        inputs=tuple(bundle.manifest.inputs),
        outputs=tuple(bundle.manifest.outputs),
        profiles=profiles,
    )


def assert_equal(outputs: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold outputs against those of the encoder in NumPy."""
    assert list(outputs) == ["logits", "hidden"]
    for name, array in outputs.items():
        assert array.dtype == np.float32
        np.testing.assert_allclose(array, expected[name], atol=1e-5, rtol=1e-5)
