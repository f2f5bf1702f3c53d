"""What `tests.warm_python` imports before it forks."""

# ruff: noqa: F401
import torch.distributed.fsdp

import experiments.scene_dataset
import experiments.tiny_models
import reverse.api
import reverse.cli
import reverse.data.negatives
import reverse.demo
import reverse.evaluation.benchmarks
import reverse.evaluation.runs.benchmark_run
import reverse.training.training_run
