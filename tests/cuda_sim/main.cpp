// Runs one job of the CUDA kernels on the emulator: `emulate JOB RESULT`. Prints how a job is divided:
// `emulate --plan KIND ROWS OFFSET COUNT DIM MULTIPROCESSORS`.
//
// JOB is a line of text, "kind type variant rows count row_stride offset dim sparsity seed direction_stride beta1 ...
// eps", then the raw arrays: values, moments (if any), directions (of dots), exponents, sums, not_finite, saturated.
// RESULT receives sums, not_finite and saturated. Every array has a heap block of exactly its size, and the workspace
// is filled with 0xFF.
#include <stdio.h>
#include <string.h>

#include <fstream>
#include <iostream>
#include <memory>
#include <sstream>
#include <stdexcept>
#include <string>

#include "cuda/kernels.h"
#include "cuda/plan.h"

namespace {

using dataflex::AdamVariant;
using dataflex::Gradients;
using dataflex::ValueType;

constexpr dataflex::cuda::Queue kQueue{0, nullptr};

struct Array {
  explicit Array(int64_t bytes) : size(bytes), data(static_cast<char*>(aligned_alloc(16, (bytes + 15) / 16 * 16))) {}
  ~Array() { free(data); }
  Array(const Array&) = delete;

  template <class T>
  T* as() {
    return reinterpret_cast<T*>(data);
  }

