/*
 * Every path that this processor runs against the plain one, bit for bit, without Python: to be
 * compiled for another processor and run in an emulator.
 *
 *     aarch64-linux-gnu-gcc -std=c11 -O2 -ffp-contract=off -pthread -static \
 *         tests/other_processor.c -o other && qemu-aarch64 -cpu max other
 */
#include "../lowering/csrc/grouped_matmul.c"
#include <stdio.h>

enum { GROUPS = 3, COUNTS = 4, MOST = 1 << 20 };

static uint32_t seed = 1;

static uint32_t any(void) {
    seed = seed * 1664525u + 1013904223u;
    return seed >> 8;
}

static int8_t w[MOST], x[MOST / 4];
static float scale[GROUPS * 512], bias[GROUPS * 512], weight[256], out[2][256 * 512];

/* One call by one path, added to zeros. */
static int run(call_t c, int path, float *to, int64_t rows) {
    memset(to, 0, (size_t)(rows * c.n) * sizeof *to);
    c.out = to;
    return grouped_matmul_combine(&c, path);
}

int main(void) {
    static const int64_t ks[] = {1, 3, 16, 37, 64, 130, 520}, ns[] = {1, 7, 32, 33, 96, 353};
    static const int64_t counts[COUNTS][GROUPS] = {{1, 0, 2}, {3, 5, 1}, {0, 9, 20}, {27, 4, 40}};
    int64_t index[256];
    int checked = 0;
    for (int i = 0; i < MOST; i++)
        w[i] = (int8_t)any();
    for (int i = 0; i < MOST / 4; i++)
        x[i] = (int8_t)any();
    for (int i = 0; i < GROUPS * 512; i++) {
        scale[i] = (float)(int32_t)(any() % 1000) * 1e-5f;
        bias[i] = (float)(int32_t)(any() % 1000) - 500.0f;
    }
    for (int i = 0; i < 256; i++)
        weight[i] = (float)(int32_t)(any() % 100) * 0.01f;
    for (size_t ki = 0; ki < sizeof ks / sizeof *ks; ki++)
        for (size_t ni = 0; ni < sizeof ns / sizeof *ns; ni++)
            for (int ci = 0; ci < COUNTS; ci++)
                for (int layout = 0; layout < 4; layout++) {
                    const int64_t k = ks[ki], n = ns[ni], k16 = (k + 15) / 16 * 16;
                    int64_t ends[GROUPS], rows = 0;
                    for (int g = 0; g < GROUPS; g++)
                        ends[g] = rows += counts[ci][g];
                    for (int64_t r = 0; r < rows; r++)
                        index[r] = any() % (uint32_t)rows;
                    if (layout == 2 && n % PANEL)
                        continue;
                    call_t c = {.out_row = n, .x = x, .x_row = k, .x_col = 1, .w = w, .ends = ends};
                    c.e = GROUPS;
                    c.k = k;
                    c.n = n;
                    switch (layout) {
                    case 0:
                        c.w_i = n;
                        c.w_j = 1;
                        c.w_e = k * n;
                        break; /* n contiguous */
                    case 1:
                        c.w_i = 1;
                        c.w_j = k;
                        c.w_e = k * n;
                        break; /* k contiguous */
                    case 2:
                        c.w_i = PANEL;
                        c.w_j = 1;
                        c.w_e = k16 * n;
                        break; /* FRACTAL_NZ */
                    case 3:
                        c.w_i = 2;
                        c.w_j = 2 * k;
                        c.w_e = 1;
                        break; /* neither */
                    }
                    c.w_k1 = 16 * c.w_i;
                    c.w_n1 = layout == 2 ? k16 * PANEL : PANEL * c.w_j;
                    c.scale = scale;
                    c.scale_e = n;
                    c.scale_n = 1;
                    c.bias = layout % 2 ? bias : NULL;
                    c.bias_e = n;
                    c.bias_n = 1;
                    c.pertoken = weight;
                    c.pertoken_step = 1;
                    c.logit = weight + 1;
                    c.logit_step = 1;
                    c.index = index;
                    c.index_step = 1;
                    c.index_wide = 1;
                    c.threads = 2;
                    if (run(c, PATHS - 1, out[0], rows))
                        return 2;
                    for (int path = 0; path < PATHS - 1; path++) {
                        if (!can_run(paths[path]))
                            continue;
                        if (run(c, path, out[1], rows) ||
                            memcmp(out[0], out[1], (size_t)(rows * n) * sizeof **out)) {
                            printf("%s differs: k %lld, n %lld, counts %d, layout %d\n",
                                   paths[path]->name, (long long)k, (long long)n, ci, layout);
                            return 1;
                        }
                        checked++;
                    }
                }
    for (int path = 0; path < PATHS; path++)
        printf("%s%s\n", paths[path]->name, can_run(paths[path]) ? "" : ": not run");
    printf("%d calls equal\n", checked);
    return checked == 0;
}
