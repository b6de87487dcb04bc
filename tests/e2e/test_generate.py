"""`tensord generate` against references, and the same bits from every layout.

Reference ids come from other programs: float64 numpy for the models in ../shared, Hugging Face transformers for the one
that ships. Hashes and ids of layouts are compared with those of one process.
"""
import json
import os
import pathlib
import re
import shutil

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROMPT = "Once upon a time"

HF_260K, HF_3M = "stories260K/hf", "stories3M/hf-bf16-sharded"
Q8_3M, Q4_3M = "stories3M/gguf/stories3M-Q8_0.gguf", "stories3M/gguf/stories3M-Q4_0.gguf"
F32_260K, F16_260K, BF16_260K = (f"stories260K/gguf/stories260K-{t}.gguf" for t in ("F32", "F16", "BF16"))

LAYOUTS = {
    "tp1": (1, ("-tp", "1")),
    "tp2": (2, ("-tp", "2")),
    "tp3": (3, ("-tp", "3")),
    "tp4": (4, ("-tp", "4")),
    "tp8": (8, ("-tp", "8")),
    "pp2": (2, ("-pp", "2")),
    "tp2-pp2": (4, ("-tp", "2", "-pp", "2")),
    "shares-3-1-1": (3, ("--shares", "3:1:1")),
}
# Three models in every layout; the other types of weights where the split is least even, and through a pipeline.
CASES = [(m, layout) for m in (HF_260K, HF_3M, "tensord-tiny") for layout in LAYOUTS]
CASES += [(m, layout) for m in (Q8_3M, Q4_3M, F16_260K, BF16_260K) for layout in ("tp8", "tp2-pp2", "shares-3-1-1")]


def generate(tensord, model, *args, ranks=0, prompt=PROMPT, n=32):
    return tensord.json_once("generate", "--model", model, "--prompt", prompt, "--max-tokens", n, "--ignore-eos", *args,
                             ranks=ranks)


@pytest.mark.parametrize("model,reference", [
    (HF_260K, "stories260K/reference.json"),
    (F32_260K, "stories260K/reference.json"),
    (HF_3M, "stories3M/reference-bf16.json"),
])
def test_greedy_ids_equal_the_float64_reference(tensord, shared, in_f32, model, reference):
    prompts = json.loads((shared / "models" / reference).read_text())["prompts"]
    path = shared / "models" / model
    path = in_f32(path) if model == HF_3M else path
    assert len(prompts) == 5
    for p in prompts:
        out = tensord.json("generate", "--model", path, "--prompt", p["prompt"], "--max-tokens",
                           len(p["greedy"]), "--ignore-eos", "--logprobs", "5")
        assert out["prompt_ids"] == p["prompt_ids"]
        assert out["ids"] == [g["id"] for g in p["greedy"]]
        assert out["text"] == p["text"]
        assert out["finish_reason"] == "length"
        for mine, theirs in zip(out["logprobs"], p["greedy"], strict=True):
            assert mine["logprob"] == pytest.approx(theirs["logprob"], abs=0.02)
            assert [t["logprob"] for t in mine["top"]] == pytest.approx([t[1] for t in theirs["top5"]], abs=0.05)


def test_greedy_ids_equal_the_published_text(tensord, shared):
    published = (shared / "models/stories260K/published-output.md").read_text()
    out = generate(tensord, shared / "models" / HF_260K, n=200)
    assert " ".join((PROMPT + out["text"]).split()) in " ".join(published.split())


