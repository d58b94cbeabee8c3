/* x86-64 with AVX-512 VNNI, weights with n contiguous, few rows: strips of k-rows. */

/*
 * 64 columns at a time, whole cache lines, turned into quads by unpacking bytes: a lane then has
 * columns of four dwords each, which is put right once, at the end, in the sums.
 */
AVX512 INLINE void avx512_strip_tile(const int rows, const tile_t *t) {
    const __m512i flip = _mm512_set1_epi8((char)0x80);
    const int64_t w_row = t->w_row, skip = w_row - t->next_run;
    const int8_t *next = t->next, *run_end = next + t->next_run;
    for (int64_t j = 0; j < t->panels * PANEL; j += 64) {
        __m512i acc[5][4];
#pragma GCC unroll 5
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                acc[r][v] = t->start ? _mm512_set1_epi32(t->start[r])
                                     : _mm512_loadu_si512(t->acc + r * t->acc_row + j + 16 * v);
#pragma GCC unroll 1
        for (int i = 0; i < STRIP; i += 4) {
            const int8_t *w = t->w + j + i * w_row;
            const __m512i w0 = _mm512_xor_si512(flip, _mm512_loadu_si512(w));
            const __m512i w1 = _mm512_xor_si512(flip, _mm512_loadu_si512(w + w_row));
            const __m512i w2 = _mm512_xor_si512(flip, _mm512_loadu_si512(w + 2 * w_row));
            const __m512i w3 = _mm512_xor_si512(flip, _mm512_loadu_si512(w + 3 * w_row));
#pragma GCC unroll 4
            for (int f = 0; f < 4; f++) {
                _mm_prefetch(next, _MM_HINT_T2);
                next += 64;
            }
            if (next >= run_end) { /* its rows may have more between them */
                next += skip;
                run_end += w_row;
            }
            const __m512i low01 = _mm512_unpacklo_epi8(w0, w1);
            const __m512i high01 = _mm512_unpackhi_epi8(w0, w1);
            const __m512i low23 = _mm512_unpacklo_epi8(w2, w3);
            const __m512i high23 = _mm512_unpackhi_epi8(w2, w3);
            const __m512i b[4] = {
                _mm512_unpacklo_epi16(low01, low23), _mm512_unpackhi_epi16(low01, low23),
                _mm512_unpacklo_epi16(high01, high23), _mm512_unpackhi_epi16(high01, high23)};
#pragma GCC unroll 5
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, t->x + r * t->x_row + i, 4);
                const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
                for (int v = 0; v < 4; v++)
                    DOT(acc[r][v], b[v], x);
            }
        }
#pragma GCC unroll 5
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
            for (int v = 0; v < 4; v++)
                _mm512_storeu_si512(t->acc + r * t->acc_row + j + 16 * v, acc[r][v]);
    }
}

AVX512 static void avx512_strip(int rows, const tile_t *t) {
    switch (rows) {
        ROWS_3(avx512_strip_tile, t)
    case 4: avx512_strip_tile(4, t); break;
    case 5: avx512_strip_tile(5, t); break;
    }
}

AVX512 static void avx512_order(int32_t *acc, int64_t cols) {
    for (int64_t j = 0; j < cols; j += 64, acc += 64) {
        const __m512i v0 = _mm512_loadu_si512(acc), v1 = _mm512_loadu_si512(acc + 16);
        const __m512i v2 = _mm512_loadu_si512(acc + 32), v3 = _mm512_loadu_si512(acc + 48);
        const __m512i low01 = _mm512_shuffle_i32x4(v0, v1, 0x44);
        const __m512i low23 = _mm512_shuffle_i32x4(v2, v3, 0x44);
        const __m512i high01 = _mm512_shuffle_i32x4(v0, v1, 0xee);
        const __m512i high23 = _mm512_shuffle_i32x4(v2, v3, 0xee);
        _mm512_storeu_si512(acc, _mm512_shuffle_i32x4(low01, low23, 0x88));
        _mm512_storeu_si512(acc + 16, _mm512_shuffle_i32x4(low01, low23, 0xdd));
        _mm512_storeu_si512(acc + 32, _mm512_shuffle_i32x4(high01, high23, 0x88));
        _mm512_storeu_si512(acc + 48, _mm512_shuffle_i32x4(high01, high23, 0xdd));
    }
}
