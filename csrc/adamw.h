/* adamw.h - one step of AdamW, and the norm that gradients are clipped by.
 *
 * Weights, gradients and moments are float32 arrays of one layout, whichever:
 * the step works element by element. In panels (panels.h) the padding stays 0.
 *
 * Nothing here allocates or fails, and results do not depend on the threads.
 */
#ifndef BON_ADAMW_H
#define BON_ADAMW_H

#include <stddef.h>
#include <stdint.h>

/* lr >= 0; 0 <= beta1, beta2 < 1; eps > 0; weight_decay >= 0. */
typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
} bon_adamw;

/* Step number `step` >= 1 of every element, with g' = grad_scale * g:
 *
 *   w <- w (1 - lr weight_decay)
 *   m <- m + (1 - beta1) (g' - m)        v <- beta2 v + (1 - beta2) g'^2
 *   w <- w - lr / (1 - beta1^step) * m / (sqrt(v) / sqrt(1 - beta2^step) + eps)
 *
 * which is torch.optim.AdamW's, in its order of operations; constants are computed
 * in double and rounded once. g is left as it is. One pass: 28 bytes per element.
 * Source: Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2. */
void bon_adamw_step(const bon_adamw *o, uint64_t step, float grad_scale, float *w,
                    const float *g, float *m, float *v, size_t count, int threads);

/* Sum of g [count]^2 in double: relative error below count * 2^-53, and no square
 * over- or underflows. */
double bon_sum_squares(const float *g, size_t count, int threads);

#endif /* BON_ADAMW_H */
