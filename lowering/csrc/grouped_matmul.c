/*
 * The grouped W8A8 product with its dequantisation and combine, for one processor.
 *
 * For group g, its rows r, and column j, in float32 and in exactly this order:
 *
 *     acc = sum over i of x[r,i] * w[g,i,j]                     int32, modulo 2**32
 *     y   = (float(acc) * scale[g,j]) * (pertoken[r] * logit[r])
 *     y  += logit[r] * bias[g,j]                                when there is a bias
 *     out[row_index[r], j] += y                                 in ascending r
 *
 * Every multiply and add is rounded by itself: build with -ffp-contract=off.
 *
 * How it is laid out, outermost first:
 *
 *   - Columns are cut into tasks, and threads take tasks. An output element thus belongs to one
 *     thread, which walks the groups and their rows upwards: nothing is atomic, and the order of
 *     adds is the sequential one whatever the number of threads.
 *   - Within a task weights go by *panels* of 32 columns. FRACTAL_NZ of int8 stores just that, a
 *     contiguous (k, 32) panel; in ND the same panel has its rows n bytes apart. One kernel
 *     serves both. A panel that is neither (the last columns of an ND weight, odd strides) is
 *     copied 128 rows at a time to a scratch buffer that looks like NZ.
 *   - Four k-rows of a panel, a *quad*, are permuted in registers so that each 32-bit lane holds
 *     four successive k of one column, which is what the dot-product instructions take; four
 *     bytes of x are broadcast untouched.
 *   - A group of few rows streams the weights through registers, once. A larger group stores the
 *     permuted quads as its first block of rows passes, and the other blocks read those.
 *   - Accumulators live in a small buffer in L1 between kernel and dequantisation, so the latter
 *     is plain C that each path compiles for itself, and output rows are touched in wide runs.
 *
 * Nothing here knows torch or Python: one struct of 64-bit integers comes in, through ctypes.
 *
 * Sanitizers, from the root of the repository:
 *
 *     cc -std=c11 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined \
 *        -ffp-contract=off -fPIC -shared -pthread -o /tmp/asan.so lowering/csrc/grouped_matmul.c
 *     LD_PRELOAD="$(cc -print-file-name=libasan.so)" ASAN_OPTIONS=detect_leaks=0 \
 *        NPU_LOWERING_LIBRARY=/tmp/asan.so python -m pytest tests/test_native.py
 */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum {
    PANEL = 32,      /* columns of a panel: FRACTAL_NZ's inner dimension for int8 */
    MAX_ROWS = 8,    /* rows of a block, at most, over all paths */
    SCRATCH = 128,   /* k-rows copied at a time where a panel cannot be read in place */
};

/* The call, as native.py packs it: addresses, sizes and strides (in elements). */
typedef struct {
    int64_t out, out_row;
    int64_t x, x_row, x_col;
    int64_t w, w_e, w_n1, w_k1, w_i, w_j; /* w[e, 16*b+i, 32*a+j] by e, a, b, i, j */
    int64_t ends, e, k, n;
    int64_t scale, scale_e, scale_n, scale_bf16;
    int64_t bias, bias_e, bias_n, bias_bf16; /* bias 0: none; so for the next two */
    int64_t pertoken, pertoken_step;
    int64_t logit, logit_step;
    int64_t index, index_step, index_wide; /* wide: int64, else int32 */
    int64_t threads;
} call_t;

/* What one kernel call takes: a block of rows against some quads of one panel. */
typedef struct {
    int32_t *acc; /* (rows, 32), added to */
    int64_t acc_row;
    const int8_t *x; /* (rows, 4 * quads), or int16 where the path widens x */
    int64_t x_row;
    const int8_t *w; /* (4 * quads, 32); unused when packed quads are read */
    int64_t w_row;
    int8_t *pack; /* permuted quads: read, or written if not null */
    int64_t quads;
    const char *ahead[2]; /* prefetched once a quad, each moving by ahead_step */
    int64_t ahead_step;
} tile_t;

