// A device under PrivateUse1 that computes every aten operator on the CPU, and knows none of npu::.
//
// Its memory is the host's, but nothing of the CPU's kernels reaches it: each call copies its
// tensors to the CPU and its results back. What a backend has to have of its own is here: memory,
// copies, views, one device index. Everything else is the fallback.

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/bmm.h>
#include <c10/core/impl/alloc_cpu.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <cstring>

namespace {

constexpr auto kDevice = c10::DeviceType::PrivateUse1;

struct Memory final : at::Allocator {
    at::DataPtr allocate(size_t bytes) override {
        void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
        return {data, data, &release, at::Device(kDevice, 0)};
    }
    static void release(void* data) {
        if (data) {
            c10::free_cpu(data);
        }
    }
    at::DeleterFnPtr raw_deleter() const override {
        return &release;
    }
    void copy_data(void* to, const void* from, size_t bytes) const override {
        std::memcpy(to, from, bytes);
    }
};
Memory memory;
REGISTER_ALLOCATOR(kDevice, &memory)

// One stream, on which everything has happened once its call returns.
struct Guard : c10::impl::NoOpDeviceGuardImpl<kDevice> {
    c10::Device getDevice() const override {
        return {kDevice, 0};
    }
    c10::Stream getStream(c10::Device) const noexcept override {
        return c10::Stream(c10::Stream::DEFAULT, getDevice());
    }
    void record(void**, const c10::Stream&, const c10::DeviceIndex,
                const c10::EventFlag) const override {}
    void block(void*, const c10::Stream&) const override {}
    bool queryEvent(void*) const override {
        return true;
    }
    void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

// What autograd asks a device for.
struct Hooks final : at::PrivateUse1HooksInterface {
    bool hasPrimaryContext(c10::DeviceIndex) const override {
        return true;
    }
};
Hooks hooks;
[[maybe_unused]] const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

at::Tensor empty_memory_format(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                               std::optional<at::Layout>, std::optional<at::Device>,
                               std::optional<bool>, std::optional<at::MemoryFormat> format) {
    return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(dtype), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
    return at::detail::empty_strided_generic(size, stride, &memory, kKeys,
                                             c10::dtype_or_default(dtype));
}

// A CPU tensor over the same memory, for copies alone.
at::Tensor on_host(const at::Tensor& tensor) {
    if (tensor.is_cpu()) {
        return tensor;
    }
    auto keep = tensor.storage();
    auto bytes = keep.nbytes();
    c10::Storage storage(c10::Storage::use_byte_size_t(), bytes,
                         at::DataPtr(keep.mutable_data(), at::Device(at::kCPU)), nullptr, false);
    auto host = at::detail::make_tensor<at::TensorImpl>(
        std::move(storage), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    host.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                      tensor.storage_offset());
    return host;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
    auto target = on_host(to);
    target.copy_(on_host(from));
    return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
    if (to.sizes() != from.sizes()) {
        to.resize_(from.sizes());
    }
    return copy_from(from, to, false);
}

const at::Tensor& resize(const at::Tensor& self, at::IntArrayRef size,
                         std::optional<at::MemoryFormat>) {
    auto* impl = self.unsafeGetTensorImpl();
    impl->set_sizes_contiguous(size);
    auto bytes = (self.numel() + self.storage_offset()) * self.itemsize();
    if (bytes > self.storage().nbytes()) {
        auto larger = memory.allocate(bytes);
        std::memcpy(larger.get(), self.storage().data(), self.storage().nbytes());
        self.storage().set_data_ptr_noswap(std::move(larger));
        self.storage().set_nbytes(bytes);
    }
    return self;
}

at::Tensor& set_source(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                       at::IntArrayRef stride) {
    self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
    self.unsafeGetTensorImpl()->set_storage_offset(offset);
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride);
    return self;
}

at::Scalar local_scalar(const at::Tensor& self) {
    return on_host(self).item();
}

void to_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
    const auto& name = op.schema().name();
    TORCH_CHECK_NOT_IMPLEMENTED(name.rfind("aten::", 0) == 0 || name.rfind("prims::", 0) == 0,
                                "this device has no kernel of ", name);
    at::native::cpu_fallback(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
    library.impl("empty.memory_format", empty_memory_format);
    library.impl("empty_strided", empty_strided);
    library.impl("_copy_from", copy_from);
    library.impl("_copy_from_and_resize", copy_from_and_resize);
    library.impl("resize_", resize);
    library.impl("set_.source_Storage_storage_offset", set_source);
    library.impl("_local_scalar_dense", local_scalar);
    library.impl("view", at::native::view);
    library.impl("as_strided", at::native::as_strided_tensorimpl);
    library.impl("_reshape_alias", at::native::_reshape_alias);
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
    library.fallback(torch::CppFunction::makeFromBoxedFunction<&to_cpu>());
}

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
    library.fallback(torch::CppFunction::makeFallthrough());
}

// What autocast rounds on this device: a matmul that has to stay exact must not come here.
at::Tensor lower_mm(const at::Tensor& a, const at::Tensor& b) {
    c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastPrivateUse1);
    return at::mm(a.to(at::kBFloat16), b.to(at::kBFloat16));
}

at::Tensor lower_bmm(const at::Tensor& a, const at::Tensor& b) {
    c10::impl::ExcludeDispatchKeyGuard guard(c10::DispatchKey::AutocastPrivateUse1);
    return at::bmm(a.to(at::kBFloat16), b.to(at::kBFloat16));
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, library) {
    library.impl("mm", lower_mm);
    library.impl("bmm", lower_bmm);
}

}  // namespace
