"""pytorch-metric-learning's AccuracyCalculator on stored vectors; run by `exact_eval`."""

import json
import sys
import time

import numpy as np
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

folder = sys.argv[1]
points = torch.from_numpy(np.load(f"{folder}/points.npy"))
labels = torch.from_numpy(np.load(f"{folder}/labels.npy"))
calculator = AccuracyCalculator(
    include=("precision_at_1", "mean_average_precision_at_r"),
    k="max_bin_count",
    device=torch.device("cpu"),
    # Its alternative to FAISS, in blocks.
    knn_func=CustomKNN(CosineSimilarity(), batch_size=1024),
)
start, cpu = time.perf_counter(), time.process_time()
found = calculator.get_accuracy(points, labels)
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
print(
    json.dumps(
        {
            "seconds": seconds,
            "cpu": cpu,
            "recall@k": {"1": found["precision_at_1"]},
            "map@r": found["mean_average_precision_at_r"],
        }
    )
)
