/* Which paths this processor runs. */

#if defined(__x86_64__)

/* What the processor says it has and the system keeps the registers of: bits of one word. */
enum { HAS_AVX2 = 1, HAS_AVXVNNI = 2, HAS_AVX512VNNI = 4 };

static int processor(void) {
    unsigned a, b, c, d, has = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (1u << 27 | 1u << 28)) != (1u << 27 | 1u << 28))
        return 0; /* no XGETBV to ask, or no AVX */
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const int ymm = (low & 0x06) == 0x06, zmm = (low & 0xe6) == 0xe6;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    const unsigned leaves = a, avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31; /* F DQ BW VL */
    if (ymm && (b & 1u << 5))
        has |= HAS_AVX2;
    if (zmm && (b & avx512) == avx512 && (c & 1u << 11))
        has |= HAS_AVX512VNNI;
    if (leaves >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (has & HAS_AVX2) && (a & 1u << 4))
        has |= HAS_AVXVNNI;
    return (int)has;
}

static int can_run(const path_t *path) {
    const int has = processor();
#if HAVE_AVXVNNI
    if (path == &avxvnni_path)
#if defined(NPU_LOWERING_AVXVNNI_AS_AVX512)
        return (has & HAS_AVX512VNNI) != 0;
#else
        return (has & HAS_AVXVNNI) != 0;
#endif
#endif
    return path == &c_path || (path == &avx2_path && (has & HAS_AVX2)) ||
           (path == &avx512_path && (has & HAS_AVX512VNNI));
}

#elif defined(__aarch64__)

static int can_run(const path_t *path) {
#if defined(__APPLE__)
    int has = 0;
    size_t size = sizeof has;
    if (sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, NULL, 0))
        has = 0;
#elif defined(__linux__)
    const int has = (getauxval(AT_HWCAP) & 1ul << 20) != 0; /* HWCAP_ASIMDDP */
#else
    const int has = 0;
#endif
    return path == &c_path || has;
}

#else

static int can_run(const path_t *path) { return path == &c_path; }

#endif
