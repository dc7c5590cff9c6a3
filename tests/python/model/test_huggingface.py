"""Models of the Hugging Face hub: the real client package against a server that speaks the hub's addresses."""

from __future__ import annotations

import shutil
import sys

import pytest
import torch
from hub_server import HubServer
from typer.testing import CliRunner

import scmamba
from scmamba.cli.main import app
from scmamba.model import fetch_from_hub, list_models, load_model, upload_model
from scmamba.model.huggingface import hub_card, parse_address
from scmamba.utils.errors import CheckpointError

pytest.importorskip("huggingface_hub")
MINI = list_models()["brain-mini"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    monkeypatch.setenv("SCMAMBA_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("SCMAMBA_OFFLINE", raising=False)
    yield server
    server.stop()


def weights(model) -> list[torch.Tensor]:
    return list(model.network.state_dict().values())


def test_an_uploaded_model_is_the_same_when_it_is_loaded(hub):
    url = upload_model(MINI, "hf://lab/mini", licence="apache-2.0", verbose=False)
    assert url.startswith(f"{hub.url}/lab/mini/commit/") and hub.private["lab/mini"]
    files = hub.commits["lab/mini"][-1][1]
    assert sorted(files) == [
        ".gitattributes",
        "README.md",
        "config.json",
        "genes.tsv",
        "model.safetensors",
    ]
    for name in ("config.json", "genes.tsv", "model.safetensors"):
        assert files[name] == (MINI / name).read_bytes()
    page = files["README.md"].decode()
    assert page.startswith("---\n") and "license: apache-2.0\n" in page
    assert "library_name: scmamba\n" in page and "- single-cell\n" in page
    model, mini = load_model("hf://lab/mini", device="cpu"), load_model("brain-mini", device="cpu")
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(mini), strict=True))
    assert model.card == mini.card and model.config == mini.config
    assert "mini" not in str(list_models().keys() - {"brain-mini"})


def test_other_files_of_a_repository_are_not_fetched(hub):
    hub.commit("lab/odd", {n: (MINI / n).read_bytes() for n in ("config.json", "genes.tsv")})
    hub.commit("lab/odd", {"model.safetensors": (MINI / "model.safetensors").read_bytes()})
    hub.commit("lab/odd", {"evil.py": b"print(1)", "weights.pkl": b"x", "README.md": b"# odd\n"})
    folder = fetch_from_hub("hf://lab/odd", verbose=False)
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["README.md", "config.json", "genes.tsv", "model.safetensors"]
    assert not [r for r in hub.requests if "evil" in r or "pkl" in r]
    assert load_model(folder, device="cpu").card == "# odd\n"


def test_a_revision_stays_what_it_was_and_works_offline(hub, monkeypatch):
    first = {n: (MINI / n).read_bytes() for n in ("config.json", "genes.tsv", "model.safetensors")}
    old = hub.commit("lab/mini", first | {"README.md": b"old"})
    hub.commit("lab/mini", {"README.md": b"new"})
    assert load_model("hf://lab/mini", device="cpu").card == "new"
    assert load_model(f"hf://lab/mini@{old}", device="cpu").card == "old"
    hub.stop()
    monkeypatch.setenv("SCMAMBA_OFFLINE", "1")
    number = len(hub.requests)
    assert load_model(f"hf://lab/mini@{old}", device="cpu").card == "old"
    assert len(hub.requests) == number
    with pytest.raises(CheckpointError, match="hf://lab/other could not be fetched"):
        load_model("hf://lab/other")


def test_a_truncated_or_missing_file_is_refused(hub):
    files = {n: (MINI / n).read_bytes() for n in ("config.json", "genes.tsv")}
    hub.commit("lab/part", files)
    with pytest.raises(CheckpointError, match="no model.safetensors"):
        load_model("hf://lab/part", device="cpu")
    hub.commit("lab/cut", files | {"model.safetensors": b"\x08"})
    with pytest.raises(CheckpointError, match="truncated|damaged"):
        load_model("hf://lab/cut", device="cpu")


def test_what_cannot_be_fetched_or_sent_is_named(hub, tmp_path, monkeypatch):
    with pytest.raises(CheckpointError, match="hf://lab/none could not be fetched .*HF_TOKEN"):
        load_model("hf://lab/none")
    for wrong in ("hf://mini", "hf://a/b/c", "hf://lab/mini@", "hf://../x y"):
        with pytest.raises(CheckpointError, match="expected hf://organization/name"):
            parse_address(wrong)
    with pytest.raises(CheckpointError, match="no config.json"):
        upload_model(tmp_path, "hf://lab/mini")
    shutil.copytree(MINI, tmp_path / "bare")
    (tmp_path / "bare" / "model_card.md").write_text("\n")
    with pytest.raises(CheckpointError, match="has no model card"):
        upload_model(tmp_path / "bare", "hf://lab/mini")
    assert hub.commits == {}
    hub.token = "secret"
    with pytest.raises(CheckpointError, match="could not be uploaded .*HF_TOKEN"):
        upload_model(MINI, "hf://lab/mini", verbose=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'scmamba\[hub\]'"):
        load_model("hf://lab/mini")


def test_a_card_keeps_its_text_and_gets_metadata():
    text = hub_card("# mine\n\nTrained on two donors.\n")
    assert text.endswith("\n---\n\n# mine\n\nTrained on two donors.\n")
    assert "license" not in text and "pipeline_tag: feature-extraction" in text


def test_commands(hub):
    run = CliRunner()
    sent = run.invoke(app, ["upload-model", str(MINI), "hf://lab/mini", "--public", "-q"])
    assert sent.exit_code == 0 and "/lab/mini/commit/" in sent.stdout, sent.output
    assert hub.private["lab/mini"] is False
    fetched = run.invoke(app, ["fetch-model", "hf://lab/mini", "-q"])
    assert fetched.exit_code == 0, fetched.output
    assert load_model(fetched.stdout.strip(), device="cpu").config.name == "brain-mini"


def test_a_verb_takes_the_address(hub):
    upload_model(MINI, "hf://lab/mini", verbose=False)
    cells = scmamba.datasets.brain_cohort(40, n_donors=2, n_genes=2000, seed=0)
    mine = scmamba.embed(cells, model="hf://lab/mini", copy=True, verbose=False)
    same = scmamba.embed(cells, copy=True, verbose=False)
    assert (mine.obsm["X_scmamba"] == same.obsm["X_scmamba"]).all()
