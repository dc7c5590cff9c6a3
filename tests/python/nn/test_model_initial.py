"""A new network: its parameters, their initial values, weight decay, and its settings (paper's code)."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from scipy import stats

from scmamba.nn import ModelConfig, ScMamba
from scmamba.utils.errors import CheckpointError

MIXER = {
    "in_proj.weight": (24, 6),
    "out_proj.weight": (6, 12),
    "conv1d.weight": (12, 1, 3),
    "conv1d.bias": (12,),
    "x_proj.weight": (14, 12),
    "dt_proj.weight": (12, 4),
    "dt_proj.bias": (12,),
    "A_log": (12, 5),
    "D": (12,),
    "conv1d_b.weight": (12, 1, 3),
    "conv1d_b.bias": (12,),
    "x_proj_b.weight": (14, 12),
    "dt_proj_b.weight": (12, 4),
    "dt_proj_b.bias": (12,),
    "A_b_log": (12, 5),
    "D_b": (12,),
}


def tiny(**settings) -> ModelConfig:
    return ModelConfig(
        **{
            **dict(n_genes=9, d_model=6, n_layer=2, d_state=5, d_conv=3, dt_rank=4, n_classes=7),
            **settings,
        }
    )


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in ScMamba(config).state_dict().items()}


def test_parameters_have_the_published_names_and_shapes():
    expected = {
        "backbone.mask_token": (1, 1, 6),
        "backbone.cls_token": (1, 1, 6),
        "backbone.expression_embedding.weight": (6, 1),
        "backbone.expression_embedding.bias": (6,),
        "backbone.gene_id_embedding.weight": (9, 6),
        "backbone.norm_f.weight": (6,),
        "regressor.weight": (1, 6),
        "regressor.bias": (1,),
        "cls_head.weight": (7, 18),
    }
    for i in range(2):
        expected[f"backbone.layers.{i}.norm.weight"] = (6,)
        expected |= {f"backbone.layers.{i}.mixer.{name}": shape for name, shape in MIXER.items()}
    assert shapes(tiny()) == expected
    one = {
        name: shape
        for name, shape in expected.items()
        if "_b." not in name and not name.endswith(("A_b_log", "D_b"))
    }
    assert shapes(tiny(bidirectional=False)) == one
    plain = {
        name: shape
        for name, shape in expected.items()
        if not name.startswith(("regressor", "cls_head"))
    }
    assert (
        shapes(tiny(reconstructs=False, n_classes=0))
        == shapes(tiny(reconstructs=False, n_classes=0, pools=True))
        == plain
    )
    assert shapes(tiny(pools=True)) == expected | {
        "mean_head.weight": (7, 6),
        "mean_head.bias": (7,),
    }
    assert shapes(tiny(rates=True)) == expected | {
        "rate_head.weight": (6, 6),
        "gene_log_rate": (9,),
    }


@pytest.fixture(scope="module")
def wide() -> ScMamba:
    """Wide enough for precise extremes and standard deviations."""
    torch.manual_seed(0)
    return ScMamba(
        ModelConfig(
            n_genes=500,
            d_model=128,
            n_layer=3,
            expand=4,
            dt_rank=9,
            n_classes=2,
            pools=True,
            rates=True,
        )
    )


def uniform(values: torch.Tensor, bound: float) -> bool:
    """Whether the values are uniform in (-bound, bound)."""
    flat = values.detach().double().flatten().numpy()
    return (
        0.99 * bound < np.abs(flat).max() <= bound * (1 + 1e-6)
        and stats.kstest(flat, stats.uniform(-bound, 2 * bound).cdf).pvalue > 1e-3
    )


def normal(values: torch.Tensor, deviation: float) -> bool:
    return (
        stats.kstest(
            values.detach().double().flatten().numpy(), stats.norm(0, deviation).cdf
        ).pvalue
        > 1e-3
    )


def test_projections_are_initialized_as_published(wide):
    for layer in wide.backbone.layers:
        m = layer.mixer
        # Kaiming-uniform with slope sqrt(5) is 1 / sqrt(inputs); the residual stream is divided
        # among three layers.
        assert uniform(m.out_proj.weight, 1 / math.sqrt(512) / math.sqrt(3))
        assert uniform(m.dt_proj.weight, 9**-0.5) and uniform(m.dt_proj_b.weight, 9**-0.5)
        assert uniform(m.in_proj.weight, 128**-0.5) and uniform(m.x_proj_b.weight, 512**-0.5)
    assert normal(wide.rate_head.weight, 128**-0.5)
    torch.testing.assert_close(wide.gene_log_rate, torch.full((500,), -math.log(500)))


def test_steps_are_log_uniform_from_a_thousandth_to_a_tenth(wide):
    steps = []
    for layer in wide.backbone.layers:
        for projection in (layer.mixer.dt_proj, layer.mixer.dt_proj_b):
            step = np.log10(np.logaddexp(0, projection.bias.detach().double().numpy()))
            assert stats.kstest(step, stats.uniform(-3, 2).cdf).pvalue > 1e-3
            steps.append(step)
    assert -3 - 1e-5 < np.min(steps) < -2.995 and -1.005 < np.max(steps) < -1 + 1e-5


def test_states_skips_norms_and_tokens_have_fixed_initial_values(wide):
    for layer in wide.backbone.layers:
        for a in (layer.mixer.A_log, layer.mixer.A_b_log):
            torch.testing.assert_close(
                a.detach(), torch.log(torch.arange(1.0, 17.0)).expand(512, 16), rtol=1e-6, atol=0
            )
        for ones in (layer.mixer.D, layer.mixer.D_b, layer.norm.weight):
            assert (ones == 1).all()
    assert (wide.backbone.norm_f.weight == 1).all()
    for zeros in (
        wide.backbone.mask_token,
        wide.backbone.cls_token,
        wide.backbone.expression_embedding.bias,
    ):
        assert (zeros == 0).all()
    assert normal(wide.backbone.gene_id_embedding.weight, 0.02) and normal(
        wide.backbone.expression_embedding.weight, 0.02
    )
    assert all(p.requires_grad for p in wide.parameters())


def test_parameters_without_weight_decay():
    """A_log, D, the norms' weights, biases and tokens, and no others."""
    free = {
        "backbone.mask_token",
        "backbone.cls_token",
        "backbone.expression_embedding.bias",
        "backbone.norm_f.weight",
        "regressor.bias",
        "mean_head.bias",
    }
    for i in range(2):
        free.add(f"backbone.layers.{i}.norm.weight")
        free |= {
            f"backbone.layers.{i}.mixer.{name}"
            for name in (
                "A_log",
                "A_b_log",
                "D",
                "D_b",
                "conv1d.bias",
                "conv1d_b.bias",
                "dt_proj.bias",
                "dt_proj_b.bias",
            )
        }
    assert ScMamba(tiny(pools=True, rates=True)).without_decay() == free


