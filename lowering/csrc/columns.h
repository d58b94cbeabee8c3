/* Tasks that are ranges of columns, over all groups. */

/*
 * k-rows at a time. Loading and storing accumulators costs little where they are many, but rows a
 * multiple of a large power of two apart share sets of L2: half of the ways of a small one are
 * enough. Rows few, the fewer the better: few streams through memory.
 */
static int64_t nd_step(const call_t *c, int few) {
    enum { LEAST = 64, MOST = 512, WAY = 128 << 10, WAYS = 4 };
    if (few)
        return STRIP;
    int64_t apart = c->w_i & -c->w_i;
    if (apart == 0 || apart > WAY)
        apart = WAY;
    const int64_t fit = WAYS * (WAY / apart);
    return fit < LEAST ? LEAST : least(fit, MOST);
}

/*
 * ND of one group, for a task's columns, some k-rows at a time: a block of them, and the next that
 * is asked for meanwhile, have to lie in L2. So the sums of all rows wait for the last k-rows.
 */
static void run_group_by_steps(const worker_t *s, int64_t live, int64_t col, int64_t cols) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int64_t g = job->live[live], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, path->rows);
    const int64_t step = nd_step(c, 0), run = STEP_PANELS * PANEL;
    const int64_t pack_panel = step / 4 * path->quad_bytes;
    for (int64_t off = 0; off < cols; off += run) {
        const int64_t width = least(cols - off, run), panels = over(width, PANEL);
        for (int64_t k = 0; k < c->k; k += step) {
            const int64_t end = least(k + step, c->k);
            const int8_t *next = end < c->k              ? panel_at(c, g, col + off) + end * c->w_i
                                 : off + run < cols      ? panel_at(c, g, col + off + run)
                                 : live + 1 < job->lives ? panel_at(c, job->live[live + 1], col)
                                                         : panel_at(c, job->live[0], col + cols);
            for (int64_t b = 0; b < blocks; b++) {
                const int64_t from = rows * b / blocks;
                const int block = (int)(rows * (b + 1) / blocks - from);
                tile_t t = {.acc = s->sums + from * run,
                            .acc_row = run,
                            .start = k ? NULL : job->start + row + from,
                            .pack = s->pack,
                            .pack_panel = pack_panel};
                t.x = take_x(s, 0, row + from, block, &t.x_row);
                if (end == c->k)
                    ask_for_output(job, row + from, block, col + off, width);
                if (b == 0)
                    direct_block(s, &t, block, g, col + off, panels, k, end);
                else {
                    t.x += k * (path->widen ? 2 : 1);
                    packed_block(s, &t, block, panels, over(end - k, 4), b, next);
                }
                if (end == c->k)
                    finish_block(s, t.acc, run, row + from, block, col, off, width);
            }
        }
    }
}

/* One group, for a task's columns. */
static void run_group(const worker_t *s, int64_t live, int64_t col, int64_t cols) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int64_t g = job->live[live], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, path->rows);
    const int store = blocks > (job->nz ? path->unpacked : 1) && path->quad_bytes;
    /* The second block finds a panel in L2. */
    const int64_t together = store ? job->pack_panels : blocks > 1 ? 1 : job->task_panels;
    const int64_t step = together * PANEL;
    take_scales(s, g, col, cols);
    if (job->by_steps && store && rows <= STEP_ROWS) {
        run_group_by_steps(s, live, col, cols);
        return;
    }
    for (int64_t off = 0; off < cols; off += step) {
        const int64_t width = least(cols - off, step), panels = over(width, PANEL);
        const int8_t *next = off + step < cols       ? panel_at(c, g, col + off + step)
                             : live + 1 < job->lives ? panel_at(c, job->live[live + 1], col)
                                                     : panel_at(c, job->live[0], col + cols);
        for (int64_t b = 0; b < blocks; b++) {
            /* Blocks as even as can be: a block of one row would read a panel for little work. */
            const int64_t from = row + rows * b / blocks;
            const int block = (int)(row + rows * (b + 1) / blocks - from);
            tile_t t = {.acc = s->acc, .acc_row = s->acc_row, .start = job->start + from};
            t.x = take_x(s, 0, from, block, &t.x_row);
            if (store) {
                t.pack = s->pack;
                t.pack_panel = job->pack_panel;
                ask_for_output(job, from, block, col + off, width);
            }
            if (b && store)
                packed_block(s, &t, block, panels, job->quads, b, next);
            else
                direct_block(s, &t, block, g, col + off, panels, 0, c->k);
            finish_block(s, s->acc, s->acc_row, from, block, col, off, width);
        }
    }
}

/* A task that is a range of columns: every group, upwards. */
static void run_columns(const worker_t *s, int64_t task) {
    const int64_t width = s->job->task_panels * PANEL, col = task * width;
    for (int64_t live = 0; live < s->job->lives; live++)
        run_group(s, live, col, least(s->job->c->n - col, width));
}
