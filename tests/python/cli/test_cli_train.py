"""The commands that train models: which cells, settings and labels reach the training, and what is written with the weights."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import pandas as pd
import pytest
from conftest import small_model
from typer.testing import CliRunner

from scmamba.cli.main import app
from scmamba.model import load_model, save_checkpoint
from scmamba.nn import ModelConfig
from scmamba.training.batches import SequenceConfig
from scmamba.training.trainer import TrainerConfig


@pytest.fixture
def run(tmp_path, monkeypatch, cohort):
    """Run a command in a folder with two files of twenty cells each and check its exit status."""
    monkeypatch.chdir(tmp_path)
    cells = cohort.copy()
    cells.obs["kind"], cells.obs["who"], cells.obs["sick"] = (
        "N",
        cells.obs["donor"],
        cells.obs["disease"],
    )
    cells[::2].copy().write_h5ad("a.h5ad")
    cells[1::2].copy().write_h5ad("b.h5ad")

    def call(line: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, line.split())
        assert result.exit_code == code, result.output
        return result.output

    return call


@pytest.fixture
def trained(monkeypatch):
    """Training that records its arguments and returns a small model."""
    calls: list[tuple[str, tuple, dict]] = []

    def stand_in(name: str):
        def train(*positional, **named):
            calls.append((name, positional, named))
            return small_model("expressed", n_genes=50)

        return train

    monkeypatch.setattr("scmamba.training.pretrain", stand_in("pretrain"))
    monkeypatch.setattr("scmamba.training.finetune", stand_in("finetune"))
    monkeypatch.setattr(
        "scmamba.training.finetune_classifier.finetune_classes", stand_in("classes")
    )
    return calls


def test_pre_training_follows_the_paper_by_default(run, trained, tmp_path):
    result = run("pretrain a.h5ad -o model --force -q --min-donor-cells 0 --cache cache")
    (_, (cells,), named) = trained[0]
    assert len(cells) == 20 and named["config"] == ModelConfig(
        n_genes=19_306, d_model=256, n_layer=6, reads="all"
    )
    assert named["loop"] == TrainerConfig(
        steps=2, batch_size=16, lr=1e-3, weight_decay=0.1, clip=1.0, save_every=200, precision="32"
    )
    assert named["sequence"] == SequenceConfig(mask_nonzero=0.15, mask_zero=0.0, genes_per_step=0)
    assert (
        named["held_out"],
        named["folder"],
        named["name"],
        named["seed"],
        named["force"],
        named["verbose"],
    ) == ([], None, "model", 0, True, False)
    assert "parameters" in result and (tmp_path / "cache").is_dir()
    card = load_model(tmp_path / "model", device="cpu").card
    assert card.startswith("# model\n\nPre-trained") and "a.h5ad: 20 cells, 4 donors" in card
    assert "lr: 0.001" in card and "recipe paper" in card


def test_the_rate_head_is_an_option_and_in_the_recipe(run, trained):
    line = "pretrain a.h5ad --force -q --min-donor-cells 0 --cache cache"
    result = [
        run(f"{line} -o m{i} {more}") for i, more in enumerate(("", "--rates", "--recipe small"))
    ]
    assert [call[2]["config"].rates for call in trained] == [False, True, True]
    assert "no rate head" in result[0] and "published rule" in result[0]
    assert "rate head is trained by: scmamba finetune" in result[1] and "--model m2" in result[2]
    run(f"{line} -o m3 --recipe small --no-rates")
    assert trained[3][2]["config"].rates is False


@pytest.mark.parametrize("column", ["call", "kind"])
def test_in_vivo_doublets_are_not_filtered_out(run, trained, tmp_path, column):
    save_checkpoint(small_model("expressed"), tmp_path / "start")
    for name in ("a.h5ad", "b.h5ad"):
        cells = ad.read_h5ad(name)
        cells.obs["call"] = ["Doublet", "Singlet", "Singlet", "Negative"] * 5
        cells.write_h5ad(name)
    line = "finetune a.h5ad -o tuned --model start --task doublets --force -q --cache cache --held-out b.h5ad --min-donor-cells 0"
    run(f"{line} --label {column}")
    _, (_, cells), named = trained[0]
    assert named["from_labels"] is (column == "call")
    assert (len(cells), len(named["held_out"])) == (20, 20)


def test_every_setting_of_pre_training(run, trained):
    run(
        "pretrain a.h5ad -o model --recipe small --no-rates --epochs 3 --batch-size 4 --accumulate 2 --lr 0.01 --ema 0.9 --precision bf16 --d-model 8 "
        "--layers 1 --reads all --genes-per-step 30 --min-total 5 --min-donor-cells 0 --save-every 7 --seed 9 --held-out b.h5ad --work w "
        "--donor who --study batch --disease sick --label kind --cache cache"
    )
    (_, (cells,), named) = trained[0]
    assert named["config"] == ModelConfig(n_genes=19_306, d_model=8, n_layer=1, reads="all")
    # 3 epochs of 20 cells, 8 per step
    assert named["loop"] == TrainerConfig(
        steps=8,
        batch_size=4,
        accumulate=2,
        lr=0.01,
        warmup=0.03,
        ema=0.9,
        precision="bf16",
        save_every=7,
        seed=9,
    )
    assert named["sequence"] == SequenceConfig(mask_nonzero=0.3, mask_zero=0.0, genes_per_step=30)
    assert len(named["held_out"]) == 20 and named["folder"] == Path("w") and named["seed"] == 9
    assert named["force"] is False and named["verbose"] is True
    keys = cells.donor_keys().categories
    assert all(key.split("/")[0] in ("batch1", "batch2") for key in keys) and len(keys) == 4


def test_command_line_options_override_the_file_of_settings(run, trained, tmp_path):
    (tmp_path / "s.yaml").write_text("lr: 1e-2\nsteps: 5\nmin-donor-cells: 0\nd_model: 8\n")
    run("pretrain a.h5ad -o model --config s.yaml --steps 4 --force -q --cache cache")
    loop = trained[0][2]["loop"]
    assert (loop.lr, loop.steps, trained[0][2]["config"].d_model) == (0.01, 4, 8)
    (tmp_path / "s.yaml").write_text("learning: 1\n")
    assert "Unknown settings: learning" in run("pretrain a.h5ad -o other --config s.yaml", 1)
    assert "no recipe 'large'" in run("pretrain a.h5ad -o other --recipe large", 1)
    assert "exists already" in run("pretrain a.h5ad -o model", 1) and len(trained) == 1


def test_a_table_of_donors_is_written_once_and_reused(run, trained, tmp_path):
    line = "pretrain a.h5ad b.h5ad -o model --overwrite --splits s.tsv --min-donor-cells 0 --force --seed 3 --cache cache --study batch"
    run(line)
    table = pd.read_csv(tmp_path / "s.tsv", sep="\t")
    counts = table.groupby("split")["cells"].sum()
    train, validation = trained[0][1][0], trained[0][2]["held_out"]
    assert (len(train), len(validation)) == (
        counts["train"],
        counts["validation"],
    ) and counts.sum() == 40
    table["split"] = ["train", "validation", "test", "train"]
    table.to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    run(line)
    assert (
        len(trained[1][1][0]) == table["cells"][[0, 3]].sum()
        and len(trained[1][2]["held_out"]) == table["cells"][1]
    )
    assert "either --held-out" in run(line + " --held-out b.h5ad", 1)
    table["split"] = "train"
    table.to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    assert "no validation loss" in run(line) and trained[2][2]["held_out"] == []


def test_filters_of_the_recipe_are_dropped_if_they_would_remove_every_cell(run, trained):
    result = run("pretrain a.h5ad -o model --force --cache cache")
    assert (
        "min_donor_cells of 200 is not applied" in " ".join(result.split())
        and len(trained[0][1][0]) == 20
    )
    run("pretrain a.h5ad -o other --force --cache cache --min-donor-cells 200", 1)
    assert len(trained) == 1


@pytest.mark.parametrize("task", ["impute", "annotate", "doublets"])
def test_options_of_fine_tuning_reach_the_training(run, trained, tmp_path, task):
    save_checkpoint(small_model("expressed"), tmp_path / "start")
    line = f"finetune a.h5ad -o tuned --model start --task {task} --force -q --cache cache --held-out b.h5ad --work w --label kind"
    result = run(
        line + " --steps 3 --balance 0.25 --freeze --probe --min-donor-cells 0 --above 1 --seed 4"
    )
    name, (first, *rest), named = trained[0]
    cells = first if task == "impute" else rest[0]
    assert (
        name == ("finetune" if task == "impute" else "classes")
        and len(cells) == 20
        and len(named["held_out"]) == 20
    )
    assert named["model"].config.name == "start" or named["model"].config.d_model == 8
    assert (
        named["folder"],
        named["name"],
        named["verbose"],
        named["loop"].steps,
        named["loop"].lr,
    ) == (Path("w"), "tuned", False, 3, 1e-4)
    assert named["loop"].seed == 4
    if task == "impute":
        assert (
            named["task"] == "impute"
            and named["seed"] == 4
            and named["force"] is True
            and named["loop"].batch_size == 8
        )
        assert named["sequence"] == SequenceConfig(
            mask_nonzero=0.4, mask_zero=0.04, genes_per_step=0
        )
        assert "scmamba impute --model tuned" in result
    else:
        assert (
            first == task
            and (named["balance"], named["freeze"], named["probe"]) == (0.25, True, True)
            and "classify" in result
        )
        assert (named["recipe"], named["fraction"], named["loop"].batch_size) == ("mean", 0.1, 16)
    assert f"Fine-tuned from start for {task}" in load_model(tmp_path / "tuned", device="cpu").card
    run(line.replace("tuned", "again").replace("--held-out b.h5ad", "--recipe small --steps 2"))
    named = trained[1][2]
    if task != "impute":
        assert (named["balance"], named["freeze"], named["probe"], named["held_out"]) == (
            0.5,
            False,
            task == "annotate",
            None,
        )
        assert (named["recipe"], named["fraction"]) == (
            ("mixed", 0.5) if task == "doublets" else ("mean", 0.1)
        )
    else:
        assert named["held_out"] == []


def test_a_vocabulary_is_built_and_used(run, trained, tmp_path, monkeypatch):
    from scmamba.genes import Vocabulary

    calls = []

    def build(data, **named):
        calls.append((data, named))
        return Vocabulary.published().subset(range(5)), pd.DataFrame({"gene": ["a", "b"]})

    monkeypatch.setattr("scmamba.data.vocabulary_builder.build_vocabulary", build)
    assert "5 of 2 genes counted" in run("vocab build a.h5ad b.h5ad -o genes.tsv")
    run(
        "vocab build a.h5ad -o genes.tsv --gtf g.gtf --min-fraction 0.01 --table t.tsv --cache c --overwrite -q "
        "--not-counted b.h5ad --not-counted c.h5ad"
    )
    plain = dict(gtf=None, min_fraction=0.005, not_counted=(), cache=None, verbose=True)
    other = dict(
        gtf=Path("g.gtf"),
        min_fraction=0.01,
        not_counted=[Path("b.h5ad"), Path("c.h5ad")],
        cache=Path("c"),
        verbose=False,
    )
    assert calls == [([Path("a.h5ad"), Path("b.h5ad")], plain), ([Path("a.h5ad")], other)]
    assert (tmp_path / "t.tsv").read_text() == "gene\na\nb\n"
    assert list(Vocabulary.read(tmp_path / "genes.tsv").symbols) == list(
        Vocabulary.published().symbols[:5]
    )
    assert "exists already" in run("vocab build a.h5ad -o genes.tsv", 1)
    run("vocab build a.h5ad -o other.tsv --min-fraction 1.1", 2)
