#include "daemon/text/tokpre.h"

#include "daemon/text/tokimpl.h"

static const struct td_tokpre table[] = {
    {.names = {"gpt-2", "default", "phi-2", "mpt", "olmo", "jais", "roberta-bpe"},
     .patterns = {td_tokimpl_gpt2_pattern}},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "lfm2"},
     .patterns = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     .whole_first = true,
     .bos = true},
    {.names = {"dbrx", "smaug-bpe", "chatglm-bpe", "glm4"},
     .patterns = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
                  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {.names = {"qwen2", "deepseek-r1-qwen", "megrez"},
     .patterns = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     .nfc = true},
    {.names = {"stablelm2", "hunyuan"},
     .patterns = {"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
                  " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
    {.names = {"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
     .patterns = {"\\p{N}", td_tokimpl_gpt2_pattern}},
    {.names = {"tekken"},
     .patterns = {"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*"
                  "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+|"
                  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
                  "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*|"
                  "\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},
     .whole_first = true,
     .bos = true},
    {.names = {"gpt-4o", "llama4"},
     .patterns = {"[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*"
                  "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                  "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+"
                  "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
                  "\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},
};

const struct td_tokpre *td_tokpre_find(struct td_str name)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        for (size_t k = 0; k < TD_TOKPRE_MAX_NAMES && table[i].names[k]; k++)
            if (td_str_eq(name, td_str_from(table[i].names[k])))
                return &table[i];
    return NULL;
}

const struct td_tokpre *td_tokpre_match(const struct td_str *patterns, size_t n_patterns, bool nfc,
                                        bool whole_first)
{
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        const struct td_tokpre *r = &table[i];
        bool same =
            r->nfc == nfc && r->whole_first == whole_first && n_patterns <= TD_TOKPRE_MAX_PATTERNS;

        for (size_t p = 0; p < TD_TOKPRE_MAX_PATTERNS && same; p++)
            same = p < n_patterns
                       ? r->patterns[p] && td_str_eq(patterns[p], td_str_from(r->patterns[p]))
                       : !r->patterns[p];
        if (same)
            return r;
    }
    return NULL;
}
