"""One loop for everything that is fitted by steps of Adam."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from primaps.em.recorder import Recorder, Summary, mean_of_steps
from primaps.utils.distributed import total


def optimize(
    stage: str,
    modules: nn.ModuleDict,
    step: Callable[[int], Mapping[str, Tensor]],
    steps: int,
    learning_rate: float,
    recorder: Recorder,
    summary: Summary = mean_of_steps,
    after: Callable[[int], None] | None = None,
) -> None:
    """Run ``steps`` steps of Adam on ``modules["trained"]``, in place.

    Args:
        stage: name in progress, history and state file.
        modules: everything that changes; ``trained`` among them.
        step: from the number of the step (from 1) leaves gradients and returns figures; both are
            summed over processes.
        after: called after each step of Adam, for what follows the trained module.
    """
    trained = [p for p in modules["trained"].parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=learning_rate)
    done = recorder.restore(stage, modules, optimizer)
    for number in range(done + 1, steps + 1):
        optimizer.zero_grad()
        figures = step(number)
        for parameter in trained:
            if parameter.grad is None:  # no image of the batch is here
                parameter.grad = torch.zeros_like(parameter)
            total(parameter.grad)
        optimizer.step()
        if after:
            after(number)
        recorder.record(stage, number, steps, figures, summary)
        recorder.save(stage, number, steps, modules, optimizer)
