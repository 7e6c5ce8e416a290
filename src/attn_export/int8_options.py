"""How a bundle is quantized to INT8."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attn_export.errors import UsageError
from attn_export.portable import Say

if TYPE_CHECKING:
    from attn_export.calibration.placement import PlacementOptions


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a bundle is quantized.

    Args:
        data: requests; see ``calibration.data.stream_requests`` for the formats.
        samples: how many are calibrated with, drawn by length.
        method: ``"minmax"``, ``"percentile"``, ``"entropy"`` or ``"mse"``; ``"auto"`` tries some
            of them and takes the one that is nearest to FP32.
        exclude: regular expressions; these nodes stay as they are.
        residuals, attention: quantize these too.
        smooth: SmoothQuant's alpha, or None.
        allow_synthetic: calibrate without data, on uniform ids, which says little.
        min_agreement: least share of equal labels on the data.
        min_cosine: asked for instead of it, the mean cosine.
        say: told what is going on.
    """

    data: str | None = None
    tokenizer: Path | None = None
    samples: int = 512
    seed: int = 0
    skip_bad_rows: bool = False
    method: str = "auto"
    exclude: tuple[str, ...] = ()
    residuals: bool = False
    attention: bool = False
    smooth: float | None = None
    allow_synthetic: bool = False
    min_agreement: float = 0.99
    min_cosine: float | None = None
    say: Say = lambda text: None

    def placement(self, max_length: int) -> PlacementOptions:
        """What of it decides where INT8 goes, for sequences of up to ``max_length`` tokens."""
        from attn_export.calibration.placement import PlacementOptions

        return PlacementOptions(
            exclude=self.exclude,
            residuals=self.residuals,
            attention=self.attention,
            max_length=max_length,
        )


def require_data(options: Int8Options) -> None:
    """Refuse to calibrate on nothing, before minutes of work.

    Raises:
        UsageError: saying why.
    """
    if options.data is None and not options.allow_synthetic:
        raise UsageError(
            "INT8 needs --data: its ranges are those of real requests, random ids calibrate "
            "nothing; --allow-synthetic takes them all the same, and says so in the manifest"
        )
