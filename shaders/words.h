// Words of a row: how they are read, computed with and written.
//
// A row is cut into words of 16 bytes (4 float32 or 8 16-bit elements). Word w belongs to thread
// w % threads, so neighbouring threads touch neighbouring memory. Only `Access` knows whether a
// word is moved at once or element by element: everything computed from it, and so every bit of
// the result, is the same for both.
#pragma once

#include <metal_stdlib>

#include "abi.h"

using namespace metal;
using namespace mlxnorm;

// A product and a sum that one kernel rounds apart and another in one step would break the promise
// that fused and single ops give equal bits. Where one rounding is wanted, fma is written out.
#pragma METAL fp contract(off)
#pragma STDC FP_CONTRACT OFF

// ---- elements --------------------------------------------------------------------------------

template <typename T>
struct Element;

template <>
struct Element<float> {
  typedef uint bits;
  enum { kPerWord = 4 };

  static METAL_FUNC void unpack(uint4 word, thread float* v) {
    v[0] = as_type<float>(word.x);
    v[1] = as_type<float>(word.y);
    v[2] = as_type<float>(word.z);
    v[3] = as_type<float>(word.w);
  }
  static METAL_FUNC uint4 pack(thread const float* v) {
    return uint4(as_type<uint>(v[0]), as_type<uint>(v[1]), as_type<uint>(v[2]),
                 as_type<uint>(v[3]));
  }
  static METAL_FUNC float rounded(float v) { return v; }
};

template <>
struct Element<half> {
  typedef ushort bits;
  enum { kPerWord = 8 };

  static METAL_FUNC void unpack_pair(uint pair, thread float* v) {
    const half2 h = as_type<half2>(pair);
    v[0] = float(h.x);
    v[1] = float(h.y);
  }
  static METAL_FUNC uint pack_pair(thread const float* v) {
    return as_type<uint>(half2(half(v[0]), half(v[1])));
  }
  static METAL_FUNC float rounded(float v) { return float(half(v)); }
  static METAL_FUNC void unpack(uint4 word, thread float* v) {
    unpack_pair(word.x, v);
    unpack_pair(word.y, v + 2);
    unpack_pair(word.z, v + 4);
    unpack_pair(word.w, v + 6);
  }
  static METAL_FUNC uint4 pack(thread const float* v) {
    return uint4(pack_pair(v), pack_pair(v + 2), pack_pair(v + 4), pack_pair(v + 6));
  }
};

template <>
struct Element<bfloat> {
  typedef ushort bits;
  enum { kPerWord = 8 };

  static METAL_FUNC void unpack_pair(uint pair, thread float* v) {
    v[0] = as_type<float>(pair << 16);
    v[1] = as_type<float>(pair & 0xffff0000u);
  }
  static METAL_FUNC uint pack_pair(thread const float* v) {
    return uint(as_type<ushort>(bfloat(v[0]))) | (uint(as_type<ushort>(bfloat(v[1]))) << 16);
  }
  static METAL_FUNC float rounded(float v) { return float(bfloat(v)); }
  static METAL_FUNC void unpack(uint4 word, thread float* v) {
    unpack_pair(word.x, v);
    unpack_pair(word.y, v + 2);
    unpack_pair(word.z, v + 4);
    unpack_pair(word.w, v + 6);
  }
  static METAL_FUNC uint4 pack(thread const float* v) {
    return uint4(pack_pair(v), pack_pair(v + 2), pack_pair(v + 4), pack_pair(v + 6));
  }
};

// ---- words in memory -------------------------------------------------------------------------

// kVector: the row starts on a boundary of what is moved at once, a word or half of one, and dim
// fills the last.
template <typename T, bool kVector>
struct Access;

template <typename T>
struct Access<T, true> {
  static METAL_FUNC uint4 load(device const T* row, uint word, uint /*dim*/) {
    return reinterpret_cast<device const uint4*>(row)[word];
  }
  static METAL_FUNC uint4 load_half(device const T* row, uint half_word, uint /*dim*/) {
    return uint4(reinterpret_cast<device const uint2*>(row)[half_word], 0, 0);
  }
  static METAL_FUNC void store(device T* row, uint word, uint /*dim*/, uint4 value) {
    reinterpret_cast<device uint4*>(row)[word] = value;
  }
};

// Elements past dim read as zero and are not written.
template <typename T>
struct Access<T, false> {
  typedef typename Element<T>::bits Bits;
  enum { kPerWord = Element<T>::kPerWord, kPerUint = kPerWord / 4, kBits = 32 / kPerUint };

