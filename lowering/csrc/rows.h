/*
 * ND weights of groups of few rows are read as they lie, whole rows from end to end: memory is
 * then as fast as it can be, and half as fast when each thread reads a part of every row. So a
 * batch of groups is multiplied first, a task being a group or some of its k-rows, and is
 * combined then, a task being a range of columns.
 */

/* Some k-rows of one group, of one block of rows, by strips: whole rows, in order. */
static void run_strips(const worker_t *s, const tile_t *block, int rows, int64_t g, int64_t k0,
                       int64_t k1) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int64_t cols = c->n / 64 * 64, panels = cols / PANEL;
    tile_t t = *block;
    int64_t k = k0;
    for (; k + STRIP <= k1; k += STRIP) {
        t.x = block->x + k;
        t.w = panel_at(c, g, 0) + k * c->w_i;
        t.w_row = c->w_i;
        t.panels = panels;
        t.next = t.w + STRIP * c->w_i;
        t.next_run = cols;
        job->path->strip(rows, &t);
        if (panels < job->panels) { /* what is left of n, while its rows are near */
            tile_t rest = t;
            rest.x = block->x;
            rest.acc += cols;
            direct_block(s, &rest, rows, g, cols, job->panels - panels, k, k + STRIP);
        }
        t.start = NULL;
    }
    if (k > k0)
        for (int r = 0; r < rows; r++)
            job->path->order(t.acc + r * t.acc_row, cols);
    if (k < k1) {
        t.x = block->x;
        t.next = NULL;
        direct_block(s, &t, rows, g, 0, job->panels, k, k1);
    }
}

static void run_rows(const worker_t *s, int64_t task) {
    static const int32_t zeros[MAX_ROWS];
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int64_t slice = task % job->slices, k0 = slice * job->slice_k;
    const int64_t k1 = least(k0 + job->slice_k, c->k);
    const int64_t g = job->live[job->first + task / job->slices], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, path->rows);
    tile_t t[MAX_BLOCKS];
    int64_t from[MAX_BLOCKS + 1];
    int32_t *sums =
        job->sums + (slice * job->batch_rows + row - job->first_row) * job->panels * PANEL;
    for (int64_t b = 0; b <= blocks; b++)
        from[b] = rows * b / blocks;
    for (int64_t b = 0; b < blocks; b++) {
        t[b] = (tile_t){.acc = sums + from[b] * job->panels * PANEL,
                        .acc_row = job->panels * PANEL,
                        .start = slice ? zeros : job->start + row + from[b]};
        t[b].x = take_x(s, b, row + from[b], (int)(from[b + 1] - from[b]), &t[b].x_row);
    }
    if (path->strip && rows <= path->strip_rows && c->w_n1 == PANEL) {
        run_strips(s, t, (int)rows, g, k0, k1);
        return;
    }
    const int store = blocks > 1 && path->quad_bytes;
    const int64_t step = nd_step(c, rows <= least(path->rows, ND_FEW_ROWS));
    const int64_t pack_panel = step / 4 * path->quad_bytes;
    const int64_t run =
        step == STRIP ? job->panels : RUN_BYTES / (store ? pack_panel : step * PANEL);
    for (int64_t k = k0; k < k1; k += step)
        for (int64_t p = 0; p < job->panels; p += run) {
            const int64_t end = least(k + step, k1), panels = least(run, job->panels - p);
            for (int64_t b = 0; b < blocks; b++) {
                tile_t part = t[b];
                part.acc += p * PANEL;
                part.start = k > k0 ? NULL : t[b].start;
                part.pack = store ? s->pack : NULL;
                part.pack_panel = pack_panel;
                if (b == 0 || !store) {
                    part.next = p + run < job->panels
                                    ? panel_at(c, g, (p + run) * PANEL) + k * c->w_i
                                    : panel_at(c, g, 0) + (k + step) * c->w_i;
                    direct_block(s, &part, (int)(from[b + 1] - from[b]), g, p * PANEL, panels, k,
                                 end);
                } else {
                    part.x += k * (path->widen ? 2 : 1);
                    part.panels = panels;
                    part.quads = over(end - k, 4);
                    part.next = s->pack; /* nothing: the first block has asked */
                    path->packed((int)(from[b + 1] - from[b]), &part);
                }
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
