"""Steps in parts (`--overlap`): the same bits as in one, what `auto` tries and says, and ranks that are lost in the middle."""

import os
import re
import signal

import pytest
from serving import Server, needs_model
from test_serve_faults import PROMPT, SLOW, ask_all, break_group, check_broken

pytest_plugins = ["serving"]

# 300 ids, so that a prompt is a step of many rows.
IDS = ",".join(str(3 + 7 * i % 500) for i in range(300))
LAYOUTS = {
    "tp2": (2, ()),
    "tp2-mpi": (2, ("--transport", "mpi")),
    "tp2-uneven-mpi": (2, ("--transport", "mpi", "--shares", "5:1")),
    "tp3-mpi": (3, ("--transport", "mpi")),
    "tp2-pp2-mpi": (4, ("--transport", "mpi", "-tp", "2", "-pp", "2")),
}


def generate(tensord, tiny, *args, ranks=0):
    return tensord.json_once("generate", "--model", tiny, "--prompt-ids", IDS, "--max-tokens", 12, "--ignore-eos",
                             "--max-num-batched-tokens", 200, *args, ranks=ranks)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parts_give_the_ids_and_logits_of_the_whole(tensord, tiny, layout):
    ranks, args = LAYOUTS[layout]
    alone = generate(tensord, tiny)
    for overlap in ("on", "off"):
        out = generate(tensord, tiny, *args, "--overlap", overlap, ranks=ranks)
        assert (out["ids"], out["logits_hash"]) == (alone["ids"], alone["logits_hash"]), overlap


def choices_of_a_prompt(tensord, tiny, *args):
    """What is said of overlap when a prompt runs as one step, again and again."""
    p = tensord.run("bench", "--model", tiny, "--cases", "prefill", "--prompt-tokens", 128, "--repetitions", 1, "--threads", 1,
                    "--verbose", *args, ranks=2)
    assert p.returncode == 0, p.stderr[-2000:]
    return re.findall(r"debug overlap rows=(\d+) choice=(\w+) (.*) per row", p.stderr)


def test_auto_tries_every_way_where_ranks_exchange_messages_and_says_so(tensord, tiny):
    said = choices_of_a_prompt(tensord, tiny, "--transport", "mpi")
    assert len(said) == 1, said
    rows, choice, times = said[0]
    us = {way: float(t) for way, t in re.findall(r"(\w+)=([\d.]+)us", times)}
    assert int(rows) == 128 and list(us) == ["whole", "halves", "quarters"] and min(us.values()) > 0
    best = min(us, key=us.get)
    if us[best] < 0.97 * us["whole"]:
        assert us[choice] <= us[best] + 0.1
    elif us[best] > 0.99 * us["whole"]:
        assert choice == "whole"


@pytest.mark.parametrize("args", [(), ("--transport", "mpi", "--overlap", "on"), ("--transport", "mpi", "--overlap", "off")])
def test_nothing_is_tried_in_one_hosts_memory_or_where_the_user_decides(tensord, tiny, args):
    assert choices_of_a_prompt(tensord, tiny, *args) == []


def test_an_unknown_word_is_refused(tensord, tiny):
    p = tensord.run("generate", "--model", tiny, "--overlap", "maybe", "--prompt", "a")
    assert p.returncode == 2
    assert "--overlap" in p.stderr and "maybe" in p.stderr and "auto, on, off" in p.stderr


@pytest.fixture(scope="module")
def cut():
    """Two ranks that exchange messages and cut every step; their group may be broken, and every test leaves it ready."""
    with Server("-n", 2, *SLOW, "--transport", "mpi", "--overlap", "on") as s:
        s.wait_ready()
        s.expected = s.complete(PROMPT, max_tokens=32, temperature=0)
        s.golden = ask_all(s)
        yield s
        s.stop()


@needs_model
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_lost_in_the_middle_is_noticed_and_the_group_relaunched(cut, how):
    """Eight answers at once: every step has several rows, so each is cut."""
    before = cut.group()
    check_broken(cut, *break_group(cut, lambda: os.kill(before["ranks"][1]["pid"], how)), before)
