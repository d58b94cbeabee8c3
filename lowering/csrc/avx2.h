/* x86-64 with AVX2. */

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
                acc[r][v] =
                    t->start ? _mm256_set1_epi32(t->start[r]) : avx2_load(to + r * t->acc_row, v);
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

/* Four vectors of partial sums, each summed. */
AVX2 INLINE __m128i avx2_sums(const __m256i v[4]) {
    const __m256i s =
        _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
    return _mm_add_epi32(_mm256_castsi256_si128(s), _mm256_extracti128_si256(s, 1));
}

/* Four lines at a time, 16 of k a step. */
AVX2 INLINE void avx2_lines_tile(const int rows, const lines_t *t) {
    const int16_t *x = (const int16_t *)t->x;
    const int64_t whole = t->k / 16 * 16;
    for (int64_t j = 0; j < t->cols; j += 4) {
        const int8_t *w[4];
        __m256i acc[2][4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            w[c] = line_at(t, j + c);
            acc[0][c] = acc[1][c] = _mm256_setzero_si256();
        }
        for (int64_t i = 0; i < whole; i += 16)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const __m256i b = _mm256_cvtepi8_epi16(_mm_loadu_si128((const void *)(w[c] + i)));
#pragma GCC unroll 2
                for (int r = 0; r < rows; r++) {
                    const __m256i a = _mm256_loadu_si256((const void *)(x + r * t->x_row + i));
                    acc[r][c] = _mm256_add_epi32(acc[r][c], _mm256_madd_epi16(a, b));
                }
            }
#pragma GCC unroll 2
        for (int r = 0; r < rows; r++) {
            uint32_t rest[4];
            for (int c = 0; c < 4; c++) {
                rest[c] = (uint32_t)t->start[r];
                for (int64_t i = whole; i < t->k; i++)
                    rest[c] += (uint32_t)(x[r * t->x_row + i] * w[c][i]);
            }
            const __m128i sums = _mm_add_epi32(avx2_sums(acc[r]), _mm_loadu_si128((void *)rest));
            _mm_storeu_si128((void *)(t->acc + r * t->acc_row + j), sums);
        }
    }
}

AVX2 static void avx2_lines(int rows, const lines_t *t) {
    switch (rows) {
    case 1: avx2_lines_tile(1, t); break;
    case 2: avx2_lines_tile(2, t); break;
    }
}

FINISH(avx2_finish, AVX2)

static const path_t avx2_path = {
    .name = "avx2",
    .rows = 2,
    .widen = 1,
    .quad_bytes = 256,
    .unpacked = 1,
    .direct = avx2_direct,
    .packed = avx2_packed,
    .lines = avx2_lines,
    .finish = avx2_finish,
};
