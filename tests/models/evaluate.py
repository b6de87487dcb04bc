#!/usr/bin/env python3
"""Asks a model the held-out questions through Hugging Face transformers, greedily.

An answer counts when it matches every pattern of the case and the model ended it by <|im_end|>.
Exits with 0 when at least --need answers count. `--ask TEXT` asks one question instead.
"""
import argparse
import json
import os
import re
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))


def answer(model, tok, messages, limit):
    """Returns the answer's text and whether <|im_end|> ended it."""
    text = tok.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = tok(text, return_tensors="pt").input_ids
    with torch.no_grad():
        out = model.generate(ids, do_sample=False, max_new_tokens=limit)[0, ids.shape[1]:].tolist()
    ended = bool(out) and out[-1] == tok.convert_tokens_to_ids("<|im_end|>")
    return tok.decode(out, skip_special_tokens=True), ended


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", nargs="?", default=os.path.join(HERE, "tensord-tiny"))
    p.add_argument("--heldout", default=os.path.join(HERE, "tensord-tiny", "heldout.json"))
    p.add_argument("--need", type=int, default=16)
    p.add_argument("--limit", type=int, default=200, help="most tokens of an answer")
    p.add_argument("--ask", action="append", metavar="TEXT")
    args = p.parse_args()
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    if args.ask:
        for q in args.ask:
            text, ended = answer(model, tok, [{"role": "user", "content": q}], args.limit)
            print(f"> {q}\n{text}{'' if ended else ' [not ended]'}")
        return 0
    with open(args.heldout, encoding="utf-8") as f:
        cases = json.load(f)
    right = 0
    for case in cases:
        text, ended = answer(model, tok, case["messages"], args.limit)
        ok = ended and all(re.search(a, text) for a in case["accept"])
        right += ok
        print(f"{'ok   ' if ok else 'WRONG'} [{case['kind']}] {case['messages'][-1]['content'][-60:]!r} -> {text!r}"
              f"{'' if ended else ' [not ended]'}")
    print(f"{right} of {len(cases)} right and ended, {args.need} needed")
    return 0 if right >= args.need else 1


if __name__ == "__main__":
    sys.exit(main())
