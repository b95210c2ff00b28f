"""What the plan settles from the length of a run."""

from dataclasses import replace

import torch

from openjepa.data.sources import open_data
from openjepa.experiment import Experiment
from openjepa.planning import Wishes, plan
from openjepa.training.distributed import Processes


def test_the_teacher_of_a_long_run_is_the_slower_the_longer_it_is():
    sample, alone = open_data(None), Processes(0, 1, torch.device("cpu"))

    def settled(steps: int, objective: str = "ijepa", asked: tuple[str, ...] = ()) -> tuple[float, float]:
        def small(experiment: Experiment) -> Experiment:
            training = replace(experiment.training, batch=8, replicas=1, threads=1, workers=0)
            return replace(experiment, training=training)

        wishes = Wishes(steps=steps, objective=objective, workers=0)
        return plan(sample, wishes, alone, None, override=small, asked=asked).experiment.ijepa.momentum

    assert settled(9_999) == (0.99, 1.0)
    assert settled(10_000) == (0.995, 1.0)
    assert settled(25_000) == (0.998, 1.0)
    assert settled(25_000, asked=("--ijepa.momentum",)) == (0.99, 1.0)
    assert settled(25_000, "mae") == (0.99, 1.0), "it has no teacher"
