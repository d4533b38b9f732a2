/* threads.h - which thread of a parallel region this is, with or without OpenMP.
 *
 * The core's loops are OpenMP loops with an explicit number of threads; results
 * never depend on that number. Without OpenMP (the C tests may build so) there
 * is one thread with index 0.
 */
#ifndef BON_THREADS_H
#define BON_THREADS_H

#ifdef _OPENMP
#include <omp.h>
static inline int bon_thread_index(void) { return omp_get_thread_num(); }
#else
static inline int bon_thread_index(void) { return 0; }
#endif

/* Element operations below which entering a parallel region costs more than it
 * saves (some 3 microseconds for two threads). */
#define BON_PARALLEL_ABOVE 32768

#endif /* BON_THREADS_H */
