"""Settings of a model on a device: precision, memory format, compilation, determinism."""

from seresnext.runtime.compilation import compile_forward, resolve_compile
from seresnext.runtime.determinism import make_deterministic
from seresnext.runtime.memory import tune_malloc
from seresnext.runtime.precision import PRECISIONS, Precision, resolve_precision

__all__ = [
    "PRECISIONS",
    "Precision",
    "compile_forward",
    "make_deterministic",
    "resolve_compile",
    "resolve_precision",
    "tune_malloc",
]