  static METAL_FUNC uint load_uint(device const Bits* row, uint first, uint dim) {
    uint value = 0;
#pragma unroll
    for (int i = 0; i < kPerUint; ++i) {
      if (first + i < dim) {
        value |= uint(row[first + i]) << (i * kBits);
      }
    }
    return value;
  }
  static METAL_FUNC void store_uint(device Bits* row, uint first, uint dim, uint value) {
#pragma unroll
    for (int i = 0; i < kPerUint; ++i) {
      if (first + i < dim) {
        row[first + i] = Bits(value >> (i * kBits));
      }
    }
  }
  static METAL_FUNC uint4 load(device const T* row, uint word, uint dim) {
    device const Bits* bits = reinterpret_cast<device const Bits*>(row);
    const uint first = word * kPerWord;
    return uint4(load_uint(bits, first, dim), load_uint(bits, first + kPerUint, dim),
                 load_uint(bits, first + 2 * kPerUint, dim),
                 load_uint(bits, first + 3 * kPerUint, dim));
  }
  static METAL_FUNC uint4 load_half(device const T* row, uint half_word, uint dim) {
    device const Bits* bits = reinterpret_cast<device const Bits*>(row);
    const uint first = half_word * (kPerWord / 2);
    return uint4(load_uint(bits, first, dim), load_uint(bits, first + kPerUint, dim), 0, 0);
  }
  static METAL_FUNC void store(device T* row, uint word, uint dim, uint4 value) {
    device Bits* bits = reinterpret_cast<device Bits*>(row);
    const uint first = word * kPerWord;
    store_uint(bits, first, dim, value.x);
    store_uint(bits, first + kPerUint, dim, value.y);
    store_uint(bits, first + 2 * kPerUint, dim, value.z);
    store_uint(bits, first + 3 * kPerUint, dim, value.w);
  }
};

// ---- values ----------------------------------------------------------------------------------

// One word of T, as floats.
template <typename T>
struct ValuesOf {
  float v[Element<T>::kPerWord];

  template <typename U>
  METAL_FUNC ValuesOf rounded_as() const {
    ValuesOf result;
#pragma unroll
    for (int i = 0; i < Element<T>::kPerWord; ++i) {
      result.v[i] = Element<U>::rounded(v[i]);
    }
    return result;
  }
};

template <typename T>
METAL_FUNC ValuesOf<T> splat(float value) {
  ValuesOf<T> result;
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    result.v[i] = value;
  }
  return result;
}

template <typename T>
METAL_FUNC ValuesOf<T> operator+(ValuesOf<T> a, ValuesOf<T> b) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] += b.v[i];
  }
  return a;
}
template <typename T>
METAL_FUNC ValuesOf<T> operator+(ValuesOf<T> a, float b) {
  return a + splat<T>(b);
}
template <typename T>
METAL_FUNC ValuesOf<T> operator-(ValuesOf<T> a, ValuesOf<T> b) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] -= b.v[i];
  }
  return a;
}
template <typename T>
METAL_FUNC ValuesOf<T> operator-(ValuesOf<T> a) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] = -a.v[i];
  }
  return a;
}
// (-b, a) for each pair (a, b) of neighbours.
template <typename T>
METAL_FUNC ValuesOf<T> quarter_turn(ValuesOf<T> a) {
  ValuesOf<T> result;
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; i += 2) {
    result.v[i] = -a.v[i + 1];
    result.v[i + 1] = a.v[i];
  }
  return result;
}
template <typename T>
METAL_FUNC ValuesOf<T> operator*(ValuesOf<T> a, ValuesOf<T> b) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] *= b.v[i];
  }
  return a;
}
template <typename T>
METAL_FUNC ValuesOf<T> operator*(ValuesOf<T> a, float b) {
  return a * splat<T>(b);
}
template <typename T>
METAL_FUNC ValuesOf<T> operator/(ValuesOf<T> a, ValuesOf<T> b) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] /= b.v[i];
  }
  return a;
}
template <typename T>
METAL_FUNC ValuesOf<T> operator/(float a, ValuesOf<T> b) {
  return splat<T>(a) / b;
}
template <typename T>
METAL_FUNC ValuesOf<T> exp_of_negative(ValuesOf<T> a) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] = metal::precise::exp(-a.v[i]);
  }
  return a;
}
template <typename T>
METAL_FUNC ValuesOf<T> tanh(ValuesOf<T> a) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    a.v[i] = metal::precise::tanh(a.v[i]);
  }
  return a;
}
template <typename T>
METAL_FUNC ValuesOf<T> fma(float a, ValuesOf<T> b, ValuesOf<T> c) {
#pragma unroll
  for (int i = 0; i < Element<T>::kPerWord; ++i) {
    c.v[i] = metal::fma(a, b.v[i], c.v[i]);
  }
  return c;
}
