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
 *   - A group of few rows streams the weights through registers, once, or, being two blocks of
 *     rows, twice. A larger group stores the permuted quads as its first block passes, and the
 *     other blocks read those.
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
#define _GNU_SOURCE /* POSIX beside -std=c11 */
#define _DARWIN_C_SOURCE
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
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#define EXPORT __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

enum {
    PANEL = 32,      /* columns of a panel: FRACTAL_NZ's inner dimension for int8 */
    MAX_ROWS = 8,    /* rows of a block, at most, over all paths */
    MAX_BLOCKS = 3,  /* of a group whose ND weights are read in whole rows */
    SCRATCH = 128,   /* k-rows copied at a time where a panel cannot be read in place */
    ND_ROWS = 512,   /* k-rows of ND at a time: loading and storing accumulators costs little */
    ND_FEW_ROWS = 16, /* the same for one or two rows of x: few streams through memory */
    ND_RUN = 8,      /* panels of ND at a time: with ND_ROWS, and the next run, in a small L2 */
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

typedef struct {
    const char *name;
    int rows;       /* of a block */
    int flip;       /* 128 if the weights are made unsigned: acc starts at -flip * sum(x) */
    int widen;      /* x is wanted as int16 */
    int quad_bytes; /* of a packed quad; 0 if the path never packs */
    int unpacked;   /* blocks that a contiguous panel is permuted for anew, sooner than packed */
    int32_t (*sum)(const int8_t *x, int64_t n); /* wanted where flip is */
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
    for (int64_t p = 0; p < t->panels; p++)
        for (int r = 0; r < rows; r++) {
            int32_t *to = t->acc + p * PANEL + r * t->acc_row;
            uint32_t acc[PANEL];
            if (t->start)
                memset(acc, 0, sizeof acc);
            else
                memcpy(acc, to, sizeof acc);
            for (int64_t i = 0; i < 4 * t->quads; i++) {
                const int32_t v = t->x[r * t->x_row + i];
                const int8_t *w = t->w + p * t->w_panel + i * t->w_row;
                for (int j = 0; j < PANEL; j++)
                    acc[j] += (uint32_t)(v * w[j]);
            }
            memcpy(to, acc, sizeof acc);
        }
}

FINISH(c_finish, )

static const path_t c_path = {"c", MAX_ROWS, 0, 0, 0, 1, NULL, c_direct, NULL, c_finish};

/* Calls a kernel with its number of rows as a constant, so that accumulators are registers. */
#define ROWS_3(tile, ...)                                                                        \
    case 1: tile(1, __VA_ARGS__); break;                                                         \
    case 2: tile(2, __VA_ARGS__); break;                                                         \
    case 3: tile(3, __VA_ARGS__); break;
#define ROWS_8(tile, ...)                                                                        \
    ROWS_3(tile, __VA_ARGS__)                                                                    \
    case 4: tile(4, __VA_ARGS__); break;                                                         \
    case 5: tile(5, __VA_ARGS__); break;                                                         \
    case 6: tile(6, __VA_ARGS__); break;                                                         \
    case 7: tile(7, __VA_ARGS__); break;                                                         \
    case 8: tile(8, __VA_ARGS__); break;

/*
 * For the paths of 16 or 32 smaller registers, which cannot hold weights being permuted and
 * enough accumulators at once: each panel is packed a scratch buffer (or the group's buffer) at a
 * time and the packed quads are read from L1.
 */
#define DIRECT_BY_PACKING(name, pack_quads, packed, quad_bytes, x_bytes, ...)                    \
    __VA_ARGS__ static void name(int rows, const tile_t *t) {                                    \
        int8_t scratch[SCRATCH / 4 * (quad_bytes)] __attribute__((aligned(64)));                 \
        for (int64_t p = 0; p < t->panels; p++) {                                                \
            tile_t part = *t;                                                                    \
            part.panels = 1;                                                                     \
            part.acc += p * PANEL;                                                               \
            for (int64_t q = 0; q < t->quads; q += part.quads) {                                 \
                part.quads = t->quads - q < SCRATCH / 4 ? t->quads - q : SCRATCH / 4;            \
                part.pack = t->pack ? t->pack + p * t->pack_panel + q * (quad_bytes) : scratch;  \
                part.x = t->x + 4 * q * (x_bytes);                                               \
                part.start = q ? NULL : t->start;                                                \
                pack_quads(part.pack, t->w + p * t->w_panel + 4 * q * t->w_row, t->w_row,        \
                           part.quads);                                                          \
                packed(rows, &part);                                                             \
            }                                                                                    \
        }                                                                                        \
    }

/* -------------------------------------------------------------------- x86-64: AVX-512 VNNI */

#if defined(__x86_64__)

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

enum { DIRECT, STORE, PACKED };

/*
 * VPDPBUSD multiplies unsigned by signed bytes: flipping the top bit of w adds 128 to it. Eight
 * rows by two vectors keep the multiplier busy; twelve rows would spill.
 *
 * Bytes go to their places in two steps, dwords across lanes and then bytes within a lane: within
 * two or three per cent of VBMI's single step, and it asks less of the processor.
 *
 * A panel of NZ is a linear stream, and the hardware's own prefetch does best alone. In ND it
 * gives up at the end of each row, and the lines of the next run are asked for, each row's from
 * end to end: a page at a time, so that its address is translated once. They go into L2; into L1
 * they would evict each other, rows being a multiple of its size apart.
 *
 * The compiler is kept from holding every multiple of the strides in a register: there are not
 * enough, and it would keep some of them in vectors.
 */
AVX512 INLINE void avx512_tile(const int rows, const int mode, const int nz, const tile_t *t) {
    const __m512i low = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
    const __m512i turn = _mm512_broadcast_i32x4(
        _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    const int32_t *start = t->start;
    const int64_t acc_row = t->acc_row, x_row = t->x_row, w_row = t->w_row;
    const int64_t skip = w_row - t->next_run;
    const int8_t *next = t->next, *run_end = next + t->next_run;
    int64_t x_row3 = 3 * x_row, w_row3 = 3 * w_row;
    __asm__("" : "+r"(x_row3), "+r"(w_row3));
    for (int64_t p = 0; p < t->panels; p++) {
        int32_t *to = t->acc + p * PANEL;
        __m512i acc[MAX_ROWS][2];
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            const int32_t *from = to + r * acc_row;
            acc[r][0] = start ? _mm512_set1_epi32(start[r]) : _mm512_loadu_si512(from);
            acc[r][1] = start ? acc[r][0] : _mm512_loadu_si512(from + 16);
        }
        const int8_t *x = t->x, *x3 = x + x_row3;
        __asm__("" : "+r"(x3));
        const int8_t *w = t->w + p * t->w_panel;
        if (mode == PACKED)
            next = t->next + p * t->w_panel + (p & 1 ? 2 * w_row : 0);
        int8_t *pack = t->pack + p * t->pack_panel;
        for (int64_t q = t->quads; q > 0; q--) {
            __m512i b0, b1;
            if (mode == PACKED) {
                _mm_prefetch(next, _MM_HINT_T1);
                next += t->next_step;
                b0 = _mm512_loadu_si512(pack);
                b1 = _mm512_loadu_si512(pack + 64);
                pack += 128;
            } else {
                __m512i z0, z1;
                if (nz) {
                    z0 = _mm512_loadu_si512(w);
                    z1 = _mm512_loadu_si512(w + 64);
                    w += 4 * PANEL;
                } else {
                    _mm_prefetch(next, _MM_HINT_T1);
                    _mm_prefetch(next + 64, _MM_HINT_T1);
                    next += 128;
                    if (next >= run_end) {
                        next += skip;
                        run_end += w_row;
                    }
                    const __m256i w0 = _mm256_loadu_si256((const void *)w);
                    const __m256i w1 = _mm256_loadu_si256((const void *)(w + w_row));
                    const __m256i w2 = _mm256_loadu_si256((const void *)(w + 2 * w_row));
                    const __m256i w3 = _mm256_loadu_si256((const void *)(w + w_row3));
                    z0 = _mm512_inserti64x4(_mm512_castsi256_si512(w0), w1, 1);
                    z1 = _mm512_inserti64x4(_mm512_castsi256_si512(w2), w3, 1);
                    w += 4 * w_row;
                }
                b0 = _mm512_xor_si512(_mm512_shuffle_epi8(_mm512_permutex2var_epi32(z0, low, z1), turn), flip);
                b1 = _mm512_xor_si512(_mm512_shuffle_epi8(_mm512_permutex2var_epi32(z0, high, z1), turn), flip);
                if (mode == STORE) {
                    _mm512_storeu_si512(pack, b0);
                    _mm512_storeu_si512(pack + 64, b1);
                    pack += 128;
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, r < 3    ? x + r * x_row
                              : r == 6 ? x + 2 * x_row3
                                       : x3 + (r - 3) * x_row, 4);
                const __m512i bytes = _mm512_set1_epi32(four);
                acc[r][0] = _mm512_dpbusd_epi32(acc[r][0], b0, bytes);
                acc[r][1] = _mm512_dpbusd_epi32(acc[r][1], b1, bytes);
            }
            x += 4;
            x3 += 4;
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            _mm512_storeu_si512(to + r * acc_row, acc[r][0]);
            _mm512_storeu_si512(to + r * acc_row + 16, acc[r][1]);
        }
    }
}


AVX512 static void avx512_direct(int rows, const tile_t *t) {
    const int nz = t->w_row == PANEL;
    if (nz && t->pack)
        switch (rows) { ROWS_8(avx512_tile, STORE, 1, t) }
    else if (nz)
        switch (rows) { ROWS_8(avx512_tile, DIRECT, 1, t) }
    else if (t->pack)
        switch (rows) { ROWS_8(avx512_tile, STORE, 0, t) }
    else
        switch (rows) { ROWS_8(avx512_tile, DIRECT, 0, t) }
}

AVX512 static void avx512_packed(int rows, const tile_t *t) {
    switch (rows) { ROWS_8(avx512_tile, PACKED, 0, t) }
}

AVX512 static int32_t avx512_sum(const int8_t *x, int64_t n) {
    const __m512i one = _mm512_set1_epi8(1);
    __m512i sum = _mm512_setzero_si512();
    for (; n >= 64; n -= 64, x += 64)
        sum = _mm512_dpbusd_epi32(sum, one, _mm512_loadu_si512(x));
    sum = _mm512_dpbusd_epi32(sum, one, _mm512_maskz_loadu_epi8((1ull << n) - 1, x));
    return _mm512_reduce_add_epi32(sum);
}

FINISH(avx512_finish, AVX512)

static const path_t avx512_path = {
    "avx512vnni", 8, 128, 0, 128, 2, avx512_sum, avx512_direct, avx512_packed, avx512_finish};

/* --------------------------------------------------------------------------- x86-64: AVX2 */

#define AVX2 __attribute__((target("avx2")))

/* The four k-rows of 32 columns as bytes, [column][k] within each 128-bit lane: the first vector
 * holds columns 0-3 and 16-19, the next 4-7 and 20-23, and so on. */
AVX2 INLINE void avx2_interleave(__m256i b[4], const int8_t *w, int64_t w_row) {
    const __m256i w0 = _mm256_loadu_si256((const void *)w);
    const __m256i w1 = _mm256_loadu_si256((const void *)(w + w_row));
    const __m256i w2 = _mm256_loadu_si256((const void *)(w + 2 * w_row));
    const __m256i w3 = _mm256_loadu_si256((const void *)(w + 3 * w_row));
    const __m256i low01 = _mm256_unpacklo_epi8(w0, w1), high01 = _mm256_unpackhi_epi8(w0, w1);
    const __m256i low23 = _mm256_unpacklo_epi8(w2, w3), high23 = _mm256_unpackhi_epi8(w2, w3);
    b[0] = _mm256_unpacklo_epi16(low01, low23);
    b[1] = _mm256_unpackhi_epi16(low01, low23);
    b[2] = _mm256_unpacklo_epi16(high01, high23);
    b[3] = _mm256_unpackhi_epi16(high01, high23);
}

/* Accumulators in the same order, from and to a row in memory. */
AVX2 INLINE __m256i avx2_load(const int32_t *row, int v) {
    const __m256i low = _mm256_castsi128_si256(_mm_loadu_si128((const void *)(row + 4 * v)));
    return _mm256_inserti128_si256(low, _mm_loadu_si128((const void *)(row + 16 + 4 * v)), 1);
}

AVX2 INLINE void avx2_store(int32_t *row, int v, __m256i value) {
    _mm_storeu_si128((void *)(row + 4 * v), _mm256_castsi256_si128(value));
    _mm_storeu_si128((void *)(row + 16 + 4 * v), _mm256_extracti128_si256(value, 1));
}

/*
 * Without a dot product of bytes, VPMADDWD on values widened to 16 bits is exact (VPMADDUBSW
 * would saturate). A quad is two such sets of four vectors, of k 0 and 1 and of k 2 and 3.
 */
AVX2 static void avx2_pack(int8_t *to, const int8_t *w, int64_t w_row, int64_t quads) {
    for (; quads > 0; quads--, w += 4 * w_row, to += 256) {
        __m256i b[4];
        avx2_interleave(b, w, w_row);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++) {
            /* Sign-extend bytes 0 and 1, and 2 and 3, of each dword into its two halves. */
            const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(b[v], 8), 8);
            const __m256i odd = _mm256_srai_epi16(b[v], 8);
            const __m256i k01 = _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
            const __m256i k23 = _mm256_blend_epi16(_mm256_srli_epi32(even, 16), odd, 0xaa);
            _mm256_storeu_si256((void *)(to + 32 * v), k01);
            _mm256_storeu_si256((void *)(to + 128 + 32 * v), k23);
        }
    }
}

