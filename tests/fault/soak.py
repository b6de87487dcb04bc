"""Mixed load and faults drawn at random for as long as is asked, and whether anything of the server grows: memory, descriptors and
threads of the coordinator, processes, /dev/shm, session folders. Each sample is taken when the group is whole and idle again."""

import argparse
import dataclasses
import os
import pathlib
import random
import re
import statistics
import sys
import time

import suite
from faults import ALL
from report import table_of
from serving import read_proc
from suite import LAYOUTS, Item, Run

KINDS = [k for k, f in ALL.items() if f.needs != "hosts" and not f.ends_coordinator]


@dataclasses.dataclass
class Sample:
    """What the coordinator holds, and what it left on the machine."""

    rss_kib: int
    descriptors: int
    threads: int
    processes: int
    shm: int  # entries of /dev/shm that are this server's: folders that its log names, and what its processes have mapped


def take(cluster):
    pid = cluster.server.p.pid
    status = read_proc(pid, "status").decode()
    number = lambda name: int(re.search(rf"^{name}:\s+(\d+)", status, re.M)[1])
    cluster.server.note_shm()
    names = set(re.findall(r" dir=(\S+)", cluster.server.log())) | cluster.server.seen_shm
    return Sample(number("VmRSS"), len(os.listdir(f"/proc/{pid}/fd")), number("Threads"), len(cluster.server.processes()),
                  sum(os.path.exists(n) for n in names))


def growth(samples):
    """What is wrong: the last third against the one before; in the first one what is kept for later fills up."""
    third = max(1, len(samples) // 3)
    wrong = []
    for field in dataclasses.fields(Sample):
        early, late = ([getattr(s, field.name) for s in part] for part in (samples[-2 * third : -third] or samples, samples[-third:]))
        a, b = statistics.median(early), statistics.median(late)
        # Memory is handed out in pages and arenas; all the rest is counted.
        allowed = a + max(a // 20, 2048) if field.name == "rss_kib" else a
        print(f"{field.name:<12} {a:>10} in the middle {b:>10} in the end" + (f"  GREW: expected at most {allowed:.0f}" if b > allowed else ""))
        if b > allowed:
            wrong.append(field.name)
    return wrong


def main():
    p = argparse.ArgumentParser(prog="tests/fault/soak.py", description=__doc__)
    p.add_argument("--minutes", type=float, default=30)
    p.add_argument("--seed", type=int)
    p.add_argument("--streams", type=int, default=8)
    p.add_argument("--report", metavar="FILE.md")
    args = p.parse_args()
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(10**6)
    args.faults, args.only, args.in_lab, args.short = 0, None, None, False
    suite.end_in_order()
    print(f"seed {args.seed}", flush=True)
    rng = random.Random(f"soak {args.seed}")
    run, samples = Run(args, 0), []
    try:
        run.make_cluster(0, None)
        kinds = [k for k in KINDS if run.disk.is_own or ALL[k].needs != "disk"]
        end, index = time.monotonic() + 60 * args.minutes, 0
        while time.monotonic() < end:
            kind = rng.choices(kinds, [suite.WEIGHTS[k] for k in kinds])[0]
            # A drain by signal would end the process that is watched; what takes a minute leaves no time for others.
            moment = rng.choice([m for m in ALL[kind].moments if m not in ("draining", *ALL[kind].slow_moments)])
            run.one(Item(index, kind, moment, 0))
            samples.append(take(run.cluster))
            index += 1
            if index % 20 == 0:
                print(f"      {samples[-1]}", flush=True)
        run.stop_cluster()
    finally:
        run.close()
    text = f"{len(samples)} faults in {args.minutes:g} minutes on {LAYOUTS[0][0]}, seed {args.seed}\n\n{table_of(run.outcomes)}\n"
    print("\n" + text)
    wrong = growth(samples)
    if args.report:
        pathlib.Path(args.report).write_text(text)
    return 1 if wrong or any(o.is_bad for o in run.outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
