"""A small training run as a program of its own, for tests that start several processes or kill one: prints the losses as JSON."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import torch
from conftest import small_model

from scmamba.data.collection import Collection
from scmamba.training import LoopConfig, fit
from scmamba.training.engine import SharedStep, is_first_process
from scmamba.training.feeds import CollectionFeed, SourceFeed, reconstruction, sample_sources
from scmamba.training.recipes import IMPUTE, PRETRAIN, validation


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--folder")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--reads", default="expressed")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0, help="Seconds a step takes at least.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    config = LoopConfig(steps=given.steps, batch_size=given.batch, accumulate=given.accumulate, lr=1e-2, save_every=2, seed=5)
    cells = Collection(given.data, cache=given.cache, verbose=False)
    sequence = replace(PRETRAIN, genes_per_step=200) if given.reads == "expressed" else IMPUTE
    feed = SourceFeed(sample_sources(cells, 30)) if given.in_memory else CollectionFeed(cells, seed=5, similar=given.reads == "expressed")
    step = reconstruction(feed, sequence, config)

    def slow(network, k, rng, share):
        time.sleep(given.pause)
        print(f"step {k}", flush=True)
        return step.draw(network, k, rng, share)

    judge = validation(sample_sources(cells, 4), sequence)
    network = small_model(given.reads).network
    rows = fit(network, SharedStep(slow) if given.pause else step, config, folder=given.folder, verbose=False, validate=judge)
    if is_first_process():
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
