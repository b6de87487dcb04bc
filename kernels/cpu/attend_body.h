/* Attention of one query head, over the vector of vec_body.h, which includes this file. */
struct partial {
    float max;
    float sum;
    float acc[TD_KERN_MAX_HEAD_DIM];
};

/* Byte address of one token's row in a cache. */
INLINE const uint8_t *kv_row(const struct td_cpu_attend *a, const void *base, size_t size,
                             uint32_t position)
{
    const struct td_kv_view *kv = a->kv;
    size_t block = a->blocks[position / kv->block_tokens];

    return (const uint8_t *)base + ((block * kv->n_kv_heads + a->kv_head) * kv->block_tokens +
                                    position % kv->block_tokens) *
                                       kv->head_dim * size;
}

INLINE void attend_chunk(enum td_dtype dtype, const struct td_cpu_attend *a, const float *q,
                         uint32_t begin, uint32_t end, struct partial *p)
{
    const size_t size = dtype == TD_F32 ? 4 : 2;
    const uint32_t dim = a->kv->head_dim;
    float s[TD_KERN_CHUNK_KEYS] = {0};
    vf sum = vf_set1(0.0f);

    p->max = -INFINITY;
    for (uint32_t j = begin; j < end; j++) {
        const uint8_t *k = kv_row(a, a->kv->k, size, j);
        vf dot = vf_set1(0.0f);

        for (uint32_t d = 0; d < dim; d += 16)
            dot = vf_fma(vf_load(q + d), load_as(dtype, k + d * size, dim - d), dot);
        s[j - begin] = vf_fold(dot) * a->scale;
        p->max = s[j - begin] > p->max ? s[j - begin] : p->max;
    }
    for (uint32_t j = 0; j < end - begin; j += 16) {
        float e[16] = {0};

        vf_store(e, v_exp(vf_add(vf_load(s + j), vf_set1(-p->max))));
        memset(s + j, 0, 16 * sizeof *s);
        memcpy(s + j, e, (end - begin - j < 16 ? end - begin - j : 16) * sizeof *s);
        sum = vf_add(sum, vf_load(s + j));
    }
    p->sum = vf_fold(sum);
    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(p->acc + d, vf_set1(0.0f));
    for (uint32_t j = begin; j < end; j++) {
        const uint8_t *v = kv_row(a, a->kv->v, size, j);
        vf e = vf_set1(s[j - begin]);

        for (uint32_t d = 0; d < dim; d += 16)
            vf_store(p->acc + d,
                     vf_fma(e, load_as(dtype, v + d * size, dim - d), vf_load(p->acc + d)));
    }
}

static void join(struct partial *left, const struct partial *right, uint32_t dim)
{
    float max = right->max > left->max ? right->max : left->max;
    float cl = td_mathf_exp(left->max - max), cr = td_mathf_exp(right->max - max);

    left->max = max;
    left->sum = fmaf(left->sum, cl, right->sum * cr);
    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(left->acc + d, vf_fma(vf_load(left->acc + d), vf_set1(cl),
                                       vf_mul(vf_load(right->acc + d), vf_set1(cr))));
}

INLINE void attend_as(enum td_dtype dtype, const struct td_cpu_attend *a)
{
    struct partial stack[TD_CPU_MAX_CHUNKS];
    float q[TD_KERN_MAX_HEAD_DIM];
    uint32_t depth = 0, n_keys = a->position + 1, dim = a->kv->head_dim, c = 0;
    vf inverse;

    for (uint32_t d = 0; d < dim; d += 16)
        vf_store(q + d, load_part(a->q + d, dim - d));
    do {
        uint32_t begin = c * TD_KERN_CHUNK_KEYS;
        uint32_t end = begin + TD_KERN_CHUNK_KEYS < n_keys ? begin + TD_KERN_CHUNK_KEYS : n_keys;

        attend_chunk(dtype, a, q, begin, end, &stack[depth++]);
        for (uint32_t i = c; i & 1; i >>= 1, depth--)
            join(&stack[depth - 2], &stack[depth - 1], dim);
    } while (++c * TD_KERN_CHUNK_KEYS < n_keys);
    for (; depth > 1; depth--)
        join(&stack[depth - 2], &stack[depth - 1], dim);
    inverse = vf_set1(1.0f / stack[0].sum);
    for (uint32_t d = 0; d < dim; d += 16)
        store_part(a->out + d, vf_mul(vf_load(stack[0].acc + d), inverse), dim - d);
}

static void attend(const struct td_cpu_attend *a)
{
    if (a->kv->dtype == TD_F32)
        attend_as(TD_F32, a);
    else if (a->kv->dtype == TD_F16)
        attend_as(TD_F16, a);
    else
        attend_as(TD_BF16, a);
}
