"""The network against the published forward pass written out in numpy float64 (``plain_network``),
in every mode and on every backend.
"""

from __future__ import annotations

import numpy as np
import plain_network as plain
import pytest
import torch

from scmamba.genes import Vocabulary
from scmamba.model import Model
from scmamba.nn import ModelConfig, ScMamba, bimamba
from scmamba.nn.scmamba import pack
from scmamba.ops.backends import available_backends

GENES = 41  # odd: after half of them means after 20
# : Widths that are multiples of the vector length and others, several layers, one direction, another epsilon: each takes
# another path through the code.
NETWORKS = {
    "published shape": dict(d_model=16, n_layer=3, d_state=4, norm_eps=1e-5),
    "odd widths": dict(
        d_model=12, n_layer=2, d_state=5, d_conv=3, expand=1.5, dt_rank=3, norm_eps=0.02
    ),
    "one direction": dict(d_model=16, n_layer=2, d_state=3, bidirectional=False, norm_eps=0.02),
    "one wide layer": dict(d_model=32, n_layer=1, d_state=16, dt_rank=2, norm_eps=0.3),
}
BACKENDS = [
    name
    for name, state in available_backends().items()
    if state == "available" and name in ("cpu", "chunked", "reference")
]


def network(name: str, **settings) -> ScMamba:
    """Weights drawn again where they are initialized to zero, one or a pattern, so that every one of them has an effect."""
    made = ScMamba(ModelConfig(n_genes=GENES, n_classes=3, **{**NETWORKS[name], **settings}))
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for key, p in made.named_parameters():
            if key.endswith(("norm.weight", "norm_f.weight", ".D", ".D_b")):
                p.copy_(0.5 + torch.rand(p.shape, generator=g))
            elif key.endswith(("A_log", "A_b_log")):
                p.copy_(torch.randn(p.shape, generator=g) * 0.7)
            elif "dt_proj" in key and key.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) - 2)
            elif "gene_id_embedding" in key:
                p.copy_(0.02 * torch.randn(p.shape, generator=g))
            else:
                p.copy_(0.3 * torch.randn(p.shape, generator=g))
    return made.eval()


def weights(net: ScMamba) -> plain.Weights:
    return {key: value.detach().double().numpy() for key, value in net.state_dict().items()}


