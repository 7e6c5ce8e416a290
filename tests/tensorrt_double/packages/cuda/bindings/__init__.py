"""The package ``cuda.bindings``, as its parent."""

import os

if "ATTN_EXPORT_DOUBLE_CUDA" in os.environ:
    __path__.append(os.path.join(os.environ["ATTN_EXPORT_DOUBLE_CUDA"], "cuda", "bindings"))  # noqa: PTH118
