"""The training engine: every division of a batch gives the same step, and every interruption the same curve."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import engine_run
import numpy as np
import pytest
import torch
from conftest import small_model
from typer.testing import CliRunner

from scmamba.cli.main import app
from scmamba.data.collection import Collection
from scmamba.datasets import brain_cohort
from scmamba.genes import Vocabulary
from scmamba.model import Model, load_model, save_checkpoint
from scmamba.nn import ScMamba
from scmamba.training import TrainerConfig, finetune, fit, pretrain, read_sources
from scmamba.training.config import RECIPES, read_settings
from scmamba.training.dataloaders import (
    CollectionSource,
    InMemorySource,
    SourceSlice,
    make_slices_batch,
    reconstruction,
)
from scmamba.training.distributed import BatchShard, ShardedStep, SingleProcess, choose_strategy
from scmamba.training.finetune_classifier import (
    NO_MASKING,
    class_validation,
    finetune_classes,
    init_classifier,
    labels_from_obs,
    labels_from_simulated_doublets,
    linear_probe_init,
)
from scmamba.training.objectives import source_log_rate
from scmamba.training.reconstruction import IMPUTE, PRETRAIN
from scmamba.utils.errors import CheckpointError, DataError, ScMambaError

HERE = Path(__file__).parent
# engine_run uses the fixtures' helpers as a separate program
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(HERE.parent), *sys.path]),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> list[str]:
    """Two studies with different genes, the arguments with their paths for ``engine_run``, their cache filled."""
    folder = tmp_path_factory.mktemp("engine")
    for i, (cells, genes) in enumerate([(90, 2500), (60, 2000)]):
        brain_cohort(cells, n_donors=3, n_genes=genes, seed=i).write_h5ad(folder / f"study{i}.h5ad")
    words = [
        str(folder / "study0.h5ad"),
        str(folder / "study1.h5ad"),
        "--cache",
        str(folder / "cache"),
    ]
    assert Collection(words[:2], cache=folder / "cache", verbose=False).totals.min() > 0
    return words


def run(words: list[str], **options) -> list[dict]:
    """In this process, one after the other."""
    parsed = engine_run.arguments(words)
    network, step, config, judge = engine_run.prepare(parsed)
    return fit(
        network,
        step,
        config,
        folder=parsed.folder,
        validate=judge,
        verbose=options.get("verbose", False),
    )


@pytest.fixture(scope="module")
def whole(files) -> list[dict]:
    """Twelve steps of eight cells, uninterrupted."""
    return run([*files, "--steps", "12", "--batch", "8"])


def test_two_processes_equal_one_with_the_double_batch(files, whole):
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    words = [str(HERE / "engine_run.py"), *files, "--steps", "12", "--batch", "4"]
    done = subprocess.run([*torchrun, *words], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert len(found) == 12
    for ours, theirs in zip(found, whole):
        assert ours.keys() == theirs.keys()
        assert all(ours[name] == pytest.approx(theirs[name], rel=1e-5) for name in theirs)


def test_accumulated_pieces_are_one_batch(files, whole):
    found = run([*files, "--steps", "12", "--batch", "2", "--accumulate", "4"])
    np.testing.assert_allclose([r["loss"] for r in found], [r["loss"] for r in whole], rtol=1e-5)


def test_kill_9_and_a_damaged_state_do_not_change_the_curve(files, whole, tmp_path, capfd):
    folder = tmp_path / "run"
    words = [*files, "--steps", "12", "--batch", "8"]
    command = [
        sys.executable,
        str(HERE / "engine_run.py"),
        *words,
        "--folder",
        str(folder),
        "--pause",
        "0.03",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT)
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == "step 9":
            os.kill(process.pid, signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    states = sorted(p.name for p in folder.glob("state-*.pt"))
    assert len(states) == 3 and states[-1] in (
        "state-000000006.pt",
        "state-000000008.pt",
        "state-000000010.pt",
    )
    damaged = tmp_path / "damaged"
    shutil.copytree(folder, damaged)
    assert run([*words, "--folder", str(folder)], verbose=True) == whole
    assert "continuing after step" in capfd.readouterr().err

    newest = damaged / states[-1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    newest.write_bytes(content)
    (damaged / f".{states[-1]}.leftover").mkdir()
    assert run([*words, "--folder", str(damaged)], verbose=True) == whole
    messages = capfd.readouterr().err
    assert (
        f"{states[-1]} cannot be used" in messages
        and f"continuing after step {int(states[-2][6:-3])}" in messages
    )
    assert not list(damaged.glob(".*leftover")), "what the killed process left is cleared"
    log = (damaged / "log.csv").read_text().splitlines()
    assert (
        len(log) == 13
        and log[0] == "step,loss,lr,validation_loss"
        and (damaged / "loss.png").stat().st_size > 5000
    )

    for state in damaged.glob("state-*.pt"):
        state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="None of the 3 states"):
        run([*words, "--folder", str(damaged)])
    with pytest.raises(CheckpointError, match=r"other settings \(cells_per_step\)"):
        run([*files, "--steps", "12", "--batch", "4", "--folder", str(folder)])


@pytest.fixture(scope="module")
def source(cohort):
    return read_sources([cohort], Vocabulary.published())[0]


def test_fabric_and_the_direct_engine_agree_bit_for_bit(source, tmp_path):
    pytest.importorskip("lightning_fabric")
    config = TrainerConfig(steps=4, lr=1e-2, batch_size=4)
    for feed_sequence in (PRETRAIN, IMPUTE):
        step = reconstruction(InMemorySource([source]), feed_sequence, config)
        direct = fit(small_model("expressed").network, step, config, verbose=False)
        fabric = fit(
            small_model("expressed").network,
            step,
            config,
            folder=tmp_path / str(feed_sequence.mask_zero),
            verbose=False,
        )
        assert direct == fabric
    assert isinstance(choose_strategy("32", torch.device("cpu"), quick=True), SingleProcess), (
        "adaptation must not wait for Lightning"
    )
    with pytest.raises(ScMambaError, match="needs a GPU"):
        choose_strategy("16", torch.device("cpu"), quick=True)
    with pytest.raises(ScMambaError, match="precision '64'"):
        choose_strategy("64", torch.device("cpu"), quick=True)


def test_half_precision_is_close_to_single(source):
    pytest.importorskip("lightning_fabric")
    config = TrainerConfig(steps=3, lr=1e-3, batch_size=4)
    step = reconstruction(InMemorySource([source]), PRETRAIN, config)
    single = fit(small_model("expressed").network, step, config, verbose=False)
    half = fit(
        small_model("expressed").network, step, replace(config, precision="bf16"), verbose=False
    )
    assert single != half
    np.testing.assert_allclose([r["loss"] for r in half], [r["loss"] for r in single], rtol=0.02)


def test_the_running_mean_of_the_weights_is_kept(source, tmp_path):
    config = TrainerConfig(steps=6, lr=1e-2, batch_size=4, ema=0.5, save_every=3)
    step = reconstruction(InMemorySource([source]), PRETRAIN, config)
    seen: list[torch.Tensor] = []

    def watch(network, k, rng, share):
        seen.append(network.regressor.weight.detach().clone())
        return step.draw(network, k, rng, share)

    network = small_model("expressed").network
    fit(network, ShardedStep(watch), config, folder=tmp_path / "a", verbose=False)
    plain = small_model("expressed").network
    fit(plain, step, replace(config, ema=0.0), verbose=False)
    mean = seen[0]
    for weights in [*seen[1:], plain.regressor.weight.detach()]:
        mean = 0.5 * mean + 0.5 * weights
    torch.testing.assert_close(network.regressor.weight.detach(), mean)
    again = small_model("expressed", seed=3).network
    (tmp_path / "a" / "state-000000006.pt").unlink()
    fit(again, step, config, folder=tmp_path / "a", verbose=False)
    assert torch.equal(again.regressor.weight, network.regressor.weight), (
        "the mean goes on where it was"
    )


def test_shares_cover_a_batch_once_even_if_they_outnumber_the_cells(source):
    for world, parts, size in [(1, 1, 5), (2, 3, 12), (3, 2, 7), (8, 1, 4)]:
        shares = [
            BatchShard(r, world, p, parts).of(size) for r in range(world) for p in range(parts)
        ]
        assert sorted(np.concatenate(shares)) == list(range(size))
    config = TrainerConfig(steps=2, lr=1e-3, batch_size=1, accumulate=4)
    step = reconstruction(InMemorySource([source.take(np.arange(2))]), PRETRAIN, config)
    rows = fit(small_model("expressed").network, step, config, verbose=False)
    assert np.isfinite([r["loss"] for r in rows]).all()


def test_a_nan_loss_stops_with_advice(source):
    config = TrainerConfig(steps=3, batch_size=2)
    with pytest.raises(ScMambaError, match="The loss is nan at step 0. Lower the learning rate"):
        fit(
            small_model("expressed").network,
            lambda network, k, rng: network.regressor.weight.sum() * float("nan"),
            config,
            verbose=False,
        )


def test_whole_cells_of_several_files_are_read_as_published(files):
    cells = Collection(files[:2], cache=files[3], verbose=False)
    config = TrainerConfig(steps=1, batch_size=4)
    feed = CollectionSource(cells, seed=0, similar=False)
    parts = feed.draw(0, 12, np.random.default_rng(0), BatchShard())
    assert len(parts) == 2, "a batch of both files"
    batch = make_slices_batch(parts, replace(IMPUTE, mask_zero=0.3), "all", 19306, [0, 0])
    assert batch.x.shape == (12, 19306) and batch.keep is None
    row = 0
    for part in parts:
        measured = np.zeros(19306, bool)
        measured[part.source.genes] = True
        for key in part.keys:
            np.testing.assert_array_equal(
                batch.x[row].numpy(), cells.read(np.array(key)).values.toarray()[0]
            )
            hidden = batch.mask[row].numpy()
            assert not hidden[~measured].any() and abs(hidden[measured].mean() - 0.3) < 0.1
            row += 1
    model = pretrain(
        cells,
        config=replace(small_model().config, d_model=4),
        loop=config,
        held_out=cells,
        verbose=False,
    )
    assert all(torch.isfinite(p).all() for p in model.network.parameters())
    with pytest.raises(DataError, match="another vocabulary"):
        pretrain(
            cells,
            vocabulary=Vocabulary.published().subset(np.arange(100)),
            loop=config,
            verbose=False,
        )


def test_a_collection_gives_the_rate_objective_the_averages_of_its_files(files):
    cells = Collection(files[:2], cache=files[3], verbose=False)
    memory = read_sources(files[:2], Vocabulary.published(), min_total=0)
    for ours, theirs in zip(CollectionSource(cells, seed=0, similar=True).pseudobulk(), memory):
        np.testing.assert_array_equal(ours.genes, theirs.genes)
        np.testing.assert_allclose(source_log_rate(ours), source_log_rate(theirs), rtol=1e-4)
    model = small_model("expressed")
    rates = Model(ScMamba(replace(model.config, rates=True)), model.genes)
    tuned = finetune(
        cells,
        model=rates,
        loop=TrainerConfig(steps=4, batch_size=4, lr=1e-3),
        held_out=cells,
        name="t",
        verbose=False,
    )
    assert not torch.equal(tuned.network.rate_head.weight, rates.network.rate_head.weight)


def test_settings_are_taken_from_recipe_then_file_then_arguments(tmp_path):
    paper, chosen = read_settings("pretrain")
    assert (paper.epochs, paper.batch_size, paper.lr, paper.mask_nonzero, paper.clip) == (
        2,
        16,
        1e-3,
        0.15,
        1.0,
    ) and not chosen
    assert (paper.d_model, paper.layers, paper.reads, paper.min_donor_cells) == (256, 6, "all", 200)
    assert (
        paper.loop(1_600_000, 8, True).steps == 25_000
        and paper.loop(100, 1, True).precision == "16"
    )
    assert read_settings("impute")[0].above == 4000
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-4\nd-model: 64\nepochs: 1\nprecision: 32\n")
    found, chosen = read_settings("pretrain", "small", file, {"lr": 5e-4, "layers": None})
    assert (found.lr, found.d_model, found.epochs, found.steps, found.reads, found.precision) == (
        5e-4,
        64,
        1,
        0,
        "expressed",
        "32",
    )
    assert chosen == {"lr", "d_model", "epochs", "precision"}
    file.write_text("learning_rate: 1\n")
    with pytest.raises(ScMambaError, match="Unknown settings: learning_rate"):
        read_settings("pretrain", file=file)
    file.write_text("batch_size: many\n")
    with pytest.raises(ScMambaError, match="batch_size is 'many'; a whole number"):
        read_settings("pretrain", file=file)
    with pytest.raises(ScMambaError, match="no recipe 'huge'"):
        read_settings("pretrain", "huge")
    for recipes in RECIPES.values():
        assert {"paper", "small"} == set(recipes)


def test_commands_repeat_bit_for_bit(files, tmp_path, monkeypatch):
    monkeypatch.setenv("SCMAMBA_CACHE", files[3])
    call = CliRunner().invoke
    small = ["--steps", "2", "--batch-size", "4", "--seed", "3", "--genes-per-step", "300", "-q"]
    first = [
        "pretrain",
        *files[:2],
        "--recipe",
        "small",
        "--d-model",
        "8",
        "--layers",
        "1",
        "--splits",
        str(tmp_path / "s.tsv"),
        *small,
    ]
    for name in ("a", "b"):
        done = call(
            app, [*first, "-o", str(tmp_path / name), "--work", str(tmp_path / f"work-{name}")]
        )
        assert done.exit_code == 0, done.output
        second = [
            "finetune",
            *files[:2],
            "-m",
            str(tmp_path / name),
            "-o",
            str(tmp_path / f"tuned-{name}"),
            *small,
        ]
        done = call(app, second)
        assert done.exit_code == 0, done.output
    for pair in (("a", "b"), ("tuned-a", "tuned-b")):
        one, two = (load_model(tmp_path / name).network.state_dict() for name in pair)
        assert all(torch.equal(one[name], two[name]) for name in one)
    card = load_model(tmp_path / "a").card
    assert "study0.h5ad" in card and "d_model: 8" in card and "recipe small" in card
    assert "validation_loss" in (tmp_path / "work-a" / "log.csv").read_text()
    assert "exists already" in call(app, [*first, "-o", str(tmp_path / "a")]).output


@pytest.mark.parametrize("reads", ["expressed", "all"])
def test_a_head_starts_as_logistic_regression_on_the_cell_embeddings(
    files, tmp_path, monkeypatch, reads
):
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    monkeypatch.setenv("SCMAMBA_CACHE", files[3])
    cells = Collection(files[:1], cache=files[3], verbose=False)
    labelled = labels_from_obs(cells, seed=0, similar=False)
    started = linear_probe_init(small_model(reads), labelled, verbose=False)
    (part,) = labelled.sample(40)
    truth = labelled.codes(part)
    heard: dict[str, torch.Tensor] = {}
    hooks = [
        getattr(started.network, name).register_forward_hook(
            lambda _, given, answer, name=name: heard.update({name: given[0]})
        )
        for name in ("mean_head", "cls_head")
    ]
    full = torch.zeros(len(truth), len(started.genes))
    full[:, part.source.genes] = torch.from_numpy(part.source.values[part.rows].toarray())
    logits = started.classify(full).double()

    def read_by_heads(cells: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs of both heads, in the order of the cells: batches are formed by length."""
        alone = []
        for cell in cells:
            started.classify(cell[None])
            alone.append(dict(heard))
        return {name: torch.cat([each[name] for each in alone]) for name in heard}

    if reads == "all":  # the outputs at genes, not those at [CLS]: first, middle and last
        outputs: list[torch.Tensor] = []
        hooks.append(
            started.network.backbone.norm_f.register_forward_hook(
                lambda _, given, answer: outputs.append(answer)
            )
        )
        started.classify(full[:3])
        at = torch.ones(len(started.genes) + 3, dtype=torch.bool)
        at[[0, len(started.genes) // 2 + 1, -1]] = False
        torch.testing.assert_close(
            heard["mean_head"], outputs[0][:, at].mean(dim=1), rtol=1e-4, atol=1e-5
        )
    # All cells: the sample of the probe itself, so scikit-learn must give the same coefficients.
    (everyone,) = labelled.sample(10_000)
    whole = torch.zeros(len(everyone.rows), len(started.genes))
    whole[:, everyone.source.genes] = torch.from_numpy(
        everyone.source.values[everyone.rows].toarray()
    )
    known = read_by_heads(whole)["mean_head"].double().numpy()
    inputs = read_by_heads(full)
    for hook in hooks:
        hook.remove()
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=500)).fit(
        known, labelled.codes(everyone)
    )
    expected = torch.from_numpy(peer.predict_log_proba(inputs["mean_head"].double().numpy()))
    assert (logits.log_softmax(dim=1) - expected).abs().max() < 5e-3 and expected.std() > 0.05
    assert (
        inputs["cls_head"].shape == (len(truth), 3 * started.config.d_model)
        and not started.network.cls_head.weight.any()
    )
    # The mean is over the cell's genes only, whatever its padding.
    lone = started.classify(full[:1]).double()
    torch.testing.assert_close(lone, logits[:1], rtol=1e-4, atol=1e-4)
    save_checkpoint(started, tmp_path / "started")
    again = load_model(tmp_path / "started")
    assert again.config.pools and torch.equal(again.classify(full[:2]), started.classify(full[:2]))


