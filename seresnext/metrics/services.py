"""The tracking services: a run of Weights & Biases, and a run of MLflow. Methods raise the errors of the service.

The variables of wandb and mlflow apply (docs/logging.md).
"""

import os
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seresnext.process.packages import extra

_START_SECONDS = 60.0  # for the answer of W&B; afterwards the start fails and is tried again
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


class WeightsAndBiases:
    """A run of Weights & Biases with the name of the run folder, in the project `seresnext` by default.

    Offline, each start of a run writes its own files with the same run id; `wandb sync` merges them. W&B drops a point
    at an earlier step than the last one, so of repeated steps the first values stay.
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


class Mlflow:
    """A run of MLflow with the name of the run folder, in the experiment `seresnext` by default.

    MLflow keeps every point, so repeated steps have two. A store without the known run gets a new run.
    """

    def __init__(self, folder: Path, known: str | None, values: Mapping[str, Any]) -> None:
        # By default mlflow tries an unreachable server for some ten minutes.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "8")
        with extra("track"):
            import mlflow

        self._mlflow = mlflow
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys():
            mlflow.set_experiment("seresnext")
        known, found = os.environ.get("MLFLOW_RUN_ID") or known or "", []
        if re.fullmatch(r"[0-9a-f]{32}", known):
            found = mlflow.search_runs(filter_string=f"attributes.run_id = '{known}'", output_format="list")
        options: dict[str, Any] = {"run_id": known} if found else {"run_name": folder.name}
        run = mlflow.active_run() or mlflow.start_run(**options)  # Active: an earlier try has failed after the start.
        self.id, self.address = run.info.run_id, f"run {run.info.run_id} in {mlflow.get_tracking_uri()}"
        mlflow.log_params({name: value for name, value in values.items() if name not in run.data.params})

    def log(self, numbers: Mapping[str, float], step: int, epoch: float) -> None:
        """Log numbers at a step."""
        self._mlflow.log_metrics(dict(numbers), step=step)

    def artifact(self, path: Path) -> None:
        """Keep a file, or a folder with all files, under its name."""
        self._mlflow.log_artifact(str(path))

    picture = artifact

    def finish(self, state: str) -> None:
        """End the run. A preempted run is shown as killed until a resume."""
        self._mlflow.end_run(_STATUS.get(state, "KILLED"))


SERVICES = {"wandb": WeightsAndBiases, "mlflow": Mlflow}
