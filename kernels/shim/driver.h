// A libcuda.so.1 for tests: the part of the driver's interface that tokrun uses, over the CPU shim.
//
// It is as strict as the driver, and in places stricter:
// - a stream is a queue; what is on it happens when somebody waits for it, and no sooner. So a result that is read too
//   early is still 0xff, and a pinned buffer that is written to too early changes what was copied from it;
// - memory is 0xff until written, ends at a page that cannot be touched, and is checked for overruns when it is freed;
// - copies are checked against their allocations; calls without a current context, and calls that synchronise or
//   allocate while their thread captures, are refused;
// - a module's functions are those that the given PTX declares, and its target and version must suit the device.
//
// FAKECUDA_NODEV=1            a driver without a device
// FAKECUDA_DEVICES=n          so many devices (1)
// FAKECUDA_CC=9.0             their compute capability
// FAKECUDA_DRIVER=13.0        the CUDA version that the driver knows
// FAKECUDA_MEMORY_BYTES=n     memory of each device (4 GiB)
// FAKECUDA_SEED=n             shuffles the order that threads run in
// FAKECUDA_FAIL_LAUNCH=n      the n-th launch fails, and with it everything after, as an illegal address does
// FAKECUDA_FAULT=name         kernels whose names begin so leave out their first blocks, so that tests must fail
// FAKECUDA_NO_KERNELS=1       kernels do nothing, so that all the time a step takes is the host's
// FAKECUDA_TRACE=file         what the driver is asked to do, a call a line, from those that need a context
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <memory>
#include <mutex>

#define API extern "C" __attribute__((visibility("default"))) int

enum Result {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
};

using Pointer = uint64_t; // CUdeviceptr

namespace fake {

struct Stream;

// --- the devices

struct Version {
    int major, minor;
};
Version compute_capability();
Version driver_version();
size_t device_memory_bytes();

// The device whose context is current on this thread, or -1.
int current_device();

// --- what every call asks first

// INVALID_CONTEXT without a current context, LAUNCH_FAILED after a launch failed, else OK. Notes the call, unless it did.
Result ready(const char* call = __builtin_FUNCTION());

// As `ready`; and CAPTURE_UNSUPPORTED, with the capture lost, while this thread captures.
Result ready_to_wait(const char* call = __builtin_FUNCTION());

#define REQUIRE(check)                                     \
    if (Result refused = (check); refused != OK) return refused

// --- streams

// Puts work on a stream, or into the graph that the stream is being captured to.
int enqueue(void* stream, std::function<void()> work);
bool is_capturing(void* stream);
bool thread_captures();
void invalidate_captures_of_thread();

// Does everything that is on a stream, or on all.
void finish(void* stream);
void finish_all();

// --- failure

bool has_failed();
void set_failed();

// --- memory

// Whether `bytes` bytes from `pointer` on are inside one allocation.
bool is_device_memory(Pointer pointer, size_t bytes);
bool is_pinned(const void* pointer, size_t bytes);

} // namespace fake