typedef struct {
    const char *name;
    int rows;       /* of a block */
    int flip;       /* 128 if the weights are made unsigned: acc starts at -flip * sum(x) */
    int widen;      /* x is wanted as int16 */
    int quad_bytes; /* of a packed quad; 0 if the path never packs */
    void (*direct)(int rows, const tile_t *t); /* from w, storing to pack if not null */
    void (*packed)(int rows, const tile_t *t);
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

#define FINISH(name, ...)                                                                        \
    __VA_ARGS__ static void name(float *const *out, const int32_t *acc, int64_t acc_row,         \
                                 int64_t rows, int64_t cols, const float *scale,                 \
                                 const float *bias, const float *p, const float *logit) {        \
        finish_body(out, acc, acc_row, rows, cols, scale, bias, p, logit);                       \
    }

/* ------------------------------------------------------------------------------- plain C */

static void c_direct(int rows, const tile_t *t) {
    for (int r = 0; r < rows; r++) {
        uint32_t acc[PANEL];
        memcpy(acc, t->acc + r * t->acc_row, sizeof acc);
        for (int64_t i = 0; i < 4 * t->quads; i++) {
            const int32_t v = t->x[r * t->x_row + i];
            const int8_t *w = t->w + i * t->w_row;
            for (int j = 0; j < PANEL; j++)
                acc[j] += (uint32_t)(v * w[j]);
        }
        memcpy(t->acc + r * t->acc_row, acc, sizeof acc);
    }
}

FINISH(c_finish, )

static const path_t c_path = {"c", MAX_ROWS, 0, 0, 0, c_direct, NULL, c_finish};

/* ---------------------------------------------------------------------- x86-64: AVX-512 VNNI */

#if defined(__x86_64__)

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

enum { DIRECT, STORE, PACKED };

/*
 * VPDPBUSD multiplies unsigned by signed bytes: flipping the top bit of w adds 128 to it. Eight
 * rows by two vectors keep the unit busy; twelve rows would spill.
 *
 * Bytes go to their places in two steps, dwords across lanes and bytes within a lane, which
 * costs no more than VBMI's single step here and asks less of the processor.
 */
AVX512 INLINE void avx512_tile(const int rows, const int mode, const tile_t *t) {
    const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    const __m512i turn = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    __m512i acc[MAX_ROWS][2];
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        acc[r][0] = _mm512_loadu_si512(t->acc + r * t->acc_row);
        acc[r][1] = _mm512_loadu_si512(t->acc + r * t->acc_row + 16);
    }
    const int8_t *x = t->x, *w = t->w;
    int8_t *pack = t->pack;
    const char *ahead0 = t->ahead[0], *ahead1 = t->ahead[1];
    const int64_t x_row = t->x_row, w_row = t->w_row, ahead_step = t->ahead_step;
    for (int64_t q = t->quads; q > 0; q--) {
        __m512i b0, b1;
        _mm_prefetch(ahead0, _MM_HINT_T0);
        _mm_prefetch(ahead1, _MM_HINT_T0);
        ahead0 += ahead_step;
        ahead1 += ahead_step;
        if (mode == PACKED) {
            b0 = _mm512_loadu_si512(pack);
            b1 = _mm512_loadu_si512(pack + 64);
            pack += 128;
        } else {
            const __m256i w0 = _mm256_loadu_si256((const void *)w);
            const __m256i w1 = _mm256_loadu_si256((const void *)(w + w_row));
            const __m256i w2 = _mm256_loadu_si256((const void *)(w + 2 * w_row));
            const __m256i w3 = _mm256_loadu_si256((const void *)(w + 3 * w_row));
            const __m512i z0 = _mm512_inserti64x4(_mm512_castsi256_si512(w0), w1, 1);
            const __m512i z1 = _mm512_inserti64x4(_mm512_castsi256_si512(w2), w3, 1);
            w += 4 * w_row;
            b0 = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(z0, low, z1), turn);
            b1 = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(z0, high, z1), turn);
            b0 = _mm512_xor_si512(b0, flip);
            b1 = _mm512_xor_si512(b1, flip);
            if (mode == STORE) {
                _mm512_storeu_si512(pack, b0);
                _mm512_storeu_si512(pack + 64, b1);
                pack += 128;
            }
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_row, 4);
            const __m512i v = _mm512_set1_epi32(four);
            acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], b0, v);
            acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], b1, v);
        }
        x += 4;
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        _mm512_storeu_si512(t->acc + r * t->acc_row, acc[r][0]);
        _mm512_storeu_si512(t->acc + r * t->acc_row + 16, acc[r][1]);
    }
}

