// A warp of the GPU: what has a value per lane is a plain scalar here, since a thread is a lane.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/device.h"

namespace pvt::cuda {

struct DeviceWarp {
  using Float = float;
  using Word = uint32_t;  // two 16-bit numbers
  using Index = int;
  using Offset = int64_t;
  using Mask = bool;
  struct Vector {
    uint32_t word[4];
  };

  static PVT_DEVICE Index lane() { return static_cast<int>(threadIdx.x) % kLanes; }

  // ---- arithmetic ----

  static PVT_DEVICE Float fma(Float a, Float b, Float c) { return fmaf(a, b, c); }
  static PVT_DEVICE Float max(Float a, Float b) { return fmaxf(a, b); }
  static PVT_DEVICE Float abs(Float a) { return fabsf(a); }
  static PVT_DEVICE Float exp2(Float a) {
    Float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(a));
    return result;
  }
  static PVT_DEVICE Float rsqrt(Float a) { return rsqrtf(a); }
  static PVT_DEVICE Float reciprocal(Float a) { return __frcp_rn(a); }

  // ---- floats or words ----

  template <class Value>
  static PVT_DEVICE Value select(Mask mask, Value a, Value b) {
    return mask ? a : b;
  }
  // The value of the lane whose number differs in the bits of `bits`.
  template <class Value>
  static PVT_DEVICE Value exchange(Value value, int bits) {
    return __shfl_xor_sync(0xffffffffu, value, bits);
  }

  // ---- 16-bit numbers ----

  template <class scalar_t>
  static PVT_DEVICE Word pack(Float low, Float high) {
    Word word;
    if constexpr (std::is_same_v<scalar_t, BFloat16>) {
      asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    } else {
      asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    }
    return word;
  }
  template <class scalar_t>
  static PVT_DEVICE Float low(Word word) {
    if constexpr (std::is_same_v<scalar_t, BFloat16>) {
      return __uint_as_float(word << 16);
    } else {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(word)));
    }
  }
  template <class scalar_t>
  static PVT_DEVICE Float high(Word word) {
    if constexpr (std::is_same_v<scalar_t, BFloat16>) {
      return __uint_as_float(word & 0xffff0000u);
    } else {
      return __half2float(__ushort_as_half(static_cast<unsigned short>(word >> 16)));
    }
  }

  // ---- matrix products ----

  // d [16, 8] = a [16, 16] b [16, 8] + c, in the registers of PTX's mma.m16n8k16; c may be d.
  template <class scalar_t>
  static PVT_DEVICE void mma(Float (&d)[4], const Word (&a)[4], Word b0, Word b1,
                             const Float (&c)[4]) {
    if constexpr (std::is_same_v<scalar_t, BFloat16>) {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
            "f"(c[2]), "f"(c[3]));
    } else {
      asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
          "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
          : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
          : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(c[0]), "f"(c[1]),
            "f"(c[2]), "f"(c[3]));
    }
  }

  // ---- memory; offsets are in bytes ----

  // What was loaded before is loaded again, rather than kept in registers.
  static PVT_DEVICE void forget_loads() { asm volatile("" ::: "memory"); }

  // The same number, of which the compiler knows nothing: what follows from it is computed after
  // this, rather than kept in registers from before.
  static PVT_DEVICE int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
  }

  // 16 bytes per lane; zeros where the mask is off.
  static PVT_DEVICE Vector load(const void* base, Offset offset, Mask mask) {
    uint4 v = make_uint4(0, 0, 0, 0);
    if (mask) {
      v = *reinterpret_cast<const uint4*>(static_cast<const char*>(base) + offset);
    }
    return {v.x, v.y, v.z, v.w};
  }
  // One 16-bit number per lane, the low half of the word.
  static PVT_DEVICE Word load_16_bits(const void* base, Offset offset, Mask mask) {
    return mask ? *reinterpret_cast<const uint16_t*>(static_cast<const char*>(base) + offset) : 0;
  }
  // Two words per lane, 8 bytes; zeros where the mask is off.
  static PVT_DEVICE void load_two(const void* base, Offset offset, Word& first, Word& second,
                                  Mask mask) {
    uint2 v = make_uint2(0, 0);
    if (mask) {
      v = *reinterpret_cast<const uint2*>(static_cast<const char*>(base) + offset);
    }
    first = v.x, second = v.y;
  }
  static PVT_DEVICE void store(void* base, Offset offset, const Vector& v, Mask mask) {
    if (mask) {
      *reinterpret_cast<uint4*>(static_cast<char*>(base) + offset) =
          make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
    }
  }
  static PVT_DEVICE Vector load_shared(const char* base, Index offset) {
    const uint4 v = *reinterpret_cast<const uint4*>(base + offset);
    return {v.x, v.y, v.z, v.w};
  }
  static PVT_DEVICE void store_shared(char* base, Index offset, const Vector& v) {
    *reinterpret_cast<uint4*>(base + offset) =
        make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
  }
  // Four 8 x 8 matrices of 16-bit numbers, transposed: lane 8 m + r says where row r of matrix m
  // lies, and lane 4 g + t gets column g of its rows 2 t and 2 t + 1 as word m.
  static PVT_DEVICE Vector load_shared_transposed(const char* base, Index offset) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(base + offset));
    Vector v;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
                 : "r"(address)
                 : "memory");
    return v;
  }
  // Four floats per lane, from shared or global memory; zeros where the mask is off.
  template <class Offset_>
  static PVT_DEVICE void load_floats(const float* base, Offset_ index, Float (&out)[4],
                                     Mask mask = true) {
    float4 v = make_float4(0.f, 0.f, 0.f, 0.f);
    if (mask) {
      v = *reinterpret_cast<const float4*>(base + index);
    }
    out[0] = v.x, out[1] = v.y, out[2] = v.z, out[3] = v.w;
  }
  static PVT_DEVICE void store_floats(float* base, Offset index, const Float (&v)[4], Mask mask) {
    if (mask) {
      *reinterpret_cast<float4*>(base + index) = make_float4(v[0], v[1], v[2], v[3]);
    }
  }
};

}  // namespace pvt::cuda
