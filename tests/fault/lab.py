"""A cluster's ranks on hosts of their own: a lab of deploy/netlab, whose links are cut and slowed. Needs root.

The suite runs a second time on the lab's h0, where the server and its clients are; from there all hosts' processes are seen.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from cluster import argv_of
from serving import read_proc
from test_netlab import Lab, lab_of, why_not

__all__ = ["Hosts", "lab_of", "run_on_h0", "why_not"]


class Hosts:
    """Of the lab `name`: h0, and n_hosts that may have ranks, the last of which is spare. Only from h0."""

    def __init__(self, name, n_hosts):
        self.lab = Lab(name)
        self.names = [f"h{i + 1}" for i in range(n_hosts)]
        self.n_ranks = n_hosts - 1
        self.before = set()  # ranks that were there before the last loss
        self.folder = tempfile.TemporaryDirectory(prefix="tensord-fault-")
        self.hostfile = pathlib.Path(self.folder.name, "hosts")
        self.hostfile.write_text(self.lab("hostfile", ",".join(self.names)))

    def network(self, pid):
        try:
            return os.readlink(f"/proc/{pid}/ns/net")
        except OSError:
            return None

    def holder(self, host):
        return pathlib.Path(f"/run/tensord-netlab/{self.lab.name}/{host}.pid").read_text().strip()

    def workers(self, names=None):
        """{pid here: pid on its host} of the ranks' processes on these hosts; on all without."""
        networks = {self.network(self.holder(h)) for h in names or self.names}
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit() and argv_of(entry)[1:2] == ["worker"] and self.network(entry) in networks:
                inner = [line.split()[-1] for line in read_proc(entry, "status").splitlines() if line.startswith(b"NSpid:")]
                if inner:
                    found[int(entry)] = int(inner[0])
        return found

    def outside(self, host, pid):
        """The process that a host calls `pid`, as it is called here."""
        return next(here for here, there in self.workers([host]).items() if there == pid)

    def close(self):
        self.folder.cleanup()


def run_on_h0(name, argv):
    """The exit status of this program with other arguments, on the lab's h0; what it prints is printed."""
    command = [str(pathlib.Path(__file__).resolve().parents[2] / "deploy/netlab/netlab"), "exec", "h0", sys.executable, *map(str, argv)]
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OMPI_", "NETLAB"))} | {"NETLAB": name}
    return subprocess.run(command, env=env, stdin=subprocess.DEVNULL).returncode
