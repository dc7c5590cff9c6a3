"""A small training run as a separate program, for tests that start several processes or kill one: prints the losses as JSON."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace

import numpy as np
import torch
from conftest import small_model

from scmamba.data.collection import Collection
from scmamba.training import TrainerConfig, fit
from scmamba.training.dataloaders import CollectionSource, reconstruction, sample_sources
from scmamba.training.distributed import BatchShard, Loss, ShardedStep, is_first_process
from scmamba.training.reconstruction import PRETRAIN, validation
from scmamba.training.trainer import Validate


def prepare(
    given: argparse.Namespace,
) -> tuple[torch.nn.Module, ShardedStep, TrainerConfig, Validate]:
    """Network, step, settings and validation of the run that the arguments describe."""
    torch.set_num_threads(1)
    config = TrainerConfig(
        steps=given.steps,
        batch_size=given.batch,
        accumulate=given.accumulate,
        lr=1e-2,
        save_every=2,
        seed=5,
    )
    cells = Collection(given.data, cache=given.cache, verbose=False)
    sequence = replace(PRETRAIN, genes_per_step=200)
    step = reconstruction(CollectionSource(cells, seed=5, similar=True), sequence, config)

    def slow(network: torch.nn.Module, k: int, rng: np.random.Generator, share: BatchShard) -> Loss:
        time.sleep(given.pause)
        print(f"step {k}", flush=True)
        return step.draw(network, k, rng, share)

    judge = validation(sample_sources(cells, 4), sequence)
    return (
        small_model("expressed").network,
        ShardedStep(slow) if given.pause else step,
        config,
        judge,
    )


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--cache", required=True)
    parser.add_argument("--folder")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--pause", type=float, default=0.0, help="Seconds a step takes at least.")
    return parser.parse_args(words)


if __name__ == "__main__":
    options = arguments()
    network, step, config, judge = prepare(options)
    rows = fit(network, step, config, folder=options.folder, verbose=False, validate=judge)
    if is_first_process():
        print(json.dumps(rows))
