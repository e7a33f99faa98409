// Runs kernels block after block, one fiber a thread. This file is compiled without sanitizers and tells them about its
// fibers (-DEMULATE_ASAN, -DEMULATE_TSAN); the kernels are compiled with them, so that
// - AddressSanitizer sees every access outside shared memory and the buffers of a job,
// - ThreadSanitizer sees every pair of accesses that neither a barrier nor an atomic orders, in a block or between
//   blocks: blocks run one after the other here, but nothing tells it so.
// Shared memory is filled with 0xFF before each block. EMULATED_ORDER is the order in which threads run between
// barriers: forward, reverse, or a number that seeds a random order.
//
// Not emulated, because the kernels do not use it: blocks and grids of more than one dimension, static shared memory,
// masks of fewer than 32 lanes.
#include <stdio.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "cuda_runtime.h"

#ifdef EMULATE_ASAN
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef EMULATE_TSAN
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned);
void __tsan_destroy_fiber(void*);
void __tsan_switch_to_fiber(void*, unsigned);
void __tsan_acquire(void*);
void __tsan_release(void*);
}
#endif

dim3 threadIdx, blockIdx;

namespace emulator {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr int kLanes = 32;
constexpr int kFailure = 97;  // exit status

enum class State { kReady, kAtBarrier, kAtCollective, kDone };

struct Fiber {
  ucontext_t context;
  char* stack;
  State state;
  int line;  // of the barrier or collective it waits at
  void* tsan;
};

struct Warp {
  int arrived, leaving, line;
  Collective kind;
  uint32_t in[kLanes][kWordsIn], out[kLanes][kWordsOut];
};

std::vector<Fiber> fibers;
std::vector<Warp> warps;
ucontext_t scheduler;
const std::function<void()>* body;
unsigned current;
void* shared;
// A barrier has two tags in turn: a thread that is early at the next barrier must not order one that is late at this.
char barrier_tags[2], end_tag;
unsigned barriers_passed;
[[maybe_unused]] void* main_tsan;
[[maybe_unused]] const void* main_stack;
[[maybe_unused]] size_t main_stack_size;

[[noreturn]] void fail(const char* message) {
  fprintf(stderr, "emulator: %s (block %u)\n", message, blockIdx.x);
  for (size_t i = 0; i < fibers.size(); i += kLanes) {
    fprintf(stderr, "  thread %zu: line %d%s\n", i, fibers[i].line, fibers[i].state == State::kDone ? ", done" : "");
  }
  fflush(stderr);
  _Exit(kFailure);
}

void acquire(void* tag) {
#ifdef EMULATE_TSAN
  __tsan_acquire(tag);
#else
  (void)tag;
#endif
}

void release(void* tag) {
#ifdef EMULATE_TSAN
  __tsan_release(tag);
#else
  (void)tag;
#endif
}

// Not std::copy, whose memmove ThreadSanitizer would see: what the emulator does between fibers is ordered.
template <int kCount>
void copy(const uint32_t (&from)[kCount], uint32_t (&to)[kCount]) {
  for (int i = 0; i < kCount; ++i) *static_cast<volatile uint32_t*>(to + i) = from[i];
}

void to_scheduler() {
  Fiber& fiber = fibers[current];
#ifdef EMULATE_ASAN
  void* fake = nullptr;
  const bool last = fiber.state == State::kDone;
  __sanitizer_start_switch_fiber(last ? nullptr : &fake, main_stack, main_stack_size);
#endif
#ifdef EMULATE_TSAN
  __tsan_switch_to_fiber(main_tsan, 1);  // 1: switching orders nothing
#endif
  swapcontext(&fiber.context, &scheduler);
#ifdef EMULATE_ASAN
  __sanitizer_finish_switch_fiber(fake, &main_stack, &main_stack_size);
#endif
}

void resume(unsigned index) {
  Fiber& fiber = fibers[index];
  current = index;
  threadIdx = dim3(index, 0, 0);
#ifdef EMULATE_ASAN
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStack);
#endif
#ifdef EMULATE_TSAN
  __tsan_switch_to_fiber(fiber.tsan, 1);
#endif
  swapcontext(&scheduler, &fiber.context);
#ifdef EMULATE_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

void fiber_main() {
#ifdef EMULATE_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &main_stack, &main_stack_size);
#endif
  (*body)();
  release(&end_tag);
  fibers[current].state = State::kDone;
  to_scheduler();
  abort();
}

void start_fibers(unsigned threads) {
  const size_t bytes = kStack * threads;
  void* stacks = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) fail("no memory for stacks");
  fibers.assign(threads, Fiber());
  warps.assign((threads + kLanes - 1) / kLanes, Warp());
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.stack = static_cast<char*>(stacks) + kStack * i;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
#ifdef EMULATE_TSAN
    fiber.tsan = __tsan_create_fiber(0);
#endif
  }
}

void end_fibers() {
#ifdef EMULATE_TSAN
  for (Fiber& fiber : fibers) __tsan_destroy_fiber(fiber.tsan);
#endif
  munmap(fibers[0].stack, kStack * fibers.size());
}

// The order in which threads get their turns.
class Order {
 public:
  explicit Order(unsigned threads) : threads_(threads) {
    const char* wanted = getenv("EMULATED_ORDER");
    name_ = wanted == nullptr ? "forward" : wanted;
    for (unsigned i = 0; i < threads; ++i) threads_[i] = name_ == "reverse" ? threads - 1 - i : i;
    if (is_random()) random_.seed(static_cast<unsigned>(atoi(name_.c_str())));
  }

