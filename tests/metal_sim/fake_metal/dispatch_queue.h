// What the simulator itself asks of its dispatch queues.
#pragma once

#include <dispatch/dispatch.h>

namespace sim {

// Whether the calling thread is inside a block of this queue.
bool is_running_on(dispatch_queue_t queue);

}  // namespace sim
