#!/usr/bin/env python3
"""Trains the byte-level BPE tokenizer of tensord-tiny and writes its files and the model's configs.

Needs the `tokenizers` package. Input is a text file that make_text.py wrote.
"""
import argparse
import json
import os

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
# The way Qwen2 tokenizers cut text into words; digits stand alone.
SPLIT = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
         r"\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + "
            "'<|im_end|>' + '\\n' }}{% endfor %}"
            "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}")
CONTEXT = 2048


def write(folder, name, value):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(value, f, indent=2, ensure_ascii=False)
        f.write("\n")


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("text")
    p.add_argument("out", help="the model's directory")
    p.add_argument("--vocab", type=int, default=2048, help="size with the special tokens")
    args = p.parse_args()
    with open(args.text, encoding="utf-8") as f:
        docs = f.read().split(END)
    # The marks of the chat form are special tokens; what stands between them is text.
    texts = (part for doc in docs for part in doc.replace(START, STOP).split(STOP) if part)

    tok = Tokenizer(models.BPE())
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(vocab_size=args.vocab - 3, min_frequency=2, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(texts, trainer)
    # The special tokens come last, as in Qwen's vocabulary.
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in (END, START, STOP)])
    ids = {t: tok.token_to_id(t) for t in (END, START, STOP)}
    n = tok.get_vocab_size()
    print("vocabulary", n, ids)
    os.makedirs(args.out, exist_ok=True)
    tok.save(os.path.join(args.out, "tokenizer.json"), pretty=False)
    write(args.out, "tokenizer_config.json", {
        "add_prefix_space": False,
        "added_tokens_decoder": {str(ids[t]): {"content": t, "lstrip": False, "normalized": False,
                                               "rstrip": False, "single_word": False, "special": True}
                                 for t in (END, START, STOP)},
        "additional_special_tokens": [START, STOP],
        "bos_token": None, "clean_up_tokenization_spaces": False, "chat_template": TEMPLATE,
        "eos_token": STOP, "errors": "replace", "model_max_length": CONTEXT, "pad_token": END,
        "split_special_tokens": False, "tokenizer_class": "PreTrainedTokenizerFast", "unk_token": None})
    write(args.out, "config.json", {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False,
        "attention_dropout": 0.0, "bos_token_id": None, "eos_token_id": ids[STOP], "pad_token_id": ids[END],
        "head_dim": 32, "hidden_act": "silu", "hidden_size": 256, "initializer_range": 0.02,
        "intermediate_size": 768, "max_position_embeddings": CONTEXT, "max_window_layers": 4,
        "num_attention_heads": 8, "num_hidden_layers": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-6,
        "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": None, "tie_word_embeddings": True,
        "torch_dtype": "bfloat16", "use_cache": True, "use_sliding_window": False, "vocab_size": n})
    write(args.out, "generation_config.json", {
        "do_sample": False, "eos_token_id": [ids[STOP], ids[END]], "pad_token_id": ids[END],
        "max_new_tokens": 256})


if __name__ == "__main__":
    main()
