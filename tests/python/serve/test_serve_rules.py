"""Rules on paper: which options a task takes, which address needs tokens, who a token is, and what the command line makes of it."""

from __future__ import annotations

import hashlib
import json
import stat
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

import scmamba
from scmamba.serve import __main__ as command
from scmamba.serve import tokens
from scmamba.serve import verbs as tasks
from scmamba.serve.settings import Settings
from scmamba.serve.tokens import Tokens
from scmamba.serve.verbs import TASKS, WITH_MODEL, check_options

# -- options -------------------------------------------------------------------------------------------

LIMITS = [
    ("impute", "seed", 0, 2**32 - 1, 1),
    ("impute", "passes", 1, 1000, 1),
    ("impute", "batch_size", 1, 65_536, 1),
    ("impute", "min_value", 0, 1e6, 0.5),
    ("impute", "adapt_steps", 0, 100_000, 1),
    ("annotate", "network", 0, 100_000, 1),
    ("annotate", "error_rate", 0.0, 1.0, 0.01),
    ("doublets", "expected_rate", 0, 1, 0.01),
    ("robustness", "min_log2fc", -1e9, 1e9, 1),
    ("doublets", "identification_rate", 0, 1, 0.01),
    ("robustness", "permutations", 1, 10_000, 1),
    ("markers", "min_pct", 0, 1, 0.01),
    ("robustness", "null_permutations", 0, 10_000, 1),
    ("robustness", "max_combinations", 1, 10_000, 1),
    ("robustness", "min_degs", 1, 10**6, 1),
    ("robustness", "min_cells", 1, 10**6, 1),
    ("robustness", "alpha", 0, 1, 0.01),
    ("finetune", "steps", 1, 10**6, 1),
]
BASE = {"markers": {"groupby": "a", "group1": "b"}, "robustness": {"condition_key": "a"}}


@pytest.mark.parametrize(("task", "name", "low", "high", "step"), LIMITS)
def test_numbers_lie_within_their_limits(task, name, low, high, step):
    base = BASE.get(task, {})
    assert (
        check_options(task, {**base, name: low}) is None
        and check_options(task, {**base, name: high}) is None
    )
    for value in (low - step, high + step):
        assert f"option '{name}' is" in check_options(task, {**base, name: value})


def test_every_limit_is_tested():
    assert set(tasks._RANGES) == {name for _, name, *_ in LIMITS} - {"min_log2fc"}


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("impute", [], "one JSON object"),
        ("impute", {"sed": 1}, "no option 'sed'"),
        ("embed", {"seed": 1}, "no option 'seed'"),
        ("impute", {"seed": True}, "cannot be true"),
        ("impute", {"seed": 1.5}, "is float; it must be int"),
        ("impute", {"seed": "1"}, "is str"),
        ("impute", {"to_counts": 1}, "is int; it must be bool"),
        ("impute", {"adapt": 1.5}, "must be bool or int"),
        ("impute", {"min_value": float("nan")}, "must lie between"),
        ("annotate", {"markers": {"A": 1}}, "gene names for each type"),
        ("annotate", {"markers": {"A": ["X"], "B": ["Y", 1]}}, "gene names"),
        ("annotate", {"labels": ["a", 1]}, "list of names"),
        ("robustness", {"condition_key": "a", "ratios": [0.5, 0]}, "shares"),
        ("robustness", {"condition_key": "a", "ratios": [1.01]}, "shares"),
        ("robustness", {"condition_key": "a", "ratios": [True]}, "shares"),
        ("robustness", {"condition_key": "a", "ratios": [0.5] * 101}, "shares"),
        ("robustness", {"condition_key": "a", "layers": [1]}, "names"),
        ("robustness", {}, "needs the option 'condition_key'"),
        ("markers", {"groupby": "a"}, "needs the option 'group1'"),
        ("markers", {"groupby": None, "group1": "b"}, "'groupby'"),
        ("finetune", {"model": "x"}, "no option 'model'"),
        ("robustness", {"condition_key": "a", "n_jobs": 2}, "no option 'n_jobs'"),
    ],
)
def test_options_that_cannot_be(task, options, words):
    assert words in check_options(task, options)


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("impute", {}),
        (
            "impute",
            {
                "adapt": True,
                "to_counts": False,
                "seed": None,
                "layer": "counts",
                "method": "rates",
                "batch": "donor",
            },
        ),
        (
            "annotate",
            {"markers": {"A": "X", "B": ["Y", "Z"]}, "labels": ["a", "b"], "network": False},
        ),
        ("annotate", {"labels": "a"}),
        ("robustness", {"condition_key": "a", "ratios": [0.01, 1], "layers": ["counts"]}),
        ("robustness", {"condition_key": "a", "ratios": [0.5] * 100}),
        (
            "markers",
            {
                "groupby": "a",
                "group1": ["b"],
                "group2": "c",
                "only_pos": True,
                "logfc_threshold": -0.5,
                "genes": ["X"],
            },
        ),
    ],
)
def test_options_that_can_be(task, options):
    assert check_options(task, options) is None


