"""The files of ``deploy/``: parsed, and their commands run, with host, port and folder replaced by this machine's."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest

yaml = pytest.importorskip("yaml")
pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from slurm_cluster import Cluster, is_possible

from scmamba.client.client import Client
from scmamba.datasets import brain_cohort
from scmamba.imputation import impute
from scmamba.serve import supervisor
from scmamba.serve.tokens import Tokens
from scmamba.utils.errors import ScMambaError

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"


class Running:
    """A container's command on a free port of this machine, and the processes that it starts."""

    def __init__(self, command: list[str], data: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        here = {
            "python": sys.executable,
            "0.0.0.0": "127.0.0.1",
            "8642": str(port),
            "/data": str(data),
            "/data/scmamba": str(data / "scmamba"),
            "172.28.42.0/24": "127.0.0.1",
            "10.0.0.0/8": "127.0.0.1",
        }
        self.url = f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(
            [here.get(word, word) for word in command],
            start_new_session=True,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(900):
            try:
                if self.get("/v2/health/live") == 200:
                    return
            except OSError:
                time.sleep(0.1)
        raise AssertionError("the server did not start")

    def get(self, path: str, token: str | None = None) -> int:
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return int(answer.status)
        except urllib.error.HTTPError as error:
            return error.code

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def compose() -> dict[str, Any]:
    return dict(yaml.safe_load((DEPLOY / "docker-compose.yaml").read_text()))


def kubernetes() -> dict[str, dict[str, Any]]:
    return {
        item["kind"]: item for item in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    }


def test_the_compose_file_is_consistent():
    file = compose()
    for service in file["services"].values():
        assert {v.split(":")[0] for v in service["volumes"]} <= set(file["volumes"]) and set(
            service["networks"]
        ) <= set(file["networks"])
    servers = [name for name, s in file["services"].items() if "scmamba.serve" in s["command"]]
    assert len(servers) == 2 and all(
        f"{name}:8642" in file["services"]["proxy"]["command"] for name in servers
    )
    build = file["services"]["first"]["build"]
    assert (DEPLOY / build["context"] / build["dockerfile"]).is_file()
    for name in servers:  # only the proxy can be reached from outside, and the folder is shared
        assert "ports" not in file["services"][name] and file["services"][name]["volumes"] == [
            "jobs:/data"
        ]
    copied = re.findall(r"^COPY (.+) \S+$", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    assert all((DEPLOY.parent / source).exists() for line in copied for source in line.split())


def test_the_image_starts_from_a_digest():
    bases = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), flags=re.M)
    assert bases and all(re.search(r"@sha256:[0-9a-f]{64}$", base) for base in bases)


def test_the_image_installs_pinned_packages_with_hashes():
    text = (DEPLOY / "requirements.lock").read_text()
    assert "--require-hashes -r requirements.lock" in (DEPLOY / "Dockerfile").read_text()
    entries = re.split(r"\n(?=[a-z])", text.partition("\n")[2].strip())
    pinned = {}
    for entry in entries:
        name, version = re.match(r"([a-z0-9._-]+)(?:\[\w+\])?==(\S+)", entry).groups()
        assert "--hash=sha256:" in entry, name
        pinned[name] = version
    project = (DEPLOY.parent / "pyproject.toml").read_text()
    for section in (
        r"^dependencies = \[(.*?)^\]",
        r"^serve = \[(.*?)\]$",
        r"^postgres = \[(.*?)\]$",
    ):
        (found,) = re.findall(section, project, flags=re.M | re.S)
        needed = {n.lower().replace("_", "-") for n in re.findall(r'"([A-Za-z0-9_-]+)', found)}
        assert needed <= set(pinned)


@pytest.mark.slow
def test_a_second_server_continues_the_jobs_of_the_first(tmp_path):
    services, token = compose()["services"], Tokens(tmp_path).add("ann", 1)
    cells = brain_cohort(20, n_donors=2, seed=3)[:, ::15].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    first = Running(services["first"]["command"], tmp_path)
    try:
        jobs = [
            Client(first.url, token).submit("embed", tmp_path / "cells.h5ad", force=True)
            for _ in range(2)
        ]
    finally:
        first.kill()
    second = Running(services["second"]["command"], tmp_path)
    try:
        client = Client(second.url, token)
        for job in jobs:
            assert client.wait(job, verbose=False)["state"] == "done"
            assert client.fetch(job, tmp_path / "result.scmb", format="scmb").stat().st_size > 1000
    finally:
        second.kill()


@pytest.mark.slow
def test_the_pod_creates_a_token_once_answers_probes_and_accepts_its_owner(tmp_path):
    pod = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    make = [
        word.replace("/data", str(tmp_path)).replace("python", sys.executable)
        for word in pod["initContainers"][0]["command"]
    ]
    for _ in range(2):  # on the second start a token exists
        subprocess.run(make, check=True, timeout=120)
    data = tmp_path / "scmamba"
    token = (data / "first-token").read_text().strip()
    assert len(Tokens(data).entries()) == 1
    assert (data / "first-token").stat().st_mode & 0o077 == 0 == data.stat().st_mode & 0o077
    container = pod["containers"][0]
    server = Running(container["command"], tmp_path)
    try:
        for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
            assert server.get(container[probe]["httpGet"]["path"]) == 200
        assert server.get("/v2/models", token) == 200 and server.get("/v2/models", "wrong") == 401
        assert container["resources"]["limits"]["nvidia.com/gpu"] == int(
            container["command"][container["command"].index("--workers") + 1]
        )
    finally:
        server.kill()


def test_the_manifest_is_valid_for_kubernetes():
    items = kubernetes()
    assert set(items) == {
        "Namespace",
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "NetworkPolicy",
    }
    pod = items["Deployment"]["spec"]["template"]
    assert items["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    claims = {
        v["persistentVolumeClaim"]["claimName"]
        for v in pod["spec"]["volumes"]
        if "persistentVolumeClaim" in v
    }
    assert claims == {items["PersistentVolumeClaim"]["metadata"]["name"]}
    assert (
        items["Deployment"]["spec"]["replicas"] == 1
        and items["Deployment"]["spec"]["strategy"]["type"] == "Recreate"
    )  # SQLite
    validate = pytest.importorskip("kubernetes_validate")
    for item in items.values():
        validate.validate(item, validate.latest_version(), strict=True)


def slurm(script: str, tmp_path: Path, *arguments: str, **variables: str) -> list[str]:
    """The commands that a script passes to ``srun``, on a machine that imitates a cluster."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, text in {
        "srun": 'printf "%s\\n" "$@"',
        "scontrol": "printf 'node1\\nnode2\\n'",
    }.items():
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{bin}:{os.environ['PATH']}", **variables}
    done = subprocess.run(
        ["bash", str(DEPLOY / script), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_slurm_job_of_many_nodes_passes_valid_options_to_torchrun(tmp_path):
    from torch.distributed.run import parse_args

    words = slurm(
        "impute.slurm",
        tmp_path,
        "in.h5ad",
        "out.h5ad",
        "--seed",
        "3",
        SLURM_JOB_NODELIST="node[1-2]",
        SLURM_JOB_NUM_NODES="2",
        SLURM_GPUS_ON_NODE="4",
        SLURM_JOB_ID="77",
    )
    options = parse_args(words[words.index("torchrun") + 1 :])
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint, options.module) == (
        "2",
        "4",
        "node1:29500",
        True,
    )
    assert [options.training_script, *options.training_script_args] == [
        "scmamba",
        "impute",
        "in.h5ad",
        "-o",
        "out.h5ad",
        "--seed",
        "3",
    ]


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash here")
def test_the_slurm_job_of_the_server_has_a_worker_for_each_gpu(tmp_path):
    words = slurm("serve.slurm", tmp_path, SCMAMBA_DATA="/jobs", SLURM_GPUS_ON_NODE="4")
    command = " ".join(words)
    assert "-m scmamba.serve --host 0.0.0.0 --port 8642 --data /jobs --workers 4" in command


@pytest.fixture(scope="module")
def cluster():
    if not is_possible():
        pytest.skip("a Slurm cluster takes root and the packages munge and slurm-wlm")
    with tempfile.TemporaryDirectory(
        prefix="slurm-", dir="/tmp"
    ) as folder:  # munge refuses folders that others can write to
        made = Cluster(Path(folder))
        try:
            if not made.is_up():
                pytest.skip(
                    "Slurm does not come up here (containers without mount namespaces or cgroups)"
                )
            yield made
        finally:
            made.stop()


@pytest.mark.slow
def test_a_real_slurm_job_imputes_one_file_on_two_nodes(cluster, tmp_path):
    cells = brain_cohort(60, n_donors=2, seed=3)[:, ::4].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    # Less memory and fewer cores than in the script; everything else is as in the script.
    cluster.run(
        "sbatch",
        "--wait",
        "--mem=0",
        "--cpus-per-task=1",
        "--gpus-per-node=1",
        "--output=job-%j.txt",
        str(DEPLOY / "impute.slurm"),
        str(tmp_path / "cells.h5ad"),
        str(tmp_path / "out.h5ad"),
        "--adapt-steps",
        "0",
        "--force",
        seconds=300,
    )
    found = anndata.read_h5ad(tmp_path / "out.h5ad").layers["scmamba"]
    expected = impute(cells, adapt_steps=0, force=True, verbose=False, copy=True).layers["scmamba"]
    np.testing.assert_allclose(found.toarray(), expected.toarray(), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_the_next_slurm_job_of_the_server_continues_its_jobs(cluster, tmp_path):
    token = Tokens(tmp_path / "jobs").add("ann", 1)
    brain_cohort(20, n_donors=2, seed=3)[:, ::15].write_h5ad(tmp_path / "cells.h5ad")
    names = []
    for turn in range(2):
        port = cluster.free_port()
        job = cluster.run(
            "sbatch",
            "--parsable",
            "--mem=0",
            "--cpus-per-task=1",
            "--gpus=1",
            "--output=job-%j.txt",
            str(DEPLOY / "serve.slurm"),
            SCMAMBA_DATA=str(tmp_path / "jobs"),
            SCMAMBA_HOST="127.0.0.1",
            SCMAMBA_PORT=str(port),
        ).strip()
        client = Client(f"http://127.0.0.1:{port}", token)
        until = time.monotonic() + 180  # the client itself repeats a request for a while
        while True:
            with contextlib.suppress(ScMambaError, OSError):
                assert "brain-mini" in client.models()
                break
            assert time.monotonic() < until, f"the server of Slurm job {job} does not answer"
            time.sleep(0.2)
        names.append(client.submit("embed", tmp_path / "cells.h5ad", force=True))
        if turn == 1:
            assert all(client.wait(name, verbose=False)["state"] == "done" for name in names)
        cluster.run("scancel", "--signal=TERM", "--batch", job)  # as at the end of its time limit
        for _ in range(150):
            if not cluster.run("squeue", "--noheader", "--jobs", job):
                break
            time.sleep(0.2)
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=5).close()


def test_each_worker_has_its_own_gpu_and_its_share_of_the_cores(monkeypatch, tmp_path):
    monkeypatch.setattr(supervisor, "available_cores", lambda: 16)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert supervisor.share(0, 1) == {}
    assert [supervisor.share(i, 4)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == [
        "4",
        "5",
        "6",
        "4",
    ]
    assert supervisor.share(3, 4)["OMP_NUM_THREADS"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in supervisor.share(1, 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    monkeypatch.setattr(supervisor, "_GPUS", str(tmp_path))
    assert "CUDA_VISIBLE_DEVICES" not in supervisor.share(1, 4)
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert [supervisor.share(i, 4)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == [
        "0",
        "1",
        "0",
        "1",
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert "OMP_NUM_THREADS" not in supervisor.share(0, 2)
