// A warp on a CPU: what has a value per lane is an array of 32. The same operations as
// csrc/cuda/device_warp.h, so that the tests run the very source of the CUDA kernels.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <set>
#include <stdexcept>
#include <type_traits>

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "cuda/device.h"

namespace pvt::cuda {

template <class Value>
struct Lanes {
  std::array<Value, kLanes> lane{};

  Lanes() = default;
  Lanes(Value value) { lane.fill(value); }
  template <class Other>
  Lanes(const Lanes<Other>& other) {
    for (int l = 0; l < kLanes; ++l)
      lane[l] = other.lane[l];
  }
  Value& operator[](int l) { return lane[l]; }
  Value operator[](int l) const { return lane[l]; }
};

template <class Value>
struct IsLanes : std::false_type {};
template <class Value>
struct IsLanes<Lanes<Value>> : std::true_type {};

template <class Value>
auto value_of(const Value& value, int) {
  return value;
}
template <class Value>
auto value_of(const Lanes<Value>& value, int lane) {
  return value[lane];
}

template <class Function, class... Args>
auto map_lanes(const Function& function, const Args&... args) {
  Lanes<decltype(function(value_of(args, 0)...))> result;
  for (int l = 0; l < kLanes; ++l)
    result[l] = function(value_of(args, l)...);
  return result;
}

#define PVT_LANE_OPERATOR(op)                                                                   \
  template <class A, class B, class = std::enable_if_t<IsLanes<A>::value || IsLanes<B>::value>> \
  auto operator op(const A& a, const B& b) {                                                    \
    return map_lanes([](auto x, auto y) { return x op y; }, a, b);                              \
  }
PVT_LANE_OPERATOR(+)
PVT_LANE_OPERATOR(-)
PVT_LANE_OPERATOR(*)
PVT_LANE_OPERATOR(/)
PVT_LANE_OPERATOR(%)
PVT_LANE_OPERATOR(&)
PVT_LANE_OPERATOR(^)
PVT_LANE_OPERATOR(<<)
PVT_LANE_OPERATOR(>>)
PVT_LANE_OPERATOR(<)
PVT_LANE_OPERATOR(&&)
#undef PVT_LANE_OPERATOR
template <class A, class = std::enable_if_t<IsLanes<A>::value>>
auto operator-(const A& a) {
  return map_lanes([](auto x) { return -x; }, a);
}

// The 16-bit type that a tag of the kernels stands for.
template <class scalar_t>
using Number = std::conditional_t<std::is_same_v<scalar_t, BFloat16>, torch::headeronly::BFloat16,
                                  torch::headeronly::Half>;

template <class scalar_t>
uint16_t to_bits(float value) {
  const Number<scalar_t> number(value);
  uint16_t bits;
  std::memcpy(&bits, &number, 2);
  return bits;
}
template <class scalar_t>
float from_bits(uint16_t bits) {
  Number<scalar_t> number;
  std::memcpy(&number, &bits, 2);
  return static_cast<float>(number);
}

// Memory transactions of a warp that meet a bank of shared memory twice, in this thread.
inline thread_local int64_t bank_conflicts = 0;

// `addresses`: those that one transaction serves, `width` bytes each.
template <class Addresses>
void count_bank_conflicts(const Addresses& addresses, int width) {
  std::set<uintptr_t> words[32];
  for (const char* address : addresses) {
    for (int byte = 0; byte < width; byte += 4) {
      const uintptr_t word = (reinterpret_cast<uintptr_t>(address) + byte) / 4;
      words[word % 32].insert(word);
    }
  }
  for (const auto& bank : words)
    bank_conflicts += bank.size() > 1;
}

inline void check_aligned(const void* address, int width) {
  if (reinterpret_cast<uintptr_t>(address) % width != 0) {
    throw std::runtime_error("an access of a CUDA kernel is not aligned");
  }
}

struct HostWarp {
  using Float = Lanes<float>;
  using Word = Lanes<uint32_t>;
  using Index = Lanes<int>;
  using Offset = Lanes<int64_t>;
  using Mask = Lanes<bool>;
  struct Vector {
    Word word[4];
  };

  static Index lane() {
    Index result;
    for (int l = 0; l < kLanes; ++l)
      result[l] = l;
    return result;
  }

  static Float fma(const Float& a, const Float& b, const Float& c) {
    return map_lanes([](float x, float y, float z) { return std::fma(x, y, z); }, a, b, c);
  }
  static Float max(const Float& a, const Float& b) {
    return map_lanes([](float x, float y) { return std::fmax(x, y); }, a, b);
  }
  static Float abs(const Float& a) {
    return map_lanes([](float x) { return std::fabs(x); }, a);
  }
  static Float exp2(const Float& a) {
    return map_lanes([](float x) { return std::exp2(x); }, a);
  }
  static Float rsqrt(const Float& a) {
    return map_lanes([](float x) { return 1 / std::sqrt(x); }, a);
  }
  static Float reciprocal(const Float& a) {
    return map_lanes([](float x) { return 1 / x; }, a);
  }
  template <class Value>
  static Lanes<Value> select(const Mask& mask, const Lanes<Value>& a, const Lanes<Value>& b) {
    return map_lanes([](bool m, Value x, Value y) { return m ? x : y; }, mask, a, b);
  }
  template <class Value>
  static Lanes<Value> exchange(const Lanes<Value>& value, int bits) {
    Lanes<Value> result;
    for (int l = 0; l < kLanes; ++l)
      result[l] = value[l ^ bits];
    return result;
  }

