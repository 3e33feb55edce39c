/* The planner's elementwise functions for a CPU, each one pass over rows that stay in the first cache.
 *
 * Built by native.py for the processor at hand, which vectorises the inner loops. Sums may be reordered; NaN and
 * infinities behave as they do in torch. bfloat16 is widened when read and rounded to nearest when written (ties away
 * from zero, which is cheaper than to even and happens once in 65,536): everything between is float32.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define EPSILON 1e-5f /* torch's LayerNorm */
#define ROWS_FOR_THREADS 64
#define WIDEST 4096 /* latent dimensions; the published models have at most 1,376 */

typedef uint16_t bfloat16;

static inline float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t as_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float read_float32(float value) { return value; }
static inline float write_float32(float value) { return value; }
static inline float read_bfloat16(bfloat16 value) { return as_float((uint32_t)value << 16); }

/* A NaN here has low bits of 0, as every one that arithmetic makes or bfloat16 holds: it stays one. */
static inline bfloat16 write_bfloat16(float value) {
    return (bfloat16)((as_bits(value) + 0x8000u) >> 16);
}

/* e^x by 2^whole 2^part with |part| <= 1/2 and a Taylor polynomial. Below -87 it is e^-87, which is nothing beside 1;
 * callers keep x under 88. NaN stays NaN through `part`. */
#define EXPONENTIAL(NAME, POLYNOMIAL)                                                                                  \
    static inline float NAME(float x) {                                                                                \
        float scaled = (x < -87.0f ? -87.0f : x) * 1.44269504f;                                                        \
        float whole = rintf(scaled);                                                                                   \
        float part = scaled - whole;                                                                                   \
        return (POLYNOMIAL) * as_float((uint32_t)((int32_t)whole + 127) << 23);                                        \
    }

#define TO_FOURTH(ABOVE)                                                                                               \
    (1.0f + part * (0.693147181f + part * (0.240226507f + part * (0.0555041087f + part * (ABOVE)))))

/* Within 2e-7 of its value, and within 6e-5, a seventieth of bfloat16's resolution. */
EXPONENTIAL(exp_float32, TO_FOURTH(0.00961812911f + part * (0.00133335581f + part * 0.000154035304f)))
EXPONENTIAL(exp_bfloat16, TO_FOURTH(0.00961812911f))

/* LayerNorm's mean of a row and what to scale by. */
#define MOMENTS(ROW, WIDTH, READ, MEAN, SCALE)                                                                         \
    {                                                                                                                  \
        float sum = 0, squares = 0;                                                                                    \
        for (long i = 0; i < WIDTH; i++) {                                                                             \
            float value = READ(ROW[i]);                                                                                \
            sum += value;                                                                                              \
            squares += value * value;                                                                                  \
        }                                                                                                              \
        MEAN = sum / WIDTH;                                                                                            \
        float variance = squares / WIDTH - MEAN * MEAN;                                                                \
        SCALE = 1 / sqrtf((variance < 0 ? 0 : variance) + EPSILON);                                                    \
    }

/* Mish of LayerNorm: with e = e^y, y tanh(softplus(y)) = y n / (n + 2) where n = e (e + 2).
 * values [groups * rows, width], replaced; weight, bias [groups, width], negated as norm_form gives them. */
#define NORM_MISH(NAME, TYPE, READ, WRITE, EXP)                                                                        \
    void NAME(TYPE *values, const float *weight, const float *bias, long groups, long rows, long width) {              \
        _Pragma("omp parallel for schedule(static) if (groups * rows >= ROWS_FOR_THREADS)")                            \
        for (long row = 0; row < groups * rows; row++) {                                                               \
            TYPE *restrict x = values + row * width;                                                                   \
            const float *restrict w = weight + row / rows * width, *restrict b = bias + row / rows * width;            \
            float mean, scale;                                                                                         \
            MOMENTS(x, width, READ, mean, scale)                                                                       \
            for (long i = 0; i < width; i++) {                                                                         \
                float value = -((READ(x[i]) - mean) * scale * w[i] + b[i]);                                            \
                float e = EXP(value > 30 ? 30 : value); /* from there on Mish is its input */                          \
                float n = e * (e + 2);                                                                                 \
                x[i] = WRITE(value * n / (n + 2));                                                                     \
            }                                                                                                          \
        }                                                                                                              \
    }

