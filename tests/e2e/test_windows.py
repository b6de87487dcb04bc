"""Models whose layers see a window of the last tokens: Mistral's all, Qwen3's some. What transformers thinks of them is in
golden/windows.json."""
import concurrent.futures
import json
import shutil

import pytest

from conftest import ROOT
from gguffile import Gguf
from test_cuda import CUDA

GOLDEN = json.loads((ROOT / "tests/golden/windows.json").read_text())
MODELS = {entry["name"]: entry for entry in GOLDEN["models"]}
STORY = GOLDEN["text"]
RANKS = [1, 2, 3, 4, 8]


@pytest.fixture(scope="module")
def made(find_model, tmp_path_factory):
    """name -> a model whose config.json says more than that of what it was made of, made once."""
    known = {}

    def make(name):
        if name not in known:
            known[name] = out = tmp_path_factory.mktemp("windows") / name
            out.mkdir()
            for path in find_model(MODELS[name]["source"]).iterdir():
                shutil.copyfile(path, out / path.name)
            config = json.loads((out / "config.json").read_text())
            (out / "config.json").write_text(json.dumps(config | MODELS[name]["config"]))
        return known[name]

    return make


@pytest.mark.parametrize("device", [(), CUDA], ids=["cpu", "cuda"])
@pytest.mark.parametrize("name", MODELS)
def test_every_score_is_that_of_transformers(tensord, made, tmp_path, name, device):
    """Of the model in F32, as quantize writes it, which keeps its windows."""
    (tmp_path / "story.txt").write_text(STORY)
    tensord.json("quantize", made(name), tmp_path / "f32.gguf", "--type", "f32")
    n = len(MODELS[name]["ids"])
    out = tensord.json("perplexity", "--model", tmp_path / "f32.gguf", "--file", tmp_path / "story.txt", "--context", n,
                       "--rule", "all", "--verbose", "--kv-cache-dtype", "f32", *device)
    assert out["nll"][:n - 1] == pytest.approx(MODELS[name]["nll"], abs=1e-4)


@pytest.mark.parametrize("name", ["mistral", "qwen3"])
def test_every_number_of_ranks_gives_the_same_bits(tensord, made, name):
    """Of a prompt that no window holds, and of the tokens behind it."""

    def generate(ranks):
        return tensord.json("generate", "--model", made(name), "--prompt", STORY[:300], "--max-tokens", "20", "--ignore-eos",
                            ranks=ranks)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        alone, *split = pool.map(generate, [0, *RANKS])
    for ranks, out in zip(RANKS, split, strict=True):
        assert len(out["ranks"]) == ranks
        assert (out["ids"], out["logits_hash"]) == (alone["ids"], alone["logits_hash"]), ranks


@pytest.mark.parametrize("device", [(), CUDA], ids=["cpu", "cuda"])
def test_a_prompt_in_pieces_gives_the_same_bits(tensord, made, device):
    def hash_of(chunk):
        return tensord.json("generate", "--model", made("qwen3"), "--prompt", STORY[:400], "--max-tokens", "5", "--ignore-eos",
                            "--prefill-chunk", chunk, *device)["logits_hash"]

    assert hash_of(16) == hash_of(51) == hash_of(512)


def test_a_window_as_long_as_the_text_changes_nothing(tensord, made, find_model):
    prompt = ("--prompt", STORY[:150], "--max-tokens", "10", "--ignore-eos")
    alone = tensord.json("generate", "--model", find_model("stories260K/hf"), *prompt)
    windowed = tensord.json("generate", "--model", made("mistral"), *prompt)
    assert len(alone["prompt_ids"]) + 10 < MODELS["mistral"]["config"]["sliding_window"]
    assert (windowed["ids"], windowed["logits_hash"]) == (alone["ids"], alone["logits_hash"])


def test_inspect_and_quantize_tell_the_window(tensord, made, tmp_path):
    spec = tensord.json("inspect", made("types"))["spec"]
    assert (spec["window"], spec["windowed_layers"]) == (70, 2)
    tensord.json("quantize", made("types"), tmp_path / "a.gguf", "--type", "q8_0")
    metadata = Gguf(tmp_path / "a.gguf").metadata
    assert metadata["qwen3.attention.sliding_window"] == 70
    assert metadata["qwen3.attention.sliding_window_pattern"] == [True, False, False, True]
    assert tensord.json("inspect", tmp_path / "a.gguf")["spec"]["windowed_layers"] == 2
