"""Faults of all kinds at all moments against running requests, and whether anybody noticed: README.md says what is compared.

The plan of a run follows from its seed alone, and each of its faults from the seed and its number.
"""

import argparse
import concurrent.futures
import dataclasses
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]

import pytest  # noqa: E402

import faults  # noqa: E402
import lab as labs  # noqa: E402
import moments  # noqa: E402
from ask import LIMIT_S, bytes_different, excerpts, is_beginning  # noqa: E402
from cluster import Cluster, Watch  # noqa: E402
from disk import Disk  # noqa: E402
from mix import Mix  # noqa: E402
from report import Outcome, line_of, table_of  # noqa: E402
from serving import MODEL, Rpc, Server, channel_to  # noqa: E402

# Small steps, so that a long prompt takes many.
SMALL = ("--threads", 1, "--max-num-batched-tokens", 64, "--max-queue", 200)
LAYOUTS = [
    ("2 ranks", 2, ()),
    ("3 stages", 3, ("--pipeline-parallel-size", 3)),
    ("2 x 2", 4, ("-tp", 2, "-pp", 2, "--speculative-tokens", 3)),
    ("uneven", 3, ("--shares", "5:1:2", "--kv-offload-gib", 0.001)),
]
# How often each fault is drawn: cheap ones often, those that take seconds seldom.
WEIGHTS = {"kill": 30, "stop": 4, "blink": 3, "oom": 3, "wrong-key": 2, "duplicate": 2, "slow-client": 3, "flood": 2, "coordinator": 3,
           "torn-journal": 2, "full-disk": 2, "roll": 3, "cut": 3, "flap": 3, "delay": 2}
ON_HOSTS = ("cut", "flap", "delay", "kill", "stop")
ANY_FAILURE = (Exception, pytest.fail.Exception)


@dataclasses.dataclass
class Item:
    """One fault of the plan."""

    index: int
    fault: str
    moment: str
    layout: int


