"""Rules of the server: options of each task, addresses that need tokens, the owners of tokens, and the command line."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from serving import free_port, plain_bytes

import scmamba
from scmamba.serve import __main__ as command
from scmamba.serve import tokens
from scmamba.serve import verbs as tasks
from scmamba.serve.connections import raise_file_limit
from scmamba.serve.routes.jobs import _accept
from scmamba.serve.services import make_services
from scmamba.serve.settings import Settings
from scmamba.serve.tokens import Tokens
from scmamba.serve.uploads import Upload
from scmamba.serve.verbs import TASKS, WITH_MODEL, check_options, renamed_options, schema
from scmamba.utils.errors import ScMambaError

# -- limits of the process ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "connections", "raised", "fit"),
    [
        ((64, 5000), 1000, 2200, 1000),
        ((64, 500), 1000, 500, 150),
        ((64, 150), 1000, 150, 16),
        ((3000, 5000), 1000, 3000, 1000),
        ((2300, 5000), 20, 2300, 20),
    ],
)
def test_files_that_may_be_open(limits, connections, raised, fit):
    """In a process of its own, because a hard limit cannot be raised again."""
    code = "import resource as r; from scmamba.serve.connections import raise_file_limit\n"
    code += f"r.setrlimit(r.RLIMIT_NOFILE, {limits}); fit = raise_file_limit({connections})\n"
    code += "print(fit, *r.getrlimit(r.RLIMIT_NOFILE))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert [int(n) for n in done.stdout.split()] == [fit, raised, limits[1]]


def test_files_that_may_be_open_without_a_limit(monkeypatch):
    """Only some systems have none, so what the kernel says is replaced."""
    now, none = [64, resource.RLIM_INFINITY], resource.RLIM_INFINITY
    monkeypatch.setattr(resource, "getrlimit", lambda _: tuple(now))
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: now.__setitem__(slice(None), new))
    assert raise_file_limit(1000) == 1000 and now == [2200, none]
    now[0] = none
    assert raise_file_limit(1000) == 1000 and now == [none, none]


# -- options -------------------------------------------------------------------------------------------

BASE = {"markers": {"groupby": "a", "group1": "b"}, "robustness": {"groupby": "a"}}
NUMBERS = [
    (task, name)
    for task, about in TASKS.items()
    for name, option in about.options.items()
    if {int, float} & set(option.kinds)
]


def today(task, **options):
    """Options under the current names of their verbs."""
    return renamed_options(task, {**BASE.get(task, {}), **options})[0]


@pytest.mark.parametrize(("task", "name"), NUMBERS)
def test_numbers_are_within_their_limits(task, name):
    option = TASKS[task].options[name]
    low, high, edge = option.minimum, option.maximum, int(option.exclusive)
    step = 1 if float not in option.kinds else 0.01
    if option.choices is not None:
        return
    for value in (low + edge * step, high - edge * step):
        assert check_options(task, today(task, **{name: value})) is None
    for value in (low - step, high + max(step, high * 1e-6)):
        assert f"option '{name}' is" in check_options(task, today(task, **{name: value}))


def test_markers_of_every_named_group():
    assert check_options("markers", {"groupby": "a", "groups": ["b", "c"]}) is None
    assert "needs the option 'group1'" in check_options("markers", {"groupby": "a"})
    assert "needs the option 'group1'" in check_options("markers", {"groupby": "a", "groups": []})
    both = check_options("markers", {"groupby": "a", "group1": "b", "groups": ["b"]})
    assert "omit 'group1'" in both


def test_the_server_has_additional_limits():
    limits = {n: (o.minimum, o.maximum) for t in TASKS.values() for n, o in t.options.items()}
    assert limits["seed"] == (0, 2**32 - 1)
    assert limits["batch_size"][1] == 65_536 and limits["permutations"][1] == 10_000
    assert limits["steps"] == (1, 10**6)


def test_old_names_of_options_work_and_warn(monkeypatch):
    option = tasks.ServedOption
    new = {
        "batch_key": option((str,)),
        "adapt_steps": option((int,), 0, 1000),
        "method": option((str,), choices=("ensemble", "masked")),
    }
    monkeypatch.setitem(tasks.TASKS, "impute", tasks.Task(TASKS["impute"].run, new))
    found, warned, problem = renamed_options(
        "impute", {"batch": "donor", "adapt": False, "method": "rates"}
    )
    assert found == {"batch_key": "donor", "adapt_steps": 0, "method": "ensemble"} and not problem
    assert len(warned) == 3 and "'batch' was renamed to 'batch_key'" in warned[0]
    assert renamed_options("impute", {"adapt": True})[0] == {}  # the default number of steps
    assert renamed_options("impute", {"adapt": 5})[0] == {"adapt_steps": 5}
    assert renamed_options("impute", {"method": "masked"}) == ({"method": "masked"}, [], None)
    assert "both" in renamed_options("impute", {"batch": "a", "batch_key": "b"})[2]


def test_options_are_derived_from_the_dataclass_of_the_verb():
    from dataclasses import dataclass

    from scmamba.utils.options import Options, option

    @dataclass(frozen=True)
    class Example(Options):
        steps: int = option(7, "Steps.", minimum=0, exclusive=True)
        method: str = option("a", "Method.", choices=("a", "b"))
        names: list[str] | None = option(None, "Names.")
        rate: float = option(0.5, "Rate.", maximum=2)
        device: str | None = option(None, "Where.")
        secret: str | None = option(None, "An object.", python_only=True)

    found = tasks._from_class(Example)
    assert set(found) == {"steps", "method", "names", "rate"}
    steps = found["steps"]
    assert (steps.minimum, steps.maximum, steps.exclusive, steps.default) == (0, 10**6, True, 7)
    assert found["method"].choices == ("a", "b") and found["names"].kinds == (list,)
    assert found["rate"].kinds == (int, float) and found["rate"].maximum == 2


def test_the_schema_describes_the_checks():
    for task in TASKS:
        for about in schema(task):
            option = TASKS[task].options[about["name"]]
            assert about["types"] == [k.__name__ for k in option.kinds]
            assert about.get("maximum") == option.maximum and json.dumps(about)


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
        ("impute", {"adapt": 1.5}, "is float; it must be"),
        ("impute", {"min_value": float("nan")}, "must lie between"),
        ("impute", {"layer": "\ud800"}, "half a character"),
        ("annotate", {"markers": {"A": ["X", "\udfff"]}}, "half a character"),
        ("annotate", {"markers": {"A": 1}}, "gene names for each cell type"),
        ("annotate", {"markers": {"A": ["X"], "B": ["Y", 1]}}, "gene names"),
        ("annotate", {"markers": "/etc/passwd"}, "expected one of 'panel'"),
        ("annotate", {"labels": ["a", 1]}, "list of names"),
        ("robustness", {"groupby": "a", "ratios": [0.5, 0]}, "shares"),
        ("robustness", {"groupby": "a", "ratios": [1.01]}, "shares"),
        ("robustness", {"groupby": "a", "ratios": [True]}, "shares"),
        ("robustness", {"groupby": "a", "ratios": [0.5] * 101}, "shares"),
        ("robustness", {"groupby": "a", "layers": [1]}, "names"),
        ("robustness", {}, "needs the option '"),
        ("markers", {"groupby": "a"}, "needs the option 'group1'"),
        ("markers", {"groupby": None, "group1": "b"}, "'groupby'"),
        ("finetune", {"model": "x"}, "no option 'model'"),
        ("robustness", {"groupby": "a", "n_jobs": 2}, "no option 'n_jobs'"),
    ],
)
def test_invalid_options(task, options, words):
    if isinstance(options, dict):
        options = renamed_options(task, options)[0]
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
        ("annotate", {"markers": "panel", "region": "cortex"}),
        ("robustness", {"groupby": "a", "ratios": [0.01, 1], "layers": ["counts"]}),
        ("robustness", {"groupby": "a", "ratios": [0.5] * 100}),
        (
            "markers",
            {
                "groupby": "a",
                "group1": ["b"],
                "group2": "c",
                "only_pos": True,
                "logfc_threshold": 0.5,
                "genes": ["X"],
            },
        ),
    ],
)
def test_valid_options(task, options):
    found, _, problem = renamed_options(task, options)
    assert problem is None and check_options(task, found) is None


def test_no_task_has_options_for_files_or_machines():
    reachable = {name for task in TASKS.values() for name in task.options}
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
    ("task", "verb"),
    [
        ("impute", "impute"),
        ("embed", "embed"),
        ("doublets", "find_doublets"),
        ("annotate", "annotate"),
    ],
)
def test_a_task_is_its_verb(monkeypatch, task, verb):
    got = []
    monkeypatch.setattr(
        scmamba,
        verb,
        lambda adata, **options: got.append((adata, options)) or "answer",
        raising=False,
    )
    assert TASKS[task].run("cells", {"seed": 3}) == "answer" and got == [
        ("cells", {"verbose": True, "seed": 3})
    ]


def test_markers_and_robustness_are_returned_as_tables(monkeypatch):
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
    frame.attrs = {"values": "X holds counts", "read_as": "counts", "more": 1}
    monkeypatch.setattr(
        "scmamba.deg.find_markers", lambda adata, **options: got.append((adata, options)) or frame
    )
    monkeypatch.setattr(
        "scmamba.deg.robustness", lambda adata, **options: got.append((adata, options)) or Found()
    )
    markers, robustness = (
        TASKS[task].run("cells", {"groupby": "a"}) for task in ("markers", "robustness")
    )
    assert got == [("cells", {"groupby": "a"}), ("cells", {"groupby": "a", "verbose": True})]
    assert (
        list(markers.frames) == ["markers"]
        and markers.frames["markers"].index.tolist() == ["G1"]
        and markers.about == {"values": "X holds counts", "read_as": "counts"}
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


def test_fine_tuning_returns_a_model_and_its_card(monkeypatch):
    monkeypatch.setattr("scmamba.training.finetune_on", lambda adata, **options: (adata, options))
    assert TASKS["finetune"].run("cells", {"steps": 2}) == ("cells", {"steps": 2, "verbose": True})


# -- settings ------------------------------------------------------------------------------------------


def test_settings_reach_the_workers():
    given = Settings(
        Path("/data"), "0.0.0.0", 1, "m", 2, 3, 4, 5, 6, 7, 8, 9.5, 10, 11.5, "required", "::1"
    )
    assert Settings.load(given.dump()) == given and isinstance(
        Settings.load(given.dump()).data, Path
    )
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
def test_servers_for_other_machines_need_tokens(tmp_path, host, needed):
    assert Settings(tmp_path, host).needs_token is needed
    assert Settings(tmp_path, host, tokens="required").needs_token
    assert Settings(tmp_path, host, proxy="127.0.0.1").needs_token
    Tokens(tmp_path).add("ann", 1)
    assert Settings(tmp_path, host).needs_token
    assert not Settings(tmp_path, host, tokens="none").needs_token


def test_the_proxy_is_an_address_or_networks():
    one = Settings(Path("x"), proxy="10.0.0.5")
    assert one.is_proxy("10.0.0.5") and not one.is_proxy("10.0.0.6") and not one.is_proxy("name")
    many = Settings(Path("x"), proxy="10.0.0.0/8, ::1")
    assert many.is_proxy("10.9.9.9") and many.is_proxy("::1") and not many.is_proxy("11.0.0.1")
    assert not Settings(Path("x")).is_proxy("127.0.0.1")


@pytest.fixture
def started(monkeypatch):
    """Run the command with these arguments; the settings and uvicorn's options."""
    import uvicorn

    def run(*arguments: str):
        found = []

        class Recorded:
            started = True

            def __init__(self, config):
                self.config = config

            def run(self, sockets):
                (listener,) = sockets
                address = listener.getsockname()
                socket.create_connection(address).close()  # the port is taken: it listens
                listener.close()
                app, options = self.config
                found.append((app, options | {"address": address}))

        monkeypatch.setattr(uvicorn, "Config", lambda app, **options: (app, options))
        monkeypatch.setattr(uvicorn, "Server", Recorded)
        monkeypatch.setattr(sys, "argv", ["serve", *arguments])
        monkeypatch.setattr("scmamba.serve.audit.start_logging", lambda folder: None)
        before = os.umask(0o022)
        try:
            command.main()
        finally:
            os.umask(before)
        app, options = found[0]
        return app.state.services.settings, options

    return run