AVX2 INLINE void avx2_tile(const int rows, const tile_t *t) {
    const int16_t *x = (const int16_t *)t->x;
    for (int64_t p = 0; p < t->panels; p++) {
        int32_t *to = t->acc + p * PANEL;
        const int8_t *b = t->pack + p * t->pack_panel;
        __m256i acc[2][4];
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                acc[r][v] = t->start ? _mm256_set1_epi32(t->start[r])
                                     : avx2_load(to + r * t->acc_row, v);
        for (int64_t half = 0; half < 2 * t->quads; half++, b += 128)
#pragma GCC unroll 2
            for (int r = 0; r < rows; r++) {
                int32_t pair;
                memcpy(&pair, x + r * t->x_row + 2 * half, 4);
                const __m256i pairs = _mm256_set1_epi32(pair);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++) {
                    const __m256i w = _mm256_loadu_si256((const void *)(b + 32 * v));
                    acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(w, pairs));
                }
            }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                avx2_store(to + r * t->acc_row, v, acc[r][v]);
    }
}

AVX2 static void avx2_packed(int rows, const tile_t *t) {
    switch (rows) {
    case 1: avx2_tile(1, t); break;
    case 2: avx2_tile(2, t); break;
    }
}

DIRECT_BY_PACKING(avx2_direct, avx2_pack, avx2_packed, 256, 2, AVX2)