/* SimNorm of LayerNorm: a softmax over `group` numbers that lie width / group apart, in [rows, width]. */
#define NORM_SIMNORM(NAME, TYPE, READ, WRITE, EXP)                                                                     \
    void NAME(const TYPE *in, TYPE *out, const float *weight, const float *bias, long rows, long width, long group) {  \
        _Pragma("omp parallel for schedule(static) if (rows >= ROWS_FOR_THREADS)")                                     \
        for (long row = 0; row < rows; row++) {                                                                        \
            const TYPE *restrict x = in + row * width;                                                                 \
            TYPE *restrict y = out + row * width;                                                                      \
            float values[WIDEST], most[WIDEST], total[WIDEST];                                                         \
            float mean, scale;                                                                                         \
            MOMENTS(x, width, READ, mean, scale)                                                                       \
            for (long i = 0; i < width; i++) values[i] = (READ(x[i]) - mean) * scale * weight[i] + bias[i];            \
            long apart = width / group;                                                                                \
            for (long i = 0; i < apart; i++) most[i] = values[i], total[i] = 0;                                        \
            for (long k = 1; k < group; k++)                                                                           \
                for (long i = 0; i < apart; i++)                                                                       \
                    most[i] = values[k * apart + i] > most[i] ? values[k * apart + i] : most[i];                       \
            for (long k = 0; k < group; k++)                                                                           \
                for (long i = 0; i < apart; i++) {                                                                     \
                    float e = EXP(values[k * apart + i] - most[i]);                                                    \
                    values[k * apart + i] = e;                                                                         \
                    total[i] += e;                                                                                     \
                }                                                                                                      \
            for (long i = 0; i < apart; i++) total[i] = 1 / total[i];                                                  \
            for (long k = 0; k < group; k++)                                                                           \
                for (long i = 0; i < apart; i++) y[k * apart + i] = WRITE(values[k * apart + i] * total[i]);           \
        }                                                                                                              \
    }

/* symexp of the expected bin of softmax(logits), logits [rows, width], bins [width]. */
#define EXPECTATION(NAME, TYPE, READ)                                                                                  \
    void NAME(const TYPE *in, float *out, const float *restrict bins, long rows, long width) {                         \
        _Pragma("omp parallel for schedule(static) if (rows >= ROWS_FOR_THREADS)")                                     \
        for (long row = 0; row < rows; row++) {                                                                        \
            const TYPE *restrict x = in + row * width;                                                                 \
            float most = READ(x[0]), total = 0, weighted = 0;                                                          \
            _Pragma("omp simd reduction(max : most)")                                                                  \
            for (long i = 1; i < width; i++) {                                                                         \
                float value = READ(x[i]);                                                                              \
                most = value > most ? value : most;                                                                    \
            }                                                                                                          \
            for (long i = 0; i < width; i++) {                                                                         \
                float e = exp_float32(READ(x[i]) - most);                                                              \
                total += e;                                                                                            \
                weighted += e * bins[i];                                                                               \
            }                                                                                                          \
            float expected = weighted / total;                                                                         \
            out[row] = expected < 0 ? -expm1f(-expected) : expm1f(expected);                                           \
        }                                                                                                              \
    }

NORM_MISH(norm_mish_float32, float, read_float32, write_float32, exp_float32)
NORM_MISH(norm_mish_bfloat16, bfloat16, read_bfloat16, write_bfloat16, exp_bfloat16)
NORM_SIMNORM(norm_simnorm_float32, float, read_float32, write_float32, exp_float32)
NORM_SIMNORM(norm_simnorm_bfloat16, bfloat16, read_bfloat16, write_bfloat16, exp_bfloat16)
EXPECTATION(expectation_float32, float, read_float32)
EXPECTATION(expectation_bfloat16, bfloat16, read_bfloat16)
