"""Time and memory before long work: arithmetic against numbers by hand, and the place of the sentence in every verb."""

from __future__ import annotations

import pytest

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.utils import expected_time, progress


def test_lines_through_measured_rates():
    rate = expected_time.Rate(19, 3.3, 1.2, 0.03)
    assert rate.at(5000) == pytest.approx((35.5, 1.35))
    text = expected_time.expected("impute ensemble", 5_000)
    assert text == ""
    text = expected_time.expected("impute ensemble", 100_000, "x is faster")
    assert text == "About 6 minutes and 4.2 GB of memory on two cores of an Intel Xeon; x is faster"
    text = expected_time.expected("embed", 1_000_000)
    assert text == "About 2 hours and 81.3 GB of memory on two cores of an Intel Xeon"
    # 2 * 190 s; the share of passes counts.
    assert expected_time.expected("impute masked", 2_000).startswith("About 6 minutes")
    assert expected_time.expected("impute masked", 2_000, factor=0.2).startswith("About a minute")


class Announced(Exception):
    """The sentence appeared."""


@pytest.fixture
def announced(monkeypatch):
    """Everything counts as long work, which is stopped where it is announced."""

    def speaker(text: str) -> None:
        if "GB of memory" in text:
            raise Announced(text)

    monkeypatch.setattr(expected_time, "LONG", 0.0)
    monkeypatch.setattr(progress, "speaker", speaker)


@pytest.fixture(scope="module")
def cells():
    return brain_cohort(120, n_donors=3, n_genes=2000, seed=1)


@pytest.mark.parametrize(
    "verb, options, words",
    [
        ("impute", {"force": True}, "adapt_steps=0"),
        ("impute", {"force": True, "method": "masked"}, "passes, and method='ensemble'"),
        ("embed", {"force": True}, "GPU"),
        ("annotate", {}, "Intel Xeon"),
        ("annotate", {"reference": "human-brain"}, "Intel Xeon"),
        ("annotate", {"label_key": "cell_type", "cache": False}, "fewer labeled cells"),
        (
            "annotate",
            {"label_key": "cell_type", "cache": False, "finetune_steps": 400},
            "finetune_steps=0",
        ),
        ("find_doublets", {}, "Intel Xeon"),
        ("find_doublets", {"method": "network"}, "method='fast'"),
    ],
)
def test_every_verb_announces_long_work_before_it(cells, announced, verb, options, words):
    if "label_key" in options:
        options = {**options, "reference": cells}
    if verb in ("impute", "embed", "annotate"):
        options = {**options, "device": "cpu"}
    with pytest.raises(Announced, match=words):
        getattr(scmamba, verb)(cells.copy(), **options)


def test_short_work_and_verbose_false_are_silent(cells, monkeypatch):
    shown: list[str] = []
    monkeypatch.setattr(progress, "speaker", shown.append)
    scmamba.annotate(cells.copy())
    assert not any("GB of memory" in text for text in shown)
    monkeypatch.setattr(expected_time, "LONG", 0.0)
    shown.clear()
    scmamba.annotate(cells.copy(), verbose=False)
    assert not shown
