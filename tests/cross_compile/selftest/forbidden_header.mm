#include <ATen/mps/MPSStream.h>
#include <ATen/native/mps/OperationUtils.h>