#define BY_ROWS(tile, mode)                                                                      \
    switch (rows) {                                                                              \
    case 1: tile(1, mode, t); break;                                                             \
    case 2: tile(2, mode, t); break;                                                             \
    case 3: tile(3, mode, t); break;                                                             \
    case 4: tile(4, mode, t); break;                                                             \
    case 5: tile(5, mode, t); break;                                                             \
    case 6: tile(6, mode, t); break;                                                             \
    case 7: tile(7, mode, t); break;                                                             \
    case 8: tile(8, mode, t); break;                                                             \
    }

AVX512 static void avx512_direct(int rows, const tile_t *t) {
    if (t->pack)
        BY_ROWS(avx512_tile, STORE)
    else
        BY_ROWS(avx512_tile, DIRECT)
}

AVX512 static void avx512_packed(int rows, const tile_t *t) {
    BY_ROWS(avx512_tile, PACKED)
}

FINISH(avx512_finish, AVX512)

static const path_t avx512_path = {
    "avx512vnni", 8, 128, 0, 128, avx512_direct, avx512_packed, avx512_finish};

#endif /* x86-64 */

/* ------------------------------------------------------------------------ one thread's work */

typedef struct {
    const call_t *c;
    const path_t *path;
    int64_t rows;        /* ends[e - 1]: rows from there on are never read */
    int64_t quads;       /* of a panel, the last one filled up with zeros */
    int64_t task_panels; /* of a task */
    int64_t pack_panels; /* packed at a time */
    int64_t k_block;     /* k-rows that a run over panels takes at a time */
    int64_t tasks;
    int in_place;        /* whole panels can be read where they are */
    atomic_llong next, done;
    atomic_int failed;
} job_t;

typedef struct {
    const job_t *job;
    void *memory;
    int8_t *pack;
    int32_t *acc;
    int64_t acc_row;
    int8_t *x;
    int8_t *panel;      /* SCRATCH rows of a panel that had to be copied */
    float *scale, *bias;
    float **out;        /* each row's output row */
    float *p, *logit;
    int32_t *start;     /* each row's first accumulator value */
} worker_t;

static float load_float(int64_t address, int64_t i, int64_t bf16) {
    if (bf16) {
        const uint32_t bits = (uint32_t)((const uint16_t *)address)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    return ((const float *)address)[i];
}

/* One allocation per thread and call; what it holds does not grow with e, n or (beyond 20 bytes
 * a row) m. */
static int worker_open(worker_t *s, const job_t *job, int64_t *first_fit) {
    (void)first_fit;
    const int64_t cols = job->task_panels * PANEL, quads = job->quads;
    const int64_t acc_row = cols + 16; /* off a power of two: rows do not share cache sets */
    int64_t sizes[] = {
        job->pack_panels * quads * job->path->quad_bytes,
        MAX_ROWS * acc_row * 4,
        MAX_ROWS * quads * 4 * 2,
        SCRATCH * PANEL,
        cols * 4,
        cols * 4,
        job->rows * (int64_t)sizeof(float *),
        job->rows * 4,
        job->rows * 4,
        job->rows * 4,
    };
    enum { PIECES = sizeof sizes / sizeof sizes[0] };
    size_t total = 64;
    for (int i = 0; i < PIECES; i++)
        total += ((size_t)sizes[i] + 63) & ~(size_t)63;
    s->job = job;
    s->memory = malloc(total);
    if (!s->memory)
        return -1;
    char *at = (char *)(((uintptr_t)s->memory + 63) & ~(uintptr_t)63);
    void *pieces[PIECES];
    for (int i = 0; i < PIECES; i++) {
        pieces[i] = at;
        at += ((size_t)sizes[i] + 63) & ~(size_t)63;
    }
    s->pack = pieces[0];
    s->acc = pieces[1];
    s->acc_row = acc_row;
    s->x = pieces[2];
    s->panel = pieces[3];
    s->scale = pieces[4];
    s->bias = pieces[5];
    s->out = pieces[6];
    s->p = pieces[7];
    s->logit = pieces[8];
    s->start = pieces[9];

    const call_t *c = job->c;
    for (int64_t r = 0; r < job->rows; r++) {
        const int64_t index = c->index_wide ? ((const int64_t *)c->index)[r * c->index_step]
                                            : ((const int32_t *)c->index)[r * c->index_step];
        s->out[r] = (float *)c->out + index * c->out_row;
        const float l = c->logit ? ((const float *)c->logit)[r * c->logit_step] : 1.0f;
        s->logit[r] = l;
        s->p[r] = c->pertoken ? ((const float *)c->pertoken)[r * c->pertoken_step] * l : l;
        int32_t sum = 0;
        if (job->path->flip) {
            const int8_t *x = (const int8_t *)c->x + r * c->x_row;
            if (c->x_col == 1)
                for (int64_t i = 0; i < c->k; i++)
                    sum += x[i];
            else
                for (int64_t i = 0; i < c->k; i++)
                    sum += x[i * c->x_col];
        }
        s->start[r] = (int32_t)((uint32_t)sum * (uint32_t)-job->path->flip);
    }
    return 0;
}

/* Points t at a block of x's rows, copied if they are strided, ragged or wanted as int16. */
static void take_x(const worker_t *s, tile_t *t, int64_t row, int rows) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int8_t *x = (const int8_t *)c->x + row * c->x_row;
    if (c->x_col == 1 && c->k % 4 == 0 && !job->path->widen) {
        t->x = x;
        t->x_row = c->x_row;
        return;
    }
    const int64_t width = 4 * job->quads;
    for (int r = 0; r < rows; r++, x += c->x_row) {
        if (job->path->widen) {
            int16_t *to = (int16_t *)s->x + r * width;
            for (int64_t i = 0; i < c->k; i++)
                to[i] = x[i * c->x_col];
            for (int64_t i = c->k; i < width; i++)
                to[i] = 0;
        } else {
            int8_t *to = s->x + r * width;
            if (c->x_col == 1)
                memcpy(to, x, (size_t)c->k);
            else
                for (int64_t i = 0; i < c->k; i++)
                    to[i] = x[i * c->x_col];
            memset(to + c->k, 0, (size_t)(width - c->k));
        }
    }
    t->x = s->x;
    t->x_row = width;
}

