/* A block of rows against some panels: of weights as they lie, or packed before. */

/* Where w[g, 0, col] is, col being a panel's first. */
static const int8_t *panel_at(const call_t *c, int64_t g, int64_t col) {
    return c->w + g * c->w_e + col / PANEL * c->w_n1;
}

/* A block of x's rows and how far apart they are, copied if they are strided, ragged or wanted as
 * int16; the copies of MAX_BLOCKS blocks can be alive at a time. */
static const int8_t *take_x(const worker_t *s, int64_t block, int64_t row, int rows,
                            int64_t *x_row) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const int8_t *x = c->x + row * c->x_row;
    if (c->x_col == 1 && c->k % 4 == 0 && !job->path->widen) {
        *x_row = c->x_row;
        return x;
    }
    const int64_t width = 4 * job->quads;
    int8_t *copy = s->x + block * MAX_ROWS * width * 2;
    for (int r = 0; r < rows; r++, x += c->x_row) {
        if (job->path->widen) {
            int16_t *to = (int16_t *)copy + r * width;
            for (int64_t i = 0; i < c->k; i++)
                to[i] = x[i * c->x_col];
            for (int64_t i = c->k; i < width; i++)
                to[i] = 0;
        } else {
            int8_t *to = copy + r * width;
            if (c->x_col == 1)
                memcpy(to, x, (size_t)c->k);
            else
                for (int64_t i = 0; i < c->k; i++)
                    to[i] = x[i * c->x_col];
            memset(to + c->k, 0, (size_t)(width - c->k));
        }
    }
    *x_row = width;
    return copy;
}

/* Copies w[g, from:to, col:col+32] to the scratch panel; columns past n and rows past k: zeros. */
static void take_panel(const worker_t *s, int64_t g, int64_t col, int64_t from, int64_t to) {
    const call_t *c = s->job->c;
    const int64_t last = least(to, c->k), cols = least(c->n - col, PANEL);
    memset(s->panel, 0, (size_t)((to - from) * PANEL));
    /* Sixteen rows at a time at most: so many lie at one stride. */
    for (int64_t k0 = from, k1; k0 < last; k0 = k1) {
        k1 = least((k0 / 16 + 1) * 16, last);
        const int8_t *w = panel_at(c, g, col) + k0 / 16 * c->w_k1 + k0 % 16 * c->w_i;
        int8_t *to_row = s->panel + (k0 - from) * PANEL;
        if (c->w_i < c->w_j)
            for (int64_t j = 0; j < cols; j++)
                for (int64_t i = 0; i < k1 - k0; i++)
                    to_row[i * PANEL + j] = w[i * c->w_i + j * c->w_j];
        else
            for (int64_t i = 0; i < k1 - k0; i++, w += c->w_i, to_row += PANEL) {
                __builtin_prefetch(w + c->w_n1, 0, 2); /* the next panel's */
                if (c->w_j == 1 && cols == PANEL)
                    memcpy(to_row, w, PANEL);
                else
                    for (int64_t j = 0; j < cols; j++)
                        to_row[j] = w[j * c->w_j];
            }
    }
}

/*
 * A block of rows against k-rows [from, to) of panels from col on, straight from the weights,
 * storing to block->pack if not null. ND has what it reads next prefetched: block->next, in runs
 * as long as its own, or, if that is null, the k-rows that follow.
 */
