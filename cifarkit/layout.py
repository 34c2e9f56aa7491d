"""Memory layouts: channels last, which convolutions prefer, unless a network cannot take images in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def refuses_channels_last(error: BaseException) -> bool:
    """Tell whether a network failed because it takes feature maps for vectors by ``x.view(len(x), -1)``."""
    return isinstance(error, RuntimeError) and "view size is not compatible" in str(error)


def lay_out(network: Network, layout: torch.memory_format) -> Network:
    """Put all weights of four dimensions into a layout, in place, and return the network.

    ``network.to(memory_format=...)`` does so as well, but fails if there is a weight of five, as in ``Conv3d``.
    """
    for weight in (*network.parameters(), *network.buffers()):
        if weight.dim() == 4:
            weight.data = weight.data.to(memory_format=layout)
            if weight.is_leaf and weight.grad is not None:
                weight.grad.data = weight.grad.data.to(memory_format=layout)
    return network


class EitherLayout:
    """A network that gets its images in channels_last, and in PyTorch's usual layout once it has refused that.

    Its own weights, which pass their layout on to feature maps, are then laid out as usual, too.

    Args:
        network: images (B, C, H, W), and others -> anything.
        copies: give it a copy of the images each time, as it may change them in place.
    """

    def __init__(self, network: Callable[..., Any], *, copies: bool = False) -> None:
        self.network, self.copies, self.layout = network, copies, torch.channels_last

    def __call__(self, images: Tensor, *others: Any) -> Any:
        if images.dim() != 4:
            return self.network(images, *others)
        try:
            return self.network(self._laid_out(images), *others)
        except RuntimeError as error:
            if self.layout is torch.contiguous_format or not refuses_channels_last(error):
                raise
        self.layout = torch.contiguous_format
        if isinstance(self.network, nn.Module):
            lay_out(self.network, torch.contiguous_format)
        torch.clear_autocast_cache()  # which holds kernels in the layout that was refused
        return self.network(self._laid_out(images), *others)

    def _laid_out(self, images: Tensor) -> Tensor:
        return (images.clone if self.copies else images.contiguous)(memory_format=self.layout)