FINISH(avx2_finish, AVX2)

static const path_t avx2_path = {
    "avx2", 2, 0, 1, 256, 1, NULL, avx2_direct, avx2_packed, avx2_finish};

/* ------------------------------------------------------------------------ x86-64: AVX-VNNI */

/* The same instruction with AVX-512's encoding, to run this path where only that exists. */
#if defined(NPU_LOWERING_AVXVNNI_AS_AVX512)
#define HAVE_AVXVNNI 1
#define AVXVNNI __attribute__((target("avx2,avx512f,avx512vl,avx512vnni")))
#define DPBUSD _mm256_dpbusd_epi32
#elif __GNUC__ >= 11 || (defined(__clang__) && __clang_major__ >= 12)
#define HAVE_AVXVNNI 1
#define AVXVNNI __attribute__((target("avx2,avxvnni")))
#define DPBUSD _mm256_dpbusd_avx_epi32
#endif

#if HAVE_AVXVNNI

AVXVNNI static void avxvnni_pack(int8_t *to, const int8_t *w, int64_t w_row, int64_t quads) {
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    for (; quads > 0; quads--, w += 4 * w_row, to += 128) {
        __m256i b[4];
        avx2_interleave(b, w, w_row);
#pragma GCC unroll 4
        for (int v = 0; v < 4; v++)
            _mm256_storeu_si256((void *)(to + 32 * v), _mm256_xor_si256(b[v], flip));
    }
}

AVXVNNI INLINE void avxvnni_tile(const int rows, const tile_t *t) {
    for (int64_t p = 0; p < t->panels; p++) {
        int32_t *to = t->acc + p * PANEL;
        const int8_t *b = t->pack + p * t->pack_panel;
        __m256i acc[3][4];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                acc[r][v] = t->start ? _mm256_set1_epi32(t->start[r])
                                     : avx2_load(to + r * t->acc_row, v);
        for (int64_t q = 0; q < t->quads; q++, b += 128) {
            __m256i x[3];
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, t->x + r * t->x_row + 4 * q, 4);
                x[r] = _mm256_set1_epi32(four);
            }
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++) {
                const __m256i w = _mm256_loadu_si256((const void *)(b + 32 * v));
#pragma GCC unroll 3
                for (int r = 0; r < rows; r++)
                    acc[r][v] = DPBUSD(acc[r][v], w, x[r]);
            }
        }
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                avx2_store(to + r * t->acc_row, v, acc[r][v]);
    }
}

AVXVNNI static void avxvnni_packed(int rows, const tile_t *t) {
    switch (rows) { ROWS_3(avxvnni_tile, t) }
}

