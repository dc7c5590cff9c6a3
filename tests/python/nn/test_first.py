"""The first layer's projection from a table: equal to the product, recomputed when a weight changes, never used in training."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
import torch.nn.functional as F

from scmamba.nn import ModelConfig, ScMamba
from scmamba.nn import projection_cache as first

GENES = 300
WIDTHS = [pytest.param(32, id="fused"), pytest.param(20, id="torch")]


def network(width: int = 32, **settings) -> ScMamba:
    torch.manual_seed(0)
    made = ScMamba(
        ModelConfig(n_genes=GENES, d_model=width, n_layer=2, d_state=4, n_classes=3, **settings)
    ).eval()
    with torch.no_grad():  # parameters that are initialized to zero or one must have an effect
        for p in (
            made.backbone.mask_token,
            made.backbone.cls_token,
            made.backbone.expression_embedding.bias,
        ):
            p.normal_()
        made.backbone.layers[0].norm.weight.uniform_(0.5, 2)
    made.lookup = True
    return made


def cells(count: int = 3, length: int = GENES):
    g = torch.Generator().manual_seed(1)
    x = torch.rand(count, length, generator=g) * 4 * (torch.rand(count, length, generator=g) < 0.3)
    return x, torch.rand(count, length, generator=g) < 0.2


def inputs(which: str):
    """values, mask, genes, keep."""
    x, mask = cells()
    if which == "all":
        return x, None, None, None
    if which == "masked":
        return x, mask, None, None
    if which == "subset":
        genes = torch.arange(0, GENES, 7)
        return x[:, genes], mask[:, genes], genes, None
    genes = torch.stack([torch.randperm(GENES)[:40].sort().values for _ in x])
    keep = torch.arange(40) < torch.tensor([[40], [11], [29]])
    return x[:, :40] * keep, mask[:, :40] & keep, genes, keep


INPUTS = ["all", "masked", "subset", "padded"]


def off(a: torch.Tensor, truth: torch.Tensor) -> float:
    return ((a.double() - truth).abs().max() / truth.abs().max()).item()


@pytest.mark.parametrize("backend", ["cpu", "chunked"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("which", INPUTS)
def test_the_projection_is_the_product(which, width, backend):
    net = network(width)
    x, mask, genes, keep = inputs(which)
    double = copy.deepcopy(net).double()
    with torch.no_grad():
        embedded = net.backbone.embed(x, mask, genes)
        found = net.first(net.backbone, embedded, x, mask, genes, backend)
        there = None if keep is None else keep.unsqueeze(-1).float()
        layer = net.backbone.layers[0].mixer.mix(found, backend, there)
        rows = double.backbone.embed(x.double(), mask, genes)
        block = double.backbone.layers[0]
        product = F.linear(block.norm(rows), block.mixer.in_proj.weight)
        truth = block.mixer(
            block.norm(rows), "reference", None if there is None else there.double()
        )
    assert off(found, product) < 1e-6
    assert off(layer, truth) < 1e-5


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("verb", ["reconstruct", "cell_embedding", "classify"])
@pytest.mark.parametrize("which", INPUTS)
def test_every_output_is_the_same(which, verb, width):
    net = network(width)
    x, mask, genes, keep = inputs(which)
    call = {"mask": mask} if verb == "reconstruct" else {}
    with torch.inference_mode():
        found = getattr(net, verb)(x, genes=genes, keep=keep, **call)
        assert net.first._made is not None
        net.lookup = False
        ordinary = getattr(net, verb)(x, genes=genes, keep=keep, **call)
        truth = getattr(copy.deepcopy(net).double(), verb)(
            x.double(), genes=genes, keep=keep, **call
        )
    assert off(found, truth) < 1e-5 and off(ordinary, truth) < 1e-5


def test_masked_values_may_be_anything():
    x, mask = cells()
    for width in (32, 20):
        net = network(width)
        with torch.no_grad():
            assert torch.equal(
                net.reconstruct(x.masked_fill(mask, torch.nan), mask), net.reconstruct(x, mask)
            )
            assert net.reconstruct(x.masked_fill(mask, torch.nan)).isnan().any()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_cell_does_not_depend_on_its_batch(width):
    net, (x, mask) = network(width), cells(5)
    with torch.inference_mode():
        embedded = net.backbone.embed(x, mask)
        together = net.first(net.backbone, embedded, x, mask, None, None)
        for i in range(5):
            one = slice(i, i + 1)
            assert torch.equal(
                net.first(net.backbone, embedded[one], x[one], mask[one], None, None), together[one]
            )


def changes():
    """(name, function that changes the weights): in place, as an optimizer does, as a checkpoint does, by another tensor."""

    def step(net):
        net.reconstruct(cells()[0]).square().sum().backward()
        torch.optim.AdamW(net.parameters(), lr=0.05).step()

    def load(net):
        torch.manual_seed(9)
        net.load_state_dict(
            {name: t + 0.1 * torch.randn_like(t) for name, t in net.state_dict().items()}
        )

    def assign(net):
        net.load_state_dict({name: t * 1.1 for name, t in net.state_dict().items()}, assign=True)

    def other(net):
        net.backbone.layers[0].mixer.in_proj.weight.data = (
            net.backbone.layers[0].mixer.in_proj.weight.data * 1.5
        )

    def inference(net):
        with torch.inference_mode():
            net.backbone.mask_token.mul_(2)

    def unseen(net):
        net.backbone.gene_id_embedding.weight.data.mul_(2)
        net.first.forget()

    def trained(net):
        net.train()
        net.backbone.gene_id_embedding.weight.data.mul_(2)
        net.eval()

    return [step, load, assign, other, inference, unseen, trained]


@pytest.mark.parametrize("change", changes(), ids=lambda f: f.__name__)
def test_changed_weights_give_a_new_table(change):
    net, (x, mask) = network(), cells()
    with torch.no_grad():
        before = net.reconstruct(x, mask)
    change(net)
    with torch.no_grad():
        after = net.reconstruct(x, mask)
        truth = copy.deepcopy(net).double().reconstruct(x.double(), mask)
    assert off(after, truth) < 1e-5 and off(before, truth) > 1e-3


@pytest.mark.parametrize(
    "name",
    [
        "gene_id_embedding.weight",
        "expression_embedding.weight",
        "expression_embedding.bias",
        "mask_token",
        "cls_token",
        "layers.0.norm.weight",
        "layers.0.mixer.in_proj.weight",
    ],
)
def test_a_change_of_any_weight_is_detected(name):
    net, (x, mask) = network(), cells()
    with torch.no_grad():
        net.reconstruct(x, mask)
        table = net.first._made[2][0]
        net.reconstruct(x, mask)
        assert net.first._made[2][0] is table  # computed once
        net.backbone.get_parameter(name).add_(1)
        net.reconstruct(x, mask)
        assert net.first._made[2][0] is not table


def test_training_and_gradients_do_not_use_the_table():
    x, mask = cells()
    found = []
    for lookup in (True, False):
        net = network()
        net.lookup = lookup
        net.reconstruct(x, mask).square().sum().backward()
        with torch.no_grad():
            trained = net.train().reconstruct(x, mask)
        assert net.first._made is None
        found.append([trained, *(p.grad for p in net.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_training_and_conversion_release_the_memory():
    net, (x, _) = network(), cells()
    for change in (ScMamba.train, ScMamba.double):
        with torch.no_grad():
            net.eval().reconstruct(x)
        assert net.first._made is not None
        change(net)
        assert net.first._made is None
    with torch.no_grad():  # float64 has no table
        net.eval().reconstruct(x.double())
    assert net.first._made is None


def test_no_table_beyond_the_memory_limit(monkeypatch):
    net, (x, mask) = network(), cells()
    assert first.LARGEST > 4 * (19306 + 1) * 1024  # the published network is below it
    monkeypatch.setattr(first, "LARGEST", 4 * (GENES + 1) * 128 - 1)
    with torch.no_grad():
        limited = net.reconstruct(x, mask)
        assert net.first._made is None
        net.lookup = False
        assert torch.equal(limited, net.reconstruct(x, mask))


def test_weights_without_version_counter_have_no_table():
    with torch.inference_mode():
        net, (x, _) = network(), cells()
        net.reconstruct(x)
        assert net.first._made is None


def test_half_precision_has_no_table():
    net, (x, _) = network(), cells()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net.reconstruct(x)
    assert net.first._made is None


def test_threads_get_the_same_output():
    net, (x, mask) = network(), cells()
    with torch.no_grad():
        expected = net.reconstruct(x, mask)
    net.first.forget()
    answers, tables = [], []

    def work():
        with torch.no_grad():
            for _ in range(20):
                answers.append(net.reconstruct(x, mask))
                tables.append(net.first._made[2][0])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # New threads may use another number of OpenMP threads than the first one, so the last digits of a product may differ.
    assert (
        len(answers) == 40
        and all(torch.equal(a, answers[0]) for a in answers)
        and off(answers[0], expected.double()) < 1e-6
    )
    assert len({id(t) for t in tables}) == 1


def test_copies_start_without_a_table():
    net, (x, _) = network(), cells()
    with torch.no_grad():
        expected = net.reconstruct(x)
        again = copy.deepcopy(net)
        assert again.first._made is None and again.first is not net.first
        assert torch.equal(again.reconstruct(x), expected)


def test_when_the_table_is_used_by_default(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(first, "matrix_unit", lambda: False)
    assert (
        first.is_worthwhile(cpu, "all")
        and not first.is_worthwhile(cpu, "expressed")
        and not first.is_worthwhile(torch.device("cuda"), "all")
    )
    net, (x, _) = network(), cells()
    net.lookup = None
    with torch.no_grad():
        net.reconstruct(x)
        assert net.first._made is not None
        net.first.forget()
        monkeypatch.setattr(first, "matrix_unit", lambda: True)
        net.reconstruct(x)
        assert net.first._made is None
