"""Muon: orthogonal steps for kernels, plain momentum for the rest."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from cifarkit.models import Discriminator, SpeedNet, resnet18
from cifarkit.training.moments import require_optimizer_state
from cifarkit.training.muon import Muon, muon_groups, orthogonalize


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 4)
    )


@pytest.mark.parametrize("shape", [(12, 40), (40, 12), (16, 16)])
def test_orthogonalize_keeps_singular_vectors_and_levels_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    levelled = left.T @ orthogonalize(matrix) @ right.T
    strong = values > 0.05 * values.norm()
    diagonal = levelled.diagonal()
    assert ((diagonal[strong] > 0.6) & (diagonal[strong] < 1.3)).all()
    assert (levelled - diagonal.diag()).abs().max() < 0.05


def test_orthogonalize_leaves_zeros() -> None:
    assert orthogonalize(torch.zeros(3, 5)).eq(0).all()


def test_plain_group_is_sgd_with_nesterov_momentum() -> None:
    ours, theirs = small_net(), small_net()
    plain = Muon(ours.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, orthogonal=False)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(3):
        for net, optimizer in ((ours, plain), (theirs, sgd)):
            optimizer.zero_grad()
            net(torch.ones(2, 3, 8, 8)).square().mean().backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_adam_group_is_adamw_of_torch() -> None:
    layers = [nn.Linear(4, 3), nn.Linear(4, 3)]
    layers[1].load_state_dict(layers[0].state_dict())
    options = {"lr": 0.01, "weight_decay": 0.1}
    ours = Muon(layers[0].parameters(), momentum=0.9, orthogonal=False, adam=True, **options)
    theirs = torch.optim.AdamW(layers[1].parameters(), **options)
    images = torch.randn(6, 4, generator=torch.Generator().manual_seed(4))
    for _ in range(4):
        for layer, optimizer in zip(layers, (ours, theirs), strict=True):
            optimizer.zero_grad()
            layer(images).square().mean().backward()
            optimizer.step()
    for mine, other in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        torch.testing.assert_close(mine, other)


def test_groups_of_older_checkpoints_go_on_by_sgd() -> None:
    net = small_net()
    optimizer = Muon(muon_groups(net, adam=True))
    assert [group["adam"] for group in optimizer.param_groups] == [False, True]
    older = optimizer.state_dict()
    for group in older["param_groups"]:
        del group["adam"]
    optimizer.load_state_dict(older)
    assert [group["adam"] for group in optimizer.param_groups] == [False, False]


def test_rates_of_the_rest_suit_its_optimizer() -> None:
    net = small_net()
    assert [muon_groups(net, adam=adam)[-1]["lr"] for adam in (False, True)] == [0.1, 0.001]


def test_a_group_has_one_kind_of_step() -> None:
    with pytest.raises(ValueError, match="either by orthogonal steps or by AdamW; give one with adam orthogonal=False"):
        Muon([nn.Parameter(torch.ones(2, 2))], adam=True)


def test_a_flag_that_is_none_is_named() -> None:
    with pytest.raises(TypeError, match="adam='yes' must be True or False"):
        Muon(muon_groups(small_net(), adam="yes"))  # type: ignore[arg-type]


def test_squares_below_zero_in_a_checkpoint_are_named() -> None:
    net = small_net()
    optimizer = Muon(muon_groups(net, adam=True))
    net(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    next(state["exp_avg_sq"] for state in saved["state"].values() if "exp_avg_sq" in state).sub_(1e9)
    with pytest.raises(ValueError, match="holds squares below 0"):
        require_optimizer_state(saved, optimizer, "optimizer", same_torch=True)


def test_kernel_moves_by_an_orthogonal_matrix_from_its_kept_norm() -> None:
    kernel = nn.Parameter(torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(2)))
    kernel.grad = torch.randn(4, 2, 3, 3, generator=torch.Generator().manual_seed(3))
    scaled = kernel.detach() * 2 / kernel.detach().norm()
    expected = scaled - 0.5 * orthogonalize(1.6 * kernel.grad.flatten(1)).view_as(scaled)
    Muon([kernel], lr=0.5, momentum=0.6, keep_norm=True).step()
    torch.testing.assert_close(kernel.detach(), expected)


def test_weight_decay_of_a_kernel_is_decoupled() -> None:
    kernel = nn.Parameter(torch.ones(2, 2))
    kernel.grad = torch.zeros(2, 2)
    Muon([kernel], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(kernel.detach(), torch.full((2, 2), 0.95))


def test_groups_take_each_trainable_parameter_once() -> None:
    net = small_net()
    net[1].weight.requires_grad_(False)
    kernels, others = muon_groups(net)
    assert [id(item) for item in kernels["params"]] == [id(net[3].weight)]
    assert len(others["params"]) == 6


def test_only_kernels_in_front_of_a_batchnorm_keep_their_norm() -> None:
    inner, last = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), inner, nn.MaxPool2d(2), nn.BatchNorm2d(8), nn.ReLU(), last)
    kept, free, _ = muon_groups(net, lr=0.02)
    assert (kept["params"][0] is inner.weight, free["params"][0] is last.weight) == (True, True)
    assert (kept["keep_norm"], free["keep_norm"], kept["lr"], free["lr"]) == (True, False, 0.02, 0.02)
    for network in (resnet18(), SpeedNet(widths=(8, 8, 8), depth=3)):
        assert [group["keep_norm"] for group in muon_groups(network) if "keep_norm" in group] == [True]


def test_a_batchnorm_behind_another_layer_is_not_the_kernels_own() -> None:
    behind = (nn.ConvTranspose2d(8, 8, 3), nn.GroupNorm(2, 8), nn.PReLU())
    for layer in behind:
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), layer, nn.BatchNorm2d(8))
        assert [group["keep_norm"] for group in muon_groups(net) if "keep_norm" in group] == [False]


def test_a_shared_kernel_is_stepped_once() -> None:
    first, second, third = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
    third.weight = second.weight
    net = nn.Sequential(first, second, third, nn.BatchNorm2d(8))  # behind one of the two alone
    kernels, others = muon_groups(net)
    assert [id(item) for item in kernels["params"]] == [id(second.weight)]
    assert not kernels["keep_norm"]
    assert len(others["params"]) == 6
    third.weight = second.weight = first.weight
    with pytest.raises(ValueError, match="without a second convolution to train"):
        muon_groups(net)


def test_adamw_refuses_complex_parameters() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="holds a complex parameter, which its AdamW cannot step; give adam=False"):
        Muon([{"params": [parameter], "orthogonal": False, "adam": True}])


def test_biases_may_have_a_group_of_their_own() -> None:
    net = small_net()
    kernels, biases, others = muon_groups(net, other_lr=0.1, other_weight_decay=1e-3, bias_lr=2.0, other_momentum=0.8)
    assert [id(item) for item in biases["params"]] == [id(item) for item in net.parameters() if item.dim() == 1]
    assert (biases["lr"], biases["momentum"], others["momentum"]) == (2.0, 0.8, 0.8)
    assert biases["lr"] * biases["weight_decay"] == pytest.approx(others["lr"] * others["weight_decay"])
    assert len(kernels["params"]) + len(biases["params"]) + len(others["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("adam", [False, True])
def test_state_survives_a_checkpoint(adam: bool) -> None:
    nets = [small_net(), small_net()]
    first, second = (Muon(muon_groups(net, adam=adam)) for net in nets)
    nets[0](torch.ones(2, 3, 8, 8)).sum().backward()
    first.step()
    require_optimizer_state(first.state_dict(), second, "optimizer", same_torch=True)
    second.load_state_dict(copy.deepcopy(first.state_dict()))  # torch shares the tensors otherwise
    nets[1].load_state_dict(nets[0].state_dict())
    for net, optimizer in zip(nets, (first, second), strict=True):
        optimizer.zero_grad()
        net(torch.ones(2, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    assert torch.equal(nets[0][3].weight, nets[1][3].weight)


def test_closure_is_called_with_gradients_on() -> None:
    kernel = nn.Parameter(torch.eye(3))

    def closure() -> float:
        kernel.square().sum().backward()
        return 3.0

    assert Muon([kernel]).step(closure) == 3.0


def test_what_is_no_network_is_named() -> None:
    with pytest.raises(TypeError, match=r"model is a str; give the torch\.nn\.Module"):
        muon_groups("resnet18")  # type: ignore[arg-type]


def test_kernels_behind_a_spectral_norm_are_stepped() -> None:
    model = Discriminator(base_channels=4, image_size=16, spectral_norm=True)
    orthogonal = [item for group in muon_groups(model) if group.get("orthogonal", True) for item in group["params"]]
    assert len(orthogonal) == sum(isinstance(layer, nn.Conv2d) for layer in model.modules()) - 1
    optimizer, before = Muon(muon_groups(model)), [item.detach().clone() for item in orthogonal]
    model(torch.randn(2, 3, 16, 16)).sum().backward()
    optimizer.step()
    assert not any(torch.equal(item, old) for item, old in zip(orthogonal, before, strict=True))


def test_refuses_what_it_cannot_step() -> None:
    with pytest.raises(ValueError, match=r"parameter of shape \(8,\), which is no matrix"):
        Muon(small_net().parameters())
    with pytest.raises(ValueError, match=r"momentum=1 must be"):
        Muon([torch.ones(2, 2)], momentum=1)
    with pytest.raises(ValueError, match="bias_lr=0 must be above 0"):
        muon_groups(small_net(), bias_lr=0)
    with pytest.raises(ValueError, match="Linear without a second convolution"):
        muon_groups(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="rounds=0 must be at least 1"):
        orthogonalize(torch.ones(2, 2), rounds=0)


def test_a_refused_group_is_not_kept() -> None:
    optimizer = Muon([torch.ones(2, 2)])
    with pytest.raises(ValueError, match="lr=-1 must be above 0"):
        optimizer.add_param_group({"params": [torch.ones(3, 3)], "lr": -1})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_kernels_that_older_hooks_form_are_sorted(norm: Any) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), norm(nn.Conv2d(4, 4, 3)), nn.Conv2d(4, 4, 3))
    groups = muon_groups(model)
    assert sum(len(group["params"]) for group in groups) == len([*model.parameters()])
    Muon(groups)
