// The names that Python gives to the types of a block, and how a wrong argument is refused.
#pragma once

#include <stdexcept>
#include <string>

#include "gradients.h"

namespace dataflex {

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument("dataflex._native: " + message);
}

inline ValueType value_type_named(const std::string& name) {
  if (name == "float32") return ValueType::kFloat32;
  if (name == "bfloat16") return ValueType::kBFloat16;
  require(name == "float16", "unknown value type " + name);
  return ValueType::kFloat16;
}

inline AdamVariant adam_variant_named(const std::string& name) {
  if (name == "none") return AdamVariant::kNone;
  if (name == "adamw") return AdamVariant::kAdamW;
  if (name == "less") return AdamVariant::kLess;
  require(name == "second_moment", "unknown Adam variant " + name);
  return AdamVariant::kSecondMoment;
}

}  // namespace dataflex