AVXVNNI static int32_t avxvnni_sum(const int8_t *x, int64_t n) {
    const __m256i one = _mm256_set1_epi8(1);
    __m256i sums = _mm256_setzero_si256();
    for (; n >= 32; n -= 32, x += 32)
        sums = DPBUSD(sums, one, _mm256_loadu_si256((const void *)x));
    int32_t lanes[8], sum = 0;
    _mm256_storeu_si256((void *)lanes, sums);
    for (int i = 0; i < 8; i++)
        sum += lanes[i];
    for (int64_t i = 0; i < n; i++)
        sum += x[i];
    return sum;
}

DIRECT_BY_PACKING(avxvnni_direct, avxvnni_pack, avxvnni_packed, 128, 1, AVXVNNI)

FINISH(avxvnni_finish, AVXVNNI)

static const path_t avxvnni_path = {
    "avxvnni", 3, 128, 0, 128, 1, avxvnni_sum, avxvnni_direct, avxvnni_packed, avxvnni_finish};

#endif

#endif /* x86-64 */

/* --------------------------------------------------------------------- aarch64: dot product */

#if defined(__aarch64__)

#if defined(__clang__)
#define NEON __attribute__((target("dotprod")))
#else
#define NEON __attribute__((target("arch=armv8.2-a+dotprod")))
#endif

NEON static void neon_pack(int8_t *to, const int8_t *w, int64_t w_row, int64_t quads) {
    for (; quads > 0; quads--, w += 4 * w_row)
        for (int half = 0; half < 2; half++, to += 64) {
            const int8_t *from = w + 16 * half;
            const int8x16_t w0 = vld1q_s8(from), w1 = vld1q_s8(from + w_row);
            const int8x16_t w2 = vld1q_s8(from + 2 * w_row), w3 = vld1q_s8(from + 3 * w_row);
            const int16x8_t low01 = vreinterpretq_s16_s8(vzip1q_s8(w0, w1));
            const int16x8_t low23 = vreinterpretq_s16_s8(vzip1q_s8(w2, w3));
            const int16x8_t high01 = vreinterpretq_s16_s8(vzip2q_s8(w0, w1));
            const int16x8_t high23 = vreinterpretq_s16_s8(vzip2q_s8(w2, w3));
            vst1q_s8(to, vreinterpretq_s8_s16(vzip1q_s16(low01, low23)));
            vst1q_s8(to + 16, vreinterpretq_s8_s16(vzip2q_s16(low01, low23)));
            vst1q_s8(to + 32, vreinterpretq_s8_s16(vzip1q_s16(high01, high23)));
            vst1q_s8(to + 48, vreinterpretq_s8_s16(vzip2q_s16(high01, high23)));
        }
}

NEON INLINE void neon_tile(const int rows, const tile_t *t) {
    for (int64_t p = 0; p < t->panels; p++) {
        int32_t *to = t->acc + p * PANEL;
        const int8_t *b = t->pack + p * t->pack_panel;
        int32x4_t acc[3][8];
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < 8; v++)
                acc[r][v] = t->start ? vdupq_n_s32(t->start[r])
                                     : vld1q_s32(to + r * t->acc_row + 4 * v);
        for (int64_t q = 0; q < t->quads; q++, b += 128) {
            int8x16_t x[3];
#pragma GCC unroll 3
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, t->x + r * t->x_row + 4 * q, 4);
                x[r] = vreinterpretq_s8_s32(vdupq_n_s32(four));
            }
#pragma GCC unroll 8
            for (int v = 0; v < 8; v++) {
                const int8x16_t w = vld1q_s8(b + 16 * v);
#pragma GCC unroll 3
                for (int r = 0; r < rows; r++)
                    acc[r][v] = vdotq_s32(acc[r][v], w, x[r]);
            }
        }
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < 8; v++)
                vst1q_s32(to + r * t->acc_row + 4 * v, acc[r][v]);
    }
}

NEON static void neon_packed(int rows, const tile_t *t) {
    switch (rows) { ROWS_3(neon_tile, t) }
}

DIRECT_BY_PACKING(neon_direct, neon_pack, neon_packed, 128, 1, NEON)

FINISH(neon_finish, NEON)

static const path_t neon_path = {
    "neon", 3, 0, 0, 128, 1, NULL, neon_direct, neon_packed, neon_finish};

#endif /* aarch64 */

/* ------------------------------------------------------------------------ one thread's work */

typedef struct worker worker_t;

typedef struct job {
    const call_t *c;
    const path_t *path;
    void (*run)(const worker_t *s, int64_t task);
    int64_t rows;        /* ends[e - 1]: rows from there on are never read */
    int64_t quads;       /* of a panel, the last one filled up with zeros */
    int64_t panels;      /* of n, the last one perhaps not full */
    int64_t task_panels; /* of a task that is a range of columns */
    int64_t pack_panels; /* of those, packed at a time */
    int in_place;        /* panels can be read where they are */
    int nz;              /* and are contiguous */
    float **out;         /* for each row, its output row, */
    float *p, *logit;    /* its factors, */
    int32_t *start;      /* and its accumulators' first value */
    int64_t *live, lives; /* the groups that have rows, and how many those are */
    int64_t first, last, first_row, batch_rows; /* a batch of those, and its rows */
    int64_t slices, slice_k;                    /* the k-rows of each, cut into so many tasks */
    int32_t *sums;                              /* (slices, batch_rows, 32 * panels) */
    int64_t tasks;
    atomic_llong next;
    atomic_int failed;
} job_t;

struct worker {
    const job_t *job;
    void *memory;
    int8_t *pack;        /* pack_panels panels */
    int32_t *acc;        /* a block of rows by a task's columns */
    int64_t acc_row;
    int8_t *x;           /* blocks of rows, where x cannot be read in place */
    int8_t *panel;       /* SCRATCH rows of a panel, where w cannot */
    float *scale, *bias; /* a task's columns */
};

