"""The training loop: schedules, optimizer, processes, checkpoints, metrics. It knows no concrete Objective."""