# --- settings
# -----------------------------------------------------------------------------------------


def test_default_settings_are_those_of_the_published_model():
    config = ModelConfig(n_genes=19306)
    assert asdict(config) == dict(
        n_genes=19306,
        d_model=256,
        n_layer=6,
        d_state=16,
        d_conv=4,
        expand=2,
        dt_rank=16,
        bidirectional=True,
        n_classes=0,
        pools=False,
        reconstructs=True,
        rates=False,
        norm_eps=1e-5,
        reads="all",
        name="",
        about={},
    )
    assert config.d_inner == 512
    assert [ModelConfig(n_genes=1, d_model=d).dt_rank for d in (1, 16, 17, 32, 33)] == [
        1,
        1,
        2,
        2,
        3,
    ]
    assert ModelConfig(n_genes=1, d_model=64, dt_rank=3).dt_rank == 3
    assert ModelConfig(n_genes=1, d_model=10, expand=1.55).d_inner == 15


def test_settings_are_restored_from_their_file(tmp_path):
    config = ModelConfig(
        n_genes=3,
        d_model=5,
        n_layer=7,
        d_state=2,
        d_conv=9,
        expand=1.5,
        dt_rank=11,
        bidirectional=False,
        n_classes=4,
        pools=True,
        reconstructs=False,
        rates=True,
        norm_eps=1e-6,
        reads="expressed",
        name="n",
        about={"donors": ["a"]},
    )
    assert all(
        getattr(config, f.name) != getattr(ModelConfig(n_genes=1), f.name)
        for f in fields(ModelConfig)
    ), "nothing is at its default"
    config.write(tmp_path / "config.json")
    assert ModelConfig.read(tmp_path / "config.json") == config
    assert json.loads((tmp_path / "config.json").read_text())["format"] == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "missing or not JSON"),
        ("{", "missing or not JSON"),
        ('{"n_genes": 3}', "of a format this version does not read"),
        ('{"format": 2, "n_genes": 3}', "of a format this version does not read"),
        ('{"format": 1, "n_genes": 3, "b": 1, "a": 2}', r"does not have \(a, b\)"),
        ('{"format": 1, "n_genes": 3, "reads": "some"}', "reads is 'some'"),
        ('{"format": 1, "n_genes": 0}', "n_genes is 0; it must be at least 1"),
    ],
)
def test_unreadable_settings_are_refused(tmp_path, text, sentence):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        ModelConfig.read(tmp_path / "config.json")


@pytest.mark.parametrize("name", ["n_genes", "d_model", "n_layer", "d_state", "d_conv", "dt_rank"])
def test_every_size_is_at_least_one(name):
    with pytest.raises(CheckpointError, match=f"{name} is -1; it must be at least 1"):
        ModelConfig(**{"n_genes": 5, name: -1})
    with pytest.raises(CheckpointError, match="d_inner is 0"):
        ModelConfig(n_genes=5, d_model=3, expand=0.3)
    assert (
        ModelConfig(
            n_genes=1, d_model=1, n_layer=1, d_state=1, d_conv=1, expand=1, dt_rank=1
        ).d_inner
        == 1
    )