def test_no_task_reaches_for_files_or_machines():
    reachable = {name for _, known in TASKS.values() for name in known}
    assert not reachable & {
        "model",
        "device",
        "backend",
        "resume",
        "folder",
        "cache",
        "n_jobs",
        "path",
        "output",
        "verbose",
    }
    assert WITH_MODEL == ("impute", "embed", "finetune")


@pytest.mark.parametrize(
    ("task", "verb"), [("impute", "impute"), ("embed", "embed"), ("doublets", "detect_doublets")]
)
def test_a_task_is_its_verb(monkeypatch, task, verb):
    got = []
    monkeypatch.setattr(
        scmamba,
        verb,
        lambda adata, **options: got.append((adata, options)) or "answer",
        raising=False,
    )
    assert TASKS[task][0]("cells", {"seed": 3}) == "answer" and got == [
        ("cells", {"verbose": True, "seed": 3})
    ]


def test_annotating_adds_to_the_cells(monkeypatch):
    class Found:
        def to_adata(self, adata):
            return f"{adata} with types"

    got = []
    monkeypatch.setattr(
        scmamba,
        "annotate",
        lambda adata, **options: got.append((adata, options)) or Found(),
        raising=False,
    )
    assert TASKS["annotate"][0]("cells", {"seed": 3}) == "cells with types" and got == [
        ("cells", {"verbose": True, "seed": 3})
    ]


def test_markers_and_robustness_come_as_tables(monkeypatch):
    class Found:
        settings, notes, warnings = {"seed": 3}, ("a note",), ("a warning",)
        runs, nulls, full = (
            pd.DataFrame({name: [1, 2]}, index=["x", "y"]) for name in ("runs", "nulls", "full")
        )

        def summary(self):
            return pd.DataFrame({"summary": [1]})

        def tests(self):
            return pd.DataFrame({"tests": [1]})

        def false_positives(self):
            return pd.DataFrame({"false": [1]})

    got, frame = [], pd.DataFrame({"p": [0.5]}, index=["G1"])
    monkeypatch.setattr(
        "scmamba.deg.find_markers", lambda adata, **options: got.append((adata, options)) or frame
    )
    monkeypatch.setattr(
        "scmamba.deg.robustness", lambda adata, **options: got.append((adata, options)) or Found()
    )
    markers, robustness = (
        TASKS[task][0]("cells", {"groupby": "a"}) for task in ("markers", "robustness")
    )
    assert got == [("cells", {"groupby": "a"}), ("cells", {"groupby": "a", "verbose": True})]
    assert (
        list(markers.frames) == ["markers"]
        and markers.frames["markers"].index.tolist() == ["G1"]
        and markers.about == {}
    )
    assert {
        name: (frame.columns.tolist(), frame.index.tolist())
        for name, frame in robustness.frames.items()
    } == {
        "summary": (["summary"], [0]),
        "tests": (["tests"], [0]),
        "false_positives": (["false"], [0]),
        "runs": (["runs"], [0, 1]),
        "nulls": (["nulls"], [0, 1]),
        "full": (["full"], [0, 1]),
    }
    assert robustness.about == {
        "settings": {"seed": 3},
        "notes": ["a note"],
        "warnings": ["a warning"],
    }


