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
  static METAL_FUNC void round_pair(thread float* /*v*/) {}
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
    return as_type<uint>(half2(float2(v[0], v[1])));
  }
  static METAL_FUNC float rounded(float v) { return float(half(v)); }
  static METAL_FUNC void round_pair(thread float* v) { unpack_pair(pack_pair(v), v); }
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
    return as_type<uint>(bfloat2(float2(v[0], v[1])));
  }
  static METAL_FUNC float rounded(float v) { return float(bfloat(v)); }
  static METAL_FUNC void round_pair(thread float* v) { unpack_pair(pack_pair(v), v); }
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

// What lies beside words that neighbouring threads store together: do others store what comes
// before and after them, and the word that comes next.
struct Beside {
  bool before, after;
  uint4 next;
};

// kVector: the row starts on a boundary of what is moved at once, a word or half of one, and dim
// fills the last.
template <typename T, bool kVector>
struct Access;

template <typename T>
struct Access<T, true> {
  static METAL_FUNC uint4 load(device const T* row, uint word, uint /*dim*/) {
    return reinterpret_cast<device const uint4*>(row)[word];
  }
  // A part of kCount elements as the first ones of a word.
  template <int kCount>
  static METAL_FUNC uint4 load_part(device const T* row, uint part, uint dim) {
    enum { kUints = kCount * 4 / int(Element<T>::kPerWord) };
    if (kUints == 1) {
      return uint4(reinterpret_cast<device const uint*>(row)[part], 0, 0, 0);
    }
    if (kUints == 2) {
      return uint4(reinterpret_cast<device const uint2*>(row)[part], 0, 0);
    }
    return load(row, part, dim);
  }
  static METAL_FUNC void store(device T* row, uint word, uint /*dim*/, uint4 value) {
    reinterpret_cast<device uint4*>(row)[word] = value;
  }
};

// Of the 32 bytes of a and b those that come after the first `skipped`, an even number up to 14.
METAL_FUNC uint4 joined(uint4 a, uint4 b, uint skipped) {
  if ((skipped & 8) != 0) {
    a = uint4(a.z, a.w, b.x, b.y);
    b = uint4(b.z, b.w, 0, 0);
  }
  if ((skipped & 4) != 0) {
    a = uint4(a.y, a.z, a.w, b.x);
    b.x = b.y;
  }
  if ((skipped & 2) != 0) {
    a = uint4(a.x >> 16 | a.y << 16, a.y >> 16 | a.z << 16, a.z >> 16 | a.w << 16,
              a.w >> 16 | b.x << 16);
  }
  return a;
}

// A row that begins anywhere. Elements past dim read as zero and are not written. What can be is
// moved by words that start on a boundary, within the row: a word of the row is cut out of two of
// them, and each of them that is written is made of the words of two neighbouring threads.
template <typename T>
struct Access<T, false> {
  typedef typename Element<T>::bits Bits;
  enum { kPerWord = Element<T>::kPerWord, kPerUint = kPerWord / 4, kBits = 32 / kPerUint };
  enum { kSize = kWordBytes / kPerWord };

  // Bytes from the boundary before.
  static METAL_FUNC uint misalignment(device const T* row) {
    return uint(reinterpret_cast<ulong>(row)) % kWordBytes;
  }
  static METAL_FUNC device const uint4* words_at(device const T* first) {
    return reinterpret_cast<device const uint4*>(first);
  }

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
  static METAL_FUNC uint4 load(device const T* row, uint word, uint dim) {
    const uint first = word * kPerWord;
    const uint skipped = misalignment(row);
    if (skipped == 0 && first + kPerWord <= dim) {
      return *words_at(row + first);
    }
    if (word > 0 && first + 2 * kPerWord <= dim) {
      device const uint4* words = words_at(row + first - skipped / kSize);
      return joined(words[0], words[1], skipped);
    }
    device const Bits* bits = reinterpret_cast<device const Bits*>(row);
    return uint4(load_uint(bits, first, dim), load_uint(bits, first + kPerUint, dim),
                 load_uint(bits, first + 2 * kPerUint, dim),
                 load_uint(bits, first + 3 * kPerUint, dim));
  }
  template <int kCount>
  static METAL_FUNC uint4 load_part(device const T* row, uint part, uint dim) {
    device const Bits* bits = reinterpret_cast<device const Bits*>(row);
    uint4 word = uint4(0, 0, 0, 0);
#pragma unroll
    for (int i = 0; i < kCount / kPerUint; ++i) {
      word[i] = load_uint(bits, part * kCount + i * kPerUint, dim);
    }
    return word;
  }

  // Those elements of a word that lie in [begin, end).
  static METAL_FUNC void store_elements(device T* row, uint word, uint begin, uint end,
                                        uint4 value) {
    device Bits* bits = reinterpret_cast<device Bits*>(row);
#pragma unroll
    for (int i = 0; i < kPerWord; ++i) {
      const uint element = word * kPerWord + i;
      if (begin <= element && element < end) {
        bits[element] = Bits(value[i / kPerUint] >> (i % kPerUint * kBits));
      }
    }
  }
  static METAL_FUNC void store(device T* row, uint word, uint dim, uint4 value) {
    store_elements(row, word, 0, dim, value);
  }

  // kCount words that follow one another. What is beside them is stored at the same time.
  template <int kCount>
  static METAL_FUNC void store_together(device T* row, uint word, uint dim,
                                        thread const uint4* values, Beside beside) {
    // Elements of a word before the boundary that it is cut by; words from there to the next
    // boundary have the rest of it and as many of the word that follows.
    const uint head = (kWordBytes - misalignment(row)) / kSize % kPerWord;
    const bool is_stored_before = beside.before && word * kPerWord + head <= dim;
    if (head > 0 && !is_stored_before) {
      store_elements(row, word, 0, min(word * kPerWord + head, dim), values[0]);
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint begin = (word + i) * kPerWord + head;
      const bool has_next = head == 0 || i + 1 < kCount || beside.after;
      if (has_next && begin + kPerWord <= dim) {
        const uint4 next = i + 1 < kCount ? values[i + 1] : beside.next;
        *reinterpret_cast<device uint4*>(row + begin) = joined(values[i], next, head * kSize);
      } else {
        store_elements(row, word + i, begin, dim, values[i]);
        if (i + 1 < kCount) {
          store_elements(row, word + i + 1, begin, min(begin + kPerWord, dim), values[i + 1]);
        }
      }
    }
  }
};

// ---- values ----------------------------------------------------------------------------------

// One word of T, as floats.
template <typename T>
struct ValuesOf {
  float v[Element<T>::kPerWord];

  template <typename U>
  METAL_FUNC ValuesOf rounded_as() const {
    ValuesOf result = *this;
#pragma unroll
    for (int i = 0; i < Element<T>::kPerWord; i += 2) {
      Element<U>::round_pair(result.v + i);
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
