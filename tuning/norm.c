/* Batch normalisation, an addition and ReLU in one go, forward and backward, on one core; `norm.py` compiles and calls it.

   Activations are rows of `channels` numbers. `width` is a multiple of that and divides `n`, the number of all of them:
   the inner loops go over several rows at once, have no remainder and become vector code. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef BF16
typedef uint16_t number;

static inline float wide(number value) {
    uint32_t bits = (uint32_t)value << 16;
    float result;
    memcpy(&result, &bits, 4);
    return result;
}

static inline number narrow(float value) { /* To the nearest one, of two as near to the even one. */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}
#else
typedef float number;

static inline float wide(number value) { return value; }
static inline number narrow(float value) { return value; }
#endif

/* Both keep what is not a number. */
static inline float relu(float value) { return value < 0 ? 0 : value; }
static inline float passed(float gradient, number output) { return wide(output) <= 0 ? 0 : gradient; }

#define BETWEEN(from, to) for (long i = from; i < to; i += width) for (long j = 0; j < width; j++)
#define EACH BETWEEN(0, n)

/* A long sum in single precision loses digits: those of so many rounds of the outer loop are added up in double. */
#define SUMS(first, second, body)                                                                     \
    for (long from = 0, to; from < n; from = to) {                                                    \
        to = from + 64 * width < n ? from + 64 * width : n;                                           \
        for (long j = 0; j < width; j++) sum[j] = product[j] = 0;                                     \
        BETWEEN(from, to) body                                                                        \
        for (long j = 0; j < width; j++) {                                                            \
            first[j] += sum[j];                                                                       \
            second[j] += product[j];                                                                  \
        }                                                                                             \
    }                                                                                                 \
    for (long j = channels; j < width; j++) {                                                         \
        first[j % channels] += first[j];                                                              \
        second[j % channels] += second[j];                                                            \
    }

/* y = relu(weight * (x - mean) / deviation + bias + added); without `added`, or without ReLU, where that is not wanted.
   Writes the batch's mean and inverse deviation, and takes them into the running ones. */
void forward(const number *restrict x, const number *restrict added, number *restrict y, long n, long channels,
             long width, const float *weight, const float *bias, float *mean, float *inverse, float *running_mean,
             float *running_variance, float momentum, float epsilon, int rectified) {
    float pivot[width], sum[width], product[width], factor[width], offset[width];
    double first[width], second[width], rows = (double)n / channels;
    for (long j = 0; j < width; j++) first[j] = second[j] = 0;
    for (long j = 0; j < width; j++)
        pivot[j] = wide(x[j % channels]); /* Near the mean, so that the squares do not drown what is sought. */
    SUMS(first, second, {
        float value = wide(x[i + j]) - pivot[j];
        sum[j] += value;
        product[j] += value * value;
    })
    for (long c = 0; c < channels; c++) {
        double shift = first[c] / rows, variance = second[c] / rows - shift * shift;
        variance = variance < 0 ? 0 : variance;
        mean[c] = pivot[c] + shift;
        inverse[c] = 1 / sqrt(variance + epsilon);
        running_mean[c] += momentum * (mean[c] - running_mean[c]);
        running_variance[c] += momentum * (variance * rows / (rows - 1) - running_variance[c]);
        for (long j = c; j < width; j += channels) {
            factor[j] = weight[c] * inverse[c];
            offset[j] = bias[c] - mean[c] * factor[j];
        }
    }
    if (added && rectified)
        EACH y[i + j] = narrow(relu(wide(x[i + j]) * factor[j] + offset[j] + wide(added[i + j])));
    else if (added)
        EACH y[i + j] = narrow(wide(x[i + j]) * factor[j] + offset[j] + wide(added[i + j]));
    else if (rectified)
        EACH y[i + j] = narrow(relu(wide(x[i + j]) * factor[j] + offset[j]));
    else
        EACH y[i + j] = narrow(wide(x[i + j]) * factor[j] + offset[j]);
}

/* The gradients by x, by what was added, by weight and by bias, of that by y; `y` is given where there was ReLU, and
   `by_added` where there was an addition. */
void backward(const number *restrict x, const number *restrict y, const number *restrict gradient,
              number *restrict by_x, number *restrict by_added, long n, long channels, long width, const float *weight,
              const float *mean, const float *inverse, float *by_weight, float *by_bias) {
    float centre[width], sum[width], product[width], of_gradient[width], of_x[width], offset[width];
    double first[width], second[width], rows = (double)n / channels;
    for (long j = 0; j < width; j++) first[j] = second[j] = 0;
    for (long j = 0; j < width; j++) centre[j] = mean[j % channels];
    if (y) {
        SUMS(first, second, {
            float value = passed(wide(gradient[i + j]), y[i + j]);
            sum[j] += value;
            product[j] += value * (wide(x[i + j]) - centre[j]);
        })
    } else {
        SUMS(first, second, {
            float value = wide(gradient[i + j]);
            sum[j] += value;
            product[j] += value * (wide(x[i + j]) - centre[j]);
        })
    }
    for (long c = 0; c < channels; c++) {
        by_bias[c] = first[c];
        by_weight[c] = second[c] * inverse[c];
        double scale = (double)weight[c] * inverse[c], slope = -scale * inverse[c] * inverse[c] * second[c] / rows;
        for (long j = c; j < width; j += channels) {
            of_gradient[j] = scale;
            of_x[j] = slope;
            offset[j] = -scale * first[c] / rows - slope * mean[c];
        }
    }
#define BY_X(value) narrow((value) * of_gradient[j] + wide(x[i + j]) * of_x[j] + offset[j])
    if (y && by_added)
        EACH {
            float value = passed(wide(gradient[i + j]), y[i + j]);
            by_added[i + j] = narrow(value);
            by_x[i + j] = BY_X(value);
        }
    else if (y)
        EACH by_x[i + j] = BY_X(passed(wide(gradient[i + j]), y[i + j]));
    else
        EACH by_x[i + j] = BY_X(wide(gradient[i + j]));
}