@pytest.mark.parametrize("dtype,margin,off", [("f32", 1e-3, 5e-3), ("bf16", 0.1, 0.1)])
def test_greedy_ids_of_the_shipped_model_equal_transformers(tensord, tiny, in_f32, dtype, margin, off):
    golden = json.loads((ROOT / "tests/golden/tensord-tiny.json").read_text())
    decided = 0
    for p in golden["prompts"]:
        ids = ",".join(map(str, p["prompt_ids"]))
        out = tensord.json("generate", "--model", in_f32(tiny) if dtype == "f32" else tiny, "--prompt-ids", ids, "--max-tokens", len(p["greedy_ids"]),
                           "--ignore-eos", "--logprobs", "5", "--kv-cache-dtype", "f32")
        # A tie closer than the roundings of either program decides nothing, nor what comes after it.
        clear = [t[0][1] - t[1][1] > margin for t in p["top5"]]
        n = clear.index(False) if False in clear else len(clear)
        decided += n
        assert out["ids"][:n] == p["greedy_ids"][:n]
        # The step of the first tie still has the same tokens before it.
        for mine, theirs in zip(out["logprobs"][:n + 1], p["top5"][:n + 1], strict=True):
            assert [t["logprob"] - mine["top"][0]["logprob"] for t in mine["top"]] == pytest.approx(
                [t[1] - theirs[0][1] for t in theirs], abs=off)
    assert decided == 9 * 48 if dtype == "f32" else decided > 100


@pytest.mark.parametrize("model,layout", CASES)
def test_every_layout_gives_the_same_bits_and_splits_the_work(tensord, find_model, model, layout):
    path = find_model(model)
    ranks, args = LAYOUTS[layout]
    alone = generate(tensord, path)
    out = generate(tensord, path, *args, ranks=ranks)
    assert out["ids"] == alone["ids"]
    assert out["logits_hash"] == alone["logits_hash"]

    plan = tensord.json_once("plan", "--model", path, "-n", ranks, *args)
    assert len(out["ranks"]) == len(plan["per_rank"]) == ranks
    for have, want in zip(out["ranks"], plan["per_rank"], strict=True):
        assert have["weight_bytes"] == want["weight_bytes"]
        assert have["kv_bytes"] == want["kv_bytes"]
    weights = sum(r["weight_bytes"] for r in out["ranks"])
    assert weights == plan["model_bytes"] + sum(r["replicated_bytes"] for r in plan["per_rank"])
    # What is held twice are norms and, where ranks outnumber them, KV heads: far less than the model.
    assert weights < 1.5 * plan["model_bytes"]
    sent = sum(r["exchanged_bytes_per_token"] for r in out["ranks"])
    assert sent == pytest.approx(plan["exchanged_bytes_per_token"], rel=1e-9)
    assert (sent > 0) == (ranks > 1)


@pytest.mark.parametrize("model", [HF_260K, HF_3M, Q4_3M, "tensord-tiny"])
def test_prompt_chunks_threads_and_pages_do_not_matter(tensord, find_model, model):
    path = find_model(model)
    prompt = "Once upon a time there was a little fox who lived near a big river and liked to play in the snow."
    alone = generate(tensord, path, prompt=prompt, n=16)
    assert len(alone["prompt_ids"]) > 16
    for args, ranks in ((("--prefill-chunk", "1"), 0), (("--prefill-chunk", "7"), 0), (("--threads", "3"), 0),
                        (("--block-size", "1"), 0), (("--block-size", "64", "--max-num-seqs", "1"), 0),
                        (("--cpu-isa", "ref"), 0), (("-tp", "2", "--prefill-chunk", "3"), 2)):
        out = generate(tensord, path, *args, ranks=ranks, prompt=prompt, n=16)
        assert out["ids"] == alone["ids"], args
        assert out["logits_hash"] == alone["logits_hash"], args


# ---- one changed weight ----


