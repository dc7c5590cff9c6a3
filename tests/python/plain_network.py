"""The published network in numpy float64, one position after another, from the paper's text.

Nothing here comes from the package: it is what the package is compared with. Weights are a
dictionary of arrays under the published names (``backbone.layers.0.mixer.A_log``, ...).
"""

from __future__ import annotations

import numpy as np

Weights = dict[str, np.ndarray]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x)


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def causal_convolution(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """(L, E): position t depends on t-W+1 .. t; the last tap is that of t."""
    length, width = len(x), weight.shape[-1]
    out = np.tile(bias, (length, 1))
    for t in range(length):
        for back in range(width):
            if t - back >= 0:
                out[t] += weight[:, width - 1 - back] * x[t - back]
    return out


def selective_scan(u, dt, a, b, c, d) -> np.ndarray:
    """h = exp(dt A) h + dt B u; y = C h + D u; (L, E)."""
    state, out = np.zeros_like(a), np.empty_like(u)
    for t in range(len(u)):
        state = np.exp(dt[t][:, None] * a) * state + (dt[t] * u[t])[:, None] * b[t][None, :]
        out[t] = state @ c[t] + d * u[t]
    return out


def one_direction(u: np.ndarray, z: np.ndarray, w: Weights, mixer: str, suffix: str) -> np.ndarray:
    u = silu(
        causal_convolution(
            u, w[f"{mixer}conv1d{suffix}.weight"][:, 0], w[f"{mixer}conv1d{suffix}.bias"]
        )
    )
    a = -np.exp(w[mixer + ("A_b_log" if suffix else "A_log")])
    states = a.shape[1]
    thin = u @ w[f"{mixer}x_proj{suffix}.weight"].T
    rank = thin.shape[1] - 2 * states
    step, b, c = thin[:, :rank], thin[:, rank : rank + states], thin[:, rank + states :]
    dt = softplus(step @ w[f"{mixer}dt_proj{suffix}.weight"].T + w[f"{mixer}dt_proj{suffix}.bias"])
    return selective_scan(u, dt, a, b, c, w[f"{mixer}D{suffix}"]) * silu(z)


def mixer(x: np.ndarray, w: Weights, name: str) -> np.ndarray:
    """(L, D) -> (L, D): the backward direction reads the reversed sequence and its output is reversed; both are added."""
    both = x @ w[name + "in_proj.weight"].T
    u, z = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
    out = one_direction(u, z, w, name, "")
    if name + "A_b_log" in w:
        out = out + one_direction(u[::-1], z[::-1], w, name, "_b")[::-1]
    return out @ w[name + "out_proj.weight"].T


def layers(embedded: np.ndarray, w: Weights, eps: float) -> np.ndarray:
    """(L, D) -> (L, D): residual += previous output, normalize, mix; at the end the last output is added to the residual."""
    residual = embedded
    count = 1 + max(int(key.split(".")[2]) for key in w if key.startswith("backbone.layers."))
    for i in range(count):
        layer = f"backbone.layers.{i}."
        residual = residual + mixer(
            rms_norm(residual, w[layer + "norm.weight"], eps), w, layer + "mixer."
        )
    return rms_norm(residual, w["backbone.norm_f.weight"], eps)


def embed(x: np.ndarray, mask: np.ndarray | None, genes: np.ndarray, w: Weights) -> np.ndarray:
    """(L,) values -> (L, D): the expression embedding of a masked value is the mask token; its gene embedding stays."""
    expression = (
        x[:, None] * w["backbone.expression_embedding.weight"][:, 0]
        + w["backbone.expression_embedding.bias"]
    )
    if mask is not None:
        expression = np.where(mask[:, None], w["backbone.mask_token"].reshape(-1), expression)
    return expression + w["backbone.gene_id_embedding.weight"][genes]


def hidden(x, mask, genes, w: Weights, eps: float) -> np.ndarray:
    return layers(embed(x, mask, genes, w), w, eps)


def reconstruct(x, mask, genes, w: Weights, eps: float) -> np.ndarray:
    return hidden(x, mask, genes, w, eps) @ w["regressor.weight"][0] + w["regressor.bias"][0]


def cell_embedding(x, genes, w: Weights, eps: float) -> np.ndarray:
    return hidden(x, None, genes, w, eps).mean(axis=0)


def classify(x, genes, w: Weights, eps: float) -> np.ndarray:
    """[CLS] before the first gene, after half of them (rounded down) and after the last; the three outputs are concatenated."""
    embedded, token, half = (
        embed(x, None, genes, w),
        w["backbone.cls_token"].reshape(1, -1),
        len(x) // 2,
    )
    out = layers(np.concatenate([token, embedded[:half], token, embedded[half:], token]), w, eps)
    first, middle, last = out[0], out[half + 1], out[-1]
    logits = w["cls_head.weight"] @ np.concatenate([first, middle, last])
    if "mean_head.weight" in w:
        genes_only = np.concatenate([out[1 : half + 1], out[half + 2 : -1]])
        logits = logits + w["mean_head.weight"] @ genes_only.mean(axis=0) + w["mean_head.bias"]
    return logits
