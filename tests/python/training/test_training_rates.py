"""The depth-aware objective against sums in float64; adaptation: its training data, its held-out score, and when it is used."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse, special, stats
from torch import nn

from scmamba.data import read_cells
from scmamba.data.values import log1p_cp10k
from scmamba.datasets import brain_cohort
from scmamba.imputation import adaptation as adapting
from scmamba.model import Model
from scmamba.nn import ScMamba
from scmamba.training import TrainerConfig
from scmamba.training.batches import CellSource
from scmamba.training.dataloaders import InMemorySource
from scmamba.training.distributed import BatchShard
from scmamba.training.objectives import (
    RateConfig,
    gene_log_rate,
    nb_rate_step,
    rate_loss,
    rate_sums,
    rate_validation,
    source_counts,
    source_log_rate,
    store_gene_rates,
)
from scmamba.training.reconstruction import IMPUTE, validation

GENES = np.arange(2, 42)


def counted(n: int, seed: int, depth: float = 1.3) -> tuple[CellSource, np.ndarray]:
    """Cells of forty genes whose depth is ``depth`` above the counts in the matrix; and their counts."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.4, 2.0, 40), (n, 40))
    counts[:, 0] += 1
    totals = depth * counts.sum(axis=1)
    return CellSource(
        f"s{seed}", log1p_cp10k(sparse.csr_matrix(counts), totals), GENES, np.full(n, ""), totals
    ), counts


class Ratios(nn.Module):
    """Returns fixed log ratios and records the input genes."""

    def __init__(self, ratio: np.ndarray) -> None:
        super().__init__()
        self.ratio = nn.Parameter(torch.from_numpy(ratio).float())
        self.shown: list[list[set[int]]] = []
        self.values: list[torch.Tensor] = []

    def log_ratio(self, x, genes, keep, decoded):
        assert torch.equal(decoded, torch.from_numpy(GENES))
        self.shown.append([set(g[k].tolist()) for g, k in zip(genes, keep)])
        self.values.append(x)
        return self.ratio.expand(len(x), -1)


def deviance(
    counts: np.ndarray, shown: list[set[int]], log_share: np.ndarray, p: float, spread: float
) -> tuple[float, float]:
    """Sum of -log NB, without its constants, over masked counts, and over zeros by their probability of being masked; masked counts."""
    total, weight = 0.0, 0.0
    for y, seen in zip(counts.astype(float), shown):
        mu = y.sum() * np.exp(log_share)
        term = (y + 1 / spread) * np.log1p(spread * mu) - y * np.log(mu)
        hidden = np.array([g not in seen for g in GENES]) & (y > 0)
        total += term[hidden].sum() + p * term[y == 0].sum()
        weight += y[hidden].sum()
    return total, weight


def test_defaults():
    assert asdict(RateConfig()) == {"hidden": (0.1, 0.5), "genes_per_step": 1536, "spread": 0.2}
    assert (adapting.MIN_CELLS, adapting.ADAPT_STEPS, adapting._MAX_CELLS) == (100, 300, 5000)
    assert replace(IMPUTE, genes_per_step=2048, zeros=(100, 800)) == adapting._SHORT


def test_averages_by_hand():
    counts = np.array([60.0, 40.0, 0.0, 0.0])
    plain = np.array([60, 40, 0, 0]) + 1e-3 * 100 / 4
    np.testing.assert_allclose(np.exp(gene_log_rate(counts)), plain / plain.sum())
    np.testing.assert_allclose(np.exp(gene_log_rate(np.zeros(4))), 0.25)
    prior = np.log([1.0, 2.0, 3.0, 4.0])  # shares are relative to the sum, whatever it is
    mixed = np.array([60, 40, 0, 0]) + 50_000 * np.array([1, 2, 3, 4]) / 10
    np.testing.assert_allclose(np.exp(gene_log_rate(counts, prior)), mixed / mixed.sum())


def test_counts_of_a_source_are_recovered_and_its_averages_cached():
    (first, a), (second, b) = counted(20, 0), counted(9, 1)
    np.testing.assert_allclose(source_counts(first), a.sum(axis=0), rtol=1e-5)
    np.testing.assert_allclose(source_log_rate(first), gene_log_rate(a.sum(axis=0)), rtol=1e-5)
    second = replace(second, genes=GENES + 5)
    network = ScMamba(replace(small_model(n_genes=60).config, rates=True))
    with torch.no_grad():
        store_gene_rates(network, [first, second])
    share = np.full(60, 1e-7)
    for genes, counts in (
        (GENES, a),
        (GENES + 5, b),
    ):  # each has the same weight, however many cells it has
        share[genes] += np.exp(gene_log_rate(counts.sum(axis=0))) / 2
    np.testing.assert_allclose(
        network.gene_log_rate.numpy(), np.log(share / share.sum()), rtol=1e-4
    )