static void direct_block(const worker_t *s, const tile_t *block, int rows, int64_t g, int64_t col,
                         int64_t panels, int64_t from, int64_t to) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    const path_t *path = job->path;
    const int x_bytes = path->widen ? 2 : 1;
    /* So much is read where it is, and the rest through the scratch panel. */
    const int64_t whole = job->in_place ? least(to, c->k / 4 * 4) : from;
    const int64_t whole_panels = least(panels, (c->n - col) / PANEL);
    const int64_t k_step = job->nz ? c->k : ND_ROWS;
    tile_t t = *block;
    t.w_row = c->w_i;
    t.w_panel = c->w_n1;
    t.panels = whole_panels;
    t.next_run = whole_panels * PANEL;
    for (int64_t k0 = from; k0 < whole && whole_panels; k0 += k_step) {
        t.quads = least(whole - k0, k_step) / 4;
        t.x = block->x + k0 * x_bytes;
        t.start = k0 == from ? block->start : NULL;
        t.w = panel_at(c, g, col) + k0 * c->w_i;
        t.next = block->next ? block->next : t.w + k_step * c->w_i;
        t.pack = block->pack ? block->pack + (k0 - from) / 4 * path->quad_bytes : NULL;
        path->direct(rows, &t);
    }
    t.w = s->panel;
    t.w_row = PANEL;
    t.panels = 1;
    t.next = s->panel;
    t.next_run = PANEL;
    for (int64_t p = 0; p < panels; p++) {
        t.acc = block->acc + p * PANEL;
        for (int64_t k0 = p < whole_panels ? whole : from; k0 < to; k0 += SCRATCH) {
            t.quads = over(least(to - k0, SCRATCH), 4);
            take_panel(s, g, col + p * PANEL, k0, k0 + 4 * t.quads);
            t.x = block->x + k0 * x_bytes;
            t.start = k0 == from ? block->start : NULL;
            t.pack = block->pack
                         ? block->pack + p * block->pack_panel + (k0 - from) / 4 * path->quad_bytes
                         : NULL;
            path->direct(rows, &t);
        }
    }
}

/* The other blocks of rows, from the packed panels; they ask for the weights that come next. */
static void packed_block(const worker_t *s, const tile_t *block, int rows, int64_t panels,
                         int64_t quads, int64_t b, const int8_t *next) {
    const job_t *job = s->job;
    const call_t *c = job->c;
    tile_t t = *block;
    t.panels = panels;
    t.quads = quads;
    if (b <= 2 && job->in_place) {
        /* A quad of a panel is two lines: the first block asks for one, the second for the
         * other. In ND neighbouring panels share lines, and the kernel moves on odd ones. */
        t.next = next + (b == 1 ? 0 : job->nz ? 64 : c->w_i);
        t.next_step = 4 * c->w_i;
        t.w_row = c->w_i;
        t.w_panel = c->w_n1;
    } else {
        t.next = s->pack;
        t.next_step = t.w_row = t.w_panel = 0;
    }
    job->path->packed(rows, &t);
}

static void take_scales(const worker_t *s, int64_t g, int64_t col, int64_t cols) {
    const call_t *c = s->job->c;
    for (int64_t j = 0; c->scale && j < cols; j++)
        s->scale[j] = load_float(c->scale, g * c->scale_e + (col + j) * c->scale_n, c->scale_bf16);
    for (int64_t j = 0; c->bias && j < cols; j++)
        s->bias[j] = load_float(c->bias, g * c->bias_e + (col + j) * c->bias_n, c->bias_bf16);
}

/* Dequantises a block of sums, of columns col + [off, off + cols), and adds it to the output; the
 * sums themselves, without a scale, are stored there. */
static void finish_block(const worker_t *s, const int32_t *sums, int64_t sums_row, int64_t row,
                         int64_t rows, int64_t col, int64_t off, int64_t cols) {
    const job_t *job = s->job;
    float *out[MAX_ROWS];
    for (int64_t r = 0; r < rows; r++)
        out[r] = job->out[row + r] + col + off;
    if (!job->c->scale) {
        for (int64_t r = 0; r < rows; r++)
            memcpy(out[r], sums + r * sums_row, (size_t)cols * sizeof *sums);
        return;
    }
    job->path->finish(out, sums, sums_row, rows, cols, s->scale + off,
                      job->c->bias ? s->bias + off : NULL, job->p + row, job->logit + row);
}

/* A large output is far away: have a block of its rows near when they are wanted. */
static void ask_for_output(const job_t *job, int64_t row, int rows, int64_t col, int64_t cols) {
    for (int r = 0; r < rows; r++)
        for (int64_t j = 0; j < cols; j += 16)
            __builtin_prefetch(job->out[row + r] + col + j, 1, 2);
}
