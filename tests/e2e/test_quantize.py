"""`tensord quantize`: what it writes, read by a reader of its own, against files that llama.cpp's tools wrote, and run."""
import json
import math
import shutil
import struct

import pytest

from gguffile import Gguf

HF_260K, HF_3M = "stories260K/hf", "stories3M/hf-bf16-sharded"
TYPES = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4",
         "bf16", "f16", "f32"]


def safetensors(folder):
    """{name: (dtype, shape, bytes)} of all files."""
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        n, = struct.unpack_from("<Q", data)
        header = json.loads(data[8:8 + n])
        header.pop("__metadata__", None)
        for name, t in header.items():
            a, b = t["data_offsets"]
            found[name] = (t["dtype"], t["shape"], data[8 + n + a:8 + n + b])
    return found


@pytest.fixture(scope="session")
def quantized(tensord, find_model, tmp_path_factory):
    """(model, type, more options) -> path of the result, made once."""
    known = {}

    def make(model, kind, *args):
        key = (model, kind, *args)
        if key not in known:
            out = tmp_path_factory.mktemp("quantized") / ("model" if kind == "f8_e4m3" else "model.gguf")
            report = tensord.json("quantize", find_model(model), out, "--type", kind, *args)
            assert report["output"] == str(out) and report["type"] == kind
            assert sum(f.stat().st_size for f in (out.iterdir() if out.is_dir() else [out])) == report["bytes"]
            assert [p.name for p in out.parent.iterdir()] == [out.name], "something is left beside the result"
            known[key] = out
        return known[key]

    return make


def generate(tensord, model, *args, ranks=0):
    return tensord.json_once("generate", "--model", model, "--prompt", "Once upon a time", "--max-tokens", "24",
                             "--ignore-eos", *args, ranks=ranks)


# ---- plain conversion ----


def test_bf16_of_the_shipped_model_has_its_bytes_and_its_bits(tensord, quantized, tiny):
    path = quantized("tensord-tiny", "bf16")
    gguf, source = Gguf(path), safetensors(tiny)
    assert gguf.metadata["general.architecture"] == b"qwen3"
    assert gguf.metadata["general.name"] == b"tensord-tiny"
    assert gguf.metadata["general.file_type"] == 32
    assert gguf.metadata["qwen3.rope.freq_base"] == 10000.0
    assert gguf.metadata["tokenizer.ggml.model"] == b"gpt2"
    assert gguf.metadata["tokenizer.ggml.pre"] == b"qwen2"
    assert gguf.metadata["tokenizer.ggml.eos_token_id"] == 2047
    assert len(gguf.metadata["tokenizer.ggml.tokens"]) == 2048
    assert len(gguf.metadata["tokenizer.ggml.merges"]) == 1789
    assert gguf.metadata["tokenizer.ggml.token_type"][2045:] == [3, 3, 3]
    names = {"token_embd.weight": "model.embed_tokens.weight", "blk.3.attn_q.weight": "model.layers.3.self_attn.q_proj.weight",
             "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight"}
    for mine, theirs in names.items():
        kind, shape, data = gguf.tensors[mine]
        assert (kind, shape[::-1], data) == source[theirs]
    kind, shape, data = gguf.tensors["output_norm.weight"]
    assert kind == "F32" and data == b"".join(b"\0\0" + source["model.norm.weight"][2][i:i + 2] for i in range(0, 512, 2))
    assert len(gguf.tensors) == len(source)

    mine, theirs = generate(tensord, path), generate(tensord, tiny)
    assert mine["prompt_ids"] == theirs["prompt_ids"] and mine["ids"] == theirs["ids"]
    assert mine["logits_hash"] == theirs["logits_hash"]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_a_directory_becomes_what_another_converter_makes_of_it(tensord, shared, quantized, kind):
    """q and k are interleaved there, so the sum over a head's columns has another order: ids are equal, bits are not."""
    mine = Gguf(quantized(HF_260K, kind.lower()))
    peer = Gguf(shared / f"models/stories260K/gguf/stories260K-{kind}.gguf")
    for name, (peer_kind, shape, data) in peer.tensors.items():
        if name == "output.weight":  # tied in the directory, written out there
            continue
        assert mine.tensors[name] == (peer_kind, shape, data), name
    assert set(mine.tensors) == set(peer.tensors) - {"output.weight"}
    for key in ("tokens", "token_type", "model", "bos_token_id", "unknown_token_id", "add_bos_token", "add_space_prefix"):
        key = "tokenizer.ggml." + key
        if key in peer.metadata:
            assert mine.metadata[key] == peer.metadata[key], key
    for key in ("embedding_length", "block_count", "feed_forward_length", "attention.head_count", "attention.head_count_kv",
                "rope.dimension_count", "attention.layer_norm_rms_epsilon", "vocab_size"):
        if "llama." + key in peer.metadata:
            assert mine.metadata["llama." + key] == peer.metadata["llama." + key], key


