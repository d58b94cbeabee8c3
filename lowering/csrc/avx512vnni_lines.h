/* x86-64 with AVX-512 VNNI, weights with k contiguous: dot products along k. Ends its path. */

/* Sums of neighbours, of two vectors each; after both, a lane holds one sum of each of four. */
AVX512 INLINE __m512i avx512_pairs(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
}
AVX512 INLINE __m512i avx512_fours(__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
}

/* The four lanes of each of four vectors, summed: lane v is of vector v. */
AVX512 INLINE __m512i avx512_lanes(const __m512i v[4]) {
    const __m512i a = _mm512_add_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x44),
                                       _mm512_shuffle_i32x4(v[0], v[1], 0xee));
    const __m512i b = _mm512_add_epi32(_mm512_shuffle_i32x4(v[2], v[3], 0x44),
                                       _mm512_shuffle_i32x4(v[2], v[3], 0xee));
    return _mm512_add_epi32(_mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xdd));
}

AVX512 INLINE __m512i avx512_some(__mmask64 mask, const int8_t *from) {
    return mask == ~0ull ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8(mask, from);
}

/* One step: up to 64 of k, of which mask says those that are there. */
AVX512 INLINE void avx512_step(const int rows, const int lines, __m512i acc[][4], const int8_t *x,
                               int64_t x_row, const int8_t *const w[4], int64_t i, __mmask64 mask) {
    __m512i b[4];
#pragma GCC unroll 4
    for (int c = 0; c < lines; c++)
        b[c] = _mm512_xor_si512(avx512_some(mask, w[c] + i), _mm512_set1_epi8((char)0x80));
#pragma GCC unroll 8
    for (int r = 0; r < rows; r++) {
        const __m512i a = avx512_some(mask, x + r * x_row + i);
#pragma GCC unroll 4
        for (int c = 0; c < lines; c++)
            DOT(acc[r][c], b[c], a);
    }
}

/*
 * Two or four neighbouring lines at a time, with two prefetches a step: these streams are too
 * short for the hardware to follow. Sixteen lines are a tile, whose sums wait in L1 to be put in
 * order together.
 */
AVX512 INLINE void avx512_near(const int rows, const int lines, const lines_t *t) {
    const int64_t k = t->k, x_row = t->x_row, whole = k / 64 * 64;
    const int64_t step = t->blocks == 1 ? 64 : 32 * lines / t->blocks;
    const __mmask64 rest = (1ull << (k - whole)) - 1;
    const int8_t *next = t->next;
    for (int64_t j = 0; j < t->cols; j += 16) {
        __m512i part[MAX_ROWS][8];
        for (int p = 0; p < 16 / lines; p++) {
            const int8_t *w[4];
            __m512i acc[MAX_ROWS][4];
#pragma GCC unroll 4
            for (int c = 0; c < lines; c++)
                w[c] = line_at(t, j + p * lines + c);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int c = 0; c < lines; c++)
                    acc[r][c] = _mm512_setzero_si512();
            if (t->blocks == 1) /* the lines of the next tile */
                next = (j + 16 < t->cols ? t->w + (j + 16) * t->w_line : t->next) +
                       p * lines * t->w_line;
            for (int64_t i = 0; i < whole; i += 64) {
                _mm_prefetch(next, _MM_HINT_T2);
                _mm_prefetch(next + step, _MM_HINT_T2);
                next += 2 * step;
                avx512_step(rows, lines, acc, t->x, x_row, w, i, ~0ull);
            }
            if (rest)
                avx512_step(rows, lines, acc, t->x, x_row, w, whole, rest);
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                const __m512i first = avx512_pairs(acc[r][0], acc[r][1]);
                part[r][p] =
                    lines == 2 ? first : avx512_fours(first, avx512_pairs(acc[r][2], acc[r][3]));
            }
        }
        for (int r = 0; r < rows; r++) {
            __m512i v[4];
#pragma GCC unroll 4
            for (int q = 0; q < 4; q++)
                v[q] = lines == 2 ? avx512_fours(part[r][2 * q], part[r][2 * q + 1]) : part[r][q];
            const __m512i start = _mm512_set1_epi32(t->start[r]);
            _mm512_storeu_si512(t->acc + r * t->acc_row + j,
                                _mm512_add_epi32(avx512_lanes(v), start));
        }
    }
}

