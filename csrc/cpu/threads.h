// A parallel loop on threads that stay. No OpenMP: torch carries a runtime of its own, and two of them in one process
// disagree about the number of threads.
#pragma once

namespace dataflex {

using PartFunction = void (*)(const void* body, int part);

void run_parts(int parts, PartFunction function, const void* body);

// Calls body(0) ... body(parts - 1), each once, on at most that many threads, the caller's among them. `body` must not
// throw and must not call run_parallel. It computes in IEEE arithmetic (float_environment.h). Calls from several
// threads take turns. If the system refuses threads, those that there are do the work. A forked child starts threads of
// its own.
template <class Body>
void run_parallel(int parts, const Body& body) {
  run_parts(parts, [](const void* self, int part) { (*static_cast<const Body*>(self))(part); }, &body);
}

}  // namespace dataflex
