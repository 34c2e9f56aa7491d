"""Adversarial training: a discriminator and a generator, one update each a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from cifarkit.checks import check_callable, check_integer
from cifarkit.inference import device_of, dtype_of
from cifarkit.labels import check_labels
from cifarkit.seeding import Draws
from cifarkit.training.task import Batch, Task, Update
from cifarkit.training.tasks.batches import check_image_batch

Augment = Callable[[Tensor, Draws], Tensor]


class GANTask(Task):
    """Train a generator against a discriminator, which is updated first.

    All random numbers of an image come from one seed, drawn from PyTorch's global state; so micro-batches make what
    one big batch makes. Generated images are of the classes of the batch.

    Args:
        generator: latents (B, D), labels (B,) if it has ``num_classes`` -> images (B, C, H, W) in [-1, 1]; its
            attribute ``latent_dim`` is D.
        discriminator: images, labels if it has ``num_classes`` -> logits (B,), positive for real.
        generator_optimizer, discriminator_optimizer: of their parameters.
        loss: "non_saturating" (Goodfellow et al. 2014, section 3) or "hinge" (Lim and Ye 2017).
        augment: (images, draws) -> images, differentiable, for all that the discriminator is shown in training.
    Raises:
        TypeError: if an argument is of another kind.
        ValueError: if loss is unknown, the networks do not fit each other, or images are not in [-1, 1].
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        generator_optimizer: Optimizer,
        discriminator_optimizer: Optimizer,
        *,
        loss: str = "non_saturating",
        augment: Augment | None = None,
    ) -> None:
        super().__init__()
        networks, optimizers = (generator, discriminator), (generator_optimizer, discriminator_optimizer)
        if not all(isinstance(item, nn.Module) for item in networks) or not all(
            isinstance(item, Optimizer) for item in optimizers
        ):
            kinds = ", ".join(type(item).__name__ for item in (*networks, *optimizers))
            raise TypeError(f"give GANTask generator, discriminator and the optimizer of each, all built; got {kinds}")
        if loss not in ("non_saturating", "hinge"):
            raise ValueError(f"loss={loss!r} is unknown; use 'non_saturating' or 'hinge'")
        if augment is not None:
            check_callable("augment", augment, "give DifferentiableAugmentation() or a function of images and draws")
        self.latent_dim = check_integer("generator.latent_dim", getattr(generator, "latent_dim", None), 1)
        self.num_classes = _common_classes(generator, discriminator)
        self.generator, self.discriminator = generator, discriminator
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}
        self.loss, self.augment = loss, augment
        self._checked = False

    def updates(self, batch: Batch) -> Iterator[Update]:
        real, labels = self._checked_batch(batch)
        draws = self._draws(real)
        fake = self.generate(draws.normal(self.latent_dim), labels)
        on_real = self._judge(self._shown(real, draws), labels)
        on_fake = self._judge(self._shown(fake.detach(), draws), labels)
        losses = self._discriminator_losses(on_real, on_fake)
        accuracies = {"real_acc": (on_real > 0).float().mean(), "fake_acc": (on_fake < 0).float().mean()}
        yield Update(losses.mean(), "discriminator", accuracies)
        with frozen(self.discriminator):  # its weights are the new ones here
            losses = self._generator_losses(self._judge(self._shown(fake, draws), labels))
        yield Update(losses.mean(), "generator")

    def evaluate(self, batch: Batch) -> dict[str, tuple[Tensor, int]]:
        real, labels = self._checked_batch(batch)
        fake = self.generate(self._draws(real).normal(self.latent_dim), labels)
        on_real, on_fake = self._judge(real, labels), self._judge(fake, labels)
        sums = {
            "discriminator_loss": self._discriminator_losses(on_real, on_fake).sum(),
            "generator_loss": self._generator_losses(on_fake).sum(),
            "discriminator_real_acc": (on_real > 0).sum(),
            "discriminator_fake_acc": (on_fake < 0).sum(),
        }
        return {name: (total, len(real)) for name, total in sums.items()}

    def generate(self, latents: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the generator's images (B, C, H, W), on the device of the latents, whichever the generator's is.

        Labels are left out if it takes none.
        """
        home, dtype = device_of(self.generator, latents.device), dtype_of(self.generator, latents.dtype)
        images: Tensor = self.generator(latents.to(home, dtype), *(part.to(home) for part in self._taken(labels)))
        return images.to(latents.device)

    def inputs_of(self, network: str, batch: Batch) -> tuple[Tensor, ...]:
        """Return what a network is given for a batch, when an average of it measures its BatchNorm statistics."""
        images, labels = self._checked_batch(batch)
        first = self._draws(images).normal(self.latent_dim) if network == "generator" else images
        return (first.to(dtype_of(getattr(self, network), images.dtype)), *self._taken(labels))

    def _draws(self, images: Tensor) -> Draws:
        return Draws(0, 0, torch.randint(0, 2**62, (len(images),)), device=images.device)

    def _shown(self, images: Tensor, draws: Draws) -> Tensor:
        return images if self.augment is None else self.augment(images, draws)

    def _judge(self, images: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.discriminator(images.to(dtype_of(self.discriminator, images.dtype)), *self._taken(labels))
        if logits.shape != images.shape[:1]:
            raise ValueError(f"the discriminator must return logits (B,); it returned shape {tuple(logits.shape)}")
        return logits.float()

    def _taken(self, labels: Tensor | None) -> tuple[Tensor, ...]:
        return () if self.num_classes is None or labels is None else (labels,)

    def _discriminator_losses(self, on_real: Tensor, on_fake: Tensor) -> Tensor:
        if self.loss == "hinge":
            return F.relu(1 - on_real) + F.relu(1 + on_fake)
        return F.softplus(-on_real) + F.softplus(on_fake)

    def _generator_losses(self, on_fake: Tensor) -> Tensor:
        return -on_fake if self.loss == "hinge" else F.softplus(-on_fake)

    # Only the first batch is looked at, which costs a synchronisation.

    def _checked_batch(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        if not self._checked:
            check_image_batch(batch, "use Normalize(0.5, 0.5)")
        images, labels = batch[0], batch[1] if len(batch) > 1 else None
        if self._checked:
            return images, labels
        low, high = images.min().item(), images.max().item()
        if not (-1.001 <= low < 0 and high <= 1.001):
            raise ValueError(
                f"images run from {low:.3g} to {high:.3g}, but a generator makes [-1, 1]; use Normalize(0.5, 0.5)"
            )
        if self.num_classes is not None:
            check_labels(None if labels is None else labels.cpu(), len(images), self.num_classes)
        self._checked = True
        return images, labels


@contextmanager
def frozen(network: nn.Module) -> Iterator[nn.Module]:
    """Let a network judge for a while: gradients pass through it, but its weights get none."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield network
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def _common_classes(generator: nn.Module, discriminator: nn.Module) -> int | None:
    """Return the number of classes that both networks were built for."""
    both = [getattr(network, "num_classes", None) for network in (generator, discriminator)]
    if both[0] != both[1]:
        raise ValueError(f"generator has num_classes={both[0]}, discriminator num_classes={both[1]}; give both one")
    return None if both[0] is None else check_integer("num_classes", both[0], 1)
