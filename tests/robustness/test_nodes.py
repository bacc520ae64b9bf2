"""Several nodes: agents of torchrun on one machine, or in network namespaces, which lose workers.

A namespace is a node of its own for the network: it has an address, and its cable can be pulled.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from tests.helpers import ROOT, logged_values, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, to find a node's processes"),
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch has no torch.distributed"
    ),
]

# KILL="1:3 0:6" kills the worker of node 1 in step 3 and that of node 0 in step 6, each once.
# In these steps the other workers are busy for longer than the 0.1 s after which an agent looks for
# waiting nodes: only then does it restart its worker for them, without counting a restart. After a
# short step its worker fails as well, and all agents count alike.
SCRIPT = """
import os, signal, time
from pathlib import Path
import train

kills = [kill.split(":") for kill in os.environ["KILL"].split()]
train_step = train.Trainer.train_step

def faulty_step(self):
    for node, step in kills:
        if self.state.step != int(step):
            continue
        marker = Path(f"killed-{node}-{step}")
        if node == os.environ["NODE"] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)
    time.sleep(0 if Path("hurry").exists() else float(os.environ["STEP_S"]))
    train_step(self)

train.Trainer.train_step = faulty_step
train.draw_loss_curve = lambda log: None
train.main()
"""
OPTIONS = {"max_iters": 9, "eval_interval": 2, "init_from": "auto"}


class Nodes:
    """The nodes of a run: for each an agent of torchrun, which starts one worker."""

    def __init__(self, addresses, namespaces=(), **environment):
        self.addresses = addresses
        self.namespaces = namespaces
        self.environment = {"KILL": "", "STEP_S": "0", **environment}
        self.agents = {}
        Path("faulty.py").write_text(SCRIPT, encoding="utf-8")

    def start(self, node, launcher, argv):
        """Start the agent of a node, which writes to output-NODE."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        environment |= {"NODE": str(node), **self.environment}
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=1", *launcher]
        if self.namespaces:
            command = ["ip", "netns", "exec", self.namespaces[node], *command]
            environment["GLOO_SOCKET_IFNAME"] = "eth0"
        with open(f"output-{node}", "a", encoding="utf-8") as output:
            self.agents[node] = subprocess.Popen(
                [*command, "faulty.py", *argv],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    def start_static(self, argv):
        master = [f"--master_addr={self.addresses[0]}", f"--master_port={free_port()}"]
        for node in range(len(self.addresses)):
            launcher = ["--nnodes=2", f"--node_rank={node}", *master, "--max_restarts=2"]
            self.start(node, launcher, argv)

    def start_c10d(self, argv, nnodes="2"):
        """Agents that meet at the first node; with nnodes="1:2" one of them is enough."""
        endpoint = f"{self.addresses[0]}:{free_port()}"
        rendezvous = ["--rdzv_backend=c10d", f"--rdzv_endpoint={endpoint}", "--rdzv_id=1"]
        common = [f"--nnodes={nnodes}", *rendezvous, "--max_restarts=3"]
        for node, address in enumerate(self.addresses):
            conf = f"--rdzv_conf=is_host={int(node == 0)},last_call_timeout=5"
            self.start(node, [*common, conf, f"--local_addr={address}"], argv)

    def wait(self, node, timeout=180):
        """Wait until the agent of a node has ended, and check that its run was complete."""
        assert self.agents[node].wait(timeout) == 0, self.output(node)

    def output(self, node):
        return Path(f"output-{node}").read_text(encoding="utf-8")

    def kill(self, node):
        """Kill the agent of a node and its worker, which would outlive it."""
        agent = self.agents[node]
        if agent.poll() is None:
            workers = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
            for pid in [agent.pid, *map(int, workers)]:
                os.kill(pid, signal.SIGKILL)
            agent.wait()


def free_port():
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def start_nodes():
    """start_nodes(addresses, namespaces, **environment): Nodes, which end with the test."""
    started = []

    def start(*args, **environment):
        started.append(Nodes(*args, **environment))
        return started[-1]

    yield start
    for nodes in started:
        for node in nodes.agents:
            nodes.kill(node)


@pytest.fixture
def namespaces():
    """The names of two network namespaces, 10.0.0.1 and 10.0.0.2, joined by a cable from eth0."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root, and the command ip of iproute2")
    names = [f"seugpt-{os.getpid()}-{node}" for node in range(2)]
    cable = ["link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0"]
    try:
        for name in names:
            ip("netns", "add", name)
        ip(*cable, "netns", names[1])
        for node, name in enumerate(names, start=1):
            ip("-n", name, "address", "add", f"10.0.0.{node}/24", "dev", "eth0")
            ip("-n", name, "link", "set", "eth0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except subprocess.CalledProcessError as error:
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "delete", name], stderr=subprocess.DEVNULL)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, encoding="utf-8")


def wait_for_step(step):
    """Wait until the run has logged a step."""
    wait_for_log(f"step {step}: loss")


def wait_for_log(words):
    log = Path("out/training.log")
    wait_until(lambda: log.exists() and words in log.read_text(encoding="utf-8"))


def check_equals_one_process(run, options=OPTIONS):
    """The losses of out/ are those of a single process, up to rounding."""
    train.main(run(**options, out_dir="one"))
    assert logged_values("out", "loss") == pytest.approx(logged_values("one", "loss"), rel=1e-4)


LOCAL = ["127.0.0.1", "127.0.0.1"]


@pytest.mark.parametrize("own_store", ["0", "1"], ids=["agent's store", "own store"])
def test_killed_workers_of_two_nodes_restart_and_lose_nothing(tiny, run, start_nodes, own_store):
    """The nodes once waited for each other under different prefixes, in 2 of 4 attempts."""
    nodes = start_nodes(LOCAL, KILL="1:3 0:6", TORCH_DISABLE_SHARE_RDZV_TCP_STORE=own_store)
    nodes.start_c10d(run(**OPTIONS))
    nodes.wait(0)
    nodes.wait(1)
    assert Path("killed-1-3").exists()
    assert Path("killed-0-6").exists()
    check_equals_one_process(run)


def test_node_that_survives_the_other_finishes_alone(tiny, run, start_nodes):
    options = {**OPTIONS, "max_iters": 300, "eval_interval": 10}
    nodes = start_nodes(LOCAL, STEP_S="0.5")
    nodes.start_c10d(run(**options), nnodes="1:2")
    wait_for_step(4)
    nodes.kill(1)
    wait_for_log("epochs, 1 process\n")
    Path("hurry").touch()
    nodes.wait(0)
    check_equals_one_process(run, options)


@pytest.mark.parametrize(
    "rendezvous, options", [("static", {}), ("c10d", {}), ("c10d", {"dp_shard_size": 2})]
)
def test_two_nodes_in_namespaces_equal_one_process(
    tiny, run, start_nodes, namespaces, rendezvous, options
):
    """The worker of each node is killed once on the way."""
    nodes = start_nodes(["10.0.0.1", "10.0.0.2"], namespaces, KILL="1:3 0:6")
    start = nodes.start_static if rendezvous == "static" else nodes.start_c10d
    start(run(**OPTIONS, **options))
    nodes.wait(0)
    nodes.wait(1)
    check_equals_one_process(run)


def test_pulled_cable_leaves_the_first_node_to_finish_alone(tiny, run, start_nodes, namespaces):
    """Nothing tells a node that the other is gone: only dist_timeout_s ends its wait."""
    nodes = start_nodes(["10.0.0.1", "10.0.0.2"], namespaces, STEP_S="0.5")
    nodes.start_c10d(run(**OPTIONS, dist_timeout_s=15), nnodes="1:2")
    wait_for_step(4)
    ip("-n", namespaces[0], "link", "set", "eth0", "down")
    nodes.wait(0)
    assert "another process of this run died or does not respond" in nodes.output(0)
    check_equals_one_process(run)