/* Copies w[g, from:to, col:col+32] to the scratch panel; columns past n and rows past k: zeros. */
static void take_panel(const worker_t *s, int64_t g, int64_t col, int64_t from, int64_t to) {
    const call_t *c = s->job->c;
    const int64_t last = to < c->k ? to : c->k;
    const int64_t cols = c->n - col < PANEL ? c->n - col : PANEL;
    const int8_t *w = (const int8_t *)c->w + g * c->w_e + col / PANEL * c->w_n1;
    memset(s->panel, 0, (size_t)((to - from) * PANEL));
    for (int64_t i = from; i < last; i++) {
        const int8_t *row = w + i / 16 * c->w_k1 + i % 16 * c->w_i;
        int8_t *dest = s->panel + (i - from) * PANEL;
        for (int64_t j = 0; j < cols; j++)
            dest[j] = row[j * c->w_j];
    }
}

/* A block of rows against panels [0, panels) from col on, straight from the weights. */
static void direct_block(const worker_t *s, const tile_t *block, int rows, int64_t g, int64_t col,
                         int64_t panels, int store) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int x_bytes = path->widen ? 2 : 1;
    const int64_t whole = c->k / 4 * 4;
    for (int64_t k0 = 0; k0 < c->k; k0 += job->k_block) {
        const int64_t k1 = k0 + job->k_block < c->k ? k0 + job->k_block : c->k;
        for (int64_t p = 0; p < panels; p++) {
            const int64_t pcol = col + p * PANEL;
            int64_t at = k0;
            tile_t t = *block;
            t.acc = s->acc + p * PANEL;
            if (job->in_place && pcol + PANEL <= c->n) {
                const int64_t to = k1 < whole ? k1 : whole;
                t.w = (const int8_t *)c->w + g * c->w_e + pcol / PANEL * c->w_n1 + k0 * c->w_i;
                t.w_row = c->w_i;
                t.x = block->x + k0 * x_bytes;
                t.pack = store ? s->pack + (p * job->quads + k0 / 4) * path->quad_bytes : NULL;
                t.quads = (to - k0) / 4;
                if (t.quads > 0)
                    path->direct(rows, &t);
                at = to;
            }
            for (; at < k1; at += SCRATCH) {
                const int64_t to = at + SCRATCH < k1 ? at + SCRATCH : k1;
                t.quads = (to - at + 3) / 4;
                take_panel(s, g, pcol, at, at + 4 * t.quads);
                t.w = s->panel;
                t.w_row = PANEL;
                t.x = block->x + at * x_bytes;
                t.pack = store ? s->pack + (p * job->quads + at / 4) * path->quad_bytes : NULL;
                path->direct(rows, &t);
            }
        }
    }
}