def test_the_command_without_options_has_the_default_settings(started, tmp_path, capsys):
    port = free_port()
    settings, uvicorn = started("--data", str(tmp_path / "deep" / "data"), "--port", str(port))
    assert settings == Settings(tmp_path / "deep" / "data", port=port)
    assert stat.S_IMODE(settings.data.stat().st_mode) == 0o700
    assert uvicorn["address"] == ("127.0.0.1", port)
    assert (uvicorn["ssl_certfile"], uvicorn["ssl_keyfile"]) == (None, None)
    assert uvicorn["server_header"] is False and uvicorn["proxy_headers"] is False
    output = capsys.readouterr().err
    token = (settings.data / "local-token").read_text().strip()
    assert f"http://127.0.0.1:{port}/#token={token}" in output
    for word in ("TLS", "tokens", "limits", "data folder", "confinement"):
        assert word in output


def test_every_option_of_the_command_reaches_its_setting(started, tmp_path):
    Tokens(tmp_path).add("ann", 1)
    for name in ("cert", "key"):
        (tmp_path / name).touch()
    given = {
        "--data": str(tmp_path),
        "--host": "0.0.0.0",
        "--port": str(free_port()),
        "--workers": "2",
        "--max-upload": "0.5",
        "--max-cells": "4",
        "--max-seconds": "6",
        "--max-memory": "1.5",
        "--jobs-per-user": "8",
        "--keep-days": "9.5",
        "--requests-per-minute": "10",
        "--patience": "11.5",
        "--tokens": "required",
        "--proxy": "10.0.0.0/8",
        "--user-quota": "2",
        "--max-connections": "100",
        "--head-seconds": "3.5",
        "--requests-at-once": "7",
        "--streams-per-user": "5",
        "--max-streams": "50",
        "--tls-cert": str(tmp_path / "cert"),
        "--tls-key": str(tmp_path / "key"),
    }
    settings, uvicorn = started(*[w for pair in given.items() for w in pair], "--no-confinement")
    first = (tmp_path, "0.0.0.0", int(given["--port"]), "brain-mini", 2, 1 << 29, 4, 100_000, 6)
    expected = (
        3 << 29,
        8,
        9.5,
        10,
        11.5,
        "required",
        "10.0.0.0/8",
        2 << 30,
        100,
        3.5,
        7,
        5,
        50,
        False,
    )
    assert settings == Settings(*first, *expected)
    assert uvicorn["ssl_certfile"] == tmp_path / "cert"
    assert uvicorn["ssl_keyfile"] == tmp_path / "key"


