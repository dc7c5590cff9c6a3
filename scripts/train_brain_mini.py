"""Train the model that ships with the package: ``make brain-mini`` (needs the folder of real data, see README).

Pre-training and imputation fine-tuning on human brain nuclei, donors held out by name, about half an hour on two cores. A run
that is stopped goes on where it was. Writes the checkpoint with its card and, under benchmarks/results, the curves.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import anndata as ad
import numpy as np

from scmamba._errors import ScMambaError
from scmamba.genes import Vocabulary
from scmamba.model import ModelConfig, save_checkpoint
from scmamba.training import LoopConfig, finetune, pretrain
from scmamba.training.recipes import IMPUTE, PRETRAIN

ROOT = Path(__file__).resolve().parents[1]
#: Donors of the Velmeshev set no step of the training sees: two with autism, two controls.
HELD_OUT = ("4341", "5403", "5864", "5958")

CONFIG = ModelConfig(n_genes=19306, d_model=64, n_layer=2, reads="expressed", rates=True)
PRETRAIN_LOOP = LoopConfig(steps=2000, batch_size=16, lr=3e-3, warmup=0.03, save_every=250)
PRETRAIN_SEQUENCE = replace(PRETRAIN, mask_nonzero=0.3, genes_per_step=1536)
IMPUTE_LOOP = LoopConfig(steps=3600, batch_size=16, lr=3e-3, warmup=0.03, save_every=250)
IMPUTE_SEQUENCE = replace(IMPUTE, genes_per_step=1536, zeros=(100, 1600))


#: Mouse sets read through one-to-one orthologs: cell types of which no human nuclei with all genes are at hand.
MOUSE = ("zeisel2018_mouse_pseudocases_27998genes", "trem2_mouse_wt_ko_7274genes")


def read(data: Path, mouse: bool = True) -> tuple[list[ad.AnnData], list[ad.AnnData]]:
    """Training and held-out cells."""
    file = data / "velmeshev2019_pfc_3types.h5ad"
    if not file.is_file():
        raise ScMambaError(f"There is no {file}. Training the shipped model needs the folder of real data: --data FOLDER.")
    nuclei = ad.read_h5ad(file)
    nuclei.uns["name"] = "velmeshev2019"
    held = nuclei.obs["donor"].astype(str).isin(HELD_OUT).to_numpy()
    others = [named(data, "camp2015_human_fetal_neocortex"), named(data, "pbmc3k_10x")]
    if mouse:
        others += [through_orthologs(named(data, name)) for name in MOUSE]
    return [nuclei[~held].copy(), *others], [nuclei[held].copy()]


def named(data: Path, name: str) -> ad.AnnData:
    """One file, its name noted."""
    cells = ad.read_h5ad(data / f"{name}.h5ad")
    cells.uns["name"] = name.split("_")[0]
    return cells


def through_orthologs(mouse: ad.AnnData) -> ad.AnnData:
    """Mouse cells as human ones: genes with exactly one partner in the other species, under its identifier."""
    single = mouse.var["ortholog_one2one"].astype(str).isin(["True", "1"]).to_numpy() & (mouse.var["human_ensembl_id"].astype(str) != "").to_numpy()
    human = mouse[:, single].copy()
    human.var_names = human.var["human_ensembl_id"].astype(str)
    return human[:, ~human.var_names.duplicated()].copy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "brain-mini")
    parser.add_argument("--out", type=Path, default=ROOT / "python" / "scmamba" / "models" / "brain-mini")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    training, held_out = read(arguments.data)
    common = dict(held_out=held_out, seed=arguments.seed)
    first = pretrain(training, config=CONFIG, vocabulary=Vocabulary.published(), loop=PRETRAIN_LOOP, sequence=PRETRAIN_SEQUENCE,
                     folder=arguments.work / "pretrain", name="brain-mini-pretrained", **common)  # fmt: skip
    save_checkpoint(first, arguments.work / "brain-mini-pretrained", card="Intermediate result of scripts/train_brain_mini.py.\n")
    model = finetune(training, model=first, task="impute", loop=IMPUTE_LOOP, sequence=IMPUTE_SEQUENCE, folder=arguments.work / "impute",
                     name="brain-mini", **common)  # fmt: skip
    card = (ROOT / "scripts" / "brain_mini_card.md").read_text() if (ROOT / "scripts" / "brain_mini_card.md").is_file() else ""
    save_checkpoint(model, arguments.out, card=card)
    keep_curves(arguments.work, arguments.seed)


def keep_curves(work: Path, seed: int) -> None:
    """Copy the loss curves and the settings beside the other measurements."""
    results = ROOT / "benchmarks" / "results"
    for phase in ("pretrain", "impute"):
        shutil.copyfile(work / phase / "log.csv", results / f"brain_mini_{phase}.csv")
    settings = {
        "seed": seed,
        "held_out_donors": HELD_OUT,
        "config": asdict(CONFIG),
        "pretrain": {"loop": asdict(PRETRAIN_LOOP), "sequence": asdict(PRETRAIN_SEQUENCE)},
        "impute": {"loop": asdict(IMPUTE_LOOP), "sequence": asdict(IMPUTE_SEQUENCE)},
    }
    (results / "brain_mini.json").write_text(json.dumps(settings, indent=1, default=lambda v: v.tolist() if isinstance(v, np.ndarray) else str(v)) + "\n")


if __name__ == "__main__":
    main()
