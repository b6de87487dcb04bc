"""Thousands of idle connections: what each costs, that the server still answers, and that the memory comes back."""

import pathlib
import resource
import socket

import pytest
from serving import Server, needs_model, wait_until

pytest_plugins = ["serving"]
pytestmark = needs_model
N = 10_000
PER_CONNECTION = 16 * 1024
# One loopback address has ports for more than this, and a few addresses keep the search for a free one short.
SOURCES = [f"127.0.0.{i}" for i in range(2, 7)]


def resident(server):
    return int(pathlib.Path(f"/proc/{server.p.pid}/statm").read_text().split()[1]) * 4096


@pytest.fixture
def descriptors():
    """Room for a descriptor per connection in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = N + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"root: the hard limit of open files is {hard}, {wanted} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect(server, used, i):
    """An idle connection; a used one has had a request answered, and is kept."""
    s = socket.create_connection(("127.0.0.1", server.port), 60, source_address=(SOURCES[i % len(SOURCES)], 0))
    if used:
        s.sendall(b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n")
        got = b""
        while b"\r\n\r\n" not in got or length_of(got) > len(got):
            got += s.recv(65536)
    return s


def length_of(got):
    """How long the answer is in all, once its head is there."""
    top, _, _ = got.partition(b"\r\n\r\n")
    length = next(line.split(b":")[1] for line in top.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return len(top) + 4 + int(length)


@pytest.mark.parametrize("used", [False, True], ids=["silent", "after a request"])
def test_an_idle_connection_costs_little_and_leaves_nothing(descriptors, used):
    # A shell's soft limit, which the server must raise by itself.
    limits = ["prlimit", "--nofile=1024:"]
    args = ["-n", 1, "--threads", 1, "--max-connections", N + 100, "--idle-timeout", 600, "--header-timeout", 600]
    with Server(*args, prefix=limits) as s:
        s.wait_ready()
        for i in range(300):  # what is made once and kept
            connect(s, used, i).close()
        s.complete("Once", max_tokens=2)
        s.status()
        before = resident(s)
        crowd = [connect(s, used, i) for i in range(N)]
        wait_until("all are accepted", lambda: len(list(pathlib.Path(f"/proc/{s.p.pid}/fd").iterdir())) > N, 30)
        held = resident(s)
        assert s.is_ready() and s.complete("Once", max_tokens=2)["text"]
        each = (held - before) / N
        print(f"{each:.0f} bytes per connection, {before >> 10} KiB before, {held >> 10} KiB held")
        assert each <= PER_CONNECTION
        for c in crowd:
            c.close()
        wait_until(lambda: f"{resident(s) >> 10} KiB are held, {before >> 10} KiB were", lambda: resident(s) <= before * 1.05, 30, 0.5)
        assert s.complete("Once", max_tokens=2)["text"]
        assert "fewer open files" not in s.log()
        s.stop()


def test_a_limit_of_open_files_that_is_too_low_is_told():
    with Server("-n", 1, "--threads", 1, "--max-connections", 5000, prefix=["prlimit", "--nofile=600:600"]) as s:
        s.wait_ready()
        assert "fewer open files are allowed" in s.log() and "files=600" in s.log() and "needed=5128" in s.log()
        s.stop()
