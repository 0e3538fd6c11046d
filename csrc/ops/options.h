// The options of ops, by the numbers that the kernels have for them (shaders/abi.h).
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
    {"weight_offset", "0.0"},
    {"scale_offset", "1.0"},
};

// The first value is the default. Without names they are False and True.
struct ChoiceSpec {
  const char* name;
  std::span<const std::string_view> values = {};
};

inline constexpr std::string_view kActivationNames[] = {"none", "silu", "gelu_tanh", "sigmoid"};
inline constexpr std::string_view kCastingModeNames[] = {"gemma", "llama"};
inline constexpr std::string_view kModulationNames[] = {"steps", "addcmul", "once"};
inline constexpr ChoiceSpec kChoiceSpecs[] = {
    {"activation", kActivationNames},
    {"casting_mode", kCastingModeNames},
    {"round_intermediates"},
    {"modulation", kModulationNames},
};

static_assert(std::size(kNumberSpecs) == kNumbers && std::size(kChoiceSpecs) == kChoices);
static_assert(kChoices * kChoiceBits <= 32);
static_assert([] {
  for (const ChoiceSpec& choice : kChoiceSpecs) {
    if (choice.values.size() > 1u << kChoiceBits) {
      return false;
    }
  }
  return true;
}());

// One of either kind.
struct Option {
  constexpr Option(Number which) : is_number(true), which(uint8_t(which)) {}
  constexpr Option(Choice which) : is_number(false), which(uint8_t(which)) {}

  constexpr const char* name() const {
    return is_number ? kNumberSpecs[which].name : kChoiceSpecs[which].name;
  }

  bool is_number;
  uint8_t which;
};

}  // namespace mlxnorm
