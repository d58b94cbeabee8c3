/*
 * The grouped W8A8 product with its dequantisation and combine, for one processor.
 *
 * For group g, its rows r, and column j, in float32 and in exactly this order:
 *
 *     acc = sum over i of x[r,i] * w[g,i,j]                     int32, modulo 2**32
 *     y   = (float(acc) * scale[g,j]) * (pertoken[r] * logit[r])
 *     y  += logit[r] * bias[g,j]                                when there is a bias
 *     out[row_index[r], j] += y                                 in ascending r
 *
 * Every multiply and add is rounded by itself: build with -ffp-contract=off.
 *
 * How it is laid out, outermost first:
 *
 *   - Columns are cut into tasks, and threads take tasks. An output element thus belongs to one
 *     thread, which walks the groups and their rows upwards: nothing is atomic, and the order of
 *     adds is the sequential one whatever the number of threads.
 *   - Within a task weights go by *panels* of 32 columns. FRACTAL_NZ of int8 stores just that, a
 *     contiguous (k, 32) panel; in ND the same panel has its rows n bytes apart. One kernel
 *     serves both. A panel that is neither (the last columns of an ND weight, odd strides) is
 *     copied 128 rows at a time to a scratch buffer that looks like NZ.
 *   - Where k is contiguous instead (a checkpoint's (e, n, k), transposed) columns are *lines*, and
 *     dot products go along them as they lie. A group of many rows has them packed first.
 *   - Four k-rows of a panel, a *quad*, are permuted in registers so that each 32-bit lane holds
 *     four successive k of one column, which is what the dot-product instructions take; four
 *     bytes of x are broadcast untouched.
 *   - A group of few rows streams the weights through registers, once, or, being two blocks of
 *     rows, twice. A larger group stores the permuted quads as its first block passes, and the
 *     other blocks read those.
 *   - ND of few rows is read in whole k-rows, strips of them, by tasks that are ranges of k: so
 *     its memory is one stream.
 *   - Accumulators live in a small buffer in L1 between kernel and dequantisation, so the latter
 *     is plain C that each path compiles for itself, and output rows are touched in wide runs.
 *
 * Nothing here knows torch or Python: one struct comes in, through ctypes.
 *
 * One translation unit: each header below is included here, once, after what it uses. How it is
 * checked (warnings, format, sanitizers) is in .ci/check_c.
 */
#define _GNU_SOURCE /* POSIX beside -std=c11 */
#define _DARWIN_C_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#if defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#include "call.h"
#include "tile.h"

#include "portable.h"
#if defined(__x86_64__)
#include "avx512vnni.h"
#include "avx512vnni_strip.h"
#include "avx512vnni_lines.h"
#include "avx2.h"
#include "avxvnni.h"
#elif defined(__aarch64__)
#include "neon.h"
#endif

#include "job.h"
#include "panels.h"
#include "columns.h"
#include "rows.h"
#include "lines.h"
#include "threads.h"
#include "processor.h"

#define EXPORT __attribute__((visibility("default")))

static const path_t *const paths[] = {
#if defined(__x86_64__)
    &avx512_path,
#if HAVE_AVXVNNI
    &avxvnni_path,
#endif
    &avx2_path,
#elif defined(__aarch64__)
    &neon_path,
#endif
    &c_path,
};

enum { PATHS = sizeof paths / sizeof paths[0] };

/* The fields of call_t, for the caller to compare with its own. */
EXPORT const field_t *grouped_matmul_call_fields(void) { return call_fields; }

/* The name of the i-th path of this build, best first; null past the last. */
EXPORT const char *grouped_matmul_path_name(int64_t i) {
    return i >= 0 && i < PATHS ? paths[i]->name : NULL;
}

/* Whether this processor can run the i-th path. */
EXPORT int grouped_matmul_path_runs(int64_t i) { return i >= 0 && i < PATHS && can_run(paths[i]); }

/* Takes threads from here on from GOMP_parallel at that address; from our pool if it is null. */
EXPORT void grouped_matmul_use_threads(void *gomp_parallel) {
    parallel_t run;
    memcpy(&run, &gomp_parallel, sizeof run);
    parallel = run;
}

/* Packs as many panels at a time as half of a small L2 holds. */
static void pack_panels(job_t *job) {
    enum { PACK_BYTES = 256 << 10 };
    const int64_t fit = PACK_BYTES / job->pack_panel;
    job->pack_panels = least(fit > 0 ? fit : 1, job->task_panels);
    job->pack_bytes = job->pack_panels * job->pack_panel;
}