  template <class scalar_t>
  static Word pack(const Float& low, const Float& high) {
    return map_lanes(
        [](float a, float b) {
          return to_bits<scalar_t>(a) | static_cast<uint32_t>(to_bits<scalar_t>(b)) << 16;
        },
        low, high);
  }
  template <class scalar_t>
  static Float low(const Word& word) {
    return map_lanes([](uint32_t w) { return from_bits<scalar_t>(w & 0xffff); }, word);
  }
  template <class scalar_t>
  static Float high(const Word& word) {
    return map_lanes([](uint32_t w) { return from_bits<scalar_t>(w >> 16); }, word);
  }

  // PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type".
  template <class scalar_t>
  static void mma(Float (&d)[4], const Word (&a)[4], const Word& b0, const Word& b1,
                  const Float (&c)[4]) {
    float A[16][16], B[16][8];
    const auto number = [](uint32_t word, int e) {
      return from_bits<scalar_t>(e == 0 ? word & 0xffff : word >> 16);
    };
    for (int l = 0; l < kLanes; ++l) {
      const int g = l / 4, t = l % 4;
      for (int e = 0; e < 2; ++e) {
        for (int i = 0; i < 4; ++i)
          A[g + i % 2 * 8][2 * t + i / 2 * 8 + e] = number(a[i][l], e);
        B[2 * t + e][g] = number(b0[l], e);
        B[2 * t + 8 + e][g] = number(b1[l], e);
      }
    }
    for (int l = 0; l < kLanes; ++l) {
      for (int i = 0; i < 4; ++i) {
        const int row = l / 4 + i / 2 * 8, column = l % 4 * 2 + i % 2;
        float sum = c[i][l];
        for (int k = 0; k < 16; ++k)
          sum += A[row][k] * B[k][column];
        d[i][l] = sum;
      }
    }
  }

  static void forget_loads() {}
  static int opaque(int value) { return value; }

  static Vector load(const void* base, const Offset& offset, const Mask& mask) {
    Vector result;
    for (int l = 0; l < kLanes; ++l) {
      uint32_t words[4] = {};
      if (mask[l]) {
        check_aligned(static_cast<const char*>(base) + offset[l], kVector);
        std::memcpy(words, static_cast<const char*>(base) + offset[l], kVector);
      }
      for (int i = 0; i < 4; ++i)
        result.word[i][l] = words[i];
    }
    return result;
  }
  static Word load_16_bits(const void* base, const Offset& offset, const Mask& mask) {
    Word result;
    for (int l = 0; l < kLanes; ++l) {
      uint16_t bits = 0;
      if (mask[l]) {
        check_aligned(static_cast<const char*>(base) + offset[l], 2);
        std::memcpy(&bits, static_cast<const char*>(base) + offset[l], 2);
      }
      result[l] = bits;
    }
    return result;
  }
  static void load_two(const void* base, const Offset& offset, Word& first, Word& second,
                       const Mask& mask) {
    for (int l = 0; l < kLanes; ++l) {
      uint32_t words[2] = {};
      if (mask[l]) {
        check_aligned(static_cast<const char*>(base) + offset[l], 8);
        std::memcpy(words, static_cast<const char*>(base) + offset[l], 8);
      }
      first[l] = words[0], second[l] = words[1];
    }
  }
  static void store(void* base, const Offset& offset, const Vector& v, const Mask& mask) {
    for (int l = 0; l < kLanes; ++l) {
      if (mask[l]) {
        char* const address = static_cast<char*>(base) + offset[l];
        check_aligned(address, kVector);
        for (int i = 0; i < 4; ++i) {
          const uint32_t word = v.word[i][l];
          std::memcpy(address + 4 * i, &word, 4);
        }
      }
    }
  }
  static void count_vector_conflicts(const char* base, const Index& offset) {
    for (int first = 0; first < kLanes; first += 8) {  // eight lanes to a transaction
      std::array<const char*, 8> addresses;
      for (int l = 0; l < 8; ++l)
        addresses[l] = base + offset[first + l];
      count_bank_conflicts(addresses, kVector);
    }
  }
  static Vector load_shared(const char* base, const Index& offset) {
    count_vector_conflicts(base, offset);
    return load(base, offset, Mask(true));
  }
  static void store_shared(char* base, const Index& offset, const Vector& v) {
    count_vector_conflicts(base, offset);
    store(base, offset, v, Mask(true));
  }
  static Vector load_shared_transposed(const char* base, const Index& offset) {
    const Vector rows = load_shared(base, offset);  // of lane 8 m + r: row r of matrix m
    Vector result;
    for (int l = 0; l < kLanes; ++l) {
      const int g = l / 4, t = l % 4;
      const auto number = [&](int m, int row) {
        return rows.word[g / 2][8 * m + row] >> (g % 2 * 16) & 0xffff;
      };
      for (int m = 0; m < 4; ++m) {
        result.word[m][l] = number(m, 2 * t) | number(m, 2 * t + 1) << 16;
      }
    }
    return result;
  }
  static void load_floats(const float* base, const Offset& index, Float (&out)[4],
                          const Mask& mask = true) {
    for (int l = 0; l < kLanes; ++l) {
      if (mask[l])
        check_aligned(base + index[l], kVector);
      for (int i = 0; i < 4; ++i)
        out[i][l] = mask[l] ? base[index[l] + i] : 0.f;
    }
  }
  static void store_floats(float* base, const Offset& index, const Float (&v)[4],
                           const Mask& mask) {
    for (int l = 0; l < kLanes; ++l) {
      if (!mask[l])
        continue;
      check_aligned(base + index[l], kVector);
      for (int i = 0; i < 4; ++i)
        base[index[l] + i] = v[i][l];
    }
  }
};

}  // namespace pvt::cuda
