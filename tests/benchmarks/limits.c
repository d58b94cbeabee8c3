/* What the processor can do at most: VNNI arithmetic out of registers, and reading memory. */
#include <immintrin.h>
#include <stddef.h>
#include <stdint.h>

/* rounds * 16 dot products of 64 bytes; returns something that depends on all of them. */
__attribute__((target("avx512f,avx512bw,avx512vnni"))) int64_t arithmetic(int64_t rounds) {
    __m512i sums[16];
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(5);
    for (int i = 0; i < 16; i++)
        sums[i] = _mm512_set1_epi32(i);
    for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
        __asm__ volatile("" : : "r"(r) : "memory");
    }
    __m512i all = _mm512_setzero_si512();
    for (int i = 0; i < 16; i++)
        all = _mm512_add_epi32(all, sums[i]);
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