@pytest.mark.parametrize("spread", [0.2, 1.5])
def test_the_deviance_of_masked_counts_in_float64(spread):
    source, counts = counted(12, 3)
    rng = np.random.default_rng(0)
    ratio, base = rng.normal(size=40), rng.normal(size=40) - 4
    network = Ratios(ratio)
    rows = np.array([4, 0, 11, 7])
    config = RateConfig(hidden=(0.35, 0.35), spread=spread)
    loss = rate_sums(
        network,
        source,
        torch.from_numpy(base).float(),
        rows,
        config,
        [np.random.default_rng(i) for i in range(4)],
    )
    total, weight = deviance(
        counts[rows], network.shown[0], special.log_softmax(base + ratio), 0.35, spread
    )
    assert loss.total.item() == pytest.approx(
        total, rel=1e-4
    ) and loss.weight.item() == pytest.approx(weight, rel=1e-5)
    # The network reads each cell's visible values and nothing else.
    for i, row in enumerate(rows):
        seen = sorted(network.shown[0][i])
        np.testing.assert_array_equal(
            network.values[0][i][: len(seen)], source.values[row].toarray()[0][np.array(seen) - 2]
        )
    # -log NB up to a constant: differences between two predictions are scipy's.
    other = Ratios(np.roll(ratio, 3))
    again = rate_sums(
        other,
        source,
        torch.from_numpy(base).float(),
        rows,
        RateConfig(hidden=(1.0, 1.0), spread=spread),
        [rng] * 4,
    )
    first = rate_sums(
        network,
        source,
        torch.from_numpy(base).float(),
        rows,
        RateConfig(hidden=(1.0, 1.0), spread=spread),
        [rng] * 4,
    )
    size, y = 1 / spread, counts[rows]
    exact = [
        stats.nbinom.logpmf(
            y,
            size,
            size / (size + y.sum(axis=1, keepdims=True) * np.exp(special.log_softmax(base + r))),
        ).sum()
        for r in (ratio, np.roll(ratio, 3))
    ]
    assert again.total.item() - first.total.item() == pytest.approx(exact[0] - exact[1], rel=1e-4)
    mean = rate_loss(
        other, source, torch.from_numpy(base).float(), rows, config, np.random.default_rng(5)
    )
    one = np.random.default_rng(5)
    sums = rate_sums(other, source, torch.from_numpy(base).float(), rows, config, [one] * 4)
    assert mean.item() == pytest.approx(sums.total.item() / sums.weight.item(), rel=1e-6)


def test_a_tenth_to_a_half_is_masked_and_long_cells_are_cut():
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 5, (300, 40))
    source = CellSource(
        "s",
        log1p_cp10k(sparse.csr_matrix(counts), counts.sum(axis=1)),
        GENES,
        np.full(300, ""),
        counts.sum(axis=1),
    )
    network = Ratios(np.zeros(40))
    base = torch.zeros(40)
    generators = [np.random.default_rng(i) for i in range(300)]
    rate_sums(network, source, base, np.arange(300), RateConfig(), generators)
    hidden = 1 - np.array([len(s) for s in network.shown[0]]) / 40
    expected = [np.random.default_rng(i).uniform(0.1, 0.5) for i in range(300)]
    assert (
        hidden.mean() == pytest.approx(np.mean(expected), abs=0.015)
        and np.corrcoef(hidden, expected)[0, 1] > 0.8
    )
    # Visible genes beyond the limit are neither read nor scored.
    cut = RateConfig(hidden=(0.25, 0.25), genes_per_step=10)
    loss = rate_sums(network, source, base, np.arange(50), cut, generators[:50])
    assert {len(s) for s in network.shown[1]} == {10}
    whole = rate_sums(
        network,
        source,
        base,
        np.arange(50),
        replace(cut, genes_per_step=0),
        [np.random.default_rng(i) for i in range(50)],
    )
    assert (
        {len(s) for s in network.shown[2]} != {10}
        and loss.weight.item() < 0.4 * counts[:50].sum()
        and whole.weight.item() > 0
    )


