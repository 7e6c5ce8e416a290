"""The least time that the encoder's kernels can take: Williams et al. 2009, kernel by kernel.

The engine that this counts is fused as well as engines are: four kernels a layer (one GEMM for Q, K
and V; attention; output GEMM; residual and LayerNorm), three more for a feed-forward block, and the
embedding, the pooler and the classifier once. Each reads its inputs from memory and writes its
output there; what stays in a cache takes less. Nothing is faster than its products alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from attn_export.errors import UsageError
from attn_export.spec import EncoderSpec

from .hardware import Limits


@dataclass(frozen=True, kw_only=True)
class Widths:
    """Bytes per element.

    Args:
        read: what a GEMM reads (an output in this width comes from the kernel before it).
        write: what a GEMM, a norm or the embedding writes.
        weight: of GEMM weights.
        products: the precision of the GEMMs.
        attention: the precision of the attention's own products.
    """

    read: int
    write: int
    weight: int
    products: str
    attention: str

    @property
    def norm(self) -> int:
        """A norm reads two tensors and writes one, and again where GEMMs read another width."""
        return 3 * self.write + (self.read if self.read != self.write else 0)


# int8: the weights' products in INT8, attention and residuals in FP16, as 'build --int8' does it.
WIDTHS = {
    "fp32": Widths(read=4, write=4, weight=4, products="fp32", attention="fp32"),
    "fp16": Widths(read=2, write=2, weight=2, products="fp16", attention="fp16"),
    "bf16": Widths(read=2, write=2, weight=2, products="bf16", attention="bf16"),
    "int8": Widths(read=1, write=2, weight=1, products="int8", attention="fp16"),
    "int8-all": Widths(read=1, write=1, weight=1, products="int8", attention="int8"),
}
# What computes FP16 products where a machine has no number for them.
_WIDER = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One kernel of the engine.

    Args:
        count: how often it runs in one batch.
        flops: of one run, for the whole batch.
        bytes: read and written by one run, for the whole batch, weights included.
        precision: what its products are computed in.
    """

    name: str
    count: int
    flops: float
    bytes: float
    precision: str

    @property
    def intensity(self) -> float:
        """FLOP per byte."""
        return self.flops / self.bytes


@dataclass(frozen=True, kw_only=True)
class KernelTime:
    """The least time of one kernel, all its runs together.

    Args:
        bound: what takes longest: ``"compute"``, ``"memory"`` or ``"launch"``.
    """

    kernel: Kernel
    compute_s: float
    memory_s: float
    launch_s: float
    bound: str

    @property
    def seconds(self) -> float:
        """Products and memory overlap; the launch comes on top."""
        return max(self.compute_s, self.memory_s) + self.launch_s

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {**asdict(self), "seconds": self.seconds}


@dataclass(frozen=True, kw_only=True)
class Roofline:
    """What one machine can do at most with one model and one batch.

    Args:
        note: a precision that had to stand in for another one, or nothing.
    """

    limits: Limits
    batch: int
    length: float
    dtype: str
    kernels: tuple[KernelTime, ...]
    note: str = ""

    @property
    def seconds(self) -> float:
        """The least time of one batch."""
        return sum(item.seconds for item in self.kernels)

    @property
    def samples_per_s(self) -> float:
        """The most samples a second."""
        return self.batch / self.seconds

    @property
    def products_samples_per_s(self) -> float:
        """The same if only the products took time: a limit even where a cache holds all else."""
        return self.batch / sum(item.compute_s for item in self.kernels)

    def share(self, bound: str) -> float:
        """The share of the time in kernels that are bound by ``bound``."""
        return sum(item.seconds for item in self.kernels if item.bound == bound) / self.seconds

    def to_json(self) -> dict[str, Any]:
        """A plain dict."""
        return {
            "limits": self.limits.to_json(),
            "batch": self.batch,
            "length": self.length,
            "dtype": self.dtype,
            "kernels": [item.to_json() for item in self.kernels],
            "seconds": self.seconds,
            "samples_per_s": self.samples_per_s,
            "products_samples_per_s": self.products_samples_per_s,
            "note": self.note,
        }


def widths_of(dtype: str) -> Widths:
    """A row of :data:`WIDTHS`.

    Raises:
        UsageError: if there is none.
    """
    try:
        return WIDTHS[dtype]
    except KeyError:
        raise UsageError(f"unknown dtype {dtype!r}; there are: {', '.join(WIDTHS)}") from None


