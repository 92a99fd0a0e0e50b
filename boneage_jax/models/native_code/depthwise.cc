// Depthwise convolution of float32 [B, H, W, C] by kernels [k, k, 1, C], and its two gradients, as
// XLA custom calls for CPUs. Sums run over the taps that lie within the image, so nothing is padded.
// The fused forms convolve act(x * a + b), of which they hold a few rows at a time, in the cache.
// boneage_jax/models/depthwise_native.py calls this.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "activations.h"

namespace native {
namespace {

constexpr int kPixels = 4;     // neighbours that share the loads of the weights
constexpr int kGroupTasks = 8;  // the least number of tasks of a kernel gradient
constexpr int kLargest = 7;    // kernel
constexpr int64_t kBand = 16;  // output rows of a task: its first rows are activated once more

struct Taps {
  int count = 0;
  int64_t shift[kLargest];   // source pixel of output q: q * step + shift
  int64_t weight[kLargest];  // offset of the weights within a row of the kernel
};

// A row of outputs: out[q] = sum over rows and taps of source[q * step + shift] * weight.
struct Row {
  float* out;
  int64_t count, out_step;  // outputs, and the floats from one to the next
  int rows;
  const float *source[kLargest], *weights[kLargest];
  int64_t step, width, channels;
  Taps taps;

  template <int L, int N>
  void Run(int64_t c) const {
    int64_t low = 0, high = count;  // outputs all of whose taps are within the image
    for (int t = 0; t < taps.count; ++t) {
      while (low < count && low * step + taps.shift[t] < 0) ++low;
      while (high > low && (high - 1) * step + taps.shift[t] >= width) --high;
    }
    int64_t q = 0;
    for (; q < low; ++q) Some<L, N>(q, c);
    for (; q + kPixels <= high; q += kPixels) All<L, N, kPixels>(q, c);
    for (; q < high; ++q) All<L, N, 1>(q, c);
    for (; q < count; ++q) Some<L, N>(q, c);
  }

  template <int L, int N, int P>
  void All(int64_t q, int64_t c) const {
    typename Vector<L>::type sum[P][N] = {};
    for (int r = 0; r < rows; ++r) {
      for (int t = 0; t < taps.count; ++t) {
        const float* w = weights[r] + taps.weight[t] + c;
        const float* x = source[r] + (q * step + taps.shift[t]) * channels + c;
        for (int n = 0; n < N; ++n) {
          const auto weight = Load<L>(w + n * L);
          for (int p = 0; p < P; ++p) sum[p][n] += Load<L>(x + p * step * channels + n * L) * weight;
        }
      }
    }
    for (int p = 0; p < P; ++p)
      for (int n = 0; n < N; ++n) Store<L>(out + (q + p) * out_step + c + n * L, sum[p][n]);
  }

  template <int L, int N>
  void Some(int64_t q, int64_t c) const {
    typename Vector<L>::type sum[N] = {};
    for (int t = 0; t < taps.count; ++t) {
      const int64_t at = q * step + taps.shift[t];
      if (at < 0 || at >= width) continue;
      for (int r = 0; r < rows; ++r)
        for (int n = 0; n < N; ++n)
          sum[n] += Load<L>(source[r] + at * channels + c + n * L) *
                    Load<L>(weights[r] + taps.weight[t] + c + n * L);
    }
    for (int n = 0; n < N; ++n) Store<L>(out + q * out_step + c + n * L, sum[n]);
  }
};

struct Shape {
  int64_t batch, height, width, channels;  // of the input
  int64_t out_height, out_width;
  int64_t kernel, stride, top, left;
};

ffi::Error Check(ffi::Span<const int64_t> input, ffi::Span<const int64_t> kernel,
                 ffi::Span<const int64_t> output, int64_t stride, int64_t top, int64_t left,
                 Shape* shape) {
  if (input.size() != 4 || kernel.size() != 4 || output.size() != 4 || kernel[0] != kernel[1] ||
      kernel[0] > kLargest || kernel[2] != 1 || kernel[3] < 1 || kernel[3] != input[3] || output[3] != input[3] ||
      output[0] != input[0] || stride < 1 || top < 0 || left < 0)
    return ffi::Error::InvalidArgument("depthwise: shapes do not fit each other");
  *shape = {input[0], input[1], input[2], input[3], output[1], output[2],
            kernel[0], stride, top, left};
  return ffi::Error::Success();
}

// out = act(x * a + b) of some channels of one pixel.
template <int A>
struct ActivatedPixel {
  const float *x, *a, *b;
  float* out;

