"""The README's figure shows the committed tables."""

from __future__ import annotations

import re

import pandas as pd
import pytest
from benchmarks import readme_figure
from documents import ROOT, text_of

RESULTS = ROOT / "benchmarks" / "results"


def test_bars_have_the_lengths_of_the_tables():
    figure = readme_figure.draw()
    figure.canvas.draw()
    shown = [
        {
            label.get_text(): bar.get_width()
            for label, bar in zip(axis.get_yticklabels(), axis.patches)
        }
        for axis in figure.axes
    ]
    gains = pd.read_csv(RESULTS / "foreign_genes_gains.tsv", sep="\t").set_index(["set", "method"])
    assert shown[0]["scMamba"] == pytest.approx(100 * gains.loc[("velmeshev", "scMamba"), "gain"])
    doublets = pd.read_csv(RESULTS / "doublets.tsv", sep="\t")
    solo = doublets[(doublets["set"] == "velmeshev") & (doublets["detector"] == "SOLO")]["AUPRC"]
    assert shown[1]["SOLO"] == pytest.approx(solo.mean())
    named = re.search(
        r"donor1 \| Spearman[^|]*\| ([\d.]+)", (RESULTS / "brain_types.md").read_text()
    )
    assert shown[2]["correlation, same profiles"] == float(named[1])
    assert [len(bars) for bars in shown] == [5, 5, 4]
    for bars in shown:
        assert list(bars.values()) == sorted(bars.values(), reverse=True)
    assert next(iter(shown[2])).startswith("correlation"), "a question that scMamba loses"


def test_its_numbers_are_those_of_the_readme():
    text = text_of("README.md").split("## Measured")[1]
    zeros, doublets, types = (values for _, values in readme_figure.panels().values())
    assert f"**{zeros['scMamba']:.1f}%**" in text
    both, correlation = doublets['scMamba, method="both"'], types["correlation, same profiles"]
    assert f"(**{both:.3f}**)".replace("**0", "**") in text
    assert f"**{correlation:.3f}**".replace("**0", "**") in text
