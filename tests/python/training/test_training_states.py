"""Stored states of a run, its record and plot_metrics, and its processes, one or several."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from scmamba.training import distributed as engine
from scmamba.training import finetune
from scmamba.training import metrics_log as curves_module
from scmamba.training.checkpointing import load_state, save_state, state_files
from scmamba.training.distributed import (
    PRECISIONS,
    SingleProcess,
    choose_strategy,
    is_distributed,
    is_first_process,
    number_of_processes,
    training_device,
)
from scmamba.training.metrics_log import MetricsLog, pack_rows, plot_metrics, unpack_rows
from scmamba.utils.errors import CheckpointError, ScMambaError


def test_states_are_kept_newest_first_and_damage_is_detected(tmp_path, capsys):
    for done in (5, 40, 300):
        save_state(tmp_path, done, {"done": done}, keep=2)
    assert [p.name for p in state_files(tmp_path)] == ["state-000000300.pt", "state-000000040.pt"]
    assert load_state(tmp_path) == {"done": 300}
    save_state(tmp_path, 301, {"done": 301}, keep=0)
    assert [p.name for p in state_files(tmp_path)] == ["state-000000301.pt"]
    save_state(tmp_path, 302, {"done": 302}, keep=3)
    newest = tmp_path / "state-000000302.pt"
    for position in (3, 20, -1):  # the name of the format, the digest, the content
        whole = bytearray(newest.read_bytes())
        whole[position] ^= 1
        newest.write_bytes(whole)
        assert (
            load_state(tmp_path) == {"done": 301}
            and "truncated or damaged" in capsys.readouterr().err
        )
        whole[position] ^= 1
        newest.write_bytes(whole)
    (tmp_path / ".state-000000303.pt.x1").mkdir()  # a file that a killed process was writing
    assert load_state(tmp_path) == {"done": 302} and not list(tmp_path.glob(".*"))
    assert load_state(tmp_path / "empty") is None
    for path in state_files(tmp_path):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="None of the 2"):
        load_state(tmp_path, verbose=False)


def test_rows_are_packed_without_loss():
    rows = [
        {"step": 0, "loss": 0.1 + 0.2, "lr": 1e-6},
        {"step": 1, "loss": 2.0, "lr": 1e-3, "validation_loss": 1 / 3},
    ]
    packed = pack_rows(rows)
    assert packed["loss"].dtype == torch.float64 and torch.isnan(
        packed["validation_loss"]
    ).tolist() == [True, False]
    assert unpack_rows(packed) == rows and isinstance(unpack_rows(packed)[0]["step"], int)
    assert unpack_rows({}) == []


def test_a_long_run_writes_its_record_every_half_minute(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(curves_module.time, "monotonic", lambda: clock[0])
    record = MetricsLog(tmp_path, [])
    for elapsed, written in ((29.0, 0), (30.5, 2), (59.0, 2), (61.0, 4)):
        clock[0] = 100.0 + elapsed
        record.add({"step": len(record.rows), "loss": 1.0})
        file = tmp_path / "log.csv"
        assert (len(file.read_text().splitlines()) - 1 if file.exists() else 0) == written
    MetricsLog(None, []).add({"step": 0, "loss": 1.0})


def test_the_figure_has_losses_their_running_mean_and_the_validation(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    drawn = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *a, **k: (drawn.append(self), save(self, *a, **k))[1]
    )
    losses = np.linspace(3, 1, 300) ** 2
    rows = [
        {"step": k + 10, "loss": v, **({"validation_loss": 0.1 * k} if k % 100 == 0 else {})}
        for k, v in enumerate(losses)
    ]
    plot_metrics(rows, tmp_path / "a.png")
    raw, mean, validation = drawn[0].axes[0].lines
    np.testing.assert_allclose(raw.get_xydata(), np.column_stack([np.arange(10, 310), losses]))
    expected = [losses[i : i + 6].mean() for i in range(295)]
    np.testing.assert_allclose(mean.get_xydata(), np.column_stack([np.arange(15, 310), expected]))
    np.testing.assert_allclose(validation.get_xydata(), [[10, 0], [110, 10], [210, 20]])
    assert mean.get_label() == "training, mean of 6" and validation.get_label() == "validation loss"
    bottom, top = drawn[0].axes[0].get_ylim()
    assert bottom == 0 and top == pytest.approx(1.1 * np.quantile(losses, 0.995))


@pytest.mark.parametrize("task", ["impute", "annotate", "doublets"])
@pytest.mark.parametrize(("processes", "device"), [(2, torch.device("cuda", 1)), (1, None)])
def test_fine_tuning_loads_the_model_on_the_gpu_of_its_process(
    task, processes, device, monkeypatch
):
    """One process chooses for itself; the GPU is said to exist, and no model is loaded."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def load(model, *, device):
        raise InterruptedError(str(device))

    monkeypatch.setattr(importlib.import_module("scmamba.training._finetune"), "load_model", load)
    with pytest.raises(InterruptedError, match=f"^{device}$"):
        finetune([], task=task, verbose=False)


def test_the_launcher_of_the_processes_is_read_from_the_environment(monkeypatch):
    for name in (
        "LOCAL_WORLD_SIZE",
        "WORLD_SIZE",
        "RANK",
        "SLURM_PROCID",
        "SLURM_STEP_NUM_TASKS",
        "SLURM_STEP_NUM_NODES",
        "SLURM_NNODES",
    ):
        monkeypatch.delenv(name, raising=False)
    assert number_of_processes() == 1 and not is_distributed() and is_first_process()
    monkeypatch.setenv("RANK", "3")  # left over from another program: a single process is the first
    assert is_first_process()
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"):  # likewise, or half of a launcher
        with monkeypatch.context() as alone:
            alone.setenv(name, "4")
            assert number_of_processes() == 1 and not is_distributed() and is_first_process()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert number_of_processes() == 8 and is_distributed() and not is_first_process()
    monkeypatch.setenv("RANK", "0")
    assert is_first_process()
    for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SLURM_PROCID", "2")
    assert number_of_processes() == 1
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "6")
    assert number_of_processes() == 6 and not is_first_process()
    monkeypatch.setenv("SLURM_STEP_NUM_NODES", "3")
    assert number_of_processes() == 6
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert number_of_processes() == 1
    if not torch.cuda.is_available():
        assert training_device() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(
        "SLURM_LOCALID", "3"
    )  # left over from another program: only one process runs
    assert training_device() == torch.device("cuda", 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "6")
    assert training_device() == torch.device("cuda", 3)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert training_device() == torch.device("cuda", 1)
    monkeypatch.delenv("LOCAL_RANK")
    monkeypatch.delenv("SLURM_LOCALID")
    assert training_device() == torch.device("cuda", 0)


def test_the_simple_strategy_is_chosen_if_it_suffices(monkeypatch):
    for name in ("LOCAL_WORLD_SIZE", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    cpu = torch.device("cpu")
    assert isinstance(choose_strategy("32", cpu, quick=True), SingleProcess)
    monkeypatch.setattr(engine, "fabric_installed", lambda: False)
    assert isinstance(choose_strategy("32", cpu, quick=False), SingleProcess)
    with pytest.raises(ScMambaError, match="need Lightning"):
        choose_strategy("bf16", cpu, quick=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ScMambaError, match="need Lightning"):
        choose_strategy("32", cpu, quick=True)


def test_precisions_have_the_names_of_fabric():
    assert PRECISIONS == {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}
