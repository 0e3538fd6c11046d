// The options of ops: numbers and choices by what the kernels have for them (shaders/abi.h), and
// integers, which are for the host alone.
#pragma once

#include <cstdint>
#include <iterator>
#include <span>
#include <string_view>

#include "../types.h"

namespace mlxnorm {

struct NumberSpec {
  const char* name;
  const char* initially;  // as schemas have it
};

inline constexpr NumberSpec kNumberSpecs[] = {
    {"weight_offset", "0.0"}, {"scale_offset", "1.0"}, {"next_scale_offset", "1.0"},
    {"alpha", "1.0"},         {"beta", "1.0"},
};

enum Integer {
  kGroupSize,  // of the parts of a row that are normalized each for itself; 0: the whole row
  kIntegers,
};

struct IntegerSpec {
  const char* name;
  const char* initially;
};

inline constexpr IntegerSpec kIntegerSpecs[] = {
    {"group_size", "0"},
};

// Without names they are False and True.
struct ChoiceSpec {
  const char* name;
  std::span<const std::string_view> values = {};
};

inline constexpr std::string_view kActivationNames[] = {"none", "silu", "gelu_tanh", "sigmoid"};
inline constexpr std::string_view kCastingModeNames[] = {"gemma", "llama"};
inline constexpr std::string_view kModulationNames[] = {"steps", "addcmul", "once"};
inline constexpr std::string_view kRopeRoundingNames[] = {"once", "products", "addcmul"};
inline constexpr std::string_view kGateActivationNames[] = {"none", "tanh", "sigmoid"};
inline constexpr std::string_view kFormNames[] = {"rms", "rms_steps", "normalize",
                                                  "normalize_float32"};
inline constexpr ChoiceSpec kChoiceSpecs[] = {
    {"activation", kActivationNames},
    {"casting_mode", kCastingModeNames},
    {"round_intermediates"},
    {"modulation", kModulationNames},
    {"norm_before_gate"},
    {"interleaved"},
    {"full_tables"},
    {"across_heads"},
    {"rope_rounding", kRopeRoundingNames},
    {"gate_activation", kGateActivationNames},
    {"form", kFormNames},
    {"silu"},
};

static_assert(std::size(kNumberSpecs) == kNumbers && std::size(kIntegerSpecs) == kIntegers &&
              std::size(kChoiceSpecs) == kChoices);
static_assert(kChoices * kChoiceBits <= 32);
static_assert([] {
  for (const ChoiceSpec& choice : kChoiceSpecs) {
    if (choice.values.size() > 1u << kChoiceBits) {
      return false;
    }
  }
  return true;
}());

// One of any kind, as an op has it.
struct Option {
  enum Kind : uint8_t { number, integer, choice };

  constexpr Option(Number which) : kind(number), which(uint8_t(which)) {}
  constexpr Option(Integer which) : kind(integer), which(uint8_t(which)) {}
  // `initially` is the value that is the op's default.
  constexpr Option(Choice which, uint32_t initially = 0)
      : kind(choice), which(uint8_t(which)), initially(uint8_t(initially)) {}

  constexpr const char* name() const {
    switch (kind) {
      case number:
        return kNumberSpecs[which].name;
      case integer:
        return kIntegerSpecs[which].name;
      case choice:
        return kChoiceSpecs[which].name;
    }
    return nullptr;
  }

  Kind kind;
  uint8_t which;
  uint8_t initially = 0;
};

}  // namespace mlxnorm
