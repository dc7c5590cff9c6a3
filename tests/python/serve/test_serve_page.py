"""The page, in a real headless Chromium, against a real server: typical use, keyboard, and screen reader."""

from __future__ import annotations

import os

import anndata as ad
import numpy as np
from browsing import wait_for_end

import scmamba


def test_types_by_markers_from_a_dropped_file(page, page_files, page_nuclei, tmp_path):
    # Dropped, as with a mouse: the browser itself creates the event's file list.
    data = page.evaluate_handle("() => new DataTransfer()")
    page.set_input_files(
        "#reference", str(page_files[0])
    )  # only to get a File object with real content into the page
    page.evaluate("(data) => data.items.add(document.getElementById('reference').files[0])", data)
    page.set_input_files("#reference", [])
    page.dispatch_event(".drop", "drop", {"dataTransfer": data})
    page.select_option("#task", "annotate")
    page.click("#send")
    wait_for_end(page)
    assert page.text_content("#status") == "Done", page.text_content("#message")
    page.wait_for_selector("#map:not([hidden])", timeout=240_000)
    direct = scmamba.annotate(ad.read_h5ad(page_files[0]), verbose=False)
    rows = page.query_selector_all("#table tbody tr")
    shown = {
        row.query_selector("th").inner_text(): row.query_selector_all("td")[0].inner_text()
        for row in rows
    }
    expected = direct.obs["scmamba_type"].astype(str).value_counts()
    assert shown == {name: str(number) for name, number in expected.items()}
    assert "UMAP" in page.text_content("#mapped") and "100 cells" in page.text_content("#mapped")
    assert "Probability of the results" in page.text_content("#spread")
    assert "genes in the file" + str(page_nuclei.n_vars) in page.text_content("#coverage")
    drawn = page.evaluate(
        "() => new Set(document.getElementById('plot').getContext('2d').getImageData(0, 0, 640, 480).data).size"
    )
    assert drawn > 5  # not an empty canvas
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "got.h5ad")
    got = ad.read_h5ad(tmp_path / "got.h5ad")
    np.testing.assert_array_equal(
        got.obs["scmamba_type"].astype(str), direct.obs["scmamba_type"].astype(str)
    )
    np.testing.assert_array_equal(got.obs["scmamba_probability"], direct.obs["scmamba_probability"])
    if picture := os.environ.get("SCMAMBA_SCREENSHOT"):
        page.screenshot(path=picture, full_page=True)
    assert page.complaints == []


def test_types_from_labelled_cells(page, page_files):
    page.set_input_files("#file", str(page_files[0]))
    page.select_option("#task", "annotate")
    page.set_input_files("#reference", str(page_files[1]))
    page.fill("#labels", "no such column")
    page.click("#send")
    wait_for_end(page)
    assert page.text_content("#status") == "Failed" and "no such column" in page.text_content(
        "#message"
    )
    page.fill("#labels", "cell_type")
    page.click("#send")
    page.wait_for_timeout(300)
    wait_for_end(page)
    assert page.text_content("#status") == "Done", page.text_content("#message")
    truth = ad.read_h5ad(page_files[0]).obs["cell_type"].astype(str)
    names = {row.inner_text() for row in page.query_selector_all("#table tbody th")}
    assert names <= set(truth) | {"Unassigned"} and len(names) > 4


def test_with_the_keyboard_alone(page, page_files):
    page.set_input_files(
        "#file", str(page_files[0])
    )  # the system's own file dialog is outside the page
    page.focus("#file")
    walked = []
    for _ in range(8):
        page.keyboard.press("Tab")
        walked.append(page.evaluate("document.activeElement.id"))
    assert walked[:6] == ["task", "batch", "model", "force", "token", "send"]
    page.focus("#task")
    page.keyboard.type("Emb")
    assert page.input_value("#task") == "embed"
    page.focus("#send")
    page.keyboard.press("Enter")
    wait_for_end(page)
    assert page.text_content("#status") == "Done"
    assert "genes matched" in page.text_content("#coverage")
    assert (
        page.evaluate("document.activeElement.id") == "answer"
    )  # the next element in the reading order
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "download"


def test_the_page_is_accessible_to_screen_readers(page):
    problems = page.evaluate("""() => {
        const named = (e) => e.labels?.length || e.getAttribute('aria-label') || e.getAttribute('aria-labelledby') || e.textContent.trim();
        const all = [...document.querySelectorAll('input, select, button, progress, canvas, section')];
        const bad = all.filter((e) => !named(e));
        const ids = [...document.querySelectorAll('[id]')].map((e) => e.id);
        const twice = ids.filter((id, i) => ids.indexOf(id) !== i);
        const dangling = [...document.querySelectorAll('label[for], [aria-labelledby]')]
            .filter((e) => !document.getElementById(e.getAttribute('for') || e.getAttribute('aria-labelledby')));
        return [...bad.map((e) => e.outerHTML), ...twice, ...dangling.map((e) => e.outerHTML)];
    }""")
    assert problems == []
    assert page.get_attribute("html", "lang") == "en" and page.title() == "scMamba"
    assert page.locator("main").count() == 1 and page.locator("h1").count() == 1
    assert page.locator("[aria-live=polite] #status").count() == 1
    assert page.locator("table caption").count() == page.locator("table").count()


def test_a_bad_file_is_refused_and_no_external_resource_is_loaded(page, tmp_path, server):
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    (tmp_path / "cells.h5ad").write_bytes(b"not a file of cells")
    page.set_input_files("#file", str(tmp_path / "cells.h5ad"))
    page.click("#send")
    wait_for_end(page)
    assert page.text_content("#status") == "Refused" and "neither an .h5ad" in page.text_content(
        "#message"
    )
    assert page.get_attribute("#message", "class") == "error"
    page.reload()
    assert requests and all(url.startswith((server.url, "data:")) for url in requests)
