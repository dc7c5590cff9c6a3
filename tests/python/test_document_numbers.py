"""Numbers in README, pages, cards and vignettes equal those in the result files, to the digits shown."""

from __future__ import annotations

import json
import re

import pytest
from documents import CARDS, PAGES, ROOT, VIGNETTES, text_of

RESULTS = ROOT / "benchmarks" / "results"
TEXT = (".md", ".tsv", ".csv", ".json", ".txt")
NUMBER = r"(?<![\w.,-])-?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?![\w,]*\d)(?:e-?\d+)?%?"


def shown_numbers(text: str) -> list[str]:
    """Numbers as they are printed, without bold."""
    return re.findall(NUMBER, re.sub(r"[*`]|\([a-z_]+=\S*\)", "", text))


def values_in(text: str) -> list[float]:
    """Numbers of a result file."""
    found = re.findall(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e-?\d+)?|(?<![\w])\.\d+", text)
    return [float(v.replace(",", "")) for v in found if re.search(r"\d", v)]


def agrees(shown: str, values: list[float]) -> bool:
    """A number is one of ``values``, rounded to its digits; a percentage may be stored as a share."""
    plain = shown.rstrip("%").replace(",", "")
    number, digits = float(plain), len(plain.partition(".")[2].partition("e")[0])
    scales = (1, 100) if shown.endswith("%") else (1,)
    half = 0.5 * 10.0**-digits + 1e-9
    return any(abs(value * scale - number) <= half for value in values for scale in scales)


def lines_of(file: str, *words: str) -> str:
    """The lines of a result file with all of the words."""
    text = (RESULTS / file).read_text(encoding="utf-8")
    found = [line for line in text.splitlines(True) if all(word in line for word in words)]
    assert found, f"{file} has no line with {words}"
    return "".join(found)


def row_of(page: str, start: str) -> list[str]:
    """Cells of the one table row of a page that begins like this, without the first."""
    rows = [row for row in text_of(page).splitlines() if row.startswith(f"| {start}")]
    assert len(rows) == 1, f"{page}: {len(rows)} rows begin with {start!r}"
    return [cell.strip() for cell in rows[0].strip("| \n").split("|")][1:]


