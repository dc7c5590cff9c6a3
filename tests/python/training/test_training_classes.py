"""Classifiers: labels, doublets, the loss and its weights against scikit-learn; held-out donors are not used for fitting."""

from __future__ import annotations

from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from torch import nn

from scmamba.data.collection import Collection
from scmamba.datasets import brain_cohort
from scmamba.training import TrainerConfig
from scmamba.training import finetune_classifier as classes
from scmamba.training.batches import CellSource
from scmamba.training.calibration import fit_calibration
from scmamba.training.dataloaders import InMemorySource, SourceSlice
from scmamba.training.distributed import BatchShard
from scmamba.training.finetune_classifier import (
    NO_MASKING,
    LabelledCells,
    _by_length,
    _counts,
    _pieces,
    _probe,
    calibrate,
    class_validation,
    classification,
    classify_parts,
    finetune_classes,
    init_classifier,
    labels_from_doublet_calls,
    labels_from_obs,
    labels_from_simulated_doublets,
    linear_probe_init,
    macro_f1,
    sample_logits,
)
from scmamba.utils.errors import DataError


@pytest.fixture(scope="module")
def cohort_cells() -> ad.AnnData:
    return brain_cohort(60, n_donors=3, n_genes=900, seed=5)


@pytest.fixture(scope="module")
def collection(cohort_cells, tmp_path_factory) -> Collection:
    data = cohort_cells.copy()
    kinds = np.array(["b", "a", "c", "rare"], dtype=object)[np.r_[np.arange(57) % 3, 3, 3, 3]]
    kinds[[4, 9]] = None
    data.obs["cell_type"] = kinds
    other = brain_cohort(20, n_donors=2, n_genes=700, seed=6)
    other.obs["cell_type"] = "a"
    folder = tmp_path_factory.mktemp("classes")
    return Collection([data, other], cache=folder, force=True, min_coverage=0.0, verbose=False)


@pytest.fixture(scope="module")
def labelled() -> LabelledCells:
    """Fifty cells of three classes of unequal size, over sixty genes."""
    rng = np.random.default_rng(0)
    codes = np.r_[np.zeros(35, int), np.ones(12, int), np.full(3, 2)]
    values = sparse.random(50, 60, 0.4, "csr", np.float32, rng, lambda k: rng.uniform(1, 4, k))
    source = CellSource("s", values, np.arange(60), np.full(50, ""), np.full(50, 1e3))
    feed = InMemorySource([source])
    return LabelledCells(
        feed, lambda part: codes[part.rows], ["x", "y", "z"], np.bincount(codes), feed.sample
    )


def test_constants():
    assert NO_MASKING.mask_nonzero == NO_MASKING.mask_zero == 0 and NO_MASKING.genes_per_step == 0
    assert (classes.MAX_SINGLETS, classes.PROBE_CELLS) == (50_000, 4096)


def test_cells_have_the_classes_of_their_column(collection):
    found = labels_from_obs(collection, seed=0, similar=True)
    assert (
        found.names == ["a", "b", "c", "rare"]
        and found.counts.sum() == 78 == len(found.feed)
        and found.feed.similar
    )
    own = np.r_[
        np.array(["b", "a", "c", "rare"])[np.r_[np.arange(57) % 3, 3, 3, 3]], np.full(20, "a")
    ]
    for part in found.sample(1000):
        numbers = [key[0] for key in part.keys]
        assert not {4, 9} & set(numbers)
        assert [found.names[c] for c in found.codes(part)] == own[numbers].tolist()
    assert found.counts.tolist() == [(np.delete(own, [4, 9]) == n).sum() for n in found.names]
    sizes = [sum(len(p.rows) for p in found.sample(n)) for n in (10, 1000)]
    assert sizes == [10, 78] and [p.keys for p in found.sample(10)] == [
        p.keys for p in found.sample(10)
    ]
    # The classes of an existing model: other labels have no class, and the order is the model's.
    some = labels_from_obs(collection, seed=0, similar=False, names=["c", "nobody", "a"])
    assert some.names == ["c", "nobody", "a"] and some.counts.tolist() == [
        found.counts[2],
        0,
        found.counts[0],
    ]
    with pytest.raises(DataError, match="None of the cells has one of the labels q"):
        labels_from_obs(collection, seed=0, similar=False, names=["q"])
    with pytest.raises(DataError, match="1 different labels"):
        labels_from_obs(collection.take(collection.cells >= 60), seed=0, similar=False)


