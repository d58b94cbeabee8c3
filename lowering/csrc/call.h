/*
 * The call, as native.py fills it in: addresses, sizes and strides (in elements). Each field has
 * the same name there; both are compared, field by field, when the library is loaded.
 */
#define CALL_FIELDS(FIELD)                                                                         \
    FIELD(float *, out) /* (rows, n), contiguous along n; int32 without a scale */                 \
    FIELD(int64_t, out_row)                                                                        \
    FIELD(const int8_t *, x)                                                                       \
    FIELD(int64_t, x_row)                                                                          \
    FIELD(int64_t, x_col)                                                                          \
    FIELD(const int8_t *, w) /* w[e, 16*b+i, 32*a+j] by e, a (w_n1), b (w_k1), i, j */             \
    FIELD(int64_t, w_e)                                                                            \
    FIELD(int64_t, w_n1)                                                                           \
    FIELD(int64_t, w_k1)                                                                           \
    FIELD(int64_t, w_i)                                                                            \
    FIELD(int64_t, w_j)                                                                            \
    FIELD(const int64_t *, ends) /* the groups' running totals of rows */                          \
    FIELD(int64_t, e)                                                                              \
    FIELD(int64_t, k)                                                                              \
    FIELD(int64_t, n)                                                                              \
    FIELD(const void *, scale) /* bfloat16 or float32, as the bias; null: sums are stored */       \
    FIELD(int64_t, scale_e)                                                                        \
    FIELD(int64_t, scale_n)                                                                        \
    FIELD(int64_t, scale_bf16)                                                                     \
    FIELD(const void *, bias) /* null: none; so for the next two */                                \
    FIELD(int64_t, bias_e)                                                                         \
    FIELD(int64_t, bias_n)                                                                         \
    FIELD(int64_t, bias_bf16)                                                                      \
    FIELD(const float *, pertoken)                                                                 \
    FIELD(int64_t, pertoken_step)                                                                  \
    FIELD(const float *, logit)                                                                    \
    FIELD(int64_t, logit_step)                                                                     \
    FIELD(const void *, index) /* int64 where index_wide, else int32; null: r for row r */         \
    FIELD(int64_t, index_step)                                                                     \
    FIELD(int64_t, index_wide)                                                                     \
    FIELD(int64_t, threads)

typedef struct {
#define FIELD(type, name) type name;
    CALL_FIELDS(FIELD)
#undef FIELD
} call_t;

/* A field of call_t as the other side is to see it; the table ends with a null name. */
typedef struct {
    const char *name;
    int64_t offset, size;
} field_t;

static const field_t call_fields[] = {
#define FIELD(type, name) {#name, offsetof(call_t, name), sizeof(type)},
    CALL_FIELDS(FIELD)
#undef FIELD
        {NULL, sizeof(call_t), 0},
};
