"""Checkpoint folders from untrusted sources: each is refused with one sentence, at once and without using much memory."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from conftest import small_model
from safetensors.torch import load_file, save_file

from scmamba.model import checkpoint_checks, load_model, save_checkpoint
from scmamba.utils.errors import CheckpointError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good") / "model"
    return save_checkpoint(small_model(n_classes=3, n_genes=40), folder)


def config(**changes):
    def change(folder):
        stored = json.loads((folder / "config.json").read_text())
        stored |= changes
        text = json.dumps({k: v for k, v in stored.items() if v != "absent"})
        (folder / "config.json").write_text(text)

    return change


def text(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def weights(change):
    def apply(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors")

    return apply


def header(folder):
    """A header that claims more data than the file has."""
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + raw[8:])


NAN = weights(lambda w: next(iter(w.values())).view(-1).__setitem__(0, float("nan")))
HOSTILE = {
    "a billion layers": (config(n_layer=10**9), "layers"),
    "a few layers more": (config(n_layer=3), "missing"),
    "too many genes": (config(n_genes=10**9), "genes"),
    "too wide": (config(d_model=10**8), "do not fit"),
    "beyond 64 bits": (config(d_model=10**12), "d_model"),
    "too many states": (config(d_state=2**30), "do not fit|not possible"),
    "genes in words": (config(n_genes="many"), "n_genes is many"),
    "half a width": (config(d_model=64.5), "d_model is 64.5"),
    "true for a number": (config(n_layer=True), "n_layer is True"),
    "a list for a number": (config(n_classes=[3]), "n_classes"),
    "classes below nothing": (config(n_classes=-5), "n_classes is -5"),
    "no factor": (config(expand=float("nan")), "expand is nan"),
    "an infinite factor": (config(expand=float("inf")), "expand is inf"),
    "a word for a truth": (config(bidirectional="yes"), "bidirectional is yes"),
    "no number of genes": (config(n_genes="absent"), "no 'n_genes'"),
    "a list for settings": (text("config.json", b"[1]"), "no JSON object"),
    "deep nesting": (text("config.json", b"[" * 100_000), "not JSON"),
    "settings of bytes": (text("config.json", b"\xff\xfe\x00"), "not JSON"),
    "no genes": (text("genes.tsv", b""), "no table of genes"),
    "genes of bytes": (text("genes.tsv", bytes(range(256))), "no table of genes|names"),
    "fewer genes": (text("genes.tsv", b"ensembl_id\tsymbol\nENSG1\tA\n"), "names 1 genes"),
    "labels of nothing": (text("labels.json", b"{}"), "no list of names"),
    "nested labels": (text("labels.json", b'{"labels": [["a"], {}]}'), "no list of names"),
    "fewer labels": (text("labels.json", b'{"labels": ["a"]}'), "names 1 classes"),
    "weights that are no numbers": (NAN, "not finite"),
    "a tensor less": (weights(lambda w: w.pop("regressor.bias")), "missing"),
    "a tensor more": (weights(lambda w: w.update(extra=torch.zeros(1))), "not expected .*extra"),
    "a tensor of another shape": (
        weights(lambda w: w.update({next(iter(w)): torch.zeros(5, 5)})),
        "do not fit",
    ),
    "weights cut off": (text("model.safetensors", b"\x10"), "damaged or truncated"),
    "a header beyond the file": (header, "damaged or truncated"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_folder_is_refused_with_one_sentence(good, tmp_path, kind):
    change, words = HOSTILE[kind]
    shutil.copytree(good, tmp_path / "model")
    change(tmp_path / "model")
    resource = pytest.importorskip("resource", reason="not on Windows")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(CheckpointError, match=words) as refused:
        load_model(tmp_path / "model")
    assert len(str(refused.value)) < 700 and time.process_time() - began < 5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_valid_folder_is_opened(good):
    assert load_model(good).config.n_genes == 40 and len(load_model(good).labels) == 3


def test_a_header_that_is_too_long_is_not_read(good, monkeypatch):
    load_model(good, device="cpu")
    monkeypatch.setattr(checkpoint_checks, "_HEADER", 10)
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_model(good, device="cpu")
