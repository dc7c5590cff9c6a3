"""Annotation from a labeled reference: which of its data are read, which the network is trained on, and what is cached."""

from __future__ import annotations

import importlib
from dataclasses import replace

import anndata as ad
import numpy as np
import pytest
from conftest import small_model
from scipy import sparse

from scmamba.annotation import annotate
from scmamba.annotation._reference import (
    ReferenceAnnotator,
    ReferenceCells,
    log_probabilities,
    readable,
)
from scmamba.annotation.ensemble import CellTypeEnsemble, donor_folds, fit_ensemble
from scmamba.annotation.expression import all_human_genes, read_human_cells, shared_values
from scmamba.annotation.options import AnnotateOptions
from scmamba.data import read_cells
from scmamba.genes import Vocabulary
from scmamba.training import TrainerConfig
from scmamba.training import finetune_classifier as classes
from scmamba.training import trainer as loop
from scmamba.training.calibration import fit_calibration
from scmamba.utils.errors import DataError

module = importlib.import_module("scmamba.annotation._reference")
GENES = 400


def cells(n: int, seed: int, kinds: int = 3) -> ad.AnnData:
    """Cells of three types over four hundred human genes, of six donors; every fifth gene is hardly detected."""
    rates = np.random.default_rng(0).gamma(0.5, 2.0, (kinds, GENES))
    rates[:, ::5] *= 0.002
    rng = np.random.default_rng(seed)
    code = np.arange(n) % kinds
    data = ad.AnnData(sparse.csr_matrix(rng.poisson(rates[code]).astype(np.float32)))
    data.obs_names = [f"c{i}" for i in range(n)]
    data.obs["kind"] = np.array(["q", "p", "r"])[code]
    data.obs["group"] = np.where(code == 1, "P", "Q")
    data.obs["donor"] = [f"d{i // 3 % 6}" for i in range(n)]
    data.var_names = list(all_human_genes().ensembl_ids[100 : 100 + GENES])
    return data


@pytest.fixture(scope="module")
def reference() -> ad.AnnData:
    return cells(150, 1)


@pytest.fixture(scope="module")
def query() -> ad.AnnData:
    return cells(30, 2)[:, :350].copy()


