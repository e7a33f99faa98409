// The threads of threads.h. A thread that waits costs a wake-up of a few microseconds, a new one ten times as much:
// gradients arrive in hundreds of small blocks a batch.
#include "threads.h"

#include <pthread.h>

#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

#include "float_environment.h"

namespace dataflex {
namespace {

void call(PartFunction function, const void* body, int part) {
  const IeeeArithmetic arithmetic;
  function(body, part);
}

class Pool {
 public:
  void run(int parts, PartFunction function, const void* body) {
    const std::lock_guard<std::mutex> turn(turn_);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      call_ = function;
      body_ = body;
      next_ = 0;
      parts_ = unfinished_ = parts;
      grow(parts - 1);
    }
    for (int i = 1; i < parts; ++i) wake_.notify_one();
    work();
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return unfinished_ == 0; });
  }

 private:
  void grow(int threads) {
    try {
      for (; threads_ < threads; ++threads_) std::thread(&Pool::serve, this).detach();
    } catch (const std::system_error&) {
      // No more threads to be had: the caller and the others take the parts.
    }
  }

  [[noreturn]] void serve() {
    for (;;) {
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [this] { return next_ < parts_; });
      }
      work();
    }
  }

  void work() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (next_ < parts_) {
      const int part = next_++;
      lock.unlock();
      call(call_, body_, part);
      lock.lock();
      if (--unfinished_ == 0) done_.notify_one();
    }
  }

  std::mutex turn_;   // held by the caller whose parts are being done
  std::mutex mutex_;  // guards all below
  std::condition_variable wake_, done_;
  PartFunction call_ = nullptr;
  const void* body_ = nullptr;
  int parts_ = 0, next_ = 0, unfinished_ = 0, threads_ = 0;
};

Pool* pool = nullptr;

// Pools are never deleted: their threads may wait when the process ends, and a child's copy has none.
Pool& current_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

}  // namespace

void run_parts(int parts, PartFunction function, const void* body) {
  if (parts > 1) {
    current_pool().run(parts, function, body);
  } else if (parts == 1) {
    call(function, body, 0);
  }
}

}  // namespace dataflex
