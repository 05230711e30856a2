// One token a row through a decoder of Llama's form: a whole pass in one parallel region.
//
// Weights are read row by row, each once; numbers are rounded to the weights' precision where transformers' modules
// round them, sums are taken in float32. Every width must be a multiple of 16.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <vector>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {

constexpr int kLanes = 16;  // numbers of a vector
constexpr int kBlock = 4;   // outputs of a product that are summed together
constexpr int kAhead = 8;   // rows of a weight that are fetched before they are needed

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef uint16_t Halves __attribute__((vector_size(32)));

struct Bfloat16 {
  uint16_t bits;
};

inline float read(float x) { return x; }

inline float read(Bfloat16 x) {
  uint32_t word = uint32_t(x.bits) << 16;
  float number;
  memcpy(&number, &word, sizeof number);
  return number;
}

inline void write(float* to, float x) { *to = x; }

inline void write(Bfloat16* to, float x) {  // to the nearest, ties to even
  uint32_t word;
  memcpy(&word, &x, sizeof word);
  to->bits = x != x ? 0x7fc0 : uint16_t((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}

template <class T>
inline float rounded(float x) {
  T number;
  write(&number, x);
  return read(number);
}

inline Floats load(const float* from) {
  Floats numbers;
  memcpy(&numbers, from, sizeof numbers);
  return numbers;
}

inline Floats load(const Bfloat16* from) {
#ifdef __AVX512F__
  return Floats(_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from)), 16)));
#else
  Halves halves;
  memcpy(&halves, from, sizeof halves);
  Words words = __builtin_convertvector(halves, Words) << 16;
  Floats numbers;
  memcpy(&numbers, &words, sizeof numbers);
  return numbers;
#endif
}

inline void store(float* to, Floats numbers) { memcpy(to, &numbers, sizeof numbers); }

inline void store(Bfloat16* to, Floats numbers) {
  for (int i = 0; i < kLanes; i++) write(to + i, numbers[i]);
}

inline float total(Floats numbers) {
#ifdef __AVX512F__
  return _mm512_reduce_add_ps(__m512(numbers));
#else
  float sum = 0;
  for (int i = 0; i < kLanes; i++) sum += numbers[i];
  return sum;
#endif
}

// exp for numbers of at most 0: a power of two times a polynomial of the rest, which is at most ln(2) / 2.
inline Floats exponential(Floats x) {
  for (int i = 0; i < kLanes; i++) x[i] = x[i] < -87.f ? -87.f : x[i];
  constexpr float kShift = 12582912.f;  // 1.5 * 2^23: adding it rounds to a whole number
  Floats whole = (x * 1.44269504f + kShift) - kShift;
  Floats rest = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln(2) in two parts
  Floats sum = rest * (1 / 720.f) + 1 / 120.f;
  for (float factor : {1 / 24.f, 1 / 6.f, 1 / 2.f, 1.f, 1.f}) sum = sum * rest + factor;
  Words bits;
  memcpy(&bits, &sum, sizeof bits);
  bits += Words(__builtin_convertvector(whole, Ints) << 23);
  memcpy(&sum, &bits, sizeof bits);
  return sum;
}

inline Floats silu(Floats x) {
  Floats power = exponential(x < 0 ? x : -x), ones = Floats{} + 1.f;  // of -|x|, which does not overflow
  return x * ((x < 0 ? power : ones) / (1 + power));
}

// `out[n]` becomes the product of row n of `weight` (N, width) with x (width).
template <int N>
inline void products(const float* weight, const float* x, int width, float* out) {
  Floats sums[N] = {};
  for (int i = 0; i < width; i += kLanes) {
    Floats numbers = load(x + i);
    for (int n = 0; n < N; n++) __builtin_prefetch(weight + size_t(n + kAhead) * width + i);
    for (int n = 0; n < N; n++) sums[n] += load(weight + size_t(n) * width + i) * numbers;
  }
  for (int n = 0; n < N; n++) out[n] = total(sums[n]);
}

template <int N>
inline void products(const Bfloat16* weight, const Bfloat16* x, int width, float* out) {
  Floats sums[N] = {};
  int i = 0;
#ifdef __AVX512BF16__
  for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
    __m512bh numbers = __m512bh(_mm512_loadu_si512(x + i));
    for (int n = 0; n < N; n++) __builtin_prefetch(weight + size_t(n + kAhead) * width + i);
    for (int n = 0; n < N; n++) {
      __m512bh row = __m512bh(_mm512_loadu_si512(weight + size_t(n) * width + i));
      sums[n] = Floats(_mm512_dpbf16_ps(__m512(sums[n]), row, numbers));
    }
  }
#endif
  for (; i < width; i += kLanes) {
    Floats numbers = load(x + i);
    for (int n = 0; n < N; n++) sums[n] += load(weight + size_t(n) * width + i) * numbers;
  }
  for (int n = 0; n < N; n++) out[n] = total(sums[n]);
}

struct Range {
  int begin, end;
};

// This thread's part of `count` things, in whole blocks.
inline Range share(int count, int block) {
  int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads(), blocks = (count + block - 1) / block;
  int begin = int(blocks * thread / threads) * block, end = int(blocks * (thread + 1) / threads) * block;
  return {begin < count ? begin : count, end < count ? end : count};
}