  template <int L, int N>
  void Run(int64_t c) const {
    for (int n = 0; n < N; ++n, c += L)
      Store<L>(out + c, Activate<A, L>(Load<L>(x + c) * Load<L>(a + c) + Load<L>(b + c)));
  }
};

// Rows of the input, as they are.
struct PlainRows {
  const float* x;

  const float* At(const Shape& s, int64_t image, int64_t row) {
    return x + (image * s.height + row) * s.width * s.channels;
  }
};

// Rows of act(x * a + b); the last few that were asked for are kept. Rows of an image must be asked
// for from above.
template <int A>
struct ActivatedRows {
  ActivatedRows(const Shape& s, const float* x, const float* a, const float* b)
      : x(x), a(a), b(b), kept(new float[s.kernel * s.width * s.channels]) {}

  const float* At(const Shape& s, int64_t image, int64_t row) {
    float* out = kept.get() + row % s.kernel * s.width * s.channels;
    if (image != last_image || row > last_row) {
      const float* in = x + (image * s.height + row) * s.width * s.channels;
      for (int64_t q = 0; q < s.width; ++q)
        ForChannels(s.channels, ActivatedPixel<A>{in + q * s.channels, a, b, out + q * s.channels});
      last_image = image;
      last_row = row;
    }
    return out;
  }

