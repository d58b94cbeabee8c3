/* aarch64 with the dot-product instructions. */

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
                acc[r][v] =
                    t->start ? vdupq_n_s32(t->start[r]) : vld1q_s32(to + r * t->acc_row + 4 * v);
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

/* Four lines at a time, 16 of k a step. */
NEON INLINE void neon_lines_tile(const int rows, const lines_t *t) {
    const int64_t whole = t->k / 16 * 16;
    for (int64_t j = 0; j < t->cols; j += 4) {
        const int8_t *w[4];
        int32x4_t acc[3][4];
#pragma GCC unroll 4
        for (int c = 0; c < 4; c++) {
            w[c] = line_at(t, j + c);
            acc[0][c] = acc[1][c] = acc[2][c] = vdupq_n_s32(0);
        }
        for (int64_t i = 0; i < whole; i += 16)
#pragma GCC unroll 4
            for (int c = 0; c < 4; c++) {
                const int8x16_t b = vld1q_s8(w[c] + i);
#pragma GCC unroll 3
                for (int r = 0; r < rows; r++)
                    acc[r][c] = vdotq_s32(acc[r][c], b, vld1q_s8(t->x + r * t->x_row + i));
            }
#pragma GCC unroll 3
        for (int r = 0; r < rows; r++) {
            uint32_t rest[4];
            for (int c = 0; c < 4; c++) {
                rest[c] = (uint32_t)t->start[r];
                for (int64_t i = whole; i < t->k; i++)
                    rest[c] += (uint32_t)(t->x[r * t->x_row + i] * w[c][i]);
            }
            const int32x4_t sums =
                vpaddq_s32(vpaddq_s32(acc[r][0], acc[r][1]), vpaddq_s32(acc[r][2], acc[r][3]));
            vst1q_s32(t->acc + r * t->acc_row + j,
                      vaddq_s32(sums, vreinterpretq_s32_u32(vld1q_u32(rest))));
        }
    }
}

NEON static void neon_lines(int rows, const lines_t *t) {
    switch (rows) { ROWS_3(neon_lines_tile, t) }
}

FINISH(neon_finish, NEON)

static const path_t neon_path = {
    .name = "neon",
    .rows = 3,
    .quad_bytes = 128,
    .unpacked = 1,
    .direct = neon_direct,
    .packed = neon_packed,
    .lines = neon_lines,
    .finish = neon_finish,
};
