"""Two real workers in turn, on a tiny model and for moments only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from attn_export.benchmarks import duel as module
from attn_export.benchmarks.candidates import BUCKETED, EAGER_PADDED, Settings
from attn_export.benchmarks.duel import Contestant, DuelResult, run_duel
from attn_export.bundle import Bundle
from attn_export.errors import AttnExportError, BundleError

SEQUENCES = [np.full(n, 3, np.int32) for n in (2, 4, 4, 8, 9, 16, 3, 1)]
ENGINE = Settings(candidate=BUCKETED, engine="onnxruntime-fp32", threads=1, batch_size=4)
EAGER = replace(ENGINE, candidate=EAGER_PADDED, engine=None)


@pytest.fixture(autouse=True)
def _moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TURN_S", 0.002)
    monkeypatch.setattr(module, "WARM_UP_S", 0.0)
    monkeypatch.setattr(module, "SETTLE_S", 0.0)


def test_rounds_go_on_from_look_to_look_until_the_question_is_answered(bundle: Bundle) -> None:
    asked: list[int] = []

    def settled(ratios: object) -> bool:
        asked.append(len(ratios))  # type: ignore[arg-type]
        return len(asked) == 2

    said: list[str] = []
    pair = (
        Contestant(name="engine", bundle=bundle, settings=ENGINE),
        Contestant(name="eager", bundle=bundle, settings=EAGER),
    )
    found = run_duel(pair, SEQUENCES, settled=settled, say=said.append)
    assert asked == [8, 16]
    assert [len(rates) for rates in found.rates] == [16, 16]
    assert found.ratios == pytest.approx(np.divide(*found.rates))
    assert found.seconds > 0
    assert sum(text.startswith("round 16: ") for text in said) == 2


def test_turns_alternate_and_the_next_round_is_the_opposite() -> None:
    assert module.order(3, 0) == [0, 1, 1, 0, 0, 1]
    assert module.order(3, 1) == [1, 0, 0, 1, 1, 0]
    assert sum(module.order(module.SHORT_TURNS, 0)) == module.SHORT_TURNS


@pytest.mark.parametrize(
    ("rounds", "seconds", "settled", "over"),
    [
        (7, 1.0, True, False),  # no look
        (8, 1.0, True, True),
        (8, 1.0, False, False),
        (8, 210.0, False, True),  # 10 s to load, and 16 rounds of 25 s
        (8, 150.0, False, False),  # 10 s to load, and 16 rounds of 17.5 s
        (16, 100.0, False, False),
        (64, 1.0, False, True),
    ],
)
def test_looks_and_the_clock_alone_end_a_duel(
    rounds: int, seconds: float, settled: bool, over: bool
) -> None:
    result = DuelResult(rates=([1.0] * rounds, [1.0] * rounds), seconds=seconds)
    assert module._is_over(result, lambda ratios: settled, 10.0) is over


def test_a_ratio_is_of_one_round_alone() -> None:
    # The machine was twice as slow in the second round; the ratio was the same.
    assert DuelResult(rates=([10.0, 5.0], [5.0, 2.5]), seconds=1.0).ratios == [2.0, 2.0]


def test_an_engine_that_fails_says_who_it_was(bundle: Bundle) -> None:
    (bundle.directory / "model.onnx").write_bytes(b"no graph")
    pair = (
        Contestant(name="new", bundle=bundle, settings=ENGINE),
        Contestant(name="old", bundle=bundle, settings=ENGINE),
    )
    with pytest.raises(BundleError, match="new: "):
        run_duel(pair, SEQUENCES, settled=lambda ratios: True, say=lambda text: None)


def test_a_contestant_that_hangs_is_ended(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attn_export.benchmarks.process.LIMIT_S", 0.01)
    pair = (
        Contestant(name="new", bundle=bundle, settings=ENGINE),
        Contestant(name="old", bundle=bundle, settings=ENGINE),
    )
    with pytest.raises(AttnExportError, match="new: no answer to 'start' within 0 s"):
        run_duel(pair, SEQUENCES, settled=lambda ratios: True, say=lambda text: None)
