// Activations, and the gradient of one after a normalisation.

#ifndef BONEAGE_JAX_ACTIVATIONS_H_
#define BONEAGE_JAX_ACTIVATIONS_H_

#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace native {

enum Activation { kNone = 0, kRelu = 1, kRelu6 = 2, kSwish = 3 };

// exp by Cephes' polynomial, within 2 units in the last place.
template <int L>
inline typename Vector<L>::type Exp(typename Vector<L>::type x) {
  using Floats = typename Vector<L>::type;
  using Integers = typename Vector<L>::integer;
  x = x < -87.0f ? Floats{} - 87.0f : x;
  x = x > 88.0f ? Floats{} + 88.0f : x;
  const Floats shifted = x * 1.44269504f + 12582912.0f;  // rounds to a whole number
  const Floats n = shifted - 12582912.0f;
  const Floats r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Floats y = r * 1.9875691500e-4f + 1.3981999507e-3f;
  y = y * r + 8.3334519073e-3f;
  y = y * r + 4.1665795894e-2f;
  y = y * r + 1.6666665459e-1f;
  y = y * r + 5.0000001201e-1f;
  y = y * r * r + r + 1.0f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  Floats scale;
  std::memcpy(&scale, &power, sizeof(scale));
  return y * scale;
}

// What is not finite stays so.
template <int A, int L>
inline typename Vector<L>::type Activate(typename Vector<L>::type z) {
  using Floats = typename Vector<L>::type;
  const Floats zero = {};
  if constexpr (A == kRelu) {
    return z < 0.0f ? zero : z;
  } else if constexpr (A == kRelu6) {
    const Floats positive = z < 0.0f ? zero : z;
    return positive > 6.0f ? zero + 6.0f : positive;
  } else if constexpr (A == kSwish) {
    return z / (1.0f + Exp<L>(-z));
  } else {
    return z;
  }
}

template <int A, int L>
inline typename Vector<L>::type Slope(typename Vector<L>::type z) {
  using Floats = typename Vector<L>::type;
  const Floats one = Floats{} + 1.0f;
  if constexpr (A == kRelu) {
    return z > 0.0f ? one : Floats{};  // 0 at the kink, as in jax.nn
  } else if constexpr (A == kRelu6) {
    return (z > 0.0f ? one : Floats{}) * (z < 6.0f ? one : Floats{});
  } else if constexpr (A == kSwish) {
    const Floats s = 1.0f / (1.0f + Exp<L>(-z));
    return s + z * s * (1.0f - s);
  } else {
    return one;
  }
}

// Some channels of one pixel: the gradient of act(x * a + b) by x, of which g is the gradient, and
// what it adds to the sums of those by a and by b.
template <int A>
struct GradientRow {
  const float *x, *g, *a, *b;
  float *out, *by_a, *by_b;

  template <int L, int N>
  void Run(int64_t c) const {
    for (int n = 0; n < N; ++n, c += L) {
      const auto value = Load<L>(x + c), factor = Load<L>(a + c);
      const auto slope = Slope<A, L>(value * factor + Load<L>(b + c)) * Load<L>(g + c);
      Store<L>(out + c, slope * factor);
      Store<L>(by_a + c, Load<L>(by_a + c) + slope * value);
      Store<L>(by_b + c, Load<L>(by_b + c) + slope);
    }
  }
};

}  // namespace native

#endif  // BONEAGE_JAX_ACTIVATIONS_H_