/* Cuts one block of memory into aligned pieces; the caller frees it. Null if there is none. */
static void *allocate(const int64_t *sizes, void **pieces, int count) {
    size_t total = 64;
    for (int i = 0; i < count; i++)
        total += ((size_t)sizes[i] + 63) & ~(size_t)63;
    void *memory = malloc(total);
    char *at = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    for (int i = 0; memory && i < count; i++) {
        pieces[i] = at;
        at += ((size_t)sizes[i] + 63) & ~(size_t)63;
    }
    return memory;
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t over(int64_t a, int64_t b) { /* a / b, rounded up */
    return (a + b - 1) / b;
}

static float load_float(int64_t address, int64_t i, int64_t bf16) {
    if (bf16) {
        const uint32_t bits = (uint32_t)((const uint16_t *)address)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    return ((const float *)address)[i];
}

/* What every thread needs to know of each row. */
static void *read_rows(job_t *job) {
    const call_t *c = job->c;
    const int64_t *ends = (const int64_t *)c->ends;
    const int64_t sizes[] = {job->rows * (int64_t)sizeof(float *), job->rows * 4, job->rows * 4,
                             job->rows * 4, least(c->e, job->rows) * 8};
    void *pieces[5], *memory = allocate(sizes, pieces, 5);
    if (!memory)
        return NULL;
    job->out = pieces[0];
    job->p = pieces[1];
    job->logit = pieces[2];
    job->start = pieces[3];
    job->live = pieces[4];
    for (int64_t r = 0; r < job->rows; r++) {
        const int64_t index = c->index_wide ? ((const int64_t *)c->index)[r * c->index_step]
                                            : ((const int32_t *)c->index)[r * c->index_step];
        job->out[r] = (float *)c->out + index * c->out_row;
        const float l = c->logit ? ((const float *)c->logit)[r * c->logit_step] : 1.0f;
        job->logit[r] = l;
        job->p[r] = c->pertoken ? ((const float *)c->pertoken)[r * c->pertoken_step] * l : l;
        int32_t sum = 0;
        if (job->path->flip) {
            const int8_t *x = (const int8_t *)c->x + r * c->x_row;
            if (c->x_col == 1)
                sum = job->path->sum(x, c->k);
            else
                for (int64_t i = 0; i < c->k; i++)
                    sum += x[i * c->x_col];
        }
        job->start[r] = (int32_t)((uint32_t)sum * (uint32_t)-job->path->flip);
    }
    for (int64_t g = 0; g < c->e; g++)
        if (ends[g] > (g ? ends[g - 1] : 0))
            job->live[job->lives++] = g;
    return memory;
}

static int worker_open(worker_t *s, const job_t *job) {
    const int64_t cols = job->task_panels * PANEL;
    s->acc_row = cols + 16; /* off a power of two: rows do not share cache sets */
    const int64_t sizes[] = {
        job->pack_panels * job->quads * job->path->quad_bytes,
        MAX_ROWS * s->acc_row * 4,
        MAX_BLOCKS * MAX_ROWS * job->quads * 4 * 2,
        SCRATCH * PANEL,
        cols * 4,
        cols * 4,
    };
    void *pieces[6];
    s->job = job;
    s->memory = allocate(sizes, pieces, 6);
    if (!s->memory)
        return -1;
    s->pack = pieces[0];
    s->acc = pieces[1];
    s->x = pieces[2];
    s->panel = pieces[3];
    s->scale = pieces[4];
    s->bias = pieces[5];
    return 0;
}

/* Where w[g, 0, col] is, col being a panel's first. */
static const int8_t *panel_at(const call_t *c, int64_t g, int64_t col) {
    return (const int8_t *)c->w + g * c->w_e + col / PANEL * c->w_n1;
}

/* Points t at a block of x's rows, copied if they are strided, ragged or wanted as int16; the copies
 * of MAX_BLOCKS blocks can be alive at a time. */
static void take_x(const worker_t *s, tile_t *t, int64_t block, int64_t row, int rows) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int8_t *x = (const int8_t *)c->x + row * c->x_row;
    if (c->x_col == 1 && c->k % 4 == 0 && !job->path->widen) {
        t->x = x;
        t->x_row = c->x_row;
        return;
    }
    const int64_t width = 4 * job->quads;
    int8_t *copy = s->x + block * MAX_ROWS * width * 2;
    for (int r = 0; r < rows; r++, x += c->x_row) {
        if (job->path->widen) {
            int16_t *to = (int16_t *)copy + r * width;
            for (int64_t i = 0; i < c->k; i++)
                to[i] = x[i * c->x_col];
            for (int64_t i = c->k; i < width; i++)
                to[i] = 0;
        } else {
            int8_t *to = copy + r * width;
            if (c->x_col == 1)
                memcpy(to, x, (size_t)c->k);
            else
                for (int64_t i = 0; i < c->k; i++)
                    to[i] = x[i * c->x_col];
            memset(to + c->k, 0, (size_t)(width - c->k));
        }
    }
    t->x = copy;
    t->x_row = width;
}

/* Copies w[g, from:to, col:col+32] to the scratch panel; columns past n and rows past k: zeros. */
static void take_panel(const worker_t *s, int64_t g, int64_t col, int64_t from, int64_t to) {
    const call_t *c = s->job->c;
    const int64_t last = to < c->k ? to : c->k;
    const int64_t cols = c->n - col < PANEL ? c->n - col : PANEL;
    const int8_t *w = panel_at(c, g, col);
    memset(s->panel, 0, (size_t)((to - from) * PANEL));
    for (int64_t i = from; i < last; i++) {
        const int8_t *row = w + i / 16 * c->w_k1 + i % 16 * c->w_i;
        int8_t *dest = s->panel + (i - from) * PANEL;
        for (int64_t j = 0; j < cols; j++)
            dest[j] = row[j * c->w_j];
    }
}

/*
 * A block of rows against k-rows [from, to) of panels from col on, straight from the weights. ND
 * has what it reads next prefetched: block->next, in runs as long as its own, or, if that is null,
 * the k-rows that follow.
 */
static void direct_block(const worker_t *s, const tile_t *block, int rows, int64_t g, int64_t col,
                         int64_t panels, int64_t from, int64_t to, int store) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int x_bytes = path->widen ? 2 : 1;
    const int64_t pack_panel = store ? job->quads * path->quad_bytes : 0;
    /* So much is read where it is, and the rest through the scratch panel. */
    const int64_t whole = job->in_place ? least(to, c->k / 4 * 4) : from;
    const int64_t whole_panels = least(panels, (c->n - col) / PANEL);
    const int64_t k_step = job->nz ? c->k : ND_ROWS;
    tile_t t = *block;
    t.pack_panel = pack_panel;
    t.w_row = c->w_i;
    t.w_panel = c->w_n1;
    t.panels = whole_panels;
    t.next_run = whole_panels * PANEL;
    for (int64_t k0 = from; k0 < whole && whole_panels; k0 += k_step) {
        t.quads = least(whole - k0, k_step) / 4;
        t.x = block->x + k0 * x_bytes;
        t.start = k0 == from ? block->start : NULL;
        t.w = panel_at(c, g, col) + k0 * c->w_i;
        t.next = block->next ? block->next : t.w + k_step * c->w_i;
        t.pack = store ? s->pack + k0 / 4 * path->quad_bytes : NULL;
        path->direct(rows, &t);
    }
    t.w = s->panel;
    t.w_row = PANEL;
    t.panels = 1;
    t.next = s->panel;
    t.next_run = PANEL;
    for (int64_t p = 0; p < panels; p++) {
        t.acc = block->acc + p * PANEL;
        for (int64_t k0 = p < whole_panels ? whole : from; k0 < to; k0 += SCRATCH) {
            t.quads = over(least(to - k0, SCRATCH), 4);
            take_panel(s, g, col + p * PANEL, k0, k0 + 4 * t.quads);
            t.x = block->x + k0 * x_bytes;
            t.start = k0 == from ? block->start : NULL;
            t.pack = store ? s->pack + p * pack_panel + k0 / 4 * path->quad_bytes : NULL;
            path->direct(rows, &t);
        }
    }
}

