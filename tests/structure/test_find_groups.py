"""Which channels belong together, on networks small enough to say so by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_coreset.structure import ChannelGroup, Count, Example, analyse, find_groups
from lightning_coreset.verification import failing_groups


def roles(group: ChannelGroup) -> dict[tuple[str, int], str]:
    return {(member.name, member.dim): member.role for member in group.members}


def test_conv_batch_norm_flatten() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 4, 2))
    (group,) = find_groups(model, torch.randn(2, 3, 4, 4))
    assert (group.name, group.size) == ("0", 5)
    assert roles(group) == {
        ("0.weight", 0): "producer",
        ("0.bias", 0): "channelwise",
        ("1.weight", 0): "channelwise",
        ("1.bias", 0): "channelwise",
        ("1.running_mean", 0): "channelwise",
        ("1.running_var", 0): "channelwise",
        ("4.weight", 1): "consumer",
    }
    (consumer,) = group.by_role("consumer")
    assert consumer.index[1] == (4, 5, 6, 7)  # the four positions that the Flatten made of the second channel
    (path,) = group.paths
    assert [step.op for step in path.steps] == ["batch_norm", "relu"]
    assert path.producer.norm is not None
    assert path.producer.norm.running_var == "1.running_var"


def test_order_is_the_order_of_execution_not_of_definition() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.c, self.b, self.a = nn.Linear(6, 3), nn.Linear(5, 6), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    assert [group.name for group in find_groups(Net(), torch.randn(1, 4))] == ["a", "b"]


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Conv2d(3, 6, 3, padding=1),
            nn.Conv2d(6, 4, 3, padding=1),
            nn.Conv2d(4, 6, 3, padding=1),
            nn.Linear(6, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((x + self.outer(self.inner(x).relu())).mean((2, 3)))


def test_residual_addition_couples_its_layers() -> None:
    stream, inner = find_groups(Residual(), torch.randn(1, 3, 5, 5))
    assert [member.name for member in stream.by_role("producer")] == ["stem.weight", "outer.weight"]
    assert [member.name for member in stream.by_role("consumer")] == ["inner.weight", "head.weight"]
    assert any(step.op == "sum" for path in stream.paths for step in path.steps)
    assert [member.name for member in inner.members] == ["inner.weight", "inner.bias", "outer.weight"]


def test_grouped_convolution_loses_the_same_position_of_every_group() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 2, 1))
    first, second = find_groups(model, torch.randn(1, 3, 4, 4))
    assert first.size == 2
    assert first.by_role("producer")[0].index == ((0, 2, 4, 6), (1, 3, 5, 7))
    assert first.by_role("consumer")[0].index == ((0,), (1,))
    assert second.size == 3
    assert second.by_role("consumer")[0].index[2] == (2, 5, 8, 11)


def test_depthwise_convolution_passes_channels_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 12, 3, groups=6), nn.Conv2d(12, 2, 1))
    (group,) = find_groups(model, torch.randn(1, 3, 4, 4))
    index = {member.name: member.index[1] for member in group.members}
    assert index == {"0.weight": (1,), "0.bias": (1,), "1.weight": (2, 3), "1.bias": (2, 3), "2.weight": (2, 3)}


def test_siblings_of_a_concatenation_are_groups_of_their_own() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(4, 5), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.cat([self.a(x).relu(), self.b(x).tanh()], 1))

    a, b = find_groups(Net(), torch.randn(1, 4))
    assert a.by_role("consumer")[0].index == ((0,), (1,), (2,))
    assert b.by_role("consumer")[0].index == ((3,), (4,), (5,), (6,), (7,))
    assert [[step.op for step in group.paths[0].steps] for group in (a, b)] == [["relu"], ["tanh"]]


def test_attention_heads_and_their_counts() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_heads = 3
            self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            shape = (*x.shape[:2], 3, self.num_heads, 4)
            q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
            y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
            return self.proj(y.transpose(1, 2).flatten(2))

    (group,) = find_groups(Attention(), torch.randn(2, 7, 12))
    assert group.size == 3
    assert group.by_role("producer")[0].index[1] == (4, 5, 6, 7, 16, 17, 18, 19, 28, 29, 30, 31)
    assert group.by_role("consumer")[0].index[1] == (4, 5, 6, 7)
    assert group.counts == (Count("", "num_heads", 1),)


@pytest.mark.parametrize("tokens", [7, 4])
def test_as_many_tokens_as_positions_in_a_head(tokens: int) -> None:
    """The second run sees heads whose positions are one class: these lie behind a dimension of any size."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v, self.proj = (nn.Linear(12, 12) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (layer(x).view(2, tokens, 3, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
            y = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
            return self.proj(y.transpose(1, 2).flatten(2))

    (group,) = find_groups(Attention(), torch.randn(2, tokens, 12))
    assert group.size == 3


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.LayerNorm((3, 6)), "native_layer_norm"),
        (nn.Softmax(1), "softmax"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_reasons_are_in_words(layer: nn.Module, reason: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(4, 6), layer, nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.first(x)))

    structure = analyse(Net(), torch.randn(3, 4) if not isinstance(layer, nn.LayerNorm) else torch.randn(2, 3, 4))
    assert structure.groups == ()
    assert reason in structure.refused["first"]
    assert structure.refused["last"] == "makes outputs of the network"


