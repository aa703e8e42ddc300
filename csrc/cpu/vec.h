// A vector of floats of the width that the CPU level has. Part of a kernel body, compiled once per
// level (foreach_level.h): standard headers are included before.
#ifndef PVT_BODY_VEC
#define PVT_BODY_VEC

#if PVT_LEVEL >= PVT_LEVEL_AVX512
constexpr int kLanes = 16;
constexpr int kTileVecs = 4;  // 6 x 4 accumulators + 4 + 1 of 32 registers
#elif PVT_LEVEL == PVT_LEVEL_AVX2
constexpr int kLanes = 8;
constexpr int kTileVecs = 2;  // 6 x 2 accumulators + 2 + 1 of 16 registers
#else
constexpr int kLanes = 4;
constexpr int kTileVecs = 2;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));
typedef uint32_t UintVec __attribute__((vector_size(4 * kLanes)));
typedef int16_t ShortVec __attribute__((vector_size(4 * kLanes)));

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

inline void store(float* p, Vec v) {
  __builtin_memcpy(p, &v, sizeof v);
}

inline Vec broadcast(float x) {
#if PVT_LEVEL >= PVT_LEVEL_AVX512
  return (Vec)_mm512_set1_ps(x);
#elif PVT_LEVEL == PVT_LEVEL_AVX2
  return (Vec)_mm256_set1_ps(x);
#else
  return Vec{x, x, x, x};
#endif
}

// a * b + c, rounded once where the level has fused multiply-add.
inline Vec fmadd(Vec a, Vec b, Vec c) {
#if PVT_LEVEL >= PVT_LEVEL_AVX512
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif PVT_LEVEL == PVT_LEVEL_AVX2
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// sum += a * b   and, for 16-bit integers, sum += the products of the lanes' pairs
//
// For loops with as many sums as there are registers. Written as instructions, each is done when
// its turn comes and its sum stays where it is; GCC 12, left to itself, begins more products at
// once than it has registers for. (In a test the wider instructions may be emulated.)
#if PVT_LEVEL == PVT_LEVEL_AVX2
#define PVT_REGISTER "x"
#elif PVT_LEVEL >= PVT_LEVEL_AVX512 && !defined(PVT_EMULATED_AVX512)
#define PVT_REGISTER "v"
#endif

inline void accumulate(Vec a, Vec b, Vec& sum) {
#if defined(PVT_REGISTER)
  asm volatile("vfmadd231ps %2, %1, %0" : "+" PVT_REGISTER(sum) : PVT_REGISTER(a), PVT_REGISTER(b));
#else
  sum = fmadd(a, b, sum);
#endif
}

#if PVT_LEVEL >= PVT_LEVEL_AVX2
inline void accumulate_pairs(Vec a, Vec b, IntVec& sum) {
#if defined(PVT_REGISTER)
  Vec product;
  asm volatile("vpmaddwd %3, %2, %1\n\tvpaddd %1, %0, %0"
               : "+" PVT_REGISTER(sum), "=&" PVT_REGISTER(product)
               : PVT_REGISTER(a), PVT_REGISTER(b));
#else
  sum += (IntVec)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#endif
}
#endif

#undef PVT_REGISTER

// All bits of the first `count` lanes.
inline IntVec lanes_before(int64_t count) {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) {
    lane[i] = i;
  }
  return lane < static_cast<int32_t>(count);
}

// The first `count` lanes of v, `other` in the rest.
inline Vec first_lanes(Vec v, int64_t count, float other) {
  return lanes_before(count) ? v : broadcast(other);
}

// A NaN in b is kept, as torch's max does.
inline Vec max(Vec a, Vec b) {
  return a > b ? a : b;
}

typedef float Quad __attribute__((vector_size(16)));

// Lanes a, b, c, d of the eight in x and y.
template <int a, int b, int c, int d>
inline Quad shuffle(Quad x, Quad y) {
#if defined(__clang__)
  return __builtin_shufflevector(x, y, a, b, c, d);
#else
  typedef int32_t Index __attribute__((vector_size(16)));
  return __builtin_shuffle(x, y, Index{a, b, c, d});
#endif
}