def test_fine_tuning_gives_a_model_and_its_card(monkeypatch):
    monkeypatch.setattr("scmamba.training.finetune_on", lambda adata, **options: (adata, options))
    assert TASKS["finetune"][0]("cells", {"steps": 2}) == ("cells", {"steps": 2, "verbose": True})


# -- settings ------------------------------------------------------------------------------------------


def test_what_a_server_is_told_arrives_at_its_workers():
    told = Settings(Path("/data"), "0.0.0.0", 1, "m", 2, 3, 4, 5, 6, 7, 8, 9.5, 10, 11.5)
    assert Settings.load(told.dump()) == told and isinstance(Settings.load(told.dump()).data, Path)
    plain = Settings(Path("x"))
    assert (
        plain.host,
        plain.port,
        plain.model,
        plain.workers,
        plain.max_upload,
        plain.max_cells,
        plain.max_genes,
    ) == ("127.0.0.1", 8642, "brain-mini", 1, 4 * 1024**3, 1_000_000, 100_000)
    assert (
        plain.max_seconds,
        plain.max_memory,
        plain.jobs_per_user,
        plain.keep_days,
        plain.requests_per_minute,
        plain.patience,
    ) == (21_600, 0, 20, 7.0, 600, 60.0)


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        ("127.0.0.1", False),
        ("127.8.8.8", False),
        ("localhost", False),
        ("::1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("192.168.0.7", True),
        ("gpu-box", True),
    ],
)
def test_whoever_listens_beyond_this_machine_needs_tokens(host, needed):
    assert Settings(Path("x"), host).needs_token is needed


@pytest.fixture
def started(monkeypatch):
    """Run the command with these arguments; the settings and what uvicorn would be told."""
    import uvicorn

    def run(*arguments: str):
        found = []
        monkeypatch.setattr(
            "scmamba.serve.app.create_app", lambda settings: found.append(settings) or "app"
        )
        monkeypatch.setattr(uvicorn, "run", lambda app, **options: found.append(options))
        monkeypatch.setattr(sys, "argv", ["serve", *arguments])
        command.main()
        return found

    return run


def test_the_command_without_options_is_the_settings_without_any(started, tmp_path):
    settings, uvicorn = started("--data", str(tmp_path / "deep" / "data"))
    assert settings == Settings(tmp_path / "deep" / "data") and settings.data.is_dir()
    assert (uvicorn["host"], uvicorn["port"], uvicorn["ssl_certfile"], uvicorn["ssl_keyfile"]) == (
        "127.0.0.1",
        8642,
        None,
        None,
    )
    assert uvicorn["http"] == "h11" and uvicorn["server_header"] is False