def test_what_the_example_does_not_run_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    model.register_module("spare", nn.Linear(3, 3))
    structure = analyse(_Skips(model), torch.randn(1, 4))
    assert structure.refused["net.spare"] == "is not run by the example inputs"


class _Skips(nn.Module):
    def __init__(self, net: nn.Sequential) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[1](self.net[0](x)))


def test_auxiliary_head_of_training_keeps_its_input() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last, self.aux = (
                nn.Linear(4, 6),
                nn.Linear(6, 5),
                nn.Linear(5, 2),
                nn.Linear(6, 2),
            )

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            h = self.first(x).relu()
            y = self.last(self.second(h).relu())
            return (y, self.aux(h)) if self.training else y

    first, _ = find_groups(Net(), torch.randn(3, 4))
    assert [member.name for member in first.by_role("consumer")] == ["second.weight", "aux.weight"]


calls_seen: list[tuple[str, bool]] = []  # what the network holds, closures of its hooks included, is put back


def test_the_network_runs_once_in_each_mode() -> None:
    calls_seen.clear()
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 2))
    for module in model:
        module.register_forward_pre_hook(lambda module, _: calls_seen.append((type(module).__name__, module.training)))
    find_groups(model, torch.randn(3, 4))
    assert calls_seen == [
        *(("Linear", False), ("BatchNorm1d", False), ("Dropout", False), ("Linear", False)),
        *(("Linear", True), ("BatchNorm1d", False), ("Dropout", False), ("Linear", True)),
    ]


def test_macs_equal_hand_counts() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8), nn.ConvTranspose2d(8, 4, 2, 2), nn.Flatten(),
        nn.Linear(4 * 12 * 12, 10),
    )  # fmt: skip
    macs = analyse(model, torch.randn(5, 3, 8, 8)).macs
    assert macs == {
        "0.weight": 8 * 8 * 8 * 3 * 9,
        "1.weight": 6 * 6 * 8 * 9,
        "2.weight": 6 * 6 * 8 * 4 * 4,
        "4.weight": 4 * 12 * 12 * 10,
    }


def test_the_model_and_the_random_state_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout(0.5), nn.Conv2d(6, 2, 3))
    model[1].eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    find_groups(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == flags
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("context", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_under_any_gradient_mode(context: type) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    with context():
        (group,) = find_groups(model, torch.randn(2, 4))
    assert group.size == 6


def test_lazy_parameters_are_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"'0\.weight' is lazy"):
        find_groups(nn.Sequential(nn.LazyLinear(3), nn.Linear(3, 2)), torch.randn(1, 4))


def test_example_inputs_of_another_type_are_an_error() -> None:
    with pytest.raises(ValueError, match="a tensor, a tuple of positional arguments or a dict"):
        find_groups(nn.Linear(3, 2), "inputs")  # type: ignore[arg-type]


@pytest.mark.parametrize("first", [True, False])
def test_channels_written_into_a_room_for_them(first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 6, 1), nn.Conv2d(9, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            room = x.new_zeros(x.shape[0], 3 + y.shape[1], *x.shape[2:])
            if first:
                room[:, 3:] = y
            else:
                room[:, :-3] = y
            return self.last(room)

    (group,) = find_groups(Net(), torch.randn(2, 3, 4, 4))
    assert group.by_role("consumer")[0].index[0] == ((3,) if first else (0,))


def test_a_model_that_is_a_layer_itself_is_refused_once():
    assert dict(analyse(nn.Linear(4, 3), torch.randn(1, 4)).refused) == {"weight": "makes outputs of the network"}


def test_channels_last_with_pooling_to_one_pixel():
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    (group,) = find_groups(model, torch.randn(2, 3, 9, 9))
    assert (group.name, group.size) == ("0", 8)
    assert failing_groups(model, [group], Example.of(torch.randn(2, 3, 9, 9))) == {}


@pytest.mark.parametrize(
    "view", [lambda x: x.as_strided((2, 8), (1, 2)), lambda x: x.as_strided((2, 8), (4, 1)), lambda x: x[:, 2:]]
)
def test_other_strides_that_move_channels_are_refused(view):
    class Strided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 8), nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(view(self.first(x).relu()))

    model = Strided()
    model(torch.randn(2, 4))
    assert not find_groups(model, torch.randn(2, 4))
