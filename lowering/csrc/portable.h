/* Plain C, for any processor. */

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

static void c_lines(int rows, const lines_t *t) {
    for (int64_t j = 0; j < t->cols; j++) {
        const int8_t *w = line_at(t, j);
        for (int r = 0; r < rows; r++) {
            const int8_t *x = t->x + r * t->x_row;
            uint32_t acc = (uint32_t)t->start[r];
            for (int64_t i = 0; i < t->k; i++)
                acc += (uint32_t)(x[i] * w[i]);
            memcpy(t->acc + r * t->acc_row + j, &acc, sizeof acc);
        }
    }
}

FINISH(c_finish, )

static const path_t c_path = {
    .name = "c",
    .rows = MAX_ROWS,
    .unpacked = 1,
    .direct = c_direct,
    .lines = c_lines,
    .finish = c_finish,
};
