/* Tasks that are ranges of columns, over all groups. */

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
                packed_block(s, &t, block, panels, b, next);
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
