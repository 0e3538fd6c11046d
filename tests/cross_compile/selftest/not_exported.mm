// Lived in at::native::mps until 2.9, in at::mps from 2.10 on: an object built against one release
// does not load into the other.
#include <ATen/mps/MPSStream.h>

namespace at::native::mps {
void dispatch_sync_with_rethrow(dispatch_queue_t queue, void (^block)());
}

void run(void (^block)()) {
  auto* stream = at::mps::getCurrentMPSStream();
  at::mps::dispatch_sync_with_rethrow(stream->queue(), block);
  at::native::mps::dispatch_sync_with_rethrow(stream->queue(), block);
}
