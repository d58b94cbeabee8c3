/* What a path is asked to compute, and what paths have in common. */

#define INLINE static inline __attribute__((always_inline))

enum {
    PANEL = 32,            /* columns of a panel: FRACTAL_NZ's inner dimension for int8 */
    MAX_ROWS = 8,          /* rows of a block, at most, over all paths */
    MAX_BLOCKS = 3,        /* of a group whose ND weights are read in whole rows */
    SCRATCH = 128,         /* k-rows copied at a time where a panel cannot be read in place */
    ND_ROWS = 512,         /* k-rows of ND at a time, where a task is a range of columns */
    ND_FEW_ROWS = 4,       /* of a group, up to which k-rows are read by strips */
    STRIP = 16,            /* k-rows of a strip */
    RUN_BYTES = 128 << 10, /* of ND that rows of more are read in, next to the next in a small L2 */
    STEP_ROWS = 128,       /* of a group, at most, whose ND is read some k-rows at a time */
    STEP_PANELS = 8,       /* of those, at a time */
    LINES = 128,           /* lines that several blocks of rows read in turn, from L2 */
};

/* What one kernel call takes: a block of rows against some quads of some panels. */
typedef struct {
    int32_t *acc; /* (rows, 32 * panels), added to, or where start is given, begun from that */
    const int32_t *start; /* one a row, or null */
    int64_t acc_row;
    const int8_t *x; /* (rows, 4 * quads), or int16 where the path widens x */
    int64_t x_row;
    const int8_t *w; /* a panel: (4 * quads, 32), one w_panel after the other */
    int64_t w_row, w_panel;
    int8_t *pack; /* permuted quads: read, or written if not null */
    int64_t pack_panel;
    int64_t panels, quads;
    /* What to prefetch. Where w is read: in runs of next_run bytes, w_row apart. Where packed
     * quads are: moving as w would, and by next_step each quad. */
    const int8_t *next;
    int64_t next_run, next_step;
} tile_t;

/* The same for weights with k contiguous: a block of rows against some *lines*, columns of w. */
typedef struct {
    int32_t *acc; /* (rows, cols), begun from start and written once; up to 15 more are spoilt */
    const int32_t *start;
    int64_t acc_row;
    const int8_t *x; /* (rows, k), or int16 where the path widens x */
    int64_t x_row;
    const int8_t *w; /* lines of k bytes, w_line apart */
    int64_t w_line;
    int64_t k, cols;
    int64_t blocks; /* of rows, which read these lines in turn */
    /* What to prefetch. Where there is one block: the lines that follow, and after the last of
     * them those from next on. Else this block's share, from next on, of as much as the lines. */
    const int8_t *next;
} lines_t;

typedef struct {
    const char *name;
    int rows;       /* of a block */
    int flip;       /* 128 if the weights are made unsigned: acc starts at -flip * sum(x) */
    int widen;      /* x is wanted as int16 */
    int quad_bytes; /* of a packed quad; 0 if the path never packs */
    int unpacked;   /* blocks that a contiguous panel is permuted for anew, sooner than packed */
    int32_t (*sum)(const int8_t *x, int64_t n); /* wanted where flip is */
    void (*direct)(int rows, const tile_t *t);  /* from w, storing to pack if not null */
    void (*packed)(int rows, const tile_t *t);
    /* The strip's k-rows from w, and its prefetches: pairs of panels, next to each other. Sums of
     * 64 columns are left in an order of its own, until order is called. Null if there is none. */
    void (*strip)(int rows, const tile_t *t);
    void (*order)(int32_t *acc, int64_t cols);
    int64_t strip_rows; /* of a group, at most */
    void (*lines)(int rows, const lines_t *t);
    /* Packs cols of 32 lines, and zeros for the others, whole 64s of k: for groups of more than
     * turn_rows rows. Null if lines do for any number of rows. */
    void (*turn)(int8_t *pack, const int8_t *w, int64_t w_line, int64_t k, int64_t cols);
    int64_t turn_rows;
    void (*finish)(float *const *out, const int32_t *acc, int64_t acc_row, int64_t rows,
                   int64_t cols, const float *scale, const float *bias, const float *p,
                   const float *logit);
} path_t;

