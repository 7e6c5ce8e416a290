"""PyTorch as a peer: SDPA, torch.compile, autocast and INT8.

On a CPU each is run in two ways: batch after batch with all threads, as PyTorch does by default,
and one thread a batch, as many batches at a time as threads. The second is what PyTorch's CPU
launcher calls its throughput mode (``torch.backends.xeon.run_cpu --throughput_mode``), here with
threads for processes, so that the weights are held once. It wins at these lengths.
"""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from attn_export.engines.feeds import seeded_feeds
from attn_export.engines.session import Feeds
from attn_export.exporter.adapter import Adapter
from attn_export.exporter.attention import Attention
from attn_export.exporter.eager import run_eager
from attn_export.lazy import require

from .devices import CPU, GPU
from .eager import rebuild
from .peer_loop import Outputs, RunBatch, Way, one_by_one, one_thread_each
from .peer_making import PeerTask

# What kernels are tuned for: a batch of about 768 tokens, as long as tweets are.
TUNED_BATCH, TUNED_LENGTH = 24, 32


def sdpa(task: PeerTask) -> Sequence[Way]:
    """Eager, with the attention of each layer by ``scaled_dot_product_attention``.

    Shared key/value heads go in as they are (``enable_gqa``), which is no slower on a CPU than to
    repeat them.
    """
    module = rebuilt(task)
    for part in module.modules():
        if isinstance(part, Attention):
            part.forward = types.MethodType(_sdpa, part)  # type: ignore[method-assign]
    return _ways(task, lambda feeds: run_eager(module, feeds))


def _sdpa(self: Attention, x: Tensor, bias: Tensor, rows: int | None = None) -> Tensor:
    """As ``Attention.forward``: [B, S, M] and an additive mask -> [B, rows, M]."""

    def heads(states: Tensor, count: int) -> Tensor:
        return states.reshape(*states.shape[:2], count, self.head_size).transpose(1, 2)

    out = scaled_dot_product_attention(
        heads(self.query(x if rows is None else x[:, :rows]), self.num_heads),
        heads(self.key(x), self.num_kv_heads),
        heads(self.value(x), self.num_kv_heads),
        attn_mask=bias,
        enable_gqa=self.num_kv_heads < self.num_heads,
    )
    return self.output(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def bf16(task: PeerTask) -> Sequence[Way]:
    """Eager under autocast: products in BF16, where torch holds that safe."""
    module = rebuilt(task)

    def run(feeds: Feeds) -> Outputs:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return run_eager(module, feeds)

    return _ways(task, run)


def compiled(task: PeerTask) -> Sequence[Way]:
    """``torch.compile`` in its default mode, once for all shapes."""
    return _compiled(task, rebuilt(task))


def max_autotuned(task: PeerTask) -> Sequence[Way]:
    """``torch.compile(mode="max-autotune")``.

    On a CPU its GEMM templates need frozen weights, so says the tutorial; on a GPU freezing is
    not asked for.
    """
    return _compiled(task, rebuilt(task), frozen=task.device == CPU, mode="max-autotune")


def int8(task: PeerTask) -> Sequence[Way]:
    """Torchao's dynamic INT8 on each linear layer, then ``torch.compile`` with frozen weights.

    Inductor turns what torchao writes into oneDNN's INT8 products. PyTorch's other way for x86,
    ``X86InductorQuantizer`` on an exported module, reaches about 0.6 times as much at these
    lengths, static as well as dynamic, with the same error.

    Raises:
        MissingPackage: if torchao is not installed.
    """
    quantization = require("torchao", extra="peers").quantization
    module = rebuilt(task)
    quantization.quantize_(module, quantization.Int8DynamicActivationInt8WeightConfig())
    return _compiled(task, module, frozen=True)


def _compiled(
    task: PeerTask, module: Adapter, *, frozen: bool = False, mode: str | None = None
) -> Sequence[Way]:
    """Compile a module for all shapes and run it; the compilation ends before this returns.

    Inductor's loops keep the number of threads that they were compiled with unless told to ask
    for it at run time, which lets both ways share one compilation.
    """
    import torch._inductor.config as inductor

    inductor.freezing = frozen
    inductor.cpp.dynamic_threads = True
    call: Any = torch.compile(module, dynamic=True, mode=mode)
    manifest = task.bundle.manifest
    length = min(TUNED_LENGTH, manifest.max_length)
    run_eager(call, seeded_feeds(manifest.inputs, TUNED_BATCH, length))
    return _ways(task, lambda feeds: run_eager(call, feeds))


def rebuilt(task: PeerTask) -> Adapter:
    """The bundle's module on the task's device; torch then uses the task's threads."""
    torch.set_num_threads(task.threads)
    module = rebuild(task.bundle.manifest).module
    return module.to("cuda:0") if task.device == GPU else module


def _ways(task: PeerTask, run: RunBatch) -> Sequence[Way]:
    if task.device == GPU:
        return [one_by_one(run, GPU)]
    alone = one_thread_each(run, task.threads, task.stack, lambda: torch.set_num_threads(1))
    return [one_by_one(run), alone]
