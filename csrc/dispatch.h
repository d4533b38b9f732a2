/* dispatch.h - the same C compiled twice: for every processor, and for AVX2.
 *
 * A hot loop is written once as BON_INLINE and entered through two thin
 * functions, one of them marked BON_AVX2; bon_has_avx2() chooses at run time.
 * Both do the same operations in the same order and none is contracted
 * (-std=c11), so results do not depend on the processor.
 */
#ifndef BON_DISPATCH_H
#define BON_DISPATCH_H

#include <stdint.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BON_INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__)
#define BON_AVX2 __attribute__((target("avx2")))
static inline int bon_has_avx2(void) { return __builtin_cpu_supports("avx2"); }
#else
#define BON_AVX2
static inline int bon_has_avx2(void) { return 0; }
#endif

/* Four neighbouring doubles at any address. */
typedef double bon_vec __attribute__((vector_size(32), aligned(8), may_alias));

/* What a comparison of two bon_vec gives: all bits of an element, or none. */
typedef int64_t bon_choice __attribute__((vector_size(32), aligned(8), may_alias));

/* Neighbouring 32-bit integers at any address. */
typedef int32_t bon_ints __attribute__((vector_size(32), aligned(4), may_alias));
typedef int32_t bon_four_ints __attribute__((vector_size(16), aligned(4), may_alias));

/* Writes past the caches, for results that they could not hold anyway: where whole lines are
 * written memory is not read for them. to is a multiple of 32 bytes. Other threads see what
 * was written after bon_end_streams. */
#if defined(__x86_64__)
BON_AVX2 static inline void bon_stream(double *to, const bon_vec *x)
{
    _mm256_stream_pd(to, (__m256d)*x);
}
static inline void bon_end_streams(void) { _mm_sfence(); }
#else
static inline void bon_stream(double *to, const bon_vec *x) { *(bon_vec *)to = *x; }
static inline void bon_end_streams(void) {}
#endif

#endif /* BON_DISPATCH_H */
