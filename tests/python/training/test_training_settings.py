"""The settings of a run: the paper's recipes number by number, and changes by a file and by arguments."""

from __future__ import annotations

from dataclasses import asdict, fields, replace

import pytest

from scmamba.training import SequenceConfig, TrainerConfig
from scmamba.training.config import RECIPES, Settings, read_settings
from scmamba.training.options import OptimizerOptions
from scmamba.training.reconstruction import IMPUTE, PRETRAIN
from scmamba.utils.errors import OptionError, ScMambaError

PAPER = {  # specification, "Pre-training" and "Fine-tuning"
    "pretrain": dict(
        epochs=2.0,
        batch_size=16,
        lr=1e-3,
        mask_nonzero=0.15,
        mask_zero=0.0,
        min_total=200,
        min_donor_cells=200,
        above=0,
    ),
    "impute": dict(epochs=5.0, batch_size=8, lr=1e-4, mask_nonzero=0.4, mask_zero=0.04, above=4000),
    "annotate": dict(epochs=5.0, batch_size=16, lr=1e-4, balance=0.0, probe=False, freeze=False),
    "doublets": dict(
        epochs=5.0, batch_size=16, lr=1e-4, doublet_recipe="mean", doublet_fraction=0.1
    ),
}
SAME = dict(
    final_lr=0.1,
    warmup=0.01,
    weight_decay=0.1,
    clip=1.0,
    d_model=256,
    layers=6,
    reads="all",
    rates=False,
    genes_per_step=0,
    precision="auto",
    accumulate=1,
    steps=0,
    ema=0.0,
    seed=0,
    save_every=200,
    keep=3,
)
SMALL = {
    "pretrain": dict(
        steps=2000,
        lr=3e-3,
        warmup=0.03,
        d_model=64,
        layers=2,
        reads="expressed",
        rates=True,
        mask_nonzero=0.3,
        mask_zero=0.0,
    ),
    "impute": dict(
        steps=2000, lr=1e-3, warmup=0.03, mask_nonzero=0.4, mask_zero=0.04, above=0, batch_size=16
    ),
    "annotate": dict(epochs=5.0, steps=0, lr=1e-3, balance=0.5, probe=True),
    "doublets": dict(
        epochs=5.0,
        steps=0,
        lr=1e-3,
        balance=0.5,
        probe=False,
        doublet_recipe="mixed",
        doublet_fraction=0.5,
    ),
}


@pytest.mark.parametrize("verb", PAPER)
def test_recipes_have_the_numbers_of_the_paper(verb):
    found = asdict(read_settings(verb)[0])
    assert {name: found[name] for name in {**SAME, **PAPER[verb]}} == {**SAME, **PAPER[verb]}
    small = asdict(read_settings(verb, "small")[0])
    expected = {**SMALL[verb], "genes_per_step": 1536, "min_donor_cells": 0, "precision": "32"}
    assert {name: small[name] for name in expected} == expected


def test_masked_shares_of_the_two_objectives():
    assert asdict(PRETRAIN) == dict(
        mask_nonzero=0.15, mask_zero=0.0, genes_per_step=0, zeros=(100, 2000)
    )
    assert asdict(IMPUTE) == dict(
        mask_nonzero=0.4, mask_zero=0.04, genes_per_step=0, zeros=(100, 2000)
    )
    assert set(RECIPES) == set(PAPER)


def test_settings_are_converted_to_a_loop_and_a_sequence():
    given = Settings(
        epochs=3.0,
        batch_size=5,
        accumulate=2,
        lr=0.2,
        final_lr=0.3,
        warmup=0.4,
        weight_decay=0.5,
        clip=0.6,
        ema=0.7,
        seed=8,
        save_every=9,
        keep=10,
        mask_nonzero=0.11,
        mask_zero=0.12,
        genes_per_step=13,
        precision="bf16",
    )
    # Three epochs of 1,000 cells, ten per step in each of four processes.
    assert given.loop(1000, 4, False) == TrainerConfig(
        steps=75,
        batch_size=5,
        lr=0.2,
        final_lr=0.3,
        warmup=0.4,
        weight_decay=0.5,
        clip=0.6,
        seed=8,
        save_every=9,
        keep=10,
        accumulate=2,
        precision="bf16",
        ema=0.7,
    )
    assert (
        replace(given, steps=12).loop(1000, 4, False).steps == 12
        and given.loop(1, 4, False).steps == 1
    )
    assert [
        replace(given, precision="auto").loop(9, 1, gpu).precision for gpu in (True, False)
    ] == ["16", "32"]
    sequence = given.sequence()
    assert (sequence.mask_nonzero, sequence.mask_zero, sequence.genes_per_step) == (0.11, 0.12, 13)
    lines = dict(line.split(": ") for line in given.text().splitlines())
    assert (
        lines["lr"] == "0.2"
        and lines["precision"] == "'bf16'"
        and lines["freeze"] == "False"
        and len(lines) == len(asdict(given))
    )


def test_a_value_of_the_wrong_type_is_refused(tmp_path):
    pytest.importorskip("yaml")
    assert (
        read_settings("pretrain", given={"batch_size": "8", "lr": "1e-4", "precision": 16})[
            0
        ].precision
        == "16"
    )
    assert (
        read_settings("pretrain", given={"batch_size": 8.0})[0].batch_size == 8
        and read_settings("pretrain", given={"lr": 1})[0].lr == 1.0
    )
    assert read_settings("annotate", "small", given={"probe": False})[0].probe is False
    wrong = (
        {"batch_size": 8.5},
        {"lr": True},
        {"freeze": 1},
        {"reads": [1]},
        {"steps": "two"},
        {"lr": None, "clip": {}},
    )
    for given, kind in zip(
        wrong, ("whole number", "a number", "true or false", "one word", "whole number", "a number")
    ):
        with pytest.raises(ScMambaError, match=kind):
            read_settings("pretrain", given=given)
    steps, chosen = read_settings("pretrain", "small", given={"epochs": 1.0, "steps": 7})
    assert (
        steps.steps == 7
        and chosen == {"epochs", "steps"}
        and read_settings("pretrain", "small", given={"lr": 1e-4})[0].steps == 2000
    )
    file = tmp_path / "a.yaml"
    for text, words in (("- a\n", "holds a list"), ("a: [", "is not YAML")):
        file.write_text(text)
        with pytest.raises(ScMambaError, match=words):
            read_settings("pretrain", file=file)
    file.write_text("")
    assert read_settings("pretrain", file=file)[0] == Settings()
    with pytest.raises(ScMambaError, match="no configuration"):
        read_settings("pretrain", file=tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "wrong",
    [
        {"batch_size": 0},
        {"mask_nonzero": 1.5},
        {"precision": "64"},
        {"ema": -0.1},
        {"doublet_recipe": "max"},
        {"doublet_fraction": 0.0},
    ],
)
def test_values_out_of_range_are_refused_before_training(wrong):
    (name,) = wrong
    with pytest.raises(OptionError, match=f"{name} is .*; expected"):
        read_settings("pretrain", given=wrong)


def test_trainer_recipes_and_command_line_share_one_list():
    shared = {f.name: f.default for f in fields(OptimizerOptions)}
    assert shared.items() <= {f.name: f.default for f in fields(TrainerConfig)}.items()
    assert shared.items() <= {f.name: f.default for f in fields(Settings)}.items()
    assert {f.name for f in fields(SequenceConfig)} - {"zeros"} <= set(asdict(Settings()))
