"""A packed engine from the outside: the same inputs, the same answers, in the same order."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attn_export.benchmarks.parity import run_parity
from attn_export.bucketing import BucketOptions
from attn_export.bundle import Bundle, write_manifest
from attn_export.engines import onnxruntime, packing_session
from attn_export.engines.engine import load
from attn_export.engines.packing_session import PackingSession, Texts, is_packed, provider_of
from attn_export.engines.session import CompileOptions, LoadOptions
from attn_export.errors import BundleError, UsageError
from attn_export.exporter.source import ModelSource
from attn_export.manifest import EngineRecord
from attn_export.portable import write_portable

NAME = "onnxruntime-fp32-packed"
TINY = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": 60, "max_length": 16}
IDS = np.array([[7, 8, 9, 4], [5, 6, 3, 2], [1, 2, 3, 4]], np.int32)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GQA bundle with a padded and a packed FP32 engine."""
    directory = tmp_path_factory.mktemp("packed")
    manifest = write_portable(
        ModelSource(model="gqa", options={**TINY, "num_kv_heads": 2}),
        directory,
        lowering="fold",
        buckets=BucketOptions(count=3),
        fp16=None,
        packed=True,
        command="",
        say=lambda text: None,
    )
    bundle = Bundle(directory, manifest)
    for precision in onnxruntime.graphs(bundle, CompileOptions()):
        record = onnxruntime.compile(bundle, precision, CompileOptions())
        record.parity = {"passed": True, "sha256": manifest.shipped(record).sha256}
        manifest.engines[record.name] = record
    write_manifest(directory, manifest)
    return directory


@pytest.fixture
def sessions(packed: Path) -> Iterator[tuple[Any, PackingSession]]:
    """The padded session and the packed one."""
    bundle = Bundle.open(packed)
    engines = bundle.manifest.engines
    pair = [
        onnxruntime.load(bundle, engines[name], LoadOptions(threads=2))
        for name in ("onnxruntime-fp32", NAME)
    ]
    assert isinstance(pair[1], PackingSession)
    with closing(pair[0]), closing(pair[1]):
        yield pair[0], pair[1]


def batch(*masks: list[int], seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    mask = np.array(masks, np.int32)
    ids = np.random.default_rng(seed).integers(0, 60, mask.shape, dtype=np.int32)
    return {"input_ids": ids, "attention_mask": mask}


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-5)


def test_the_whole_parity_matrix_passes(packed: Path) -> None:
    report = run_parity(Bundle.open(packed), engines=[NAME])
    (result,) = report.engines
    assert result.passed
    assert result.runs[0].outputs[0].max_abs < 5e-6


@pytest.mark.parametrize(
    "mask",
    [
        [1, 1, 1, 1],
        [1, 1, 0, 0],
        [0, 0, 1, 1],
        [0, 1, 0, 1],
        [1, 0, 0, 1],
        [0, 0, 0, 0],
        [0, 0, 0, 1],
    ],
)
def test_every_kind_of_padding_means_what_it_means_to_the_padded_engine(
    sessions: tuple[Any, PackingSession], mask: list[int]
) -> None:
    feeds = batch(mask, [1, 1, 1, 0], mask)
    near(sessions[1].run(feeds)["logits"], sessions[0].run(feeds)["logits"])


@pytest.mark.parametrize("window", [1, 30, 1 << 16])
def test_many_batches_come_back_in_order_whatever_shares_their_rows(
    sessions: tuple[Any, PackingSession], monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr(packing_session, "WINDOW_TOKENS", window)
    batches = [batch(*[[1] * n + [0] * (9 - n)] * (n % 3 + 1), seed=n) for n in range(1, 10)]
    expected = [sessions[0].run(feeds)["logits"] for feeds in batches]
    got = [outputs["logits"] for outputs in sessions[1].run_all(iter(batches))]
    assert [array.shape for array in got] == [array.shape for array in expected]
    for a, b in zip(got, expected, strict=True):
        near(a, b)
    assert list(sessions[1].run_all([])) == []


def test_a_server_gets_the_same_answers_from_both(packed: Path) -> None:
    rng = np.random.default_rng(1)
    texts = [rng.integers(0, 60, n).astype(np.int32) for n in rng.integers(1, 17, 70)]
    with load(packed) as padded, load(packed, packed=True) as rows:
        assert rows.precision == padded.precision == "fp32"
        near(rows.run_many(texts)["logits"], padded.run_many(texts)["logits"])
        assert rows.run_many([])["logits"].shape == (0, 3)  # type: ignore[union-attr]


def test_tokens_are_laid_out_as_worked_by_hand() -> None:
    mask = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], np.int32)
    texts = Texts([IDS], [mask])
    assert texts.lengths == [2, 3, 4]
    feeds = texts.feeds([[1, 0], [2]], 5)
    assert feeds["input_ids"].tolist() == [[5, 3, 2, 7, 8], [1, 2, 3, 4, 0]]
    assert feeds["position_ids"].tolist() == [[0, 2, 3, 0, 1], [0, 1, 2, 3, 0]]
    assert feeds["segment_ids"].tolist() == [[-1, 1, 1, 2, 2], [1, 1, 1, 1, 0]]
    assert feeds["first_tokens"].tolist() == [[0, 3], [5, 5]]
    assert {array.dtype for array in feeds.values()} == {np.dtype(np.int32)}


def test_a_packed_engine_is_taken_only_where_it_is_asked_for(
    packed: Path, tmp_path: Path, directory: Path
) -> None:
    shutil.copytree(packed, tmp_path / "fast")
    manifest = Bundle.open(packed).manifest
    for bucket in manifest.engines["onnxruntime-fp32"].buckets:
        bucket["ms"] = 1e9  # by the times alone it would be the packed one
    write_manifest(tmp_path / "fast", manifest)
    with load(tmp_path / "fast") as engine:
        assert not isinstance(engine._session, PackingSession)
    with pytest.raises(BundleError, match="no packed engine"):
        load(directory, packed=True)


def test_a_closed_engine_says_so(packed: Path) -> None:
    engine = load(packed, packed=True)
    engine.close()
    with pytest.raises(UsageError, match="closed"):
        engine.run_many([[1, 2]])


@pytest.mark.parametrize(
    ("variant", "provider", "rows"),
    [("", "", False), ("packed", "", True), ("cuda", "cuda", False), ("cuda-packed", "cuda", True)],
)
def test_the_variant_says_provider_and_packing(variant: str, provider: str, rows: bool) -> None:
    record = EngineRecord(backend="onnxruntime", precision="fp32", graph="", variant=variant)
    assert (provider_of(record), is_packed(record)) == (provider, rows)


def test_on_a_gpu_it_is_an_engine_of_its_own(
    packed: Path, gpu_onnxruntime: Callable[..., Any]
) -> None:
    bundle = Bundle.open(packed)
    record = onnxruntime.compile(bundle, "packed", CompileOptions(provider="cuda"))
    assert record.name == "onnxruntime-fp32-cuda-packed"
    feeds = batch([1, 1, 0], [1, 1, 1])
    with closing(onnxruntime.load(bundle, record, LoadOptions())) as session:
        got = session.run(feeds)["logits"]
    padded = bundle.manifest.engines["onnxruntime-fp32"]
    with closing(onnxruntime.load(bundle, padded, LoadOptions(threads=1))) as session:
        near(got, session.run(feeds)["logits"])
