"""Checkpoints in the published layout: which rows of the table are genes, which is [CLS], and refused files."""

from __future__ import annotations

import json
import math

import numpy as np
import plain_network as plain
import pytest
import torch

from scmamba.genes import Vocabulary
from scmamba.model import load_model, read_published
from scmamba.nn import ModelConfig, ScMamba
from scmamba.utils.errors import CheckpointError

PUBLISHED = Vocabulary.published()
SIZES = dict(d_model=8, n_layer=2, d_state=3, d_conv=3, expand=1.5, dt_rank=2)
TABLE, TOKEN = "model.backbone.gene_id_embedding.weight", "model.backbone.cls_token"


def stored(rows: int, n_classes: int = 0, **settings) -> dict[str, torch.Tensor]:
    """Weights as the published training saves them, the table with ``rows`` rows."""
    torch.manual_seed(5)
    network = ScMamba(ModelConfig(n_genes=1, n_classes=n_classes, **{**SIZES, **settings}))
    state = {
        f"model.{name}": torch.randn(value.shape) * 0.3
        for name, value in network.state_dict().items()
    }
    state[TABLE] = torch.randn(rows, network.config.d_model)
    return state


def save(path, state, **more):
    torch.save({"state_dict": state, "epoch": 3, **more}, path)
    return path


