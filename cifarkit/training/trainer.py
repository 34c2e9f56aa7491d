"""The one training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import torch

from cifarkit.checks import check_integer, check_items, check_number
from cifarkit.layout import lay_out
from cifarkit.memory import keep_freed_memory
from cifarkit.training import distributed
from cifarkit.training.accumulation import AccumulationPlan
from cifarkit.training.callbacks import Callback
from cifarkit.training.checkpoint import explain_resuming, find_checkpoint, load_checkpoint
from cifarkit.training.clipping import clip_gradients
from cifarkit.training.contract import check_task, check_trainable, check_update, stages_of
from cifarkit.training.evaluation import evaluate
from cifarkit.training.fallback import FirstAttempt, compile_networks, fall_back_to_eager, fall_back_to_usual_layout
from cifarkit.training.interrupts import Interrupted, InterruptGuard
from cifarkit.training.loading import iterating, require_batches
from cifarkit.training.loggers import Logger
from cifarkit.training.meters import NonFiniteLossError
from cifarkit.training.precision import SMALLEST_SCALE, Precision, choose_device, step_scaled
from cifarkit.training.progress import ProgressBar
from cifarkit.training.resuming import naming, restore_callbacks, restore_random_states, unchanged_by_a_failure
from cifarkit.training.run import Run
from cifarkit.training.schedules import Schedule, check_schedule, constant, scheduled_rates, set_rates
from cifarkit.training.task import Batch, Task, Update, metric_name


class Trainer:
    """Train a task: forward, backward, accumulate, clip, step, and everything around it.

    Args:
        max_epochs, max_steps: when to end; at least one is needed, the first reached counts.
        precision: "fp32", "bf16-mixed", "fp16-mixed", or "auto": bf16-mixed where the device has it, else fp32.
        accumulate_grad_batches: micro-batches an update, or {first epoch: number}, epochs from 0. Every sample weighs
            the same, so the result is that of one big batch, also in the short last window of an epoch.
        gradient_clip_val: bound on the gradient, None for none.
        gradient_clip_algorithm: "norm" bounds the norm over an optimizer's parameters, "value" every entry.
        schedule: function of progress in [0, 1] that multiplies the optimizers' rates; None keeps them.
        callbacks, loggers: see :class:`Callback` and :class:`Logger`.
        device: "auto" takes CUDA if there is one, each process of torchrun its own.
        compile: compile the networks; if that fails the run goes on without, and says so.
        progress: show a bar, or a line an epoch where stdout is no terminal.
        log_every_n_steps: updates between two log steps. Metrics leave the device then, at the end of an epoch and of
            the run, and when a checkpoint is written.
    Raises:
        ValueError: if an argument is out of range, or the device cannot do the precision.
        TypeError: if a callback is no Callback.
    """

    def __init__(
        self,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        precision: str = "fp32",
        accumulate_grad_batches: int | Mapping[int, int] = 1,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str = "norm",
        schedule: Schedule | None = None,
        callbacks: Sequence[Callback] = (),
        loggers: Sequence[Logger] = (),
        device: str | torch.device = "auto",
        compile: bool = False,
        progress: bool = True,
        log_every_n_steps: int = 50,
    ) -> None:
        if max_epochs is None and max_steps is None:
            raise ValueError("max_epochs and max_steps are both None: give at least one, so that training ends")
        if gradient_clip_algorithm not in ("norm", "value"):
            raise ValueError(f"gradient_clip_algorithm={gradient_clip_algorithm!r} is unknown; use 'norm' or 'value'")
        self.max_epochs = None if max_epochs is None else check_integer("max_epochs", max_epochs, 0)
        self.max_steps = None if max_steps is None else check_integer("max_steps", max_steps, 0)
        self.device = choose_device(distributed.own_device(device))
        self.precision = Precision(precision, self.device)
        self.accumulation = AccumulationPlan(accumulate_grad_batches)
        self.clip_algorithm = gradient_clip_algorithm
        clips = gradient_clip_val is not None
        self.clip_bound = check_number("gradient_clip_val", gradient_clip_val, 0, above=True) if clips else None
        self.schedule = check_schedule(schedule or constant())
        self.callbacks = check_items("callbacks", callbacks, Callback)
        self.loggers = check_items("loggers", loggers, Logger)
        self.compile, self.progress = compile, progress
        self.log_every_n_steps = check_integer("log_every_n_steps", log_every_n_steps, 1)

    # One update: the core of the library.

    def train_step(self, run: Run, micro_batches: Sequence[Batch]) -> bool:
        """Run every stage of the task once, its gradient averaged over the samples of micro_batches, on all ranks.

        Returns False if fp16 overflowed and no optimizer stepped.
        """
        counts = [len(batch[0]) for batch in micro_batches]
        run.stepped, total = False, sum(counts)
        images = total
        stages = [stages_of(run.task, batch) for batch in micro_batches]
        while True:
            names: list[str | None] = []
            for stage, count in zip(stages, counts, strict=True):
                names.append(self._accumulate(run, stage, count, total, fresh=not names))
            if len(set(names)) > 1:
                raise RuntimeError(f"the micro-batches of one window disagree on the next optimizer: {names}")
            if names[0] is None:
                run.images += images
                return run.stepped
            images = distributed.average_gradients(run.task.optimizers[names[0]], total)
            run.stepped = self.apply(run, names[0]) or run.stepped

    def _accumulate(self, run: Run, stage: Iterator[Update], count: int, total: int, *, fresh: bool) -> str | None:
        """Add the gradient of a micro-batch's next loss; return the name of its optimizer, None after the last."""
        with self.precision.autocast():  # forward and loss only; the region ends before backward
            update = next(stage, None)
        if update is None:
            return None
        check_update(update, run.task)
        loss = update.loss if count == total else update.loss * (count / total)
        if fresh:  # not sooner: so backward takes over their memory, and forward the memory of the last activations
            run.drop_gradients()
        run.scalers[update.optimizer].scale(loss).backward()  # type: ignore[no-untyped-call]
        run.add_metrics(update, count)
        return update.optimizer

    def apply(self, run: Run, name: str) -> bool:
        """Step one optimizer; return False if fp16 overflowed."""
        optimizer, scaler = run.task.optimizers[name], run.scalers[name]
        set_rates(optimizer, run.schedule(run.progress))
        scaler.unscale_(optimizer)
        measured = self.clip_bound is not None or run.at_log_step
        norm = clip_gradients(optimizer, self.clip_bound, self.clip_algorithm) if measured else None
        stepped = step_scaled(scaler, optimizer)
        if norm is not None and run.at_log_step and stepped:  # the norm of a skipped step is infinite
            run.meters.add(metric_name(name, "grad_norm"), norm, 1, run.step)
        if not stepped and scaler.get_scale() < SMALLEST_SCALE:
            raise NonFiniteLossError(f"the gradient of {name!r} is not finite at step {run.step}", run.step)
        return stepped

    # The fit around it.

    @distributed.process_group()
    def fit(
        self,
        task: Task,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any] | None = None,
        *,
        resume: str | Path | None = None,
    ) -> Run:
        """Train the task, validating after each epoch.

        Args:
            task: what to train; its networks are moved to the device, and are in evaluation mode afterwards.
            train_loader: any iterable of batches with a length. ``Loader`` resumes exactly in mid-epoch; of another
                loader the used batches are drawn again and passed over.
            val_loader: the same, or None.
            resume: a checkpoint file or the folder of its last.pt; or "auto", the last.pt of this trainer's
                ModelCheckpoint if it exists yet. Training goes on bit for bit on the same machine, versions and
                number of threads.
        Returns:
            the run, with its history, counters and the reason why it stopped early.
        Raises:
            FileNotFoundError: if resume is no file.
            TypeError, ValueError: for an empty loader, or a checkpoint that is damaged or of another model.
            NonFiniteLossError: if a loss is infinite or NaN; found at the next log step, and before any save. Also if
                the fp16 gradients overflow at every scale.
            SystemExit: 143 on SIGTERM and 130 on Ctrl-C, to any process, after the update is finished and saved.
            KeyboardInterrupt: instead on Ctrl-C in an interactive interpreter, such as a notebook, which lives on.
        """
        if self.device.type == "cpu":
            keep_freed_memory()
        bar = [ProgressBar()] if self.progress and distributed.rank() == 0 else []
        loggers = [*self.loggers, *bar] if distributed.rank() == 0 else []
        run = Run(self, check_trainable(task), train_loader, val_loader, [*self.callbacks, *bar], loggers)
        with scheduled_rates(task.optimizers), InterruptGuard() as guard, ExitStack() as at_the_end:
            for logger in loggers:
                at_the_end.callback(logger.close, run)
            at_the_end.callback(task.eval)
            at_the_end.callback(run.drop_gradients)
            try:
                self._prepare(run, distributed.from_first_rank(lambda: find_checkpoint(resume, self.callbacks)))
                self._run_epochs(run, guard)
            except NonFiniteLossError as error:
                message = run.explain(error)
                run.stop(message)
                raise NonFiniteLossError(message, error.step) from None
        return run

    @distributed.process_group()
    def evaluate(self, task: Task, loader: Iterable[Any], *, guard: InterruptGuard | None = None) -> dict[str, float]:
        """Return the task's metrics over a loader, each the mean over all samples: ``val_loss``, ``val_acc``."""
        require_batches("loader", loader)
        arguments = (check_task(task).to(self.device), loader, self.device, self.precision.autocast, guard)
        try:
            return evaluate(*arguments)
        except RuntimeError as error:
            if not fall_back_to_usual_layout(task, error):
                raise
        return evaluate(*arguments)

    def is_finished(self, run: Run) -> bool:
        """Tell whether the run has been stopped or has done all its epochs or updates."""
        out_of_steps = self.max_steps is not None and run.step >= self.max_steps
        out_of_epochs = self.max_epochs is not None and run.epoch >= self.max_epochs
        return run.stopped_because is not None or out_of_steps or out_of_epochs

    def _prepare(self, run: Run, checkpoint: Path | None) -> None:
        lay_out(run.task.to(self.device), run.task.layout)
        if self.compile:
            compile_networks(run.task)
        state = distributed.from_first_rank(lambda: load_checkpoint(checkpoint)) if checkpoint else None
        with unchanged_by_a_failure(run) if state is not None else nullcontext():
            if state is not None:
                with naming(checkpoint):
                    run.load_state_dict(state)
                run.last_checkpoint = str(checkpoint)
            distributed.share_weights(run.task)
            for callback in run.callbacks:
                callback.on_fit_start(run)
                run.schedule = callback.bend_schedule(run.schedule, run)
            if state is not None:
                with naming(checkpoint):
                    restore_callbacks(run, state["callbacks"])
        for logger in run.loggers:
            logger.start(run)
        restore_random_states(state)
        run.position.mark()
        run.stopped_because = next(filter(None, distributed.gather(run.stopped_because)), None)

    def _run_epochs(self, run: Run, guard: InterruptGuard) -> None:
        try:
            while run.lacks_a_row or not self.is_finished(run):  # the end of an epoch may have been interrupted
                self._run_epoch(run, guard)
            run.notify("on_fit_end")
            distributed.heed(guard)
        except Interrupted:
            run.stop(f"{guard.name} was received; {explain_resuming(run.callbacks)}")
            run.notify("on_interrupt")
            raise guard.leaving from None

    def _run_epoch(self, run: Run, guard: InterruptGuard) -> None:
        run.history[:] = [row for row in run.history if row["epoch"] < run.epoch]  # without that of a part of this one
        run.is_open = True
        run.notify("on_epoch_start")
        run.stopped_because = distributed.heed(None, run.stopped_because)
        run.task.train()
        with iterating(run.open_loader()) as batches:
            whole = self._run_batches(run, batches, guard)
        distributed.average_statistics(run.task)
        # An interruption of the validation leaves the epoch open, and the resumed run validates again.
        validation = self.evaluate(run.task, run.val_loader, guard=guard) if run.val_loader is not None else {}
        run.require_finite(validation)
        run.end_epoch(validation, whole)
        run.stopped_because = distributed.heed(guard, run.stopped_because)

    def _run_batches(self, run: Run, batches: Iterator[Batch], guard: InterruptGuard) -> bool:
        """Train on the batches of an epoch; return False if the run ended before the last of them."""
        factor = self.accumulation.factor(run.epoch)
        if (
            factor == 1 and distributed.world_size() == 1
        ):  # of more, some may be counted as used; other ranks would wait
            batches = guard.excusing(batches)
        while run.batches in (0, run.batches_in_epoch) or not self.is_finished(run):
            if not (window := run.take(batches, factor)):
                return True
            last = run.batches_left == 0 or run.step + 1 == run.total_steps
            run.at_log_step = last or (run.step + 1) % self.log_every_n_steps == 0
            stepped = self._train_step_or_fall_back(run, window)
            run.step += stepped
            if run.at_log_step:
                run.log()
            if stepped:
                for hook in run.step_hooks:
                    hook(run)
            run.stopped_because = distributed.heed(guard, run.stopped_because)
        return False

    def _train_step_or_fall_back(self, run: Run, window: Sequence[Batch]) -> bool:
        before = None if run.has_updated else FirstAttempt(run.task)
        while True:
            try:
                stepped, run.has_updated = self.train_step(run, window), True
                return stepped
            except Exception as error:
                if run.stepped:  # repeating the window would step an optimizer of an earlier stage twice
                    raise
                if not fall_back_to_usual_layout(run.task, error):
                    fall_back_to_eager(run.task, error)  # raises anything that is not the compiler's fault
                window = [run.to_device(batch) for batch in window]
                run.meters.forget(run.step)
                if before is not None:
                    before.undo()