@pytest.mark.parametrize("model,kind", [(HF_260K, "f32"), (HF_3M, "bf16")])
def test_ids_of_a_llama_directory_stay(tensord, find_model, quantized, model, kind):
    """Up to where two tokens are nearly as likely: a sum in another order decides there."""
    mine, theirs = (generate(tensord, m, "--logprobs", "2") for m in (quantized(model, kind), find_model(model)))
    assert mine["prompt_ids"] == theirs["prompt_ids"]
    clear = [t["top"][0]["logprob"] - t["top"][1]["logprob"] > 0.05 for t in theirs["logprobs"]]
    n = clear.index(False) if False in clear else len(clear)
    assert n >= 8
    assert mine["ids"][:n] == theirs["ids"][:n]
    for a, b in zip(mine["logprobs"][:n], theirs["logprobs"][:n], strict=True):
        assert a["logprob"] == pytest.approx(b["logprob"], abs=0.05)


# ---- quantised ----


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_runs_with_the_same_bits_on_three_ranks(tensord, quantized, kind):
    path = quantized("tensord-tiny", kind)
    types = set(Gguf(path).types().values()) - {"F32"}
    assert types == {kind.upper(), "Q6_K"} if kind not in ("q8_0", "q6_k", "bf16", "f16", "f32") else types <= {kind.upper()}
    plan = tensord.json("plan", "--model", path, "-n", "3")
    assert sum(r["weight_bytes"] - r["replicated_bytes"] for r in plan["per_rank"]) == plan["model_bytes"]
    alone, split = generate(tensord, path), generate(tensord, path, "-tp", "3", ranks=3)
    assert split["ids"] == alone["ids"] and split["logits_hash"] == alone["logits_hash"]


@pytest.mark.parametrize("source,kind,peer", [
    (HF_3M, "q8_0", "stories3M/gguf/stories3M-Q8_0.gguf"),
    (HF_3M, "q4_0", "stories3M/gguf/stories3M-Q4_0.gguf"),
    (HF_3M, "q6_k", "stories3M/gguf/stories3M-Q6_K.gguf"),
    ("stories260K/gguf/stories260K-F32.gguf", "q6_k", "stories260K/gguf/stories260K-Q6_K.gguf"),
    ("stories260K/gguf/stories260K-F32.gguf", "iq4_xs", "stories260K/gguf/stories260K-IQ4_XS.gguf"),
    ("stories260K/gguf/stories260K-F32.gguf", "q2_k", "stories260K/gguf/stories260K-Q2_K.gguf"),
])
def test_types_fall_back_as_another_quantiser_lets_them(shared, quantized, source, kind, peer):
    mine, theirs = Gguf(quantized(source, kind)), Gguf(shared / "models" / peer)
    assert mine.types() == theirs.types()
    assert mine.metadata["general.quantization_version"] == theirs.metadata["general.quantization_version"]
    if source.endswith("F32.gguf"):  # from the same numbers; types without a search have one rule
        plain = [n for n, t in theirs.tensors.items() if t[0] in ("F32", "F16", "Q8_0", "Q4_0")]
        assert plain and [n for n in plain if mine.tensors[n] != theirs.tensors[n]] == []