def make_plan(seed, n, only, kinds, n_layouts, is_short):
    """n faults in an order that needs few starts of servers: layout by layout, the kinds by weight, each kind's moments by turns."""
    rng = random.Random(f"plan {seed}")
    pairs = {k: [m for m in faults.ALL[k].moments if only in (None, k, f"{k}:{m}")
                 and not (is_short and m in faults.ALL[k].slow_moments)] for k in kinds}
    pairs = {k: m for k, m in pairs.items() if m}
    if not pairs:
        raise SystemExit(f"suite.py: no fault and moment is called '{only}', or it cannot be made here")
    names = list(pairs)
    total = sum(WEIGHTS[k] for k in names)
    counts = {k: max(1, n * WEIGHTS[k] // total) for k in names}
    chosen = []
    for k in names:
        order = pairs[k][:]
        rng.shuffle(order)
        chosen += [(k, order[i % len(order)]) for i in range(counts[k])]
    rest = [("kill" if "kill" in pairs else names[0])] * (n - len(chosen))
    chosen += [(k, rng.choice(pairs[k])) for k in rest]
    rng.shuffle(chosen)
    chosen = chosen[:n]
    # Layout 0 takes half of them, the others share the rest.
    items = []
    for i, (k, m) in enumerate(chosen):
        layout = 0 if n_layouts == 1 or 2 * i < len(chosen) else 1 + (2 * i - len(chosen)) * (n_layouts - 1) // len(chosen)
        items.append(Item(i, k, m, min(layout, n_layouts - 1)))
    return items


class Run:
    def __init__(self, args, n_faults):
        self.args, self.n_faults = args, n_faults
        self.outcomes = []
        self.golden = Server("-n", 1, "--threads", 1, "--max-num-seqs", 8)
        self.golden.wait_ready()
        self.rpc = Rpc()
        self.channel = channel_to(self.golden)
        self.mix = Mix(random.Random(f"mix {args.seed}"), self.golden, self.rpc, self.channel)
        faults.SlowClient.mix = self.mix
        self.folder = tempfile.TemporaryDirectory(prefix="tensord-fault-")
        self.key_file = pathlib.Path(self.folder.name, "key")
        self.key_file.write_text(f"key-of-run-{args.seed}\n")
        self.disk = Disk(self.folder.name)
        self.cluster = None

    def close(self):
        if self.cluster:
            self.cluster.kill()
        self.disk.close()
        self.channel.close()
        self.golden.kill()
        self.folder.cleanup()

    # ---- one fault ----

    def strike(self, item, rng):
        """(outcome so far, moment) of one attempt; raises Missed when it came too late."""
        fault = faults.ALL[item.fault](self.cluster, rng)
        moment = moments.ALL[item.moment](self.cluster, self.mix, rng, self.args.streams)
        moment.comes_back = fault.ends_coordinator
        o = Outcome(item.index, item.fault, item.moment, self.cluster.name)
        said = fault.choose()
        try:
            moment.reach()
        except moments.Missed:
            self.end_of(moment)
            raise
        if item.moment == "loading" and isinstance(fault, faults.RankFault):
            fault.again(moment.new)
            said = "a rank of the new group"
        watch = Watch(self.cluster.server, fault.notice_s) if item.moment not in ("loading", "draining") else None
        struck_at = time.time()
        if watch and fault.expects in ("loss", "either"):
            watch.start()
        fault.strike()
        moment.after_strike()
        try:
            moment.check(struck_at)
        except moments.Missed:
            fault.undo()
            self.end_of(moment)
            self.finish(o, fault, moment)
            raise
        o.said = ", ".join(s for s in (said, moment.said) if s)
        self.follow(o, fault, moment, watch, struck_at)
        return o

    def notice(self, fault, watch, struck_at):
        """Seconds from the strike until the server showed that it knew; None."""
        end = time.monotonic() + (fault.notice_s if fault.expects in ("loss", "refusal") else 0.3)
        while time.monotonic() < end:
            line = self.cluster.log.first(fault.said, struck_at)
            times = [t for t in (watch.red_at if watch else None, line[0] if line else None) if t]
            if times:
                return max(0.0, min(times) - struck_at)
            if not self.cluster.is_up():
                return None
            time.sleep(0.002)
        return None

    def follow(self, o, fault, moment, watch, struck_at):
        if not fault.ends_coordinator:
            o.detected_s = self.notice(fault, watch, struck_at)
            # A server that was drained by a signal may have ended in order before there was anything to notice.
            if fault.expects in ("loss", "refusal") and o.detected_s is None and self.cluster.is_up():
                o.problems.append(f"not noticed within {fault.notice_s} s")
        try:
            fault.undo()
        except ANY_FAILURE as e:
            o.problems.append(f"{type(e).__name__}: {e}")
        self.end_of(moment)
        if watch:
            watch.is_over = True
        for ask in moment.asks + getattr(fault, "asks", []):
            self.judge(o, ask)
        if fault.expects in ("loss", "either"):
            ready, load_s = self.cluster.ready_again(struck_at)
            o.working_s = ready - load_s - struck_at if ready else None
            news = [t for a in moment.asks for t in a.times if ready and t >= ready]
            o.resumed_s = min(news) - struck_at if news else None
        if fault.expects in ("nothing", "refusal") and self.cluster.log.first(faults.LOST, struck_at):
            o.problems.append("the group was given up: " + self.cluster.log.first(faults.LOST, struck_at)[1].string)
        self.finish(o, fault, moment)

    def end_of(self, moment):
        end = time.monotonic() + LIMIT_S + 10
        for a in moment.asks:
            a.join(max(0.0, end - time.monotonic()))

    def finish(self, o, fault, moment):
        """Puts the cluster in order for the next fault; what cannot be is a problem, and the server is started anew."""
        n = 0
        for what in (fault.finish, moment.finish, self.cluster.settle):
            try:
                what()
            except ANY_FAILURE as e:
                o.problems.append(f"{type(e).__name__}: {e}")
                n += what != fault.finish
                if n:
                    break
        if n or not self.cluster.is_up():
            self.cluster.restart()

    def judge(self, o, ask):
        ask.join(LIMIT_S)
        o.n_requests += 1
        o.n_refused += ask.n_refused
        if ask.result == "whole":
            golden = self.mix.golden_of(ask)
            n = bytes_different(golden, ask.answer)
            o.bytes_different += n
            if n:
                expected, told = excerpts(golden, ask.answer)
                o.problems.append(f"'{ask.spec.name}' differs by {n} bytes, first at:\n  golden {expected}\n  told   {told}\n  asked  {ask.spec.body}")
            return
        o.n_lost += 1
        o.problems.append(f"'{ask.spec.name}' was lost after {ask.n_events} events: {ask.why or 'it never ended'}")
        if "seed" in str(ask.spec.body) and not is_beginning(self.mix.golden[ask.spec.name], ask.told.plain()):
            o.bytes_different += 1
            o.problems.append(f"'{ask.spec.name}' was told something else before it broke: {json.dumps(ask.told.plain())[:600]}")

    def one(self, item):
        """Tries until the moment was hit, five times at most."""
        began = time.monotonic()
        for attempt in range(5):
            rng = random.Random(f"{self.args.seed} {item.index} {attempt}")
            try:
                o = self.strike(item, rng)
                break
            except moments.Missed as e:
                why = str(e)
                self.cluster.settle()
        else:
            o = Outcome(item.index, item.fault, item.moment, self.cluster.name, problems=[f"the moment was missed five times: {why}"])
        o.took_s = time.monotonic() - began
        self.outcomes.append(o)
        print(line_of(o), flush=True)
        for p in o.problems[:3] + [f"and {len(o.problems) - 3} more"] * (len(o.problems) > 3):
            print("        " + p.replace("\n", "\n        "), flush=True)
        if o.is_bad:
            print(f"        again: {self.again(item)}", flush=True)

    def again(self, item):
        words = ["tests/fault/run.sh", "--seed", self.args.seed, "--faults", self.n_faults, "--index", item.index]
        words += ["--only", self.args.only] if self.args.only else []
        words += ["--short"] if self.args.short else []
        words += ["--only-hosts", "--hosts", self.args.hosts] if self.args.in_lab else ["--no-hosts"]
        return " ".join(map(str, words))

    # ---- all of them ----

    def make_cluster(self, layout, hosts):
        name, ranks, extra = LAYOUTS[layout]
        if hosts:
            name, ranks, extra = f"{hosts.n_ranks} hosts", hosts.n_ranks, ("--hostfile", hosts.hostfile)
        self.cluster = Cluster(name, ranks, *SMALL, *extra, hosts=hosts, key_file=self.key_file, disk=self.disk)
        self.cluster.start()

    def stop_cluster(self):
        if self.cluster:
            cluster, self.cluster = self.cluster, None
            try:
                cluster.stop()
            except (AssertionError, *ANY_FAILURE) as e:
                self.outcomes.append(Outcome(-1, "end", "", cluster.name, problems=[str(e)]))
                print(f"the server of {cluster.name} did not end in order: {e}", flush=True)

    def all(self, plan, hosts=None):
        at = None
        for item in plan:
            if item.layout != at:
                self.stop_cluster()
                self.make_cluster(item.layout, hosts)
                at = item.layout
            try:
                self.one(item)
            except ANY_FAILURE as e:
                self.outcomes.append(Outcome(item.index, item.fault, item.moment, self.cluster.name, problems=[f"{type(e).__name__}: {e}"]))
                print(line_of(self.outcomes[-1]), f"\n        {e}", flush=True)
                print(f"        again: {self.again(item)}", flush=True)
                self.cluster.restart()
        self.stop_cluster()


def arguments():
    p = argparse.ArgumentParser(prog="tests/fault/run.sh", description="Faults against running requests; see tests/fault/README.md.")
    p.add_argument("--short", action="store_true", help="about 50 faults, two layouts: for CI")
    p.add_argument("--faults", type=int, help="how many faults (500, with --short 50)")
    p.add_argument("--seed", type=int, help="of the plan, the requests and every draw (drawn anew)")
    p.add_argument("--only", metavar="FAULT[:MOMENT]", help=f"{', '.join(faults.ALL)}; {', '.join(moments.NAMES)}")
    p.add_argument("--index", type=int, help="only this fault of the plan, to run a failing one again")
    p.add_argument("--streams", type=int, default=8, help="requests under way at each fault (8)")
    p.add_argument("--report", metavar="FILE.md", help="write the table there")
    p.add_argument("--no-hosts", action="store_true", help="leave out what needs a lab of hosts (root)")
    p.add_argument("--only-hosts", action="store_true", help="only that")
    p.add_argument("--hosts", type=int, default=3, help="hosts of that lab besides the coordinator's, one of them spare (3)")
    p.add_argument("--in-lab", metavar="NAME", help=argparse.SUPPRESS)
    p.add_argument("--results", help=argparse.SUPPRESS)
    args = p.parse_args()
    args.faults = args.faults or (50 if args.short else 500)
    if args.seed is None:
        args.seed = random.SystemRandom().randrange(10**6)
    return args


def run_plan(args, kinds, n_faults, n_layouts, hosts=None):
    """The outcomes of a plan of its own."""
    run = Run(args, n_faults)
    if not run.disk.is_own and any(faults.ALL[k].needs == "disk" for k in kinds):
        print("skipped: disk: root: no file system can be mounted here", flush=True)
        kinds = [k for k in kinds if faults.ALL[k].needs != "disk"]
    try:
        plan = make_plan(args.seed, n_faults, args.only, kinds, n_layouts, args.short)
        run.all([i for i in plan if args.index in (None, i.index)], hosts)
    finally:
        run.close()
    return run.outcomes


def kinds_of(only, names):
    """Of these kinds of faults those that are asked for."""
    return [k for k in names if not only or only.partition(":")[0] == k]


def in_lab(args):
    """On h0 of a lab: faults of hosts and of their ranks; the outcomes go into a file."""
    hosts = labs.Hosts(args.in_lab, args.hosts)
    try:
        outcomes = run_plan(args, kinds_of(args.only, ON_HOSTS), args.faults, 1, hosts)
    finally:
        hosts.close()
    pathlib.Path(args.results).write_text(json.dumps([dataclasses.asdict(o) for o in outcomes]))
    return 0


def on_hosts(args, n_faults):
    """The outcomes of the part that needs hosts: this program again, on h0 of a lab of its own."""
    why = labs.why_not()
    if why:
        print(f"skipped: hosts: {why}", flush=True)
        return []
    name = f"f{os.getpid() % 100000}"
    with labs.lab_of(name, args.hosts + 1), tempfile.NamedTemporaryFile(suffix=".json") as results:
        words = [__file__, "--in-lab", name, "--hosts", args.hosts, "--results", results.name, "--seed", args.seed, "--faults", n_faults,
                 "--streams", args.streams]
        words += ["--only", args.only] if args.only else []
        words += ["--short"] if args.short else []
        words += ["--index", args.index] if args.index is not None else []
        status = labs.run_on_h0(name, words)
        text = results.read().decode()
    if status != 0 or not text:
        return [Outcome(-1, "hosts", "", name, problems=[f"the part on hosts ended with {status}"])]
    return [Outcome(**o) for o in json.loads(text)]


def end_in_order():
    """A SIGTERM ends the run as an exception does: nothing of its servers is left."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def main():
    args = arguments()
    end_in_order()
    if MODEL is None:
        raise SystemExit("suite.py: no model: tests/models has no weights and ../shared is absent")
    if args.in_lab:
        return in_lab(args)
    began = time.monotonic()
    print(f"seed {args.seed}", flush=True)
    kinds = [] if args.only_hosts else kinds_of(args.only, [k for k, f in faults.ALL.items() if f.needs != "hosts"])
    n_on_hosts = 0 if args.no_hosts else args.faults if args.only_hosts or not kinds else args.faults // 8
    if not kinds and (not n_on_hosts or not kinds_of(args.only, ON_HOSTS)):
        raise SystemExit(f"suite.py: no fault is called '{args.only}': expected one of {', '.join(faults.ALL)}")
    outcomes = []
    if kinds:
        outcomes += run_plan(args, kinds, args.faults - n_on_hosts, 2 if args.short else len(LAYOUTS))
    if n_on_hosts and kinds_of(args.only, ON_HOSTS):
        outcomes += on_hosts(args, n_on_hosts)
    print(f"\nseed {args.seed}, {len(outcomes)} faults in {time.monotonic() - began:.0f} s\n")
    table = table_of(outcomes)
    print(table)
    if args.report:
        pathlib.Path(args.report).write_text(table + "\n")
    return 1 if not outcomes or any(o.is_bad for o in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