#: Page, beginning of a row, file, words of the lines with the same numbers.
ROWS = [
    ("annotation", "Velmeshev 2019, 4", "brain_types.md", ("velmeshev2019",)),
    ("annotation", "Agarwal 2020, held-out donor 1", "brain_types.md", ("donor1",)),
    ("annotation", "Agarwal 2020, held-out donor 5", "brain_types.md", ("donor5",)),
    ("annotation", "blood (PBMC 3k)", "brain_types.md", ("pbmc3k",)),
    ("annotation", "Kang (control), PBMC 3k", "calibration.tsv", ("kang-pbmc3k",)),
    ("annotation", "PBMC 3k, Kang", "calibration.tsv", ("pbmc3k-kang",)),
    ("annotation", "Agarwal, Velmeshev", "calibration.tsv", ("agarwal-velmeshev",)),
    ("annotation", "Agarwal, Zeisel", "calibration.tsv", ("agarwal-zeisel",)),
    ("annotation", "Agarwal, Paired-Tag", "calibration.tsv", ("agarwal-pairedtag",)),
    ("evaluation", "Velmeshev, brain nuclei |", "adaptation.tsv", ("velmeshev2019",)),
    ("evaluation", "Camp, fetal", "adaptation.tsv", ("camp2015",)),
    ("evaluation", "Zeisel", "adaptation.tsv", ("zeisel2018",)),
    ("evaluation", "Allen", "adaptation.tsv", ("allen",)),
    ("evaluation", "Kang, blood | no", "adaptation.tsv", ("kang2018",)),
    ("evaluation", "Marques", "adaptation.tsv", ("marques2016",)),
    ("evaluation", "Paired-Tag", "adaptation.tsv", ("pairedtag2021",)),
    ("evaluation", "Stoeckius", "adaptation.tsv", ("stoeckius2018",)),
    ("evaluation", "impute |", "verbs_speed.md", ("| impute |",)),
    ("evaluation", "embed |", "verbs_speed.md", ("| embed |",)),
    ("evaluation", "annotate by 1,000", "verbs_speed.md", ("| annotate by reference |",)),
    ("evaluation", "annotate by markers", "verbs_speed.md", ("| annotate by markers |",)),
    ("evaluation", "doublets |", "verbs_speed.md", ("_doublets |",)),
    ("training", "brain-mini as shipped", "training_passes.tsv", ("brain-mini as shipped",)),
    ("training", "100 steps with 100", "training_passes.tsv", ("100 to 1,600",)),
    ("training", "100 steps with 0.04", "training_passes.tsv", ("0.04 to 1",)),
    ("training", "brain-mini's rate head", "training_passes.tsv", ("rate head",)),
    ("training", "**gene's average rate x depth", "training_passes.tsv", ("gene_rate",)),
    ("training", "imputation, masked", "training_pretraining.tsv", ("masked values",)),
    ("training", "imputation, rates", "training_pretraining.tsv", ("rates",)),
    ("training", "types of kang", "training_pretraining.tsv", ("types, kang", "\t160\t")),
    ("training", "types of velmeshev", "training_pretraining.tsv", ("types, velmeshev", "\t160\t")),
    ("training", "velmeshev, 3 types", "training_frozen.tsv", ("velmeshev\t1000",)),
    ("training", "velmeshev, 200", "training_frozen.tsv", ("velmeshev\t200",)),
    ("training", "kang (blood), 13", "training_frozen.tsv", ("kang\t1000",)),
    ("training", "kang, 200", "training_frozen.tsv", ("kang\t200",)),
    ("training", "kept", "training_mask_token.tsv", ("kept",)),
    ("training", "fresh", "training_mask_token.tsv", ("fresh",)),
]
#: Files with ranges next to their means -> column of the mean.
MEANS = {"training_frozen.tsv": 3, "training_mask_token.tsv": 2}
#: Words and numbers of these rows that are part of the name and not measurements.
NAMES = r"brain-base|over \d+|\d+ types?|\(\d+\)|2,0\d\d genes|2,000 genes|0 of 1"


@pytest.mark.parametrize(("page", "start", "file", "words"), ROWS, ids=lambda v: str(v)[:24])
def test_rows_equal_the_result_files(page, start, file, words):
    cells = row_of(f"docs/{page}.md", start)
    lines = lines_of(file, *words).splitlines()
    if file in MEANS:
        lines = [line.split("\t")[MEANS[file]] for line in lines]
    elif file == "donor_tests.md":
        lines = lines[:1]  # the first table counts the true genes that were called
    values = values_in("\n".join(lines))
    shown = shown_numbers(re.sub(NAMES, "", " | ".join(cells)))
    assert shown
    assert [number for number in shown if not agrees(number, values)] == []


@pytest.mark.parametrize(
    ("title", "layer"),
    [
        ("What scMamba's imputation does to DEGs", "scmamba"),
        ("What a smoothing imputation does to DEGs", "smooth"),
    ],
)
def test_degs_of_imputed_values_equal_the_result_files(title, layer):
    section = text_of("docs/deg.md").split(f"## {title}")[1].split("\n## ")[0]
    rows = [row for row in section.splitlines() if re.match(r"\| [^|*]*[a-zA-Z]", row)]
    kang, velmeshev = f"deg_real_kang_{layer}.md", f"deg_real_velmeshev_{layer}.md"
    columns = [
        values_in(lines_of(file, f"| {cell_type} | {values} |"))
        for file, cell_type in ((kang, "CD14 Mono"), (velmeshev, "microglia"))
        for values in ("counts", layer)
    ]
    compared = 0
    for row in rows:
        for number, values in zip(row.strip("| ").split("|")[1:], columns, strict=True):
            if shown := shown_numbers(number):
                assert agrees(shown[0], values), f"{row}: {number}"
                compared += 1
    assert compared == 32


