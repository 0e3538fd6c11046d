// Rows that threads share.
#pragma once

#include "arguments.h"

namespace mlxnorm::cpu {

// Are there threads without a row, and rows that are worth several? Not within a parallel region:
// its threads are at work already.
bool worth_splitting(const NormLayout& layout);

// Row by row. A thread sums whole runs, and the sums of these are added in the order in which a
// kernel of whole rows adds them: the bits are its.
void run_in_parts(const NormKernel& kernel, const NormArguments& arguments);

}  // namespace mlxnorm::cpu
