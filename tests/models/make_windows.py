#!/usr/bin/env python3
"""Writes tests/golden/windows.json with Hugging Face transformers: models whose config.json gives some or all layers a sliding
window, and what they think of a text.

Weights are widened to float64, and so is the arithmetic but for the angles of positions.
"""
import argparse
import json
import os
import shutil
import tempfile

import torch
import transformers

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = ("Once upon a time there was a little fox. One day the fox went to the lake with an old bear. They bought nine lemons and "
        "made some soup. Everybody was happy. Then Sara came to eat with them. She had a brown hen named Ruby. ") * 6
N_IDS = 200

MODELS = [
    ("mistral", "stories260K/hf", {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 100}),
    ("qwen3", "tensord-tiny", {"use_sliding_window": True, "sliding_window": 37, "max_window_layers": 1}),
    ("types", "tensord-tiny", {"use_sliding_window": True, "sliding_window": 70, "layer_types": [
        "sliding_attention", "full_attention", "full_attention", "sliding_attention"]}),
]


def scores(folder):
    """The text's first ids, and -log p of each but the first after all before it."""
    tok = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager").eval()
    ids = tok(TEXT).input_ids[:N_IDS]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1]
    return type(model).__name__, ids, torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none").tolist()


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--models", required=True, help="the folder in which stories260K lies")
    p.add_argument("--out", default=os.path.join(HERE, "..", "golden"))
    args = p.parse_args()
    torch.set_num_threads(1)
    entries = []
    for name, source, config in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(os.path.join(HERE if source == "tensord-tiny" else args.models, source), folder,
                            dirs_exist_ok=True, copy_function=shutil.copyfile)
            path = os.path.join(folder, "config.json")
            os.chmod(folder, 0o755)
            with open(path, encoding="utf-8") as f:
                whole = json.load(f) | config
            with open(path, "w", encoding="utf-8") as f:
                json.dump(whole, f)
            kind, ids, nll = scores(folder)
        print(f"{name}: {kind}, {len(ids)} ids, mean {sum(nll) / len(nll):.4f}")
        entries.append({"name": name, "source": source, "config": config, "ids": ids, "nll": [round(x, 7) for x in nll]})
    with open(os.path.join(args.out, "windows.json"), "w", encoding="utf-8") as f:
        head = {"versions": {"torch": torch.__version__, "transformers": transformers.__version__}, "text": TEXT}
        f.write(json.dumps(head)[:-1] + ",\n\"models\": [\n" + ",\n".join(map(json.dumps, entries)) + "\n]}\n")


if __name__ == "__main__":
    main()