  const std::vector<unsigned>& next_round() {
    if (is_random()) std::shuffle(threads_.begin(), threads_.end(), random_);
    return threads_;
  }

 private:
  bool is_random() const { return name_ != "forward" && name_ != "reverse"; }

  std::string name_;
  std::vector<unsigned> threads_;
  std::mt19937 random_;
};

unsigned count(State state) {
  return static_cast<unsigned>(
      std::count_if(fibers.begin(), fibers.end(), [&](const Fiber& fiber) { return fiber.state == state; }));
}

// All threads that are left wait: lets them pass the barrier.
void pass_barrier() {
  if (count(State::kAtCollective) > 0) fail("a warp waits for lanes that wait at __syncthreads or are done");
  if (count(State::kDone) > 0) fail("some threads of a block wait at __syncthreads, others are done");
  for (Fiber& fiber : fibers) {
    if (fiber.line != fibers[0].line) fail("threads of a block wait at different __syncthreads");
    fiber.state = State::kReady;
  }
  ++barriers_passed;
}

void run_block(unsigned threads, Order& order) {
  start_fibers(threads);
  while (count(State::kDone) < threads) {
    bool ran = false;
    for (const unsigned i : order.next_round()) {
      if (fibers[i].state != State::kReady) continue;
      resume(i);
      ran = true;
    }
    if (!ran) pass_barrier();
  }
  end_fibers();
}

// D = A B + C as the PTX ISA lays the fragments of mma.m16n8k32 with 8-bit operands out: A unsigned.
void multiply(Warp& warp, bool is_signed) {
  int32_t a[16][32], b[32][8];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int group = lane / 4, thread = lane % 4;
    for (int i = 0; i < 16; ++i) {
      const int row = (i < 4 || (i >= 8 && i < 12)) ? group : group + 8;
      a[row][thread * 4 + (i & 3) + (i < 8 ? 0 : 16)] = static_cast<uint8_t>(warp.in[lane][i / 4] >> (i % 4 * 8));
    }
    for (int i = 0; i < 8; ++i) {
      const uint8_t byte = static_cast<uint8_t>(warp.in[lane][4 + i / 4] >> (i % 4 * 8));
      b[thread * 4 + (i & 3) + (i < 4 ? 0 : 16)][group] = is_signed ? static_cast<int8_t>(byte) : byte;
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + (i < 2 ? 0 : 8), column = lane % 4 * 2 + (i & 1);
      uint32_t sum = warp.in[lane][6 + i];  // wraps around, as without .satfinite
      for (int k = 0; k < 32; ++k) sum += static_cast<uint32_t>(a[row][k] * b[k][column]);
      warp.out[lane][i] = sum;
    }
  }
}

void finish(Warp& warp) {
  switch (warp.kind) {
    case Collective::kShuffle:
      for (int lane = 0; lane < kLanes; ++lane) warp.out[lane][0] = warp.in[warp.in[lane][1] % kLanes][0];
      return;
    case Collective::kReduceAdd: {
      uint32_t sum = 0;
      for (int lane = 0; lane < kLanes; ++lane) sum += warp.in[lane][0];
      for (int lane = 0; lane < kLanes; ++lane) warp.out[lane][0] = sum;
      return;
    }
    case Collective::kMultiplySigned:
    case Collective::kMultiplyUnsigned:
      multiply(warp, warp.kind == Collective::kMultiplySigned);
  }
}

}  // namespace

void* shared_memory() { return shared; }

void synchronise_block(int line) {
  Fiber& fiber = fibers[current];
  const unsigned turn = barriers_passed % 2;
  fiber.state = State::kAtBarrier;
  fiber.line = line;
  release(&barrier_tags[turn]);
  to_scheduler();
  acquire(&barrier_tags[turn]);
}

void synchronise_warp(Collective kind, int line, const uint32_t (&in)[kWordsIn], uint32_t (&out)[kWordsOut]) {
  const unsigned self = current, lane = self % kLanes, first = self - lane;
  Warp& warp = warps[self / kLanes];
  while (warp.leaving > 0) to_scheduler();  // the collective before this one
  if (warp.arrived > 0 && (warp.kind != kind || warp.line != line))
    fail("lanes of a warp are at different collectives");
  warp.kind = kind;
  warp.line = fibers[self].line = line;
  copy(in, warp.in[lane]);
  if (++warp.arrived < kLanes) {
    fibers[self].state = State::kAtCollective;
    to_scheduler();
  } else {
    finish(warp);
    warp.arrived = 0;
    warp.leaving = kLanes;
    for (unsigned i = first; i < first + kLanes; ++i) fibers[i].state = State::kReady;
  }
  copy(warp.out[lane], out);
  --warp.leaving;
}

void launch(unsigned blocks, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
  constexpr unsigned kMostThreads = 1024;
  if (blocks == 0 || threads == 0 || threads > kMostThreads || threads % kLanes != 0) fail("invalid launch");
  body = &kernel;
#ifdef EMULATE_TSAN
  main_tsan = __tsan_get_current_fiber();
#endif
  Order order(threads);
  std::vector<void*> memories;
  for (unsigned block = 0; block < blocks; ++block) {
    blockIdx = dim3(block, 0, 0);
    memories.push_back(shared = aligned_alloc(16, (shared_bytes + 15) / 16 * 16));
    memset(shared, 0xFF, shared_bytes);
    run_block(threads, order);
  }
  acquire(&end_tag);
  for (void* memory : memories) free(memory);
}

}  // namespace emulator
