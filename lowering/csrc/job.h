/* A call, divided among threads: what all of them read, and what each has of its own. */

typedef struct worker worker_t;

typedef struct job {
    const call_t *c;
    const path_t *path;
    void (*run)(const worker_t *s, int64_t task);
    int64_t rows;         /* ends[e - 1]: rows from there on are never read */
    int64_t quads;        /* of a panel, the last one filled up with zeros */
    int64_t panels;       /* of n, the last one perhaps not full */
    int64_t task_panels;  /* of a task that is a range of columns */
    int64_t pack_panels;  /* of those, packed at a time, */
    int64_t pack_panel;   /* in so many bytes each; */
    int64_t pack_bytes;   /* of what is packed at a time, in all */
    int in_place;         /* panels can be read where they are */
    int nz;               /* and are contiguous */
    int by_steps;         /* groups of many rows read ND some k-rows at a time */
    int lines;            /* k is contiguous: columns can be read where they are */
    float **out;          /* for each row, its output row, */
    float *p, *logit;     /* its factors, */
    int32_t *start;       /* and its accumulators' first value */
    int64_t *live, lives; /* the groups that have rows, and how many those are */
    int64_t first, last, first_row, batch_rows; /* a batch of those, and its rows */
    int64_t slices, slice_k;                    /* the k-rows of each, cut into so many tasks */
    int32_t *sums;                              /* (slices, batch_rows, 32 * panels) */
    int64_t tasks;
    atomic_llong next;
    atomic_int failed;
} job_t;

struct worker {
    const job_t *job;
    void *memory;
    int8_t *pack; /* pack_bytes */
    int32_t *acc; /* a block of rows by a task's columns */
    int64_t acc_row;
    int32_t *sums;       /* STEP_ROWS rows of STEP_PANELS panels, where ND is read by steps */
    int8_t *x;           /* blocks of rows, where x cannot be read in place */
    int8_t *panel;       /* SCRATCH rows of a panel, where w cannot */
    float *scale, *bias; /* a task's columns */
};

/* Between pieces of memory, where the sanitizer is to see one run into the next. */
#if defined(__SANITIZE_ADDRESS__)
enum { GAP = 64 };
#define CLOSE_GAP(at) ASAN_POISON_MEMORY_REGION(at, GAP)
#else
enum { GAP = 0 };
#define CLOSE_GAP(at) (void)(at)
#endif

/* Cuts one block of memory into aligned pieces; the caller frees it. Null if there is none. */
static void *allocate(const int64_t *sizes, void **pieces, int count) {
    size_t total = 64;
    for (int i = 0; i < count; i++)
        total += (((size_t)sizes[i] + 63) & ~(size_t)63) + GAP;
    void *memory = malloc(total);
    char *at = (char *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
    for (int i = 0; memory && i < count; i++) {
        pieces[i] = at;
        at += ((size_t)sizes[i] + 63) & ~(size_t)63;
        CLOSE_GAP(at);
        at += GAP;
    }
    return memory;
}

/* a / b, rounded up. */
static int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

static float load_float(const void *address, int64_t i, int64_t bf16) {
    if (bf16) {
        const uint32_t bits = (uint32_t)((const uint16_t *)address)[i] << 16;
        float value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }
    return ((const float *)address)[i];
}

/* What every thread needs to know of each row. */
static void *read_rows(job_t *job) {
    const call_t *c = job->c;
    const int64_t *ends = c->ends;
    const int64_t sizes[] = {job->rows * (int64_t)sizeof(float *), job->rows * 4, job->rows * 4,
                             job->rows * 4, least(c->e, job->rows) * 8};
    void *pieces[5], *memory = allocate(sizes, pieces, 5);
    if (!memory)
        return NULL;
    job->out = pieces[0];
    job->p = pieces[1];
    job->logit = pieces[2];
    job->start = pieces[3];
    job->live = pieces[4];
    for (int64_t r = 0; r < job->rows; r++) {
        const int64_t index = !c->index       ? r
                              : c->index_wide ? ((const int64_t *)c->index)[r * c->index_step]
                                              : ((const int32_t *)c->index)[r * c->index_step];
        job->out[r] = c->out + index * c->out_row;
        const float l = c->logit ? c->logit[r * c->logit_step] : 1.0f;
        job->logit[r] = l;
        job->p[r] = c->pertoken ? c->pertoken[r * c->pertoken_step] * l : l;
        int32_t sum = 0;
        if (job->path->flip) {
            const int8_t *x = c->x + r * c->x_row;
            if (c->x_col == 1)
                sum = job->path->sum(x, c->k);
            else
                for (int64_t i = 0; i < c->k; i++)
                    sum += x[i * c->x_col];
        }
        job->start[r] = (int32_t)((uint32_t)sum * (uint32_t)-job->path->flip);
    }
    for (int64_t g = 0; g < c->e; g++)
        if (ends[g] > (g ? ends[g - 1] : 0))
            job->live[job->lives++] = g;
    return memory;
}

static int worker_open(worker_t *s, const job_t *job) {
    const int64_t cols = job->task_panels * PANEL;
    s->acc_row = cols + 16; /* off a power of two: rows do not share cache sets */
    const int64_t sizes[] = {
        job->pack_bytes,
        MAX_ROWS * s->acc_row * 4,
        MAX_BLOCKS * MAX_ROWS * job->quads * 4 * 2,
        SCRATCH * PANEL,
        cols * 4,
        cols * 4,
        job->by_steps ? STEP_ROWS * STEP_PANELS * PANEL * 4 : 0,
    };
    void *pieces[7];
    s->job = job;
    s->memory = allocate(sizes, pieces, 7);
    if (!s->memory)
        return -1;
    s->pack = pieces[0];
    s->acc = pieces[1];
    s->x = pieces[2];
    s->panel = pieces[3];
    s->scale = pieces[4];
    s->bias = pieces[5];
    s->sums = pieces[6];
    return 0;
}

static int64_t first_row(const job_t *job, int64_t g) { return g ? job->c->ends[g - 1] : 0; }