/*
 * Four lines a quarter of all lines apart, a multiple of 16: four long streams, which the
 * hardware's prefetch follows by itself. It is only shown where each stream's page after the next
 * begins.
 */
AVX512 INLINE void avx512_far(const int rows, const lines_t *t) {
    enum { SHOWN = 4 }; /* cache lines of a page */
    const int64_t k = t->k, x_row = t->x_row, whole = k / 64 * 64;
    const int64_t quarter = t->cols / 4, far = quarter * t->w_line;
    const __mmask64 rest = (1ull << (k - whole)) - 1;
    const __m512i by_stream =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    for (int64_t j = 0; j < quarter; j += 4) {
        __m512i part[4][4];
        for (int p = 0; p < 4; p++) {
            const int8_t *w[4];
            __m512i acc[4][4];
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                w[c] = t->w + (j + p) * t->w_line + c * far;
                const int8_t *page = (const int8_t *)(((uintptr_t)w[c] + 8192) & ~(uintptr_t)4095);
                for (int i = 0; i < SHOWN; i++)
                    _mm_prefetch(page + 64 * i, _MM_HINT_T2);
            }
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
#pragma GCC unroll 4
                for (int c = 0; c < 4; c++)
                    acc[r][c] = _mm512_setzero_si512();
            for (int64_t i = 0; i < whole; i += 64)
                avx512_step(rows, 4, acc, t->x, x_row, w, i, ~0ull);
            if (rest)
                avx512_step(rows, 4, acc, t->x, x_row, w, whole, rest);
#pragma GCC unroll 4
            for (int r = 0; r < rows; r++)
                part[r][p] = avx512_fours(avx512_pairs(acc[r][0], acc[r][1]),
                                          avx512_pairs(acc[r][2], acc[r][3]));
        }
#pragma GCC unroll 4
        for (int r = 0; r < rows; r++) {
            int32_t *to = t->acc + r * t->acc_row + j;
            const __m512i start = _mm512_set1_epi32(t->start[r]);
            const __m512i sums =
                _mm512_permutexvar_epi32(by_stream, _mm512_add_epi32(avx512_lanes(part[r]), start));
            _mm_storeu_si128((void *)to, _mm512_castsi512_si128(sums));
            _mm_storeu_si128((void *)(to + quarter), _mm512_extracti32x4_epi32(sums, 1));
            _mm_storeu_si128((void *)(to + 2 * quarter), _mm512_extracti32x4_epi32(sums, 2));
            _mm_storeu_si128((void *)(to + 3 * quarter), _mm512_extracti32x4_epi32(sums, 3));
        }
    }
}

AVX512 static void avx512_lines(int rows, const lines_t *t) {
    lines_t rest = *t; /* of the lines read once, what four streams do not divide */
    if (t->blocks == 1 && rows <= 4) {
        lines_t most = *t;
        most.cols = t->cols / 16 * 16;
        switch (rows) {
        case 1: avx512_far(1, &most); break;
        case 2: avx512_far(2, &most); break;
        case 3: avx512_far(3, &most); break;
        case 4: avx512_far(4, &most); break;
        }
        rest.cols -= most.cols;
        rest.w += most.cols * t->w_line;
        rest.acc += most.cols;
    }
    /* Four lines at a time need fewer loads of x, two are longer streams. */
    if (t->blocks == 1 && rows > 4)
        switch (rows) {
        case 5: avx512_near(5, 2, &rest); break;
        case 6: avx512_near(6, 2, &rest); break;
        case 7: avx512_near(7, 2, &rest); break;
        case 8: avx512_near(8, 2, &rest); break;
        }
    else
        switch (rows) {
        case 1: avx512_near(1, 4, &rest); break;
        case 2: avx512_near(2, 4, &rest); break;
        case 3: avx512_near(3, 4, &rest); break;
        case 4: avx512_near(4, 4, &rest); break;
        case 5: avx512_near(5, 4, &rest); break;
        case 6: avx512_near(6, 4, &rest); break;
        case 7: avx512_near(7, 2, &rest); break; /* no registers for four */
        case 8: avx512_near(8, 2, &rest); break;
        }
}

