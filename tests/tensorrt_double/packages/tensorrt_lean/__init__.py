"""A double of TensorRT's lean runtime; ``ATTN_EXPORT_DOUBLE_LEAN_SURFACE`` names its JSON."""

import importlib
import os

importlib.import_module("inside_tensorrt.module").fill(
    globals(), os.environ["ATTN_EXPORT_DOUBLE_LEAN_SURFACE"], lean=True
)
