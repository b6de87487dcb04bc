"""`tensord doctor`: alone, as an MPI job and starting one itself; what it says held to what this test asks the system; what it
makes of ranks that differ and of a slow network beside a fast one."""
import ctypes
import json
import os
import re
import resource
import shutil
import socket
import subprocess

import pytest

from conftest import MPI_ENV

ORDER = ["tensord", "numerics class", "MPI library", "device", "NCCL", "NVIDIA driver"]
PER_HOST = ["binding", "threads", "shared memory", "memory", "memory limit", "processor limit", "locked memory",
            "open files", "huge pages", "frequency governor"]


def verdicts(out, check):
    return [(c["where"], c["verdict"]) for c in out["checks"] if c["check"] == check]


def text(out, check):
    """Of the one line of a check."""
    (line,) = [c for c in out["checks"] if c["check"] == check]
    return line["text"]


@pytest.fixture(scope="module")
def alone(tensord):
    return tensord.json("doctor")


@pytest.fixture(scope="module")
def launched(tensord):
    """It starts mpirun itself."""
    return tensord.json("doctor", "-n", 2)


@pytest.fixture(scope="module")
def as_job(tensord, tiny):
    return tensord.json("doctor", "--model", tiny, ranks=3)


def test_doctor_has_the_same_keys_in_every_form(alone, launched, as_job):
    for out, n in ((alone, 1), (launched, 2), (as_job, 3)):
        assert list(out) == ["version", "verdict", "checks", "ranks", "hosts", "links", "networks"]
        assert [r["rank"] for r in out["ranks"]] == list(range(n))
        assert len(out["hosts"]) == 1 and out["networks"] == []
        assert [(x["from"], x["to"]) for x in out["links"]] == [(a, b) for a in range(n) for b in range(n) if a != b]
        names = [c["check"] for c in out["checks"] if c["check"] != "model hash"]
        assert names == ORDER + PER_HOST + ["clock"] + (["latency", "bandwidth"] if n > 1 else [])
        assert out["verdict"] == max((c["verdict"] for c in out["checks"]), key=["ok", "warning", "error"].index)


