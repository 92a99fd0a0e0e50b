// Convolution of float32 [B, H, W, C] by kernels [rows, columns, C, F] with stride 1, and its kernel
// gradient, as XLA custom calls for CPUs. The lines that a task reads are copied with zeros around
// them, so that the loops know no borders; a line's window is then one contiguous run of
// columns * C floats. boneage_jax/models/convolution_native.py calls this.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace native {
namespace {

constexpr bool kWide = kLanes == 16;         // 32 registers rather than 16
constexpr int kVectors = 3;                  // of output channels that share the loads of pixels
constexpr int kOutputs = kWide ? 12 : 5;     // channels of a gradient that share those of a window
constexpr int64_t kLines = 8;                // of a task, at least
constexpr int64_t kPixels = 256;             // of a sum in registers, about
constexpr int64_t kGroups = 8;               // tasks of a kernel gradient
constexpr int64_t kLargestParts = 1 << 20;   // floats of their sums

struct Shape {
  int64_t batch, height, width, inputs;  // of the input
  int64_t out_height, out_width, outputs;
  int64_t rows, columns, top, left;

  int64_t Window() const { return columns * inputs; }
  int64_t Padded() const { return (out_width + columns - 1) * inputs; }
};

ffi::Error Check(ffi::Span<const int64_t> input, ffi::Span<const int64_t> kernel,
                 ffi::Span<const int64_t> output, int64_t top, int64_t left, Shape* shape) {
  constexpr int64_t kFar = 1 << 20;
  if (input.size() != 4 || kernel.size() != 4 || output.size() != 4 || kernel[0] < 1 ||
      kernel[1] < 1 || kernel[2] < 1 || kernel[3] < 1 || kernel[2] != input[3] ||
      kernel[3] != output[3] || output[0] != input[0] || std::max(top, left) > kFar ||
      std::min(top, left) < -kFar)
    return ffi::Error::InvalidArgument("convolution: shapes do not fit each other");
  *shape = {input[0], input[1], input[2], input[3], output[1], output[2],
            output[3], kernel[0], kernel[1], top, left};
  return ffi::Error::Success();
}

// Memory of a thread, kept for its next task.
float* Scratch(int64_t floats) {
  thread_local std::vector<float> memory;
  if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
  return memory.data();
}

// Copies what outputs of `count` lines from `line` on read: count + rows - 1 lines of Padded() floats.
void CopyLines(const Shape& s, const float* image, int64_t line, int64_t count, float* to) {
  const int64_t size = s.Padded();
  const int64_t before = std::clamp<int64_t>(s.left, 0, s.out_width + s.columns - 1);
  const int64_t from = std::clamp<int64_t>(-s.left, 0, s.width);  // first pixel that is read
  const int64_t pixels = std::clamp<int64_t>(s.out_width + s.columns - 1 - before, 0, s.width - from);
  for (int64_t i = 0; i < count + s.rows - 1; ++i, to += size) {
    const int64_t at = line + i - s.top;
    if (at < 0 || at >= s.height) {
      std::fill_n(to, size, 0.0f);
      continue;
    }
    std::fill_n(to, before * s.inputs, 0.0f);
    float* end = std::copy_n(image + (at * s.width + from) * s.inputs, pixels * s.inputs,
                             to + before * s.inputs);
    std::fill(end, to + size, 0.0f);
  }
}

// The weights of N vectors of output channels: [rows, columns * C, N * kLanes].
struct Block {
  const float* weights;
  int64_t first, channels;
};

// P neighbouring pixels of a line, for N vectors of output channels.
template <int N, int P>
inline void Pixels(const Shape& s, const float* lines, const Block& block, float* out) {
  typename Vector<kLanes>::type sum[P][N] = {};
  const float* w = block.weights;
  for (int64_t i = 0; i < s.rows; ++i) {
    const float* window[P];
    for (int p = 0; p < P; ++p) window[p] = lines + i * s.Padded() + p * s.inputs;
    for (int64_t t = 0; t < s.Window(); ++t, w += N * kLanes) {
      typename Vector<kLanes>::type weight[N];
      for (int n = 0; n < N; ++n) weight[n] = Load<kLanes>(w + n * kLanes);
      for (int p = 0; p < P; ++p)
        for (int n = 0; n < N; ++n) sum[p][n] += window[p][t] * weight[n];
    }
  }
  for (int p = 0; p < P; ++p) {
    for (int n = 0; n < N - 1; ++n) Store<kLanes>(out + p * s.outputs + n * kLanes, sum[p][n]);
    StoreFirst(out + p * s.outputs + (N - 1) * kLanes, sum[p][N - 1],
               block.channels - (N - 1) * kLanes);
  }
}

template <int N>
void Line(const Shape& s, const float* lines, const Block& block, float* out) {
  constexpr int P = kWide ? (N == 1 ? 12 : 8) : (N == 1 ? 8 : N == 2 ? 6 : 4);
  int64_t q = 0;
  for (; q + P <= s.out_width; q += P) Pixels<N, P>(s, lines + q * s.inputs, block, out + q * s.outputs);
  for (; q + 4 <= s.out_width; q += 4) Pixels<N, 4>(s, lines + q * s.inputs, block, out + q * s.outputs);
  for (; q < s.out_width; ++q) Pixels<N, 1>(s, lines + q * s.inputs, block, out + q * s.outputs);
}

int Vectors(const Block& block) { return (block.channels + kLanes - 1) / kLanes; }

// Cuts the output channels into blocks of up to kVectors vectors.
std::vector<Block> Pack(const Shape& s, const float* kernel, std::vector<float>* memory) {
  const int64_t vectors = (s.outputs + kLanes - 1) / kLanes, depth = s.rows * s.Window();
  const int64_t count = (vectors + kVectors - 1) / kVectors;
  memory->assign(vectors * kLanes * depth, 0.0f);
  std::vector<Block> blocks;
  float* to = memory->data();
  for (int64_t b = 0; b < count; ++b) {
    const int64_t first = vectors * b / count * kLanes, end = vectors * (b + 1) / count * kLanes;
    const int64_t channels = std::min(end, s.outputs) - first;
    blocks.push_back({to, first, channels});
    for (int64_t t = 0; t < depth; ++t, to += end - first)
      std::copy_n(kernel + t * s.outputs + first, channels, to);
  }
  return blocks;
}

ffi::Error Convolve(ffi::ThreadPool pool, Array input, Array kernel, Result output, int64_t top,
                    int64_t left) {
  Shape s;
  auto error = Check(input.dimensions(), kernel.dimensions(), output->dimensions(), top, left, &s);
  if (error.failure()) return error;
  std::vector<float> memory;
  if (output->element_count() == 0) return ffi::Error::Success();
  const auto blocks = Pack(s, kernel.typed_data(), &memory);
  const float* x = input.typed_data();
  float* out = output->typed_data();
  const int64_t bands = (s.out_height + kLines - 1) / kLines;
  Parallel(pool, s.batch * bands, [&](int64_t task) {
    const int64_t image = task / bands, first = task % bands * kLines;
    const int64_t count = std::min(kLines, s.out_height - first);
    float* lines = Scratch((count + s.rows - 1) * s.Padded());
    CopyLines(s, x + image * s.height * s.width * s.inputs, first, count, lines);
    for (const Block& block : blocks) {
      for (int64_t y = 0; y < count; ++y) {
        const float* from = lines + y * s.Padded();
        float* to = out + (image * s.out_height + first + y) * s.out_width * s.outputs + block.first;
        switch (Vectors(block)) {
          case 1: Line<1>(s, from, block, to); break;
          case 2: Line<2>(s, from, block, to); break;
          default: Line<3>(s, from, block, to);
        }
      }
    }
  });
  return ffi::Error::Success();
}

// Products of a window's floats, V vectors of them, with F channels of the gradient, summed over
// `count` lines and added to sums[f * stride + t].
template <int V, int F>
void Correlate(const Shape& s, const float* lines, const float* gradient, int64_t count, float* sums,
               int64_t stride) {
  typename Vector<kLanes>::type sum[F][V] = {};
  for (int64_t y = 0; y < count; ++y) {
    const float* window = lines + y * s.Padded();
    const float* g = gradient + y * s.out_width * s.outputs;
    for (int64_t q = 0; q < s.out_width; ++q, window += s.inputs, g += s.outputs) {
      typename Vector<kLanes>::type part[V];
      for (int v = 0; v < V; ++v) part[v] = Load<kLanes>(window + v * kLanes);
      for (int f = 0; f < F; ++f)
        for (int v = 0; v < V; ++v) sum[f][v] += part[v] * g[f];
    }
  }
  for (int f = 0; f < F; ++f) {
    for (int v = 0; v < V; ++v) {
      float* to = sums + f * stride + v * kLanes;
      Store<kLanes>(to, Load<kLanes>(to) + sum[f][v]);
    }
  }
}

template <int F>
void Outputs(const Shape& s, const float* lines, const float* gradient, int64_t count, float* sums,
             int64_t stride) {
  int64_t t = 0;
  for (; t + 2 * kLanes <= stride; t += 2 * kLanes)
    Correlate<2, F>(s, lines + t, gradient, count, sums + t, stride);
  if (t < stride) Correlate<1, F>(s, lines + t, gradient, count, sums + t, stride);
}

template <int F = kOutputs>
void SomeOutputs(int64_t outputs, const Shape& s, const float* lines, const float* gradient,
                 int64_t count, float* sums, int64_t stride) {
  if (outputs == F) return Outputs<F>(s, lines, gradient, count, sums, stride);
  if constexpr (F > 1) SomeOutputs<F - 1>(outputs, s, lines, gradient, count, sums, stride);
}

// Adds what an image gives to sums[rows, F, stride].
void AddImage(const Shape& s, const float* image, const float* gradient, float* sums, int64_t stride) {
  const int64_t together = std::max<int64_t>(1, kPixels / s.out_width);
  const int64_t band = std::max(kLines, together), blocks = (s.outputs + kOutputs - 1) / kOutputs;
  // The last window of all is read up to a whole vector; what is beyond it is not used.
  float* lines = Scratch((band + s.rows - 1) * s.Padded() + stride);
  for (int64_t first = 0; first < s.out_height; first += band) {
    const int64_t last = std::min(first + band, s.out_height);
    CopyLines(s, image, first, last - first, lines);
    for (int64_t y = first; y < last; y += together) {
      const float* g = gradient + y * s.out_width * s.outputs;
      for (int64_t i = 0; i < s.rows; ++i) {
        const float* from = lines + (y - first + i) * s.Padded();
        for (int64_t b = 0; b < blocks; ++b) {
          const int64_t low = s.outputs * b / blocks, high = s.outputs * (b + 1) / blocks;
          SomeOutputs(high - low, s, from, g + low, std::min(together, last - y),
                      sums + (i * s.outputs + low) * stride, stride);
        }
      }
    }
  }
}

ffi::Error KernelGradient(ffi::ThreadPool pool, Array input, Array gradient, Result output,
                          int64_t top, int64_t left) {
  Shape s;
  auto error = Check(input.dimensions(), output->dimensions(), gradient.dimensions(), top, left, &s);
  if (error.failure()) return error;
  if (gradient.element_count() == 0) {
    std::fill_n(output->typed_data(), output->element_count(), 0.0f);
    return ffi::Error::Success();
  }
  const float *x = input.typed_data(), *g = gradient.typed_data();
  const int64_t stride = (s.Window() + kLanes - 1) / kLanes * kLanes;
  const int64_t size = s.rows * s.outputs * stride;
  // Cut by shapes alone, never by the number of threads, so that each bit is always the same.
  const int64_t most = std::max<int64_t>(2, kLargestParts / size);
  const int64_t groups = std::max<int64_t>(1, std::min({kGroups, most, s.batch}));
  std::vector<float> parts(groups * size);
  Parallel(pool, groups, [&](int64_t group) {
    for (int64_t image = s.batch * group / groups; image < s.batch * (group + 1) / groups; ++image)
      AddImage(s, x + image * s.height * s.width * s.inputs,
               g + image * s.out_height * s.out_width * s.outputs, parts.data() + group * size,
               stride);
  });
  float* out = output->typed_data();
  Parallel(pool, s.rows, [&](int64_t row) {
    for (int64_t f = 0; f < s.outputs; ++f) {
      for (int64_t t = 0; t < s.Window(); ++t) {
        float sum = 0;
        for (int64_t group = 0; group < groups; ++group)
          sum += parts[group * size + (row * s.outputs + f) * stride + t];
        out[(row * s.Window() + t) * s.outputs + f] = sum;
      }
    }
  });
  return ffi::Error::Success();
}

auto Bind() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Array>()
      .Arg<Array>()
      .Ret<Array>()
      .Attr<int64_t>("top")
      .Attr<int64_t>("left");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution, Convolve, Bind());
XLA_FFI_DEFINE_HANDLER_SYMBOL(convolution_kernel_gradient, KernelGradient, Bind());

}  // namespace native
