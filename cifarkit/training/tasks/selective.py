"""Train on the images of each batch that are worth it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cifarkit.checks import check_integer, check_number
from cifarkit.training.task import Batch, Update
from cifarkit.training.tasks.classification import ClassificationTask, accuracy


class SelectiveTask(ClassificationTask):
    """Let a small proxy look at each batch first, and train the model on the share that the proxy finds hardest.

    Most images of a batch are soon easy, and teach a large network little for the price of its backward pass. The
    proxy learns meanwhile, from the first part of each batch. So give batches 1 / keep times as large as the model is
    to see. ``train_loss`` and ``train_acc`` are those of the hard images, and lower than over all of them;
    ``train_proxy_loss`` and ``train_proxy_acc`` are the proxy's. A third tensor, which tells generated images from real
    ones, is left out: the hard images of a batch may lack a kind.

    Args:
        model, optimizer, options: as in :class:`ClassificationTask`; a loss and class_weights are the model's alone.
        proxy: a network for the same images and classes, at a tenth of the cost or less.
        proxy_optimizer: of the proxy's parameters.
        keep: share of each batch that the model is trained on, above 0 and at most 1; at least one image.
        proxy_share: share of each batch that the proxy learns from, above 0 and at most 1.
        start: batches before the choice begins; until then the model sees the first images of each. What is hard for
            networks that know nothing yet teaches them little.
    Raises:
        ValueError: if a share or start is out of range.
        TypeError: if a network or an optimizer is none.
    Source: Jiang et al. 2019, "Accelerating deep learning by focusing on the biggest losers"; a proxy as in Coleman et
        al. 2020, "Selection via proxy".
    """

    batches_seen: Tensor

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        proxy: nn.Module,
        proxy_optimizer: Optimizer,
        *,
        keep: float = 0.5,
        proxy_share: float = 0.25,
        start: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, optimizer, **options)
        if not isinstance(proxy, nn.Module) or not isinstance(proxy_optimizer, Optimizer):
            kinds = f"{type(proxy).__name__} and {type(proxy_optimizer).__name__}"
            raise TypeError(f"give SelectiveTask a proxy network and its optimizer, both built; got {kinds}")
        self.keep = check_number("keep", keep, 0, 1, above=True)
        self.proxy_share = check_number("proxy_share", proxy_share, 0, 1, above=True)
        self.start = check_integer("start", start, 0)
        self.proxy = proxy
        self.optimizers["proxy"] = proxy_optimizer
        self.register_buffer("batches_seen", torch.zeros((), dtype=torch.int64))  # so that a checkpoint carries it

    def updates(self, batch: Batch) -> Iterator[Update]:
        first, (images, labels) = not self._checked, self._checked_batch(batch)
        learnt = _count(self.proxy_share, images)
        logits = self._checked_logits(self.proxy(images[:learnt]), labels)
        if first:
            self._checked = False  # the model's logits have not been looked at yet
        losses = F.cross_entropy(logits, labels[:learnt], reduction="none", label_smoothing=self.label_smoothing)
        chosen = torch.arange(_count(self.keep, images), device=images.device)
        if not self.start or self.batches_seen >= self.start:
            judged = torch.cat([losses.detach(), self._judge(images[learnt:], labels[learnt:])])
            chosen = judged.topk(len(chosen)).indices
        self.batches_seen += 1
        yield Update(losses.mean(), "proxy", {"acc": accuracy(logits.detach(), labels[:learnt])})
        kept = images[chosen]
        kept = kept.contiguous(memory_format=self.layout) if kept.dim() == 4 else kept  # indexing leaves that of images
        yield from super().updates((kept, labels[chosen]))

    @torch.no_grad()
    def _judge(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return the proxy's loss of each image (B,); it learns nothing from them."""
        if not len(images):
            return images.new_zeros(0)
        logits: Tensor = self.proxy(images)
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=self.label_smoothing)


def _count(share: float, images: Tensor) -> int:
    return max(1, round(share * len(images)))
