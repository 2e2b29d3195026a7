// Streams, events, and graphs that are captured from streams.
#include <atomic>
#include <chrono>
#include <deque>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "driver.h"

namespace fake {

struct Graph {
    std::vector<std::function<void()>> work;
};

struct Stream {
    std::mutex queue_lock;
    std::recursive_mutex running; // held by whoever does the work
    std::deque<std::function<void()>> queue;
    std::unique_ptr<Graph> captured;
    std::thread::id capturing_thread;
    bool invalidated = false;
};

struct Event {
    void* stream = nullptr;
    bool done = false;
    std::chrono::steady_clock::time_point time;
};

namespace {

std::mutex streams_lock;
std::set<Stream*> streams;
std::atomic<bool> failed = false;

Stream& default_stream() {
    static Stream stream;
    return stream;
}

// The legacy and the per-thread default stream are handles of their own.
Stream& at(void* handle) {
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? default_stream() : *static_cast<Stream*>(handle);
}

void work_off(Stream& stream) {
    std::lock_guard running(stream.running);
    for (;;) {
        std::function<void()> next;
        {
            std::lock_guard guard(stream.queue_lock);
            if (stream.queue.empty()) return;
            next = std::move(stream.queue.front());
            stream.queue.pop_front();
        }
        if (!failed) next(); // after a failure nothing runs any more
    }
}

} // namespace

int enqueue(void* handle, std::function<void()> work) {
    Stream& stream = at(handle);
    std::lock_guard guard(stream.queue_lock);
    if (stream.invalidated) return CAPTURE_INVALIDATED;
    if (stream.captured)
        stream.captured->work.push_back(std::move(work));
    else
        stream.queue.push_back(std::move(work));
    return OK;
}

bool is_capturing(void* stream) { return at(stream).captured != nullptr; }

template <class F> static void each_capture_of_thread(F f) {
    std::lock_guard guard(streams_lock);
    for (Stream* stream : streams)
        if (stream->captured && stream->capturing_thread == std::this_thread::get_id()) f(*stream);
}
bool thread_captures() {
    bool captures = false;
    each_capture_of_thread([&](Stream&) { captures = true; });
    return captures;
}
void invalidate_captures_of_thread() {
    each_capture_of_thread([](Stream& stream) { stream.invalidated = true; });
}

void finish(void* stream) { work_off(at(stream)); }
void finish_all() {
    std::vector<Stream*> all = {&default_stream()};
    {
        std::lock_guard guard(streams_lock);
        all.insert(all.end(), streams.begin(), streams.end());
    }
    for (Stream* stream : all) work_off(*stream);
}

bool has_failed() { return failed; }
void set_failed() { failed = true; }

} // namespace fake

using namespace fake;

// --- streams

API cuStreamCreate(void** stream, unsigned) {
    REQUIRE(ready());
    Stream* made = new Stream;
    std::lock_guard guard(streams_lock);
    streams.insert(made);
    *stream = made;
    return OK;
}
API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(void* handle) {
    finish(handle);
    std::lock_guard guard(streams_lock);
    if (!streams.erase(static_cast<Stream*>(handle))) return INVALID_HANDLE;
    delete static_cast<Stream*>(handle);
    return OK;
}
API cuStreamSynchronize(void* stream) {
    REQUIRE(ready_to_wait());
    finish(stream);
    return ready();
}
API cuStreamQuery(void* stream) { return cuStreamSynchronize(stream); }

// --- events

API cuEventCreate(void** event, unsigned) {
    REQUIRE(ready());
    *event = new Event;
    return OK;
}
API cuEventDestroy_v2(void* handle) {
    auto* event = static_cast<Event*>(handle);
    if (event->stream && !event->done) finish(event->stream);
    delete event;
    return OK;
}
API cuEventRecord(void* handle, void* stream) {
    REQUIRE(ready());
    auto* event = static_cast<Event*>(handle);
    event->stream = stream;
    event->done = false;
    return enqueue(stream, [event] {
        event->time = std::chrono::steady_clock::now();
        event->done = true;
    });
}
// Whatever must come first is done at once, which the caller cannot tell from its being done later.
API cuStreamWaitEvent(void*, void* handle, unsigned) {
    REQUIRE(ready());
    auto* event = static_cast<Event*>(handle);
    if (event->stream && !is_capturing(event->stream)) finish(event->stream);
    return OK;
}
API cuEventSynchronize(void* handle) {
    REQUIRE(ready_to_wait());
    auto* event = static_cast<Event*>(handle);
    if (event->stream) finish(event->stream);
    return ready();
}
API cuEventQuery(void* event) { return cuEventSynchronize(event); }
API cuEventElapsedTime_v2(float* ms, void* start, void* end) {
    REQUIRE(ready());
    auto *from = static_cast<Event*>(start), *to = static_cast<Event*>(end);
    if (!from->stream || !to->stream) return INVALID_HANDLE;
    if (!from->done || !to->done) return NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return OK;
}
API cuEventElapsedTime(float* ms, void* start, void* end) { return cuEventElapsedTime_v2(ms, start, end); }

// --- graphs

API cuStreamBeginCapture_v2(void* handle, int) {
    REQUIRE(ready());
    Stream& stream = at(handle);
    if (&stream == &default_stream()) return CAPTURE_UNSUPPORTED;
    if (stream.captured) return CAPTURE_INVALIDATED;
    stream.captured = std::make_unique<Graph>();
    stream.capturing_thread = std::this_thread::get_id();
    stream.invalidated = false;
    return OK;
}
API cuStreamEndCapture(void* handle, void** graph) {
    Stream& stream = at(handle);
    *graph = nullptr;
    if (!stream.captured) return CAPTURE_UNMATCHED;
    std::unique_ptr<Graph> captured = std::move(stream.captured);
    if (std::exchange(stream.invalidated, false)) return CAPTURE_INVALIDATED;
    *graph = captured.release();
    return OK;
}
API cuStreamIsCapturing(void* handle, int* status) {
    *status = !at(handle).captured ? 0 : at(handle).invalidated ? 2 : 1;
    return OK;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    REQUIRE(ready_to_wait());
    *executable = new Graph(*static_cast<Graph*>(graph));
    return OK;
}
API cuGraphUpload(void*, void*) { return ready(); }
API cuGraphLaunch(void* executable, void* stream) {
    REQUIRE(ready());
    auto* graph = static_cast<Graph*>(executable);
    return enqueue(stream, [graph] {
        for (auto& work : graph->work)
            if (!failed) work();
    });
}
API cuGraphExecDestroy(void* executable) {
    finish_all(); // it may be under way
    delete static_cast<Graph*>(executable);
    return OK;
}
API cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return OK;
}