def kernels(
    spec: EncoderSpec, *, batch: int, length: float, dtype: str, first_row_only: bool = False
) -> list[Kernel]:
    """Every kernel that a fused engine runs for one batch.

    Args:
        length: tokens a sample; a mean length makes the products' part exact, not the attention's.
        dtype: a key of :data:`WIDTHS`.
        first_row_only: the last layer computes the row alone that the classifier reads.

    Raises:
        UsageError: if the dtype is unknown, or batch or length are not positive.
    """
    if batch < 1 or length <= 0:
        raise UsageError(f"batch {batch}, length {length}: both must be at least 1")
    widths, m, classes = widths_of(dtype), spec.hidden_size, spec.num_classes
    tokens = batch * length
    embedding = Kernel(
        name="embedding",
        count=1,
        flops=0,
        bytes=3 * tokens * m * widths.write,
        precision=widths.attention,
    )
    first = _layer(spec, widths, batch=batch, length=length, rows=length)
    if first_row_only:
        layers = [replace(item, count=spec.num_layers - 1) for item in first]
        last = _layer(spec, widths, batch=batch, length=length, rows=1)
        layers += [replace(item, name=f"{item.name}, last") for item in last]
    else:
        layers = [replace(item, count=spec.num_layers) for item in first]
    # One row of each sample: these stay in the wider type, as the calibration leaves them.
    head = replace(widths, read=widths.write, weight=widths.write, products=widths.attention)
    return [
        embedding,
        *(item for item in layers if item.count),
        _gemm("pooler", head, batch, m, m, out=widths.write),
        _gemm("classifier", head, batch, m, classes, out=widths.write),
    ]


def _gemm(name: str, widths: Widths, rows: float, k: int, n: int, *, out: int) -> Kernel:
    """[rows, k] x [k, n], bias and activation in its epilogue."""
    moved = rows * k * widths.read + k * n * widths.weight + rows * n * out
    return Kernel(
        name=name, count=1, flops=2 * rows * k * n, bytes=moved, precision=widths.products
    )


def _layer(
    spec: EncoderSpec, widths: Widths, *, batch: int, length: float, rows: float
) -> list[Kernel]:
    """One layer that computes ``rows`` rows of each sample: all of them, or the first."""
    m, kv = spec.hidden_size, 2 * spec.num_kv_heads * spec.head_size
    tokens, queries = batch * length, batch * rows
    projected = queries * m + tokens * kv  # elements of Q, K and V
    qkv = Kernel(
        name="QKV GEMM",
        count=1,
        flops=2 * m * projected,
        bytes=tokens * m * widths.read + m * (m + kv) * widths.weight + projected * widths.write,
        precision=widths.products,
    )
    attention = Kernel(
        name="attention",
        count=1,
        flops=4 * queries * length * m,
        bytes=projected * widths.write + queries * m * widths.read,
        precision=widths.attention,
    )
    norm = Kernel(
        name="residual + norm",
        count=1,
        flops=0,
        bytes=queries * m * widths.norm,
        precision=widths.attention,
    )
    layer = [qkv, attention, _gemm("output GEMM", widths, queries, m, m, out=widths.write), norm]
    if spec.ffn_size:
        layer += [
            _gemm("FFN up", widths, queries, m, spec.ffn_size, out=widths.read),
            _gemm("FFN down", widths, queries, spec.ffn_size, m, out=widths.write),
            replace(norm, name="FFN norm"),
        ]
    return layer


def roofline(
    spec: EncoderSpec,
    *,
    batch: int,
    length: float,
    dtype: str,
    limits: Limits,
    first_row_only: bool = False,
) -> Roofline:
    """The least time of each kernel: the longer of its products and its bytes, and its launch.

    Raises:
        UsageError: as :func:`kernels`, or if the tier has no number for the dtype.
    """
    widths = widths_of(dtype)
    speeds = {widths.products: limits.flops_of(widths.products)}
    stand_in = next((name for name in _WIDER if name in limits.flops), None)
    note = ""
    if widths.attention not in limits.flops and stand_in:
        speeds[widths.attention] = limits.flops[stand_in]
        note = f"attention's products at the speed of {stand_in}"
    else:
        speeds[widths.attention] = limits.flops_of(widths.attention)
    found = kernels(spec, batch=batch, length=length, dtype=dtype, first_row_only=first_row_only)
    return Roofline(
        limits=limits,
        batch=batch,
        length=length,
        dtype=dtype,
        kernels=tuple(_time(item, limits, speeds[item.precision]) for item in found),
        note=note,
    )


def _time(kernel: Kernel, limits: Limits, flops_per_s: float) -> KernelTime:
    parts = {
        "compute": kernel.count * kernel.flops / flops_per_s,
        "memory": kernel.count * kernel.bytes / limits.bytes_per_s,
        "launch": kernel.count * limits.launch_s,
    }
    return KernelTime(
        kernel=kernel,
        compute_s=parts["compute"],
        memory_s=parts["memory"],
        launch_s=parts["launch"],
        bound=max(parts, key=lambda name: parts[name]),
    )