  const float *x, *a, *b;
  std::unique_ptr<float[]> kept;
  int64_t last_image = -1, last_row = -1;
};

template <typename MakeRows>
void Convolve(ffi::ThreadPool& pool, const Shape& s, const float* w, float* out, int64_t band,
              const MakeRows& make_rows) {
  const int64_t bands = (s.out_height + band - 1) / band;
  Parallel(pool, s.batch * bands, [&](int64_t task) {
    const int64_t image = task / bands, first = task % bands * band;
    auto rows = make_rows();
    for (int64_t line = first; line < std::min(first + band, s.out_height); ++line) {
      Row row{out + (image * s.out_height + line) * s.out_width * s.channels, s.out_width,
              s.channels, 0, {}, {}, s.stride, s.width, s.channels, {}};
      for (int64_t i = 0; i < s.kernel; ++i) {
        const int64_t at = line * s.stride + i - s.top;
        if (at < 0 || at >= s.height) continue;
        row.source[row.rows] = rows.At(s, image, at);
        row.weights[row.rows++] = w + i * s.kernel * s.channels;
      }
      for (int64_t j = 0; j < s.kernel; ++j) {
        row.taps.shift[j] = j - s.left;
        row.taps.weight[j] = j * s.channels;
      }
      row.taps.count = s.kernel;
      ForChannels(s.channels, row);
    }
  });
}

ffi::Error Forward(ffi::ThreadPool pool, Array input, Array kernel, Result output, int64_t stride,
                   int64_t top, int64_t left) {
  Shape s;
  auto error = Check(input.dimensions(), kernel.dimensions(), output->dimensions(), stride, top,
                     left, &s);
  if (error.failure()) return error;
  const float* x = input.typed_data();
  Convolve(pool, s, kernel.typed_data(), output->typed_data(), 1, [&] { return PlainRows{x}; });
  return ffi::Error::Success();
}

bool AreScales(const Shape& s, const Array& a, const Array& b) {
  const size_t channels = static_cast<size_t>(s.channels);
  return a.element_count() == channels && b.element_count() == channels;
}

// Calls run(std::integral_constant<int, A>{}) for the activation.
template <typename Fn>
ffi::Error ForActivation(int64_t activation, const Fn& run) {
  switch (activation) {
    case kNone: run(std::integral_constant<int, kNone>{}); break;
    case kRelu: run(std::integral_constant<int, kRelu>{}); break;
    case kRelu6: run(std::integral_constant<int, kRelu6>{}); break;
    case kSwish: run(std::integral_constant<int, kSwish>{}); break;
    default: return ffi::Error::InvalidArgument("depthwise: unknown activation");
  }
  return ffi::Error::Success();
}

ffi::Error FusedForward(ffi::ThreadPool pool, Array input, Array kernel, Array a, Array b,
                        Result output, int64_t stride, int64_t top, int64_t left,
                        int64_t activation) {
  Shape s;
  auto error = Check(input.dimensions(), kernel.dimensions(), output->dimensions(), stride, top,
                     left, &s);
  if (error.failure()) return error;
  if (!AreScales(s, a, b))
    return ffi::Error::InvalidArgument("depthwise: shapes do not fit each other");
  return ForActivation(activation, [&](auto code) {
    Convolve(pool, s, kernel.typed_data(), output->typed_data(), kBand, [&] {
      return ActivatedRows<code()>(s, input.typed_data(), a.typed_data(), b.typed_data());
    });
  });
}

// The gradient of a row of the input, [W, C]. Input pixel h got tap i of output
// (h + top - i) / stride, where that is a whole number.
void GradientOfRow(const Shape& s, const float* g, const float* w, int64_t image, int64_t line,
                   float* out) {
  for (int64_t phase = 0; phase < std::min(s.stride, s.width); ++phase) {
    Row row{out + phase * s.channels, (s.width - phase + s.stride - 1) / s.stride,
            s.stride * s.channels, 0, {}, {}, 1, s.out_width, s.channels, {}};
    for (int64_t i = 0; i < s.kernel; ++i) {
      const int64_t at = line + s.top - i;
      if (at < 0 || at % s.stride || at / s.stride >= s.out_height) continue;
      row.source[row.rows] = g + (image * s.out_height + at / s.stride) * s.out_width * s.channels;
      row.weights[row.rows++] = w + i * s.kernel * s.channels;
    }
    for (int64_t j = 0; j < s.kernel; ++j) {
      const int64_t at = phase + s.left - j;
      if (at % s.stride) continue;  // exact also below 0
      row.taps.shift[row.taps.count] = at / s.stride;
      row.taps.weight[row.taps.count++] = j * s.channels;
    }
    ForChannels(s.channels, row);
  }
}

ffi::Error InputGradient(ffi::ThreadPool pool, Array gradient, Array kernel, Result output,
                         int64_t stride, int64_t top, int64_t left) {
  Shape s;
  auto error = Check(output->dimensions(), kernel.dimensions(), gradient.dimensions(), stride, top,
                     left, &s);
  if (error.failure()) return error;
  const float *g = gradient.typed_data(), *w = kernel.typed_data();
  float* out = output->typed_data();
  Parallel(pool, s.batch * s.height, [&](int64_t task) {
    GradientOfRow(s, g, w, task / s.height, task % s.height, out + task * s.width * s.channels);
  });
  return ffi::Error::Success();
}

// Gradients of the convolution of act(x * a + b): by x, and [2, C] by a and by b. That by what is
// convolved is held one row at a time.
template <int A>
void DifferentiateInput(ffi::ThreadPool& pool, const Shape& s, const float* g, const float* w,
                        const float* x, const float* a, const float* b, float* out, float* sums) {
  const int64_t bands = (s.height + kBand - 1) / kBand, tasks = s.batch * bands;
  const int64_t size = 2 * s.channels, wide = s.width * s.channels;
  std::vector<double> parts(tasks * size);
  Parallel(pool, tasks, [&](int64_t task) {
    const int64_t image = task / bands, first = task % bands * kBand;
    std::vector<float> row(wide), some(size);
    double* part = &parts[task * size];
    for (int64_t line = first; line < std::min(first + kBand, s.height); ++line) {
      GradientOfRow(s, g, w, image, line, row.data());
      std::fill(some.begin(), some.end(), 0.0f);
      for (int64_t q = 0; q < s.width; ++q) {
        const int64_t at = (image * s.height + line) * wide + q * s.channels;
        ForChannels(s.channels, GradientRow<A>{x + at, &row[q * s.channels], a, b, out + at,
                                               some.data(), some.data() + s.channels});
      }
      for (int64_t i = 0; i < size; ++i) part[i] += some[i];
    }
  });
  AddUp(parts, size, sums);
}

ffi::Error FusedInputGradient(ffi::ThreadPool pool, Array gradient, Array kernel, Array input,
                              Array a, Array b, Result output, Result sums, int64_t stride,
                              int64_t top, int64_t left, int64_t activation) {
  Shape s;
  auto error = Check(output->dimensions(), kernel.dimensions(), gradient.dimensions(), stride, top,
                     left, &s);
  if (error.failure()) return error;
  if (!AreScales(s, a, b) || input.element_count() != output->element_count() ||
      sums->element_count() != static_cast<size_t>(2 * s.channels))
    return ffi::Error::InvalidArgument("depthwise: shapes do not fit each other");
  return ForActivation(activation, [&](auto code) {
    DifferentiateInput<code()>(pool, s, gradient.typed_data(), kernel.typed_data(),
                               input.typed_data(), a.typed_data(), b.typed_data(),
                               output->typed_data(), sums->typed_data());
  });
}

// Where the rows of some channels of the input are, and how far its pixels are apart.
struct PlainStrip {
  const float* x;