def test_steps_and_validation_use_the_average_of_each_source():
    pair = [counted(30, 0), counted(12, 1)]
    sources = [s for s, _ in pair]
    network, loop, config = (
        Ratios(np.zeros(40)),
        TrainerConfig(batch_size=5, seed=9),
        RateConfig(hidden=(0.3, 0.3)),
    )
    for bases in (None, [torch.linspace(-3, -1, 40), torch.linspace(-1, -3, 40)]):
        step = nb_rate_step(sources, config, loop, bases)
        for k in range(6):
            found = step.draw(network, k, np.random.default_rng([9, k]), BatchShard())
            (part,) = InMemorySource(sources).draw(
                k, 5, np.random.default_rng([9, k]), BatchShard()
            )
            base = (
                torch.from_numpy(source_log_rate(part.source)).float()
                if bases is None
                else bases[part.number]
            )
            own = [np.random.default_rng([9, k, *key]) for key in part.keys]
            expected = rate_sums(network, part.source, base, part.rows, config, own)
            assert (found.total.item(), found.weight.item()) == pytest.approx(
                (expected.total.item(), expected.weight.item())
            )
        judge = rate_validation(sources, replace(config, genes_per_step=3), cells=20, bases=bases)
        found = judge(network)["validation_loss"]
        expected = []
        for number, source in enumerate(sources):
            rng = np.random.default_rng(12345)
            rows = source.by_length[
                np.sort(rng.choice(len(source), min(20, len(source)), replace=False))
            ]
            base = (
                torch.from_numpy(source_log_rate(source)).float()
                if bases is None
                else bases[number]
            )
            for piece in np.array_split(rows, max(1, len(rows) // 16)):
                fixed = RateConfig(hidden=(0.2, 0.2), genes_per_step=0)
                expected.append(rate_loss(network, source, base, piece, fixed, rng).item())
        assert (
            found == pytest.approx(np.mean(expected), rel=1e-6)
            and found == judge(network)["validation_loss"]
        )
    assert rate_validation([sources[0]], config)(network) == rate_validation(
        [sources[0]], config, cells=128
    )(network)


# ---------------------------------------------------------------- adaptation


@pytest.fixture(scope="module")
def rated() -> Model:
    model = small_model("expressed", n_genes=60)
    torch.manual_seed(0)
    return Model(ScMamba(replace(model.config, rates=True)), model.genes)


def test_adaptation_is_fitted_to_four_fifths_only(rated):
    """The other cells, whatever their counts, change the score of the copy and not its parameters."""
    source, _ = counted(160, 5)
    source.totals[[3, 90]] = 0  # cells without counts are used neither for fitting nor for scores
    first = adapting.adapt_rates(rated, source, steps=12, seed=4, verbose=False)
    assert (
        len(first.held) == 158 // 5
        and (np.diff(first.held) > 0).all()
        and not {3, 90} & set(first.held)
    )
    assert (
        first.report["cells"] == 158 - 31
        and first.report["steps"] == 12
        and first.report["used"]
        and first.model is not rated
    )
    values = source.values.tolil()
    values[np.sort(first.held)] = source.values[np.roll(first.held, 7)]
    changed = replace(source, values=values.tocsr())
    again = adapting.adapt_rates(rated, changed, steps=12, seed=4, verbose=False)
    assert again.report["used"] and again.report["loss_before"] != first.report["loss_before"]
    for a, b in zip(first.model.network.parameters(), again.model.network.parameters()):
        assert torch.equal(a, b)
    rest = np.setdiff1d(np.flatnonzero(source.totals > 0), first.held)
    values[rest[:5]] = source.values[rest[5:10]]
    other = adapting.adapt_rates(
        rated, replace(source, values=values.tocsr()), steps=12, seed=4, verbose=False
    )
    assert not torch.equal(
        other.model.network.rate_head.weight, first.model.network.rate_head.weight
    )
    seeded = adapting.adapt_rates(rated, source, steps=12, seed=5, verbose=False)
    assert not np.array_equal(seeded.held, first.held)
    # The reported numbers are those of the held-out cells, relative to the averages of the others.
    base = torch.from_numpy(
        gene_log_rate(source_counts(source.take(rest)), rated.gene_log_rate(GENES))
    ).float()
    judge = rate_validation([source.take(first.held)], RateConfig(), bases=[base])
    assert first.report["loss_before"] == judge(rated.network)["validation_loss"]
    assert (
        first.report["loss_after"]
        == judge(first.model.network)["validation_loss"]
        < first.report["loss_before"]
    )


def test_a_copy_with_worse_predictions_is_not_used(rated, monkeypatch, capsys):
    source, _ = counted(120, 5)
    seen = []

    def spoil(network, step, config, **options):
        seen.append(config)
        with torch.no_grad():
            network.rate_head.weight.mul_(60)

    monkeypatch.setattr(adapting, "fit", spoil)
    found = adapting.adapt_rates(rated, source, seed=3)
    assert (
        found.model is rated
        and not found.report["used"]
        and found.report["loss_after"] > found.report["loss_before"]
    )
    assert "the pre-trained network is used" in capsys.readouterr().err
    assert seen == [TrainerConfig(steps=300, lr=1e-3, warmup=0.05, seed=3, batch_size=16)]
    few = adapting.adapt_rates(rated, source.take(np.arange(99)), seed=3)
    assert (
        few.model is rated
        and few.report == {"used": False, "reason": "fewer than 100 cells"}
        and len(few.held) == 20
    )
    assert "Only 99 cells (100 needed)" in capsys.readouterr().err and len(seen) == 1
    assert (
        adapting.adapt_rates(rated, source.take(np.arange(100)), seed=3, verbose=False).report[
            "cells"
        ]
        == 80
    )


def test_adaptation_of_masked_predictions_holds_out_a_tenth(monkeypatch):
    model = small_model("expressed")
    data = brain_cohort(230, n_donors=2, n_genes=1200, seed=6)
    cells = read_cells(data, model.genes, force=True)
    rows = np.sort(np.random.default_rng(4).choice(230, 230, replace=False))
    values, totals = cells.to_model(cells.linear(rows))
    source = CellSource("cells", values, cells.genes, np.full(230, ""), totals)
    rng = np.random.default_rng(4)
    rng.choice(230, 230, replace=False)
    held = rng.permutation(np.flatnonzero(totals > 0))[:23]
    judge = validation([source.take(held)], IMPUTE)
    seen = []

    def change(network, step, config, **options):
        with torch.no_grad():
            seen.append(
                (config, step.draw(network, 0, np.random.default_rng([4, 0]), BatchShard()))
            )
            network.regressor.bias.add_(better)

    monkeypatch.setattr(adapting, "fit", change)
    for better in (0.3, -5.0):
        used, report = adapting.adapt_masked(model, cells, seed=4, verbose=False)
        assert (
            report["cells"] == 207
            and report["steps"] == 300
            and report["used"] == (better > 0) == (used is not model)
        )
        assert report["loss_before"] == pytest.approx(
            judge(model.network)["validation_loss"], rel=1e-6
        )
        twin = adapting.clone(model)
        with torch.no_grad():
            twin.network.regressor.bias.add_(better)
        assert report["loss_after"] == pytest.approx(
            judge(twin.network)["validation_loss"], rel=1e-6
        )
    config, drawn = seen[0]
    assert config == TrainerConfig(steps=300, lr=5e-4, warmup=0.05, seed=4, batch_size=16)
    training = source.take(np.setdiff1d(np.arange(230), held))
    expected = adapting.reconstruction_step([training], adapting._SHORT, config).draw(
        model.network, 0, np.random.default_rng([4, 0]), BatchShard()
    )
    assert drawn.total.item() == pytest.approx(expected.total.item(), rel=1e-6)
    few = read_cells(data[:99].copy(), model.genes, force=True)
    assert (
        adapting.adapt_masked(model, few, verbose=False)
        == (model, {"used": False, "reason": "fewer than 100 cells"})
        and len(seen) == 2
    )
    monkeypatch.setattr(adapting, "_MAX_CELLS", 150)
    assert adapting.adapt_masked(model, cells, steps=5, seed=4, verbose=False)[1]["cells"] == 130
    assert seen[-1][0].steps == 5


@pytest.mark.parametrize("after, used", [(0.99, True), (1.0, False), (1.01, False)])
def test_an_adapted_network_is_used_only_if_it_is_better(rated, monkeypatch, after, used):
    scores = iter([1.0, after])
    monkeypatch.setattr(
        adapting,
        "rate_validation",
        lambda *a, **k: lambda network: {"validation_loss": next(scores)},
    )
    found = adapting.adapt_rates(rated, counted(120, 5)[0], steps=1, seed=0, verbose=False)
    assert found.report["used"] is used and (found.model is rated) is not used
