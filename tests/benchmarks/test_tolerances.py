"""Presets, the user's values, and the ceiling for FP16."""

from __future__ import annotations

import pytest
import torch

from attn_export.benchmarks.tolerances import CEILINGS, PRESETS, Tolerances
from attn_export.errors import UsageError


@pytest.mark.parametrize(("precision", "value"), [("fp32", 1e-4), ("fp16", 5e-3), ("bf16", 4e-2)])
def test_presets(precision: str, value: float) -> None:
    assert Tolerances().allowed("logits", precision) == (value, value)


def test_a_named_output_goes_before_the_value_for_all() -> None:
    given = Tolerances.parse(["1e-3", "logits:2e-3"], ["pooled:3e-3"])
    assert given.allowed("logits", "fp32") == (2e-3, 1e-4)
    assert given.allowed("pooled", "fp32") == (1e-3, 3e-3)


def test_an_output_name_may_hold_a_colon() -> None:
    assert Tolerances.parse(["a:b:0.5"]).atol == {"a:b": 0.5}


@pytest.mark.parametrize("text", ["abc", "", "logits:", "-1", "nan", "inf", "logits:-0.1"])
def test_what_is_no_tolerance_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--rtol"):
        Tolerances.parse([], [text])


def test_the_same_output_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="--atol is given twice for logits"):
        Tolerances.parse(["logits:1", "logits:2"])


def test_fp16_may_reach_its_ceiling_and_not_pass_it() -> None:
    assert Tolerances.parse(["1e-2"], ["1e-2"]).allowed("logits", "fp16") == (1e-2, 1e-2)
    with pytest.raises(UsageError, match=r"--rtol 0\.02 is too loose for fp16: at most 0\.01"):
        Tolerances.parse(["1e-3"], ["2e-2"]).allowed("logits", "fp16")


def test_bf16_is_allowed_as_much_more_as_its_roundings_are_larger() -> None:
    """The next number after 1 is 2**-7 away in BF16 and 2**-10 in FP16."""
    bf16, fp16 = torch.finfo(torch.bfloat16).eps, torch.finfo(torch.float16).eps
    assert PRESETS["bf16"] / PRESETS["fp16"] == bf16 / fp16
    assert CEILINGS["bf16"] / CEILINGS["fp16"] == bf16 / fp16
    with pytest.raises(UsageError, match=r"--atol 0\.1 is too loose for bf16: at most 0\.08"):
        Tolerances.parse(["0.1"]).allowed("logits", "bf16")


def test_fp32_has_no_ceiling() -> None:
    assert Tolerances.parse(["1"], ["1"]).allowed("logits", "fp32") == (1, 1)


def test_an_unknown_output_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="'logit'; the model has: logits, pooled"):
        Tolerances.parse(["logit:1"]).check_outputs(["logits", "pooled"])


def test_a_precision_without_a_preset_needs_a_value() -> None:
    with pytest.raises(UsageError, match="no preset tolerance for int4"):
        Tolerances().allowed("logits", "int4")
    assert Tolerances.parse(["1"], ["2"]).allowed("logits", "int4") == (1, 2)


def test_int8_is_judged_by_its_cosine_unless_a_tolerance_is_given() -> None:
    assert Tolerances().least_cosine("logits", "int8") == 0.95
    assert Tolerances().least_cosine("logits", "fp16") is None
    assert Tolerances.parse(["0.2"], []).least_cosine("logits", "int8") is None
    assert Tolerances.parse(["other:0.2"], []).least_cosine("logits", "int8") == 0.95
    assert Tolerances.parse(["0.2"], ["0.1"]).allowed("logits", "int8") == (0.2, 0.1)