def test_imputed_zeros_equal_the_result_files():
    table = text_of("docs/evaluation.md").split("<!-- foreign genes -->")[1].split("<!-- -->")[0]
    sets = {"Velm": "velmeshev", "PBMC": "pbmc3k", "Agar": "agarwal", "Kang": "kang"}
    name = compared = 0
    for row in table.strip().splitlines()[2:]:
        cells = [c.strip().strip("*") for c in row.strip("| ").split("|")]
        cells = [""] * (11 - len(cells)) + cells
        name = sets.get(cells[0][:4], name)
        if cells[1]:
            gains = lines_of("foreign_genes_gains.tsv", name)
            assert agrees(cells[1].strip("*"), values_in(gains)), row
            assert agrees(cells[2].split()[0], values_in(gains)), row
        cell_type = cells[3].rpartition(" (")[0]
        values = values_in(lines_of("foreign_genes.md", f"| {name} | {cell_type} |"))
        for number in cells[4:]:
            assert agrees(number.strip("*"), values), f"{row}: {number}"
            compared += 1
    assert compared == 14 * 7


def test_clusters_equal_the_result_files():
    section = text_of("docs/evaluation.md").split("# What imputation does to types")[1]
    bullets = re.findall(r"^\* (.*?)(?=^\* |\Z)", section, re.S | re.M)
    values = values_in((RESULTS / "clusters.md").read_text(encoding="utf-8"))
    compared = [
        (number, agrees(number, values))
        for bullet in (bullets[0], bullets[2])
        for number in re.findall(r"-?\.\d{3}", bullet)
    ]
    assert len(compared) > 50
    assert [number for number, found in compared if not found] == []


def test_the_final_losses_of_training_equal_the_page():
    for start, file in (
        ("brain-mini | 3,600", "brain_mini_impute.csv"),
        ("brain-base, first round", "brain_base_impute.csv"),
        ("brain-base, second round", "brain_base_impute2.csv"),
    ):
        last = (RESULTS / file).read_text().strip().splitlines()[-1]
        for number in row_of("docs/training.md", start)[1:]:
            assert agrees(number, values_in(last)), f"{start}: {number}"


# --- README and cards

DONORS = "donor_tests.md"
VELMESHEV, KANG = "nonzero_imputation_velmeshev.tsv", "nonzero_imputation_kang.tsv"
#: Beginning of a row of the README -> for each column of numbers, the file and the words of each line with the same numbers, in order.
README = {
    "masked counts of brain": ([(VELMESHEV, "brain-mini\t")], [(VELMESHEV, "neighbor_rate")]),
    "the same, blood": (
        [(KANG, "brain-mini\t")],
        [(KANG, "neighbor_rate"), ("nonzero_imputation_kang_peers.tsv", "scvi")],
    ),
    "13 cell types": (
        [("annotation.md", "| **scMamba (`annotate()`)** | 3 | 0.913")],
        [("annotation.md", "scANVI"), ("annotation.md", "Seurat")],
    ),
    "doublets of hashed": (
        [("doublets.md", "scMamba fast"), ("doublets.md", "scMamba both")],
        [("doublets.md", "cxds equivalent"), ("doublets.md", "Scrublet")],
    ),
    "simulated doublets": (
        [("doublets.md", "scMamba fast"), ("doublets.md", "scMamba both")],
        [("doublets.md", "hybrid equivalent"), ("doublets.md", "SOLO")],
    ),
    "all entries of held-out": (
        [("foreign_genes.md", "| velmeshev | scMamba |")],
        [("foreign_genes.md", "| velmeshev | 100 neighbors, Hellinger |")],
    ),
    "foreign genes in": (
        [("foreign_genes.md", "| velmeshev | endothelial | scMamba, zeros |")],
        [
            ("foreign_genes.md", "| velmeshev | endothelial | low rank"),
            ("foreign_genes.md", "| velmeshev | endothelial | diffusion"),
        ],
    ),
    "cell types without labels": (
        [("brain_types.md", "donor1 | annotate(reference")],
        [("brain_types.md", "donor1 | Spearman")],
    ),
    "true genes per cohort": (
        [
            (DONORS, "| 6 v 6 | 200 | 10 | 21.7 | 20.5 |"),
            (DONORS, "| 10 v 10 | 200 | 10 | 33.2 | 31.7 |"),
            (DONORS, "| 20 v 20 | 200 | 10 | 42.8 | 42.2 |"),
        ],
        [
            (DONORS, "| 6 v 6 | 200 | 10 | 21.7 | 20.5 |"),
            (DONORS, "| 10 v 10 | 200 | 10 | 33.2 | 31.7 |"),
            (DONORS, "| 20 v 20 | 200 | 10 | 42.8 | 42.2 |"),
        ],
    ),
}


