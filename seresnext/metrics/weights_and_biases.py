"""A run of Weights & Biases. The variables of wandb apply: WANDB_MODE, WANDB_PROJECT, WANDB_ENTITY, WANDB_DIR, ..."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seresnext.process.packages import extra

_START_SECONDS = 60.0  # for the answer of the server; afterwards the start fails and is tried again


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the run folder, in the project `seresnext` by default.

    Without a network (`WANDB_MODE=offline`) each start of a run writes its own files, into `wandb/` of the run folder
    by default. The files of all starts have the same run id; `wandb sync` merges them. A point at an earlier step than
    the last one is dropped by W&B, so of repeated steps the first values stay.
    """

    def __init__(self, folder: Path, known: str | None, values: Mapping[str, Any]) -> None:
        with extra("track"):
            import wandb

        self._wandb = wandb
        is_valid = known is not None and re.fullmatch(r"[A-Za-z0-9_-]{1,64}", known)
        self.id = os.environ.get("WANDB_RUN_ID") or (known if known and is_valid else secrets.token_hex(4))
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "seresnext",
            name=os.environ.get("WANDB_NAME") or folder.name,
            id=self.id,
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or folder,
            settings=wandb.Settings(console="off", init_timeout=_START_SECONDS, x_stats_pid=os.getppid()),
        )
        self._run.config.update(dict(values), allow_val_change=True)
        self._run.define_metric("epoch", hidden=True)
        for name in ("validate/top1", "validate_ema/top1"):
            self._run.define_metric(name, summary="max")
        self.address = self._run.url or f"offline, wandb sync {Path(self._run.dir).parent}"

    def log(self, numbers: Mapping[str, float], step: int, epoch: float) -> None:
        """Log numbers at a step. The epoch has no chart, and can be the x axis of a chart."""
        self._run.log({**numbers, "epoch": epoch}, step=step)

    def picture(self, path: Path) -> None:
        """Log a picture at step 0."""
        self._run.log({f"train/{path.stem}": self._wandb.Image(str(path))}, step=0)

    def artifact(self, path: Path) -> None:
        """Keep a file or a folder as an artifact of the run."""
        self._run.log_artifact(path, name=f"{self.id}-{path.stem}", type="report" if path.is_dir() else "run")

    def finish(self, state: str) -> None:
        """End the run. The local files stay if the server does not answer."""
        if state == "preempted":
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if state == "finished" else 1)
