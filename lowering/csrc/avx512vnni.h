/* x86-64 with AVX-512 VNNI. */

#define AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")))

/*
 * The instruction itself, its accumulator in place: of the intrinsic GCC 12 makes copies where
 * there are many accumulators, and halves the speed.
 */
#define DOT(acc, w, x) __asm__("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(w), "v"(x))

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
    const __m512i turn =
        _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
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
                b0 = _mm512_xor_si512(
                    _mm512_shuffle_epi8(_mm512_permutex2var_epi32(z0, low, z1), turn), flip);
                b1 = _mm512_xor_si512(
                    _mm512_shuffle_epi8(_mm512_permutex2var_epi32(z0, high, z1), turn), flip);
                if (mode == STORE) {
                    _mm512_storeu_si512(pack, b0);
                    _mm512_storeu_si512(pack + 64, b1);
                    pack += 128;
                }
            }
#pragma GCC unroll 8
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four,
                       r < 3    ? x + r * x_row
                       : r == 6 ? x + 2 * x_row3
                                : x3 + (r - 3) * x_row,
                       4);
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