def test_a_tenth_are_doublets_within_donors_as_in_the_paper(collection, cohort_cells):
    found = labels_from_simulated_doublets(collection, seed=3, verbose=False)
    sources = found.feed.sources
    assert found.names == ["singlet", "doublet"] and [s.name for s in sources] == [
        m.store.name for m in collection.members
    ]
    made = [len(s) - n for s, n in zip(sources, (60, 20))]
    assert (
        abs(made[0] - 6) <= 2 and abs(made[1] - 2) <= 2 and found.counts.tolist() == [80, sum(made)]
    )
    first = sources[0]
    part = SourceSlice(first, 0, np.arange(len(first)), [(0, i) for i in range(len(first))])
    assert found.codes(part).tolist() == [0] * 60 + [1] * made[0]
    counts = (
        np.rint(np.expm1(first.values.toarray().astype(float)) * first.totals[:, None] / 1e4 * 2)
        / 2
    )
    block = collection.read(np.arange(60))
    donors = collection.take(np.arange(80) < 60).donor_keys().codes
    np.testing.assert_allclose(first.totals[:60], block.totals)
    singles = np.rint(
        _counts(replace(first, values=first.values[:60], totals=first.totals[:60])).toarray()
    )
    for doublet in counts[60:]:
        close = [
            (i, j)
            for i in range(60)
            for j in range(i)
            if np.abs((singles[i] + singles[j]) / 2 - doublet).max() < 0.3
        ]
        assert len(close) == 1 and donors[close[0][0]] == donors[close[0][1]]
    few = labels_from_simulated_doublets(
        collection, seed=3, fraction=0.5, recipe="sum", max_cells=30, verbose=False
    )
    assert few.counts[0] == 30 and abs(few.counts[1] - 15) <= 4
    assert (
        labels_from_simulated_doublets(collection, seed=4, verbose=False).feed.sources[0].totals[-1]
        != first.totals[-1]
    )


def with_calls(cells: ad.AnnData, words: tuple[str, str, str]) -> tuple[ad.AnnData, np.ndarray]:
    """Cells of which every third is replaced by the sum of two, and the calls of a hashing experiment."""
    counts = sparse.csr_matrix(cells.X).astype(np.float64)
    truth = np.arange(cells.n_obs) % 3 == 0
    other = np.roll(np.arange(cells.n_obs), 7)
    mixed = sparse.csr_matrix(sparse.diags(truth.astype(float)) @ counts[other] + counts)
    out = cells.copy()
    out.X = mixed
    calls = np.where(truth, words[1], words[0]).astype(object)
    calls[4] = words[2]
    out.obs["call"] = calls
    return out, truth


@pytest.mark.parametrize(
    "words", [("Singlet", "Doublet", "Negative"), ("False", "True", "nan"), ("SNG", "DBL", "AMB")]
)
def test_in_vivo_doublets_are_those_of_the_column(cohort_cells, tmp_path, words):
    cells, truth = with_calls(cohort_cells, words)
    opened = Collection([cells], label_key="call", cache=tmp_path, force=True, verbose=False)
    found = labels_from_doublet_calls(opened, seed=0, similar=False)
    assert found.names == ["singlet", "doublet"] and found.counts.tolist() == [39, 20]
    for part in found.sample(100):
        numbers = [key[0] for key in part.keys]
        assert 4 not in numbers and found.codes(part).tolist() == truth[numbers].tolist()
    with pytest.raises(DataError, match="'singlet' and 'doublet', or true and false"):
        labels_from_doublet_calls(
            Collection([cells], label_key="cell_type", cache=tmp_path, force=True, verbose=False),
            seed=0,
            similar=False,
        )


def test_in_vivo_doublets_train_and_score(cohort_cells, tmp_path, monkeypatch):
    """The head starts as a probe that finds the doublets of held-out donors."""
    from sklearn.metrics import roc_auc_score

    cells, truth = with_calls(
        brain_cohort(160, n_donors=4, n_genes=1500, seed=2), ("singlet", "doublet", "")
    )
    opened = Collection([cells], label_key="call", cache=tmp_path, force=True, verbose=False)
    held = cells.obs["donor"].to_numpy() == cells.obs["donor"].iloc[0]
    seen: dict = {}
    monkeypatch.setattr(classes, "fit", lambda *a, **named: seen.update(named))
    tuned = finetune_classes(
        "doublets",
        opened.take(~held),
        held_out=opened.take(held),
        from_labels=True,
        verbose=False,
    )
    assert (
        tuned.labels == ["singlet", "doublet"]
        and tuned.calibration["cells"] == held[np.arange(160) != 4].sum()
    )
    scored = seen["validate"](tuned.network)
    others = labels_from_doublet_calls(opened.take(held), seed=0, similar=False)
    parts = others.sample(500)
    logits = sample_logits(tuned.network, parts)
    codes = np.concatenate([others.codes(part) for part in parts])
    assert scored["validation_accuracy"] == np.mean(logits.argmax(dim=1).numpy() == codes)
    assert roc_auc_score(codes, (logits[:, 1] - logits[:, 0]).numpy()) > 0.8


