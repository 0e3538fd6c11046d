// The Metal Shading Language's types and functions for C++ made by cpp_backend.py.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <type_traits>
#include <utility>

#include "msl_numbers.h"
#include "msl_vectors.h"
#include "msl_math.h"
#include "msl_simd.h"
#include "msl_kernel.h"