// Products of x (rows, width) with the outputs of `range`: `take(row, output, number)` is given each, rounded.
template <class T, class Take>
inline void linear(const void* weights, const void* biases, const T* x, int rows, int width, Range range, Take&& take) {
  const T *weight = (const T*)weights, *bias = (const T*)biases;
  float out[kBlock];
  for (int o = range.begin; o < range.end;) {
    int count = range.end - o >= kBlock ? kBlock : 1;
    for (int r = 0; r < rows; r++) {
      if (count == kBlock) {
        products<kBlock>(weight + size_t(o) * width, x + size_t(r) * width, width, out);
      } else {
        products<1>(weight + size_t(o) * width, x + size_t(r) * width, width, out);
      }
      for (int i = 0; i < count; i++) take(r, o + i, rounded<T>(out[i] + (bias ? read(bias[o + i]) : 0.f)));
    }
    o += count;
  }
}

// The RMS norm of x (width), which `out` may be.
template <class T>
inline void norm(const T* x, const void* gains, int width, float eps, T* out) {
  const T* gain = (const T*)gains;
  Floats squares = {};
  for (int i = 0; i < width; i += kLanes) squares += load(x + i) * load(x + i);
  float scale = 1 / std::sqrt(total(squares) / width + eps);
  for (int i = 0; i < width; i++) write(out + i, rounded<T>(read(x[i]) * scale) * read(gain[i]));
}

// The rotary embedding of x (width), in place.
template <class T>
inline void rotate(T* x, const float* cos, const float* sin, int width) {
  int half = width / 2;
  for (int i = 0; i < half; i++) {
    float first = read(x[i]), second = read(x[i + half]);
    write(x + i, rounded<T>(first * cos[i]) - rounded<T>(second * sin[i]));
    write(x + i + half, rounded<T>(second * cos[i + half]) + rounded<T>(first * sin[i + half]));
  }
}

// N vectors of the sum over t of weights[t] / sum times row t of `values` (count, width).
template <int N, class T>
inline void mix(const T* values, const float* weights, int count, int width, float sum, T* out) {
  Floats sums[N] = {};
  for (int t = 0; t < count; t++) {
    for (int n = 0; n < N; n++) sums[n] += load(values + size_t(t) * width + n * kLanes) * weights[t];
  }
  for (int n = 0; n < N; n++) store(out + n * kLanes, sums[n] / sum);
}

// Attention of one query (width) to `count` keys and values (count, width); `weights` holds count + kLanes numbers.
template <class T>
inline void attend(const T* query, const T* keys, const T* values, int count, int width, float* weights, T* out) {
  int t = 0;
  for (; t + kBlock <= count; t += kBlock) products<kBlock>(keys + size_t(t) * width, query, width, weights + t);
  for (; t < count; t++) products<1>(keys + size_t(t) * width, query, width, weights + t);
  float most = weights[0], scale = 1 / std::sqrt(float(width));
  for (t = 1; t < count; t++) most = weights[t] > most ? weights[t] : most;
  for (t = count; t % kLanes; t++) weights[t] = -1e30f;
  Floats sums = {};
  for (t = 0; t < count; t += kLanes) {
    Floats powers = exponential((load(weights + t) - most) * scale);
    memcpy(weights + t, &powers, sizeof powers);
    sums += powers;
  }
  float sum = total(sums);
  int d = 0;
  for (; d + kBlock * kLanes <= width; d += kBlock * kLanes) mix<kBlock>(values + d, weights, count, width, sum, out + d);
  for (; d < width; d += kLanes) mix<1>(values + d, weights, count, width, sum, out + d);
}

}  // namespace

extern "C" {

// Pointers are to numbers of the weights' precision; those of biases and of the norms of queries and keys may be null.
struct Layer {
  const void *qkv, *qkv_bias, *out, *out_bias, *gate_up, *gate_up_bias, *down, *down_bias;
  const void *before_mixer, *before_mlp, *query_norm, *key_norm;
  void* cache;  // (rows, 2, keys, length, width)
};

struct Decoder {
  int threads, rows, layers, hidden, inner, queries, keys, width, length, codes;
  float eps;
  const Layer* layer;
  const void *norm, *head, *head_bias;
  const int64_t* first;  // (rows): where a prompt begins after its padding
  void* scratch;         // (rows, 2 (queries + keys) width + 2 inner)
};

}  // extern "C"

