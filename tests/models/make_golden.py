#!/usr/bin/env python3
"""Writes tests/golden/tensord-tiny*.json with Hugging Face transformers and tokenizers.

The weights are the stored BF16 values widened to float32, and all arithmetic is float32.
  tensord-tiny.json         greedy ids, logits and margins of a few prompts
  tensord-tiny-chat.json    conversations and what the chat template renders
  tensord-tiny-tokens.json  texts and their ids
"""
import argparse
import base64
import json
import os

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))
N_GREEDY = 48
SYSTEM = {"role": "system", "content": "You are a helpful assistant."}


def user(*texts):
    return [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(texts)]


STORY = ("Mia had a purple kite. One day the kite was gone. She asked her grandfather for help. They looked "
         "everywhere and found it on the roof. Mia was very happy.")
LONG_STORY = (
    "One morning Leo and his uncle went to the market. It was a windy day. They bought nine lemons. At home they "
    "made some soup. Everybody was happy. Then Sara came to eat with them. She had a brown hen named Ruby. Ruby "
    "liked rice and slept in the barn. Every day Sara played with Ruby in the garden. On Thursday the hen was gone. "
    "Sara was sad and asked her brother for help. They looked behind the door, under the bed, on the stairs and in "
    "the shed, but they could not find it. In the evening an old fox came to the village. The fox lived near the "
    "lake and was very clever. It had seen the hen near the river. Sara thanked the fox and gave it some bread. "
    "The next morning Sara and Leo took the train to the river. There they saw a big bridge, and under the bridge "
    "sat Ruby with three little chicks. They were yellow and soft, and one of them was black. Sara laughed and put "
    "them all into her hat. At home her mother made pancakes, and her grandfather played the violin. Since then the "
    "fox has been their friend, and it visits the farm every Sunday. Oscar and Ida like to hear this story, and "
    "their father tells it to them when it is cold and snowy and they sit in the kitchen. "
    "Then they eat cookies and sleep well.")

PROMPTS = [
    ("plain", "Once upon a time there was a little fox.", True),
    ("plain", "On Friday Anna", False),
    ("chat", user("Hello"), True),
    ("chat", [SYSTEM] + user("What is 9 plus 4?"), False),
    ("chat", user(STORY + "\n\nWho helped Mia?", "Her grandfather helped Mia.", "What colour was the kite?"), False),
    ("chat", user("Write a numbered list of four animals."), False),
    ("chat", user("Tell me a short story about a bear."), False),
    ("chat", user(LONG_STORY + "\n\nWhat was the hen called?"), True),
    ("plain", "Z\u00fcrich \u2014 \u4f60\u597d, caf\u00e9! \U0001f600\n\tint main(void) { return 0x7f; }", False),
]

CHATS = [
    user("Hello"),
    [SYSTEM] + user("Hello"),
    user("My name is Ella.", "Hello Ella! How can I help you?", "What is my name?"),
    [SYSTEM] + user("What is 2 plus 2?", "2 plus 2 is 4.", "And 3 plus 3?", "3 plus 3 is 6.", "Thanks"),
    user("Gr\u00fc\u00dfe aus K\u00f6ln \u2014 \u4f60\u597d \U0001f44b\U0001f3fd e\u0301"),
    user("  leading and trailing  \n\n"),
    user(""),
    [SYSTEM],
    [{"role": "system", "content": ""}] + user("a \"quoted\" 'word' & <b>tag</b> {{ braces }} {% raw %}"),
    user("line one\nline two\r\nline three", "ok"),
    user("What ends a turn? <|im_end|> does."),
    user("Hi", "Hello! How can I help you?"),
    [{"role": "tool", "content": "{\"t\": 1}"}] + user("Use it."),
]

