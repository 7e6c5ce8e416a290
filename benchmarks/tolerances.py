"""Which error is allowed: presets per precision, and ``[output:]value`` from the user."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from attn_export.errors import UsageError

# BF16 keeps 8 bits of a number's 24, FP16 keeps 11: its roundings, and so its errors, are
# 2**(11 - 8) = 8 times as large.
BF16_OVER_FP16 = 8
PRESETS = {"fp32": 1e-4, "fp16": 5e-3, "bf16": BF16_OVER_FP16 * 5e-3}
CEILINGS = {"fp16": 1e-2, "bf16": BF16_OVER_FP16 * 1e-2}
# Eight bits leave an error in every value that no elementwise bound would allow and that no label
# turns on. All values together must still point the same way, on random ids and lengths that no
# data had: 0.95 shows that the engine is the model. How near it is on real requests is INT8's own
# gate.
COSINES = {"int8": 0.95}


@dataclass(frozen=True, kw_only=True)
class Tolerances:
    """What the user asked for; the key ``""`` is every output, a name is one.

    ``|candidate - reference| <= atol + rtol * |reference|`` is allowed. What is not given is
    the preset of the engine's precision: 1e-4 for fp32, 5e-3 for fp16, 4e-2 for bf16, both atol
    and rtol; for int8 the cosine of all values is asked for instead, at least 0.95.
    """

    atol: Mapping[str, float] = field(default_factory=dict)
    rtol: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def parse(cls, atol: Sequence[str] = (), rtol: Sequence[str] = ()) -> Tolerances:
        """Read the spelling of the command line: ``"1e-3"`` or ``"logits:1e-3"``.

        Raises:
            UsageError: if a value is no number, negative or not finite, or is given twice.
        """
        return cls(atol=_parsed("--atol", atol), rtol=_parsed("--rtol", rtol))

    def check_outputs(self, outputs: Sequence[str]) -> None:
        """Refuse names that the model does not have.

        Raises:
            UsageError: if a tolerance is for an unknown output.
        """
        for name in [*self.atol, *self.rtol]:
            if name and name not in outputs:
                raise UsageError(
                    f"a tolerance is given for the output {name!r}; the model has: "
                    f"{', '.join(outputs)}"
                )

    def least_cosine(self, output: str, precision: str) -> float | None:
        """What is asked of one output's cosine; None where a tolerance judges it."""
        if any(name in ("", output) for name in (*self.atol, *self.rtol)):
            return None
        return COSINES.get(precision)

    def allowed(self, output: str, precision: str) -> tuple[float, float]:
        """The (atol, rtol) of one output of an engine.

        Raises:
            UsageError: if it is above the precision's ceiling (1e-2 for fp16, 8e-2 for bf16), or
                there is neither a preset nor a value.
        """
        return (
            _allowed("--atol", self.atol, output, precision),
            _allowed("--rtol", self.rtol, output, precision),
        )


def _parsed(option: str, values: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in values:
        output, _, number = text.rpartition(":")
        try:
            value = float(number)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise UsageError(
                f"{option} {text!r}: it must be [output:]value with a value of 0 or more, "
                "for instance 1e-3 or logits:1e-3"
            )
        if output in found:
            raise UsageError(f"{option} is given twice for {output or 'all outputs'}; give one")
        found[output] = value
    return found


def _allowed(option: str, given: Mapping[str, float], output: str, precision: str) -> float:
    preset = 0.0 if precision in COSINES else PRESETS.get(precision)
    value = given.get(output, given.get("", preset))
    if value is None:
        raise UsageError(
            f"there is no preset tolerance for {precision}; give one with --atol and --rtol"
        )
    ceiling = CEILINGS.get(precision)
    if ceiling is not None and value > ceiling:
        raise UsageError(
            f"{option} {value:g} is too loose for {precision}: at most {ceiling:g} shows that the "
            "engine is equal; keep operations in FP32 instead"
        )
    return value