// The sums of every fourth lane.
inline Quad fold(Vec v) {
  Quad parts[kLanes / 4];
  __builtin_memcpy(parts, &v, sizeof v);
  for (int i = 1; i < kLanes / 4; ++i) {
    parts[0] += parts[i];
  }
  return parts[0];
}

// Both reductions fold the vector to four lanes, then those in order: the same order at every call.
inline float reduce_add(Vec v) {
  const Quad sums = fold(v);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// The same of four vectors at once.
inline Quad reduce_add_four(const Vec* v) {
  const Quad a = fold(v[0]), b = fold(v[1]), c = fold(v[2]), d = fold(v[3]);
  const Quad ab = shuffle<0, 4, 1, 5>(a, b) + shuffle<2, 6, 3, 7>(a, b);
  const Quad cd = shuffle<0, 4, 1, 5>(c, d) + shuffle<2, 6, 3, 7>(c, d);
  return shuffle<0, 1, 4, 5>(ab, cd) + shuffle<2, 3, 6, 7>(ab, cd);
}

inline float reduce_max(Vec v) {
  Quad parts[kLanes / 4];
  __builtin_memcpy(parts, &v, sizeof v);
  for (int i = 1; i < kLanes / 4; ++i) {
    parts[0] = parts[0] > parts[i] ? parts[0] : parts[i];
  }
  float best = parts[0][0];
  for (int i = 1; i < 4; ++i) {
    best = best > parts[0][i] ? best : parts[0][i];
  }
  return best;
}

// The lanes' sum modulo 2^32.
inline uint32_t reduce_add(UintVec v) {
  typedef uint32_t Quad __attribute__((vector_size(16)));
  Quad parts[kLanes / 4];
  __builtin_memcpy(parts, &v, sizeof v);
  for (int i = 1; i < kLanes / 4; ++i) {
    parts[0] += parts[i];
  }
  return (parts[0][0] + parts[0][1]) + (parts[0][2] + parts[0][3]);
}

// The largest lane of the bits of floats without sign: the largest float, or NaN if there is one.
inline float reduce_max_bits(IntVec v) {
  typedef int32_t Quad __attribute__((vector_size(16)));
  Quad parts[kLanes / 4];
  __builtin_memcpy(parts, &v, sizeof v);
  for (int i = 1; i < kLanes / 4; ++i) {
    parts[0] = parts[0] > parts[i] ? parts[0] : parts[i];
  }
  int32_t bits = parts[0][0];
  for (int i = 1; i < 4; ++i) {
    bits = bits > parts[0][i] ? bits : parts[0][i];
  }
  float largest;
  __builtin_memcpy(&largest, &bits, sizeof largest);
  return largest;
}

//   x = n + f, |f| <= 1/2;  2^x = 2^n (1 + f Q(f)), the coefficients of Q lowest power first
template <int kCount>
inline Vec exp2_nonpositive(Vec x, const float (&coefficients)[kCount]) {
  // Adding it rounds to an integer n and leaves n + 127, the exponent of 2^n, in the lowest bits.
  constexpr float kRound = 12582912.f + 127.f;
  const Vec lowest = broadcast(-127.f);  // whose exponent is that of zero
  const Vec clamped = max(lowest, x);
  const Vec shifted = clamped + kRound;
  const Vec f = clamped - (shifted - kRound);
  Vec q = broadcast(coefficients[kCount - 1]);
  for (int i = kCount - 2; i >= 0; --i) {
    q = fmadd(q, f, broadcast(coefficients[i]));
  }
  return fmadd(q, f, broadcast(1.f)) * (Vec)((IntVec)shifted << 23);
}

// 2^x for x <= 0 (or barely above), within 1.5 units in the last place; 0 from x = -126.5 down, NaN
// for NaN.
inline Vec exp2_nonpositive(Vec x) {
  return exp2_nonpositive(x, kExp2Q);
}

// The same within 2400 units in the last place, of which rounding to bfloat16 adds up to 32768.
inline Vec coarse_exp2_nonpositive(Vec x) {
  return exp2_nonpositive(x, kCoarseExp2Q);
}

#endif  // PVT_BODY_VEC
