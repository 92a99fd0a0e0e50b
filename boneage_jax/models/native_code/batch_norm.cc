// What batch normalisation reads all of its input for, as XLA custom calls for CPUs: the moments of
// each channel, and the gradient of act(x * a + b). boneage_jax/models/batch_norm_native.py calls
// this.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "activations.h"

namespace native {
namespace {

constexpr int64_t kTaskValues = 1 << 16;
constexpr int64_t kTasks = 64;  // at most
constexpr int64_t kExactRows = 128;  // that are added in float32 before they go on in float64

// Rows [first, last) of [rows, channels]. Sums of each channel go to double [2, channels].
template <typename Fn>
void SumRows(int64_t first, int64_t last, int64_t channels, double* sums, const Fn& fn) {
  std::vector<float> some(2 * channels);
  std::fill(sums, sums + 2 * channels, 0.0);
  for (int64_t row = first; row < last; row += kExactRows) {
    std::fill(some.begin(), some.end(), 0.0f);
    for (int64_t r = row; r < std::min(last, row + kExactRows); ++r) fn(r, some.data());
    for (int64_t i = 0; i < 2 * channels; ++i) sums[i] += some[i];
  }
}

// As many tasks as pay, never by the number of threads: the order of sums is the same on any.
int64_t TaskCount(int64_t rows, int64_t channels) {
  return std::max<int64_t>(1, std::min({kTasks, rows, rows * channels / kTaskValues}));
}

bool Rows(ffi::Span<const int64_t> shape, int64_t* rows, int64_t* channels) {
  if (shape.size() < 2) return false;
  *channels = shape[shape.size() - 1];
  *rows = 1;
  for (size_t axis = 0; axis + 1 < shape.size(); ++axis) *rows *= shape[axis];
  return *rows > 0 && *channels > 0;
}

struct SquareRow {
  const float* x;
  float *sum, *square;

  template <int L, int N>
  void Run(int64_t c) const {
    for (int n = 0; n < N; ++n, c += L) {
      const auto value = Load<L>(x + c);
      Store<L>(sum + c, Load<L>(sum + c) + value);
      Store<L>(square + c, Load<L>(square + c) + value * value);
    }
  }
};

// Sums of x and of x * x over all but the last axis: [2, C].
ffi::Error Moments(ffi::ThreadPool pool, Array input, Result output) {
  int64_t rows, channels;
  if (!Rows(input.dimensions(), &rows, &channels) ||
      output->element_count() != static_cast<size_t>(2 * channels))
    return ffi::Error::InvalidArgument("batch norm: shapes do not fit each other");
  const float* x = input.typed_data();
  const int64_t tasks = TaskCount(rows, channels);
  std::vector<double> parts(tasks * 2 * channels);
  Parallel(pool, tasks, [&](int64_t task) {
    SumRows(rows * task / tasks, rows * (task + 1) / tasks, channels, &parts[task * 2 * channels],
            [&](int64_t row, float* sums) {
              ForChannels(channels, SquareRow{x + row * channels, sums, sums + channels});
            });
  });
  AddUp(parts, 2 * channels, output->typed_data());
  return ffi::Error::Success();
}

template <int A>
void Differentiate(ffi::ThreadPool& pool, int64_t rows, int64_t channels, const float* x,
                   const float* g, const float* a, const float* b, float* out, float* sums) {
  const int64_t tasks = TaskCount(rows, channels);
  std::vector<double> parts(tasks * 2 * channels);
  Parallel(pool, tasks, [&](int64_t task) {
    SumRows(rows * task / tasks, rows * (task + 1) / tasks, channels, &parts[task * 2 * channels],
            [&](int64_t row, float* some) {
              const int64_t at = row * channels;
              ForChannels(channels, GradientRow<A>{x + at, g + at, a, b, out + at, some,
                                                   some + channels});
            });
  });
  AddUp(parts, 2 * channels, sums);
}

// Gradients of act(x * a + b): by x, and [2, C] by a and by b.
ffi::Error Gradient(ffi::ThreadPool pool, Array input, Array gradient, Array a, Array b,
                    Result output, Result sums, int64_t activation) {
  int64_t rows, channels;
  if (!Rows(input.dimensions(), &rows, &channels) ||
      gradient.element_count() != input.element_count() ||
      output->element_count() != input.element_count() ||
      a.element_count() != static_cast<size_t>(channels) ||
      b.element_count() != static_cast<size_t>(channels) ||
      sums->element_count() != static_cast<size_t>(2 * channels))
    return ffi::Error::InvalidArgument("batch norm: shapes do not fit each other");
  auto run = [&](auto differentiate) {
    differentiate(pool, rows, channels, input.typed_data(), gradient.typed_data(), a.typed_data(),
                  b.typed_data(), output->typed_data(), sums->typed_data());
    return ffi::Error::Success();
  };
  switch (activation) {
    case kNone: return run(Differentiate<kNone>);
    case kRelu: return run(Differentiate<kRelu>);
    case kRelu6: return run(Differentiate<kRelu6>);
    case kSwish: return run(Differentiate<kSwish>);
    default: return ffi::Error::InvalidArgument("batch norm: unknown activation");
  }
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_moments, Moments,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Array>().Ret<Array>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(batch_norm_gradient, Gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("activation"));

}  // namespace native