/* Adds every row's contribution to out, by the given path, which the processor must have.
 * Returns 0, or -1 if memory ran out. */
EXPORT int grouped_matmul_combine(const call_t *c, int64_t path) {
    enum {
        SUM_BYTES = 8 << 20, /* of a batch's sums */
        SUMS_SHARE = 64,     /* and no more than this part of its weights' bytes, if it can be */
        NZ_PANELS = 28,      /* of a task: long streams, yet tasks enough to even out */
        WIDE_PANELS = 56,    /* the same for other layouts: wide, to use what of a page is near */
        SMALL = 1 << 20,     /* multiplications that are done before another thread wakes */
    };
    const int64_t *ends = c->ends;
    job_t job = {.c = c, .path = paths[path], .rows = ends[c->e - 1]};
    if (job.rows == 0)
        return 0;
    job.quads = over(c->k, 4);
    job.panels = over(c->n, PANEL);
    job.in_place = c->w_j == 1 && (c->w_k1 == 16 * c->w_i || c->k <= 16);
    job.nz = job.in_place && c->w_i == PANEL;
    job.lines = c->w_i == 1 && (c->w_k1 == 16 || c->k <= 16) &&
                (c->w_n1 == PANEL * c->w_j || c->n <= PANEL) && (c->w_j != 1 || c->n == 1);
    job.pack_panel = job.quads * job.path->quad_bytes;
    const int64_t threads = job.rows * c->k * c->n < SMALL ? 1 : c->threads;
    void *memory = read_rows(&job);
    if (!memory)
        return -1;
    int64_t most = 0;
    for (int64_t i = 0; i < job.lives; i++) {
        const int64_t rows = first_row(&job, job.live[i] + 1) - first_row(&job, job.live[i]);
        most = rows > most ? rows : most;
    }
    /* Columns of a task: what suits the layout, evened out over the threads. */
    const int64_t suits = threads * (job.nz ? NZ_PANELS : WIDE_PANELS);
    job.task_panels = over(job.panels, threads * over(job.panels, suits));
    const int64_t tasks = over(job.panels, job.task_panels);

    if (job.lines) {
        if (job.path->turn && most > job.path->turn_rows) {
            job.pack_panel = over(c->k, 64) * 16 * job.path->quad_bytes;
            pack_panels(&job);
        }
        run_job(&job, run_lines, tasks, threads);
    } else if (job.in_place && !job.nz && most <= MAX_BLOCKS * job.path->rows) {
        /* Tasks enough to even out, as long as the sums are small beside the weights. */
        const int64_t small = c->k * job.lives / (SUMS_SHARE * 4 * job.rows);
        const int64_t wanted = least(over(16 * threads, job.lives), small > 1 ? small : 1);
        job.slice_k = over(over(c->k, wanted), ND_ROWS) * ND_ROWS;
        job.slices = over(c->k, job.slice_k);
        const int64_t row_bytes = job.slices * job.panels * PANEL * 4;
        const int64_t room = SUM_BYTES / row_bytes > most ? SUM_BYTES / row_bytes : most;
        if (job.path->quad_bytes && most > job.path->rows)
            job.pack_bytes = RUN_BYTES;
        job.sums = malloc((size_t)(least(room, job.rows) * row_bytes));
        job.failed = !job.sums;
        for (; job.first < job.lives && !job.failed; job.first = job.last) {
            job.first_row = first_row(&job, job.live[job.first]);
            do
                job.batch_rows = first_row(&job, job.live[job.last++] + 1) - job.first_row;
            while (job.last < job.lives &&
                   first_row(&job, job.live[job.last] + 1) - job.first_row <= room);
            run_job(&job, run_rows, (job.last - job.first) * job.slices, threads);
            if (!job.failed)
                run_job(&job, combine_rows, tasks, threads);
        }
        free(job.sums);
    } else {
        if (job.path->quad_bytes && most > job.path->rows)
            pack_panels(&job);
        job.by_steps = job.in_place && !job.nz && job.pack_bytes && c->k > nd_step(c, 0);
        if (job.by_steps) {
            const int64_t bytes = STEP_PANELS * nd_step(c, 0) / 4 * job.path->quad_bytes;
            job.pack_bytes = bytes > job.pack_bytes ? bytes : job.pack_bytes;
        }
        run_job(&job, run_columns, tasks, threads);
    }
    free(memory);
    return job.failed ? -1 : 0;
}