def cells(count: int = 3, length: int = GENES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(4)
    x = rng.gamma(2.0, 1.0, (count, length)) * (rng.random((count, length)) < 0.4)
    return x.astype(np.float32).astype(np.float64), rng.random((count, length)) < 0.2


def far(found: torch.Tensor, truth: np.ndarray) -> float:
    assert tuple(found.shape) == truth.shape
    return float(np.abs(found.detach().double().numpy() - truth).max() / np.abs(truth).max())


@pytest.fixture(scope="module", params=list(NETWORKS))
def case(request):
    """A network, its cells, and the outputs of the plain forward pass."""
    net = network(request.param)
    w, eps, (x, mask), genes = weights(net), net.config.norm_eps, cells(), np.arange(GENES)
    truth = {
        "reconstruct": np.stack(
            [plain.reconstruct(row, hides, genes, w, eps) for row, hides in zip(x, mask)]
        ),
        "hidden": np.stack([plain.hidden(row, None, genes, w, eps) for row in x]),
        "cell_embedding": np.stack([plain.cell_embedding(row, genes, w, eps) for row in x]),
        "classify": np.stack([plain.classify(row, genes, w, eps) for row in x]),
    }
    return net, x, mask, truth


@pytest.mark.parametrize("verb", ["reconstruct", "hidden", "cell_embedding", "classify"])
def test_every_output_is_the_published_forward_pass(case, verb):
    """In float64 only rounding may differ."""
    net, x, mask, truth = case
    net = net.double()
    hides = {"mask": torch.from_numpy(mask)} if verb == "reconstruct" else {}
    try:
        with torch.no_grad():
            for backend in ("reference", "chunked"):
                net.backend = backend
                assert far(getattr(net, verb)(torch.from_numpy(x), **hides), truth[verb]) < 1e-12
    finally:
        net.float().backend = None


@pytest.mark.parametrize("lookup", [True, False], ids=["table", "product"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("verb", ["reconstruct", "cell_embedding", "classify"])
def test_every_backend_agrees_in_float32(case, verb, backend, lookup):
    net, x, mask, truth = case
    net.backend, net.lookup = backend, lookup
    hides = {"mask": torch.from_numpy(mask)} if verb == "reconstruct" else {}
    try:
        with torch.no_grad():
            assert far(getattr(net, verb)(torch.from_numpy(x).float(), **hides), truth[verb]) < 1e-5
    finally:
        net.backend = net.lookup = None


def test_a_subset_of_genes_keeps_their_own_embeddings():
    net, (x, mask) = network("published shape").double(), cells()
    some = np.array([3, 8, 9, 20, 22, 37, 40])
    w, eps = weights(net), net.config.norm_eps
    with torch.no_grad():
        found = net.reconstruct(
            torch.from_numpy(x[:, some]), torch.from_numpy(mask[:, some]), torch.from_numpy(some)
        )
        logits = net.classify(torch.from_numpy(x[:, some]), torch.from_numpy(some))
    assert (
        far(
            found,
            np.stack([plain.reconstruct(r[some], m[some], some, w, eps) for r, m in zip(x, mask)]),
        )
        < 1e-12
    )
    assert far(logits, np.stack([plain.classify(r[some], some, w, eps) for r in x])) < 1e-12


@pytest.mark.parametrize("pools", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_padded_rows_are_cells_with_their_own_genes(backend, pools):
    """Cells with different, odd and even, numbers of genes in one batch; each alone in the plain forward pass."""
    net, (x, mask) = network("published shape", pools=pools), cells(4)
    x[1, 5:], mask[1] = 0, False  # few
    x[2, ::2] = 1.5  # many
    x[:, 0] = 2  # values that a faulty gather would leave in the padding
    net.backend = backend
    w, eps = weights(net), net.config.norm_eps
    values, hides, genes, keep, columns = pack(
        torch.from_numpy(x).float(), torch.from_numpy(mask), None
    )
    with torch.no_grad():
        filled = net.reconstruct(values, hides, genes, keep).double().numpy()
    counts = []
    for i, (row, hidden) in enumerate(zip(x, mask)):
        there = np.flatnonzero((row != 0) | hidden)
        counts.append(len(there))
        assert keep[i].numpy().tolist() == [True] * len(there) + [False] * (
            keep.shape[1] - len(there)
        )
        assert (
            columns[i, : len(there)].tolist() == genes[i, : len(there)].tolist() == there.tolist()
        )
        assert values[i, : len(there)].tolist() == row[there].astype(np.float32).tolist()
        assert (values[i, len(there) :] == 0).all()
        assert hides[i].numpy().tolist() == [
            *hidden[there].tolist(),
            *[False] * (keep.shape[1] - len(there)),
        ]
        truth = plain.reconstruct(row[there], hidden[there], there, w, eps)
        np.testing.assert_allclose(
            filled[i, : len(there)], truth, rtol=0, atol=1e-5 * np.abs(truth).max()
        )
    assert keep.shape[1] == max(counts) and len({n % 2 for n in counts}) == 2, (
        "odd and even lengths"
    )
    values, _, genes, keep, _ = pack(torch.from_numpy(x).float(), None, None)
    expressed = [np.flatnonzero(row) for row in x]
    with torch.no_grad():
        found = net.cell_embedding(values, genes, keep), net.classify(values, genes, keep)
    assert (
        far(
            found[0],
            np.stack([plain.cell_embedding(r[e], e, w, eps) for r, e in zip(x, expressed)]),
        )
        < 1e-5
    )
    assert (
        far(found[1], np.stack([plain.classify(r[e], e, w, eps) for r, e in zip(x, expressed)]))
        < 1e-5
    )


def test_the_pooling_head_averages_over_the_genes_only():
    net, (x, _) = network("odd widths", pools=True).double(), cells()
    w, genes = weights(net), np.arange(GENES)
    assert "mean_head.weight" in w and "mean_head.bias" in w
    with torch.no_grad():
        found = net.classify(torch.from_numpy(x))
    assert (
        far(found, np.stack([plain.classify(row, genes, w, net.config.norm_eps) for row in x]))
        < 1e-12
    )


def test_rates_come_from_the_cell_embedding_and_the_gene_embedding():
    net, (x, _) = network("odd widths", rates=True).double(), cells()
    w, decoded = weights(net), np.array([0, 7, 40, 12])
    truth = np.stack(
        [
            w["backbone.gene_id_embedding.weight"][decoded]
            @ (
                w["rate_head.weight"]
                @ plain.cell_embedding(row, np.arange(GENES), w, net.config.norm_eps)
            )
            for row in x
        ]
    )
    with torch.no_grad():
        found = net.log_ratio(torch.from_numpy(x), None, None, torch.from_numpy(decoded))
    assert far(found, truth) < 1e-12


def vocabulary() -> Vocabulary:
    return Vocabulary.published().subset(range(GENES))


@pytest.mark.parametrize("reads", ["all", "expressed"])
def test_a_model_returns_the_forward_pass_of_its_type(reads):
    """The public functions: batches of any size, missing genes, and for "expressed" only genes that are non-zero or masked."""
    net, (x, mask) = network("published shape", reads=reads, rates=True), cells(5)
    model, w, eps = Model(net, vocabulary()), weights(net), net.config.norm_eps
    every, some = np.arange(GENES), np.array([1, 2, 5, 11, 23, 24, 30, 39])

    def read(row, hidden, genes):
        return np.arange(len(genes)) if reads == "all" else np.flatnonzero((row != 0) | hidden)

    for genes, options in ((every, {}), (some, {"genes": torch.from_numpy(some)})):
        for size in (None, 1, 2):
            truth = np.zeros((5, len(genes)))
            for i, (row, hidden) in enumerate(zip(x[:, genes], mask[:, genes])):
                at = read(row, hidden, genes)
                truth[i, at] = plain.reconstruct(row[at], hidden[at], genes[at], w, eps)
            found = model.reconstruct(x[:, genes], mask[:, genes], batch_size=size, **options)
            assert far(found, truth) < 1e-5 and found.dtype == torch.float32
            parts = [(row, read(row, False, genes)) for row in x[:, genes]]
            embedding = np.stack(
                [plain.cell_embedding(row[at], genes[at], w, eps) for row, at in parts]
            )
            assert (
                far(model.cell_embedding(x[:, genes], batch_size=size, **options), embedding) < 1e-5
            )
            logits = np.stack([plain.classify(row[at], genes[at], w, eps) for row, at in parts])
            assert far(model.classify(x[:, genes], batch_size=size, **options), logits) < 1e-5


def test_the_rates_of_a_model_read_expressed_genes_in_every_block():
    """Seventy cells: three blocks of 32; a cell without any gene has rates too."""
    from scipy import sparse

    net, (x, _) = network("published shape", rates=True), cells(70)
    x[69] = 0
    model, w = Model(net, vocabulary()), weights(net)
    some = np.array([2, 3, 5, 8, 13, 21, 34, 40])
    net.train()
    found = model.log_ratio(sparse.csr_matrix(x[:, some], dtype=np.float32), some)
    assert net.training and found.dtype == np.float32
    net.eval()
    for i in (0, 31, 32, 63, 64, 68):
        at = some[x[i, some] != 0]
        cell = plain.cell_embedding(x[i, at], at, w, net.config.norm_eps)
        truth = w["backbone.gene_id_embedding.weight"][some] @ (w["rate_head.weight"] @ cell)
        np.testing.assert_allclose(found[i], truth, rtol=0, atol=1e-5 * np.abs(truth).max())
    assert (found[69] == 0).all()
    rates = np.linspace(-9, -1, GENES)
    with torch.no_grad():
        net.gene_log_rate.copy_(torch.from_numpy(rates))
    np.testing.assert_allclose(model.gene_log_rate(some), rates[some], rtol=1e-6)
    np.testing.assert_array_equal(
        model.gene_embedding().numpy(), w["backbone.gene_id_embedding.weight"].astype(np.float32)
    )


@pytest.mark.parametrize("verb", ["cell_embedding", "classify"])
def test_training_and_inference_are_the_same_forward_pass(verb):
    """With gradients, with recomputed layers, and in training mode: the same numbers."""
    from scmamba.nn.bimamba import use_checkpointing

    net, (x, _) = network("published shape"), cells()
    w, genes = weights(net), np.arange(GENES)
    truth = np.stack([getattr(plain, verb)(row, genes, w, net.config.norm_eps) for row in x])
    for on in (False, True):
        use_checkpointing(net, on)
        found = getattr(net.train(), verb)(torch.from_numpy(x).float())
        assert found.requires_grad and far(found, truth) < 1e-5


def test_the_residual_stays_in_single_precision():
    net = network("published shape")
    hidden = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        out, residual = net.backbone.layers[0](hidden, None)
        _, later = net.backbone.layers[1](out.bfloat16(), residual)
    assert residual.dtype == later.dtype == torch.float32
    torch.testing.assert_close(residual, hidden.float(), rtol=0, atol=0)
    torch.testing.assert_close(later, residual + out.bfloat16().float(), rtol=0, atol=0)


def test_layers_are_recomputed_only_on_request_and_with_gradients(monkeypatch):
    block, calls = (
        bimamba.BiMambaBlock(ModelConfig(n_genes=10, d_model=8, n_layer=1, d_state=4)),
        [],
    )
    again = bimamba.checkpoint
    monkeypatch.setattr(bimamba, "checkpoint", lambda *a, **k: calls.append(a) or again(*a, **k))
    hidden = torch.rand(2, 5, 8, requires_grad=True)
    for wanted, grad in ((False, True), (True, True), (True, False), (False, False)):
        calls.clear()
        if wanted:
            block.checkpoint = True
        with torch.set_grad_enabled(grad):
            block(hidden, None, "reference")
        assert len(calls) == (wanted and grad), (wanted, grad)
        block.checkpoint = False
