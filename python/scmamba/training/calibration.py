"""Temperature scaling and error-controlled thresholds of class probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax


def fit_temperature(logits: np.ndarray, codes: np.ndarray) -> float:
    """The temperature with the smallest log loss."""
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        scaled = logits / np.exp(log_t)
        return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(codes)), codes]))

    return float(np.exp(minimize_scalar(loss, bounds=(-3, 2), method="bounded").x))


def coverage_curve(probabilities: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """(points, 3) threshold, share kept, accuracy of what is kept."""
    top, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    points = []
    for threshold in np.round(np.arange(0, 1.0, 0.01), 2):
        kept = top >= threshold
        if kept.sum() >= 10 or threshold == 0:
            points.append((threshold, kept.mean(), right[kept].mean()))
    return np.array(points)


def threshold_for(curve: np.ndarray, error_rate: float) -> float:
    """Smallest threshold of a (points, 3) curve above which at most ``error_rate`` of the cells were wrong; 1 if there is none."""
    fine = curve[1 - curve[:, 2] <= error_rate]
    return float(fine[0, 0]) if len(fine) else 1.0


def fit_calibration(logits: np.ndarray, codes: np.ndarray) -> dict[str, Any]:
    """What a classifier's checkpoint keeps of its (n, k) logits for cells it was not trained on: temperature, curve, cells."""
    temperature = fit_temperature(logits, codes)
    curve = coverage_curve(softmax(logits / temperature, axis=1), codes)
    return {
        "temperature": temperature,
        "cells": len(codes),
        "curve": [[float(v) for v in point] for point in curve],
    }


def log_loss(logits: np.ndarray, codes: np.ndarray) -> float:
    """Mean over cells, at the temperature where it is smallest."""
    scaled = logits / fit_temperature(logits, codes)
    return float(np.mean(logsumexp(scaled, axis=1) - scaled[np.arange(len(codes)), codes]))
