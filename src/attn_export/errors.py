"""Every error this package raises on purpose, and the exit code each one carries.

AttnExportError
├── GateFailed           1  a gate ran to its end and said no
├── UsageError           2  the call itself is wrong: options, model name, dimensions
│   └── InputError       2  data at run time: missing, wrong dtype, rank, length or id
├── HostError            3  this machine cannot do it: GPU, driver, disk, a lock
│   └── MissingPackage   3  an optional package that is not installed
├── BuildFailed          4  the model, its export or its engine failed
├── BundleError          4  a bundle that is broken, altered or from a newer version
└── Inconclusive         5  the noise is larger than the difference asked about

Messages say what was got, what is allowed and what to do.
"""

from __future__ import annotations


class AttnExportError(Exception):
    """Base class of the tree; never raised itself."""

    exit_code = 4


class GateFailed(AttnExportError):
    """A parity or performance gate ran to its end and was not met."""

    exit_code = 1


class UsageError(AttnExportError):
    """The call is wrong: an option, a model name, a dimension."""

    exit_code = 2


class InputError(UsageError, ValueError):
    """An input array or sequence does not fit the engine's inputs."""


class HostError(AttnExportError):
    """This machine cannot do what was asked."""

    exit_code = 3


class MissingPackage(HostError):
    """An optional package is needed and is not installed.

    Args:
        module: the import name, for instance ``"onnxruntime"``.
        extra: the extra of attn-export that installs it.
    """

    def __init__(self, module: str, extra: str) -> None:
        super().__init__(f"{module} is not installed; run: pip install 'attn-export[{extra}]'")
        self.module = module
        self.extra = extra


class BuildFailed(AttnExportError):
    """The model could not be made, exported or compiled."""


class BundleError(AttnExportError):
    """A bundle is incomplete, altered, or written by a newer version."""


class Inconclusive(AttnExportError):
    """Measurements are too noisy to answer the question."""

    exit_code = 5
