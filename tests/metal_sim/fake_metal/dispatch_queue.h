// What the simulator itself asks of its dispatch queues.
#pragma once

#include <dispatch/dispatch.h>

#include <string>

namespace sim {

// Whether the calling thread is inside a block of this queue.
bool is_running_on(dispatch_queue_t queue);

std::string bytes_of(dispatch_data_t data);

}  // namespace sim