def test_counts_are_recovered_from_logs():
    counts = np.array([[3.0, 0, 1], [0, 7, 2]])
    totals = np.array([10.0, 12.0])
    values = sparse.csr_matrix(np.log1p(1e4 * counts / totals[:, None]), dtype=np.float32)
    np.testing.assert_array_equal(
        _counts(CellSource("s", values, np.arange(3), np.full(2, ""), totals)).toarray(), counts
    )


def test_a_new_classifier_keeps_the_backbone_and_replaces_the_head():
    model = small_model("expressed", n_classes=2, n_genes=40)
    model.network.backend = "reference"
    tuned = init_classifier(model, ["p", "q", "r"], name="new", seed=5, pools=True)
    assert (
        tuned.labels == ["p", "q", "r"]
        and tuned.genes is model.genes
        and tuned.network.backend == "reference"
    )
    assert tuned.config == replace(
        model.config, n_classes=3, pools=True, reconstructs=False, rates=False, name="new"
    )
    old, own = model.network.state_dict(), tuned.network.state_dict()
    assert not own["backbone.cls_token"].any() and old["backbone.cls_token"].any()
    shared = set(old) & set(own) - {"cls_head.weight", "backbone.cls_token"}
    assert (
        "regressor.weight" not in own
        and len(shared) > 10
        and all(torch.equal(old[k], own[k]) for k in shared)
    )
    again = init_classifier(model, ["p", "q", "r"], seed=5, pools=True)
    assert (
        torch.equal(again.network.cls_head.weight, own["cls_head.weight"])
        and again.config.name == "small"
    )
    assert not torch.equal(
        init_classifier(model, list("pqr"), seed=6).network.cls_head.weight, own["cls_head.weight"]
    )
    same = init_classifier(model, ["p", "q"], seed=5)
    assert (
        not torch.equal(same.network.cls_head.weight, old["cls_head.weight"])
        and not same.config.pools
    )


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_the_probe_is_class_weighted_logistic_regression(balance):
    rng = np.random.default_rng(0)
    codes = np.r_[np.zeros(60, int), np.full(25, 1), np.full(9, 3)]
    x = rng.normal(3, 2, (94, 5)) + np.eye(5)[codes]
    weight, bias = _probe(x, codes, 5, balance)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    each = np.array([60.0, 25, 0, 9])[codes] ** -balance
    peer = LogisticRegression(C=0.1, max_iter=500).fit(z, codes, sample_weight=each / each.mean())
    logits = x @ weight.T + bias
    found = np.exp(logits[:, [0, 1, 3]])
    np.testing.assert_allclose(
        found / found.sum(axis=1, keepdims=True), peer.predict_proba(z), atol=1e-4
    )
    assert not weight[[2, 4]].any() and bias[2] == bias[4] == pytest.approx(peer.intercept_.min())
    two = codes < 2
    weight, bias = _probe(x[two], codes[two], 2, balance)
    z = (x[two] - x[two].mean(axis=0)) / x[two].std(axis=0)
    each = np.array([60.0, 25])[codes[two]] ** -balance
    peer = LogisticRegression(C=0.1, max_iter=500).fit(
        z, codes[two], sample_weight=each / each.mean()
    )
    odds = x[two] @ (weight[1] - weight[0]) + bias[1] - bias[0]
    np.testing.assert_allclose(odds, peer.decision_function(z), atol=1e-4)
    np.testing.assert_allclose(weight[0], -weight[1])
    lone = _probe(x[:4], np.full(4, 1), 2, balance)
    assert not lone[0].any() and not lone[1].any()


