"""The network against the outputs of the published code, and complete, damaged and foreign checkpoints."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import small_model

from scmamba.genes import Vocabulary
from scmamba.model import load_model, save_checkpoint
from scmamba.nn import ModelConfig, ScMamba
from scmamba.nn.scmamba import pack
from scmamba.ops import convolution
from scmamba.utils.errors import CheckpointError, DataError, OptionError

BACKENDS = ["cpu", "chunked", "reference"]


@pytest.fixture(scope="module")
def official(reference):
    return reference.official


@pytest.fixture(scope="module")
def expected(official):
    return np.load(official / "expected.npz")


@pytest.mark.parametrize("backend", BACKENDS)
def test_outputs_are_those_of_the_published_code(official, expected, backend):
    # The chunked scan is slow on whole cells, so only one is used.
    rows = slice(1 if backend == "chunked" else 2)
    expected = {name: expected[name][rows] for name in expected}
    x = expected["log1p_cp10k"]
    model = load_model(
        official / "pretrain.ckpt", vocabulary=official / "vocab.txt", backend=backend
    )
    np.testing.assert_allclose(
        model.reconstruct(x, expected["mask"]), expected["reconstruction"], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        model.cell_embedding(x), expected["cell_embedding"], rtol=0, atol=1e-5
    )
    classifier = load_model(
        official / "celltype.ckpt",
        official / "vocab.txt",
        labels=official / "celltype.json",
        backend=backend,
    )
    np.testing.assert_allclose(classifier.classify(x), expected["logits"], rtol=0, atol=1e-5)
    assert classifier.labels[:2] == ["Astrocyte", "Microglia"]


def test_the_published_vocabulary_is_the_default(official, expected):
    model = load_model(official / "pretrain.ckpt")
    np.testing.assert_allclose(
        model.cell_embedding(expected["log1p_cp10k"]), expected["cell_embedding"], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
def test_gradients_agree_with_float64(backend):
    network = small_model(n_classes=3, n_genes=70).network
    x = torch.rand(2, 70) * (torch.rand(2, 70) < 0.3)
    mask = torch.rand(2, 70) < 0.2

    def gradients(net, x):
        net.zero_grad()
        loss = (net.reconstruct(x, mask) ** 2).mean() + (net.classify(x) ** 2).mean()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    network.backend = backend
    ours = gradients(network, x).double()
    network.double().backend = "reference"
    truth = gradients(network, x.double())
    assert (ours - truth).norm() / truth.norm() < 1e-4


def test_padding_has_no_effect():
    network = small_model(n_classes=3, n_genes=90).network.double()
    network.backend = "reference"
    x = torch.rand(4, 90).double() * (
        torch.rand(4, 90) < torch.tensor([0.05, 0.9, 0.3, 0.5])[:, None]
    )
    mask = torch.rand(4, 90) < 0.1
    values, hidden, genes, keep, columns = pack(x, mask, None)
    with torch.no_grad():
        together = (
            network.reconstruct(values, hidden, genes, keep),
            network.cell_embedding(values, genes, keep),
            network.classify(values, genes, keep),
        )
        for i in range(4):
            there = ((x[i] != 0) | mask[i]).nonzero().flatten()
            assert columns[i, keep[i]].tolist() == there.tolist()
            alone = network.reconstruct(x[i : i + 1, there], mask[i : i + 1, there], there)[0]
            torch.testing.assert_close(together[0][i, keep[i]], alone, rtol=0, atol=1e-12)
            torch.testing.assert_close(
                together[1][i],
                network.cell_embedding(x[i : i + 1, there], there)[0],
                rtol=0,
                atol=1e-12,
            )
            torch.testing.assert_close(
                together[2][i], network.classify(x[i : i + 1, there], there)[0], rtol=0, atol=1e-12
            )


def test_a_model_that_reads_expressed_genes_ignores_visible_zeros():
    model = small_model(reads="expressed", n_genes=50)
    x = torch.rand(3, 50) * (torch.rand(3, 50) < 0.4)
    mask = (x == 0) & (torch.rand(3, 50) < 0.5)
    answer = model.reconstruct(x, mask)
    assert (answer[(x == 0) & ~mask] == 0).all() and (answer[mask] != 0).all()
    some = torch.arange(0, 50, 2)
    torch.testing.assert_close(
        model.cell_embedding(x[:, some], genes=some),
        model.cell_embedding(x * (torch.arange(50) % 2 == 0)),
    )


def test_batches_do_not_change_the_output():
    model = small_model(n_classes=2, n_genes=60)
    x = torch.rand(7, 60) * (torch.rand(7, 60) < 0.4)
    torch.testing.assert_close(model.classify(x, batch_size=2), model.classify(x, batch_size=7))
    assert model.classify(x[:0]).shape == (0, 2)


def test_wrong_shapes_are_refused():
    model = small_model(n_genes=60)
    with pytest.raises(DataError, match=r"shape \(2, 59\)"):
        model.reconstruct(torch.zeros(2, 59))
    with pytest.raises(DataError, match="mask has shape"):
        model.reconstruct(torch.zeros(2, 60), torch.zeros(2, 59))
    with pytest.raises(CheckpointError, match="no classification head"):
        model.classify(torch.zeros(2, 60))


def test_initial_values_are_those_of_the_specification():
    torch.manual_seed(0)
    network = ScMamba(ModelConfig(n_genes=400, d_model=32, n_layer=2))
    step = torch.nn.functional.softplus(network.backbone.layers[0].mixer.dt_proj.bias)
    assert step.min() > 9e-4 and step.max() < 0.11
    torch.testing.assert_close(
        network.backbone.layers[1].mixer.A_b_log.exp()[5], torch.arange(1.0, 17.0)
    )
    assert abs(network.backbone.gene_id_embedding.weight.std() - 0.02) < 1e-3
    assert "backbone.layers.0.mixer.D_b" in network.without_decay()
    assert "backbone.layers.0.mixer.in_proj.weight" not in network.without_decay()


def test_published_size_has_the_published_number_of_parameters():
    with torch.device("meta"):
        network = ScMamba(ModelConfig(n_genes=19306))
    assert abs(sum(p.numel() for p in network.parameters()) - 8e6) < 0.5e6


def test_a_checkpoint_is_unchanged_after_loading(tmp_path):
    model = small_model(n_classes=3, n_genes=40)
    save_checkpoint(model, tmp_path / "m", card="# what it saw\n")
    again = load_model(tmp_path / "m")
    x = torch.rand(2, 40)
    assert torch.equal(again.classify(x), model.classify(x))
    assert (again.labels, again.card, list(again.genes)) == (
        model.labels,
        "# what it saw\n",
        list(model.genes),
    )
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == [
        "config.json",
        "genes.tsv",
        "labels.json",
        "model.safetensors",
        "model_card.md",
    ]


@pytest.mark.parametrize(
    "sizes",
    [
        dict(d_model=24, n_layer=3, d_state=8),
        dict(d_model=16, n_layer=1, d_conv=2, dt_rank=5, expand=3),
    ],
)
def test_published_layout_of_any_size_is_read(tmp_path, sizes):
    torch.manual_seed(3)
    network = ScMamba(ModelConfig(n_genes=30, n_classes=4, **sizes))
    table = torch.randn(48, sizes["d_model"])
    state = {f"model.{k}": v for k, v in network.state_dict().items()}
    state["model.backbone.gene_id_embedding.weight"] = table
    torch.save({"state_dict": state, "epoch": 1}, tmp_path / "x.ckpt")
    ids = list(Vocabulary.published())[:30]
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[CLS]", "[MASK]"] + [i.lower() for i in ids])
    )
    model = load_model(tmp_path / "x.ckpt", vocabulary=tmp_path / "vocab.txt")
    assert list(model.genes) == ids and (model.config.d_model, model.config.n_layer) == (
        sizes["d_model"],
        sizes["n_layer"],
    )
    torch.testing.assert_close(model.gene_embedding(), table[3:33])
    with torch.no_grad():  # the [CLS] row of the table belongs to the token
        network.backbone.gene_id_embedding.weight.copy_(table[3:33])
        network.backbone.cls_token += table[1]
        x = torch.rand(2, 30)
        torch.testing.assert_close(model.classify(x), network.classify(x), rtol=1e-4, atol=1e-5)


def test_one_directional_checkpoints_are_read(tmp_path):
    network = ScMamba(ModelConfig(n_genes=20, d_model=8, n_layer=1, bidirectional=False))
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in network.state_dict().items()}},
        tmp_path / "x.ckpt",
    )
    model = load_model(tmp_path / "x.ckpt", vocabulary=Vocabulary.published().subset(range(20)))
    assert not model.config.bidirectional


def test_damaged_and_foreign_checkpoints_are_refused(tmp_path, official):
    whole = (official / "pretrain.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="may be truncated"):
        load_model(tmp_path / "cut.ckpt")
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read as a checkpoint"):
        load_model(tmp_path / "text.ckpt")
    torch.save({"state_dict": {"layer.weight": torch.zeros(2)}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="not a scMamba checkpoint"):
        load_model(tmp_path / "other.ckpt")
    (tmp_path / "vocab.txt").write_text(
        "\n".join(list(Vocabulary.published()))
        + "\n"
        + "\n".join(f"ENSG9{i:010d}" for i in range(2000))
    )
    with pytest.raises(CheckpointError, match="embedding table has"):
        load_model(official / "pretrain.ckpt", vocabulary=tmp_path / "vocab.txt")
    with pytest.raises(CheckpointError, match="There is no model 'nothing'"):
        load_model("nothing")


def test_code_in_a_checkpoint_never_runs(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    torch.save({"state_dict": {}, "trap": Trap()}, tmp_path / "trap.ckpt")
    with pytest.raises(CheckpointError, match="only plain tensors"):
        load_model(tmp_path / "trap.ckpt")
    assert not (tmp_path / "sprung").exists()


def test_incomplete_folders_are_refused(tmp_path):
    save_checkpoint(small_model(n_genes=40), tmp_path / "m")
    weights = tmp_path / "m" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="damaged or truncated"):
        load_model(tmp_path / "m")
    weights.write_bytes(whole)
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for change, sentence in (
        ({"d_model": 16}, "do not fit its config.json"),
        ({"new": 1}, "does not have"),
        ({"n_layer": 2}, "incomplete"),
    ):
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=sentence):
            load_model(tmp_path / "m")
    (tmp_path / "m" / "genes.tsv").unlink()
    with pytest.raises(CheckpointError, match=r"has no genes\.tsv"):
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        load_model(tmp_path / "m")


def test_the_repr_of_a_model():
    model = small_model("expressed", n_classes=2, n_genes=40)
    model.card = "Accuracy < 1"
    shown = repr(model)
    assert "'small'" in shown and "D 8 x 1 layers" in shown and "40, reads expressed" in shown
    page = model._repr_html_()
    assert "type 0, type 1" in page and "Accuracy &lt; 1" in page and "<table>" in page


def test_half_precision_weights_are_refused():
    with pytest.raises(OptionError, match="torch.autocast"):
        load_model("brain-mini", device="cpu", dtype=torch.bfloat16)


def test_on_a_gpu_the_batch_fits_into_three_fifths_of_its_free_memory(monkeypatch):
    model = small_model()
    per_cell = 12 * 4 * 1000 * model.config.d_inner
    assert model.batch_size(1000) == 256
    monkeypatch.setattr(type(model), "device", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (per_cell * 50, 10**12))
    assert model.batch_size(1000) == 30


def test_the_convolution_uses_the_named_backend(monkeypatch):
    model, calls = small_model(n_genes=40), []
    fused = convolution._fused
    monkeypatch.setattr(convolution, "_fused", lambda *a: calls.append(a) or fused(*a))
    x = torch.rand(2, 40)
    for backend, used in (("cpu", True), ("chunked", False), ("reference", False)):
        calls.clear()
        model.network.backend = backend
        with torch.no_grad():
            model.network.reconstruct(x)
        assert bool(calls) is used, backend
