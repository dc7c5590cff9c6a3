"""Gene sets: the competitive test of Wu and Smyth (CAMERA; Nucleic Acids Res 40:e133, 2012) on ranked genes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import ndtri, stdtr

from ..utils.errors import DataError, OptionError
from .markers import benjamini_hochberg

#: Families of genes by their symbols (HGNC), matched against the tested genes.
FAMILIES = {
    "mitochondrial genome": r"MT-.+",
    "cytosolic ribosome": r"RP[LS]\d+[AXYL]?\d*|RPLP[012]|RPSA",
    "mitochondrial ribosome": r"MRP[LS]\d+.*",
    "heat shock proteins": r"HSP[ABDEH]\w*|DNAJ[ABC]\w+|BAG3|HSF[12]",
    "metallothioneins": r"MT[1-4][A-Z]*",
    "immediate early genes": r"FOS[BL]?\d?|JUN[BD]?|EGR[1-4]|ARC|NPAS4|NR4A[123]|IER[235]|BTG2|DUSP1|ATF3",
    "interferon-induced genes": r"IFI(6|16|27|35|44L?)|IFIT[1235M]|IFITM[123]|ISG(15|20)|MX[12]|OAS[123L]|BST2|STAT[12]|IRF[79]|RSAD2",
    "HLA class I": r"HLA-[ABCEFG]|B2M|TAP[12]|TAPBP",
    "HLA class II": r"HLA-D.+|CD74|CIITA",
    "complement": r"C1Q[ABC]|C[1-9][ABRS]?|C3AR1|CFH|CFI|CFB|CFD|CD55|CD59|CLU",
    "respiratory chain complex I": r"NDUF.+",
    "ATP synthase": r"ATP5.+",
    "proteasome": r"PSM[A-G]\d+",
    "tubulins": r"TUB[ABG]\w+",
    "histones": r"H[1-4]-\d+|H2[AB]\w*\d+|HIST[1-4]H.+",
    "hemoglobins": r"HB[ABDEGMQZ]\d?",
    "cholesterol synthesis": r"HMGC[RS]1?|SQLE|LSS|FDFT1|FDPS|IDI1|MVK|MVD|PMVK|DHCR(7|24)|CYP51A1|MSMO1|NSDHL|SC5D|EBP|HSD17B7|LDLR|INSIG1",
    "Y chromosome": r"UTY|KDM5D|DDX3Y|EIF1AY|USP9Y|ZFY|RPS4Y1|NLGN4Y|TMSB4Y|TTTY\d+",
}
#: Sets that come with the package.
SHIPPED = ("cell-types", "alzheimer", "families")


def gene_set_test(
    genes: pd.DataFrame | pd.Series,
    sets: Mapping[str, Iterable[str]] | str | Path,
    *,
    correlation: float = 0.01,
    min_size: int = 5,
) -> pd.DataFrame:
    """Test whether the genes of a set differ more than all other genes.

    Parameters
    ----------
    genes
        Rows of one cell type of ``CompareResult.table``, any table with the columns ``gene`` (or gene names as index),
        ``log2FC`` and ``p_val``, or a Series of signed statistics by gene.
    sets
        Set -> genes, or a ``.gmt`` file (name, description, genes, separated by tabs), or the name of sets that come with the
        package: ``"cell-types"`` (markers of eight brain cell types), ``"alzheimer"`` (genes up and down in six types,
        Mathys et al. 2019) or ``"families"`` (families of genes by their symbols, such as heat shock proteins).
    correlation
        Correlation between the genes of a set (0 to 1), which makes their mean less certain; 0.01 as in limma.
    min_size
        Sets with fewer tested genes are omitted.

    Returns
    -------
    DataFrame indexed by set, sorted by p: ``n_genes`` (tested), ``direction`` (``"up"`` or ``"down"``), ``mean`` (of the
    signed z scores), ``t``, ``p_val``, ``p_val_adj`` (Benjamini-Hochberg).

    Raises
    ------
    DataError
        Missing columns, genes twice, or no set with enough genes.
    OptionError
        ``correlation`` is outside of 0 to 1.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> z = pd.Series(rng.normal(size=500), index=[f"G{i}" for i in range(500)])
    >>> z.iloc[:20] += 2
    >>> found = gene_set_test(z, {"A": z.index[:20], "B": z.index[100:140]})
    >>> found.index[0], found["direction"].iloc[0]
    ('A', 'up')
    """
    if not 0 <= correlation < 1:
        raise OptionError(f"correlation is {correlation}; expected a number from 0 to below 1.")
    z = _signed(genes)
    members = _members(sets, z.index)
    values, total = z.to_numpy(dtype=float), len(z)
    mean, variance = values.mean(), values.var(ddof=1)
    rows = {}
    for name, wanted in members.items():
        inside = z.index.isin(list(wanted))
        n = int(inside.sum())
        if n < max(min_size, 1) or n == total:
            continue
        rest = total - n
        delta = total / rest * (values[inside].mean() - mean)
        pooled = ((total - 1) * variance - delta**2 * n * rest / total) / (total - 2)
        t = delta / np.sqrt(pooled * ((1 + (n - 1) * correlation) / n + 1 / rest))
        rows[name] = {
            "n_genes": n,
            "direction": "up" if t > 0 else "down",
            "mean": values[inside].mean(),
            "t": t,
            "p_val": 2 * stdtr(total - 2, -abs(t)),
        }
    if not rows:
        raise DataError(
            f"None of the {len(members)} sets has {min_size} of the {total:,} tested genes. Check that the sets name genes "
            "as the object does."
        )
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index.name = "set"
    table["p_val_adj"] = benjamini_hochberg(table["p_val"].to_numpy())
    return table.sort_values("p_val", kind="stable")


def _members(
    sets: Mapping[str, Iterable[str]] | str | Path, tested: pd.Index
) -> Mapping[str, Iterable[str]]:
    """Genes by set, whatever names them."""
    if isinstance(sets, str) and sets in SHIPPED:
        return shipped_sets(sets, list(map(str, tested)))
    if isinstance(sets, str) and not Path(sets).suffix:
        raise OptionError(
            f"There are no gene sets {sets!r}; expected {', '.join(map(repr, SHIPPED))}, a .gmt file or a mapping."
        )
    return read_gmt(sets) if isinstance(sets, (str, Path)) else sets


def shipped_sets(name: str, tested: Iterable[str]) -> dict[str, list[str]]:
    """Gene sets that come with the package.

    Parameters
    ----------
    name
        ``"cell-types"``: the marker genes of the package; ``"alzheimer"``: for six cell types the genes whose change between
        patients and controls stands out in Mathys et al. (Nature 570:332, 2019), a study that tested cells, so these are
        published lists and not established truth; ``"families"``: :data:`FAMILIES`.
    tested
        Symbols of the tested genes, from which families are taken.

    Returns
    -------
    Set -> genes.

    Examples
    --------
    >>> shipped_sets("families", ["HSPA1A", "MT-CO1", "MT-ND4", "APOE"])["mitochondrial genome"]
    ['MT-CO1', 'MT-ND4']
    """
    if name == "cell-types":
        from ..datasets.marker_panels import brain_markers

        more = brain_markers(more=True)
        return {kind: [*genes, *more.get(kind, [])] for kind, genes in brain_markers().items()}
    if name == "alzheimer":
        from ..datasets._disease import disease_parameters

        table = disease_parameters()[0]
        found = {}
        for column in (c for c in table.columns if c.startswith("AD_")):
            kind = column.removeprefix("AD_")
            found[f"AD up, {kind}"] = table.index[table[column] > 0].tolist()
            found[f"AD down, {kind}"] = table.index[table[column] < 0].tolist()
        return found
    symbols = list(tested)
    return {
        family: [gene for gene in symbols if re.fullmatch(pattern, gene)]
        for family, pattern in FAMILIES.items()
    }


def _signed(genes: pd.DataFrame | pd.Series) -> pd.Series:
    """Signed z scores by gene."""
    if isinstance(genes, pd.Series):
        z = genes.dropna()
    else:
        table = genes.set_index("gene") if "gene" in genes else genes
        if missing := [c for c in ("log2FC", "p_val") if c not in table]:
            raise DataError(
                f"The table of genes has no column {missing[0]!r}; log2FC and p_val are needed."
            )
        size = -ndtri(np.clip(table["p_val"].to_numpy(dtype=float), 1e-300, 1) / 2)
        z = pd.Series(
            np.sign(table["log2FC"].to_numpy(dtype=float)) * size, index=table.index
        ).dropna()
    if z.index.has_duplicates:
        raise DataError(
            f"{z.index[z.index.duplicated()][0]!r} is in two rows. Give the rows of one cell type, each gene once."
        )
    if len(z) < 3:
        raise DataError(f"{len(z)} genes were given; a competitive test needs more.")
    return z


def read_gmt(path: str | Path) -> dict[str, list[str]]:
    """Gene sets of a ``.gmt`` file.

    Parameters
    ----------
    path
        Text file; every line has a name, a description and genes, separated by tabs.

    Returns
    -------
    Set -> genes.

    Raises
    ------
    DataError
        There is no such file, or a line has no genes.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(f"There is no file {file} with gene sets.")
    found: dict[str, list[str]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        name, *rest = line.split("\t")
        if len(rest) < 2:
            raise DataError(
                f"Line {number} of {file} has no genes; expected a name, a description and genes, separated by tabs."
            )
        found[name] = [gene for gene in rest[1:] if gene]
    return found
