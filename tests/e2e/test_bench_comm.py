"""`tensord bench comm`: every contender at every size, what is computed from the times, and the picture. No assertion of speed."""
import json
import xml.etree.ElementTree as ElementTree

import pytest

OPERATIONS = ["tree_sum", "bcast", "all_gather", "sendrecv", "barrier"]
CALLS = {"tree_sum": "MPI_Allreduce", "bcast": "MPI_Bcast", "all_gather": "MPI_Allgather",
         "sendrecv": "MPI_Sendrecv", "barrier": "MPI_Barrier"}
SIZES = [8, 8192, 65536, 1 << 20]


@pytest.fixture(scope="module")
def two_ranks(tensord, tmp_path_factory):
    """The object on standard output, the one in the file, and the picture."""
    folder = tmp_path_factory.mktemp("comm")
    out = tensord.json("bench", "comm", "--sizes", "1M,8,64K,8K", "--repetitions", 3, "--json-file", folder / "c.json",
                       "--svg", folder / "c.svg", ranks=2)
    return out, json.loads((folder / "c.json").read_text()), (folder / "c.svg").read_text()


def names(row):
    return [c["name"] for c in row["contenders"]]


def test_bench_comm_measures_every_contender_at_every_size(two_ranks):
    out, in_file, _ = two_ranks
    assert out == in_file
    assert (out["tool"], out["ranks"], out["hosts"], out["transport"]) == ("tensord bench comm", 2, 1, "shm")
    assert out["sizes"] == SIZES and "MPI" in out["mpi"] and out["rounds"] == 3
    assert out["no_bare_exchange"] is None and out["auto_by"] == "rule"  # two ranks have one way
    assert [(r["operation"], r["bytes"]) for r in out["rows"]] == \
        [(op, b) for op in OPERATIONS[:4] for b in SIZES] + [("barrier", 0)]
    for row in out["rows"]:
        op = row["operation"]
        ways = ["shm one-shot", "messages one-shot"] if op == "tree_sum" else ["shm", "messages"]
        assert names(row) == ways + [CALLS[op]] + (["bare exchange"] if op == "tree_sum" else [])
        assert row["rounds"] == 3


def test_bench_comm_computes_rates_and_ratios_from_the_best_times(two_ranks):
    for row in two_ranks[0]["rows"]:
        by_kind = {c["kind"]: c for c in row["contenders"]}
        for c in row["contenders"]:
            assert 0 < c["best_us"] <= c["median_us"] and c["calls"] >= 1, c
            if row["bytes"]:
                assert c["gb_per_second"] == pytest.approx(row["bytes"] / c["best_us"] * 1e-3)
            else:
                assert c["gb_per_second"] is None
            assert c["ratio_mpi"] == pytest.approx(c["best_us"] / by_kind["mpi"]["best_us"])
            bare = by_kind.get("bare")
            assert c["ratio_bare"] == (pytest.approx(c["best_us"] / bare["best_us"]) if bare else None)
            is_sum = c["kind"] == "tensord" and row["operation"] == "tree_sum"
            assert c["algorithm"] == ("one-shot" if is_sum else None)
            assert c["auto"] == is_sum  # two ranks have one way
            assert (c["transport"] is None) == (c["kind"] != "tensord")


def test_bench_comm_fits_lines_of_least_relative_error(two_ranks):
    out = two_ranks[0]
    points = {}
    for row in out["rows"]:
        for c in row["contenders"]:
            points.setdefault((row["operation"], c["name"]), []).append((row["bytes"], c["best_us"]))
    fits = {(f["operation"], f["name"]): f for f in out["fits"]}
    assert set(fits) == {key for key in points if key[0] in ("sendrecv", "tree_sum")}
    for key, f in fits.items():
        alpha, slope = f["alpha_us"], f["us_per_byte"]

        def error(a, b):
            return sum(((a + b * x - t) / t) ** 2 for x, t in points[key])
        assert alpha >= 0 and slope > 0 and f["points"] == len(SIZES), key
        assert f["beta_bytes_per_second"] == pytest.approx(1e6 / slope), key
        worst = max(abs(alpha + slope * x - t) / t for x, t in points[key])
        assert f["worst_relative_error"] == pytest.approx(worst, rel=1e-6), key
        # No line near it is nearer to the points.
        for a in (alpha * 0.99, alpha, alpha * 1.01):
            for b in (slope * 0.99, slope, slope * 1.01):
                assert error(a, b) >= error(alpha, slope) * (1 - 1e-6), key


