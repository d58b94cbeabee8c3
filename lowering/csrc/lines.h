/* Tasks that are ranges of columns, for weights with k contiguous: each column is a line. */

/* Where the task reads after the group of that number. */
static const int8_t *lines_after(const job_t *job, int64_t live, int64_t col, int64_t cols) {
    const call_t *c = job->c;
    return live + 1 < job->lives ? c->w + job->live[live + 1] * c->w_e + col * c->w_j
                                 : c->w + job->live[0] * c->w_e + (col + cols) * c->w_j;
}

/* Packed first: a group of so many rows that it pays. */
static void turn_group(const worker_t *s, int64_t live, int64_t col, int64_t cols) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int64_t g = job->live[live], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, job->path->rows);
    const int8_t *w = c->w + g * c->w_e + col * c->w_j;
    const int64_t step = job->pack_panels * PANEL;
    for (int64_t off = 0; off < cols; off += step) {
        const int64_t width = least(cols - off, step), panels = over(width, PANEL);
        for (int64_t p = 0; p < panels; p++)
            job->path->turn(s->pack + p * job->pack_panel, w + (off + p * PANEL) * c->w_j, c->w_j,
                            c->k, width - p * PANEL);
        const int8_t *next =
            off + step < cols ? w + (off + step) * c->w_j : lines_after(job, live, col, cols);
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t from = row + rows * b / blocks;
            const int block = (int)(row + rows * (b + 1) / blocks - from);
            tile_t t = {.acc = s->acc, .acc_row = s->acc_row, .start = job->start + from};
            t.x = take_x(s, 0, from, block, &t.x_row);
            ask_for_output(job, from, block, col + off, width);
            t.pack = s->pack;
            t.pack_panel = job->pack_panel;
            t.panels = panels;
            t.quads = job->quads;
            /* A quad is two cache lines: the first block asks for one, the second for the other. */
            t.next = b < 2 ? next + 64 * b : s->pack;
            t.next_step = b < 2 ? 128 : 0;
            t.w_panel = b < 2 ? PANEL * c->w_j : 0;
            job->path->packed(block, &t);
            finish_block(s, s->acc, s->acc_row, from, block, col, off, width);
        }
    }
}

static void run_group_of_lines(const worker_t *s, int64_t live, int64_t col, int64_t cols) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int64_t g = job->live[live], row = first_row(job, g);
    const int64_t rows = first_row(job, g + 1) - row, blocks = over(rows, job->path->rows);
    const int8_t *w = c->w + g * c->w_e + col * c->w_j;
    take_scales(s, g, col, cols);
    if (job->path->turn && rows > job->path->turn_rows) {
        turn_group(s, live, col, cols);
        return;
    }
    const int64_t step = blocks == 1 ? cols : LINES;
    for (int64_t off = 0; off < cols; off += step) {
        const int64_t width = least(cols - off, step);
        const int8_t *next =
            off + step < cols ? w + (off + step) * c->w_j : lines_after(job, live, col, cols);
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t from = row + rows * b / blocks;
            const int block = (int)(row + rows * (b + 1) / blocks - from);
            lines_t t = {
                .acc = s->acc,
                .acc_row = s->acc_row,
                .start = job->start + from,
                .w = w + off * c->w_j,
                .w_line = c->w_j,
                .k = c->k,
                .cols = width,
                .blocks = blocks,
                .next = next + b * (width * c->k / blocks),
            };
            t.x = take_x(s, 0, from, block, &t.x_row);
            job->path->lines(block, &t);
            finish_block(s, s->acc, s->acc_row, from, block, col, off, width);
        }
    }
}

static void run_lines(const worker_t *s, int64_t task) {
    const int64_t width = s->job->task_panels * PANEL, col = task * width;
    for (int64_t live = 0; live < s->job->lives; live++)
        run_group_of_lines(s, live, col, least(s->job->c->n - col, width));
}