def padded(n: int) -> int:
    return math.ceil(n / 8) * 8


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier of all 19,306 genes behind 1,005 special tokens, padded to whole eights."""
    state = stored(padded(1005 + 19306), n_classes=3)
    folder = tmp_path_factory.mktemp("published")
    (folder / "labels.json").write_text(json.dumps({"OPC": 2, "Astrocyte": 0, "Microglia": 1}))
    return save(folder / "subtype.ckpt", state), state


def test_a_classifier_without_its_vocabulary_file(classifier):
    """1,005 special tokens are first, [CLS] is row 101, the genes are in the published order."""
    path, state = classifier
    model = load_model(path, labels=path.with_name("labels.json"), device="cpu")
    assert model.genes == PUBLISHED and model.labels == ["Astrocyte", "Microglia", "OPC"]
    torch.testing.assert_close(
        model.gene_embedding(), state[TABLE][1005 : 1005 + 19306], rtol=0, atol=0
    )
    torch.testing.assert_close(
        model.network.backbone.cls_token.data, state[TOKEN] + state[TABLE][101], rtol=0, atol=0
    )
    # The expected output: every tenth gene is expressed, in the plain forward pass with the published code's
    # own tokens.
    w = {name.removeprefix("model."): value.double().numpy() for name, value in state.items()}
    w["backbone.cls_token"] = w["backbone.cls_token"] + w["backbone.gene_id_embedding.weight"][101]
    some = np.arange(0, 19306, 500)
    x = np.random.default_rng(0).gamma(2.0, 1.0, (2, len(some))).astype(np.float32)
    truth = np.stack([plain.classify(row.astype(float), some + 1005, w, 1e-5) for row in x])
    found = model.classify(x, genes=torch.from_numpy(some)).numpy()
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-5 * np.abs(truth).max())


def test_the_vocabulary_file_gives_the_same_result(classifier, tmp_path):
    path, _ = classifier
    special = [f"[unused{i}]" for i in range(1005)]
    special[101] = "[CLS]"
    (tmp_path / "vocab.txt").write_text(
        "\n".join(special + [gene.lower() for gene in PUBLISHED]) + "\n\n"
    )
    one, other = read_published(path), read_published(path, tmp_path / "vocab.txt")
    assert one[0] == other[0] and one[2] == other[2] and one[3] is other[3] is None
    assert one[1].keys() == other[1].keys() and all(
        torch.equal(one[1][name], other[1][name]) for name in one[1]
    )


def test_a_table_with_only_genes_has_no_special_row(tmp_path):
    state, genes = stored(30, n_classes=2), PUBLISHED.subset(range(30))
    _, weights, found, _ = read_published(save(tmp_path / "x.ckpt", state), genes)
    assert found == genes
    assert torch.equal(weights["backbone.gene_id_embedding.weight"], state[TABLE])
    assert torch.equal(weights["backbone.cls_token"], state[TOKEN])
    # With one more row the special tokens are required.
    with pytest.raises(CheckpointError, match="table has 31 rows, and the vocabulary needs 1035"):
        read_published(save(tmp_path / "y.ckpt", stored(31)), genes)
    _, weights, _, _ = read_published(save(tmp_path / "z.ckpt", stored(1035)), genes)
    assert len(weights["backbone.gene_id_embedding.weight"]) == 30


def test_a_vocabulary_file_names_the_rows(tmp_path):
    genes = list(PUBLISHED)[:4]
    lines = ["[PAD]", genes[2], "", "  [MASK] ", genes[0].lower() + ".4", "[CLS]", genes[3], "[x"]
    lines[-1] = genes[1]
    (tmp_path / "vocab.txt").write_text("\n".join(lines))
    state = stored(7)
    _, weights, found, _ = read_published(save(tmp_path / "x.ckpt", state), tmp_path / "vocab.txt")
    assert list(found) == [genes[2], genes[0], genes[3], genes[1]]
    assert torch.equal(weights["backbone.gene_id_embedding.weight"], state[TABLE][[1, 3, 5, 6]])
    assert torch.equal(weights["backbone.cls_token"], state[TOKEN] + state[TABLE][4])
    (tmp_path / "plain.txt").write_text("\n".join(genes))
    _, weights, _, _ = read_published(tmp_path / "x.ckpt", tmp_path / "plain.txt")
    assert torch.equal(weights["backbone.cls_token"], state[TOKEN]), (
        "no [CLS] in the vocabulary: the token is all"
    )
    (tmp_path / "long.txt").write_text("\n".join(["[PAD]"] * 4 + genes))
    with pytest.raises(CheckpointError, match="has 7 rows, and the vocabulary needs 8"):
        read_published(tmp_path / "x.ckpt", tmp_path / "long.txt")
    (tmp_path / "none.txt").write_text("[PAD]\n")
    with pytest.raises(CheckpointError, match="the vocabulary needs 1"):
        read_published(tmp_path / "x.ckpt", tmp_path / "none.txt")
    with pytest.raises(CheckpointError, match="There is no vocabulary file"):
        read_published(tmp_path / "x.ckpt", tmp_path / "absent.txt")


@pytest.mark.parametrize(
    "sizes",
    [
        dict(d_model=12, n_layer=1, d_state=4, d_conv=2, expand=2.5, dt_rank=7),
        dict(bidirectional=False, reconstructs=False),
    ],
)
def test_every_size_is_derived_from_the_tensors(tmp_path, sizes):
    expected = ModelConfig(n_genes=20, n_classes=5, name="run1", **{**SIZES, **sizes})
    config, weights, _, _ = read_published(
        save(tmp_path / "run1.ckpt", stored(20, 5, **sizes)), PUBLISHED.subset(range(20))
    )
    assert config == expected
    ScMamba(config).load_state_dict(weights)
    state = {name: value for name, value in stored(20, **sizes).items() if "token" not in name}
    model = load_model(
        save(tmp_path / "bare.ckpt", state), PUBLISHED.subset(range(20)), device="cpu"
    )
    assert model.config.n_classes == 0 and model.labels is None
    assert (model.network.backbone.cls_token == 0).all() and (
        model.network.backbone.mask_token == 0
    ).all()
    assert model.card == "Converted from bare.ckpt; its data and accuracy are not documented.\n"


@pytest.mark.parametrize("prefix", ["", "model.", "module.network."])
def test_prefixes_of_wrappers_are_removed(tmp_path, prefix):
    state = {
        prefix + name.removeprefix("model."): value.half() for name, value in stored(6).items()
    }
    state["steps"] = torch.tensor(4)
    state["loss.scale"] = torch.ones(1)
    with pytest.warns(
        UserWarning, match="Ignoring weights that this network does not have: loss.scale, steps"
    ):
        _, weights, _, _ = read_published(
            save(tmp_path / "x.ckpt", state), PUBLISHED.subset(range(6))
        )
    assert sorted(weights) == sorted(name.removeprefix("model.") for name in stored(6))
    assert {value.dtype for value in weights.values()} == {torch.float32}
    torch.save(
        state, tmp_path / "bare.ckpt"
    )  # weights without the optimizer state of a training run
    with pytest.warns(UserWarning):
        again = read_published(tmp_path / "bare.ckpt", PUBLISHED.subset(range(6)))[1]
    assert all(torch.equal(again[name], weights[name]) for name in weights)


@pytest.mark.parametrize("names", [{"b": 1, "a": 2, "c": 0}, ["c", "b", "a"]])
def test_labels_are_in_the_order_of_their_index(tmp_path, names):
    path = save(tmp_path / "x.ckpt", stored(6, n_classes=3))
    (tmp_path / "labels.json").write_text(json.dumps(names))
    assert read_published(path, PUBLISHED.subset(range(6)), tmp_path / "labels.json")[3] == [
        "c",
        "b",
        "a",
    ]
    (tmp_path / "few.json").write_text(json.dumps(["c", "b"]))
    with pytest.raises(CheckpointError, match="few.json names 2 classes, the checkpoint has 3"):
        read_published(path, PUBLISHED.subset(range(6)), tmp_path / "few.json")


# --- refused files
# ------------------------------------------------------------------------------------


def without(state, *parts):
    return {name: value for name, value in state.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (lambda s: without(s, "gene_id_embedding"), "not a scMamba checkpoint"),
        (lambda s: without(s, "A_log"), "not a scMamba checkpoint"),
        (lambda s: without(s, "conv1d_b"), "bidirectional 'v1' mixer"),
        (lambda s: without(s, "A_b_log"), "bidirectional 'v1' mixer"),
        (
            lambda s: (
                without(s, "layers.1.")
                | {k.replace("s.1.", "s.2."): v for k, v in s.items() if "layers.1." in k}
            ),
            r"\[1\] are missing",
        ),
        (lambda s: without(s, "layers.1.mixer.in_proj"), "is incomplete: missing"),
        (lambda s: {**s, "model.backbone.layers.0.mixer.extra": torch.ones(1)}, "not expected"),
        (lambda s: {**s, "model.regressor.weight": torch.ones(1, 3)}, "do not fit its sizes"),
        (
            lambda s: {**s, "model.backbone.layers.0.mixer.in_proj.bias": torch.ones(24)},
            "biased projections or LayerNorm",
        ),
        (
            lambda s: {**s, "model.backbone.layers.1.mixer.out_proj.bias": torch.ones(8)},
            "biased projections or LayerNorm",
        ),
        (
            lambda s: {**s, "model.backbone.layers.1.norm.bias": torch.ones(8)},
            "biased projections or LayerNorm",
        ),
        (
            lambda s: {**s, "model.backbone.norm_f.bias": torch.ones(8)},
            "biased projections or LayerNorm",
        ),
        (
            lambda s: {**s, "model.backbone.gene_id_embedding.bias": torch.ones(8)},
            "biased projections or LayerNorm",
        ),
        (
            lambda s: {**s, "model.backbone.gene_id_embedding.size": 8},
            "does not hold a 'state_dict' of tensors",
        ),
    ],
)
def test_other_layouts_are_refused(tmp_path, state, sentence):
    path = save(tmp_path / "x.ckpt", state(stored(6)))
    with pytest.raises(CheckpointError, match=sentence):
        load_model(path, PUBLISHED.subset(range(6)), device="cpu")


def test_damaged_files_are_refused(tmp_path):
    path = save(tmp_path / "x.ckpt", stored(6))
    (tmp_path / "cut.ckpt").write_bytes(path.read_bytes()[:2000])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    for name in ("cut", "empty"):
        with pytest.raises(
            CheckpointError, match=f"{name}.ckpt cannot be read as a checkpoint .*truncated"
        ):
            read_published(tmp_path / f"{name}.ckpt")
    with pytest.raises(CheckpointError, match="There is no file"):
        read_published(tmp_path / "absent.ckpt")
    torch.save([torch.ones(1)], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match="does not hold a 'state_dict'"):
        read_published(tmp_path / "list.ckpt")