  int64_t size;
  char* data;
};

using Owned = std::unique_ptr<Array>;

struct Job {
  std::string kind;
  Gradients block{};
  int32_t dim = 0, sparsity = 0;
  uint64_t seed = 0;
  int64_t direction_stride = 0;
  Owned values, exp_avg, exp_avg_sq, directions, exponents, sums, not_finite, saturated;
};

Owned read_array(std::istream& stream, int64_t bytes) {
  Owned array = std::make_unique<Array>(bytes);
  stream.read(array->data, bytes);
  if (stream.gcount() != bytes) throw std::runtime_error("the job is too short");
  return array;
}

ValueType value_type(const std::string& name) {
  return name == "float32" ? ValueType::kFloat32 : name == "bfloat16" ? ValueType::kBFloat16 : ValueType::kFloat16;
}

AdamVariant adam_variant(const std::string& name) {
  if (name == "second_moment") return AdamVariant::kSecondMoment;
  return name == "none" ? AdamVariant::kNone : name == "adamw" ? AdamVariant::kAdamW : AdamVariant::kLess;
}

Job read_job(const char* path) {
  std::ifstream stream(path, std::ios::binary);
  std::string line, type, variant;
  std::getline(stream, line);
  std::istringstream header(line);
  Job job;
  Gradients& block = job.block;
  dataflex::Adam& adam = block.adam;
  header >> job.kind >> type >> variant >> block.rows >> block.count >> block.row_stride >> block.offset >> job.dim >>
      job.sparsity >> job.seed >> job.direction_stride >> adam.beta1 >> adam.one_minus_beta1 >> adam.beta2 >>
      adam.one_minus_beta2 >> adam.correction1 >> adam.correction2 >> adam.eps;
  if (!header) throw std::runtime_error("the job's header is not understood: " + line);
  block.type = value_type(type);
  adam.variant = adam_variant(variant);
  const int64_t elements = block.rows == 0 || block.count == 0 ? 0 : (block.rows - 1) * block.row_stride + block.count;
  job.values = read_array(stream, elements * (block.type == ValueType::kFloat32 ? 4 : 2));
  block.values = job.values->data;
  if (adam.variant != AdamVariant::kNone) {
    job.exp_avg = read_array(stream, block.count * 4);
    job.exp_avg_sq = read_array(stream, block.count * 4);
    adam.exp_avg = job.exp_avg->as<float>();
    adam.exp_avg_sq = job.exp_avg_sq->as<float>();
  }
  if (job.kind == "dots") {
    const bool empty = job.dim == 1 || block.count == 0;
    job.directions = read_array(stream, empty ? 0 : ((job.dim - 2) * job.direction_stride + block.count) * 4);
  }
  job.exponents = read_array(stream, block.rows * 4);
  job.sums = read_array(stream, block.rows * job.dim * 8);
  job.not_finite = read_array(stream, block.rows);
  job.saturated = read_array(stream, block.rows * 8);
  return job;
}

Owned workspace(int64_t bytes) {
  Owned space = std::make_unique<Array>(bytes);
  memset(space->data, 0xFF, bytes);
  return space;
}

void run(Job& job) {
  const dataflex::Totals totals{job.sums->as<int64_t>(), job.not_finite->as<uint8_t>(), job.saturated->as<int64_t>()};
  const int32_t* exponents = job.exponents->as<int32_t>();
  const char* limit = getenv("EMULATED_WORKSPACE_BYTES");
  if (job.kind == "sjlt") {
    dataflex::cuda::sjlt_accumulate({job.block, exponents, job.seed, job.dim, job.sparsity, 0}, totals, kQueue);
  } else if (job.kind == "rademacher") {
    const int64_t packed_bytes = limit == nullptr ? dataflex::cuda::kPackedBytes : atoll(limit);
    const Owned space = workspace(dataflex::cuda::rademacher_workspace_bytes(job.block, packed_bytes));
    dataflex::cuda::rademacher_accumulate({job.block, exponents, job.seed, job.dim, 0}, totals, space->data, kQueue,
                                          packed_bytes);
  } else if (job.kind == "dots") {
    const int64_t bytes = limit == nullptr ? dataflex::cuda::kPartialBytes : atoll(limit);
    const Owned space = workspace(dataflex::cuda::dots_workspace_bytes(job.block, job.dim - 1, bytes));
    const dataflex::DotsTotals sums{job.sums->as<double>(), totals.not_finite};
    dataflex::cuda::dots_accumulate({job.block, job.directions->as<float>(), job.direction_stride, job.dim - 1, 0},
                                    sums, space->data, kQueue, bytes);
  } else {
    const Owned space = workspace(dataflex::cuda::gaussian_workspace_bytes(job.block, job.dim));
    const dataflex::GaussianTotals sums{job.sums->as<double>(), totals.not_finite};
    dataflex::cuda::gaussian_accumulate({job.block, job.seed, job.dim, 0}, sums, space->data, kQueue);
  }
}

void print_plan(const std::string& kind, std::istream& numbers) {
  Gradients block{};
  int32_t dim = 0;
  int multiprocessors = 0;
  numbers >> block.rows >> block.offset >> block.count >> dim >> multiprocessors;
  const auto print = [](const char* name, int64_t value) { std::cout << name << " " << value << "\n"; };
  if (kind == "sjlt") {
    const auto plan = dataflex::cuda::plan_sjlt(block, dim, multiprocessors);
    print("rows", plan.rows);
    print("row_tiles", plan.row_tiles);
    print("window", plan.window);
    print("windows", plan.windows);
    print("splits", plan.splits);
    print("batches", plan.batches);
    print("batches_per_split", plan.batches_per_split);
    print("shared_bytes", plan.shared_bytes());
  } else if (kind == "rademacher") {
    const auto plan = dataflex::cuda::plan_rademacher(block.rows, block.offset, block.count, dim, multiprocessors,
                                                      dataflex::cuda::kPackedBytes);
    print("row_tiles", plan.row_tiles);
    print("spans", plan.spans);
    print("chunk_spans", plan.chunk_spans);
    print("output_tiles", plan.output_tiles);
    print("splits", plan.splits);
    print("workspace_bytes", plan.workspace_bytes());
  } else if (kind == "dots") {
    const auto plan =
        dataflex::cuda::plan_dots(block.rows, block.count, dim - 1, multiprocessors, dataflex::cuda::kPartialBytes);
    print("rows", plan.rows);
    print("row_tiles", plan.row_tiles);
    print("directions", plan.directions);
    print("direction_tiles", plan.direction_tiles);
    print("pieces", plan.pieces);
    print("workspace_bytes", plan.workspace_bytes());
  } else {
    const auto plan = dataflex::cuda::plan_gaussian(block.rows, block.offset, block.count, dim);
    print("row_tiles", plan.row_tiles);
    print("output_tiles", plan.output_tiles);
    print("splits", plan.splits);
    print("steps", plan.steps);
    print("steps_per_split", plan.steps_per_split);
    print("workspace_bytes", plan.workspace_bytes());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 8 && std::string(argv[1]) == "--plan") {
    std::stringstream numbers;
    for (int i = 3; i < argc; ++i) numbers << argv[i] << " ";
    print_plan(argv[2], numbers);
    return 0;
  }
  if (argc != 3) {
    fprintf(stderr, "usage: emulate JOB RESULT | --plan KIND ROWS OFFSET COUNT DIM MULTIPROCESSORS\n");
    return 2;
  }
  try {
    Job job = read_job(argv[1]);
    run(job);
    std::ofstream result(argv[2], std::ios::binary);
    for (const Owned* array : {&job.sums, &job.not_finite, &job.saturated})
      result.write((*array)->data, (*array)->size);
    return result.good() ? 0 : 2;
  } catch (const std::exception& error) {
    fprintf(stderr, "emulate: %s\n", error.what());
    return 2;
  }
}
