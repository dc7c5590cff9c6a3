"""Annotation by labeled cells on the server: the result of the direct call, and only the needed data are sent."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import scmamba
from scmamba.client.client import Client, _only
from scmamba.datasets import brain_cohort
from scmamba.serve.references import References
from scmamba.utils.errors import ScMambaError


@pytest.fixture(scope="module")
def cells() -> tuple[ad.AnnData, ad.AnnData]:
    known = brain_cohort(240, n_donors=3, seed=2)[:, ::5].copy()
    return brain_cohort(40, n_donors=2, seed=9)[:, ::5].copy(), known


def test_an_uploaded_reference_gives_the_result_of_the_direct_call(server, cells, tmp_path):
    query, known = cells
    options = dict(label_key="cell_type", finetune_steps=0, seed=1, force=True, verbose=False)
    near = scmamba.annotate(query.copy(), reference=known, **options)
    client = Client(server.url)
    kept = References(server.data).number("local")  # of other tests, which share the server
    sent = options
    far = client.annotate(query, reference=known, **sent)
    assert (
        far.obs["scmamba_type"].astype(str).tolist()
        == near.obs["scmamba_type"].astype(str).tolist()
    )
    np.testing.assert_array_equal(far.obs["scmamba_probability"], near.obs["scmamba_probability"])
    assert far.uns["scmamba"]["annotate"]["summary"]["mode"] == "reference"
    assert References(server.data).number("local") == kept  # the server keeps nothing of it
    # A file that is uploaded once, for several calls.
    known.write_h5ad(tmp_path / "known.h5ad")
    kept = client.keep_reference(tmp_path / "known.h5ad")
    for _ in range(2):
        again = client.annotate(query, reference=kept, **sent)
        np.testing.assert_array_equal(
            again.obs["scmamba_probability"], near.obs["scmamba_probability"]
        )
    client.drop_reference(kept)
    with pytest.raises(ScMambaError, match="no such reference"):
        client.annotate(query, reference=kept, **sent)


def test_a_reference_of_the_package_is_named_and_not_sent(server, cells):
    query, _ = cells
    options = dict(reference="human-brain", region="cortex", verbose=False)
    near = scmamba.annotate(query.copy(), **options)
    far = Client(server.url).annotate(query, **options)
    for level in ("class", "type", "subtype"):
        column = f"scmamba_{level}"
        assert far.obs[column].astype(str).tolist() == near.obs[column].astype(str).tolist()
    assert far.uns["scmamba"]["annotate"]["summary"]["mode"] == "brain"
    with pytest.raises(ScMambaError, match="no such reference"):
        Client(server.url).run("annotate", query, reference="mouse-brain")
    # It is the default there, too; the panel of markers has a name.
    default = Client(server.url).annotate(query, region="cortex", verbose=False)
    assert default.obs["scmamba_type"].astype(str).tolist() == near.obs["scmamba_type"].tolist()
    panel = Client(server.url).annotate(query, markers="panel", verbose=False)
    assert panel.uns["scmamba"]["annotate"]["summary"]["mode"] == "markers"


def test_only_counts_genes_and_the_named_columns_are_sent(cells):
    _, known = cells
    known = known.copy()
    known.obs["diagnosis"], known.obsm["X_pca"], known.uns["secret"] = (
        "x",
        np.zeros((len(known), 2)),
        "y",
    )
    sent = _only(known, ["cell_type", "donor"], None)
    assert (
        list(sent.obs) == ["cell_type", "donor"]
        and not sent.obsm
        and not sent.uns
        and not sent.layers
    )
    assert (sent.X != known.X).nnz == 0 and sent.var_names.equals(known.var_names)
    with pytest.raises(ScMambaError, match="no column 'kind'"):
        _only(known, ["kind"], None)


def test_missing_labels_are_an_error_before_the_upload(cells):
    with pytest.raises(ScMambaError, match="label_key="):
        Client("http://127.0.0.1:9").annotate(cells[0], reference=cells[1])