@pytest.mark.parametrize("start", README)
def test_the_readme_equals_the_result_files(start):
    ours, theirs, _ = row_of("README.md", start)
    for text, lines in zip((ours, theirs), README[start], strict=True):
        shown = shown_numbers(re.sub(r"\b100 nearest|DESeq2", "", text))
        each = len(shown) // len(lines)
        assert each and len(shown) == each * len(lines)
        for at, number in enumerate(shown):
            values = values_in(lines_of(lines[at // each][0], lines[at // each][1]))
            assert agrees(number, values), f"{start}: {number}"


def test_the_readme_equals_the_pages_for_numbers_without_a_file():
    ours, theirs, _ = row_of("README.md", "clusters and types")
    page = text_of("docs/evaluation.md").split("# What imputation does to types")[1]
    for number in shown_numbers(f"{ours} {theirs}"):
        assert number in page, number
    assert "265 times as fast" in text_of("README.md")
    assert "| 265 |" in text_of("docs/deg.md") and "within 5e-3" in text_of("docs/deg.md")


#: Card, beginning of a row -> line of the files of the two sets (brain nuclei, blood).
CARD_ROWS = [
    ("brain-mini", "gene average", "gene_rate", "gene_rate"),
    ("brain-mini", "30 neighbors", "neighbor_rate", "neighbor_rate"),
    ("brain-mini", "the network alone", "brain-mini (network alone)", "brain-mini (network alone)"),
    ("brain-mini", "**network and", "brain-mini\t", "brain-mini\t"),
    ("brain-mini", "masked pred", "(masked", "(masked"),
    ("brain-base", "30 neighbors", "neighbor_rate", "neighbor_rate"),
    ("brain-base", "the network alone", "brain-base (network alone)", "brain-base (network alone)"),
    ("brain-base", "**network and", "brain-base\t", "brain-base\t"),
    ("brain-base", "masked pred", "(masked", "(masked"),
]


@pytest.mark.parametrize(("model", "start", "nuclei", "blood"), CARD_ROWS)
def test_cards_equal_the_result_files(model, start, nuclei, blood):
    end = "_base.tsv" if model == "brain-base" else ".tsv"
    cells = row_of(f"python/scmamba/model/pretrained/{model}/model_card.md", start)
    for text, name, line in zip(cells, ("velmeshev", "kang"), (nuclei, blood), strict=True):
        values = values_in(lines_of(f"nonzero_imputation_{name}{end}", line))
        shown = shown_numbers(text)
        assert len(shown) == 3
        assert [n for n, v in zip(shown, values[-6:]) if not agrees(n, [v])] == []


def test_the_vignettes_equal_the_pages():
    summary = text_of("vignettes/deg-study.Rmd").split("# Summary")[1]
    counts = values_in(lines_of("deg_real_velmeshev_scmamba.md", "| microglia | counts |"))
    imputed = values_in(lines_of("deg_real_velmeshev_scmamba.md", "| microglia | scmamba |"))
    after, before = re.search(r"(\d+%) of the genes.*?(\d+%) before", summary, re.S).groups()
    assert agrees(after, imputed[-3:-2]) and agrees(before, counts[-3:-2])


def test_the_server_page_equals_the_chaos_benchmark():
    jobs = json.loads((RESULTS / "serve_chaos.json").read_text())
    shown = re.search(r"all of\s+([\d,]+) accepted jobs", text_of("docs/server.md"))[1]
    assert (
        f"accepted jobs: {int(shown.replace(',', ''))}; lost: 0"
        in (RESULTS / "serve_chaos.md").read_text()
    )
    assert jobs


def test_cards_of_the_weights_are_those_of_the_training_script():
    for name in ("brain-mini", "brain-base"):
        beside = ROOT / "python/scmamba/model/pretrained" / name / "model_card.md"
        card = ROOT / "scripts" / f"{name.replace('-', '_')}_card.md"
        assert beside.read_bytes() == card.read_bytes()


# --- whole tables


def part(page: str, begin: str, end: str | None) -> str:
    """The part of a page between two markers."""
    rest = (ROOT / page).read_text(encoding="utf-8").split(begin)[1]
    return (rest if end is None else rest.split(end)[0]).strip()


def test_tables_of_the_pages_are_those_of_the_result_files():
    from benchmarks import deg, model, scan

    results = ROOT / "benchmarks" / "results"
    for name, module in (("scan", scan), ("model", model)):
        made = module.table(json.loads((results / f"{name}.json").read_text()))
        shown = part("docs/scan.md", f"<!-- {name}: begin -->", f"<!-- {name}: end -->")
        assert shown == made.strip()
    speed = deg.table(json.loads((results / "deg_speed.json").read_text())["rows"])
    assert part("docs/deg.md", "<!-- speed -->", "<!-- /speed -->").startswith(speed.strip())
    scores = (results / "annotation.md").read_text(encoding="utf-8")
    assert part("docs/annotation.md", "<!-- results -->", None) == scores.strip()
    rows = [row for row in (results / "doublets.md").read_text().splitlines() if "|" in row]
    page = (ROOT / "docs" / "doublets.md").read_text(encoding="utf-8")
    assert rows and [row for row in rows if row not in page] == []


# --- numbers within sentences

#: Page, regular expression whose groups are numbers, file, words of the lines with the same numbers (all lines if none).
SENTENCES = [
    ("server", r"half were answered within ([\d.]+) s and 99% within ([\d.]+) s \(longest ([\d.]+) s\)", "serve_load.md", ("under the load",)),
    ("server", r"Under ([\d,]+) half-open connections, (\d+) event streams, (\d+) slow uploads and (\d+) jobs", "serve_load.md", ("half-open connections (each",)),
    ("doublets", r"the network has an AUPRC of (\.\d+)", "doublets.tsv", ("velmeshev\tscMamba network\t",)),
    ("doublets", r"the default (\.\d+) and the best\s+other", "doublets.tsv", ("velmeshev\tscMamba fast",)),
    ("doublets", r"hybrid of cxds and bcds\) (\.\d+)", "doublets.tsv", ("velmeshev\thybrid",)),
    ("doublets", r"among the weaker detectors\s+\((\.\d+)\)", "doublets.tsv", ("stoeckius\tscMamba network\t",)),
    ("doublets", r'`"both"` has (\.\d+) and', "doublets.tsv", ("velmeshev\tscMamba both",)),
    ("doublets", r'`"both"` has \.\d+ and (\.\d+)', "doublets.tsv", ("stoeckius\tscMamba both",)),
    ("doublets", r"mixed: (\.\d+) and \.\d+\)", "doublets.tsv", ("velmeshev\tscMamba network, mixed",)),
    ("doublets", r"mixed: \.\d+ and (\.\d+)\)", "doublets.tsv", ("stoeckius\tscMamba network, mixed",)),
    ("doublets", r"more accurate than the default \((\.\d+) and", "doublets.tsv", ("pbmc3k\thybrid",)),
    ("doublets", r"more accurate than the default \(\.\d+ and (\.\d+)", "doublets.tsv", ("pbmc3k\tscMamba fast",)),
    ("annotation", r"much weaker \(macro F1 (\.\d+)\)", "annotation.md", ("fine-tuned network alone | 3 | 0.688",)),
    ("annotation", r"held-out donor 5 is (\.\d+) against", "brain_types.md", ("donor5 | annotate(reference",)),
    ("annotation", r"held-out donor 5 is \.\d+ against\s+(\.\d+)", "brain_types.md", ("donor5 | Spearman",)),
    ("annotation", r"10,000 nuclei take (\d+) CPU", "brain_types.md", ("10,000 nuclei",)),
    ("evaluation", r"Memory stays below ([\d.]+) GiB", "verbs_speed.md", ("embed | scMamba cells |",)),
    ("evaluation", r"The fit found (0\.7)% of zeros", "fit_cohort.txt", ("zero_inflation",)),
    ("ambient", r"genes of other types are ([\d.]+%) of the counts of a type \(([\d.]+%) before\)", "ambient_velmeshev.md", ("donors | 0.2 | 0.0119",)),
    ("ambient", r"and ([\d.]+%) of its counts after the correction", "ambient_velmeshev.md", ("donors | 0.2 | 0.0119",)),
    ("ambient", r"markers fall from ([\d.]+%) to ([\d.]+%) by the correction; 17.1% would be right \(([\d.]+%)", "ambient_velmeshev.md", ("donors | 0.2 | 0.0119",)),
    ("evaluation", r"(?s)type (\.\d+) \(raw \.955\), lowest seed (\.\d+); by donor (\.\d+).*?types (\.\d+) \(raw", "clusters_impute.md", ("| scMamba |",)),
    ("evaluation", r"(?s)donor\"` (\.\d+), (\.\d+) and (\.\d+),\s+within types donors (\.\d+) \(raw \.040\) and mixing (\.\d+) \(raw", "clusters_impute.md", ("| scMamba, donors corrected |",)),
    ("evaluation", r"further \(silhouette (\.\d+), with\s+`batch_key` \.\d+\), but split them: NMI (\.\d+)", "clusters_impute.md", ("| scMamba, posterior |",)),
    ("evaluation", r"with\s+`batch_key` (\.\d+)\), but split them: NMI \.\d+ and (\.\d+)", "clusters_impute.md", ("| scMamba, posterior, donors",)),
    ("training", r"base classifiers on all genes \((\.\d+),", "annotation.md", ("| **scMamba (`annotate()`)** | 3 | 0.913",)),
]  # fmt: skip
#: Columns of AUPRC: the mean over the seeds is shown.
AVERAGED = "doublets.tsv"


def mean_auprc(lines: str) -> list[float]:
    """Mean of the column AUPRC of some lines."""
    column = (RESULTS / AVERAGED).read_text().splitlines()[0].split("\t").index("AUPRC")
    numbers = [float(line.split("\t")[column]) for line in lines.splitlines()]
    return [sum(numbers) / len(numbers)]


@pytest.mark.parametrize(("page", "pattern", "file", "words"), SENTENCES, ids=lambda v: str(v)[:40])
def test_numbers_within_sentences_equal_the_result_files(page, pattern, file, words):
    found = re.findall(pattern, text_of(f"docs/{page}.md"))
    assert len(found) == 1, f"{page}: {len(found)} sentences fit {pattern}"
    shown = [found[0]] if isinstance(found[0], str) else list(found[0])
    lines = lines_of(file, *words)
    values = mean_auprc(lines) if file == AVERAGED else values_in(lines)
    if "GiB" in pattern:
        assert max(values) / 1024 < float(shown[0]) < max(values) / 1024 + 0.15
        return
    if file == "fit_cohort.txt":
        values = [100 * value for value in values]
    assert [number for number in shown if not agrees(number, values)] == []


def test_runs_with_calls_where_nothing_differs_equal_the_result_file():
    section = text_of("docs/deg.md").split("**Where nothing differs.**")[1].split("\n\n")[1]
    names = {"Kang, control": "kang", "Velmeshev, control": "velmeshev Control"}
    names["Velmeshev, ASD"] = "velmeshev ASD"
    compared = 0
    tests = [cell.strip() for cell in section.splitlines()[0].strip("| ").split("|")][1:]
    for row in section.splitlines()[2:]:
        first, *cells = [cell.strip() for cell in row.strip("| ").split("|")]
        for test, cell in zip(tests, cells, strict=True):
            line = lines_of("donor_tests.md", f"| {names[first]} | {test} |")
            runs, _, _, share = (float(v) for v in line.strip("| \n").split(" | ")[2:6])
            assert cell == f"{share * runs:.0f} of {runs:.0f}", row
            compared += 1
    assert compared == 15


# --- the README is short and fair


def test_the_readme_has_two_screens_one_picture_and_rows_that_others_win():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    pictures = re.findall(r"!\[[^\]]+\]\((\S+)\)", text)
    assert len(pictures) == 1 and (ROOT / pictures[0]).is_file()
    table = text.split("## Measured")[1].split("## Limits")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines() if row.startswith("|")][2:]
    lost = [row[0] for row in rows if len(row) > 2 and "**" in row[2]]
    assert len(rows) >= 10 and len(lost) >= 3, lost


# --- every other number with a decimal point or a percent sign

#: Page -> files of the results that it does not name itself.
SOURCES = {
    "README.md": [
        "adaptation.tsv",
        "brain_types.md",
        "clusters.md",
        "clusters_impute.md",
        "deg_speed.json",
        DONORS,
        VELMESHEV,
        KANG,
        "nonzero_imputation_kang_peers.tsv",
    ],
    "docs/annotation.md": ["annotation.md", "calibration.tsv"],
    "docs/deg.md": [
        "deg_speed.json",
        "deg_real_kang_scmamba.md",
        "deg_real_kang_smooth.md",
        "deg_real_velmeshev_scmamba.md",
        "deg_real_velmeshev_smooth.md",
        "donor_tests.md",
    ],
    "docs/doublets.md": ["doublets.md", "doublets.tsv", "doublets_rates.tsv"],
    "docs/evaluation.md": ["clusters.md", "foreign_genes_gains.tsv", VELMESHEV, KANG],
    "docs/training.md": [
        "brain_mini_impute.csv",
        "brain_base_impute.csv",
        "brain_base_impute2.csv",
    ],
    "python/scmamba/model/pretrained/brain-base/model_card.md": [
        "nonzero_imputation_velmeshev_base.tsv",
        "nonzero_imputation_kang_base.tsv",
        VELMESHEV,
        KANG,
        "brain_mini_impute.csv",
    ],
    "python/scmamba/model/pretrained/brain-mini/model_card.md": [VELMESHEV, KANG],
    "vignettes/getting-started.Rmd": ["deg_real_velmeshev_scmamba.md"],
    "vignettes/deg-study.Rmd": ["deg_real_velmeshev_scmamba.md", "deg_real_kang_scmamba.md"],
    "NEWS.md": ["calibration.tsv", "deg_speed.json", "verbs_speed.md", "foreign_genes.md"],
}
#: What is no measurement of ours -> the reason. Removed before numbers are looked for.
NO_MEASUREMENT = {
    r"^ *```.*?^ *```|^    .*?$|`[^`]*`": "code",
    r"\]\([^)]*\)": "addresses",
    r"<!-- (scan|model): begin -->.*?<!-- \1: end -->": "compared as a whole above",
    r"\b(Python|R|kernel|Seurat|SeuratObject|MAST|anndata|reticulate|torch|tus|pandas|scanpy|pynndescent|capability|CC BY|in|on) "
    r"\d+\.\d[\d.]*\b(( to |, | and |-)\d+\.\d[\d.]*\b)*(?!%)": "versions",
    r"arXiv:\d+\.\d+": "the paper",
    r"\bbefore \d\.\d+ supports": "versions",
}
#: Page -> numbers that are settings, definitions or other people's, or that have no file, and why.
EXCEPTIONS: dict[str, dict[str, str]] = {
    "docs/ambient.md": {"17.1%": "four fifths of 21.4%"},
    "docs/evaluation.md": {
        "1.005": "a definition",
    },
    "docs/paper.md": {"40%": "a setting"},
    "docs/tutorials/annotate_brain.md": {"0.5": "a default"},
    "docs/tutorials/compare.md": {"80%": "a default"},
    "docs/tutorials/impute.md": {"0.95": "a default"},
    "python/scmamba/model/pretrained/brain-mini/model_card.md": {
        "50%": "a setting",
        "4%": "a setting",
    },
    "vignettes/deg-study.Rmd": {"0.01": "a level", "0.001": "a level"},
    "vignettes/python/deg_robustness.md": {"5%": "a level", "0.05": "a level"},
    "NEWS.md": {"4.5": "the size of PyTorch's CUDA packages"},
}


def numbers_of(page: str) -> list[str]:
    """Numbers with a decimal point or a percent sign outside of code."""
    text = text_of(page)
    for pattern in NO_MEASUREMENT:
        text = re.sub(pattern, " ", text, flags=re.S | re.M)
    shown = re.findall(NUMBER, text.replace("*", ""))
    return [number for number in shown if "." in number or "%" in number]


MEASURED = [page for page in [*PAGES, *CARDS, *VIGNETTES, "NEWS.md"] if numbers_of(page)]


@pytest.mark.parametrize("page", MEASURED)
def test_numbers_of_a_page_are_in_its_result_files(page):
    """In one of the files that the page names, or that ``SOURCES`` names for it; shares may be percentages or points.

    A page with many numbers agrees by chance more easily: its tables are compared row by row above.
    """
    named = {f for f in RESULTS.iterdir() if f.suffix in TEXT and f.name in text_of(page)}
    files = named | {RESULTS / name for name in SOURCES.get(page, [])}
    values = values_in("\n".join(file.read_text(encoding="utf-8") for file in sorted(files)))
    if page == "docs/ambient.md":  # points
        values += [100 * value for value in values]
    known = EXCEPTIONS.get(page, {})
    missing = [n for n in numbers_of(page) if n not in known and not agrees(n, values)]
    assert missing == []
    assert set(known) <= set(numbers_of(page)), "an exception that is no longer needed"


def test_errors_of_ambient_shares_equal_the_result_files():
    """Mean and largest error in points, known types."""
    compared = 0
    for share in (5, 10, 20, 40):
        cells = row_of("docs/ambient.md", f"{share}% |")
        for at, (file, name) in enumerate(
            (("ambient_velmeshev.md", "Velmeshev"), ("ambient.md", "Agarwal"))
        ):
            lines = lines_of(file, name, f"known types | {share / 100:g} |").splitlines()
            mean, largest = (float(v) for v in lines[0].split(" | ")[7:9])
            shown = [shown_numbers(cell)[0] for cell in cells[2 * at : 2 * at + 2]]
            assert agrees(shown[0], [100 * mean]) and agrees(shown[1], [100 * largest]), share
            compared += 2
    assert compared == 16
    found = r"by ([\d.]+) points on average, at most ([\d.]+) \(three"
    line = lines_of("ambient_velmeshev.md", "other proportions | 0.2").split(" | ")
    for number, value in zip(re.search(found, text_of("docs/ambient.md")).groups(), line[6:8]):
        assert agrees(number, [100 * float(value)])
