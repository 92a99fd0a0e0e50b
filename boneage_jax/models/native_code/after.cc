// The identity of an array that waits for another, as an XLA custom call for CPUs. XLA's CPU backend
// drops optimization barriers, shares what was to be computed again with what was computed before,
// and starts early on what depends on nothing new; it cannot see that the result does not depend on
// the second array. boneage_jax/models/recompute.py calls this.

#include <cstring>

#include "vectors.h"

namespace native {
namespace {

ffi::Error After(ffi::AnyBuffer value, ffi::AnyBuffer, ffi::Result<ffi::AnyBuffer> result) {
  if (value.size_bytes() != result->size_bytes())
    return ffi::Error::InvalidArgument("after: shapes do not fit each other");
  if (result->untyped_data() != value.untyped_data())
    std::memcpy(result->untyped_data(), value.untyped_data(), value.size_bytes());
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(after, After,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Ret<ffi::AnyBuffer>());

}  // namespace native
