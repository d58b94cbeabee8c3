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
        t[b].x = take_x(s, b, row + from[b], (int)(from[b + 1] - from[b]), &t[b].x_row);
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
