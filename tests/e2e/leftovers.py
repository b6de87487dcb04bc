"""What a server leaves behind when its group is broken again and again: processes, shared memory, directories, descriptors.

    TD_BUILD=build build/venv/bin/python tests/e2e/leftovers.py --relaunches 1000

breaks the group so many times, by turns in every way, and compares what there is before and after. Prints a line per hundred
and what differs; exit status 1 when something does."""

import argparse
import os
import re
import signal
import sys
import time

from serving import Server, read_proc, wait_until

SECONDS = 30


def mapped(pids):
    maps = b"".join(read_proc(pid, "maps") for pid in pids).decode(errors="replace")
    return sorted({re.sub(r"tensord-\w{6}|[0-9a-f]{6,}|\d+", "#", m) for m in re.findall(r"/dev/shm/[^\s]+", maps)})


def count(server):
    """What belongs to the server now; names that are drawn anew for every launch are left out."""
    processes = server.processes()
    folders = set(re.findall(r" dir=(\S+)", server.log()))
    return {
        "processes": sorted(a[1] if a[0].endswith("tensord") and len(a) > 1 else os.path.basename(a[0]) for a in processes.values()),
        "folders of launches": sum(os.path.exists(f) for f in folders),
        "files in them": sum(len(files) for f in folders for _, _, files in os.walk(f)),
        "mapped files": mapped(processes),
        "descriptors": len(os.listdir(f"/proc/{server.p.pid}/fd")),
        "threads": len(os.listdir(f"/proc/{server.p.pid}/task")),
    }


def victims(server):
    """One way of breaking the group per call, by turns."""
    while True:
        for how in ("kill", "stop", "mpirun", "kill 0", "keeper"):
            ranks = sorted(server.group()["ranks"], key=lambda r: r["rank"])
            named = {a[1] if a[0].endswith("tensord") else os.path.basename(a[0]): p for p, a in server.processes().items() if len(a) > 1}
            if how == "keeper":  # nobody misses it: the group goes on, until a rank goes
                os.kill(named["keep-launch"], signal.SIGKILL)
            pid = named["mpirun"] if how == "mpirun" else ranks[0 if how == "kill 0" else -1]["pid"]
            yield pid, signal.SIGSTOP if how == "stop" else signal.SIGKILL


def break_once(server, way):
    before = server.group()["generation"]
    pid, number = next(way)
    os.kill(pid, number)
    wait_until(lambda: f"a new group:\n{server.log()[-2000:]}", lambda: server.group()["generation"] > before and server.is_ready(), SECONDS)


def settle(server, wanted, timeout=10):
    """What is there once it is as wanted, or else what is there at the end of that time."""
    end = time.monotonic() + timeout
    while True:
        now = count(server)
        if now == wanted or time.monotonic() > end:
            return now
        time.sleep(0.1)


def run(server, n, progress=None):
    """Breaks the group n times. Returns what there was before and after. The first break is not counted: with it libuv's pool starts."""
    way = victims(server)
    break_once(server, way)
    wait_until("a keeper", lambda: "keep-launch" in count(server)["processes"], 10)
    before = settle(server, None, 1)
    for i in range(n):
        break_once(server, way)
        if progress:
            progress(i + 1, count(server))
    return before, settle(server, before)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--relaunches", type=int, default=1000, metavar="N")
    n = parser.parse_args().relaunches

    def tell(i, now):
        if i % 100 == 0 or i == n:
            print(f"{i}: {now}", flush=True)

    with Server("-n", 2, "--threads", 1) as server:
        server.wait_ready()
        before, after = run(server, n, tell)
        server.stop()
    for what in before:
        if before[what] != after[what]:
            print(f"{what}: {before[what]} before, {after[what]} after {n} relaunches")
    print("equal" if before == after else "different")
    return before != after


if __name__ == "__main__":
    sys.exit(main())