  template <int L, int N>
  void Fill(const Shape&, int64_t, int64_t, int64_t, float*) const {}
  const float* At(const Shape& s, int64_t image, int64_t row, int64_t c, int, const float*) const {
    return x + (image * s.height + row) * s.width * s.channels + c;
  }
  int64_t Step(const Shape& s, int) const { return s.channels; }
};

// The same of act(x * a + b), of which K rows are kept. No template of the activation: the loops of
// the correlation would be compiled for each.
struct ActivatedStrip {
  const float *x, *a, *b;
  int64_t activation;

  template <int L, int N>
  void Fill(const Shape& s, int64_t image, int64_t row, int64_t c, float* kept) const {
    switch (activation) {
      case kRelu: return FillBy<kRelu, L, N>(s, image, row, c, kept);
      case kRelu6: return FillBy<kRelu6, L, N>(s, image, row, c, kept);
      case kSwish: return FillBy<kSwish, L, N>(s, image, row, c, kept);
      default: return FillBy<kNone, L, N>(s, image, row, c, kept);
    }
  }

  template <int A, int L, int N>
  void FillBy(const Shape& s, int64_t image, int64_t row, int64_t c, float* kept) const {
    const float* in = x + (image * s.height + row) * s.width * s.channels + c;
    float* out = kept + row % s.kernel * s.width * L * N;
    typename Vector<L>::type scale[N], shift[N];
    for (int n = 0; n < N; ++n) {
      scale[n] = Load<L>(a + c + n * L);
      shift[n] = Load<L>(b + c + n * L);
    }
    for (int64_t q = 0; q < s.width; ++q, in += s.channels, out += L * N)
      for (int n = 0; n < N; ++n)
        Store<L>(out + n * L, Activate<A, L>(Load<L>(in + n * L) * scale[n] + shift[n]));
  }
  const float* At(const Shape& s, int64_t, int64_t row, int64_t, int width,
                  const float* kept) const {
    return kept + row % s.kernel * s.width * width;
  }
  int64_t Step(const Shape&, int width) const { return width; }
};

// The kernel gradient over some images, for a block of channels: part[i, j, c].
template <int K, typename Strip>
struct Correlation {
  Strip strip;
  const float* g;
  float* part;  // [K, K, C]
  int64_t first, last;
  Shape s;

  template <int L, int N>
  void Run(int64_t c) const {
    typename Vector<L>::type sum[K][K][N] = {};
    std::unique_ptr<float[]> kept(new float[K * s.width * L * N]);
    for (int64_t image = first; image < last; ++image) {
      int64_t next = 0;  // row of the input
      for (int64_t line = 0; line < s.out_height; ++line) {
        const int64_t top = line * s.stride - s.top;
        next = std::max(next, top);
        for (; next < std::min(top + K, s.height); ++next)
          strip.template Fill<L, N>(s, image, next, c, kept.get());
        for (int64_t i = std::max<int64_t>(0, -top); i < std::min<int64_t>(K, s.height - top); ++i)
          Line<L, N>(strip.At(s, image, top + i, c, L * N, kept.get()), strip.Step(s, L * N),
                     g + (image * s.out_height + line) * s.out_width * s.channels + c, sum[i]);
      }
    }
    for (int i = 0; i < K; ++i)
      for (int j = 0; j < K; ++j)
        for (int n = 0; n < N; ++n)
          Store<L>(part + (i * K + j) * s.channels + c + n * L, sum[i][j][n]);
  }

  template <int L, int N>
  inline void Line(const float* source, int64_t step, const float* gradient,
                   typename Vector<L>::type (&total)[K][N]) const {
    // In registers for the length of a line, and no longer: short sums lose fewer bits.
    typename Vector<L>::type sum[K][N] = {};
    for (int64_t q = 0; q < s.out_width; ++q) {
      const int64_t from = q * s.stride - s.left;
      const float* here = gradient + q * s.channels;
      if (from >= 0 && from + K <= s.width) {
        for (int n = 0; n < N; ++n) {
          const auto value = Load<L>(here + n * L);
          for (int j = 0; j < K; ++j)
            sum[j][n] += Load<L>(source + (from + j) * step + n * L) * value;
        }
      } else {
        for (int j = 0; j < K; ++j) {
          if (from + j < 0 || from + j >= s.width) continue;
          for (int n = 0; n < N; ++n)
            sum[j][n] += Load<L>(source + (from + j) * step + n * L) * Load<L>(here + n * L);
        }
      }
    }
    for (int j = 0; j < K; ++j)
      for (int n = 0; n < N; ++n) total[j][n] += sum[j][n];
  }
};

// Some channels of a correlation, cut so that the blocks are the same whatever the cut.
template <int K, typename Strip>
struct Part {
  const Correlation<K, Strip>& whole;
  int64_t from, to;