/* The other blocks of rows, from the packed panels; they ask for the weights that come next. */
static void packed_block(const worker_t *s, const tile_t *block, int rows, int64_t panels,
                         int64_t b, const int8_t *next) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    tile_t t = *block;
    t.pack = s->pack;
    t.pack_panel = job->quads * job->path->quad_bytes;
    t.panels = panels;
    t.quads = job->quads;
    if (b <= 2 && job->in_place) {
        /* A quad of a panel is two lines: the first block asks for one, the second for the
         * other. In ND neighbouring panels share lines, and the kernel moves on odd ones. */
        t.next = next + (b == 1 ? 0 : job->nz ? 64 : c->w_i);
        t.next_step = 4 * c->w_i;
        t.w_row = c->w_i;
        t.w_panel = c->w_n1;
    } else {
        t.next = s->pack;
        t.next_step = t.w_row = t.w_panel = 0;
    }
    job->path->packed(rows, &t);
}

static void take_scales(const worker_t *s, int64_t g, int64_t col, int64_t cols) {
    const call_t *c = s->job->c;
    for (int64_t j = 0; j < cols; j++)
        s->scale[j] = load_float(c->scale, g * c->scale_e + (col + j) * c->scale_n, c->scale_bf16);
    for (int64_t j = 0; c->bias && j < cols; j++)
        s->bias[j] = load_float(c->bias, g * c->bias_e + (col + j) * c->bias_n, c->bias_bf16);
}

/* Dequantises a block of sums, of columns col + [off, off + cols), and adds it to the output. */
static void finish_block(const worker_t *s, const int32_t *sums, int64_t sums_row, int64_t row,
                         int64_t rows, int64_t col, int64_t off, int64_t cols) {
    const job_t *job = s->job;
    float *out[MAX_ROWS];
    for (int64_t r = 0; r < rows; r++)
        out[r] = job->out[row + r] + col + off;
    job->path->finish(out, sums, sums_row, rows, cols, s->scale + off,
                      job->c->bias ? s->bias + off : NULL, job->p + row, job->logit + row);
}

static int64_t first_row(const job_t *job, int64_t g) {
    return g ? ((const int64_t *)job->c->ends)[g - 1] : 0;
}

/* One group, for a task's columns. */
static void run_group(const worker_t *s, int64_t live, int64_t col, int64_t cols) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int64_t g = job->live[live], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, path->rows);
    const int store = blocks > (job->nz ? path->unpacked : 1) && path->quad_bytes;
    /* The second block finds a panel in L2. */
    const int64_t together = store ? job->pack_panels : blocks > 1 ? 1 : job->task_panels;
    const int64_t step = together * PANEL;
    take_scales(s, g, col, cols);
    for (int64_t off = 0; off < cols; off += step) {
        const int64_t width = least(cols - off, step), panels = over(width, PANEL);
        const int8_t *next = off + step < cols       ? panel_at(c, g, col + off + step)
                             : live + 1 < job->lives ? panel_at(c, job->live[live + 1], col)
                                                     : panel_at(c, job->live[0], col + cols);
        for (int64_t b = 0; b < blocks; b++) {
            /* Blocks as even as can be: a block of one row would read a panel for little work. */
            const int64_t from = row + rows * b / blocks;
            const int block = (int)(row + rows * (b + 1) / blocks - from);
            tile_t t = {.acc = s->acc, .acc_row = s->acc_row, .start = job->start + from};
            take_x(s, &t, 0, from, block);
            /* A large output is far away: have it near when it is wanted. */
            for (int r = 0; store && r < block; r++)
                for (int64_t j = 0; j < width; j += 16)
                    __builtin_prefetch(job->out[from + r] + col + off + j, 1, 2);
            if (b && store)
                packed_block(s, &t, block, panels, b, next);
            else
                direct_block(s, &t, block, g, col + off, panels, 0, c->k, store);
            finish_block(s, s->acc, s->acc_row, from, block, col, off, width);
        }
    }
}

/* A task that is a range of columns: every group, upwards. */
static void run_columns(const worker_t *s, int64_t task) {
    const int64_t width = s->job->task_panels * PANEL, col = task * width;
    for (int64_t live = 0; live < s->job->lives; live++)
        run_group(s, live, col, least(s->job->c->n - col, width));
}