def test_classifiers_are_trained_on_a_collection_and_on_simulated_doublets(
    files, tmp_path, monkeypatch
):
    monkeypatch.setenv("SCMAMBA_CACHE", files[3])
    cells = Collection(files[:2], cache=files[3], verbose=False)
    model = small_model("expressed")
    loop = TrainerConfig(steps=60, batch_size=12, lr=2e-2, seed=1)
    sequence = replace(NO_MASKING, genes_per_step=200)
    tuned = finetune_classes(
        "annotate", cells, model=model, loop=loop, sequence=sequence, balance=0.5, verbose=False
    )
    assert tuned.labels == sorted(set(cells.column("label"))) and tuned.config.n_classes == 8
    judge = class_validation(labels_from_obs(cells, seed=0, similar=False))
    untrained = judge(init_classifier(model, tuned.labels).network)
    assert judge(tuned.network)["validation_loss"] < 0.8 * untrained["validation_loss"]
    head_only = finetune_classes(
        "annotate", cells, model=model, loop=replace(loop, steps=2), freeze=True, verbose=False
    )
    assert torch.equal(head_only.gene_embedding(), model.gene_embedding())
    assert not torch.equal(tuned.gene_embedding(), model.gene_embedding())
    with pytest.raises(DataError, match="1 different labels"):
        finetune_classes(
            "annotate", cells.take(cells.column("label").codes == 0), model=model, verbose=False
        )

    published = finetune_classes(
        "annotate",
        cells,
        model=model,
        loop=replace(loop, steps=1),
        sequence=sequence,
        probe=False,
        verbose=False,
    )
    assert not published.config.pools and {
        n for n in published.network.state_dict() if "head" in n
    } == {"cls_head.weight"}

    pairs = labels_from_simulated_doublets(
        cells, seed=0, fraction=0.1, recipe="mean", verbose=False
    )
    assert (
        pairs.names == ["singlet", "doublet"]
        and pairs.counts[0] == 150
        and abs(pairs.counts[1] - 15) < 4
    )
    for number, source in enumerate(pairs.feed.pseudobulk()):
        part = SourceSlice(
            source, number, np.arange(len(source)), [(number, i) for i in range(len(source))]
        )
        made = pairs.codes(part) == 1
        assert abs(made.sum() - (9, 6)[number]) < 3
        # The mean of two cells is between them; no cell was used as a doublet.
        assert (
            source.totals[~made].min() < source.totals[made].min()
            and source.totals[made].max() < source.totals[~made].max()
        )
    by_verb = finetune(
        files[:2],
        model=model,
        task="doublets",
        loop=replace(loop, steps=1),
        held_out=cells,
        verbose=False,
    )
    assert by_verb.labels == ["singlet", "doublet"]

    call = CliRunner().invoke
    first = small_model("expressed")
    save_checkpoint(first, tmp_path / "start")
    for task in ("annotate", "doublets"):
        for name in ("a", "b"):
            words = [
                "finetune",
                *files[:2],
                "--task",
                task,
                "-m",
                str(tmp_path / "start"),
                "-o",
                str(tmp_path / f"{task}-{name}"),
            ]
            done = call(
                app,
                [
                    *words,
                    "--recipe",
                    "small",
                    "--steps",
                    "2",
                    "--batch-size",
                    "4",
                    "--seed",
                    "3",
                    "-q",
                ],
            )
            assert done.exit_code == 0, done.output
        one, two = (load_model(tmp_path / f"{task}-{name}") for name in ("a", "b"))
        assert (
            one.labels == two.labels
            and len(one.labels or []) == {"annotate": 8, "doublets": 2}[task]
        )
        assert all(
            torch.equal(v, two.network.state_dict()[k]) for k, v in one.network.state_dict().items()
        )
