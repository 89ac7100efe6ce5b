"""A run of MLflow. The variables of mlflow apply: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME, MLFLOW_RUN_ID, ..."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seresnext.process.packages import extra

_STATUS = {"finished": "FINISHED", "failed": "FAILED", "running": "RUNNING"}


class Mlflow:
    """A run of MLflow with the name of the run folder, in the experiment `seresnext` by default.

    The default store is mlflow's own, in the current folder. MLflow keeps every point, so repeated steps have two.
    A store without the known run gets a new run.
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
