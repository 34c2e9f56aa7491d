"""The classification task without a Trainer: its losses, its metrics and the labels it refuses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cifarkit.training import ClassificationTask, CSVLogger, Trainer, Update
from cifarkit.training.tasks.classification import Loss, Mix, accuracy

IMAGES = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3, 0, 4])
WEIGHTS = [0.2, 1.0, 3.0, 0.0, 2.0]


def tiny_task(
    *, label_smoothing: float = 0.0, mix: Mix | None = None, loss: Loss | None = None, class_weights: Any = None
) -> ClassificationTask:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return ClassificationTask(
        model, optimizer, label_smoothing=label_smoothing, mix=mix, loss=loss, class_weights=class_weights
    )


def first_update(task: ClassificationTask, images: Tensor = IMAGES, labels: Tensor = LABELS) -> Update:
    return next(task.updates([images, labels]))


def swap_halves(images: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """A mix that gives each image the label of its neighbour."""
    return images * 0.5, F.one_hot(labels.roll(1), num_classes).float()


def test_the_loss_is_the_negative_log_likelihood() -> None:
    task = tiny_task()
    update, log_probabilities = first_update(task), task.model(IMAGES).log_softmax(1)
    torch.testing.assert_close(update.loss, -log_probabilities[range(6), LABELS].mean())
    assert update.optimizer == "model"
    assert update.metrics["acc"] == accuracy(log_probabilities, LABELS)
    assert len(list(task.updates([IMAGES, LABELS]))) == 1


def test_label_smoothing_spreads_a_share_of_each_label() -> None:
    task = tiny_task(label_smoothing=0.1)
    soft = F.one_hot(LABELS, 5) * 0.9 + 0.1 / 5
    expected = -(soft * task.model(IMAGES).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(first_update(task).loss, expected)
    torch.testing.assert_close(task.evaluate([IMAGES, LABELS])["loss"], tiny_task().evaluate([IMAGES, LABELS])["loss"])


def test_mix_trains_on_soft_labels_and_leaves_validation_alone() -> None:
    task = tiny_task(mix=swap_halves)
    logits = task.model(IMAGES * 0.5)
    update = first_update(task)
    torch.testing.assert_close(update.loss, F.cross_entropy(logits, LABELS.roll(1)))
    assert update.metrics["acc"] == accuracy(logits, LABELS)
    torch.testing.assert_close(task.evaluate([IMAGES, LABELS]), tiny_task().evaluate([IMAGES, LABELS]))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("mix", [None, swap_halves])
def test_class_weights_follow_their_formula(smoothing: float, mix: Mix | None) -> None:
    task = tiny_task(label_smoothing=smoothing, mix=mix, class_weights=WEIGHTS)
    images, labels = (IMAGES, LABELS) if mix is None else (IMAGES * 0.5, LABELS.roll(1))
    soft = F.one_hot(labels, 5) * (1 - smoothing) + smoothing / 5
    expected = -(torch.tensor(WEIGHTS) * soft * task.model(images).log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(first_update(task).loss, expected)


def test_weights_of_one_change_nothing() -> None:
    one, plain = tiny_task(class_weights=np.ones(5)), tiny_task()
    torch.testing.assert_close(first_update(one).loss, first_update(plain).loss)
    torch.testing.assert_close(one.evaluate([IMAGES, LABELS]), plain.evaluate([IMAGES, LABELS]))


@pytest.mark.parametrize("precision", ["fp32", "bf16-mixed"])
def test_class_weights_do_not_depend_on_the_batch_size(precision: str) -> None:
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.randn(72, 3, 4, 4, generator=generator), torch.randint(5, (72,), generator=generator)
    runs = []
    for size in (8, 72):
        batches = [*zip(images.split(size), labels.split(size), strict=True)]
        task = tiny_task(class_weights=torch.tensor(WEIGHTS), label_smoothing=0.1)
        trainer = Trainer(max_epochs=2, accumulate_grad_batches=len(batches), precision=precision, progress=False)
        runs.append(trainer.fit(task, batches, batches))
    within = 1e-6 if precision == "fp32" else 1e-2
    torch.testing.assert_close(runs[0].task.state_dict(), runs[1].task.state_dict(), rtol=0, atol=within)
    assert [row["val_loss"] for row in runs[0].history] == pytest.approx(
        [row["val_loss"] for row in runs[1].history], abs=within
    )


def test_class_weights_are_no_part_of_the_state() -> None:
    assert tiny_task(class_weights=WEIGHTS).state_dict().keys() == tiny_task().state_dict().keys()
    assert tiny_task(class_weights=WEIGHTS).to(torch.float64)._weights.dtype == torch.float64


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0, 2.0], ValueError, "class_weights has 2 numbers, but the model tells 5 classes apart; give one"),
        ([1, 1, 1, 1, -1], ValueError, "class_weights=-1 must be at least 0"),
        ({0: 1.0}, TypeError, r"class_weights=\{0: 1.0\} must hold a number for each class"),
        ([], TypeError, r"class_weights=\[\] must hold a number"),
        (2.0, TypeError, r"class_weights=2.0 must hold a number"),
        (torch.tensor(2.0), TypeError, r"class_weights=tensor\(2.\) must hold a number"),
        ([0, 0, 0, 0, 0], ValueError, "are all 0, so nothing would be learnt"),
        (torch.ones(5, 2), TypeError, "must hold a number for each class"),
    ],
)
def test_class_weights_that_are_refused(weights: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        first_update(tiny_task(class_weights=weights))


def test_a_loss_of_ones_own_gives_both_losses() -> None:
    task = tiny_task(loss=lambda logits, labels: (logits.gather(1, labels[:, None]) - 1).square().mean())
    expected = (task.model(IMAGES)[range(6), LABELS] - 1).square()
    torch.testing.assert_close(first_update(task).loss, expected.mean())
    total, count = task.evaluate([IMAGES, LABELS])["loss"]
    torch.testing.assert_close(total, expected.sum())
    assert count == 6


def test_a_loss_of_ones_own_sees_mixed_labels() -> None:
    shapes: list[torch.Size] = []

    def loss(logits: Tensor, labels: Tensor) -> Tensor:
        shapes.append(labels.shape)
        return logits.sum()

    first_update(tiny_task(mix=swap_halves, loss=loss))
    assert shapes == [(6, 5)]


def soft_cross_entropy(logits: Tensor, shares: Tensor) -> Tensor:
    return -(shares * logits.log_softmax(1)).sum(1).mean()


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), soft_cross_entropy])
def test_a_loss_of_ones_own_for_mixed_labels_serves_validation(loss: Any) -> None:
    task = tiny_task(mix=swap_halves, loss=loss)
    total, count = task.evaluate([IMAGES, LABELS])["loss"]
    torch.testing.assert_close(total / count, loss(task.model(IMAGES), F.one_hot(LABELS, 5).float()))


@pytest.mark.parametrize("class_weights", [None, WEIGHTS])
def test_generated_images_are_logged_apart(class_weights: Any, tmp_path: Path) -> None:
    generated = torch.tensor([False, False, True, True, True, True])
    task = tiny_task(label_smoothing=0.1, class_weights=class_weights)
    update = next(task.updates([IMAGES, LABELS, generated]))
    for kind, chosen in (("real", ~generated), ("generated", generated)):
        alone = first_update(task, IMAGES[chosen], LABELS[chosen])
        torch.testing.assert_close(update.metrics[f"loss_{kind}"], alone.loss)
        assert update.metrics[f"acc_{kind}"] == alone.metrics["acc"]
    assert torch.equal(update.loss, first_update(task).loss)
    assert next(task.updates([IMAGES, LABELS, generated & False])).metrics["acc_generated"].isnan()
    assert task.evaluate([IMAGES, LABELS, generated]) == task.evaluate([IMAGES, LABELS])

    trainer = Trainer(max_epochs=1, progress=False, loggers=[CSVLogger(tmp_path)])
    run = trainer.fit(task, [(IMAGES, LABELS, generated)])
    assert run.metrics["train_loss_generated"] == pytest.approx(update.metrics["loss_generated"].item())
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0]
    assert {"train_loss_real", "train_loss_generated", "train_acc_real", "train_acc_generated"} <= {*header.split(",")}


def test_with_a_loss_of_ones_own_generated_images_are_logged_by_their_cross_entropy() -> None:
    task = tiny_task(loss=F.cross_entropy)
    update = next(task.updates([IMAGES, LABELS, torch.arange(6) < 3]))
    torch.testing.assert_close(update.metrics["loss_generated"], first_update(task, IMAGES[:3], LABELS[:3]).loss)


def test_a_third_tensor_that_tells_no_kind_is_named() -> None:
    with pytest.raises(TypeError, match=r"a third tensor of a batch must be bool \(B,\), true for generated images"):
        next(tiny_task().updates([IMAGES, LABELS, LABELS]))
    with pytest.raises(ValueError, match=r"a batch must be \(images, labels\); got 4 tensors"):
        next(tiny_task().updates([IMAGES, LABELS, LABELS > 0, LABELS]))


def test_evaluate_returns_sums_and_counts() -> None:
    task = tiny_task()
    logits, results = task.model(IMAGES), task.evaluate([IMAGES, LABELS])
    torch.testing.assert_close(results["loss"], (F.cross_entropy(logits, LABELS, reduction="sum"), 6))
    torch.testing.assert_close(results["acc"], ((logits.argmax(1) == LABELS).sum(), 6))


def test_the_number_of_classes_is_read_off_the_last_layer() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    assert tiny_task().num_classes == 5
    assert ClassificationTask(nn.Flatten(), optimizer, num_classes=7).num_classes == 7
    with pytest.raises(ValueError, match=r"mix needs the number of classes .*: give num_classes"):
        first_update(ClassificationTask(nn.Flatten(), optimizer, mix=swap_halves))


@pytest.mark.parametrize(("low", "high"), [(0, 5), (-1, 4), (1, 100)])
def test_labels_out_of_range_are_refused(low: int, high: int) -> None:
    labels = torch.tensor([low, high, 1, 1, 1, 1])
    for use in (first_update, lambda task, images, labels: task.evaluate([images, labels])):
        with pytest.raises(ValueError, match=rf"labels run from {low} to {high}, but the model tells 5 classes apart"):
            use(tiny_task(), IMAGES, labels)


@pytest.mark.parametrize("labels", [LABELS.float(), LABELS.int(), F.one_hot(LABELS, 5)])
def test_labels_of_another_kind_are_refused(labels: Tensor) -> None:
    with pytest.raises(TypeError, match=rf"labels must be int64 \(B,\); got {labels.dtype} of shape \(6,"):
        first_update(tiny_task(), labels=labels)


def test_logits_of_another_shape_are_refused() -> None:
    task = ClassificationTask(nn.Conv2d(3, 5, 1), torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    with pytest.raises(ValueError, match=r"the model must return logits \(B, K\); it returned shape \(6, 5, 4, 4\)"):
        first_update(task)


def test_settings_out_of_range_are_refused() -> None:
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"label_smoothing={smoothing} must be at least 0 and below 1"):
            tiny_task(label_smoothing=smoothing)
    with pytest.raises(ValueError, match="label_smoothing applies to cross-entropy only; give it to your loss"):
        tiny_task(label_smoothing=0.1, loss=F.cross_entropy)
    with pytest.raises(ValueError, match="class_weights apply to cross-entropy only; give them to your loss"):
        tiny_task(class_weights=WEIGHTS, loss=F.cross_entropy)


def test_uint8_images_are_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"images must be float; got torch\.uint8: use cifarkit\.Loader"):
        first_update(tiny_task(), IMAGES.byte())


def test_nan_in_the_first_images_is_named() -> None:
    with pytest.raises(ValueError, match="images hold NaN or infinite values"):
        first_update(tiny_task(), torch.full_like(IMAGES, torch.nan))
