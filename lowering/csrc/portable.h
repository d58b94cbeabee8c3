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

FINISH(c_finish, )

static const path_t c_path = {"c", MAX_ROWS, 0, 0, 0, 1, NULL, c_direct, NULL, c_finish};
