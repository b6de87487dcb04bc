"""Bad input to the offline commands: a status that is not 0, and one line that says what was wrong and what was expected."""
import json
import re
import shutil

import pytest

HF_260K, HF_3M = "stories260K/hf", "stories3M/hf-bf16-sharded"
MODEL_COMMANDS = {
    "generate": ("--prompt", "Once", "--max-tokens", "2"),
    "perplexity": ("--file", "/dev/null"),
    "bench": ("--repetitions", "1"),
    "plan": ("-n", "2"),
    "inspect": (),
}


def refused(p, command, *words, status=(1, 2)):
    """The run failed as it should: its one complaint holds all the words."""
    assert p.returncode in status, (p.returncode, p.stderr)
    lines = [line for line in p.stderr.splitlines()
             if not line.startswith("loading") and not line.startswith("See 'tensord ")]
    assert len(lines) == 1, p.stderr
    assert lines[0].startswith(f"tensord {command}: ")
    for word in words:
        assert re.search(word, lines[0]), (word, lines[0])
    assert p.stdout == ""


@pytest.fixture
def copy_of(shared, tmp_path):
    """A copy of a model that may be damaged."""

    def copy(name):
        to = tmp_path / "model"
        if (shared / "models" / name).is_dir():
            shutil.copytree(shared / "models" / name, to, copy_function=shutil.copyfile)
            to.chmod(0o755)
        else:
            to = tmp_path / "model.gguf"
            shutil.copyfile(shared / "models" / name, to)
        return to

    return copy


def edit_json(path, **changes):
    value = json.loads(path.read_text())
    for key, v in changes.items():
        value[key] = v
    path.write_text(json.dumps(value))


# ---- the checkpoint ----


def missing(copy_of):
    return copy_of(HF_260K) / "nowhere", ["nowhere", "No such file|not found|does not exist"]


def empty_folder(copy_of):
    model = copy_of(HF_260K)
    for f in model.iterdir():
        f.unlink()
    return model, ["config.json"]


def no_weights(copy_of):
    model = copy_of(HF_260K)
    (model / "model.safetensors").unlink()
    return model, ["safetensors"]


def truncated(copy_of):
    model = copy_of(HF_260K)
    with open(model / "model.safetensors", "r+b") as f:
        f.truncate(500_000)
    return model, ["model.safetensors", r"\d"]


def truncated_gguf(copy_of):
    model = copy_of("stories260K/gguf/stories260K-F16.gguf")
    with open(model, "r+b") as f:
        f.truncate(400_000)
    return model, ["model.gguf", r"\d"]


def oversized_header(copy_of):
    model = copy_of(HF_260K)
    with open(model / "model.safetensors", "r+b") as f:
        f.write((1 << 62).to_bytes(8, "little"))
    return model, ["model.safetensors", "4611686018427387904"]


def oversized_gguf_count(copy_of):
    model = copy_of("stories260K/gguf/stories260K-F16.gguf")
    with open(model, "r+b") as f:
        f.seek(8)
        f.write((1 << 60).to_bytes(8, "little"))
    return model, ["model.gguf", "1152921504606846976"]


def index_to_another_shard(copy_of):
    model = copy_of(HF_3M)
    index = json.loads((model / "model.safetensors.index.json").read_text())
    name, shard = next(iter(index["weight_map"].items()))
    other = next(s for s in index["weight_map"].values() if s != shard)
    index["weight_map"][name] = other
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    return model, [re.escape(name)]


def index_without_its_shard(copy_of):
    model = copy_of(HF_3M)
    (model / "model-00002-of-00002.safetensors").unlink()
    return model, ["model-00002-of-00002.safetensors"]


def unknown_architecture(copy_of):
    model = copy_of(HF_260K)
    edit_json(model / "config.json", architectures=["MambaForCausalLM"], model_type="mamba")
    return model, ["[Mm]amba"]


def wrong_shape(copy_of):
    model = copy_of(HF_260K)
    edit_json(model / "config.json", hidden_size=128)
    return model, ["64", "128"]


def unknown_rope(copy_of):
    model = copy_of(HF_260K)
    edit_json(model / "config.json", rope_scaling={"rope_type": "longrope", "factor": 4.0})
    return model, ["longrope"]


def config_is_no_json(copy_of):
    model = copy_of(HF_260K)
    (model / "config.json").write_text('{"hidden_size": ')
    return model, ["config.json"]


def neither_format(copy_of):
    model = copy_of("stories260K/gguf/stories260K-F16.gguf")
    with open(model, "r+b") as f:
        f.write(b"ELF!")
    return model, ["model.gguf", "GGUF"]


CHECKPOINTS = [missing, empty_folder, no_weights, truncated, truncated_gguf, oversized_header, oversized_gguf_count,
               index_to_another_shard, index_without_its_shard, unknown_architecture, wrong_shape, unknown_rope,
               config_is_no_json, neither_format]


@pytest.mark.parametrize("damage", CHECKPOINTS, ids=lambda f: f.__name__)
def test_a_bad_checkpoint_is_refused_by_every_command(tensord, copy_of, damage):
    model, words = damage(copy_of)
    for command, args in MODEL_COMMANDS.items():
        refused(tensord.run(command, "--model", model, *args), command, *words, status=(1,))


