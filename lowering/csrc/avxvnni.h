/* x86-64 with AVX2 and AVX-VNNI. Follows avx2.h, whose order of columns it shares. */

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
                acc[r][v] =
                    t->start ? _mm256_set1_epi32(t->start[r]) : avx2_load(to + r * t->acc_row, v);
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

/* Four lines at a time, 32 of k a step. */
AVXVNNI INLINE void avxvnni_lines_tile(const int rows, const lines_t *t) {
    const __m256i flip = _mm256_set1_epi8((char)0x80);
    const int64_t whole = t->k / 32 * 32;
    for (int64_t j = 0; j < t->cols; j += 4) {
        const int8_t *w[4];
        __m256i acc[3][4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            w[c] = line_at(t, j + c);
            acc[0][c] = acc[1][c] = acc[2][c] = _mm256_setzero_si256();
        }
        for (int64_t i = 0; i < whole; i += 32)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const __m256i b =
                    _mm256_xor_si256(_mm256_loadu_si256((const void *)(w[c] + i)), flip);
#pragma GCC unroll 3
                for (int r = 0; r < rows; r++) {
                    const __m256i a = _mm256_loadu_si256((const void *)(t->x + r * t->x_row + i));
                    acc[r][c] = DPBUSD(acc[r][c], b, a);
                }
            }
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) {
            uint32_t rest[4];
            for (int c = 0; c < 4; c++) {
                rest[c] = (uint32_t)t->start[r];
                for (int64_t i = whole; i < t->k; i++)
                    rest[c] += (uint32_t)(t->x[r * t->x_row + i] * (w[c][i] + 128));
            }
            const __m128i sums = _mm_add_epi32(avx2_sums(acc[r]), _mm_loadu_si128((void *)rest));
            _mm_storeu_si128((void *)(t->acc + r * t->acc_row + j), sums);
        }
    }
}

AVXVNNI static void avxvnni_lines(int rows, const lines_t *t) {
    switch (rows) { ROWS_3(avxvnni_lines_tile, t) }
}

FINISH(avxvnni_finish, AVXVNNI)

static const path_t avxvnni_path = {
    .name = "avxvnni",
    .rows = 3,
    .flip = 128,
    .quad_bytes = 128,
    .unpacked = 1,
    .sum = avxvnni_sum,
    .direct = avxvnni_direct,
    .packed = avxvnni_packed,
    .lines = avxvnni_lines,
    .finish = avxvnni_finish,
};

#endif
