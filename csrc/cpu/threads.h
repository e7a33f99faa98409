// A parallel loop on std::thread. No OpenMP: torch carries a runtime of its own, and two of them in one process
// disagree about the number of threads.
#pragma once

#include <thread>
#include <vector>

namespace dataflex {

// Calls body(0) ... body(workers - 1), each once, on that many threads, the caller's among them. `body` must not throw.
template <class Body>
void run_parallel(int workers, const Body& body) {
  std::vector<std::thread> threads;
  threads.reserve(workers > 1 ? workers - 1 : 0);
  int next = 1;
  try {
    for (; next < workers; ++next) threads.emplace_back(body, next);
  } catch (...) {
    // The system refuses another thread: the caller does what is left.
  }
  for (; next < workers; ++next) body(next);
  body(0);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace dataflex