def test_port_0_is_a_free_port_that_is_printed(started, tmp_path, capsys):
    settings, uvicorn = started("--data", str(tmp_path), "--port", "0")
    assert settings.port == uvicorn["address"][1] > 0
    assert f"http://127.0.0.1:{settings.port}/#token=" in capsys.readouterr().err


def test_a_port_in_use_is_refused(started, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit) as refused:
        started("--data", str(tmp_path), "--port", str(other.getsockname()[1]))
    assert refused.value.code == 2
    assert "cannot be listened on: Address already in use" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "none"], "no model 'none'"),
        (["--host", "0.0.0.0"], "--insecure"),
        (["--host", "0.0.0.0", "--insecure"], "tokens are needed"),
        (["--tokens", "required"], "tokens are needed"),
        (["--proxy", "127.0.0.1"], "tokens are needed"),
        (["--proxy", "box"], "network"),
        (["--host", "0.0.0.0", "--insecure", "--tokens", "none"], "only this machine"),
        (["--tokens", "none", "--proxy", "127.0.0.1"], "only this machine"),
        (["--tls-cert", "nowhere", "--tls-key", "nowhere"], "cannot be read"),
        (["--tls-cert", "nowhere"], "belong together"),
        (["--port", "99999"], "65535"),
        (["--host", "203.0.113.7", "--insecure"], "tokens are needed"),
    ],
)
def test_faults_that_prevent_the_start(started, tmp_path, capsys, arguments, words):
    with pytest.raises(SystemExit) as refused:
        started("--data", str(tmp_path), *arguments)
    assert refused.value.code == 2 and words in capsys.readouterr().err


