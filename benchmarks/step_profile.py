"""Where does the time of a training step of a ResNet-18 go?

    python benchmarks/step_profile.py            # half a minute on two quiet cores
    python benchmarks/step_profile.py --tiny     # seconds, to see that it runs

PyTorch's profiler watches some updates of the Trainer in bf16 and sorts the time in which an operator itself works, and
not another one that it calls, by what the operator is for. What the sum leaves of a step is Python and the profiler.
"""

from __future__ import annotations

import re
import time

import torch
from report import Report, Table, arguments, destination
from torch.profiler import ProfilerActivity, profile

from cifarkit import Callback, ClassificationTask, Run, Trainer
from cifarkit.models import resnet18

KINDS = (  # what it is for -> names of operators; the first that fits counts
    ("convolution, backward", r"convolution_backward"),
    ("convolution, forward", r"convolution"),
    ("BatchNorm", r"batch_norm"),
    ("ReLU", r"relu|clamp_min|threshold_backward"),
    ("copies and casts", r"copy_|_to_copy|clone|contiguous|empty|zero"),
    ("sums of branches, and the optimizer's", r"add|mul_|_foreach|_fused"),
)


class Watch(Callback):
    """Profile from one update to another, and stop."""

    def __init__(self, first: int, count: int) -> None:
        self.first, self.last, self.profiler = first, first + count, profile(activities=[ProfilerActivity.CPU])
        self.seconds = 0.0

    def on_step_end(self, run: Run) -> None:
        if run.step == self.first:
            self.profiler.start()
            self.seconds = -time.perf_counter()
        elif run.step == self.last:
            self.seconds += time.perf_counter()
            self.profiler.stop()
            run.stop("enough updates")


def kind_of(operator: str) -> str:
    """Return what an operator is for."""
    return next((kind for kind, names in KINDS if re.search(names, operator)), "other operators")


def main() -> None:
    options = arguments(__doc__, "step_profile").parse_args()
    batch, warm_up, count = (8, 1, 1) if options.tiny else (128, 4, 8)
    torch.manual_seed(0)
    batches = [(torch.randn(batch, 3, 32, 32), torch.randint(10, (batch,)))] * (warm_up + count)
    model, watch = resnet18(), Watch(warm_up, count)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    trainer = Trainer(max_epochs=1, precision="bf16-mixed", callbacks=[watch], progress=False)
    trainer.fit(ClassificationTask(model, optimizer), batches)
    spent: dict[str, float] = {}
    for event in watch.profiler.key_averages():
        kind = kind_of(event.key)
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total / 1e6 / count  # microseconds of all updates
    step = watch.seconds / count
    rows = [
        [kind, f"{1e3 * seconds:.0f}", f"{seconds / step:.1%}"] for kind, seconds in sorted(spent.items(), key=by_time)
    ]
    title = f"ResNet-18, {batch} images in bf16, {1e3 * step:.0f} ms a step"
    report = Report("step_profile", {"batch": batch, "updates": count})
    report.tables.append(Table(title, ["what", "milliseconds", "share"], rows))
    report.figures = {"seconds_a_step": step, "seconds": spent}
    report.publish(destination(options, "step_profile"))


def by_time(item: tuple[str, float]) -> float:
    """Sort the longest first."""
    return -item[1]


if __name__ == "__main__":
    main()
