"""A network for images that differ from known ones in a rectangle: early layers compute only what that can change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from cifarkit.attribution.question import Question, compute_logits
from cifarkit.attribution.rectangles import Changed, Rule, find_changes, rule_of
from cifarkit.folding import fold_batchnorm, trace_copy
from cifarkit.layout import lay_out, refuses_channels_last

_ALIKE = 1e-4  # share of the largest logit
_PROBED = 3  # pixels of a side

Forward = Callable[[Tensor], Tensor]


class Recomputing:
    """Evaluate a traced network on images that differ from known ones in a rectangle.

    Each step whose rule is known (see ``rectangles``) is computed where it can differ and nowhere else; from the first
    one that has none, or would be computed nearly everywhere, whole feature maps go on.
    """

    def __init__(self, network: fx.GraphModule) -> None:
        modules = dict(network.named_modules())
        found = {node: rule_of(node, modules) for node in network.graph.nodes}
        self.rules = {node: rule for node, rule in found.items() if rule is not None}
        self.network = network

    @torch.no_grad()
    def around(self, known: Tensor) -> Forward:
        """Return the network as a function of images (N, C, H, W), N a multiple of the known ones (B, C, H, W).

        Neither records a graph, which would hold all feature maps for nothing.
        """
        known = known.contiguous(memory_format=torch.channels_last)
        remember = _Remember(self.network)
        remember.run(known)
        steps = _Steps(self.network, self.rules, remember.outputs)

        @torch.no_grad()
        def forward(images: Tensor) -> Tensor:
            return compute_logits(steps.run, find_changes(images, known))

        return forward


class _Remember(fx.Interpreter):
    """Run a network and keep all feature maps."""

    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.outputs: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        output = super().run_node(n)
        if isinstance(output, Tensor) and output.dim() == 4:
            self.outputs[n] = output
        return output

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return fx.node.map_aggregate(super().fetch_args_kwargs_from_env(n), _apart)


def _apart(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value  # what is kept must not be changed in place


class _Steps(fx.Interpreter):
    """Run a network on changed feature maps as far as there are rules, and on whole ones from there."""

    def __init__(self, network: fx.GraphModule, rules: dict[fx.Node, Rule], known: dict[fx.Node, Tensor]) -> None:
        super().__init__(network)
        self.rules, self.known = rules, known
        self.head = _head(network)

    def run_node(self, n: fx.Node) -> Any:
        if n is self.head:
            with torch.autocast(next(self.module.parameters()).device.type, enabled=False):
                return self.call_module(str(n.target), (_whole(self.env[n.all_input_nodes[0]]).float(),), {})
        found = (self.env[node] for node in n.all_input_nodes)
        inputs = [value for value in found if isinstance(value, Changed)]
        if n in self.rules and n in self.known and len(inputs) == len(n.all_input_nodes):
            output = self.rules[n](inputs, self.known[n])
            if output is not None:
                return output
        return super().run_node(n)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return fx.node.map_aggregate(super().fetch_args_kwargs_from_env(n), _whole)


def _head(network: fx.GraphModule) -> fx.Node | None:
    """Return the linear layer that puts out float32 logits; in bf16 they would lose small differences."""
    output = next(iter(reversed(network.graph.nodes)))
    last = output.all_input_nodes[0] if len(output.all_input_nodes) == 1 else output
    layer = network.get_submodule(str(last.target)) if last.op == "call_module" else None
    simple = type(layer) is nn.Linear and layer.weight.dtype == torch.float32
    return last if simple and last.args == tuple(last.all_input_nodes) and not last.kwargs else None


def _whole(value: Any) -> Any:
    return value.whole() if isinstance(value, Changed) else value


def recomputing(question: Question) -> Recomputing | None:
    """Return the network of a question made ready for changed images, or None if it cannot be followed."""
    network = fold_batchnorm(question.model) or trace_copy(question.model)
    if not isinstance(network, fx.GraphModule):
        return None
    ready = Recomputing(lay_out(network, torch.channels_last))
    try:
        return ready if _agrees(ready, question) else None
    except RuntimeError as error:
        if refuses_channels_last(error):
            return None
        raise


@torch.no_grad()
def _agrees(ready: Recomputing, question: Question) -> bool:
    """Hold it against the network itself, on an image that is changed in a corner and in the middle."""
    image = question.images[:1]
    probes = image.repeat(2, 1, 1, 1)
    middle = [side // 2 for side in image.shape[2:]]
    probes[0, :, :_PROBED, :_PROBED] += 1
    probes[1, :, middle[0] : middle[0] + _PROBED, middle[1] : middle[1] + _PROBED] += 1
    with torch.autocast(image.device.type, enabled=False):
        pieces, forward = torch.split(probes, question.max_batch), ready.around(image)
        expected = torch.cat([compute_logits(question.model, piece) for piece in pieces])
        found = torch.cat([forward(piece) for piece in pieces])
    return torch.allclose(found, expected, rtol=_ALIKE, atol=_ALIKE * float(expected.abs().max()))