def test_every_option_of_the_command_reaches_its_setting(started, tmp_path):
    Tokens(tmp_path).add("ann", 1)
    settings, uvicorn = started(
        "--data",
        str(tmp_path),
        "--host",
        "0.0.0.0",
        "--port",
        "1",
        "--model",
        "brain-mini",
        "--workers",
        "2",
        "--max-upload",
        "0.5",
        "--max-cells",
        "4",
        "--max-seconds",
        "6",
        "--max-memory",
        "1.5",
        "--jobs-per-user",
        "8",
        "--keep-days",
        "9.5",
        "--requests-per-minute",
        "10",
        "--patience",
        "11.5",
        "--tls-cert",
        "cert",
        "--tls-key",
        "key",
    )
    assert settings == Settings(
        tmp_path, "0.0.0.0", 1, "brain-mini", 2, 1 << 29, 4, 100_000, 6, 3 << 29, 8, 9.5, 10, 11.5
    )
    assert (uvicorn["host"], uvicorn["port"], uvicorn["ssl_certfile"], uvicorn["ssl_keyfile"]) == (
        "0.0.0.0",
        1,
        Path("cert"),
        Path("key"),
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--model", "none"], "no model 'none'"), (["--host", "0.0.0.0"], "tokens are needed")],
)
def test_what_keeps_a_server_from_starting(started, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as refused:
        started("--data", str(tmp_path), *arguments)
    assert refused.value.code == 2 and words in capsys.readouterr().err


# -- tokens --------------------------------------------------------------------------------------------


def test_a_token_is_its_users_until_its_end(tmp_path, monkeypatch):
    kept = Tokens(tmp_path / "data")
    assert kept.entries() == [] and kept.user_of("x") == (None, "this token is not known here")
    before = time.time()
    ann, bob = kept.add("ann", 2), kept.add("bob", 1)
    first = kept.entries()[0]
    assert (
        first["user"] == "ann"
        and first["hash"] == hashlib.sha256(ann.encode()).hexdigest()
        and len(ann) == 43
        and ann != bob
    )
    assert before + 2 * 86400 <= first["ends"] <= time.time() + 2 * 86400
    assert (
        kept.user_of(ann) == ("ann", "")
        and kept.user_of(bob) == ("bob", "")
        and kept.user_of(ann[:-1])[0] is None
    )
    file = tmp_path / "data" / "tokens.json"
    assert ann not in file.read_text() and stat.S_IMODE(file.stat().st_mode) == 0o600
    real = time.time
    monkeypatch.setattr(tokens.time, "time", lambda: real() + 86400 + 5)
    assert (
        kept.user_of(ann)[0] == "ann"
        and "expired" in kept.user_of(bob)[1]
        and kept.user_of(bob)[0] is None
    )


def test_tokens_are_withdrawn_while_the_server_runs(tmp_path):
    server, operator = Tokens(tmp_path), Tokens(tmp_path)
    ann, again, bob = operator.add("ann", 1), operator.add("ann", 1), operator.add("bob", 1)
    assert [server.user_of(t)[0] for t in (ann, again, bob)] == ["ann", "ann", "bob"]
    time.sleep(0.02)  # the file's time must differ
    assert operator.remove("ann") == 2 and operator.remove("ann") == 0
    assert [server.user_of(t)[0] for t in (ann, again, bob)] == [None, None, "bob"]


@pytest.mark.parametrize(
    ("name", "fine"),
    [
        ("a.b-c_d@e", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("", False),
        ("a b", False),
        ("../a", False),
    ],
)
def test_names_of_users(tmp_path, name, fine):
    if fine:
        assert Tokens(tmp_path).user_of(Tokens(tmp_path).add(name, 1))[0] == name
    else:
        with pytest.raises(ValueError, match="letters"):
            Tokens(tmp_path).add(name, 1)


def test_the_operators_command(tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["tokens", *arguments, "--data", str(tmp_path)])
        tokens.main()
        return capsys.readouterr().out.strip()

    token = run("add", "ann")
    assert Tokens(tmp_path).user_of(token)[0] == "ann"
    assert (
        abs(
            json.loads((tmp_path / "tokens.json").read_text())[0]["ends"] - time.time() - 90 * 86400
        )
        < 600
    )
    run("add", "bob", "--days", "3")
    day = time.strftime("%Y-%m-%d", time.localtime(Tokens(tmp_path).entries()[1]["ends"]))
    assert run("list").splitlines()[1] == f"bob\tuntil {day}"
    assert run("remove", "ann") == "1 tokens withdrawn" and [
        e["user"] for e in Tokens(tmp_path).entries()
    ] == ["bob"]
    with pytest.raises(SystemExit):
        run("add")
