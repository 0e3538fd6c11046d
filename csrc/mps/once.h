// Things that are made once for each key, by whichever thread asks first.
#pragma once

#include <exception>
#include <future>
#include <mutex>
#include <unordered_map>

namespace mlxnorm::mps {

// Values of different keys are made side by side; threads that ask for one which is being made wait
// for it. When making fails, all who wait get the exception, and the next to ask tries again.
template <typename Key, typename Value>
class Once {
 public:
  template <typename Make>
  Value get(const Key& key, const Make& make) {
    std::promise<Value> promise;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto [entry, inserted] = values_.try_emplace(key);
      if (!inserted) {
        const std::shared_future<Value> value = entry->second;
        lock.unlock();
        return value.get();
      }
      entry->second = promise.get_future().share();
    }
    try {
      const Value value = make();
      promise.set_value(value);
      return value;
    } catch (...) {
      {
        const std::lock_guard<std::mutex> lock(mutex_);
        values_.erase(key);
      }
      promise.set_exception(std::current_exception());
      throw;
    }
  }

 private:
  std::mutex mutex_;
  std::unordered_map<Key, std::shared_future<Value>> values_;
};

}  // namespace mlxnorm::mps
