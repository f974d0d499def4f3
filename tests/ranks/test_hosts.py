"""Two hosts, each a network namespace of its own, joined by a cable: what crosses it is what ranks say they send."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bezoar.experiments import Experiment, run
from tests.ranks.launch import end, environment, start
from tests.ranks.test_torchrun import compare, table

PORT = "29711"


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=20, check=False)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextlib.contextmanager
def two_hosts() -> Iterator[list[str]]:
    """Names of two namespaces, whose ``eth0`` are the ends of one cable; they know each other by name."""
    tag = str(os.getpid())
    hosts = [f"bz{i}x{tag}" for i in range(2)]
    folders = [Path("/etc/netns") / host for host in hosts]
    made = not folders[0].parent.exists()
    try:
        for host, folder in zip(hosts, folders, strict=True):
            ip("netns", "add", host)
            folder.mkdir(parents=True)
            # Without these, names are looked up for ten seconds, in vain.
            names = "".join(f"10.77.0.{i + 1} {other}\n" for i, other in enumerate(hosts))
            (folder / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
            (folder / "resolv.conf").write_text("")
        ends = [f"bzv{i}x{tag}"[:15] for i in range(2)]
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for i, (host, cable) in enumerate(zip(hosts, ends, strict=True)):
            ip("link", "set", cable, "netns", host)
            ip("-n", host, "link", "set", cable, "name", "eth0")
            ip("-n", host, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host, folder in zip(hosts, folders, strict=True):
            subprocess.run(["ip", "netns", "del", host], capture_output=True, timeout=20, check=False)
            shutil.rmtree(folder, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):
                folders[0].parent.rmdir()


def crossed(host: str) -> int:
    """Bytes that have left a host by its cable."""
    found = subprocess.run(
        ["ip", "-n", host, "-s", "-j", "link", "show", "eth0"], capture_output=True, timeout=20, check=True
    )
    sent: int = json.loads(found.stdout)[0]["stats64"]["tx"]["bytes"]
    return sent


@pytest.mark.slow
def test_two_hosts_learn_what_one_process_learns(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        pytest.skip("two hosts on one machine need root, ip and unshare")
    with contextlib.ExitStack() as inside:
        try:
            hosts = inside.enter_context(two_hosts())
        except OSError as error:
            pytest.skip(f"no network namespaces here: {error}")
        wide = {**table("krum-alie"), "rounds": 10, "model": {"name": "mlp", "hidden": [1000]}}
        jobs = [{"table": wide, "out": str(tmp_path / "two")}]
        path = tmp_path / "jobs.json"
        path.write_text(json.dumps(jobs))
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
        meeting = ["--master-addr", hosts[0], "--master-port", PORT]
        started = []
        for i, host in enumerate(hosts):
            command = [*launcher, "--node-rank", str(i), *meeting, "-m", "tests.ranks.player", str(path)]
            named = ["unshare", "--uts", "sh", "-c", f'hostname {host} && exec "$@"', "sh", *command]
            env = environment(GLOO_SOCKET_IFNAME="eth0")
            started.append(start(["ip", "netns", "exec", host, *named], tmp_path / f"host{i}.log", env))
            inside.callback(end, started[-1])
        for i, process in enumerate(started):
            assert process.wait(300) == 0, (tmp_path / f"host{i}.log").read_text()
        wire = [crossed(host) for host in hosts]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run(Experiment.from_table(wide), tmp_path / "one")
    torch.set_num_threads(before)
    assert compare(tmp_path / "one", tmp_path / "two") <= 1e-6
    for rank, amount in enumerate(wire):
        said = json.loads((tmp_path / f"two.rank{rank}.json").read_text())
        claimed = sum(said["sent"].values())
        # Headers, acknowledgements, meeting and parting are some percent of what is handed over.
        assert claimed <= amount <= 1.06 * claimed + 200_000
