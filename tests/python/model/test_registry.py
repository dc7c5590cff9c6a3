"""Models fetched by name from a real web server on this machine, verified, and refused if they differ from the registry entry."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import zipfile

import pytest
import torch
from typer.testing import CliRunner

from scmamba.cli.main import app
from scmamba.model import list_models, load_model, model_folder, pack_model
from scmamba.model.hub import fetch_model, unpack_model
from scmamba.utils.errors import CheckpointError


@pytest.fixture
def web(tmp_path, monkeypatch):
    """A folder that a real HTTP server serves, and an empty place for fetched models."""
    served = tmp_path / "served"
    served.mkdir()
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(served))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("SCMAMBA_MODELS", str(tmp_path / "models"))
    monkeypatch.delenv("SCMAMBA_OFFLINE", raising=False)
    yield served, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def publish(web, name="lab-model", sha256=None):
    served, address = web
    entry = {
        "url": f"{address}/{name}.zip",
        **pack_model(list_models()["brain-mini"], served / f"{name}.zip"),
        "about": "a test",
    }
    if sha256:
        entry["sha256"] = sha256
    (served / "registry.json").write_text(json.dumps({name: entry}))
    return f"{address}/registry.json"


def test_a_name_in_the_registry_is_fetched_once_and_then_works_offline(web, monkeypatch):
    monkeypatch.setenv("SCMAMBA_REGISTRY", publish(web))
    model = load_model("lab-model", device="cpu")
    mini = load_model("brain-mini", device="cpu")
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.network.state_dict().values(), mini.network.state_dict().values())
    )
    assert model.card == mini.card and "lab-model" in list_models()
    monkeypatch.setenv("SCMAMBA_OFFLINE", "1")
    (web[0] / "lab-model.zip").unlink()
    assert len(load_model("lab-model", device="cpu").genes) == 19306
    assert sorted(p.name for p in model_folder().iterdir() if p.name != ".downloads") == [
        "lab-model"
    ]


def test_a_file_that_differs_from_the_registry_is_refused_and_removed(web, monkeypatch):
    monkeypatch.setenv("SCMAMBA_REGISTRY", publish(web, sha256="0" * 64))
    with pytest.raises(CheckpointError, match="not the model the registry describes"):
        fetch_model("lab-model", verbose=False)
    assert "lab-model" not in list_models()
    assert not list((model_folder() / ".downloads").glob("*"))


def test_errors_without_network_describe_the_manual_download(web, monkeypatch):
    monkeypatch.setenv("SCMAMBA_REGISTRY", publish(web))
    (web[0] / "lab-model.zip").unlink()
    with pytest.raises(CheckpointError, match="unpack it to"):
        fetch_model("lab-model", verbose=False)
    monkeypatch.setenv("SCMAMBA_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="SCMAMBA_OFFLINE is set.*unpack it to"):
        fetch_model("lab-model", verbose=False)
    with pytest.raises(
        CheckpointError,
        match="neither a path nor one of the available models .*to be fetched \\(lab-model\\)",
    ):
        load_model("no-such-model")


@pytest.mark.parametrize(
    "text", ["not json", "[1]", '{"a": {"url": "x"}}', '{"../up": {"url": "x", "sha256": "0"}}']
)
def test_an_invalid_registry_is_named(tmp_path, monkeypatch, text):
    (tmp_path / "r.json").write_text(text)
    monkeypatch.setenv("SCMAMBA_REGISTRY", str(tmp_path / "r.json"))
    with pytest.raises(CheckpointError, match="r.json cannot be read"):
        load_model("lab-model")


def test_an_archive_cannot_write_elsewhere(tmp_path):
    pack_model(list_models()["brain-mini"], tmp_path / "good.zip")
    with (
        zipfile.ZipFile(tmp_path / "good.zip") as good,
        zipfile.ZipFile(tmp_path / "bad.zip", "w") as bad,
    ):
        for info in good.infolist():
            bad.writestr(f"../../{info.filename}", good.read(info))
        bad.writestr("../../evil.py", "print(1)")
    (tmp_path / "in").mkdir()
    unpack_model(tmp_path / "bad.zip", tmp_path / "in" / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.zip", "good.zip", "in"]
    kept = sorted(p.name for p in (tmp_path / "in" / "model").iterdir())
    assert kept == ["config.json", "genes.tsv", "model.safetensors", "model_card.md"]


def test_packing_is_reproducible_and_commands_print_their_result(web, monkeypatch):
    served, _ = web
    first = pack_model(list_models()["brain-mini"], served / "a.zip")
    assert first == pack_model(list_models()["brain-mini"], served / "b.zip")
    monkeypatch.setenv("SCMAMBA_REGISTRY", publish(web))
    run = CliRunner()
    assert (
        "lab-model: not fetched yet (scmamba fetch-model lab-model); a test"
        in run.invoke(app, ["models"]).output
    )
    assert run.invoke(app, ["fetch-model", "lab-model", "-q"]).exit_code == 0
    printed = run.invoke(
        app, ["pack-model", str(model_folder() / "lab-model"), "-o", str(served / "c.zip")]
    ).stdout
    assert json.loads(printed)["c"]["sha256"] == first["sha256"]
    with pytest.raises(CheckpointError, match="not a checkpoint folder"):
        pack_model(served, served / "d.zip")