static void run_group(const worker_t *s, int64_t g, int64_t row0, int64_t rows, int64_t col0,
                      int64_t cols) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    for (int64_t j = 0; j < cols; j++)
        s->scale[j] = load_float(c->scale, g * c->scale_e + (col0 + j) * c->scale_n, c->scale_bf16);
    if (c->bias)
        for (int64_t j = 0; j < cols; j++)
            s->bias[j] = load_float(c->bias, g * c->bias_e + (col0 + j) * c->bias_n, c->bias_bf16);

    const int64_t blocks = (rows + path->rows - 1) / path->rows;
    const int store = blocks > 1 && path->quad_bytes;
    const int64_t step = (store ? job->pack_panels : job->task_panels) * PANEL;
    for (int64_t off = 0; off < cols; off += step) {
        const int64_t width = cols - off < step ? cols - off : step;
        const int64_t panels = (width + PANEL - 1) / PANEL;
        for (int64_t b = 0; b < blocks; b++) {
            /* Blocks as even as can be: a block of one row would read a panel for little work. */
            const int64_t from = row0 + rows * b / blocks, to = row0 + rows * (b + 1) / blocks;
            const int block = (int)(to - from);
            tile_t t = {.acc_row = s->acc_row};
            take_x(s, &t, from, block);
            for (int r = 0; r < block; r++)
                for (int64_t j = 0; j < panels * PANEL; j++)
                    s->acc[r * s->acc_row + j] = s->start[from + r];
            if (b == 0 || !store) {
                direct_block(s, &t, block, g, col0 + off, panels, store);
            } else {
                for (int64_t p = 0; p < panels; p++) {
                    t.acc = s->acc + p * PANEL;
                    t.pack = s->pack + p * job->quads * path->quad_bytes;
                    t.quads = job->quads;
                    path->packed(block, &t);
                }
            }
            float *out[MAX_ROWS];
            for (int r = 0; r < block; r++)
                out[r] = s->out[from + r] + col0 + off;
            path->finish(out, s->acc, s->acc_row, block, width, s->scale + off,
                         c->bias ? s->bias + off : NULL, s->p + from, s->logit + from);
        }
    }
}

/* Takes tasks until there are none left. */
static void work(job_t *job) {
    worker_t s = {0};
    for (;;) {
        const int64_t task = atomic_fetch_add(&job->next, 1);
        if (task >= job->tasks)
            break;
        if (!s.memory && worker_open(&s, job, NULL)) {
            atomic_store(&job->failed, 1);
            break;
        }
        const int64_t width = job->task_panels * PANEL, col = task * width;
        const int64_t cols = job->c->n - col < width ? job->c->n - col : width;
        const int64_t *ends = (const int64_t *)job->c->ends;
        int64_t from = 0;
        for (int64_t g = 0; g < job->c->e; g++) {
            if (ends[g] > from)
                run_group(&s, g, from, ends[g] - from, col, cols);
            from = ends[g];
        }
    }
    free(s.memory);
}

/* ------------------------------------------------------------------------------- threads */

/* Threads that wait for jobs. One job at a time has them; a second caller meanwhile works alone. */
static pthread_mutex_t pool_user = PTHREAD_MUTEX_INITIALIZER; /* held by the caller they serve */
static pthread_mutex_t pool_lock = PTHREAD_MUTEX_INITIALIZER; /* guards what follows */
static pthread_cond_t pool_wake = PTHREAD_COND_INITIALIZER;
static pthread_cond_t pool_idle = PTHREAD_COND_INITIALIZER;
static job_t *pool_job;
static int pool_size, pool_wanted, pool_busy;

static void *pool_thread(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool_lock);
    for (;;) {
        while (!pool_job || pool_wanted == 0)
            pthread_cond_wait(&pool_wake, &pool_lock);
        job_t *job = pool_job;
        pool_wanted--;
        pool_busy++;
        pthread_mutex_unlock(&pool_lock);
        work(job);
        pthread_mutex_lock(&pool_lock);
        if (--pool_busy == 0)
            pthread_cond_signal(&pool_idle);
    }
    return NULL;
}

/* A child has none of its parent's threads, and whatever state they left behind. */
static void pool_forked(void) {
    pthread_mutex_init(&pool_user, NULL);
    pthread_mutex_init(&pool_lock, NULL);
    pthread_cond_init(&pool_wake, NULL);
    pthread_cond_init(&pool_idle, NULL);
    pool_job = NULL;
    pool_size = pool_wanted = pool_busy = 0;
}