/* 16 x 16 dwords at a time are turned round: a dword is four of k of one line. */
AVX512 INLINE void avx512_turn_some(int8_t *pack, const int8_t *w, int64_t w_line, __mmask64 mask,
                                    int64_t cols) {
    for (int half = 0; half < 2; half++) {
        __m512i a[16], b[16];
#pragma GCC unroll 16
        for (int c = 0; c < 16; c++) {
            const int64_t line = 16 * half + c;
            a[c] = _mm512_xor_si512(
                avx512_some(cols == PANEL || line < cols ? mask : 0, w + line * w_line),
                _mm512_set1_epi8((char)0x80));
        }
#pragma GCC unroll 4
        for (int q = 0; q < 16; q += 4) {
            const __m512i low0 = _mm512_unpacklo_epi32(a[q], a[q + 1]);
            const __m512i high0 = _mm512_unpackhi_epi32(a[q], a[q + 1]);
            const __m512i low1 = _mm512_unpacklo_epi32(a[q + 2], a[q + 3]);
            const __m512i high1 = _mm512_unpackhi_epi32(a[q + 2], a[q + 3]);
            b[q] = _mm512_unpacklo_epi64(low0, low1);
            b[q + 1] = _mm512_unpackhi_epi64(low0, low1);
            b[q + 2] = _mm512_unpacklo_epi64(high0, high1);
            b[q + 3] = _mm512_unpackhi_epi64(high0, high1);
        }
        /* Lane l of b[q + d] is dword 4 * l + d of lines q to q + 3. */
#pragma GCC unroll 4
        for (int d = 0; d < 4; d++) {
            const __m512i low0 = _mm512_shuffle_i32x4(b[d], b[4 + d], 0x44);
            const __m512i low1 = _mm512_shuffle_i32x4(b[8 + d], b[12 + d], 0x44);
            const __m512i high0 = _mm512_shuffle_i32x4(b[d], b[4 + d], 0xee);
            const __m512i high1 = _mm512_shuffle_i32x4(b[8 + d], b[12 + d], 0xee);
            int8_t *to = pack + 64 * half + 128 * d;
            _mm512_storeu_si512(to, _mm512_shuffle_i32x4(low0, low1, 0x88));
            _mm512_storeu_si512(to + 4 * 128, _mm512_shuffle_i32x4(low0, low1, 0xdd));
            _mm512_storeu_si512(to + 8 * 128, _mm512_shuffle_i32x4(high0, high1, 0x88));
            _mm512_storeu_si512(to + 12 * 128, _mm512_shuffle_i32x4(high0, high1, 0xdd));
        }
    }
}

AVX512 static void avx512_turn(int8_t *pack, const int8_t *w, int64_t w_line, int64_t k,
                               int64_t cols) {
    int64_t i = 0;
    if (cols >= PANEL)
        for (; i + 64 <= k; i += 64, pack += 16 * 4 * PANEL)
            avx512_turn_some(pack, w + i, w_line, ~0ull, PANEL);
    for (; i < k; i += 64, pack += 16 * 4 * PANEL)
        avx512_turn_some(pack, w + i, w_line, k - i >= 64 ? ~0ull : (1ull << (k - i)) - 1, cols);
}

static const path_t avx512_path = {
    .name = "avx512vnni",
    .rows = 8,
    .flip = 128,
    .quad_bytes = 128,
    .unpacked = 2,
    .sum = avx512_sum,
    .direct = avx512_direct,
    .packed = avx512_packed,
    .strip = avx512_strip,
    .order = avx512_order,
    .strip_rows = 5,
    .lines = avx512_lines,
    .turn = avx512_turn,
    .turn_rows = 24,
    .finish = avx512_finish,
};
