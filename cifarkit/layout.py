"""Memory layouts: channels last, which convolutions prefer, unless a network cannot take images in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def refuses_channels_last(error: BaseException) -> bool:
    """Tell whether a network failed because it takes feature maps for vectors by ``x.view(len(x), -1)``."""
    return isinstance(error, RuntimeError) and "view size is not compatible" in str(error)


class EitherLayout:
    """A network that gets its images in channels_last, and in PyTorch's usual layout once it has refused that.

    Its own weights, which pass their layout on to feature maps, are then laid out as usual, too.
    """

    def __init__(self, network: Callable[..., Any]) -> None:
        self.network, self.layout = network, torch.channels_last

    def __call__(self, images: Tensor, *others: Any) -> Any:
        if images.dim() != 4:
            return self.network(images, *others)
        try:
            return self.network(images.contiguous(memory_format=self.layout), *others)
        except RuntimeError as error:
            if self.layout is torch.contiguous_format or not refuses_channels_last(error):
                raise
        self.layout = torch.contiguous_format
        if isinstance(self.network, nn.Module):
            self.network.to(memory_format=torch.contiguous_format)
        torch.clear_autocast_cache()  # which holds kernels in the layout that was refused
        return self.network(images.contiguous(), *others)