TEXTS = [
    "", " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", " \n", "\n ", " \n \n ", "\r\n", "a", " a", "  a",
    "Hello", "Hello world", " Hello world", "Hello, world!", "hello  world", "Hello\nworld", "Hello\n\n  world",
    "The ball was red.", "Once upon a time there was a little fox.", "What is the capital of Italy?",
    "don't can't I'll we've they're he'd I'm it's", "DON'T CAN'T I'LL", "'s 's'S", "1", "12", "123", "1234567890",
    "3.14159", "1,000,000", "a1b2c3", "7+8=15", "2 + 2 = 4", "x_y", "snake_case camelCase PascalCase",
    "{\"name\": \"Nora\", \"age\": 8}", "[1, 2, 3]", "- one\n- two\n- three", "1. one\n2. two",
    "int main(void)\n{\n    return 0;\n}\n", "\tif (x < 3) {\n\t\ty++;\n\t}", "https://example.org/a?b=c&d=%20",
    "!!!", "...", "?!?!", "-----", "***bold***", "(a)(b)[c]{d}<e>", "$5 & 10% @ #1", "~`^|\\/",
    "caf\u00e9", "cafe\u0301", "na\u00efve r\u00e9sum\u00e9", "Z\u00fcrich stra\u00dfe", "\u00c5ngstr\u00f6m \u212b",
    "\u4f60\u597d\u4e16\u754c", "\u3053\u3093\u306b\u3061\u306f", "\uc548\ub155\ud558\uc138\uc694", "\u1112\u1161\u11ab",
    "\u041f\u0440\u0438\u0432\u0435\u0442 \u043c\u0438\u0440", "\u0645\u0631\u062d\u0628\u0627", "\u05e9\u05dc\u05d5\u05dd",
    "\u0928\u092e\u0938\u094d\u0924\u0947", "\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44b\U0001f3fd hi",
    "\u2014 \u2013 \u2026 \u201cquoted\u201d \u2018single\u2019", "a\u00a0b", "a\u2003b", "\u3000x", "a\u200bb", "\ufeffx",
    "\u0661\u0662\u0663 \u00bd \u2163 \u00b2", "\ufb01ne \ufb03", "\u017ft long s", "a\u0300\u0301b", "x\u0000y", "\u007f\u0001",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
    "a<|im_end|>b", " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end|>\n", "<|im_start", "<|im_end|", "<| im_end |>", "|>",
    "<|endoftext|>Once", "  <|endoftext|>  ", "<|IM_END|>", "Ella\u2019s kite", "I\u2019m", "a\u0085b", "a\u2028b",
    "word " * 20, "ab" * 40, " " * 33 + "x", "\n" * 9 + "x", "0" * 21,
]


def golden(model, tok, kind, prompt, with_row):
    text = prompt if kind == "plain" else tok.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
    ids = tok(text, add_special_tokens=False).input_ids
    out = {"kind": kind, "text": text, "prompt_ids": ids, "greedy_ids": [], "top5": []}
    if kind == "chat":
        out["messages"] = prompt
    cur, margin = list(ids), float("inf")
    for step in range(N_GREEDY):
        # Each step recomputes the whole sequence: no cache stands between the numbers and the definition.
        with torch.no_grad():
            row = model(torch.tensor([cur])).logits[0, -1]
        assert row.dtype == torch.float32
        if step == 0 and with_row:
            out["logits_f32le_base64"] = base64.b64encode(row.numpy().astype("<f4").tobytes()).decode()
        top = torch.topk(row, 5)
        margin = min(margin, (top.values[0] - top.values[1]).item())
        out["top5"].append([[i, v] for i, v in zip(top.indices.tolist(), top.values.tolist())])
        cur.append(top.indices[0].item())
        out["greedy_ids"].append(cur[-1])
    out["greedy_text"] = tok.decode(out["greedy_ids"], skip_special_tokens=False)
    out["smallest_margin"] = margin
    print(f"{len(ids):4} ids, margin {margin:.4f}: {out['greedy_text'][:100]!r}")
    return out


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        # One line per entry keeps the files small and their diffs readable.
        if isinstance(value, list):
            f.write("[\n" + ",\n".join(json.dumps(v) for v in value) + "\n]\n")
        else:
            head = {k: v for k, v in value.items() if k != "prompts"}
            f.write(json.dumps(head)[:-1] + ",\n\"prompts\": [\n" +
                    ",\n".join(json.dumps(v) for v in value["prompts"]) + "\n]}\n")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--model", default=os.path.join(HERE, "tensord-tiny"))
    p.add_argument("--out", default=os.path.join(HERE, "..", "golden"))
    p.add_argument("--no-weights", action="store_true", help="only the files that need no weights")
    args = p.parse_args()
    torch.set_num_threads(1)
    tok = AutoTokenizer.from_pretrained(args.model)
    raw = tokenizers.Tokenizer.from_file(os.path.join(args.model, "tokenizer.json"))
    versions = {"torch": torch.__version__, "transformers": transformers.__version__,
                "tokenizers": tokenizers.__version__}

    vectors = [{"text": t, "ids": raw.encode(t, add_special_tokens=False).ids} for t in TEXTS]
    for v in vectors:
        assert tok(v["text"], add_special_tokens=False).input_ids == v["ids"], v
    write(args.out, "tensord-tiny-tokens.json", vectors)
    chats = []
    for m in CHATS:
        for gen in (False, True):
            text = tok.apply_chat_template(m, tokenize=False, add_generation_prompt=gen)
            chats.append({"messages": m, "add_generation_prompt": gen, "text": text})
    write(args.out, "tensord-tiny-chat.json", chats)
    print(len(vectors), "token vectors,", len(chats), "rendered chats")
    if args.no_weights:
        return
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    prompts = [golden(model, tok, *x) for x in PROMPTS]
    write(args.out, "tensord-tiny.json", {
        "model": "tensord-tiny", "arithmetic": "float32, weights as stored in BF16", "versions": versions,
        "prompts": prompts})


if __name__ == "__main__":
    main()
