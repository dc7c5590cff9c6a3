"""A biologist's work on the page, in a real headless Chromium: jobs after a reload, demo data, columns, own markers, DEGs, colors,
before and after, downloads, repeating lines, broken uploads, narrow and dark screens."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from browsing import wait_for_end

import scmamba
from scmamba.datasets import brain_cohort
from scmamba.deg import find_markers

REPOSITORY = Path(__file__).parents[3]


def send(page) -> None:
    page.click("#send")
    page.wait_for_timeout(300)
    wait_for_end(page)
    assert page.text_content("#status") == "Done", page.text_content("#message")


def choose(page, file) -> None:
    page.set_input_files("#file", str(file))
    page.wait_for_selector("#cells:not(:empty)", state="attached", timeout=120_000)


def saved(page, button: str, target):
    with page.expect_download() as download:
        page.click(button)
    download.value.save_as(target)
    return target


def listed(page, id_: str) -> list[str]:
    return page.evaluate(f"[...document.getElementById('{id_}').options].map((o) => o.value)")


def from_rds(file, tmp_path) -> pd.DataFrame:
    """What R reads, with its classes in the first line."""
    code = (
        "x <- readRDS(commandArgs(TRUE)[1]); stopifnot(is.data.frame(x)); "
        "write.csv(x, commandArgs(TRUE)[2]); cat(vapply(x, class, ''))"
    )
    table = tmp_path / "from_r.csv"
    subprocess.run(
        ["Rscript", "--vanilla", "-e", code, str(file), str(table)], check=True, capture_output=True
    )
    return pd.read_csv(table, index_col=0)


def r_call(page, tmp_path) -> str:
    """The call in the last of the R lines, after R itself has matched its arguments with those of the package."""
    if not shutil.which("Rscript"):
        pytest.skip("R is not installed")
    lines = tmp_path / "lines.R"
    lines.write_text(page.text_content("#r"))
    code = """
        known <- new.env()
        for (file in list.files(commandArgs(TRUE)[2], full.names = TRUE)) for (e in parse(file)) {
          if (is.call(e) && identical(e[[1]], as.name("<-")) && is.call(e[[3]]) && identical(e[[3]][[1]], as.name("function"))) {
            assign(as.character(e[[2]])[1], eval(e[[3]]), known)
          }
        }
        x <- parse(commandArgs(TRUE)[1]); call <- x[[length(x)]][[3]]
        verb <- get(paste0(as.character(call[[1]]), ".Seurat"), known)
        stopifnot(names(call)[-(1:2)] %in% names(formals(verb)))
        cat(deparse(match.call(verb, call)))
    """
    command = ["Rscript", "--vanilla", "-e", code, str(lines), str(REPOSITORY / "R")]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    return said.stdout


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    """The demo nuclei, simulated here."""
    return brain_cohort(400, n_donors=4, seed=0)


def test_demo_nuclei_their_columns_and_degs(page, cohort, tmp_path):
    page.click("#demo")
    page.wait_for_selector("#cells:not(:empty)", state="attached", timeout=240_000)
    assert page.text_content("#cells").startswith("400 cells, 10000 genes")
    assert listed(page, "columns") == list(cohort.obs.columns)
    page.select_option("#task", "markers")
    page.fill("#groupby", "disease")
    assert listed(page, "levels") == sorted(cohort.obs["disease"].unique())
    page.fill("#group1", "AD")
    page.fill("#group2", "Control")
    page.select_option("#test", "wilcox")
    send(page)
    direct = find_markers(cohort, "disease", "AD", "Control", test="wilcox")
    rows = page.query_selector_all("#table tbody tr")
    assert [row.query_selector("th").inner_text() for row in rows] == list(direct.index[:50])
    heads = [cell.inner_text() for cell in page.query_selector_all("#table thead th")]
    assert heads == ["gene", *direct.columns]
    assert page.text_content("#mapped").startswith(f"Volcano plot, {len(direct)} genes")
    table = pd.read_csv(
        saved(page, "#csv", tmp_path / "degs.csv"), index_col=0, float_precision="round_trip"
    )
    pd.testing.assert_frame_equal(
        table, direct, check_names=False, check_dtype=False, check_exact=True
    )
    if shutil.which("Rscript"):
        again = from_rds(saved(page, "#rds", tmp_path / "degs.rds"), tmp_path)
        pd.testing.assert_frame_equal(
            again, direct, check_names=False, check_dtype=False, rtol=1e-14
        )
    lines = page.text_content("#python")
    cohort.write_h5ad(tmp_path / "demo.h5ad")
    found: dict = {}
    exec(lines.replace('"demo.h5ad"', repr(str(tmp_path / "demo.h5ad"))), found)
    pd.testing.assert_frame_equal(found["table"], direct)
    assert page.complaints == []
    call = r_call(page, tmp_path)
    assert 'group.by = "disease"' in call and 'ident.2 = "Control"' in call


def ids(page) -> list[str]:
    return page.evaluate(
        "[...document.querySelectorAll('#jobs tbody tr')].map((row) => row.dataset.job)"
    )


def test_jobs_after_a_reload(page, page_files, server):
    choose(page, page_files[0])
    page.select_option("#task", "embed")
    before = ids(page)
    page.click("#send")
    while ids(page) == before and page.text_content("#status") not in ("Refused", "Done"):
        page.wait_for_timeout(100)
    (job,) = set(ids(page)) - set(before)
    page.reload()  # the job goes on, and the page with it
    page.wait_for_selector(f"#jobs tr[data-job='{job}']", timeout=60_000)
    wait_for_end(page)
    assert page.text_content("#status") == "Done", page.text_content("#message")
    page.reload()
    row = page.wait_for_selector(f"#jobs tr[data-job='{job}']", timeout=60_000)
    cells = [cell.inner_text() for cell in row.query_selector_all("th, td")]
    assert cells[:2] == ["Embed the cells", "cells.h5ad"] and cells[3] == "done"
    row.query_selector("button >> text=Open").click()
    page.wait_for_selector("#map:not([hidden])", timeout=240_000)
    assert "100 cells" in page.text_content("#mapped")
    page.query_selector(f"#jobs tr[data-job='{job}'] >> text=Delete").click()
    page.wait_for_selector(f"#jobs tr[data-job='{job}']", state="detached", timeout=60_000)
    assert not (server.data / "jobs" / job).exists()
    assert page.complaints == []


def hover(page, canvas: str, place: tuple[float, float]) -> str:
    """Text beside the map with the mouse over a place of the map, given from 0 to 1."""
    page.evaluate(f"document.getElementById('{canvas}').scrollIntoView({{block: 'center'}})")
    box = page.locator(f"#{canvas}").bounding_box()
    scale = (box["width"] - 2) / 640  # borders
    x = box["x"] + 1 + scale * (12 + place[0] * 616)
    y = box["y"] + 1 + scale * (468 - place[1] * 456)
    page.mouse.move(x, y)
    page.wait_for_timeout(100)
    return page.text_content("#tip")


def alone(picture: dict) -> int:
    """The cell of a map with the most room around it."""
    places = np.column_stack([picture["x"], picture["y"]])
    far = np.linalg.norm(places[:, None] - places[None], axis=2) + 9 * np.eye(len(places))
    return int(far.min(axis=1).argmax())


def test_imputed_cells_by_gene_before_and_after(page, page_nuclei, tmp_path):
    # Too few nuclei for an adaptation, which takes minutes.
    page_nuclei[:40].copy().write_h5ad(tmp_path / "few.h5ad")
    choose(page, tmp_path / "few.h5ad")
    page.select_option("#task", "impute")
    page.fill("#batch", "donor")
    with page.expect_response(lambda answer: "/picture" in answer.url, timeout=240_000) as drawn:
        send(page)
    page.wait_for_selector("#map:not([hidden])", timeout=240_000)
    picture = drawn.value.json()
    cells = ad.read_h5ad(tmp_path / "few.h5ad")
    direct = scmamba.impute(cells, batch_key="donor", verbose=False)
    assert 'batch = "donor"' in r_call(page, tmp_path)
    imputed = np.asarray(direct.layers["scmamba"].todense())
    measured = np.log1p(1e4 * cells.X.toarray() / cells.X.sum(axis=1))
    measured = np.asarray(measured)
    i = alone(picture)
    cell, place = picture["cells"][i], (picture["x"][i], picture["y"][i])
    filled = np.flatnonzero((measured[cell] == 0) & (imputed[cell] > 0))
    assert len(filled) > 0
    gene = cells.var_names[filled[0]]
    page.fill("#gene", gene.lower())
    page.click("#color")
    page.wait_for_selector("#second:not([hidden])", timeout=60_000)
    assert hover(page, "plot", place) == f"{cells.obs_names[cell]}: {gene}, log1p(CP10k): 0"
    shown = hover(page, "plot2", place).rpartition(": ")
    assert shown[0] == f"{cells.obs_names[cell]}: {gene}, log1p(CP10k)"
    assert float(shown[2]) == pytest.approx(imputed[cell, filled[0]], rel=1e-3, abs=1e-4)
    other = int(np.flatnonzero(measured[cell] > 0)[0])
    page.fill("#gene", cells.var_names[other])
    page.click("#color")
    page.wait_for_timeout(2000)
    shown = hover(page, "plot", place).rpartition(": ")[2]
    assert float(shown) == pytest.approx(measured[cell, other], rel=1e-3)
    page.fill("#gene", "NO_SUCH_GENE")
    page.click("#color")
    page.wait_for_selector("#no_gene:not(:empty)")
    assert "has no gene 'NO_SUCH_GENE'" in page.text_content("#no_gene")


def test_colors_by_metadata_with_mouse_and_keyboard(page, page_files, tmp_path):
    choose(page, page_files[0])
    page.select_option("#task", "doublets")
    page.fill("#sample", "donor")
    with page.expect_response(lambda answer: "/picture" in answer.url, timeout=240_000) as drawn:
        send(page)
    page.wait_for_selector("#map:not([hidden])", timeout=240_000)
    picture, cells = drawn.value.json(), ad.read_h5ad(page_files[0])
    offered = page.evaluate("[...document.getElementById('by').options].map((o) => o.text)")
    assert set(offered) >= {"result", *cells.obs.columns}
    i = alone(picture)
    cell, place = picture["cells"][i], (picture["x"][i], picture["y"][i])
    name = cells.obs_names[cell]
    page.select_option("#by", "cell_type")
    assert hover(page, "plot", place) == f"{name}: cell_type: {cells.obs['cell_type'].iloc[cell]}"
    legend = {item.inner_text() for item in page.query_selector_all("#legend li")}
    assert legend == set(cells.obs["cell_type"].iloc[picture["cells"]])
    page.select_option("#by", "n_umi")
    assert hover(page, "plot", place) == f"{name}: n_umi: {cells.obs['n_umi'].iloc[cell]}"
    page.focus("#plot")
    before = page.text_content("#tip")
    page.keyboard.press("ArrowRight")
    following = cells.obs_names[picture["cells"][(i + 1) % len(picture["cells"])]]
    assert page.text_content("#tip") != before
    assert page.text_content("#tip").startswith(f"{following}: n_umi: ")
    file = saved(page, "#png", tmp_path / "map.png").read_bytes()
    assert file[:8] == b"\x89PNG\r\n\x1a\n" and int.from_bytes(file[16:20], "big") == 640
    direct = scmamba.find_doublets(cells, sample_key="donor", verbose=False)
    table = pd.read_csv(
        saved(page, "#csv", tmp_path / "cells.csv"), index_col=0, float_precision="round_trip"
    )
    assert list(table.index) == list(direct.obs_names)
    np.testing.assert_array_equal(table["scmamba_doublet"], direct.obs["scmamba_doublet"])
    np.testing.assert_array_equal(
        table["scmamba_doublet_score"], direct.obs["scmamba_doublet_score"].astype(float)
    )
    if shutil.which("Rscript"):
        again = from_rds(saved(page, "#rds", tmp_path / "cells.rds"), tmp_path)
        assert list(again.index) == list(direct.obs_names)
        np.testing.assert_array_equal(again["scmamba_doublet"], direct.obs["scmamba_doublet"])
    assert 'sample = "donor"' in r_call(page, tmp_path)


def test_own_markers_and_the_lines_that_repeat_them(page, page_files, tmp_path):
    markers = {'Astrocyte "a"': ["AQP4", "GFAP", "SLC1A2"], "Neuron": ["SYT1", "SNAP25", "RBFOX3"]}
    choose(page, page_files[0])
    page.select_option("#task", "annotate")
    page.fill("#markers", "Astrocytes AQP4")
    page.click("#send")
    wait_for_end(page)
    assert page.text_content("#status") == "Refused"
    assert "'Astrocytes AQP4' is not of the form" in page.text_content("#message")
    page.fill("#markers", "".join(f"{t}: {', '.join(g)}\n" for t, g in markers.items()))
    page.check("#force")
    send(page)
    direct = scmamba.annotate(
        ad.read_h5ad(page_files[0]), markers=markers, force=True, verbose=False
    )
    types = direct.obs["scmamba_type"].astype(str)
    counts = {
        row.query_selector("th").inner_text() for row in page.query_selector_all("#table tbody tr")
    }
    assert counts == set(types)
    found: dict = {}
    exec(page.text_content("#python").replace('"cells.h5ad"', repr(str(page_files[0]))), found)
    np.testing.assert_array_equal(found["adata"].obs["scmamba_type"].astype(str), types)
    call = " ".join(r_call(page, tmp_path).split())
    assert 'Neuron = c("SYT1", "SNAP25", "RBFOX3")' in call and "force = TRUE" in call


class Patches:
    """What the page sends to an upload: offset and bytes, and some of it does not arrive."""

    def __init__(self, page, fails) -> None:
        self.sent: list[tuple[int, int]] = []
        self.fails = fails
        page.route("**/v2/uploads/*", self.handle)

    def handle(self, route) -> None:
        request = route.request
        if request.method != "PATCH":
            route.continue_()
            return
        self.sent.append(
            (int(request.headers["upload-offset"]), len(request.post_data_buffer or b""))
        )
        if self.fails(len(self.sent)):
            route.abort()
        else:
            route.continue_()


@pytest.fixture(scope="module")
def large(page_files, tmp_path_factory):
    """A file of 20 MB: more than two parts."""
    cells = ad.read_h5ad(page_files[0])
    cells.obsm["noise"] = np.random.default_rng(0).normal(size=(cells.n_obs, 25_000))
    file = tmp_path_factory.mktemp("large") / "large.h5ad"
    cells.write_h5ad(file)
    return file


def test_a_broken_upload_continues_by_itself_and_after_a_reload(page, large):
    part = 8 << 20
    patches = Patches(page, lambda n: n in (2, 3) or n > 4)
    page.set_input_files("#file", str(large))
    while len(patches.sent) < 5:
        page.wait_for_timeout(100)
    # The second part was sent until it arrived; the third never did.
    assert [offset for offset, _ in patches.sent[:5]] == [0, part, part, part, 2 * part]
    page.unroute("**/v2/uploads/*")
    page.reload()
    page.wait_for_selector("#model option", state="attached")
    patches = Patches(page, lambda n: False)
    choose(page, large)
    assert page.text_content("#cells").startswith("100 cells")
    assert [offset for offset, _ in patches.sent] == [2 * part]
    page.select_option("#task", "embed")
    send(page)


def luminance(color: str) -> float:
    values = [int(v) / 255 for v in re.findall(r"\d+", color)[:3]]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (375, "dark"), (1280, "dark")])
def test_narrow_and_dark_screens(browser, server, page_files, width, scheme, tmp_path):
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    try:
        page = context.new_page()
        page.goto(server.url)
        page.wait_for_selector("#model option", state="attached")
        choose(page, page_files[0])
        page.select_option("#task", "annotate")
        send(page)
        page.wait_for_selector("#map:not([hidden])", timeout=240_000)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        colors = page.evaluate(
            """() => [...document.querySelectorAll('body, input, select, button, td, th, figcaption, #tip, pre, textarea')].map((e) => {
                let behind = e;
                while (behind && getComputedStyle(behind).backgroundColor === 'rgba(0, 0, 0, 0)') behind = behind.parentElement;
                return [e.tagName, getComputedStyle(e).color, behind ? getComputedStyle(behind).backgroundColor : 'rgb(255, 255, 255)'];
            })"""
        )
        for what, front, back in colors:
            high, low = sorted([luminance(front), luminance(back)], reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (what, front, back)  # WCAG 2.1, AA
        assert (
            luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) < 0.1
        ) == (scheme == "dark")
        folder = os.environ.get("SCMAMBA_SCREENSHOTS")
        if folder:
            page.screenshot(path=f"{folder}/page_{width}_{scheme}.png", full_page=True)
    finally:
        context.close()