def flip(model, role, layer, row, col):
    """Flips the highest fraction bit of one weight of a Hugging Face model, in place."""
    name = {"q": "self_attn.q_proj", "o": "self_attn.o_proj", "down": "mlp.down_proj", "gate": "mlp.gate_proj"}[role]
    name = f"model.layers.{layer}.{name}.weight"
    for path in sorted(model.glob("*.safetensors")):
        with open(path, "r+b") as f:
            header_bytes = int.from_bytes(f.read(8), "little")
            header = json.loads(f.read(header_bytes))
            if name not in header:
                continue
            tensor = header[name]
            width = {"F32": 4, "BF16": 2}[tensor["dtype"]]
            assert row < tensor["shape"][0] and col < tensor["shape"][1]
            # Little endian: bit 22 of F32 and bit 6 of BF16 lie in the last byte but one.
            at = (8 + header_bytes + tensor["data_offsets"][0] + (row * tensor["shape"][1] + col) * width + width - 2)
            f.seek(at)
            byte = f.read(1)[0]
            f.seek(at)
            f.write(bytes([byte ^ 0x40]))
            return
    raise AssertionError(f"{model} has no {name}")


def owned_weights(rank, head_dim):
    """(role, layer, row, column) of a weight that only this rank has, one for each kind of split that it takes part in."""
    found = []
    for s in rank["slices"]:
        if s["heads"][1] > s["heads"][0]:
            found.append(("q", s["layer"], s["heads"][1] * head_dim - 1, 3))  # a row of its last head
            found.append(("o", s["layer"], 5, s["heads"][0] * head_dim + 1))  # a column of its first
        if s["ffn"][1] > s["ffn"][0]:
            found.append(("gate", s["layer"], s["ffn"][0], 7))
            found.append(("down", s["layer"], 9, s["ffn"][1] - 1))
    return found


@pytest.mark.parametrize("layout", ["tp1", "tp3", "tp2-pp2"])
@pytest.mark.parametrize("guesses", [1, 6, 15])
def test_guesses_ahead_change_neither_ids_nor_logits(tensord, find_model, layout, guesses):
    ranks, args = LAYOUTS[layout]
    run = dict(n=150, prompt="The dog and the cat. The dog and the cat. The dog")
    want = generate(tensord, find_model("tensord-tiny"), **run)
    got = generate(tensord, find_model("tensord-tiny"), *args, "--speculative-tokens", guesses, ranks=ranks, **run)
    assert (got["ids"], got["logits_hash"]) == (want["ids"], want["logits_hash"])


@pytest.mark.parametrize("layout", ["tp1", "tp3", "tp2-pp2"])
def test_a_draft_model_changes_neither_ids_nor_logits(tensord, find_model, layout):
    ranks, args = LAYOUTS[layout]
    model = find_model("tensord-tiny")
    run = dict(n=100, prompt="The dog and the cat.")
    want = generate(tensord, model, "--temperature", 1, "--seed", 4, **run)
    got = generate(tensord, model, *args, "--temperature", 1, "--seed", 4, "--speculative-model", model, ranks=ranks, **run)
    assert (got["ids"], got["logits_hash"]) == (want["ids"], want["logits_hash"])
    assert got["drafts"]["verified"] > 50 and got["drafts"]["right"] == got["drafts"]["verified"]