static void pool_grow(int size) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    extern void pool_at_fork(void);
    pthread_once(&once, pool_at_fork);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals stay with the program's threads */
    while (pool_size < size) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, pool_thread, NULL))
            break; /* fewer threads, same numbers */
        pthread_detach(thread);
        pool_size++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void pool_at_fork(void) {
    pthread_atfork(NULL, NULL, pool_forked);
}

static void run_job(job_t *job, int64_t threads) {
    if (threads > job->tasks)
        threads = job->tasks;
    if (threads < 2 || pthread_mutex_trylock(&pool_user)) {
        work(job);
        return;
    }
    pthread_mutex_lock(&pool_lock);
    if (pool_size < threads - 1)
        pool_grow((int)threads - 1);
    pool_job = job;
    pool_wanted = (int)threads - 1;
    pthread_cond_broadcast(&pool_wake);
    pthread_mutex_unlock(&pool_lock);
    work(job);
    pthread_mutex_lock(&pool_lock);
    pool_job = NULL; /* who has not woken by now is not needed */
    while (pool_busy)
        pthread_cond_wait(&pool_idle, &pool_lock);
    pthread_mutex_unlock(&pool_lock);
    pthread_mutex_unlock(&pool_user);
}

/* ----------------------------------------------------------------------------- the library */

EXPORT int64_t grouped_matmul_call_bytes(void) {
    return sizeof(call_t);
}

static const path_t *const paths[] = {
#if defined(__x86_64__)
    &avx512_path,
#endif
    &c_path,
};

enum { PATHS = sizeof paths / sizeof paths[0] };

#if defined(__x86_64__)
static uint64_t os_state(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}
#endif

static int can_run(const path_t *path) {
#if defined(__x86_64__)
    if (path != &c_path) {
        unsigned a, b, c, d, c1;
        if (!__get_cpuid(1, &a, &b, &c1, &d) || !(c1 & bit_OSXSAVE) || !(c1 & bit_AVX))
            return 0;
        const uint64_t state = os_state();
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
            return 0;
        if (path == &avx512_path) {
            const unsigned want = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
            return (state & 0xe6) == 0xe6 && (b & want) == want && (c & bit_AVX512VNNI);
        }
    }
#endif
    return path == &c_path;
}

/* The name of the i-th path of this build, best first; null past the last. */
EXPORT const char *grouped_matmul_path_name(int64_t i) {
    return i >= 0 && i < PATHS ? paths[i]->name : NULL;
}

EXPORT int grouped_matmul_path_runs(int64_t i) {
    return i >= 0 && i < PATHS && can_run(paths[i]);
}

static int64_t tune(const char *name, int64_t value) {
    const char *text = getenv(name);
    return text ? atoll(text) : value;
}

/* Adds every row's contribution to out. Returns 0, or -1 if memory ran out. */
EXPORT int grouped_matmul_combine(const call_t *c, int64_t path_index) {
    const path_t *path = paths[path_index];
    const int64_t *ends = (const int64_t *)c->ends;
    job_t job = {.c = c, .path = path, .rows = ends[c->e - 1], .quads = (c->k + 3) / 4};
    if (job.rows == 0 || c->n == 0)
        return 0;
    const int64_t panels = (c->n + PANEL - 1) / PANEL;
    int64_t threads = c->threads;
    int64_t most = 0, from = 0;
    for (int64_t g = 0; g < c->e; g++) {
        most = ends[g] - from > most ? ends[g] - from : most;
        from = ends[g];
    }
    const int store = path->quad_bytes && most > path->rows;
    const int nz = c->w_i == PANEL;
    job.in_place = c->w_j == 1 && (c->w_k1 == 16 * c->w_i || c->k <= 16);
    int64_t fit = (tune("T_PACK", 256) << 10) / (job.quads * 128);
    fit = fit < 1 ? 1 : fit > panels ? panels : fit;
    job.task_panels = tune("T_TASK", 8);
    if (job.task_panels > panels) job.task_panels = panels;
    job.pack_panels = store ? fit : 0;
    if (job.pack_panels > job.task_panels) job.pack_panels = job.task_panels;
    job.k_block = nz ? (c->k + SCRATCH - 1) / SCRATCH * SCRATCH : tune("T_KB", 128);
    job.tasks = (panels + job.task_panels - 1) / job.task_panels;
    if (job.rows * c->k * c->n < (1 << 20))
        threads = 1;
    run_job(&job, threads);
    return atomic_load(&job.failed) ? -1 : 0;
}