def test_a_start_on_a_full_disk_names_it(started, tmp_path, capsys, monkeypatch):
    (tmp_path / "queue.sqlite").write_bytes(b"")
    monkeypatch.setattr(command, "has_room", lambda folder: False)

    def full(settings):
        raise ScMambaError("The job queue is unavailable (disk I/O error).")

    monkeypatch.setattr("scmamba.serve.app.create_app", full)
    with pytest.raises(SystemExit):
        started("--data", str(tmp_path))
    assert "The disk of the data folder is full" in capsys.readouterr().err


def test_a_folder_that_others_can_read_is_refused(started, tmp_path, capsys):
    for mode, kept in ((0o755, False), (0o750, False), (0o710, False), (0o700, True)):
        tmp_path.chmod(mode)
        reason = command.prepare_folder(tmp_path)
        assert (reason is None) is kept and (kept or "chmod 700" in reason)
    (tmp_path / "file").touch()
    assert "cannot be used" in command.prepare_folder(tmp_path / "file" / "data")


@pytest.mark.parametrize("name", ["uploads", "jobs", "parts", "references", "workers"])
def test_a_file_in_the_place_of_a_folder_is_named_at_the_start(started, tmp_path, capsys, name):
    (tmp_path / name).touch()
    with pytest.raises(SystemExit):
        started("--data", str(tmp_path))
    assert f"{tmp_path / name} is no folder; move it away" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["queue.sqlite", "tokens.json", "audit.log", "local-token"])
