#include "comm/narrow.h"

#include "kernels/base/half.h"

#include <math.h>
#include <string.h>

enum { BLOCK = 32 };

/* A last block that is not full has zeros behind. */
struct q8_block {
    uint16_t scale; /* binary16 */
    int8_t value[BLOCK];
};
_Static_assert(sizeof(struct q8_block) == 34, "packed");

size_t td_narrow_bytes(enum td_exchange_dtype dtype, size_t n)
{
    switch (dtype) {
    case TD_EXCHANGE_BF16:
        return n * sizeof(uint16_t);
    case TD_EXCHANGE_Q8_0:
        return (n + BLOCK - 1) / BLOCK * sizeof(struct q8_block);
    default:
        return n * sizeof(float);
    }
}

static void pack_block(const float *in, size_t n, struct q8_block *out)
{
    float most = 0.0f, scale, inverse;

    for (size_t i = 0; i < n; i++)
        most = fabsf(in[i]) > most || isnan(in[i]) ? fabsf(in[i]) : most;
    memset(out, 0, sizeof *out);
    out->scale = td_f32_to_f16(most / 127.0f);
    scale = td_f16_to_f32(out->scale);
    inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (size_t i = 0; i < n && isfinite(inverse); i++) {
        float q = in[i] * inverse + (in[i] < 0.0f ? -0.5f : 0.5f);

        out->value[i] = (int8_t)(q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q);
    }
    if (!isfinite(scale)) /* an infinity or a NaN among them: all become NaN, none is hidden */
        out->scale = 0x7e00;
}

void td_narrow_pack(enum td_exchange_dtype dtype, const float *in, size_t n, void *out)
{
    struct q8_block *block = out;
    uint16_t *half = out;

    switch (dtype) {
    case TD_EXCHANGE_BF16:
        for (size_t i = 0; i < n; i++)
            half[i] = td_f32_to_bf16(in[i]);
        break;
    case TD_EXCHANGE_Q8_0:
        for (size_t i = 0; i < n; i += BLOCK)
            pack_block(in + i, n - i < BLOCK ? n - i : BLOCK, block++);
        break;
    default:
        memcpy(out, in, n * sizeof *in);
        break;
    }
}

void td_narrow_unpack(enum td_exchange_dtype dtype, const void *in, size_t n, float *out)
{
    const struct q8_block *block = in;
    const uint16_t *half = in;

    switch (dtype) {
    case TD_EXCHANGE_BF16:
        for (size_t i = 0; i < n; i++)
            out[i] = td_bf16_to_f32(half[i]);
        break;
    case TD_EXCHANGE_Q8_0:
        for (size_t i = 0; i < n; i++)
            out[i] =
                td_f16_to_f32(block[i / BLOCK].scale) * (float)block[i / BLOCK].value[i % BLOCK];
        break;
    default:
        memcpy(out, in, n * sizeof *out);
        break;
    }
}
