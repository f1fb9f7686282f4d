"""How much of transformers, of networks on graphs and on points is in groups that can shrink, and that most can go."""

from __future__ import annotations

import warnings

import pytest
import torch
from zoo import ZOO
from zoo.inspection import reachable
from zoo.oracle import build
from zoo.running import call, results

from lightning_coreset import prune
from lightning_coreset.structure import Example, analyse
from lightning_coreset.verification import verified

HUGGING_FACE = """
bert distilbert gpt2 llama llama-tied qwen2 qwen3 vit deit swin convnext convnextv2 t5 whisper clip segformer wav2vec2
wav2vec2-layer-norm mamba falcon-mamba mamba2 bamba deepseek-v3-dense mixtral gpt-oss olmoe qwen2-moe qwen3-moe
granite-moe phi-moe
""".split()
WITH_EXPERTS = ("hf/jamba", "hf/deepseek-v2", "hf/deepseek-v3")
WRITTEN_OUT = """
ClassTokenVit SimpleVit Twins Vit x_decoder_tied x_encoder_positions x_decoder_vector_norm x_decoder_scale_norm
x_cross_attention mixture_of_networks stack_interleaved stack_by_einsum stack_grouped soft_mixture
""".split()
ON_GRAPHS_AND_POINTS = """
gcn graph_sage_mean graph_sage_max gat gatv2 gin sparse_adjacency dgcnn pointnet2 segnet unet_unpooling
""".split()
NAMED = [f"hf/{name}" for name in HUGGING_FACE] + [f"classic/{name}" for name in WRITTEN_OUT + ON_GRAPHS_AND_POINTS]
FAST = ("hf/bert", "hf/llama", "hf/convnextv2", "classic/ClassTokenVit", "classic/x_decoder_tied", "classic/gat")

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
networks = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in NAMED]
)


def reach(name):
    """The share of parameters in groups, after the self-check, whose failures are not pruned; and what is refused."""
    model, inputs = made(name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The channels of these layers are not pruned")
        structure = verified(model, analyse(model, inputs), Example.of(inputs))
    total = sum(parameter.numel() for parameter in model.parameters())
    return reachable(model, structure.groups) / total, dict(structure.refused)


@pytest.mark.slow
@networks
def test_nearly_all_parameters_belong_to_groups(name):
    share, refused = reach(name)
    assert share >= 0.9, f"{share:.3f}; refused: {refused}"


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_EXPERTS)
def test_most_parameters_belong_to_groups_where_experts_are_chosen(name):
    share, refused = reach(name)
    assert share >= 0.8, f"{share:.3f}; refused: {refused}"


@networks
def test_seven_tenths_can_go(name):
    model, inputs = made(name)
    before = [tuple(one.shape) for one in outputs(model, inputs)]
    in_multiples = any(group.multiple > 1 for group in analyse(model, inputs).groups)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The channels of these layers are not pruned")
        plan = prune(model, inputs, 0.7, include_residual=True)
    assert plan.params_after == sum(parameter.numel() for parameter in model.parameters())
    # To the nearest channel, which is one of few here, or to the nearest 8 that grouped products take.
    assert plan.params_after / plan.params_before == pytest.approx(0.3, abs=0.1 if in_multiples else 0.05)
    assert [tuple(one.shape) for one in outputs(model, inputs)] == before
    assert all(one.isfinite().all() for one in outputs(model, inputs) if one.is_floating_point())


@pytest.mark.parametrize("name", ["LayerNorm_without_weights", "RMSNorm_without_weights", "remembered_shape"])
def test_the_shape_of_a_norm_is_searched_for(name):
    model, inputs = made(f"traps/stream_{name}")
    prune(model, inputs, {"0": 0.5}, include_residual=True)
    assert model[0].out_features == 6
    assert outputs(model, inputs)[0].shape == (2, 5, 3)


def test_a_number_in_the_source_is_refused():
    model, inputs = made("traps/stream_literal_shape")
    with pytest.warns(UserWarning, match="a trial on a copy failed:\n  first: "):
        plan = prune(model, inputs, 0.3, include_residual=True)
    assert "first" in plan.skipped


def test_a_sum_divided_by_a_number_in_the_source_is_refused():
    model, inputs = made("traps/stream_divided_by_width")
    plan = prune(model, inputs, 0.3, include_residual=True)
    assert "is reduced across channels (aten.sum) and divided by how many there are" in plan.skipped["0"]


def made(name):
    if name.startswith("hf/"):
        pytest.importorskip("transformers")
    entry = ZOO[name]
    return build(entry).eval(), entry.inputs(torch.Generator().manual_seed(0))


def outputs(model, inputs):
    with torch.no_grad():
        return results(call(model, inputs))