def prepared(
    reference: ad.AnnData, query: ad.AnnData, rows: np.ndarray
) -> tuple[sparse.csr_matrix, np.ndarray, sparse.csr_matrix]:
    human = all_human_genes()
    theirs, ours = (read_cells(d, human, force=True, min_coverage=0.0) for d in (reference, query))
    shared = np.intersect1d(theirs.genes, ours.genes)
    x = shared_values(theirs, shared, rows)
    keep = np.asarray((x > 0).sum(axis=0)).ravel() >= min(5, max(1, len(rows) // 20))
    return x[:, keep], shared[keep], shared_values(ours, shared[keep], np.arange(len(query)))


@pytest.mark.parametrize("donor", ["donor", None])
def test_annotate_returns_the_ensemble_on_the_shared_genes(reference, query, donor):
    known = reference.copy()
    known.obs["kind"] = known.obs["kind"].astype(object)
    known.obs.iloc[[4, 5], known.obs.columns.get_loc("kind")] = None
    found = annotate(
        query,
        reference=known,
        label_key=["group", "kind"],
        donor_key=donor,
        finetune_steps=0,
        cache=False,
        seed=3,
        error_rate=0.2,
        verbose=False,
        return_result=True,
    )
    rows = np.delete(np.arange(150), [4, 5])
    x, shared, values = prepared(known, query, rows)
    assert 250 < len(shared) < 350 == found.provenance["genes"] + 350 - len(shared)
    names = known.obs["kind"].to_numpy()[rows].astype(str)
    groups = known.obs["donor"].to_numpy()[rows].astype(str) if donor else np.full(148, "")
    fitted = fit_ensemble(x, names, groups, seed=3, verbose=False)
    p = fitted.probabilities(values)
    np.testing.assert_allclose(found.probabilities["kind"], p, atol=1e-9)
    np.testing.assert_allclose(
        found.probabilities["group"], np.column_stack([p[:, 0], p[:, 1] + p[:, 2]]), atol=1e-9
    )
    assert found.levels == {
        "group": ["P", "Q"],
        "kind": ["p", "q", "r"],
    } and found.threshold == fitted.threshold(0.2)
    np.testing.assert_array_equal(found.is_novel, fitted.is_novel(values, p, x, 3))
    np.testing.assert_array_equal(found.coverage_curve, fitted.curve)
    about = found.provenance
    assert (
        about["reference_cells"] == 148
        and about["parents"] == {"kind": [0, 1, 1]}
        and about["seed"] == 3
        and about["error_rate"] == 0.2
    )
    assert (
        about["classes"] == 3 and about["held_out_accuracy"] == fitted.report["held_out_accuracy"]
    )


def test_at_least_300_shared_genes_or_50_with_force(reference, query):
    options = dict(
        reference=reference,
        label_key="kind",
        finetune_steps=0,
        cache=False,
        verbose=False,
        return_result=True,
    )
    with pytest.raises(DataError, match=r"share 299 genes \(reference 400, query 299\)"):
        annotate(query[:, :299].copy(), **options)
    assert annotate(query[:, :300].copy(), **options).provenance["genes"] > 200
    with pytest.raises(DataError, match="share 49 genes"):
        annotate(query[:, :49].copy(), force=True, **options)
    assert annotate(query[:, :50].copy(), force=True, **options).provenance["genes"] > 30
    empty = query[:3].copy()
    empty.X = sparse.csr_matrix(sparse.diags([1.0, 0.0, 1.0]) @ empty.X)
    assert annotate(empty, **options).is_novel[1]


def test_the_network_is_trained_on_two_thirds_of_the_donors(reference, monkeypatch):
    """The network is trained on these donors and scored on the other ones."""
    seen: dict = {}
    probed = classes.linear_probe_init

    def probe(model, labelled, **options):
        seen.update(labelled=labelled, options=options)
        return probed(model, labelled, **options)

    monkeypatch.setattr(classes, "linear_probe_init", probe)
    monkeypatch.setattr(
        loop, "fit", lambda network, step, config, **options: seen.update(config=config, step=step)
    )
    x, shared, _ = prepared(reference, reference, np.arange(150))
    model = small_model("expressed", n_genes=300)
    inside = np.where(np.arange(len(shared)) % 2, -1, 299 - np.arange(len(shared)) // 2)
    names, groups = (
        reference.obs["kind"].to_numpy().astype(str),
        reference.obs["donor"].to_numpy().astype(str),
    )
    tuned, (rows, shown) = ReferenceCells(
        model, x, np.column_stack([shared, inside]), names, groups, 70, 5
    ).fit_network(False)
    codes = np.unique(names, return_inverse=True)[1]
    held = donor_folds(groups, codes, 3, 5) == 0
    np.testing.assert_array_equal(rows, np.flatnonzero(held))
    assert len(set(groups[held]) & set(groups[~held])) == 0 and len(set(groups[held])) == 2
    assert seen["config"] == TrainerConfig(steps=70, batch_size=16, lr=1e-3, warmup=0.1, seed=5)
    assert seen["options"] == {"name": "reference", "seed": 5, "balance": 0.5, "verbose": False}
    labelled = seen["labelled"]
    (part,) = labelled.sample(10_000)
    own, genes = readable(x[~held], inside)
    np.testing.assert_allclose(part.source.values.toarray(), own.toarray(), rtol=1e-6)
    np.testing.assert_array_equal(part.source.genes, genes)
    np.testing.assert_array_equal(labelled.codes(part), codes[~held])
    assert (
        labelled.counts.tolist() == np.bincount(codes[~held]).tolist()
        and labelled.names == ["p", "q", "r"] == tuned.labels
    )
    np.testing.assert_array_equal(shown, log_probabilities(tuned, x[rows], inside))
    assert tuned.calibration == fit_calibration(shown, codes[rows])


def test_a_network_with_too_few_shared_genes_is_omitted(reference, query, capsys):
    few = small_model("expressed", n_genes=40)
    found = annotate(
        query,
        reference=reference,
        label_key="kind",
        model=few,
        finetune_steps=2,
        cache=False,
        return_result=True,
    )
    assert (
        "skipping the network" in capsys.readouterr().err and found.provenance["network_share"] == 0
    )


@pytest.mark.parametrize(("number", "steps"), [(49, 0), (50, 2)])
def test_the_network_needs_fifty_of_the_shared_genes(reference, query, capsys, number, steps):
    _, shared, _ = prepared(reference, query, np.arange(150))
    ids = [all_human_genes().ensembl_ids[gene] for gene in shared[:number]]
    others = [f"ENSG9999{i:07d}" for i in range(60)]  # of the model alone
    model = small_model("expressed", vocabulary=Vocabulary((*ids, *others), ("",) * (number + 60)))
    options = AnnotateOptions(label_key="kind", finetune_steps=2)
    annotator = ReferenceAnnotator(options, model, True).fit(reference)
    assert annotator._training_cells(read_human_cells(query, None, None, False)).steps == steps
    skipped = f"reads {number} of these genes (50 needed): skipping the network"
    assert (skipped in capsys.readouterr().err) is (number < 50)


def test_the_cache_key_covers_all_inputs_of_the_fit(reference):
    x, shared, _ = prepared(reference, reference, np.arange(150))
    model = small_model("expressed", n_genes=60)
    genes = np.column_stack([shared, np.full(len(shared), -1)])
    names, groups = (
        reference.obs["kind"].to_numpy().astype(str),
        reference.obs["donor"].to_numpy().astype(str),
    )
    first = ReferenceCells(model, x, genes, names, groups, 3, 0).fingerprint()
    assert (
        first == ReferenceCells(model, x.copy(), genes, names, groups, 3, 0).fingerprint()
        and len(first) == 24
    )
    other_x = x.copy()
    other_x.data[7] += 1e-6
    other_genes, other_names, other_groups = genes.copy(), names.copy(), groups.copy()
    other_genes[3, 1], other_names[0], other_groups[1] = 5, "z", "z"
    other_model = small_model("expressed", n_genes=60, seed=4)
    renamed = small_model("expressed", n_genes=60)
    renamed.network.config = replace(renamed.config, name="other")
    given = dict(model=model, x=x, genes=genes, names=names, groups=groups, steps=3, seed=0)
    changes = (
        dict(model=other_model),
        dict(model=renamed),
        dict(x=other_x),
        dict(genes=other_genes),
        dict(names=other_names),
        dict(groups=other_groups),
        dict(steps=4),
        dict(seed=1),
    )
    keys = {first, *(ReferenceCells(**{**given, **change}).fingerprint() for change in changes)}
    assert len(keys) == 9


def test_the_fit_runs_once_and_is_cached_completely(reference, tmp_path, monkeypatch):
    x, shared, _ = prepared(reference, reference, np.arange(150))
    genes = np.column_stack([shared, np.full(len(shared), -1)])
    given = (
        small_model("expressed", n_genes=60),
        x,
        genes,
        reference.obs["kind"].to_numpy().astype(str),
        reference.obs["donor"].to_numpy().astype(str),
    )
    first, network = ReferenceCells(*given, 0, 2).fit(tmp_path, False)
    assert network is None and [p.name for p in tmp_path.iterdir()] == [
        ReferenceCells(*given, 0, 2).fingerprint()
    ]
    monkeypatch.setattr(module, "fit_ensemble", lambda *a, **k: pytest.fail("fitted again"))
    again, _ = ReferenceCells(*given, 0, 2).fit(tmp_path, False)
    assert isinstance(again, CellTypeEnsemble)
    np.testing.assert_array_equal(again.probabilities(x), first.probabilities(x))
    monkeypatch.undo()
    ReferenceCells(*given, 0, 2).fit(False, False)
    assert len(list(tmp_path.iterdir())) == 1


def test_cache_is_the_default_folder_none_or_the_named_one(reference, tmp_path, monkeypatch):
    """What lies in the cache is changed, so that it is seen who reads it."""
    x, shared, _ = prepared(reference, reference, np.arange(45))
    monkeypatch.setenv("SCMAMBA_CACHE", str(tmp_path / "home"))
    given = (
        small_model("expressed", n_genes=60),
        x,
        np.column_stack([shared, np.full(len(shared), -1)]),
        reference.obs["kind"].to_numpy().astype(str)[:45],
        reference.obs["donor"].to_numpy().astype(str)[:45],
    )
    cells = ReferenceCells(*given, 0, 2)
    cells.fit(False, False)
    assert not (tmp_path / "home").exists()
    for cache, folder in (
        (True, tmp_path / "home" / "references"),
        (str(tmp_path / "named"), tmp_path / "named"),
    ):
        cells.fit(cache, False)
        kept = folder / cells.fingerprint()
        assert [path.name for path in folder.iterdir()] == [kept.name]
        fit = CellTypeEnsemble.read(kept / "ensemble.npz")
        fit.report["held_out_accuracy"] = -1.0
        fit.write(kept / "ensemble.npz")
        accuracy = [
            cells.fit(option, False)[0].report["held_out_accuracy"] for option in (cache, False)
        ]
        assert accuracy[0] == -1 and accuracy[1] > 0
