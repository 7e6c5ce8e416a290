"""Each way of running: loaded from a real bundle, run once."""

from __future__ import annotations

import contextlib
import shutil
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

from attn_export.benchmarks.candidates import (
    BASELINES,
    EAGER,
    ENGINE,
    Settings,
    make,
    padded_size,
)
from attn_export.benchmarks.devices import GPU
from attn_export.benchmarks.eager import rebuild
from attn_export.benchmarks.loops import BatchLoop, Candidate, HandSorted, HandStreamed, RunMany
from attn_export.benchmarks.workload import Workload
from attn_export.bundle import Bundle
from attn_export.engines import onnxruntime
from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.profiles import Profile, bucket_profiles
from attn_export.engines.session import LoadOptions
from attn_export.errors import BuildFailed
from attn_export.exporter.eager import Style, run_eager, styled

LENGTHS = [1, 16, 3, 9, 4, 12, 2, 8, 5, 5]


def candidate_of(bundle: Bundle, name: str, stack: ExitStack) -> Candidate:
    engine = None if name in BASELINES else "onnxruntime-fp32"
    settings = Settings(candidate=name, engine=engine, threads=1, batch_size=4)
    return make(bundle, settings, stack).candidate


def workload_of(bundle: Bundle) -> Workload:
    return Workload(bundle.manifest.inputs, [np.full(n, 7, np.int32) for n in LENGTHS])


@pytest.mark.parametrize(
    ("name", "kind", "samples", "computed"),
    [
        ("eager-mha-padded", BatchLoop, 8, 8 * 16),
        ("eager-padded", BatchLoop, 8, 8 * 16),
        ("eager-dynamic", BatchLoop, 6, 4 * 16 + 2 * 2),  # of 16 12 9 8 | 5 5 4 3 | 2 1
        ("engine-padded", BatchLoop, 8, 8 * 16),
        ("engine-bucketed", RunMany, 7, None),
        ("hand-sorted", HandSorted, 7, None),
    ],
)
def test_every_candidate_runs_its_requests(
    bundle: Bundle, name: str, kind: type, samples: int, computed: int | None
) -> None:
    with ExitStack() as stack:
        candidate = candidate_of(bundle, name, stack)
        assert isinstance(candidate, kind)
        candidate.first(seeded_feeds(bundle.manifest.inputs, 1, 5))
        prepared = candidate.prepare(workload_of(bundle), 7)
        times = candidate.turn()
    assert prepared.samples == samples
    assert samples <= prepared.tokens <= prepared.computed_tokens
    assert prepared.computed_tokens == (computed or prepared.computed_tokens)
    if kind is BatchLoop:
        assert len(times) == prepared.batches == 2
        assert all(ms > 0 for ms in times)


def test_the_list_of_candidates_is_the_whole_of_them() -> None:
    assert len({*BASELINES, *ENGINE}) == 6


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    "style", ["half", "autocast", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_the_ways_in_which_torch_itself_is_faster(bundle: Bundle, style: Style) -> None:
    module = rebuild(bundle.manifest).module
    feeds = seeded_feeds(bundle.manifest.inputs, 3, 7)
    expected = run_eager(module, feeds)["logits"]
    run = styled(module, style, "cpu")
    if style == "compiled" and shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    got = run(feeds)["logits"]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-2)
    # Lower precision shows; so does a style that was ignored.
    assert np.allclose(got, expected, atol=1e-6) == (style == "compiled")


def test_a_module_that_cannot_be_compiled_says_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    def fails(module: object, **options: object) -> object:
        return torch.nn.Linear(1, 1)  # takes no ids

    monkeypatch.setattr(torch, "compile", fails)
    run = styled(rebuild(bundle.manifest).module, "compiled", "cpu")
    with pytest.raises(BuildFailed, match=r"torch\.compile fails here: AttributeError"):
        run(seeded_feeds(bundle.manifest.inputs, 1, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("name", EAGER[GPU])
def test_eager_on_a_gpu(bundle: Bundle, name: str) -> None:
    settings = Settings(candidate=name, engine=None, threads=1, batch_size=4, eager_device=GPU)
    with ExitStack() as stack:
        made = make(bundle, settings, stack)
        assert made.candidate.prepare(workload_of(bundle), 7).samples
        assert made.candidate.turn()
        made.rest()
        needed = made.device_mib()
    assert needed is not None
    assert needed > 0


def test_names_tell_devices_and_engines_apart() -> None:
    eager = Settings(candidate="eager-padded", engine=None, threads=1, batch_size=2)
    assert eager.name == "eager-padded"
    assert replace(eager, eager_device=GPU).name == "eager-padded@gpu"
    engine = replace(eager, candidate="engine-padded", engine="tensorrt-fp16", eager_device=GPU)
    assert engine.name == "engine-padded:tensorrt-fp16"


@pytest.mark.parametrize(
    ("largest", "size", "expected"), [((32, 8), 64, 8), ((32, 8), 4, 4), ((), 64, 64)]
)
def test_padded_batches_are_as_large_as_the_last_profile(
    largest: tuple[int, ...], size: int, expected: int
) -> None:
    profiles = [
        Profile(batch=(1, most, most), sequence=(1, edge, edge))
        for most, edge in zip(largest, (64, 128), strict=False)
    ]
    assert padded_size(profiles, size) == expected


def test_the_loop_on_a_gpu_runs_sorted_batches_of_the_profiles(bundle: Bundle) -> None:
    record = bundle.manifest.engines["onnxruntime-fp32"]
    session = onnxruntime.load(bundle, record, LoadOptions(threads=1))
    session.profiles = bucket_profiles((4, 8, 16), 32)  # at most 8, 4 and 2 samples
    with contextlib.closing(session):
        loop = HandStreamed(session)
        loop.first(seeded_feeds(bundle.manifest.inputs, 1, 5))
        prepared = loop.prepare(workload_of(bundle), 10)
        assert loop.turn() == []
    # 16 12 9 in twos to 16; 8 5 5 in one batch to 8; 4 3 2 1 to 4.
    assert prepared.batches == 4
    assert prepared.computed_tokens == 3 * 16 + 3 * 8 + 4 * 4
    assert prepared.detail == "batches of at most 32 tokens"


def test_the_two_sorted_candidates_run_the_same_requests(bundle: Bundle) -> None:
    with ExitStack() as stack:
        found = [
            candidate_of(bundle, name, stack).prepare(workload_of(bundle), 6)
            for name in ("engine-bucketed", "hand-sorted")
        ]
    assert found[0].tokens == found[1].tokens
    assert found[0].samples == found[1].samples == 6


def test_the_hand_written_loop_says_what_it_chose(bundle: Bundle) -> None:
    with ExitStack() as stack:
        prepared = candidate_of(bundle, "hand-sorted", stack).prepare(workload_of(bundle), 10)
    assert "a batch of " in prepared.detail


def test_eager_candidates_use_the_given_threads(bundle: Bundle) -> None:
    import torch

    before = torch.get_num_threads()
    try:
        with ExitStack() as stack:
            candidate_of(bundle, "eager-padded", stack)
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