namespace {

template <class T>
void advance(const Decoder& m, T* x, const float* cos, const float* sin, int at, T* states, T* last) {
  const int rows = m.rows, hidden = m.hidden, inner = m.inner, queries = m.queries, keys = m.keys, width = m.width;
  const int group = queries / keys, all = (queries + 2 * keys) * width;
  T* heads = (T*)m.scratch;                    // (rows, queries + 2 keys, width)
  T* mixed = heads + size_t(rows) * all;       // (rows, queries, width)
  T* acts = mixed + size_t(rows) * queries * width;  // (rows, inner)
  T* ups = acts + size_t(rows) * inner;              // (rows, inner)
#pragma omp parallel num_threads(m.threads)
  {
    std::vector<T> normed(size_t(rows) * hidden);
    std::vector<float> weights(size_t(m.length) + kLanes);
    auto norm_all = [&](const void* gain) {
      for (int r = 0; r < rows; r++) norm(x + size_t(r) * hidden, gain, hidden, m.eps, &normed[size_t(r) * hidden]);
    };
    auto add = [&](int r, int o, float number) {
      T* to = x + size_t(r) * hidden + o;
      write(to, read(*to) + number);
    };
    for (int l = 0; l < m.layers; l++) {
      const Layer& layer = m.layer[l];
      norm_all(layer.before_mixer);
      linear(layer.qkv, layer.qkv_bias, normed.data(), rows, hidden, share(all, kBlock),
             [&](int r, int o, float number) { write(heads + size_t(r) * all + o, number); });
#pragma omp barrier
      Range tasks = share(rows * keys, 1);
      for (int task = tasks.begin; task < tasks.end; task++) {
        int r = task / keys, k = task % keys, from = int(m.first[r]);
        T* row = heads + size_t(r) * all;
        auto turn = [&](T* head, const void* gain) {
          if (gain) norm(head, gain, width, m.eps, head);
          rotate(head, cos + size_t(r) * width, sin + size_t(r) * width, width);
        };
        T *key = row + size_t(queries + k) * width, *value = row + size_t(queries + keys + k) * width;
        T* seen_keys = (T*)layer.cache + (size_t(r) * 2 * keys + k) * m.length * width;
        T* seen_values = seen_keys + size_t(keys) * m.length * width;
        turn(key, layer.key_norm);
        memcpy(seen_keys + size_t(at) * width, key, width * sizeof(T));
        memcpy(seen_values + size_t(at) * width, value, width * sizeof(T));
        for (int q = k * group; q < (k + 1) * group; q++) {
          turn(row + size_t(q) * width, layer.query_norm);
          attend(row + size_t(q) * width, seen_keys + size_t(from) * width, seen_values + size_t(from) * width,
                 at + 1 - from, width, weights.data(), mixed + (size_t(r) * queries + q) * width);
        }
      }
#pragma omp barrier
      linear(layer.out, layer.out_bias, mixed, rows, queries * width, share(hidden, kBlock), add);
#pragma omp barrier
      norm_all(layer.before_mlp);
      Range mine = share(inner, kLanes);
      const T *gates = (const T*)layer.gate_up, *gate_biases = (const T*)layer.gate_up_bias;
      auto keep = [&](T* to) {
        return [=](int r, int o, float number) { write(to + size_t(r) * inner + o, number); };
      };
      linear(gates, gate_biases, normed.data(), rows, hidden, mine, keep(acts));
      linear(gates + size_t(inner) * hidden, gate_biases ? gate_biases + inner : nullptr, normed.data(), rows, hidden,
             mine, keep(ups));
      for (int r = 0; r < rows; r++) {
        for (int o = mine.begin; o < mine.end; o += kLanes) {
          T *act = acts + size_t(r) * inner + o, *up = ups + size_t(r) * inner + o;
          store(act, silu(load(act)));
          store(act, load(act) * load(up));
        }
      }
#pragma omp barrier
      linear(layer.down, layer.down_bias, acts, rows, inner, share(hidden, kBlock), add);
#pragma omp barrier
#pragma omp master
      if (states) memcpy(states + size_t(l) * rows * hidden, x, size_t(rows) * hidden * sizeof(T));
    }
#pragma omp master
    {
      norm_all(m.norm);
      memcpy(last, normed.data(), size_t(rows) * hidden * sizeof(T));
    }
  }
}

template <class T>
void scores(const Decoder& m, const T* hidden, T* out) {
#pragma omp parallel num_threads(m.threads)
  linear(m.head, m.head_bias, hidden, m.rows, m.hidden, share(m.codes, kBlock),
         [&](int r, int o, float number) { write(out + size_t(r) * m.codes + o, number); });
}

}  // namespace

extern "C" {

// x (rows, hidden), the embeddings of the next tokens at position `at`, become the states past all layers; `states`
// (layers, rows, hidden), where not null, those after each; `last` (rows, hidden) those past the norm.
// cos, sin: (rows, width).
void advance_bfloat16(const Decoder* m, void* x, const float* cos, const float* sin, int at, void* states, void* last) {
  advance(*m, (Bfloat16*)x, cos, sin, at, (Bfloat16*)states, (Bfloat16*)last);
}

void advance_float32(const Decoder* m, void* x, const float* cos, const float* sin, int at, void* states, void* last) {
  advance(*m, (float*)x, cos, sin, at, (float*)states, (float*)last);
}

// Products over the image ids (rows, codes) of last hidden states (rows, hidden).
void scores_bfloat16(const Decoder* m, const void* hidden, void* out) {
  scores(*m, (const Bfloat16*)hidden, (Bfloat16*)out);
}

void scores_float32(const Decoder* m, const void* hidden, void* out) {
  scores(*m, (const float*)hidden, (float*)out);
}

}  // extern "C"