def test_bench_comm_draws_a_line_for_each_contender(two_ranks):
    out, _, svg = two_ranks
    root = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == space + "svg"
    texts = [t.text for t in root.iter(space + "text")]
    for op in OPERATIONS[:4]:
        assert op + ", us" in texts
    for name in ("shm one-shot", "messages one-shot", "bare exchange", "MPI_Bcast", "8K", "64K", "1M", "bytes"):
        assert name in texts
    n_lines = sum(len(r["contenders"]) for r in out["rows"] if r["bytes"] == 8)
    assert len(list(root.iter(space + "path"))) == n_lines
    assert len(list(root.iter(space + "circle"))) == n_lines * len(SIZES)


def test_bench_comm_of_three_ranks_has_every_algorithm(tensord):
    p = tensord.run("bench", "comm", "--sizes", "8,1M", "--operations", "barrier,tree_sum", "--repetitions", 1, "--json",
                    ranks=3)
    assert p.returncode == 0, p.stderr
    out = json.loads(p.stdout)
    assert (out["ranks"], out["hosts"], out["no_bare_exchange"]) == (3, 1, "3 ranks, it is one of 2")
    assert out["auto_by"] == ("rule" if out["shares_cores"] else "trial")
    assert [(r["operation"], r["bytes"]) for r in out["rows"]] == [("tree_sum", 8), ("tree_sum", 1 << 20), ("barrier", 0)]
    for row in out["rows"][:2]:
        ways = [f"{t} {a}" for t in ("shm", "messages") for a in ("one-shot", "two-shot", "doubling")]
        assert names(row) == ways + ["MPI_Allreduce"]
        taken = [c["algorithm"] for c in row["contenders"] if c["auto"]]
        assert len(taken) == 2  # one of each transport


def test_bench_comm_prints_a_table(tensord):
    p = tensord.run("bench", "comm", "--sizes", "8,8K", "--operations", "sendrecv,barrier", "--repetitions", 1, ranks=2)
    assert p.returncode == 0, p.stderr
    lines = p.stdout.splitlines()
    assert lines[0].startswith("ranks       2 on 1 host")
    for row in (["8", "shm"], ["8K", "shm"], ["MPI_Sendrecv"], ["MPI_Barrier"], ["sendrecv", "shm"]):
        assert any(line.split()[:len(row)] == row for line in lines), p.stdout
    assert "alpha" in p.stdout and "\r" not in p.stderr and "measuring  100 %" in p.stderr


@pytest.mark.parametrize("ranks", [0, 1])
def test_bench_comm_of_one_rank_has_nothing_to_exchange(tensord, ranks):
    p = tensord.run("bench", "comm", ranks=ranks)
    assert p.returncode == 0 and "nothing to exchange" in p.stdout, p.stderr
    out = tensord.json("bench", "comm", ranks=ranks)
    assert (out["ranks"], out["rows"], out["fits"]) == (1, [], [])


@pytest.mark.parametrize("args,words", [
    (("--sizes", "8,10"), ["--sizes", "'10'", "multiple of 4"]),
    (("--sizes", "2G"), ["--sizes", "'2G'", "1G"]),
    (("--sizes", "8 Kilo"), ["--sizes", "'8 Kilo'"]),
    (("--operations", "tree_sum,allreduce"), ["--operations", "'allreduce'", "all_gather"]),
    (("--operations", "barrier,barrier", "--svg", "x.svg"), ["--svg", "barrier"]),
    (("--json-file", "/nowhere/x.json"), ["--json-file", "/nowhere/x.json"]),
    (("--repetitions", 0), ["--repetitions", "'0'"]),
    (("--cases", "decode"), ["--cases", "'bench comm'"]),
    (("m",), ["'bench comm'", "'m'"]),
])
def test_bench_comm_refuses_what_cannot_be(tensord, args, words):
    p = tensord.run("bench", "comm", *args)
    assert p.returncode in (1, 2) and p.stdout == ""
    for word in words:
        assert word in p.stderr, p.stderr


def test_bench_comm_is_refused_once_by_the_whole_job(tensord):
    for args, words in ((("--sizes", "12,13"), "--sizes: got '13'"),
                        (("--svg", "/nowhere/x.svg"), "--svg: '/nowhere/x.svg' cannot be written")):
        p = tensord.run("bench", "comm", *args, ranks=2)
        assert p.returncode != 0 and p.stdout == ""
        assert p.stderr.count("tensord bench comm: " + words) == 1, p.stderr
