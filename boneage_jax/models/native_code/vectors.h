// Vectors of floats, and loops shared out among the threads of XLA's pool.

#ifndef BONEAGE_JAX_VECTORS_H_
#define BONEAGE_JAX_VECTORS_H_

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

#ifdef __AVX512F__
#include <immintrin.h>
#endif

#include "xla/ffi/api/ffi.h"

namespace native {

namespace ffi = xla::ffi;
using Array = ffi::Buffer<ffi::F32>;
using Result = ffi::Result<Array>;

#ifdef __AVX512F__
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif

template <int L>
struct Vector {
  typedef float type __attribute__((vector_size(L * sizeof(float))));
  typedef int32_t integer __attribute__((vector_size(L * sizeof(int32_t))));
};

template <int L>
inline typename Vector<L>::type Load(const float* from) {
  typename Vector<L>::type value;
  std::memcpy(&value, from, sizeof(value));
  return value;
}

template <int L>
inline void Store(float* to, typename Vector<L>::type value) {
  std::memcpy(to, &value, sizeof(value));
}

// Stores the first floats of kLanes.
inline void StoreFirst(float* to, typename Vector<kLanes>::type value, int64_t count) {
  if (count >= kLanes) return Store<kLanes>(to, value);
#ifdef __AVX512F__
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1), (__m512)value);
#else
  for (int64_t i = 0; i < count; ++i) to[i] = value[i];
#endif
}

// Calls fn.template Run<L, N>(c) for blocks of N vectors of L channels that cover all channels.
template <typename Fn>
void ForChannels(int64_t channels, const Fn& fn) {
  int64_t c = 0;
  for (; channels - c >= 2 * kLanes; c += 2 * kLanes) fn.template Run<kLanes, 2>(c);
  for (; channels - c >= kLanes; c += kLanes) fn.template Run<kLanes, 1>(c);
  for (; channels - c >= 8; c += 8) fn.template Run<8, 1>(c);
  for (; c < channels; ++c) fn.template Run<1, 1>(c);
}

// Runs fn(0) ... fn(count - 1) on the pool and the calling thread. The caller takes what no other
// thread has begun, so it never waits for a thread to become free.
template <typename Fn>
void Parallel(ffi::ThreadPool& pool, int64_t count, const Fn& fn) {
  struct Shared {
    std::atomic<int64_t> next{0}, done{0};
  };
  auto shared = std::make_shared<Shared>();
  const Fn* call = &fn;  // outlives every index that is handed out
  auto work = [shared, call, count] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < count;) {
      (*call)(i);
      shared->done.fetch_add(1, std::memory_order_release);
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(std::decay_t<decltype(work)>(work));
  work();
  while (shared->done.load(std::memory_order_acquire) < count) std::this_thread::yield();
}

// Adds up what tasks have summed, [tasks, size], in an order that no thread changes.
inline void AddUp(const std::vector<double>& parts, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) {
    double sum = 0;
    for (size_t at = i; at < parts.size(); at += size) sum += parts[at];
    out[i] = static_cast<float>(sum);
  }
}

}  // namespace native

#endif  // BONEAGE_JAX_VECTORS_H_