def test_the_head_starts_from_the_probe(labelled):
    started = linear_probe_init(
        small_model("expressed", n_genes=60), labelled, name="n", seed=2, balance=0.5, verbose=False
    )
    (part,) = labelled.sample(1000)
    network = started.network
    with torch.no_grad():
        hidden = (
            torch.cat(
                [network.classified(*_batch(started, p))[1] for p in _pieces([_by_length(part)])]
            )
            .double()
            .numpy()
        )
    weight, bias = _probe(hidden, labelled.codes(_by_length(part)), 3, 0.5)
    np.testing.assert_allclose(
        network.mean_head.weight.detach().numpy(), weight, rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(network.mean_head.bias.detach().numpy(), bias, rtol=1e-3, atol=1e-4)
    assert not network.cls_head.weight.any() and started.config.pools and started.config.name == "n"


def _batch(model, part: SourceSlice):
    batch = classes.make_slices_batch(
        [part], NO_MASKING, model.config.reads, model.config.n_genes, [0]
    )
    return batch.x, batch.genes, batch.keep


def test_parts_are_sorted_by_length_sixteen_at_a_time(labelled):
    (part,) = labelled.sample(1000)
    ordered = _by_length(part)
    lengths = np.diff(part.source.values.indptr)
    assert (np.diff(lengths[ordered.rows]) >= 0).all() and sorted(ordered.rows) == list(range(50))
    assert ordered.keys == [(0, int(r)) for r in ordered.rows] and ordered.number == part.number
    pieces = list(_pieces([ordered, part]))
    assert [len(p.rows) for p in pieces] == [16, 16, 16, 2] * 2
    np.testing.assert_array_equal(np.concatenate([p.rows for p in pieces[:4]]), ordered.rows)
    assert [k for p in pieces[4:] for k in p.keys] == part.keys


class Head(nn.Module):
    """Logits that follow the sum of a cell's values."""

    def __init__(self, reads: str = "expressed") -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor([0.01, -0.02, 0.005]))
        self.config = small_model(reads, n_classes=3, n_genes=60).config

    def classify(self, x, genes=None, keep=None):
        return x.sum(dim=1, keepdim=True) * self.slope + torch.tensor([1.0, 0.0, -1.0])


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_cross_entropy_weights_have_mean_one(labelled, balance):
    network, config = Head(), TrainerConfig(batch_size=20, seed=3)
    loss = classification(labelled, NO_MASKING, config, balance=balance).draw(
        network, 1, np.random.default_rng(0), BatchShard()
    )
    (part,) = labelled.feed.draw(1, 20, np.random.default_rng(0), BatchShard())
    codes = labelled.codes(part)
    sums = part.source.values[part.rows].toarray().astype(float).sum(axis=1)
    logits = sums[:, None] * np.array([0.01, -0.02, 0.005]) + [1, 0, -1]
    entropy = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(20), codes]
    raw = np.array([35.0, 12, 3]) ** -balance
    weight = (raw / (raw * np.array([35, 12, 3]) / 50).sum())[codes]
    assert loss.total.item() == pytest.approx(
        (entropy * weight).sum(), rel=1e-5
    ) and loss.weight.item() == pytest.approx(weight.sum(), rel=1e-5)
    if balance == 1.0:  # the same class for all
        assert [
            w * n
            for w, n in zip(
                np.unique(raw / (raw * np.array([35, 12, 3]) / 50).sum())[::-1], (3, 12, 35)
            )
        ] == pytest.approx([50 / 3] * 3)
    absent = replace(labelled, names=["x", "y", "z", "w"], counts=np.array([35, 12, 3, 0]))
    again = classification(absent, NO_MASKING, config, balance=balance).draw(
        network, 1, np.random.default_rng(0), BatchShard()
    )
    assert again.total.item() == pytest.approx(loss.total.item(), rel=1e-6)
    nobody = classification(labelled, NO_MASKING, replace(config, batch_size=1)).draw(
        network, 1, np.random.default_rng(0), BatchShard(60, 61)
    )
    assert nobody.weight == 0


def test_validation_uses_the_same_cells_every_time(labelled):
    network = Head()
    found = class_validation(labelled, cells=30)(network)
    (part,) = labelled.sample(30)
    truth = labelled.codes(part)
    logits = sample_logits(network, [part])
    direct = classify_parts(network, [part], NO_MASKING, [0]).detach()
    torch.testing.assert_close(logits, direct)
    calls = logits.argmax(dim=1).numpy()
    expected = nn.functional.cross_entropy(logits.double(), torch.from_numpy(truth)).item()
    assert found["validation_loss"] == pytest.approx(expected, rel=1e-5)
    assert found["validation_accuracy"] == pytest.approx(np.mean(calls == truth))
    present = np.unique(truth)
    assert found["validation_f1"] == pytest.approx(
        f1_score(truth, calls, average="macro", labels=present, zero_division=0)
    )
    assert class_validation(labelled, cells=30)(network) == found


