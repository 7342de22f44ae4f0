/* What waits for memory in a small ResNet, on one core: all between two convolutions, and a shortcut of stride 2. `kernels.py`
   compiles it; `norm.py` and `shortcut.py` call it. Activations are laid out as (N, H, W, C), of bf16 or float. */

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

/* Batch normalisation, an addition and ReLU in one go. Activations are rows of `channels` numbers. `width` is a multiple
   of that and divides `n`, the number of all of them: the inner loops go over several rows at once, have no remainder and
   become vector code. */

/* Both keep what is not a number. */
static inline float positive(float value) { return value < 0 ? 0 : value; }
static inline float passed(float gradient, float output) { return output <= 0 ? 0 : gradient; }

#define BETWEEN(from, to) for (long i = from; i < to; i += width) for (long j = 0; j < width; j++)
#define EACH BETWEEN(0, n)

/* A long sum in single precision loses digits: those of so many rounds of the outer loop are added up in double. */
#define SUMS(first, second, body)                                                                     \
    {                                                                                                 \
        for (long from = 0, to; from < n; from = to) {                                                \
            to = from + 64 * width < n ? from + 64 * width : n;                                       \
            for (long j = 0; j < width; j++) sum[j] = product[j] = 0;                                 \
            BETWEEN(from, to) body                                                                    \
            for (long j = 0; j < width; j++) {                                                        \
                first[j] += sum[j];                                                                   \
                second[j] += product[j];                                                              \
            }                                                                                         \
        }                                                                                             \
        for (long j = channels; j < width; j++) {                                                     \
            first[j % channels] += first[j];                                                          \
            second[j % channels] += second[j];                                                        \
        }                                                                                             \
    }

/* y = relu(weight * (x - mean) / deviation + bias + residual); without `residual`, or without ReLU, where that is not wanted.
   In training mean and deviation are the batch's, and are taken into the running ones; otherwise they are these. It writes
   the mean and the inverse deviation. */
void norm_forward(const number *restrict x, const number *restrict residual, number *restrict y, long n, long channels,
                  long width, const float *weight, const float *bias, float *mean, float *inverse, float *running_mean,
                  float *running_variance, float momentum, float epsilon, int relu, int training) {
    float pivot[width], sum[width], product[width], factor[width], offset[width];
    double first[width], second[width], rows = (double)n / channels;
    for (long j = 0; j < width; j++) first[j] = second[j] = 0;
    for (long j = 0; j < width; j++)
        pivot[j] = wide(x[j % channels]); /* Near the mean, so that the squares do not drown what is sought. */
    if (training)
        SUMS(first, second, {
            float value = wide(x[i + j]) - pivot[j];
            sum[j] += value;
            product[j] += value * value;
        })
    for (long c = 0; c < channels; c++) {
        if (training) {
            double shift = first[c] / rows, variance = second[c] / rows - shift * shift;
            variance = variance < 0 ? 0 : variance;
            mean[c] = pivot[c] + shift;
            inverse[c] = 1 / sqrt(variance + epsilon);
            running_mean[c] += momentum * (mean[c] - running_mean[c]);
            running_variance[c] += momentum * (variance * rows / (rows - 1) - running_variance[c]);
        } else {
            mean[c] = running_mean[c];
            inverse[c] = 1 / sqrt(running_variance[c] + epsilon);
        }
        for (long j = c; j < width; j += channels) {
            factor[j] = weight[c] * inverse[c];
            offset[j] = bias[c] - mean[c] * factor[j];
        }
    }
    if (residual && relu)
        EACH y[i + j] = narrow(positive(wide(x[i + j]) * factor[j] + offset[j] + wide(residual[i + j])));
    else if (residual)
        EACH y[i + j] = narrow(wide(x[i + j]) * factor[j] + offset[j] + wide(residual[i + j]));
    else if (relu)
        EACH y[i + j] = narrow(positive(wide(x[i + j]) * factor[j] + offset[j]));
    else
        EACH y[i + j] = narrow(wide(x[i + j]) * factor[j] + offset[j]);
}

/* The gradients by x, by what was added, by weight and by bias, of that by y. `y` and `grad_residual` are given where something
   was added before the ReLU; where nothing was, what it let through is found anew, which is faster than to read it. */
void norm_backward(const number *restrict x, const number *restrict y, const number *restrict gradient,
                   number *restrict grad_x, number *restrict grad_residual, long n, long channels, long width,
                   const float *weight, const float *bias, const float *mean, const float *inverse, float *grad_weight,
                   float *grad_bias, int relu) {
    float centre[width], sum[width], product[width], of_gradient[width], of_x[width], offset[width];
    float factor[width], base[width]; /* As `factor` and `offset` in `norm_forward`. */
    double first[width], second[width], rows = (double)n / channels;
    for (long j = 0; j < width; j++) {
        first[j] = second[j] = 0;
        centre[j] = mean[j % channels];
        factor[j] = weight[j % channels] * inverse[j % channels];
        base[j] = bias[j % channels] - centre[j] * factor[j];
    }
#define GRADIENT wide(gradient[i + j])
#define PAST_Y passed(GRADIENT, wide(y[i + j]))
#define PAST_X passed(GRADIENT, wide(x[i + j]) * factor[j] + base[j])
#define ADD_UP(given)                                                                                 \
    {                                                                                                 \
        float value = given;                                                                          \
        sum[j] += value;                                                                              \
        product[j] += value * (wide(x[i + j]) - centre[j]);                                           \
    }
    if (y)
        SUMS(first, second, ADD_UP(PAST_Y))
    else if (relu)
        SUMS(first, second, ADD_UP(PAST_X))
    else
        SUMS(first, second, ADD_UP(GRADIENT))
    for (long c = 0; c < channels; c++) {
        grad_bias[c] = first[c];
        grad_weight[c] = second[c] * inverse[c];
        double scale = (double)weight[c] * inverse[c], slope = -scale * inverse[c] * inverse[c] * second[c] / rows;
        for (long j = c; j < width; j += channels) {
            of_gradient[j] = scale;
            of_x[j] = slope;
            offset[j] = -scale * first[c] / rows - slope * mean[c];
        }
    }
#define BY_X(value) narrow((value) * of_gradient[j] + wide(x[i + j]) * of_x[j] + offset[j])
    if (y)
        EACH {
            float value = PAST_Y;
            grad_residual[i + j] = narrow(value);
            grad_x[i + j] = BY_X(value);
        }
    else if (relu)
        EACH grad_x[i + j] = BY_X(PAST_X);
    else
        EACH grad_x[i + j] = BY_X(GRADIENT);
}

/* y = x[:, ::2, ::2]; or, where it is asked for, x[:, ::2, ::2] += y. `height` and `columns` are those of x. */
void every_second(number *restrict x, number *restrict y, long n, long height, long columns, long channels,
                  int added_back) {
    long rows = (height + 1) / 2, pairs = (columns + 1) / 2;
    for (long r = 0; r < n * rows; r++)
        for (long c = 0; c < pairs; c++) {
            number *restrict whole = x + ((r / rows * height + r % rows * 2) * columns + 2 * c) * channels;
            number *restrict half = y + (r * pairs + c) * channels;
            if (added_back)
                for (long j = 0; j < channels; j++) whole[j] = narrow(wide(whole[j]) + wide(half[j]));
            else
                memcpy(half, whole, channels * sizeof(number));
        }
}
