// libdispatch: a serial queue is a lock, and its blocks run on the calling thread.
#include "dispatch_queue.h"
#include "stats.h"

#include <Block.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>
#include <string>
#include <thread>

struct dispatch_queue_s {
  std::string label;
  std::mutex running;
  std::atomic<std::thread::id> owner;
  std::mutex pending_mutex;
  std::deque<dispatch_block_t> pending;  // of dispatch_async
};

struct dispatch_data_s {
  std::string bytes;
};

namespace {

[[noreturn]] void die(const dispatch_queue_s* queue, const char* what) {
  std::fprintf(stderr, "simulated Metal: dispatch_sync on queue '%s': %s\n", queue->label.c_str(),
               what);
  std::fflush(stderr);
  std::abort();
}

void run_block(dispatch_queue_s* queue, dispatch_block_t block) {
  try {
    block();
  } catch (...) {
    die(queue, "a C++ exception left the block; that ends the process");
  }
}

void run_pending(dispatch_queue_s* queue) {
  for (;;) {
    dispatch_block_t block = nullptr;
    {
      std::lock_guard<std::mutex> lock(queue->pending_mutex);
      if (queue->pending.empty()) return;
      block = queue->pending.front();
      queue->pending.pop_front();
    }
    run_block(queue, block);
    Block_release(block);
  }
}

}  // namespace

bool sim::is_running_on(dispatch_queue_t queue) {
  return queue->owner.load() == std::this_thread::get_id();
}

std::string sim::bytes_of(dispatch_data_t data) {
  return data->bytes;
}

extern "C" {

dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t) noexcept {
  auto* queue = new dispatch_queue_s;
  queue->label = label ? label : "";
  return queue;
}

// Queues and data are few; they live as long as the process.
void dispatch_retain(dispatch_object_t) noexcept {}
void dispatch_release(dispatch_object_t) noexcept {}

void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block) noexcept {
  if (sim::is_running_on(queue)) {
    die(queue, "deadlock: the calling block already runs on this queue");
  }
  std::lock_guard<std::mutex> lock(queue->running);
  queue->owner = std::this_thread::get_id();
  ++sim::stats().blocks;
  run_block(queue, block);
  run_pending(queue);
  queue->owner = std::thread::id();
}

void dispatch_async(dispatch_queue_t queue, dispatch_block_t block) noexcept {
  {
    std::lock_guard<std::mutex> lock(queue->pending_mutex);
    queue->pending.push_back(static_cast<dispatch_block_t>(Block_copy(block)));
  }
  if (sim::is_running_on(queue)) return;  // the running dispatch_sync does it at its end
  dispatch_sync(queue, ^{
                });
}

dispatch_data_t dispatch_data_create(const void* buffer, size_t size, dispatch_queue_t,
                                     dispatch_block_t) noexcept {
  return new dispatch_data_s{std::string(static_cast<const char*>(buffer), size)};
}

size_t dispatch_data_get_size(dispatch_data_t data) noexcept {
  return data->bytes.size();
}

}  // extern "C"
