"""From features to calls: the regression that excludes suspected doublets, rates, thresholds and type names, by hand."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from conftest import small_model
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from scmamba.data.doublet_simulation import simulate_doublets
from scmamba.datasets import brain_cohort
from scmamba.doublets import network as network_module
from scmamba.doublets.features import Clusters, Coexpression, Mixtures, gather
from scmamba.doublets.network import network_odds
from scmamba.doublets.options import DoubletOptions
from scmamba.utils.errors import DataError, OptionError

module = importlib.import_module("scmamba.doublets._find")


def test_constants():
    assert (module.RATE_PER_1000, module.MIN_CELLS, module._BATCH_CELLS, module._SUSPECTED) == (
        0.008,
        30,
        15_000,
        0.1,
    )
    assert (network_module.PASSES, network_module.STEPS) == (2.0, (150, 2500))


def test_options_are_checked():
    DoubletOptions()
    DoubletOptions(
        method="network",
        doublet_simulation="mean",
        expected_rate={"a": 0.0, "b": 0.99},
        identification_rate=0.4,
        rounds=3,
    )
    wrong = (
        ({"method": "slow"}, "method is 'slow'"),
        ({"doublet_simulation": "x"}, "doublet_simulation is 'x'"),
        ({"expected_rate": 1.0}, "expected_rate is 1.0"),
        ({"expected_rate": {"a": -0.1}}, "-0.1"),
        ({"identification_rate": 10}, "identification_rate is 10"),
        ({"rounds": 0}, "rounds is 0"),
    )
    for options, expected in wrong:
        with pytest.raises(OptionError, match=expected):
            DoubletOptions(**options)


def test_counts_are_read_from_every_container():
    x = np.array([[1.0, 0, 2], [0, 3, 0]])
    data = ad.AnnData(np.zeros((2, 3)), layers={"counts": sparse.csc_matrix(x)})
    np.testing.assert_array_equal(module._counts(data, "counts")[0].toarray(), x)
    logs = ad.AnnData(np.log1p(np.random.default_rng(0).poisson(2.0, (30, 5)).astype(float)))
    np.testing.assert_array_equal(
        module._counts(logs, None)[0].toarray(), np.rint(np.expm1(logs.X))
    )
    for wrong, expected in (
        (ad.AnnData(np.zeros((0, 3))), "empty: 0 cells"),
        (ad.AnnData(np.zeros((3, 0))), "empty: 3 cells x 0 genes"),
        (data, "no layer 'x'"),
    ):
        with pytest.raises(DataError, match=expected):
            module._counts(wrong, "x" if wrong is data else None)


def test_samples_are_coded_and_cells_without_one_form_another_sample(capsys):
    data = ad.AnnData(
        np.zeros((5, 1)),
        obs=pd.DataFrame({"lib": ["b", "a", None, "b", None]}, index=list("vwxyz")),
    )
    names, codes = module._samples(data, "lib", True)
    assert (
        names == ["b", "a", "NA"]
        and codes.tolist() == [0, 1, 2, 0, 2]
        and "2 cells have no lib" in capsys.readouterr().err
    )
    data.obs["donor"] = list("ppqqq")
    assert (
        module._samples(data, None, True)[0] == ["all"]
        and "pass sample_key='donor'" in capsys.readouterr().err
    )
    assert module._samples(data, None, True)[1].tolist() == [0] * 5


def test_whole_samples_are_processed_together(monkeypatch):
    monkeypatch.setattr(module, "_BATCH_CELLS", 100)
    codes = np.random.default_rng(0).permutation(np.repeat([0, 1, 2, 3, 4], [40, 60, 1, 150, 29]))
    groups = [np.unique(codes[rows]).tolist() for rows in module._sample_batches(codes)]
    assert groups == [[0, 1], [2], [3, 4]]  # the 29 remaining cells are added to the group before
    assert sorted(np.concatenate(list(module._sample_batches(codes)))) == list(range(280))
    enough = np.repeat([0, 1, 2], [90, 30, 1])
    assert [len(rows) for rows in module._sample_batches(enough)] == [90, 31]


def test_the_regression_is_scikit_learns_without_suspected_doublets():
    rng = np.random.default_rng(0)
    x, simulated = rng.normal(size=(120, 4)), np.arange(120) >= 70
    x[simulated, 0] += 1.5
    found = module.crossfit_log_odds(x, simulated, seed=9)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    fold = np.random.default_rng(9).integers(0, 5, 120)
    odds, out = np.zeros(120), np.zeros(120, bool)
    for _ in range(3):
        for k in range(5):
            learn = (fold != k) & ~out
            peer = LogisticRegression(C=1 / 5, tol=1e-10, max_iter=2000).fit(
                z[learn], simulated[learn]
            )
            odds[fold == k] = peer.decision_function(z[fold == k])
        odds = odds + np.log((~simulated & ~out).sum() / 70)
        out = ~simulated & (odds > np.quantile(odds[:70], 0.9))
    assert out.sum() == 7
    np.testing.assert_allclose(found, odds, atol=1e-3)
    ridged = module.crossfit_log_odds(x, simulated, seed=9, ridge=30.0, refits=1)
    peer = LogisticRegression(C=1 / 30, tol=1e-10, max_iter=2000).fit(
        z[fold != 2], simulated[fold != 2]
    )
    np.testing.assert_allclose(ridged[fold == 2], peer.decision_function(z[fold == 2]), atol=1e-3)
    separable = module.logistic(
        np.r_[-np.ones(5), np.ones(5)][:, None], np.arange(10) >= 5, ridge=0.5
    )
    peer = LogisticRegression(C=2.0, tol=1e-10).fit(
        np.r_[-np.ones(5), np.ones(5)][:, None], np.arange(10) >= 5
    )
    np.testing.assert_allclose(separable, np.r_[peer.intercept_, peer.coef_[0]], atol=1e-4)


def test_depth_is_not_a_feature_if_doublets_are_sums():
    evidence = SimpleNamespace()
    rng = np.random.default_rng(1)
    simulated = np.arange(60) >= 30
    table = pd.DataFrame(
        rng.normal(size=(60, 6)),
        columns=["counts", "genes", "counts_beside", "genes_beside", "together", "fine5"],
    )
    curved = rng.normal(size=(60, 5))
    evidence.table, evidence.simulated, evidence.curved = table, simulated, lambda: curved
    between = module.crossfit_log_odds(curved, simulated, ridge=30.0, refits=2, seed=4)
    for recipe, own in (("sum", table[["together", "fine5"]]), ("mixed", table), ("mean", table)):
        expected = module.crossfit_log_odds(np.column_stack([own, between]), simulated, seed=4)
        np.testing.assert_allclose(module._combined_log_odds(evidence, recipe, 4), expected)


def test_rounds_with_new_doublets_are_averaged(monkeypatch):
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.4, 3.0, (3, 80))
    counts = sparse.csr_matrix(rng.poisson(rates[np.arange(90) % 3]).astype(float))
    codes, adata = np.repeat([0, 1], 45), ad.AnnData(counts)
    steps = []
    found = module.DoubletDetector(adata, counts, codes, DoubletOptions(rounds=3, seed=2)).detect(
        steps.append
    )
    clusters = Clusters.find(counts, seed=2)
    mixtures = {
        n: Mixtures(counts, c, suspected=0.1, seed=2)
        for n, c in (("coarse", clusters.coarse), ("fine", clusters.fine))
    }
    together = Coexpression(counts)
    ratio, simulated = np.zeros(90), []
    for k, kind in enumerate(("mixed", "sum", "mixed")):
        made = simulate_doublets(counts, codes, 90, recipe=kind, seed=2000 + k)
        odds = module._combined_log_odds(
            gather(counts, made.counts, mixtures, together, seed=2), kind, 2000 + k
        ) + np.log(90 / len(made))
        ratio += odds[:90] / 3
        simulated.append(odds[90:])
    np.testing.assert_allclose(found.log_ratio, ratio, atol=1e-9)
    np.testing.assert_allclose(found.simulated, np.concatenate(simulated), atol=1e-9)
    assert steps == [1, 1, 1]
    np.testing.assert_array_equal(found.pair, mixtures["fine"].pair)
    np.testing.assert_array_equal(found.cluster, mixtures["fine"].cluster)
    for code in (0, 1):
        share = np.array(
            [(clusters.coarse[codes == code] == c).mean() for c in np.unique(clusters.coarse)]
        )
        np.testing.assert_allclose(found.detectable[codes == code], 1 - (share**2).sum())
    # Both methods: the means of their log odds, and of the quantiles of the simulated ones; suspected doublets are not training examples of single cells.
    seen: dict = {}

    def odds_of(adata, counts, made, doubtful, *, model, seed, verbose):
        seen.update(made=made, doubtful=doubtful, seed=seed)
        return np.arange(90.0), np.linspace(-1, 1, len(made))

    monkeypatch.setattr("scmamba.doublets.network.network_odds", odds_of)
    both = module.DoubletDetector(
        adata, counts, codes, DoubletOptions(method="both", rounds=3, seed=2)
    ).detect(steps.append)
    np.testing.assert_allclose(both.log_ratio, (ratio + np.arange(90)) / 2)
    n = len(seen["made"])
    quantiles = np.quantile(np.concatenate(simulated), (np.arange(n) + 0.5) / n)
    np.testing.assert_allclose(both.simulated, (quantiles + np.linspace(-1, 1, n)) / 2)
    np.testing.assert_array_equal(seen["doubtful"], ratio > np.quantile(ratio, 0.9))
    expected = simulate_doublets(counts, codes, 90, recipe="mean", seed=2003)
    assert (seen["made"].counts != expected.counts).nnz == 0 and seen["seed"] == 2
    network_options = DoubletOptions(method="network", doublet_simulation="sum", rounds=1, seed=2)
    alone = module.DoubletDetector(adata, counts, codes, network_options).detect(steps.append)
    np.testing.assert_array_equal(alone.log_ratio, np.arange(90))
    np.testing.assert_array_equal(alone.simulated, np.linspace(-1, 1, len(seen["made"])))
    assert (
        seen["made"].counts != simulate_doublets(counts, codes, 90, recipe="sum", seed=2001).counts
    ).nnz == 0


def test_the_apparent_rate_is_the_smallest_upper_bound():
    rng = np.random.default_rng(0)
    simulated = rng.normal(3, 1, 500)
    real = np.r_[rng.normal(-1, 1, 900), rng.normal(3, 1, 100)]
    bounds = []
    for keep in np.linspace(0.3, 0.8, 11):
        above = (real > np.quantile(simulated, 1 - keep)).sum()
        bounds.append(((above + 1) / keep, above / 1000 / keep, above))
    _, rate, above = min(bounds)
    assert module._apparent_rate(real, simulated) == (
        pytest.approx(rate),
        above,
    ) and rate == pytest.approx(0.1, abs=0.03)
    assert module._apparent_rate(real[:0], simulated) == (0.0, 0)


def test_rates_are_weighted_by_their_certainty():
    sure, seen = 1 / 0.7**2, 1 / (0.5**2 + 1 / 40)
    expected = np.exp((sure * np.log(0.05) + seen * np.log(0.12)) / (sure + seen))
    assert (
        module._posterior_rate(0.05, 0.12, 40) == pytest.approx(expected)
        and module._posterior_rate(0.05, 0.9, 10**9) <= 0.4
    )
    assert (
        module._posterior_rate(0.35, 1.5, 10**9) == 0.4
        and module._posterior_rate(0.05, 0.0, 0) == 0.05
        and module._posterior_rate(0.0, 0.5, 3) == 0
    )


def result_of(ratio: np.ndarray) -> object:
    result = module._Result.empty(len(ratio))
    result.log_ratio, result.simulated = ratio, np.linspace(0, 4, 50)
    result.detectable[:] = np.linspace(0, 1, len(ratio))
    result.parents[:] = "a + b"
    return result


def test_rates_per_sample_and_calls_by_rank():
    rng = np.random.default_rng(1)
    ratio = rng.normal(size=1500)
    ratio[7] = np.nan
    codes, full = np.repeat([0, 1, 2], [1000, 498, 2]), np.ones(1500, bool)
    full[7] = False
    result, names = result_of(ratio), ["a", "b", "c"]
    rates = module._rates(result, codes, full, names, None)
    assert rates["cells"].tolist() == [999, 498, 2] and rates["prior"].tolist() == pytest.approx(
        [0.008 * 0.999, 0.008 * 0.498, 0.000016]
    )
    for code in range(3):
        here = full & (codes == code)
        look, above = module._apparent_rate(ratio[here], result.simulated)
        assert rates["apparent"][code] == look and rates["rate"][code] == module._posterior_rate(
            rates["prior"][code], look, above
        )
        assert rates["detectable"][code] == pytest.approx(np.linspace(0, 1, 1500)[here].mean())
    assert module._rates(result, np.zeros(1500, int), full, ["x"], None)["prior"][
        0
    ] == pytest.approx(0.008 * 1.499)
    assert module._rates(result, codes, full, names, 0.2)["rate"].tolist() == [0.2] * 3
    given = module._rates(result, codes, full, names, {"a": 0.1, "b": 0.0, "c": 0.3})
    assert given["rate"].tolist() == [0.1, 0.0, 0.3]
    with pytest.raises(DataError, match=r"sample.s. b, c; it has a"):
        module._check_rates(names, {"a": 0.1})
    module._call(result, codes, full, given, None)
    for code, rate in enumerate((0.1, 0.0, 0.3)):
        here = np.flatnonzero(full & (codes == code))
        number = round(rate * len(here))
        assert result.doublet[here].sum() == number
        assert set(here[result.doublet[here]]) == set(here[np.argsort(-ratio[here])[:number]])
        odds = max(rate, 1e-6) / (1 - rate) * np.exp(ratio[here])
        np.testing.assert_allclose(result.score[here], odds / (1 + odds))
    assert np.isnan(result.score[7]) and (result.parents == "a + b").sum() == result.doublet.sum()
    again = result_of(ratio)
    module._call(again, codes, full, given, 0.25)
    assert [again.doublet[codes == c].sum() for c in range(3)] == [250, 124, 0]
    big = module._rates(
        result_of(rng.normal(size=60_000)),
        np.zeros(60_000, int),
        np.ones(60_000, bool),
        ["x"],
        None,
    )
    assert big["prior"][0] == 0.4


@pytest.mark.parametrize(
    ("method", "model", "name"),
    [
        ("fast", None, None),
        ("network", None, "brain-mini"),
        ("network", "folder/own", "folder/own"),
        ("network", Path("folder"), "folder"),
        ("network", small_model("expressed", n_genes=5), "small"),
    ],
)
def test_the_record_names_the_network(method, model, name):
    adata, result, codes = ad.AnnData(np.zeros((4, 1))), result_of(np.ones(4)), np.zeros(4, int)
    rates = module._rates(result, codes, np.ones(4, bool), ["a"], 0.5)
    module._call(result, codes, np.ones(4, bool), rates, None)
    options = DoubletOptions(method=method)
    module._write(adata, result, ["a"], codes, rates, options, model, "counts")
    record = adata.uns["scmamba"]["doublets"]
    assert record.get("model") == name and record["summary"]["values"] == "counts"
    assert record["summary"]["samples"]["called"].tolist() == [2]


@pytest.mark.parametrize(("detectable", "said"), [([0.9, 0.19], True), ([0.2, 0.9], False)])
def test_a_dominant_cell_type_is_reported(detectable, said, capsys):
    rates = pd.DataFrame({"detectable": detectable})
    module._report(result_of(np.ones(4)), rates, np.ones(4, bool), True)
    printed = capsys.readouterr().err
    assert "0 of 4 droplets called doublets (0.0%), in 2 sample(s)" in printed
    assert ("one cell type dominates" in printed) is said


def test_parents_have_the_label_or_cluster_name():
    counts = sparse.csr_matrix(np.array([[9.0, 0, 1], [8, 0, 1], [0, 9, 1], [0, 7, 1], [0, 8, 1]]))
    result = module._Result.empty(5)
    result.cluster, result.pair = (
        np.array([0, 0, 2, 2, 2]),
        np.array([[0, 2], [2, 0], [2, 0], [0, 5], [0, 0]]),
    )
    genes = pd.Index(["G1", "G2", "G3"])
    result.name_parents(counts, genes, None, "g2")
    assert result.parents.tolist() == ["g2c1 + g2c3"] * 3 + ["? + g2c1", "g2c1 + g2c1"]
    assert {k: v.split(", ")[0] for k, v in result.clusters.items()} == {"g2c1": "G1", "g2c3": "G2"}
    assert module._top_genes(counts, result.cluster, genes, 1) == {0: "G1", 2: "G2"}
    result.name_parents(counts, genes, np.array(["neuron", "neuron", "glia", "glia", "neuron"]), "")
    assert result.parents.tolist()[0] == "glia + neuron"


def test_parts_are_written_to_their_rows():
    whole = module._Result.empty(6)
    part = result_of(np.array([1.0, 2.0]))
    part.clusters, part.pair = {"c1": "x"}, np.array([[1, 2], [3, 4]])
    whole.assign(np.array([4, 1]), part)
    assert (
        whole.log_ratio[[4, 1]].tolist() == [1, 2]
        and whole.pair[1].tolist() == [3, 4]
        and whole.clusters == {"c1": "x"}
    )
    assert (
        whole.parents[4] == "a + b" and np.isnan(whole.log_ratio[0]) and len(whole.simulated) == 50
    )
    whole.assign(np.array([0, 2]), part)
    assert len(whole.simulated) == 100


def test_the_network_is_trained_on_cells_that_are_not_suspected_doublets(monkeypatch):
    from scmamba.training import finetune_classifier as classes
    from scmamba.training import trainer as loop

    model = small_model("expressed", n_genes=60)
    rng = np.random.default_rng(0)
    counts = sparse.csr_matrix(rng.poisson(1.5, (50, 40)).astype(float))
    adata = ad.AnnData(counts)
    adata.var_names = list(model.genes.ensembl_ids[10:50])
    made = simulate_doublets(counts, np.zeros(50, int), 50, recipe="mean", seed=1)
    doubtful = np.arange(50) < 5
    seen: dict = {}
    probed = classes.linear_probe_init

    def probe(opened, labelled, **options):
        seen.update(labelled=labelled, **options)
        seen["tuned"] = probed(opened, labelled, **options)
        return seen["tuned"]

    monkeypatch.setattr(classes, "linear_probe_init", probe)
    monkeypatch.setattr(
        loop, "fit", lambda network, step, config, **options: seen.update(config=config)
    )
    real, double = network_odds(adata, counts, made, doubtful, model=model, seed=6, verbose=False)
    labelled = seen["labelled"]
    (part,) = labelled.sample(1000)
    assert (
        labelled.names == ["singlet", "doublet"]
        and labelled.counts.tolist() == [45, len(made)]
        and seen["balance"] == 1.0
    )
    assert labelled.codes(part).tolist() == [0] * 45 + [1] * len(made)
    totals = np.r_[
        np.asarray(counts.sum(axis=1)).ravel()[5:], np.asarray(made.counts.sum(axis=1)).ravel()
    ]
    np.testing.assert_allclose(part.source.totals, totals)
    assert part.source.genes.tolist() == list(range(10, 50))
    assert seen["config"] == loop.TrainerConfig(
        steps=150, batch_size=16, lr=1e-3, warmup=0.05, seed=6
    )
    for odds, own in ((real, counts), (double, made.counts)):
        x = np.zeros((own.shape[0], 60), np.float32)
        x[:, 10:50] = np.log1p(1e4 * own.toarray() / own.toarray().sum(axis=1, keepdims=True))
        logits = seen["tuned"].classify(x).numpy()
        np.testing.assert_allclose(odds, logits[:, 1] - logits[:, 0], atol=1e-4)
    monkeypatch.setattr(network_module, "STEPS", (2, 2500))
    network_odds(adata, counts, made, doubtful, model=model, seed=6, verbose=False)
    assert seen["config"].steps == int(2 * (45 + len(made)) / 16)


def test_the_detectable_share_is_that_of_doublets_of_two_clusters():
    """A sample of one type has none; of two types, half of all pairs."""
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.4, 3.0, (3, 80))
    kind = np.r_[np.repeat(0, 60), np.tile([1, 2], 30), np.repeat(1, 60)]
    counts = sparse.csr_matrix(rng.poisson(rates[kind]).astype(float))
    sample = np.repeat([0, 1, 2], 60)
    found = module.DoubletDetector(
        ad.AnnData(counts), counts, sample, DoubletOptions(rounds=1)
    ).detect(lambda _: None)
    assert found.detectable == pytest.approx(np.repeat([0, 0.5, 0], 60))


def test_a_column_of_labels_that_does_not_exist_is_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(module, "_score_samples", None)
    cells = ad.AnnData(sparse.csr_matrix(np.random.default_rng(0).poisson(1.0, (60, 30))))
    with pytest.raises(DataError, match="no column 'kind'"):
        module.find_doublets(cells, label_key="kind", verbose=False)


def test_columns_are_written_into_a_backed_object(tmp_path):
    rng = np.random.default_rng(0)
    rates = rng.gamma(0.4, 3.0, (3, 80))
    cells = ad.AnnData(sparse.csr_matrix(rng.poisson(rates[np.arange(90) % 3]).astype(float)))
    cells.write_h5ad(tmp_path / "x.h5ad")
    backed = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    given = module.find_doublets(backed, rounds=1, verbose=False)
    assert given is backed and backed.isbacked and "scmamba_doublet" in backed.obs
    other = module.find_doublets(backed, rounds=1, copy=True, overwrite=True, verbose=False)
    assert other is not backed and not other.isbacked


def test_samples_are_words_and_a_sample_called_na_is_not_the_missing_one():
    cells = brain_cohort(90, n_donors=2, n_genes=400, seed=1)
    values = [1 if i % 3 == 0 else "1" if i % 3 == 1 else None for i in range(90)]
    cells.obs["a"] = np.array(values, dtype=object)
    cells.obs["b"] = np.array(["NA" if i % 2 else None for i in range(90)], dtype=object)
    names, codes = module._samples(cells, "a", False)
    assert names == ["1", "NA"] and np.bincount(codes).tolist() == [60, 30]
    names, codes = module._samples(cells, "b", False)
    assert sorted(names) == ["NA", "no sample"] and np.bincount(codes).tolist() == [45, 45]


def test_rates_that_lack_a_sample_are_refused_before_the_work(monkeypatch):
    monkeypatch.setattr(module, "_score_samples", None)
    cells = brain_cohort(90, n_donors=2, n_genes=400, seed=1)
    with pytest.raises(DataError, match="no entry for the sample.*D02; it has D01. Give a rate"):
        module.find_doublets(cells, sample_key="donor", expected_rate={"D01": 0.1}, verbose=False)
    with pytest.raises(DataError, match=r"scmamba.find_doublets\(\) needs an AnnData object"):
        module.find_doublets("cells.h5ad")