/*
 * ND weights of groups of few rows are read as they lie, whole rows from end to end: memory is
 * then as fast as it can be, and half as fast when each thread reads a part of every row. So a
 * batch of groups is multiplied first, a task being a group or some of its k-rows, and is
 * combined then, a task being a range of columns.
 */
static void run_rows(const worker_t *s, int64_t task) {
    static const int32_t zeros[MAX_ROWS];
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int64_t slice = task % job->slices, k0 = slice * job->slice_k;
    const int64_t k1 = least(k0 + job->slice_k, c->k);
    const int64_t g = job->live[job->first + task / job->slices], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, job->path->rows);
    const int64_t sums_row = job->panels * PANEL;
    const int64_t step = rows <= 2 ? ND_FEW_ROWS : ND_ROWS;
    const int64_t run = rows <= 2 ? job->panels : least(ND_RUN, job->panels);
    tile_t t[MAX_BLOCKS];
    int64_t from[MAX_BLOCKS + 1];
    for (int64_t b = 0; b <= blocks; b++)
        from[b] = rows * b / blocks;
    for (int64_t b = 0; b < blocks; b++) {
        t[b] = (tile_t){.acc_row = sums_row};
        take_x(s, &t[b], b, row + from[b], (int)(from[b + 1] - from[b]));
    }
    int32_t *sums = job->sums + (slice * job->batch_rows + row - job->first_row) * sums_row;
    for (int64_t k = k0; k < k1; k += step)
        for (int64_t p = 0; p < job->panels; p += run) {
            const int8_t *next = p + run < job->panels ? panel_at(c, g, (p + run) * PANEL)
                                                       : panel_at(c, g, 0) + step * c->w_i;
            for (int64_t b = 0; b < blocks; b++) {
                t[b].acc = sums + from[b] * sums_row + p * PANEL;
                t[b].start = k > k0 ? NULL : slice ? zeros : job->start + row + from[b];
                t[b].next = next + k * c->w_i;
                direct_block(s, &t[b], (int)(from[b + 1] - from[b]), g, p * PANEL,
                             least(run, job->panels - p), k, least(k + step, k1), 0);
            }
        }
}

static void combine_rows(const worker_t *s, int64_t task) {
    const job_t *job = s->job;
    const int64_t sums_row = job->panels * PANEL;
    const int64_t col = task * job->task_panels * PANEL;
    const int64_t cols = least(job->c->n - col, job->task_panels * PANEL);
    for (int64_t live = job->first; live < job->last; live++) {
        const int64_t g = job->live[live], end = first_row(job, g + 1);
        take_scales(s, g, col, cols);
        for (int64_t row = first_row(job, g), rows; row < end; row += rows) {
            rows = least(end - row, MAX_ROWS);
            int32_t *sums = job->sums + (row - job->first_row) * sums_row + col;
            for (int64_t slice = 1; slice < job->slices; slice++)
                for (int64_t r = 0; r < rows; r++) {
                    uint32_t *to = (uint32_t *)sums + r * sums_row;
                    const uint32_t *more = to + slice * job->batch_rows * sums_row;
                    for (int64_t j = 0; j < cols; j++)
                        to[j] += more[j];
                }
            finish_block(s, sums, sums_row, row, rows, col, 0, cols);
        }
    }
}

/* Takes tasks until there are none left. */
static void work(void *of) {
    job_t *job = of;
    worker_t s = {0};
    for (;;) {
        const int64_t task = atomic_fetch_add(&job->next, 1);
        if (task >= job->tasks)
            break;
        if (!s.memory && worker_open(&s, job)) {
            atomic_store(&job->failed, 1);
            break;
        }
        job->run(&s, task);
    }
    free(s.memory);
}

/* ------------------------------------------------------------------------------- threads */

/*
 * Threads come from the OpenMP runtime that torch has loaded, where its entry point is known:
 * after a parallel operation that runtime's threads spin for some milliseconds, waiting for the
 * next one, and any other thread would have to fight them for the processors.
 */
typedef void (*parallel_t)(void (*)(void *), void *, unsigned threads, unsigned flags);
static _Atomic(parallel_t) parallel;

/* Elsewhere, and in a forked child, where OpenMP's threads are gone without its knowing it, they
 * are a pool of our own. One job at a time has them; a second caller meanwhile works alone. */
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

/* A child has none of its parent's threads, and the locks as they happened to be. */
static void pool_forked(void) {
    pthread_mutex_init(&pool_user, NULL);
    pthread_mutex_init(&pool_lock, NULL);
    pthread_cond_init(&pool_wake, NULL);
    pthread_cond_init(&pool_idle, NULL);
    pool_job = NULL;
    pool_size = pool_wanted = pool_busy = 0;
    parallel = NULL;
}

static void watch_fork(void) {
    pthread_atfork(NULL, NULL, pool_forked);
}

static pthread_once_t watching_fork = PTHREAD_ONCE_INIT;

static void pool_grow(int64_t size) {
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

static void run_job(job_t *job, void (*run_task)(const worker_t *, int64_t), int64_t tasks,
                    int64_t threads) {
    job->run = run_task;
    job->tasks = tasks;
    job->next = 0;
    pthread_once(&watching_fork, watch_fork);
    const parallel_t run = threads > 1 ? parallel : NULL;
    if (run) {
        run(work, job, (unsigned)threads, 0);
        return;
    }
    if (threads < 2 || pthread_mutex_trylock(&pool_user)) {
        work(job);
        return;
    }
    pthread_mutex_lock(&pool_lock);
    pool_grow(threads - 1);
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

static const path_t *const paths[] = {
#if defined(__x86_64__)
    &avx512_path,
#if HAVE_AVXVNNI
    &avxvnni_path,
#endif
    &avx2_path,
#elif defined(__aarch64__)
    &neon_path,
#endif
    &c_path,
};

enum { PATHS = sizeof paths / sizeof paths[0] };

#if defined(__x86_64__)

/* What the processor says it has and the system keeps the registers of: bits of one word. */
enum { HAS_AVX2 = 1, HAS_AVXVNNI = 2, HAS_AVX512VNNI = 4 };

static int processor(void) {
    unsigned a, b, c, d, has = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 27 | 1u << 28)) != (1u << 27 | 1u << 28))
        return 0; /* no XGETBV to ask, or no AVX */
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const int ymm = (low & 0x06) == 0x06, zmm = (low & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    const unsigned leaves = a, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F DQ BW VL */
    if (ymm && (b & 1u << 5))
        has |= HAS_AVX2;
    if (zmm && (b & avx512) == avx512 && (c & 1u << 11))
        has |= HAS_AVX512VNNI;
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (has & HAS_AVX2) && (a & 1u << 4))
        has |= HAS_AVXVNNI;
    return (int)has;
}

