"""Train the models of the package: ``make brain-mini``, ``make brain-base`` (need the folder of real data, see README).

Pre-training and imputation fine-tuning on human brain nuclei, donors held out by name: ``brain-mini`` (D 64 x 2, ships with the package) in
about half an hour on two cores, ``brain-base`` (D 128 x 4) in some hours. A stopped run continues. Writes the
checkpoint with its card into the package, and under benchmarks/results the curves.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import anndata as ad
import numpy as np

from scmamba.genes import Vocabulary
from scmamba.model import save_checkpoint
from scmamba.nn import ModelConfig
from scmamba.training import TrainerConfig, finetune, pretrain
from scmamba.training.reconstruction import IMPUTE, PRETRAIN
from scmamba.utils.errors import ScMambaError

ROOT = Path(__file__).resolve().parents[1]
#: Donors of the Velmeshev set held out from all training: two with autism, two controls.
HELD_OUT = ("4341", "5403", "5864", "5958")

CONFIGS = {
    "brain-mini": ModelConfig(n_genes=19306, d_model=64, n_layer=2, reads="expressed", rates=True),
    "brain-base": ModelConfig(n_genes=19306, d_model=128, n_layer=4, reads="expressed", rates=True),
}
#: Steps of pre-training, then of each round of imputation. A round continues from the one before with other draws, its learning rate first up
#: and then down, so that a larger network can be trained in several rounds.
STEPS = {"brain-mini": (2000, 3600), "brain-base": (2000, 2000, 2000)}
PRETRAIN_LOOP = TrainerConfig(batch_size=16, lr=3e-3, warmup=0.03, save_every=250)
PRETRAIN_SEQUENCE = replace(PRETRAIN, mask_nonzero=0.3, genes_per_step=1536)
IMPUTE_LOOP = TrainerConfig(batch_size=16, lr=3e-3, warmup=0.03, save_every=250)
IMPUTE_SEQUENCE = replace(IMPUTE, genes_per_step=1536, zeros=(100, 1600))


#: Mouse sets read through one-to-one orthologs: cell types for which no human nuclei with all genes are available.
MOUSE = ("zeisel2018_mouse_pseudocases_27998genes", "trem2_mouse_wt_ko_7274genes")


def read(data: Path, mouse: bool = True) -> tuple[list[ad.AnnData], list[ad.AnnData]]:
    """Training and held-out cells."""
    file = data / "velmeshev2019_pfc_3types.h5ad"
    if not file.is_file():
        raise ScMambaError(
            f"There is no {file}. Training the shipped model needs the folder of real data: --data FOLDER."
        )
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
    single = mouse.var["ortholog_one2one"].astype(str).isin(["True", "1"]) & (
        mouse.var["human_ensembl_id"].astype(str) != ""
    )
    human = mouse[:, single.to_numpy()].copy()
    human.var_names = human.var["human_ensembl_id"].astype(str)
    return human[:, ~human.var_names.duplicated()].copy()


def main() -> None:
    """Train one model, or continue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--name", choices=list(CONFIGS), default="brain-mini")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, help="states of the run; default .cache/NAME")
    parser.add_argument("--out", type=Path, help="default: among the package's models")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--steps", type=float, default=1.0, help="multiple of the default number of steps"
    )
    arguments = parser.parse_args()
    name = arguments.name
    training, held_out = read(arguments.data)
    work = arguments.work or ROOT / ".cache" / name
    out = arguments.out or ROOT / "python" / "scmamba" / "model" / "pretrained" / name
    pretraining, *rounds = (max(1, round(steps * arguments.steps)) for steps in STEPS[name])
    loops = {"pretrain": replace(PRETRAIN_LOOP, steps=pretraining)}
    loops |= {
        f"impute{'' if n == 0 else n + 1}": replace(
            IMPUTE_LOOP, steps=steps, seed=arguments.seed + n
        )
        for n, steps in enumerate(rounds)
    }
    model = pretrain(
        training,
        config=CONFIGS[name],
        vocabulary=Vocabulary.published(),
        loop=loops["pretrain"],
        sequence=PRETRAIN_SEQUENCE,
        folder=work / "pretrain",
        name=f"{name}-pretrained",
        held_out=held_out,
        seed=arguments.seed,
    )
    save_checkpoint(
        model, work / f"{name}-pretrained", card="Intermediate result of scripts/train_brain.py.\n"
    )
    for phase, loop in list(loops.items())[1:]:
        model = finetune(
            training,
            model=model,
            task="impute",
            loop=loop,
            sequence=IMPUTE_SEQUENCE,
            folder=work / phase,
            name=name,
            held_out=held_out,
            seed=loop.seed,
        )
    card = ROOT / "scripts" / f"{name.replace('-', '_')}_card.md"
    save_checkpoint(model, out, card=card.read_text())
    if arguments.steps == 1:
        keep_curves(name, work, arguments.seed, loops)


def keep_curves(name: str, work: Path, seed: int, loops: dict[str, TrainerConfig]) -> None:
    """Copy the loss curves and the settings to the other measurements."""
    results, stem = ROOT / "benchmarks" / "results", name.replace("-", "_")
    for phase in loops:
        shutil.copyfile(work / phase / "log.csv", results / f"{stem}_{phase}.csv")
    settings = {
        "seed": seed,
        "held_out_donors": HELD_OUT,
        "config": asdict(CONFIGS[name]),
        **{
            phase: {
                "loop": asdict(loop),
                "sequence": asdict(PRETRAIN_SEQUENCE if phase == "pretrain" else IMPUTE_SEQUENCE),
            }
            for phase, loop in loops.items()
        },
    }
    plain = json.dumps(
        settings, indent=1, default=lambda v: v.tolist() if isinstance(v, np.ndarray) else str(v)
    )
    (results / f"{stem}.json").write_text(plain + "\n")


if __name__ == "__main__":
    main()