  template <int L, int N>
  void Run(int64_t c) const {
    if (c >= from && c < to) whole.template Run<L, N>(c);
  }
};

template <int K, typename Strip>
void Correlate(ffi::ThreadPool& pool, const Shape& s, const Strip& strip, const float* g,
               float* out) {
  // As many groups of images as make enough tasks; never by the number of threads, so that the
  // order of the sums, and with it each bit, is the same on any machine of a kind.
  const int64_t span = 4 * kLanes, blocks = (s.channels + span - 1) / span;
  const int64_t groups = std::min(s.batch, std::max<int64_t>(1, kGroupTasks / blocks));
  const int64_t size = K * K * s.channels;
  std::vector<float> scratch(groups > 1 ? groups * size : 0);
  float* parts = groups > 1 ? scratch.data() : out;
  Parallel(pool, groups * blocks, [&](int64_t task) {
    const int64_t group = task / blocks, from = task % blocks * span;
    Correlation<K, Strip> whole{strip, g, parts + group * size, s.batch * group / groups,
                                s.batch * (group + 1) / groups, s};
    ForChannels(s.channels, Part<K, Strip>{whole, from, from + span});
  });
  if (groups == 1) return;
  for (int64_t i = 0; i < size; ++i) {
    float sum = 0;
    for (int64_t group = 0; group < groups; ++group) sum += parts[group * size + i];
    out[i] = sum;
  }
}

template <typename Strip>
ffi::Error CorrelateAny(ffi::ThreadPool& pool, const Shape& s, const Strip& strip, const float* g,
                        float* out) {
  switch (s.kernel) {
    case 1: Correlate<1>(pool, s, strip, g, out); break;
    case 3: Correlate<3>(pool, s, strip, g, out); break;
    case 5: Correlate<5>(pool, s, strip, g, out); break;
    case 7: Correlate<7>(pool, s, strip, g, out); break;
    default: return ffi::Error::InvalidArgument("depthwise: the kernel must be 1, 3, 5 or 7 wide");
  }
  return ffi::Error::Success();
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Array input, Array gradient, Result output,
                          int64_t stride, int64_t top, int64_t left) {
  Shape s;
  auto error = Check(input.dimensions(), output->dimensions(), gradient.dimensions(), stride, top,
                     left, &s);
  if (error.failure()) return error;
  return CorrelateAny(pool, s, PlainStrip{input.typed_data()}, gradient.typed_data(),
                      output->typed_data());
}

ffi::Error FusedKernelGradient(ffi::ThreadPool pool, Array input, Array gradient, Array a, Array b,
                               Result output, int64_t stride, int64_t top, int64_t left,
                               int64_t activation) {
  Shape s;
  auto error = Check(input.dimensions(), output->dimensions(), gradient.dimensions(), stride, top,
                     left, &s);
  if (error.failure()) return error;
  if (!AreScales(s, a, b))
    return ffi::Error::InvalidArgument("depthwise: shapes do not fit each other");
  error = ForActivation(activation, [](auto) {});  // whether it is known
  if (error.failure()) return error;
  const ActivatedStrip strip{input.typed_data(), a.typed_data(), b.typed_data(), activation};
  return CorrelateAny(pool, s, strip, gradient.typed_data(), output->typed_data());
}

auto Bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("top")
      .Attr<int64_t>("left");
}

auto BindFused() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<int64_t>("stride")
      .Attr<int64_t>("top")
      .Attr<int64_t>("left")
      .Attr<int64_t>("activation");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_forward, Forward, Bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_input_gradient, InputGradient, Bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_kernel_gradient, KernelGradient, Bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_fused_forward, FusedForward, BindFused());
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_fused_input_gradient, FusedInputGradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Arg<Array>()
                                  .Ret<Array>()
                                  .Ret<Array>()
                                  .Attr<int64_t>("stride")
                                  .Attr<int64_t>("top")
                                  .Attr<int64_t>("left")
                                  .Attr<int64_t>("activation"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(depthwise_fused_kernel_gradient, FusedKernelGradient, BindFused());

}  // namespace native
