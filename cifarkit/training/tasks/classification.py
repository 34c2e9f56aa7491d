"""Image classification: one network, one loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cifarkit.checks import check_callable, check_number, check_numbers
from cifarkit.training.task import Batch, Task, Update

Loss = Callable[[Tensor, Tensor], Tensor]
Mix = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class ClassificationTask(Task):
    """Train a network to classify images by cross-entropy, the negative log-likelihood of the log-softmax.

    Batches are (images (B, C, H, W), labels (B,)). With a third tensor, bool (B,), true for generated images, as
    ``MixedLoader(tell_apart=True)`` gives them, the cross-entropy and the accuracy of both kinds are logged apart in
    training: ``train_loss_real``, ``train_loss_generated``, ``train_acc_real``, ``train_acc_generated``.

    Args:
        model: images (B, C, H, W) -> logits (B, K).
        optimizer: of the model's parameters.
        label_smoothing: share of each label that is spread over all classes, in [0, 1) (Szegedy et al. 2016).
        mix: ``transforms.Mixup`` or ``CutMix``, used in training only; ``train_acc`` then compares with the label of
            the first image of each pair.
        loss: (logits (B, K), labels) -> scalar mean, instead of cross-entropy, in validation, too; labels are int64,
            (B,), or float32, (B, K), with mix. Without it the validation loss is cross-entropy without smoothing.
        class_weights: K numbers from 0, how much each class counts in both losses; the loss of an image is
            -sum_k w_k q_k log p_k, of its label q, smoothed and mixed, and the probabilities p. The mean is over the
            images, not over the sum of their weights as in PyTorch, so it does not depend on how they are batched.
        num_classes: K; None reads it off the model's last linear layer.
    Raises:
        ValueError: if label_smoothing or a weight is out of range, or labels or weights do not fit the logits.
        TypeError: if labels are not int64, or class_weights are no sequence of numbers.
    """

    _weights: Tensor | None

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        label_smoothing: float = 0.0,
        mix: Mix | None = None,
        loss: Loss | None = None,
        class_weights: Sequence[float] | Tensor | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"give ClassificationTask a network and its optimizer, both built, in this order; got "
                f"{type(model).__name__} and {optimizer if isinstance(optimizer, type) else type(optimizer).__name__}"
            )
        if mix is not None:
            check_callable("mix", mix, "give Mixup(alpha) or CutMix(alpha)")
        if loss is not None:
            check_callable("loss", loss, "give a function of logits and labels, such as nn.CrossEntropyLoss()")
        label_smoothing = check_number("label_smoothing", label_smoothing, 0, 1, below=True)
        if loss is not None and label_smoothing:
            raise ValueError("label_smoothing applies to cross-entropy only; give it to your loss instead")
        if loss is not None and class_weights is not None:
            raise ValueError("class_weights apply to cross-entropy only; give them to your loss instead")
        self.model = model
        self.optimizers = {"model": optimizer}
        self.label_smoothing, self.mix, self.loss = label_smoothing, mix, loss
        self.class_weights = None if class_weights is None else _check_class_weights(class_weights)
        # No part of the state, so that checkpoints of runs with and without fit each other.
        weights = None if self.class_weights is None else torch.tensor(self.class_weights)
        self.register_buffer("_weights", weights, persistent=False)
        self.num_classes = num_classes if num_classes is not None else _count_classes(model)
        self._checked = False

    def updates(self, batch: Batch) -> Iterator[Update]:
        images, labels = self._checked_batch(batch)
        targets = labels
        if self.mix is not None:
            images, targets = self.mix(images, labels, self._require_num_classes())
        logits = self._checked_logits(self.model(images), labels)
        if self.loss is not None:
            loss = self.loss(logits, targets)
        else:
            loss = self._cross_entropy(logits, targets, self.label_smoothing)
        metrics = {"acc": accuracy(logits.detach(), labels)}
        if len(batch) == 3:
            metrics |= self._told_apart(logits.detach(), targets, labels, batch[2])
        yield Update(loss, "model", metrics)

    def evaluate(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        images, labels = self._checked_batch(batch)
        logits = self._checked_logits(self.model(images), labels).float()
        if self.loss is not None:
            targets = labels if self.mix is None else F.one_hot(labels, logits.shape[1]).float()
            loss = self.loss(logits, targets) * len(labels)
        else:
            loss = self._weighted_cross_entropy(logits, labels)
        correct = (logits.argmax(1) == labels).sum()
        return {"loss": (loss, len(labels)), "acc": (correct, len(labels))}

    def _cross_entropy(self, logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
        if self._weights is None:
            return F.cross_entropy(logits, targets, label_smoothing=smoothing)
        return self._weighted_cross_entropy(logits, targets, smoothing) / len(logits)

    def _weighted_cross_entropy(
        self, logits: Tensor, targets: Tensor, smoothing: float = 0.0, reduction: str = "sum"
    ) -> Tensor:
        weights = self._weights
        if weights is not None:  # which must have the dtype of the logits, and more digits than half precision has
            dtype = torch.promote_types(logits.dtype, torch.float32)
            logits, weights = logits.to(dtype), weights.to(dtype)
        return F.cross_entropy(logits, targets, weights, reduction=reduction, label_smoothing=smoothing)

    def _told_apart(self, logits: Tensor, targets: Tensor, labels: Tensor, generated: Tensor) -> dict[str, Tensor]:
        """Return the means over real and over generated images; NaN for a kind that the batch lacks."""
        losses = self._weighted_cross_entropy(logits.float(), targets, self.label_smoothing, reduction="none")
        right, found = (logits.argmax(1) == labels).float(), dict[str, Tensor]()
        for kind, chosen in (("real", ~generated), ("generated", generated)):
            found[f"loss_{kind}"] = (losses * chosen).sum() / chosen.sum()  # no selection, which would wait for a GPU
            found[f"acc_{kind}"] = (right * chosen).sum() / chosen.sum()
        return found

    # Only the first batch is looked at, which costs a synchronisation, for mistakes that would fail obscurely.

    def _checked_batch(self, batch: Batch) -> tuple[Tensor, Tensor]:
        if len(batch) not in (2, 3):
            raise ValueError(f"a batch must be (images, labels); got {len(batch)} tensors")
        images, labels = batch[:2]
        if self._checked:
            return images, labels
        if not images.is_floating_point():
            raise TypeError(f"images must be float; got {images.dtype}: use cifarkit.Loader, or images.float() / 255")
        if not images.isfinite().all():
            raise ValueError("images hold NaN or infinite values in the first batch; look at the data and transforms")
        if labels.dtype != torch.int64 or labels.dim() != 1:
            raise TypeError(f"labels must be int64 (B,); got {labels.dtype} of shape {tuple(labels.shape)}")
        if len(batch) == 3 and (batch[2].dtype != torch.bool or batch[2].shape != labels.shape):
            got = f"{batch[2].dtype} of shape {tuple(batch[2].shape)}"
            raise TypeError(f"a third tensor of a batch must be bool (B,), true for generated images; got {got}")
        return images, labels

    def _checked_logits(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self._checked:
            return logits
        if logits.dim() != 2:
            raise ValueError(f"the model must return logits (B, K); it returned shape {tuple(logits.shape)}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= logits.shape[1]:
            raise ValueError(
                f"labels run from {low} to {high}, but the model tells {logits.shape[1]} classes apart; "
                f"build it with num_classes={high + 1} or more, labels from 0"
            )
        if self.class_weights is not None and len(self.class_weights) != logits.shape[1]:
            raise ValueError(
                f"class_weights has {len(self.class_weights)} numbers, but the model tells {logits.shape[1]} classes "
                "apart; give one number a class"
            )
        self._checked = True
        return logits

    def _require_num_classes(self) -> int:
        if self.num_classes is None:
            raise ValueError("mix needs the number of classes and the model has no linear layer: give num_classes")
        return self.num_classes


def accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of images (B,) whose largest logit (B, K) is the label's, as a scalar in [0, 1]."""
    return (logits.argmax(1) == labels).float().mean()


def _check_class_weights(weights: Any) -> tuple[float, ...]:
    several = isinstance(weights, (Sequence, Tensor, np.ndarray)) and not isinstance(weights, str)
    if not several or getattr(weights, "ndim", 1) != 1 or not len(weights):
        raise TypeError(f"class_weights={weights!r} must hold a number for each class, as [1.0, 2.5] does for two")
    numbers = check_numbers("class_weights", weights, 0)
    if not any(numbers):
        raise ValueError(f"class_weights={weights!r} are all 0, so nothing would be learnt; give some above 0")
    return numbers


def _count_classes(model: nn.Module) -> int | None:
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    return layers[-1].out_features if layers else None