static int can_run(const path_t *path) {
    const int has = processor();
#if HAVE_AVXVNNI
    if (path == &avxvnni_path)
#if defined(NPU_LOWERING_AVXVNNI_AS_AVX512)
        return (has & HAS_AVX512VNNI) != 0;
#else
        return (has & HAS_AVXVNNI) != 0;
#endif
#endif
    return path == &c_path || (path == &avx2_path && (has & HAS_AVX2)) ||
           (path == &avx512_path && (has & HAS_AVX512VNNI));
}

#elif defined(__aarch64__)

static int can_run(const path_t *path) {
#if defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    if (sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0))
        has = 0;
#elif defined(__linux__)
    const int has = (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* HWCAP_ASIMDDP */
#else
    const int has = 0;
#endif
    return path == &c_path || has;
}

#else

static int can_run(const path_t *path) {
    return path == &c_path;
}

#endif

/* The size of call_t: the caller compares it with its own. */
EXPORT int64_t grouped_matmul_call_bytes(void) {
    return sizeof(call_t);
}

/* The name of the i-th path of this build, best first; null past the last. */
EXPORT const char *grouped_matmul_path_name(int64_t i) {
    return i >= 0 && i < PATHS ? paths[i]->name : NULL;
}

/* Whether this processor can run the i-th path. */
EXPORT int grouped_matmul_path_runs(int64_t i) {
    return i >= 0 && i < PATHS && can_run(paths[i]);
}

/* Takes threads from here on from GOMP_parallel at that address; from our pool if it is null. */
EXPORT void grouped_matmul_use_threads(void *gomp_parallel) {
    parallel_t run;
    memcpy(&run, &gomp_parallel, sizeof run);
    parallel = run;
}

/* Adds every row's contribution to out, by the given path, which the processor must have.
 * Returns 0, or -1 if memory ran out. */
EXPORT int grouped_matmul_combine(const call_t *c, int64_t path) {
    enum {
        PACK_BYTES = 256 << 10, /* of packed panels: half of a small L2 */
        SUM_BYTES = 8 << 20,    /* of a batch's sums */
        SUMS_SHARE = 64,        /* and no more than this part of its weights' bytes, if it can be */
        NZ_PANELS = 28,         /* of a task: long streams, yet tasks enough to even out */
        ND_PANELS = 56,         /* the same: wide, to use what of each page is near */
        SMALL = 1 << 20,        /* multiplications that are done before another thread wakes */
    };
    const int64_t *ends = (const int64_t *)c->ends;
    job_t job = {.c = c, .path = paths[path], .rows = ends[c->e - 1]};
    if (job.rows == 0)
        return 0;
    job.quads = over(c->k, 4);
    job.panels = over(c->n, PANEL);
    job.in_place = c->w_j == 1 && (c->w_k1 == 16 * c->w_i || c->k <= 16);
    job.nz = job.in_place && c->w_i == PANEL;
    const int64_t threads = job.rows * c->k * c->n < SMALL ? 1 : c->threads;
    void *memory = read_rows(&job);
    if (!memory)
        return -1;
    int64_t most = 0;
    for (int64_t i = 0; i < job.lives; i++) {
        const int64_t rows = first_row(&job, job.live[i] + 1) - first_row(&job, job.live[i]);
        most = rows > most ? rows : most;
    }
    /* Columns of a task: what suits the layout, evened out over the threads. */
    const int64_t suits = threads * (job.nz ? NZ_PANELS : ND_PANELS);
    job.task_panels = over(job.panels, threads * over(job.panels, suits));
    const int64_t tasks = over(job.panels, job.task_panels);

    if (job.in_place && !job.nz && most <= MAX_BLOCKS * job.path->rows) {
        /* Tasks enough to even out, as long as the sums are small beside the weights. */
        const int64_t small = c->k * job.lives / (SUMS_SHARE * 4 * job.rows);
        const int64_t wanted = least(over(16 * threads, job.lives), small > 1 ? small : 1);
        job.slice_k = over(over(c->k, wanted), ND_ROWS) * ND_ROWS;
        job.slices = over(c->k, job.slice_k);
        const int64_t row_bytes = job.slices * job.panels * PANEL * 4;
        const int64_t room = SUM_BYTES / row_bytes > most ? SUM_BYTES / row_bytes : most;
        job.sums = malloc((size_t)(least(room, job.rows) * row_bytes));
        job.failed = !job.sums;
        for (; job.first < job.lives && !job.failed; job.first = job.last) {
            job.first_row = first_row(&job, job.live[job.first]);
            do
                job.batch_rows = first_row(&job, job.live[job.last++] + 1) - job.first_row;
            while (job.last < job.lives &&
                   first_row(&job, job.live[job.last] + 1) - job.first_row <= room);
            run_job(&job, run_rows, (job.last - job.first) * job.slices, threads);
            if (!job.failed)
                run_job(&job, combine_rows, tasks, threads);
        }
        free(job.sums);
    } else {
        if (job.path->quad_bytes && most > job.path->rows) {
            const int64_t fit = PACK_BYTES / (job.quads * job.path->quad_bytes);
            job.pack_panels = least(fit > 0 ? fit : 1, job.task_panels);
        }
        run_job(&job, run_columns, tasks, threads);
    }
    free(memory);
    return job.failed ? -1 : 0;
}