def test_fallbacks_and_requantised_weights_are_told(tensord, shared, tmp_path):
    p = tensord.run("quantize", shared / "models/stories260K/gguf/stories260K-Q6_K.gguf", tmp_path / "a.gguf", "--type",
                    "q4_k", "--threads", "1")
    assert p.returncode == 0, p.stderr
    assert "blk.0.ffn_down.weight: rows of 172 are no whole number of q4_k blocks, so f16" in p.stderr
    assert "output.weight: rows of 64 are no whole number of q6_k blocks, so q8_0" in p.stderr
    assert p.stderr.count("dequantised first") == 1
    assert "48 tensors (" in p.stdout


def test_threads_do_not_matter_and_force_writes_over(tensord, tiny, quantized, tmp_path):
    out = tmp_path / "a.gguf"
    for threads in ("1", "5"):
        p = tensord.run("quantize", tiny, out, "--type", "q4_k", "--threads", threads, "--force")
        assert p.returncode == 0, p.stderr
        assert out.read_bytes() == quantized("tensord-tiny", "q4_k").read_bytes()


def test_pure_gives_the_head_the_type_of_all(quantized):
    assert Gguf(quantized("tensord-tiny", "q4_0", "--pure")).types()["token_embd.weight"] == "Q4_0"
    assert Gguf(quantized("tensord-tiny", "q4_0")).types()["token_embd.weight"] == "Q6_K"


def test_a_type_that_is_not_built_is_refused_by_name(tensord, quantized, tmp_path):
    path = tmp_path / "m.gguf"
    shutil.copyfile(quantized("tensord-tiny", "q3_k"), path)
    with open(path, "r+b") as f:  # blocks of IQ3_S have as many bytes
        f.seek(Gguf(path).type_at["blk.1.ffn_up.weight"])
        f.write(struct.pack("<I", 21))
    for command in ("generate", "plan"):
        args = ("--prompt", "a") if command == "generate" else ()
        p = tensord.run(command, "--model", path, *args)
        assert p.returncode == 1
        assert "'blk.1.ffn_up.weight' has type IQ3_S" in p.stderr


# ---- FP8 ----


def e4m3(byte):
    exponent, fraction = byte >> 3 & 15, byte & 7
    value = (8 + fraction) * 2.0 ** (exponent - 10) if exponent else fraction * 2.0 ** -9
    return -value if byte & 128 else value


