"""Sends the figures of a run to MLflow: `--trainer.log=mlflow_log:log`, from this file's folder.

The figures go to the folder `mlruns` unless MLFLOW_TRACKING_URI names a server.
"""

import os

import mlflow

# MLflow uses a database by default; files need no other package and no server.
os.environ.setdefault("MLFLOW_TRACKING_URI", "file:mlruns")
os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")


def log(split, step, values):
    """Logs one line of metrics.jsonl; the first call starts MLflow's run."""
    # MLflow allows no @ in names: recall@1 becomes recall_at_1.
    named = {f"{split}/{name.replace('@', '_at_')}": value for name, value in values.items()}
    mlflow.log_metrics(named, step=step)