/* ------------------------------------------------------------------ dequantise and combine */

INLINE void finish_body(float *const *out, const int32_t *acc, int64_t acc_row, int64_t rows,
                        int64_t cols, const float *scale, const float *bias, const float *p,
                        const float *logit) {
    for (int64_t r = 0; r < rows; r++, acc += acc_row) {
        float *restrict o = out[r];
        const int32_t *restrict a = acc;
        const float pr = p[r];
        if (bias) {
            const float lr = logit[r];
            for (int64_t j = 0; j < cols; j++) {
                float y = (float)a[j] * scale[j] * pr;
                y += lr * bias[j];
                o[j] += y;
            }
        } else {
            for (int64_t j = 0; j < cols; j++)
                o[j] += (float)a[j] * scale[j] * pr;
        }
    }
}

#define FINISH(name, ...)                                                                          \
    __VA_ARGS__ static void name(float *const *out, const int32_t *acc, int64_t acc_row,           \
                                 int64_t rows, int64_t cols, const float *scale,                   \
                                 const float *bias, const float *p, const float *logit) {          \
        finish_body(out, acc, acc_row, rows, cols, scale, bias, p, logit);                         \
    }

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Line j of those that t has, the last one again past their end. */
INLINE const int8_t *line_at(const lines_t *t, int64_t j) {
    return t->w + least(j, t->cols - 1) * t->w_line;
}

/* Calls a kernel with its number of rows as a constant, so that accumulators are registers. */
#define ROWS_3(tile, ...)                                                                          \
    case 1: tile(1, __VA_ARGS__); break;                                                           \
    case 2: tile(2, __VA_ARGS__); break;                                                           \
    case 3: tile(3, __VA_ARGS__); break;
#define ROWS_8(tile, ...)                                                                          \
    ROWS_3(tile, __VA_ARGS__)                                                                      \
    case 4: tile(4, __VA_ARGS__); break;                                                           \
    case 5: tile(5, __VA_ARGS__); break;                                                           \
    case 6: tile(6, __VA_ARGS__); break;                                                           \
    case 7: tile(7, __VA_ARGS__); break;                                                           \
    case 8: tile(8, __VA_ARGS__); break;

/*
 * For the paths of 16 or 32 smaller registers, which cannot hold weights being permuted and
 * enough accumulators at once: each panel is packed a scratch buffer (or the group's buffer) at a
 * time and the packed quads are read from L1.
 */
#define DIRECT_BY_PACKING(name, pack_quads, packed, quad_bytes, x_bytes, ...)                      \
    __VA_ARGS__ static void name(int rows, const tile_t *t) {                                      \
        int8_t scratch[SCRATCH / 4 * (quad_bytes)] __attribute__((aligned(64)));                   \
        for (int64_t p = 0; p < t->panels; p++) {                                                  \
            tile_t part = *t;                                                                      \
            part.panels = 1;                                                                       \
            part.acc += p * PANEL;                                                                 \
            for (int64_t q = 0; q < t->quads; q += part.quads) {                                   \
                part.quads = t->quads - q < SCRATCH / 4 ? t->quads - q : SCRATCH / 4;              \
                part.pack = t->pack ? t->pack + p * t->pack_panel + q * (quad_bytes) : scratch;    \
                part.x = t->x + 4 * q * (x_bytes);                                                 \
                part.start = q ? NULL : t->start;                                                  \
                pack_quads(part.pack, t->w + p * t->w_panel + 4 * q * t->w_row, t->w_row,          \
                           part.quads);                                                            \
                packed(rows, &part);                                                               \
            }                                                                                      \
        }                                                                                          \
    }