def test_doctor_says_what_the_system_says(tensord, alone, launched):
    version = tensord.run("--version").stdout.split(",")[0]
    mpi = re.search(r"\(Open MPI\) (\S+)", subprocess.run(["mpirun", "--version"], capture_output=True, text=True).stdout)
    meminfo = dict(re.findall(r"(\w+): +(\d+) kB", open("/proc/meminfo").read()))
    shm = os.statvfs("/dev/shm")
    for out in (alone, launched):
        assert f"tensord {out['version']}" == version
        (host,) = out["hosts"]
        assert host["memory_bytes"] == int(meminfo["MemTotal"]) * 1024
        assert host["shm_bytes"] == shm.f_blocks * shm.f_frsize
        assert host["hardware_threads"] == os.sysconf("SC_NPROCESSORS_ONLN")
        names = {name for _, name in socket.if_nameindex()} - {"lo"}
        assert {i["interface"] for i in host["interfaces"]} <= names
        for rank in out["ranks"]:
            assert rank["host"] == socket.gethostname()
            assert rank["mpi"] == f"Open MPI v{mpi[1]}"
            assert rank["version"] == out["version"] and rank["model_hash"] == ""
    assert alone["ranks"][0]["hardware_threads"] == sorted(os.sched_getaffinity(0))
    assert alone["hosts"][0]["open_files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert len({r["pid"] for r in launched["ranks"]}) == 2


def nccl_here():
    """As the library itself says, by another road."""
    try:
        lib = ctypes.CDLL("libnccl.so.2")
    except OSError:
        return "none"
    code = ctypes.c_int()
    assert lib.ncclGetVersion(ctypes.byref(code)) == 0 and code.value >= 20900
    return f"{code.value // 10000}.{code.value // 100 % 100}.{code.value % 100}"


def test_doctor_knows_the_gpus_libraries(alone, launched):
    assert {r["nccl"] for r in alone["ranks"] + launched["ranks"]} == {nccl_here()}
    driver = alone["ranks"][0]["nvidia_driver"]
    try:
        ctypes.CDLL("libnvidia-ml.so.1")
        assert driver == "unknown" or re.fullmatch(r"[0-9.]+", driver)
    except OSError:
        assert driver == "none"


def test_doctor_measures_every_pair(as_job):
    by_pair = {(x["from"], x["to"]): x for x in as_job["links"]}
    for (a, b), link in by_pair.items():
        assert link["transport"] == "shared memory"
        assert 0 < link["latency_us"] == by_pair[b, a]["latency_us"] < 1e6
        assert 1e5 < link["bytes_per_second"] < 1e13


def test_doctor_compares_the_model(tensord, tiny, in_f32, as_job):
    """The hash that `inspect` gives; and two ranks with two models."""
    assert {r["model_hash"] for r in as_job["ranks"]} == {tensord.json_once("inspect", tiny)["hash"]}
    assert verdicts(as_job, "model hash") == [("all ranks", "ok")]
    one = [tensord.binary, "doctor", "--json", "--model"]
    p = subprocess.run(["mpirun", "-n", "1", *one, str(tiny), ":", "-n", "1", *one, str(in_f32(tiny))],
                       env=tensord.env, capture_output=True, text=True, timeout=120)
    assert p.returncode == 1, p.stderr
    out = json.loads(p.stdout)
    assert out["verdict"] == "error" and verdicts(out, "model hash") == [("all ranks", "error")]
    hashes = [r["model_hash"] for r in out["ranks"]]
    assert hashes[0] == as_job["ranks"][0]["model_hash"] != hashes[1]
    assert f"rank 1 on {socket.gethostname()} has {hashes[1]}" in text(out, "model hash")


def test_doctor_finds_a_model_that_is_not_there(tensord, tmp_path):
    p = tensord.run("doctor", "-n", 2, "--json", "--model", tmp_path / "none")
    assert p.returncode == 1
    out = json.loads(p.stdout)
    assert verdicts(out, "model hash") == [("all ranks", "error")]
    assert "none" in text(out, "model hash") and "No such file" in text(out, "model hash")
    assert out["links"][0]["latency_us"] > 0  # the rest was looked at all the same


def test_doctor_prints_a_table(tensord):
    p = tensord.run("doctor", "-n", 2)
    assert p.returncode == 0, p.stderr
    for line in (r"verdict +check +where +found$", r"ok +tensord +all ranks +\d", r"ok +MPI library +all ranks +Open MPI v",
                 r"transport: shared memory between the ranks of a host$",
                 r"latency, microseconds", r" +0 +- +[0-9.]+$", r" +1 +[0-9.]+ +-$", r"bandwidth, GB/s",
                 r"host +ranks +interface +address +speed$", r"\d+ ok, \d+ warnings?, 0 errors$"):
        assert re.search("^" + line, p.stdout, re.M), line
    assert p.stderr == ""


def test_doctor_takes_a_hostfile(tensord, tmp_path):
    """Without -n as many ranks as it has places."""
    hosts = tmp_path / "hosts"
    hosts.write_text("localhost slots=2\n")
    out = tensord.json("doctor", "--hostfile", hosts)
    assert [r["host"] for r in out["ranks"]] == [socket.gethostname()] * 2


@pytest.mark.parametrize("args,status,words", [
    (("--hostfile", "/no/such/hosts"), 2, ["/no/such/hosts", "No such file"]),
    (("-n", "0"), 2, ["-n", "from 1 to 256"]),
    (("-n", "2", "--port", "1"), 2, ["--port", "doctor"]),
    (("--cpu-isa", "z80"), 2, ["z80", "avx2"]),
])
def test_doctor_refuses_bad_arguments(tensord, args, status, words):
    p = tensord.run("doctor", *args)
    assert (p.returncode, p.stdout) == (status, "")
    for word in words:
        assert word in p.stderr, p.stderr


def test_doctor_refuses_a_job_of_another_size(tensord):
    p = tensord.run("doctor", "-n", 3, ranks=2)
    assert (p.returncode, p.stdout) == (2, "")
    assert "--ranks 3, but the job has 2 ranks" in p.stderr


def test_doctor_tells_of_a_host_that_cannot_be_reached(tensord, tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("tensord-no-such-host.invalid slots=1\n")
    p = tensord.run("doctor", "-n", 1, "--hostfile", hosts)
    assert (p.returncode, p.stdout) == (1, "")
    assert "mpirun ended with exit status" in p.stderr


def test_doctor_warns_of_ranks_on_one_hardware_thread(tensord, tiny):
    if os.cpu_count() < 2:
        pytest.skip("cpu: one hardware thread cannot be shared more narrowly")
    cpu = min(os.sched_getaffinity(0))

    def bind():
        os.sched_setaffinity(0, {cpu})

    p = tensord.run("doctor", "-n", 2, "--json", preexec_fn=bind)
    assert p.returncode == 0, p.stderr  # a warning is no failure
    out = json.loads(p.stdout)
    assert [r["hardware_threads"] for r in out["ranks"]] == [[cpu], [cpu]]
    assert verdicts(out, "binding") == [(socket.gethostname(), "warning")]
    assert "ranks 0 and 1" in text(out, "binding")
    # The start of a group says it too, once.
    p = subprocess.run(["mpirun", "--bind-to", "none", "-n", "2", tensord.binary, "generate", "--model", str(tiny),
                        "--prompt", "A dog", "--max-tokens", "2"], env=tensord.env, capture_output=True, text=True,
                       timeout=120, preexec_fn=bind)
    assert p.returncode == 0, p.stderr
    assert p.stderr.count('preflight check="binding"') == 1


@pytest.mark.parametrize("limit,verdict,status", [(67, "error", 1), (68, "warning", 0), (1023, "warning", 0), (1024, "ok", 0)])
def test_doctor_judges_open_files(tensord, limit, verdict, status):
    """One rank needs 64 and 4; a server wants 1024."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    p = tensord.run("doctor", "--json", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard)))
    assert p.returncode == status, p.stderr
    out = json.loads(p.stdout)
    assert out["hosts"][0]["open_files"] == limit
    assert verdicts(out, "open files") == [(socket.gethostname(), verdict)]


# ---- Two hosts: network namespaces with names of their own, and two networks between them ----

SLOW_MBIT = 200


def sh(*words, **kwargs):
    return subprocess.run(words, check=True, capture_output=True, text=True, timeout=60, **kwargs)


@pytest.fixture(scope="module")
def two_hosts(tmp_path_factory):
    """A way to run a command on host "a", whose mpirun reaches "b": eth1 as fast as it goes, eth2 with 200 Mbit/s."""
    if os.geteuid() != 0 or not all(shutil.which(tool) for tool in ("ip", "tc", "unshare", "mount")):
        pytest.skip("root: network namespaces need it, and ip, tc and unshare")
    folder, mark = tmp_path_factory.mktemp("hosts"), f"tdoc{os.getpid()}"
    (folder / "hosts").write_text("127.0.0.1 localhost\n10.84.1.1 a\n10.84.1.2 b\n")
    (folder / "hostfile").write_text("a slots=1\nb slots=1\n")
    enter, rsh = folder / "enter", folder / "rsh"
    enter.write_text(f"""#!/bin/bash
host=$1
shift
exec ip netns exec {mark}$host unshare --uts --mount bash -c 'hostname "$0"; mount --bind {folder}/hosts /etc/hosts; exec "$@"' $host "$@"
""")
    rsh.write_text(f'#!/bin/bash\nhost=$1\nshift\nexec {enter} $host bash -c "$*"\n')
    enter.chmod(0o755)
    rsh.chmod(0o755)
    try:
        try:
            for host in "ab":
                sh("ip", "netns", "add", mark + host)
                sh("ip", "-n", mark + host, "link", "set", "lo", "up")
            for k in "12":
                sh("ip", "link", "add", "eth" + k, "netns", mark + "a", "type", "veth", "peer", "name", "eth" + k,
                   "netns", mark + "b")
                for host, last in (("a", "1"), ("b", "2")):
                    sh("ip", "-n", mark + host, "addr", "add", f"10.84.{k}.{last}/24", "dev", "eth" + k)
                    sh("ip", "-n", mark + host, "link", "set", "eth" + k, "up")
            for host in "ab":
                sh("ip", "netns", "exec", mark + host, "tc", "qdisc", "add", "dev", "eth2", "root", "tbf", "rate",
                   f"{SLOW_MBIT}mbit", "burst", "64kb", "latency", "50ms")
        except subprocess.CalledProcessError as e:
            pytest.skip(f"root: this kernel makes no two networks: {e.stderr.strip()}")

        def run(*args, network=None):
            env = {k: v for k, v in os.environ.items() if not k.startswith("TENSORD_")} | MPI_ENV
            env |= {"OMPI_MCA_plm_rsh_agent": str(rsh), "OMPI_MCA_plm_rsh_no_tree_spawn": "1"}
            if network:
                env["OMPI_MCA_btl_tcp_if_include"] = network
            return subprocess.run([str(enter), "a", *map(str, args)], env=env, capture_output=True, text=True, timeout=120)

        yield folder, run
    finally:
        for host in "ab":
            subprocess.run(["ip", "netns", "del", mark + host], capture_output=True, timeout=60)


def doctor_of(tensord, two_hosts, network):
    folder, run = two_hosts
    p = run(tensord.binary, "doctor", "--hostfile", folder / "hostfile", "--json", network=network)
    assert p.returncode == 0, p.stderr
    return json.loads(p.stdout)


def used(out):
    return sorted(n["a"]["interface"] for n in out["networks"] if n["used_by_mpi"])


def test_doctor_warns_of_a_slow_network_beside_a_fast_one(tensord, two_hosts):
    out = doctor_of(tensord, two_hosts, "10.84.2.0/24")
    assert [(h["host"], [i["address"] for i in h["interfaces"]]) for h in out["hosts"]] == [
        ("a", ["10.84.1.1", "10.84.2.1"]), ("b", ["10.84.1.2", "10.84.2.2"])]
    by_name = {n["a"]["interface"]: n for n in out["networks"]}
    assert sorted(by_name) == ["eth1", "eth2"] and used(out) == ["eth2"]
    # What the shaper lets through, with what its burst of 64 KiB adds to a short transfer.
    assert by_name["eth2"]["bytes_per_second"] < 1.5 * SLOW_MBIT * 1e6 / 8
    assert by_name["eth1"]["bytes_per_second"] > 1.5 * by_name["eth2"]["bytes_per_second"]
    assert verdicts(out, "network") == [("a - b", "warning")]
    for word in ("eth1 10.84.1.1", "eth2 10.84.2.1", "btl_tcp_if_include=10.84.1.0/24"):
        assert word in text(out, "network")
    assert {x["transport"] for x in out["links"]} == {"mpi"}
    assert all(x["bytes_per_second"] < 1.5 * SLOW_MBIT * 1e6 / 8 for x in out["links"])
    assert verdicts(out, "clock") == [("b", "ok")]  # two hosts of one kernel


def test_doctor_is_content_with_the_fast_network(tensord, two_hosts):
    out = doctor_of(tensord, two_hosts, "10.84.1.0/24")
    assert used(out) == ["eth1"]
    assert verdicts(out, "network") == [("a - b", "ok")]
    assert "MPI uses eth1" in text(out, "network")


def test_doctor_tells_when_mpi_deals_out_over_both(tensord, two_hosts):
    """Open MPI's own choice is every network that two hosts share."""
    out = doctor_of(tensord, two_hosts, None)
    assert used(out) == ["eth1", "eth2"]
    assert verdicts(out, "network") == [("a - b", "warning")]
    assert "beside eth1" in text(out, "network")