@pytest.mark.parametrize("model,head_dim,layout", [
    (HF_260K, 8, "shares-3-1-1"),
    (HF_3M, 32, "shares-3-1-1"),
    (HF_260K, 8, "tp8"),
])
def test_one_flipped_weight_of_any_rank_changes_the_hash(tensord, shared, tmp_path, model, head_dim, layout):
    ranks, args = LAYOUTS[layout]
    original = shared / "models" / model
    want = generate(tensord, original, n=2)["logits_hash"]
    plan = tensord.json_once("plan", "--model", original, "-n", ranks, *args)
    copy = tmp_path / "model"
    shutil.copytree(original, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    seen = {want}
    n_owners = 0
    for rank in plan["per_rank"]:
        owned = owned_weights(rank, head_dim)
        if not owned:
            continue
        n_owners += 1
        where = owned[(rank["rank"] * 5 + 1) % len(owned)]
        flip(copy, *where)
        split = tensord.json("generate", "--model", copy, "--prompt", PROMPT, "--max-tokens", 2, "--ignore-eos", *args,
                             ranks=ranks)
        alone = tensord.json("generate", "--model", copy, "--prompt", PROMPT, "--max-tokens", 2, "--ignore-eos")
        flip(copy, *where)
        assert split["logits_hash"] == alone["logits_hash"], where
        assert split["logits_hash"] not in seen, where
        seen.add(split["logits_hash"])
    assert n_owners == ranks
    assert tensord.json("generate", "--model", copy, "--prompt", PROMPT, "--max-tokens", 2,
                        "--ignore-eos")["logits_hash"] == want


# ---- the command's own behaviour ----


def test_max_tokens_stop_strings_and_seeds(tensord, shared):
    model = shared / "models" / HF_260K
    text = generate(tensord, model, n=32)["text"]
    assert "girl" in text
    stopped = tensord.json("generate", "--model", model, "--prompt", PROMPT, "--stop", "girl", "--max-tokens", 32)
    assert stopped["text"] == text[:text.index("girl")]
    assert stopped["finish_reason"] == "stop"
    assert [t["id"] for t in stopped["logprobs"]] == stopped["ids"]  # told without being asked for
    draws = [tensord.json("generate", "--model", model, "--prompt", PROMPT, "--temperature", 1, "--seed", seed,
                          "--max-tokens", 24, ranks=ranks)["ids"] for seed, ranks in ((1, 0), (1, 0), (1, 3), (2, 0))]
    assert draws[0] == draws[1] == draws[2]
    assert draws[0] != draws[3]


def test_an_answer_ends_at_the_end_token_unless_told(tensord, shared):
    model = shared / "models" / HF_260K
    ended = tensord.json("generate", "--model", model, "--prompt", PROMPT, "--max-tokens", 500)
    assert ended["finish_reason"] == "stop"
    assert ended["ids"][-1] in (1, 2)
    on = generate(tensord, model, n=len(ended["ids"]) + 4)
    assert on["ids"][:len(ended["ids"])] == ended["ids"]
    assert len(on["ids"]) == len(ended["ids"]) + 4


def test_plain_output_is_the_text(tensord, shared):
    model = shared / "models" / HF_3M
    p = tensord.run("generate", "--model", model, "--prompt", PROMPT, "--max-tokens", 32, "--ignore-eos")
    assert p.returncode == 0
    assert p.stdout == generate(tensord, model)["text"] + "\n"
    assert p.stderr.strip().splitlines()[-1].startswith("loading  100 %")


def listed(cores):
    """The numbers of "0-3,8"."""
    ends = [list(map(int, part.split("-"))) for part in cores.split(",")]
    return [n for e in ends for n in range(e[0], e[-1] + 1)]


@pytest.mark.parametrize("ranks", [0, 1, 2, 3, 5])
def test_ranks_of_a_host_never_take_a_core_twice(tensord, tiny, ranks):
    p = tensord.run("generate", "--verbose", "--model", tiny, "--prompt", PROMPT, "--max-tokens", 2, ranks=ranks)
    assert p.returncode == 0, p.stderr
    choices = re.findall(r'cores rank=(\d+) choice="threads (\d+) on (shared cores|any core|cores? ([0-9,-]+))', p.stderr)
    assert sorted(int(c[0]) for c in choices) == list(range(max(ranks, 1)))
    threads = [int(c[1]) for c in choices]
    assert sum(threads) <= len(os.sched_getaffinity(0)) or set(threads) == {1}
    taken = [n for c in choices if c[3] for n in listed(c[3])]
    assert len(taken) == len(set(taken)) == sum(int(c[1]) for c in choices if c[3])
    assert set(taken) <= os.sched_getaffinity(0)


def test_threads_stay_within_the_affinity_mask(tensord, tiny):
    last = max(os.sched_getaffinity(0))
    p = tensord.run("generate", "--verbose", "--model", tiny, "--prompt", PROMPT, "--max-tokens", 2,
                    preexec_fn=lambda: os.sched_setaffinity(0, {last}))
    assert p.returncode == 0, p.stderr
    assert re.search(rf'choice="threads 1 on (core {last} |any core)', p.stderr), p.stderr
