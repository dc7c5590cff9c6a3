"""Batch sources: every cell once per epoch, masks that depend on the cell, one mean over all of them."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import small_model
from scipy import sparse
from torch import nn

from scmamba.data.collection import Collection
from scmamba.datasets import brain_cohort
from scmamba.genes import Vocabulary
from scmamba.training import TrainerConfig
from scmamba.training.batches import Batch, CellSource, SequenceConfig, expressed_genes
from scmamba.training.dataloaders import (
    CollectionSource,
    InMemorySource,
    SourceSlice,
    batch_loss,
    make_slices_batch,
    open_batch_source,
    open_held_out,
    reconstruction,
    sample_sources,
    sum_losses,
)
from scmamba.training.distributed import BatchShard, Loss
from scmamba.utils.errors import DataError

SEQUENCE = SequenceConfig(mask_nonzero=0.4, mask_zero=0.1, zeros=(5, 9))


def random_source(n: int, genes: np.ndarray, seed: int) -> CellSource:
    rng = np.random.default_rng(seed)
    values = sparse.random(
        n, len(genes), 0.4, "csr", np.float32, rng, lambda k: rng.uniform(1, 4, k)
    )
    return CellSource(
        f"s{seed}", values, genes, np.full(n, ""), rng.integers(500, 900, n).astype(float)
    )


@pytest.fixture(scope="module")
def sources() -> list[CellSource]:
    return [random_source(30, np.arange(0, 60), 0), random_source(10, np.arange(20, 70), 1)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Collection:
    folder = tmp_path_factory.mktemp("feeds")
    cells = [brain_cohort(n, n_donors=3, n_genes=g, seed=n) for n, g in ((40, 900), (24, 700))]
    return Collection(cells, cache=folder, force=True, min_coverage=0.0, verbose=False)


class Fixed(nn.Module):
    """Predicts one fitted number everywhere."""

    def __init__(self, n_genes: int, reads: str) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.25))
        self.config = SimpleNamespace(reads=reads, n_genes=n_genes)

    def reconstruct(self, x, mask, genes, keep):
        return self.level + 0 * x


def test_sources_are_drawn_in_proportion_to_their_cells(sources):
    feed = InMemorySource(sources)
    assert len(feed) == 40 and feed.pseudobulk() is feed.sources
    rng, numbers = np.random.default_rng(0), []
    for _ in range(2000):
        (part,) = feed.draw(0, 4, rng, BatchShard())
        numbers.append(part.number)
        assert (
            part.source is sources[part.number]
            and part.keys == [(part.number, int(r)) for r in part.rows]
            and len(part.rows) == 4
        )
    assert np.mean(numbers) == pytest.approx(0.25, abs=0.03)
    with pytest.raises(DataError, match="no file"):
        InMemorySource([])


def test_shares_of_a_step_are_parts_of_one_batch(sources):
    feed = InMemorySource(sources)
    (whole,) = feed.draw(3, 8, np.random.default_rng(5), BatchShard())
    pieces = [
        feed.draw(3, 8, np.random.default_rng(5), BatchShard(r, 2, p, 2))
        for r in range(2)
        for p in range(2)
    ]
    assert sorted(row for (part,) in pieces for row in part.rows) == sorted(whole.rows)
    assert feed.draw(3, 1, np.random.default_rng(5), BatchShard(1, 2)) == []


def test_samples_for_validation_are_always_the_same(sources):
    first, second = InMemorySource(sources).sample(24), InMemorySource(sources).sample(24)
    assert [len(p.rows) for p in first] == [12, 10] and [p.number for p in first] == [0, 1]
    for a, b in zip(first, second):
        np.testing.assert_array_equal(a.rows, b.rows)
        assert (np.diff(a.rows) > 0).all() and a.keys == [(a.number, int(r)) for r in a.rows]
    assert [len(p.rows) for p in InMemorySource(sources).sample(1)] == [1, 1]
    assert not np.array_equal(InMemorySource(sources).sample(24, seed=1)[0].rows, first[0].rows)


def test_the_masks_of_a_cell_do_not_depend_on_its_batch(sources):
    parts = [
        SourceSlice(sources[0], 0, np.array([4, 9]), [(0, 4), (0, 9)]),
        SourceSlice(sources[1], 1, np.array([2]), [(1, 2)]),
    ]
    batch = make_slices_batch(parts, SEQUENCE, "expressed", 70, [3, 8])
    for i, (source, row, key) in enumerate(
        [(sources[0], 4, (0, 4)), (sources[0], 9, (0, 9)), (sources[1], 2, (1, 2))]
    ):
        columns, x, hidden, weight = expressed_genes(
            source, row, SEQUENCE, np.random.default_rng([3, 8, *key])
        )
        keep = batch.keep[i]
        np.testing.assert_array_equal(batch.genes[i][keep], source.genes[columns])
        np.testing.assert_array_equal(batch.x[i][keep], x)
        np.testing.assert_array_equal(batch.mask[i][keep], hidden)
        np.testing.assert_array_equal(batch.weight[i][keep], weight.astype(np.float32))
    alone = make_slices_batch(parts[1:], SEQUENCE, "expressed", 70, [3, 8])
    n = int(alone.keep.sum())
    assert torch.equal(alone.mask[0, :n], batch.mask[2, :n])


def test_whole_cells_are_read_at_the_positions_of_the_vocabulary(sources):
    source = sources[1]
    parts = [SourceSlice(source, 1, np.arange(10), [(1, r) for r in range(10)])]
    batch = make_slices_batch(parts, SEQUENCE, "all", 70, [0, 1])
    expected = np.zeros((10, 70), np.float32)
    expected[:, source.genes] = source.values.toarray()
    np.testing.assert_array_equal(batch.x, expected)
    assert (
        batch.keep is None and batch.genes.tolist() == list(range(70)) and (batch.weight == 1).all()
    )
    for row in range(10):
        chance = np.where(expected[row, source.genes] != 0, 0.4, 0.1)
        drawn = np.random.default_rng([0, 1, 1, row]).random(50, dtype=np.float32) < chance
        np.testing.assert_array_equal(batch.mask[row, source.genes], drawn)
    assert not batch.mask[:, :20].any()  # not measured in this source


@pytest.mark.parametrize("reads", ["all", "expressed"])
def test_the_loss_is_the_squared_error_of_masked_values_only(sources, reads):
    parts = [SourceSlice(sources[0], 0, np.arange(12), [(0, r) for r in range(12)])]
    batch = make_slices_batch(parts, SEQUENCE, reads, 70, [0])
    network = Fixed(70, reads)
    loss = batch_loss(network, batch)
    x, w, m = batch.x.numpy().astype(float), batch.weight.numpy().astype(float), batch.mask.numpy()
    assert loss.total.item() == pytest.approx(((1.25 - x[m]) ** 2 * w[m]).sum(), rel=1e-5)
    assert loss.weight.item() == pytest.approx(w[m].sum(), rel=1e-5)
    loss.mean().backward()
    assert float(network.level.grad) == pytest.approx(
        2 * np.average(1.25 - x[m], weights=w[m]), rel=1e-4
    )


def test_the_network_receives_values_masks_and_genes():
    """The published network reads whole cells in its own order; the other one also gets the positions of the genes."""
    seen = {}

    class Watched(Fixed):
        def reconstruct(self, x, mask, genes, keep):
            seen.update(x=x, mask=mask, genes=genes, keep=keep)
            return x

    batch = Batch(
        torch.ones(2, 3),
        torch.eye(3)[:2].bool(),
        torch.ones(2, 3),
        torch.tensor([[4, 5, 6], [7, 8, 9]]),
        torch.ones(2, 3).bool(),
    )
    assert batch_loss(Watched(10, "expressed"), batch).total == 0
    assert (
        seen["genes"] is batch.genes
        and seen["keep"] is batch.keep
        and torch.equal(seen["mask"], batch.mask)
    )
    batch_loss(Watched(10, "all"), Batch(batch.x, batch.mask, batch.weight, torch.arange(3)))
    assert seen["genes"] is None and seen["keep"] is None


def test_losses_are_added_and_none_is_zero():
    network = Fixed(5, "all")
    both = sum_losses(
        [Loss(torch.tensor(2.0), torch.tensor(3.0)), Loss(torch.tensor(5.0), torch.tensor(0.5))],
        network,
    )
    assert (both.total, both.weight) == (7.0, 3.5)
    nothing = sum_losses([], network)
    nothing.total.backward()
    assert nothing.total == 0 and nothing.weight == 0 and network.level.grad == 0


def test_the_step_reads_a_batch_for_every_share(sources):
    step = reconstruction(InMemorySource(sources), SEQUENCE, TrainerConfig(batch_size=3, seed=6))
    network = Fixed(70, "expressed")
    whole = step.draw(network, 2, np.random.default_rng(1), BatchShard())
    (part,) = InMemorySource(sources).draw(2, 3, np.random.default_rng(1), BatchShard())
    expected = batch_loss(network, make_slices_batch([part], SEQUENCE, "expressed", 70, [6, 2]))
    assert whole.total == expected.total and whole.weight == expected.weight
    big = reconstruction(
        InMemorySource(sources), SEQUENCE, TrainerConfig(batch_size=6, seed=6)
    ).draw(network, 2, np.random.default_rng(1), BatchShard())
    halves = [step.draw(network, 2, np.random.default_rng(1), BatchShard(r, 2)) for r in range(2)]
    assert sum(h.total.item() for h in halves) == pytest.approx(big.total.item(), rel=1e-5)


@pytest.mark.parametrize("similar", [False, True])
def test_every_cell_of_a_collection_is_read_once_per_epoch(collection, similar):
    feed = CollectionSource(collection, seed=2, similar=similar)
    assert len(feed) == 64
    epochs = []
    for epoch in range(2):
        cells, lengths = [], []
        for k in range(8):
            parts = feed.draw(8 * epoch + k, 8, np.random.default_rng(0), BatchShard())
            cells += [key[0] for part in parts for key in part.keys]
            lengths.append(np.concatenate([np.diff(p.source.values.indptr)[p.rows] for p in parts]))
            assert len(lengths[-1]) == 8
        assert sorted(cells) == list(range(64))
        epochs.append((cells, np.mean([np.ptp(v) for v in lengths])))
    assert epochs[0][0] != epochs[1][0]
    every = np.diff(collection.read(collection.cells).values.indptr)
    assert (epochs[0][1] < 0.5 * np.ptp(every)) == similar, "cells of similar length on request"
    plain = CollectionSource(collection, seed=3, similar=similar).draw(
        0, 8, np.random.default_rng(0), BatchShard()
    )
    assert [key[0] for part in plain for key in part.keys] != epochs[0][0][:8], (
        "the seed sets the order"
    )


def test_shares_of_a_collections_step_are_its_cells(collection):
    whole = CollectionSource(collection, seed=2, similar=True).draw(
        1, 12, np.random.default_rng(0), BatchShard()
    )
    found = []
    for rank in range(2):
        feed = CollectionSource(collection, seed=2, similar=True)
        for part in range(3):
            found += [
                key[0]
                for p in feed.draw(1, 12, np.random.default_rng(0), BatchShard(rank, 2, part, 3))
                for key in p.keys
            ]
    assert sorted(found) == sorted(key[0] for p in whole for key in p.keys)
    assert (
        CollectionSource(collection, seed=2, similar=True).draw(
            1, 1, np.random.default_rng(0), BatchShard(1, 2)
        )
        == []
    )


def test_slices_of_a_collection_have_the_values_of_its_cells(collection):
    feed = CollectionSource(collection, seed=0, similar=False)
    cells = np.array([3, 39, 40, 63])
    parts = list(feed.parts(collection.read(cells)))
    assert [p.number for p in parts] == [0, 1] and [p.keys for p in parts] == [
        [(3,), (39,)],
        [(40,), (63,)],
    ]
    whole = collection.read(cells).values.toarray()
    for part, rows in zip(parts, (slice(0, 2), slice(2, 4))):
        np.testing.assert_array_equal(
            part.source.values.toarray(), whole[rows][:, part.source.genes]
        )
        np.testing.assert_array_equal(part.source.totals, collection.read(cells).totals[rows])
        np.testing.assert_array_equal(part.source.genes, collection.members[part.number].genes)


def test_averages_of_a_collection_are_the_sums_of_its_files(collection):
    averages = CollectionSource(collection, seed=0, similar=False).pseudobulk()
    assert [a.name for a in averages] == [m.store.name for m in collection.members]
    for member, average in zip(collection.members, averages):
        first = collection.members.index(member)
        own = collection.cells[collection.file_of(collection.cells) == first]
        block = collection.read(own)
        counts = np.expm1(block.values.toarray().astype(float)) * block.totals[:, None] / 1e4
        sums = counts.sum(axis=0)[member.genes]
        assert average.totals == pytest.approx(sums.sum(), rel=1e-4) and len(average) == 1
        np.testing.assert_allclose(
            np.expm1(average.values.toarray()[0]), 1e4 * sums / sums.sum(), rtol=1e-3, atol=1e-3
        )


def test_samples_of_a_collection_have_the_same_number_per_file(collection):
    found = sample_sources(collection, cells=30)
    assert [len(s) for s in found] == [30, 24]
    again = sample_sources(collection, cells=30)
    assert all((a.values != b.values).nnz == 0 for a, b in zip(found, again))
    other = sample_sources(collection, cells=30, seed=1)
    assert not np.array_equal(other[0].totals, found[0].totals)
    assert [len(s) for s in sample_sources(collection)] == [40, 24]


def test_sources_are_opened_for_the_genes_of_the_model(collection):
    vocabulary = Vocabulary.published()
    assert open_batch_source(collection, vocabulary, seed=4, reads="expressed").similar
    feed = open_batch_source(collection, vocabulary, seed=4, reads="all")
    assert not feed.similar and feed.seed == 4 and feed.collection is collection
    with pytest.raises(DataError, match="another vocabulary"):
        open_batch_source(collection, small_model(n_genes=50).genes, seed=0, reads="all")
    cells = brain_cohort(30, n_donors=2, n_genes=700, seed=1)
    memory = open_batch_source([cells], vocabulary, seed=0, reads="all", min_total=600, force=True)
    totals = np.asarray(cells.X.sum(axis=1)).ravel()
    assert (
        isinstance(memory, InMemorySource)
        and len(memory) < (totals >= 200).sum()
        and memory.sources[0].totals.min() >= 600
    )
    assert sum(map(len, open_held_out([cells], vocabulary, force=True))) == len(
        open_batch_source([cells], vocabulary, seed=0, reads="all", force=True)
    )
    assert [len(s) for s in open_held_out(collection, vocabulary)] == [40, 24]
