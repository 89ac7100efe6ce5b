"""Recipes turned into objects, and the jobs they do: a training run, a dry run, a validation.

This is the only place that sees a whole recipe; every object below gets its own section's values.
"""

from seresnext.assemble.training import dry_run, train
from seresnext.assemble.validation import validate

__all__ = ["dry_run", "train", "validate"]
