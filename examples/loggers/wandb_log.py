"""Sends the figures of a run to Weights & Biases: `--trainer.log=wandb_log:log`, from this folder.

`WANDB_MODE=offline` keeps them in the folder `wandb`; send them later with `wandb sync`.
"""

import wandb


def log(split, step, values):
    """Logs one line of metrics.jsonl; the first call starts the run."""
    run = wandb.run or wandb.init(project="prototrain")
    run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)