def test_a_folder_in_the_place_of_a_file_is_named_at_the_start(started, tmp_path, capsys, name):
    (tmp_path / name).mkdir()
    with pytest.raises(SystemExit):
        started("--data", str(tmp_path))
    assert f"{tmp_path / name} is no file; move it away" in capsys.readouterr().err


def test_damaged_tokens_are_named_at_the_start_and_by_the_operators_command(
    started, tmp_path, capsys, monkeypatch
):
    (tmp_path / "tokens.json").write_text("[{")
    with pytest.raises(SystemExit):
        started("--data", str(tmp_path))
    assert "tokens.json is damaged" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["tokens", "list", "--data", str(tmp_path)])
    with pytest.raises(SystemExit) as refused:
        tokens.main()
    assert refused.value.code == 2 and "tokens.json is damaged" in capsys.readouterr().err


# -- tokens --------------------------------------------------------------------------------------------


def test_a_token_belongs_to_its_user_until_it_expires(tmp_path, monkeypatch):
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


def test_tokens_are_revoked_while_the_server_runs(tmp_path):
    server, operator = Tokens(tmp_path), Tokens(tmp_path)
    ann, again, bob = operator.add("ann", 1), operator.add("ann", 1), operator.add("bob", 1)
    assert [server.user_of(t)[0] for t in (ann, again, bob)] == ["ann", "ann", "bob"]
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
    for wrong in (
        ("add",),
        ("remove", "misspelt"),
        ("add", "cem", "--days", "nan"),
        ("add", "cem", "--days", "inf"),
        ("add", "cem", "--days", "0"),
        ("add", "a b"),
    ):
        with pytest.raises(SystemExit) as refused:
            run(*wrong)
        assert refused.value.code == 2
    assert [e["user"] for e in Tokens(tmp_path).entries()] == ["bob"]
    events = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
    assert [(e["event"], e["user"]) for e in events] == [
        ("token added", "ann"),
        ("token added", "bob"),
        ("token withdrawn", "ann"),
    ]


def test_tokens_created_concurrently_are_all_stored(tmp_path):
    command_line = [sys.executable, "-m", "scmamba.serve.tokens", "add"]
    started = [
        subprocess.Popen(
            [*command_line, f"user{i}", "--data", str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        for i in range(6)
    ]
    made = [process.communicate(timeout=300)[0].strip() for process in started]
    assert [Tokens(tmp_path).user_of(token)[0] for token in made] == [f"user{i}" for i in range(6)]


# -- one request, twice at once --------------------------------------------------------------------------


def test_a_request_that_comes_twice_at_once_is_one_job(tmp_path):
    """Both found no such job before they sent their files; one of the two files stays."""
    shared = make_services(Settings(tmp_path))
    (tmp_path / "uploads").mkdir(exist_ok=True)
    sent = [Upload(tmp_path / "uploads" / name, 1, "digest") for name in ("first", "second")]
    for upload in sent:
        upload.path.write_bytes(plain_bytes())
    order = ("a" * 24, "embed", "brain-mini", {}, [])
    found = [asyncio.run(_accept(shared, "ann", order, upload, "sheet")) for upload in sent]
    about = {"kind": "scmb", "cells": 2, "genes": 3}
    assert found[0] == {"id": order[0], "state": "queued", **about}
    assert found[1] == {"id": order[0], "state": "queued"}
    assert [job["id"] for job in shared.queue.of_user("ann")] == [order[0]]
    assert shared.queue.get(order[0])["upload"] == str(sent[0].path)
    assert [upload.path.exists() for upload in sent] == [True, False]
