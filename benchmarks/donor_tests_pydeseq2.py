"""pydeseq2 on the sums of benchmarks/donor_tests.py; runs in an environment that has pydeseq2.

PYTHON benchmarks/donor_tests_pydeseq2.py FOLDER    (reads FOLDER/*.counts.tsv, writes *.pydeseq2.tsv)
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

import pandas as pd


def tested(counts: pd.DataFrame, design: pd.DataFrame) -> pd.DataFrame:
    """p, adjusted p and log2 fold change of every gene, group a against b."""
    from pydeseq2.dds import DeseqDataSet
    from pydeseq2.default_inference import DefaultInference
    from pydeseq2.ds import DeseqStats

    inference = DefaultInference(n_cpus=1)
    factors = "ratio" if (counts > 0).all().any() else "poscounts"
    fitted = DeseqDataSet(
        counts=counts,
        metadata=design,
        design="~group",
        size_factors_fit_type=factors,
        inference=inference,
        quiet=True,
    )
    fitted.deseq2()
    test = DeseqStats(
        fitted, contrast=["group", "a", "b"], alpha=0.05, inference=inference, quiet=True
    )
    test.summary()
    found = test.results_df[["pvalue", "padj", "log2FoldChange"]]
    return found.set_axis(["pydeseq2.p", "pydeseq2.fdr", "pydeseq2.change"], axis=1)


def main() -> None:
    warnings.filterwarnings("ignore")
    for path in sorted(Path(sys.argv[1]).glob("*.counts.tsv"), key=lambda p: p.stat().st_mtime):
        name = path.name.removesuffix(".counts.tsv")
        target = path.with_name(f"{name}.pydeseq2.tsv")
        if target.exists():
            continue
        counts = pd.read_csv(path, sep="\t", index_col=0).T
        design = pd.read_csv(path.with_name(f"{name}.design.tsv"), sep="\t", index_col=0)
        start = time.perf_counter()
        try:
            found = tested(counts, design)
        except Exception as error:  # one set that it does not fit must not end the others
            print(f"{name} pydeseq2: {error}")
            continue
        seconds = pd.DataFrame({"pydeseq2": [time.perf_counter() - start]})
        seconds.to_csv(path.with_name(f"{name}.pydeseq2_time.tsv"), sep="\t", index=False)
        found.to_csv(target, sep="\t")


if __name__ == "__main__":
    main()
