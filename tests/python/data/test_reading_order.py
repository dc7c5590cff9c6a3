"""The order of cells in an epoch, written out in loops, and readers that divide it."""

from __future__ import annotations

import threading

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scmamba.data.collection import Collection
from scmamba.data.loader import PrefetchLoader
from scmamba.data.sampler import N_STRIPES, EpochSampler, shuffle_window
from scmamba.genes import Vocabulary

GENES = Vocabulary.published().subset(range(30))


def written_out(n: int, block: int, span: int, seed: int, epoch: int) -> list[int]:
    """Blocks from a random offset in random order, dealt to 64 lanes; each span of every lane
    shuffled.
    """
    lanes = 64 if n >= 64 else 1
    span = max(lanes, min(span, n) // lanes * lanes)
    block = max(1, min(block, n // (4 * lanes)))
    rng = np.random.default_rng([seed, 7, epoch])
    starts = np.arange(-int(rng.integers(block)), n, block)
    rng.shuffle(starts)
    cells = [c for start in starts for c in range(start, start + block) if 0 <= c < n]
    length = n // lanes * lanes
    long, wide = length // lanes, span // lanes
    order = []
    for first in range(0, long, wide):
        lane_parts = np.array(
            [
                cells[i * long + first : min(i * long + first + wide, (i + 1) * long)]
                for i in range(lanes)
            ]
        )
        shuffled = rng.permuted(lane_parts, axis=1)
        order += [
            int(shuffled[lane, step]) for step in range(shuffled.shape[1]) for lane in range(lanes)
        ]
    return order


@pytest.mark.parametrize(
    ("n", "block", "span", "seed", "epoch"),
    [
        (1000, 64, 256, 0, 0),
        (1000, 64, 256, 0, 1),
        (1000, 64, 256, 5, 0),
        (700, 2, 300, 1, 3),
        (63, 64, 20, 2, 0),
        (64, 64, 8192, 0, 0),
    ],
)
def test_the_order_is_a_function_of_seed_and_epoch(n, block, span, seed, epoch):
    order = EpochSampler(n, block=block, span=span, seed=seed)
    assert order.epoch(epoch).tolist() == written_out(n, block, span, seed, epoch)
    assert len(order) == len(order.epoch(epoch)) == n // order.n_stripes * order.n_stripes


def test_sizes_of_an_order():
    assert N_STRIPES == 64
    defaults = EpochSampler(100_000)
    assert (defaults.block, defaults.span, defaults.seed, defaults.group, defaults.n_stripes) == (
        64,
        8192,
        0,
        0,
        64,
    )
    assert defaults.chunks == -(-99_968 // 8192) == 13
    small = EpochSampler(1000, span=100)
    assert (small.block, small.span, small.chunks, len(small)) == (3, 64, 15, 960)
    few = EpochSampler(63)
    assert (few.n_stripes, few.block, few.span, few.chunks, len(few)) == (1, 15, 63, 1, 63)
    assert (EpochSampler(64).n_stripes, EpochSampler(64).block, EpochSampler(3).block) == (64, 1, 1)


def test_number_of_cells_per_load():
    # 96 MB at 8 bytes per value, whole lanes, at most 16,384 cells
    assert shuffle_window(10**6, 1000) == 12_000 // 64 * 64 == 11_968
    assert shuffle_window(10**6, 8000) == 1500 // 64 * 64 == 1472
    assert shuffle_window(10**6, 10) == shuffle_window(10**6, 0.0) == 16_384
    assert (
        shuffle_window(500, 10) == 448
        and shuffle_window(10, 10) == 64
        and shuffle_window(10**6, 1e9) == 64
    )


def test_recent_epochs_are_cached():
    order = EpochSampler(300)
    first = order.epoch(0)
    second = order.epoch(1)
    assert order.epoch(0) is first and order.epoch(1) is second
    order.epoch(2)
    assert order.epoch(1) is second and order.epoch(0) is not first
    assert order.epoch(0).tolist() == first.tolist()


def test_batches_of_similar_length():
    lengths = np.random.default_rng(0).integers(100, 5000, 640)
    plain, alike = (
        EpochSampler(640, span=256, seed=3),
        EpochSampler(640, span=256, seed=3, group=24, lengths=lengths),
    )
    mixed, sorted_ = plain.epoch(0), alike.epoch(0)
    for start in range(0, 640, 256):
        part = slice(start, min(start + 256, 640))
        if start == 0:
            assert sorted(mixed[part]) == sorted(sorted_[part]), (
                "the first load holds the same cells"
            )
        size = part.stop - start
        groups = [sorted_[part][i : i + 24] for i in range(0, size, 24)]
        assert [len(g) for g in groups] == [24] * (size // 24) + [size % 24] * (size % 24 > 0)
        # Lengths are blurred by a tenth: within a group they are similar, and the group of the longest cells stays last.
        low, high = (np.array([f(lengths[g]) for g in groups]) for f in (np.min, np.max))
        if size == 256:
            assert np.median(high - low) < 1500 < np.ptp(lengths)
            assert lengths[groups[-1]].min() > 0.8 * np.quantile(lengths[sorted_[part]], 0.93)
            middle = np.array([lengths[g].mean() for g in groups[:-1]])
            assert not (np.diff(middle) > 0).all(), "the groups come in random order"
    assert sorted(sorted_) == sorted(set(sorted_)) and len(sorted_) == 640
    exact = [lengths[sorted_[i : i + 24]] for i in range(0, 240, 24)]
    assert any((np.diff(lengths[sorted_[i : i + 24]]) < 0).any() for i in range(0, 240, 24)), (
        "blurred, not sorted"
    )
    assert all(len(e) == 24 for e in exact)


# --- the prefetching loader
# ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def collection(tmp_path_factory) -> Collection:
    """Three objects, 300 cells; the counts of a cell identify it."""
    rng = np.random.default_rng(1)
    parts = []
    for i, n in enumerate((130, 70, 100)):
        counts = rng.poisson(2.0, (n, 30)) + 1
        part = ad.AnnData(
            sparse.csr_matrix(counts), obs=pd.DataFrame(index=[f"{i}-{j}" for j in range(n)])
        )
        part.var_names, part.uns["name"] = list(GENES), f"part{i}"
        parts.append(part)
    return Collection(
        parts, vocabulary=GENES, cache=tmp_path_factory.mktemp("cache"), verbose=False
    )


def test_the_loader_returns_cells_in_the_order(collection):
    some = collection.take(np.arange(300) % 3 != 1)  # 200 cells: 192 positions
    order = EpochSampler(len(some), span=64, seed=2)
    shelf = PrefetchLoader(some, order)
    assert len(shelf) == 192 and order.chunks == 3
    expected = np.concatenate([some.cells[order.epoch(e)] for e in range(3)])
    # Positions across loads and epochs, and unordered ones within a load.
    for positions in (
        np.arange(50, 80),
        np.arange(180, 205),
        np.array([60, 5, 9, 70, 64]),
        np.arange(380, 384),
    ):
        block = shelf.at(positions)
        assert block.cells.tolist() == expected[positions].tolist()
        truth = some.read(expected[positions])
        np.testing.assert_array_equal(block.values.toarray(), truth.values.toarray())
        np.testing.assert_array_equal(block.totals, truth.totals)
        np.testing.assert_array_equal(block.files, collection.file_of(block.cells))
    epoch = list(PrefetchLoader(some, order).epoch(1, 50))
    assert [len(b) for b in epoch] == [50, 50, 50, 42]
    assert np.concatenate([b.cells for b in epoch]).tolist() == expected[192:384].tolist()


@pytest.mark.parametrize("shards", [2, 3, 5])
def test_readers_take_every_kth_position_of_all_epochs(collection, shards):
    order = EpochSampler(
        300, span=128, seed=1
    )  # 256 positions per epoch, so the positions of an odd number of readers shift between epochs
    everything = np.concatenate([order.epoch(e) for e in range(3)])
    for shard in range(shards):
        shelf = PrefetchLoader(collection, order, shard=shard, shards=shards)
        mine = np.arange(shard, 3 * len(order), shards)
        assert shelf.at(mine).cells.tolist() == everything[mine].tolist()
        again = PrefetchLoader(collection, order, shard=shard, shards=shards)
        walked = np.concatenate([b.cells for e in range(3) for b in again.epoch(e, 7)])
        assert walked.tolist() == everything[mine].tolist()


def test_the_next_load_is_prefetched_and_old_loads_are_released(collection, monkeypatch):
    order = EpochSampler(300, span=64, seed=0)
    shelf, reads, done = PrefetchLoader(collection, order), [], threading.Event()
    original = PrefetchLoader._read

    def noted(self, epoch, load):
        reads.append((epoch, load))
        result = original(self, epoch, load)
        done.set()
        return result

    monkeypatch.setattr(PrefetchLoader, "_read", noted)
    for batch in range(0, 2 * len(order), 32):
        shelf.at(np.arange(batch, batch + 32))
        shelf._reader.submit(lambda: None).result(30)  # all requests have been read
        load = batch // 64
        now, following = divmod(load, order.chunks), divmod(load + 1, order.chunks)
        assert reads[-1] == following and now in reads
        assert set(shelf._loads) <= {divmod(load - 1, order.chunks), now, following}
    assert len(reads) == len(set(reads)) == 2 * order.chunks + 1, "nothing is read twice"


def test_batches_of_a_collection_follow_its_sampler(collection):
    order = collection.order(seed=4, block=8, span=128)
    assert (order.n, order.block, order.span, order.seed, order.group) == (300, 1, 128, 4, 0)
    assert collection.order().span == shuffle_window(300, float(collection.lengths.mean())) == 256
    assert collection.order(group=16).lengths.tolist() == collection.lengths.tolist()
    whole = [b.cells.tolist() for b in collection.batches(48, seed=4, epoch=2, block=8, span=128)]
    assert sum(whole, []) == order.epoch(2).tolist() and [len(b) for b in whole] == [48] * 5 + [16]
    default = next(iter(collection.batches(5)))
    assert default.cells.tolist() == EpochSampler(300, span=256).epoch(0)[:5].tolist()
    # Two processes of two workers: process 1's worker 0 is reader 2 of 4.
    part = [
        b.cells.tolist()
        for b in collection.batches(9, seed=4, span=128, rank=1, world=2, worker=0, workers=2)
    ]
    assert sum(part, []) == collection.order(seed=4, span=128).epoch(0)[2::4].tolist()