def test_a_missing_tokenizer_is_refused(tensord, copy_of):
    model = copy_of(HF_260K)
    (model / "tokenizer.json").unlink()
    refused(tensord.run("generate", "--model", model, "--prompt", "Once"), "generate", "tokenizer")


# ---- the request ----


@pytest.mark.parametrize("command,args,words", [
    ("generate", ("--prompt", "a", "--max-model-len", "9999"), ["9999", "512"]),
    ("plan", ("--max-model-len", "9999"), ["9999", "512"]),
    ("generate", ("--prompt-ids", ",".join(["5"] * 600)), ["600", "512"]),
    ("generate", ("--prompt", "Once upon a time. " * 20, "--max-model-len", "40"), ["40"]),
    ("generate", ("--prompt-ids", "1,512"), ["512", "vocabulary"]),
    ("generate", ("--prompt-ids", "1,-3"), ["-3", "expected"]),
    ("generate", ("--prompt-ids", ""), ["--prompt-ids", "expected"]),
    ("generate", ("--prompt", ""), ["--prompt", "empty"]),
    ("generate", ("--prompt-file", "/nowhere/prompt.txt"), ["/nowhere/prompt.txt"]),
    ("generate", ("--prompt", "a", "--temperature", "-1"), ["--temperature", "-1", "expected"]),
    ("generate", ("--prompt", "a", "--top-p", "1.5"), ["--top-p", "1.5", "expected"]),
    ("generate", ("--prompt", "a", "--max-tokens", "0"), ["--max-tokens", "0", "expected"]),
    ("generate", ("--prompt", "a", "--logprobs", "99"), ["--logprobs", "99", "expected"]),
    ("generate", ("--prompt", "a", "--block-size", "24"), ["24", "power of two"]),
    ("generate", ("--prompt", "a", "--no-such-option", "1"), ["no-such-option"]),
    ("generate", ("--prompt", "a", "--cpu-isa", "sse9"), ["sse9", "avx2"]),
    ("generate", ("--prompt", "a", "--memory-bytes", "1000"), ["1000", "needs"]),
    ("plan", ("--memory-bytes", "1500000", "--max-model-len", "512"), ["1500000"]),
    ("plan", ("-n", "3", "--shares", "3:1"), ["2", "3"]),
    ("plan", ("-n", "3", "--shares", "3:x:1"), ["3:x:1", "expected"]),
    ("plan", ("-n", "3", "--shares", "3:0:1"), ["0"]),
    ("plan", ("-n", "6", "-pp", "6"), ["6", "5 layers"]),
    ("plan", ("-n", "4", "-tp", "3", "-pp", "2"), ["3", "2", "4"]),
    ("plan", ("-n", "5", "-pp", "2"), ["5", "2"]),
    ("generate", ("--prompt", "a", "-tp", "2"), ["2", "1"]),
    ("generate", ("--prompt", "a", "--ranks", "2"), ["2", "mpirun"]),
    ("perplexity", ("--file", "/nowhere/text.txt"), ["/nowhere/text.txt"]),
    ("perplexity", ("--file", "/dev/null"), ["tokens", "expected"]),
    ("perplexity", ("--file", "/dev/null", "--context", "1"), ["--context", "1", "expected"]),
    ("perplexity", ("--file", "/dev/null", "--context", "400", "--max-model-len", "300"), ["400", "300"]),
    ("bench", ("--prompt-tokens", "500", "--gen-tokens", "100"), ["500", "100", "512"]),
])
def test_a_bad_request_is_refused(tensord, shared, command, args, words):
    refused(tensord.run(command, "--model", shared / "models" / HF_260K, *args), command, *words)


def test_a_text_that_is_no_utf8_is_refused(tensord, shared, tmp_path):
    text = tmp_path / "latin1.txt"
    text.write_bytes("Grün und Weiß".encode("latin-1"))
    for command, flag in (("generate", "--prompt-file"), ("perplexity", "--file")):
        refused(tensord.run(command, "--model", shared / "models" / HF_260K, flag, text), command, "UTF-8")


@pytest.mark.parametrize("args,words", [
    (("-tp", "2", "-pp", "2"), ["2", "4 ranks", "3"]),
    (("--shares", "3:1"), ["2 numbers", "3 ranks"]),
    (("--prompt-ids", "1,512"), ["512", "vocabulary"]),
    (("--model", "/nowhere/model"), ["/nowhere/model"]),
    (("--memory-bytes", "1000"), ["1000"]),
])
def test_a_job_of_three_ranks_refuses_and_ends(tensord, shared, args, words):
    base = [] if "--model" in args else ["--model", shared / "models" / HF_260K]
    prompt = [] if "--prompt-ids" in args else ["--prompt", "a"]
    p = tensord.run("generate", *base, *prompt, *args, ranks=3, limit_s=30)
    assert p.returncode != 0
    complaints = {line for line in p.stderr.splitlines() if line.startswith("tensord generate: ")}
    assert complaints
    for word in words:
        assert all(re.search(word, c) for c in complaints), (word, complaints)
    assert "signal" not in p.stderr, p.stderr