def test_macro_f1_is_over_the_classes_that_occur():
    rng = np.random.default_rng(0)
    truth, found = rng.choice([0, 2, 3], 80), rng.choice(5, 80)
    assert macro_f1(truth, found) == pytest.approx(
        f1_score(truth, found, average="macro", labels=[0, 2, 3])
    )
    assert macro_f1(np.array([1, 1]), np.array([0, 0])) == 0


@pytest.mark.parametrize("reads", ["expressed", "all"])
def test_cells_are_read_like_by_the_network(labelled, reads):
    model = small_model(reads, n_classes=3, n_genes=60)
    (part,) = labelled.sample(12)
    with torch.no_grad():
        found = classify_parts(model.network, [part], NO_MASKING, [0])
    expected = model.classify(part.source.values[part.rows].toarray())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_calibration_uses_held_out_cells(labelled):
    model = small_model("expressed", n_classes=3, n_genes=60)
    model.network.train()
    calibrate(model, labelled, cells=40)
    assert model.network.training
    (part,) = labelled.sample(40)
    logits = model.classify(part.source.values[part.rows].toarray()).double().numpy()
    expected = fit_calibration(logits, labelled.codes(part))
    assert model.calibration["cells"] == 40
    assert model.calibration["temperature"] == pytest.approx(expected["temperature"], rel=1e-3)
    asked = []
    calibrate(model, replace(labelled, sample=lambda n: asked.append(n) or labelled.sample(12)))
    assert asked == [2048] and model.calibration["cells"] == 12


@pytest.mark.parametrize("task", ["annotate", "doublets"])
def test_arguments_of_fine_tuning_for_the_loop(collection, monkeypatch, task):
    """Classes of the training cells; validation and fit_calibration on held-out donors only."""
    seen: dict = {}

    def fit(network, step, config, *, folder=None, description="", verbose=True, validate=None):
        seen.update(
            network=network,
            step=step,
            config=config,
            folder=folder,
            validate=validate,
            trained={n for n, p in network.named_parameters() if p.requires_grad},
        )

    monkeypatch.setattr(classes, "fit", fit)
    donors = np.asarray(collection.donor_keys().codes)
    held, rest = collection.take(donors == donors[0]), collection.take(donors != donors[0])
    model = small_model("expressed")
    tuned = finetune_classes(
        task, rest, model=model, held_out=held, balance=0.5, freeze=True, name="t", verbose=False
    )
    assert seen["config"] == TrainerConfig(lr=1e-4) and seen["trained"] == {
        "backbone.cls_token",
        "cls_head.weight",
        "mean_head.weight",
        "mean_head.bias",
    }
    assert (
        all(p.requires_grad for p in tuned.network.parameters())
        and tuned.config.name == "t"
        and tuned.config.pools
    )
    if task == "annotate":
        labelled = labels_from_obs(rest, seed=0, similar=True)
        others = labels_from_obs(held, seed=0, similar=False, names=labelled.names)
    else:
        labelled = labels_from_simulated_doublets(rest, seed=0, verbose=False)
        others = labels_from_simulated_doublets(held, seed=0, max_cells=5000, verbose=False)
    assert tuned.labels == labelled.names
    assert seen["validate"](tuned.network) == class_validation(others)(tuned.network)
    assert tuned.calibration["cells"] == others.counts.sum() <= len(held) * 1.2
    a, b = (
        s.draw(tuned.network, 2, np.random.default_rng(1), BatchShard())
        for s in (
            seen["step"],
            classification(labelled, NO_MASKING, TrainerConfig(lr=1e-4), balance=0.5),
        )
    )
    assert a.total.item() == pytest.approx(b.total.item()) and a.weight.item() == pytest.approx(
        b.weight.item()
    )
    plain = finetune_classes(
        task, rest, model=model, probe=False, loop=TrainerConfig(steps=2, seed=8), verbose=False
    )
    assert (
        not plain.config.pools
        and plain.calibration is None
        and seen["validate"] is None
        and seen["config"].seed == 8
    )
    assert "backbone.gene_id_embedding.weight" in seen["trained"]