@pytest.mark.parametrize("scales", ["block", "channel", "tensor"])
def test_fp8_directories_hold_scaled_weights_and_run(tensord, tiny, quantized, scales):
    path = quantized("tensord-tiny", "f8_e4m3", "--fp8-scales", scales)
    config = json.loads((path / "config.json").read_text())
    quantization = config.pop("quantization_config")
    assert config == json.loads((tiny / "config.json").read_text())
    assert (path / "tokenizer.json").read_bytes() == (tiny / "tokenizer.json").read_bytes()
    mine, source = safetensors(path), safetensors(tiny)
    name = "model.layers.2.mlp.down_proj.weight"
    suffix, shape = {"block": ("_scale_inv", [2, 6]), "channel": ("_scale", [256, 1]), "tensor": ("_scale", [1])}[scales]
    if scales == "block":
        assert quantization["quant_method"] == "fp8" and quantization["weight_block_size"] == [128, 128]
    else:
        assert quantization["quant_method"] == "compressed-tensors"
        assert quantization["config_groups"]["group_0"]["weights"]["strategy"] == scales
    assert mine["model.embed_tokens.weight"] == source["model.embed_tokens.weight"]
    assert mine["model.norm.weight"] == source["model.norm.weight"]
    assert mine[name][:2] == ("F8_E4M3", [256, 768]) and mine[name + suffix][:2] == ("F32", shape)

    scale = struct.unpack(f"<{math.prod(shape)}f", mine[name + suffix][2])
    table = [e4m3(b) for b in range(256)]
    largest = 0.0
    for i, byte in enumerate(mine[name][2]):
        row, col = divmod(i, 768)
        s = scale[{"block": row // 128 * 6 + col // 128, "channel": row, "tensor": 0}[scales]]
        want, = struct.unpack("<f", b"\0\0" + source[name][2][2 * i:2 * i + 2])
        # Half a step: 2^-4 of the value, or of the smallest normal number.
        assert abs(table[byte] * s - want) <= max(abs(want) / 16, s * 2 ** -10) * 1.0001
        largest = max(largest, abs(table[byte]))
    assert largest == 448

    alone, split = generate(tensord, path), generate(tensord, path, "-tp", "2", ranks=2)
    assert split["ids"] == alone["ids"] and split["logits_hash"] == alone["logits_hash"]
    assert alone["ids"][0] == generate(tensord, tiny)["ids"][0]


def test_fp8_becomes_gguf_again(tensord, quantized, tmp_path):
    out = tmp_path / "again.gguf"
    p = tensord.run("quantize", quantized("tensord-tiny", "f8_e4m3"), out, "--type", "f32")
    assert p.returncode == 0 and "dequantised first" in p.stderr
    assert generate(tensord, out)["ids"] == generate(tensord, quantized("tensord-tiny", "f8_e4m3"))["ids"]


# ---- refusals ----


def refused(tensord, tmp_path, status, *args, words):
    before = sorted(tmp_path.rglob("*"))
    p = tensord.run("quantize", *args)
    assert p.returncode == status, p.stderr
    assert p.stdout == ""
    for word in words:
        assert word in p.stderr
    assert sorted(tmp_path.rglob("*")) == before, "a refused run leaves nothing"


def test_wrong_arguments_and_outputs_are_refused_and_leave_nothing(tensord, tiny, quantized, tmp_path):
    there = tmp_path / "there.gguf"
    there.write_text("mine")
    new = tmp_path / "new.gguf"
    gguf = quantized("tensord-tiny", "bf16")
    refused(tensord, tmp_path, 2, tiny, new, words=["--type"])
    refused(tensord, tmp_path, 2, tiny, "--type", "q4_0", words=["--output"])
    refused(tensord, tmp_path, 2, tiny, new, "--type", "q9_9", words=["q9_9", "iq4_xs"])
    refused(tensord, tmp_path, 2, tiny, new, "more", "--type", "q4_0", words=["more"])
    refused(tensord, tmp_path, 1, tiny, there, "--type", "q4_0", words=[str(there), "--force"])
    refused(tensord, tmp_path, 1, tiny, tmp_path, "--type", "f8_e4m3", words=["directory"])
    refused(tensord, tmp_path, 1, gguf, new, "--type", "f8_e4m3", words=["GGUF files have no type f8_e4m3"])
    refused(tensord, tmp_path, 1, tiny, tmp_path / "no/new.gguf", "--type", "q4_0", words=["no/new.gguf"])
    refused(tensord, tmp_path, 1, tmp_path / "none", new, "--type", "q4_0", words=["none"])
    assert there.read_text() == "mine"


def test_a_tokenizer_without_a_name_in_gguf_is_refused(tensord, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model, copy_function=shutil.copyfile)
    path = model / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[a-z]+|."
    path.write_text(json.dumps(tokenizer))
    refused(tensord, tmp_path, 1, model, tmp_path / "new.gguf", "--type", "bf16", words=["pre_tokenizer", "[a-z]+|."])
    path.unlink()
    refused(tensord, tmp_path, 1, model, tmp_path / "new.gguf", "--type", "bf16", words=["tokenizer.json"])


def test_weights_that_are_not_finite_are_refused(tensord, tiny, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(tiny, model, copy_function=shutil.copyfile)
    path = model / "model.safetensors"
    data = bytearray(path.read_bytes())
    n, = struct.unpack_from("<Q", data)
    at = json.loads(data[8:8 + n])["model.layers.1.mlp.up_proj.weight"]["data_offsets"][0]
    data[8 + n + at:8 + n + at + 2] = b"\x80\x7f"
    path.write_bytes(data)
    refused(tensord, tmp_path, 1, model, tmp_path / "new.gguf", "--type", "q4_0",
            words=["'model.layers.1.mlp.up_proj.weight' holds inf in row 0, column 0"])
