/* What the processor can do at most: VNNI arithmetic out of registers, and reading memory. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* An array would live in memory: these are sixteen registers. */
#define EACH(DO) \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15)
#define START(i) __m512i sum##i = _mm512_set1_epi32(i);
#define DOT(i) \
    sum##i = _mm512_dpbusd_epi32(sum##i, a, b); \
    __asm__ volatile("" : "+v"(sum##i)); /* neither folded nor hoisted */
#define ADD(i) all = _mm512_add_epi32(all, sum##i);

/* rounds * 16 dot products of 64 bytes; returns something that depends on all of them. */
__attribute__((target("avx512f,avx512bw,avx512vnni"))) int64_t arithmetic(int64_t rounds) {
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    __m512i all = _mm512_setzero_si512();
    EACH(START)
    for (int64_t r = 0; r < rounds; r++) {
        EACH(DOT)
    }
    EACH(ADD)
    return _mm512_reduce_add_epi32(all);
}

/* Reads `bytes`, a multiple of 256, at a 64-byte boundary. */
__attribute__((target("avx512f"))) int64_t stream(const char *from, int64_t bytes) {
    __m512i a = _mm512_setzero_si512(), b = a, c = a, d = a;
    for (int64_t i = 0; i < bytes; i += 256) {
        a = _mm512_or_si512(a, _mm512_loadu_si512(from + i));
        b = _mm512_or_si512(b, _mm512_loadu_si512(from + i + 64));
        c = _mm512_or_si512(c, _mm512_loadu_si512(from + i + 128));
        d = _mm512_or_si512(d, _mm512_loadu_si512(from + i + 192));
    }
    return _mm512_reduce_add_epi32(_mm512_or_si512(_mm512_or_si512(a, b), _mm512_or_si512(c, d)));
}
