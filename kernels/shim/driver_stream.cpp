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
    std::recursive_mutex running; // held by whoever does the work
    // The rest under `state`:
    std::deque<std::function<void()>> queue;
    std::unique_ptr<Graph> captured;
    std::thread::id capturing_thread;
    bool invalidated = false;
};

struct Event {
    std::shared_ptr<Stream> stream; // where it was last recorded
    std::atomic<bool> done = false;
    std::chrono::steady_clock::time_point time;
};

namespace {

std::mutex state; // never held while work is done
std::set<std::shared_ptr<Stream>> streams;
std::atomic<bool> failed = false;

// Handles are owned by whoever made them; what is under way keeps what it needs.
template <class T> std::shared_ptr<T>& at(void* handle) { return *static_cast<std::shared_ptr<T>*>(handle); }

const std::shared_ptr<Stream>& default_stream() {
    static const auto stream = std::make_shared<Stream>();
    return stream;
}
// The legacy and the per-thread default stream have handles of their own.
std::shared_ptr<Stream> stream_at(void* handle) {
    return reinterpret_cast<uintptr_t>(handle) <= 2 ? default_stream() : at<Stream>(handle);
}

void work_off(Stream& stream) {
    std::lock_guard running(stream.running);
    for (;;) {
        std::function<void()> next;
        {
            std::lock_guard guard(state);
            if (stream.queue.empty()) return;
            next = std::move(stream.queue.front());
            stream.queue.pop_front();
        }
        if (!failed) next(); // after a failure nothing runs any more
    }
}

} // namespace

int enqueue(void* handle, std::function<void()> work) {
    auto stream = stream_at(handle);
    std::lock_guard guard(state);
    if (stream->invalidated) return CAPTURE_INVALIDATED;
    if (stream->captured)
        stream->captured->work.push_back(std::move(work));
    else
        stream->queue.push_back(std::move(work));
    return OK;
}

bool is_capturing(void* handle) {
    auto stream = stream_at(handle);
    std::lock_guard guard(state);
    return stream->captured != nullptr;
}

template <class F> static void each_capture_of_thread(F f) {
    std::lock_guard guard(state);
    for (auto& stream : streams)
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

void finish(void* handle) { work_off(*stream_at(handle)); }
void finish_all() {
    std::vector<std::shared_ptr<Stream>> all = {default_stream()};
    {
        std::lock_guard guard(state);
        all.insert(all.end(), streams.begin(), streams.end());
    }
    for (auto& stream : all) work_off(*stream);
}

bool has_failed() { return failed; }
void set_failed() { failed = true; }

} // namespace fake

using namespace fake;

// --- streams

API cuStreamCreate(void** handle, unsigned) {
    REQUIRE(ready());
    auto made = std::make_shared<Stream>();
    std::lock_guard guard(state);
    streams.insert(made);
    *handle = new std::shared_ptr<Stream>(made);
    return OK;
}
API cuStreamCreateWithPriority(void** stream, unsigned flags, int) { return cuStreamCreate(stream, flags); }
API cuStreamDestroy_v2(void* handle) {
    finish(handle);
    std::lock_guard guard(state);
    if (!streams.erase(at<Stream>(handle))) return INVALID_HANDLE;
    delete &at<Stream>(handle);
    return OK;
}
API cuStreamSynchronize(void* stream) {
    REQUIRE(ready_to_wait());
    finish(stream);
    return ready(nullptr);
}
API cuStreamQuery(void* stream) { return cuStreamSynchronize(stream); }

// --- events

API cuEventCreate(void** handle, unsigned) {
    REQUIRE(ready());
    *handle = new std::shared_ptr<Event>(std::make_shared<Event>());
    return OK;
}
API cuEventDestroy_v2(void* handle) {
    delete &at<Event>(handle);
    return OK;
}
API cuEventRecord(void* handle, void* stream) {
    REQUIRE(ready());
    auto event = at<Event>(handle);
    event->stream = stream_at(stream);
    event->done = false;
    return enqueue(stream, [event] {
        event->time = std::chrono::steady_clock::now();
        event->done = true;
    });
}
// Whatever must come first is done at once, which the caller cannot tell from its being done later.
API cuStreamWaitEvent(void*, void* handle, unsigned) {
    REQUIRE(ready());
    if (auto stream = at<Event>(handle)->stream) work_off(*stream);
    return OK;
}
API cuEventSynchronize(void* handle) {
    REQUIRE(ready_to_wait());
    if (auto stream = at<Event>(handle)->stream) work_off(*stream);
    return ready(nullptr);
}
API cuEventQuery(void* event) { return cuEventSynchronize(event); }
API cuEventElapsedTime_v2(float* ms, void* start, void* end) {
    REQUIRE(ready());
    auto &from = at<Event>(start), &to = at<Event>(end);
    if (!from->stream || !to->stream) return INVALID_HANDLE;
    if (!from->done || !to->done) return NOT_READY;
    *ms = std::chrono::duration<float, std::milli>(to->time - from->time).count();
    return OK;
}
API cuEventElapsedTime(float* ms, void* start, void* end) { return cuEventElapsedTime_v2(ms, start, end); }

// --- graphs

API cuStreamBeginCapture_v2(void* handle, int) {
    REQUIRE(ready());
    auto stream = stream_at(handle);
    if (stream == default_stream()) return CAPTURE_UNSUPPORTED;
    std::lock_guard guard(state);
    if (stream->captured) return CAPTURE_INVALIDATED;
    stream->captured = std::make_unique<Graph>();
    stream->capturing_thread = std::this_thread::get_id();
    stream->invalidated = false;
    return OK;
}
API cuStreamEndCapture(void* handle, void** graph) {
    auto stream = stream_at(handle);
    *graph = nullptr;
    std::lock_guard guard(state);
    if (!stream->captured) return CAPTURE_UNMATCHED;
    std::shared_ptr<Graph> captured = std::move(stream->captured);
    if (std::exchange(stream->invalidated, false)) return CAPTURE_INVALIDATED;
    *graph = new std::shared_ptr<Graph>(captured);
    return OK;
}
API cuStreamIsCapturing(void* handle, int* status) {
    auto stream = stream_at(handle);
    std::lock_guard guard(state);
    *status = !stream->captured ? 0 : stream->invalidated ? 2 : 1;
    return OK;
}
API cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    REQUIRE(ready_to_wait());
    *executable = new std::shared_ptr<Graph>(std::make_shared<Graph>(*at<Graph>(graph)));
    return OK;
}
API cuGraphUpload(void*, void*) { return ready(); }
API cuGraphLaunch(void* executable, void* stream) {
    REQUIRE(ready());
    return enqueue(stream, [graph = at<Graph>(executable)] {
        for (auto& work : graph->work)
            if (!failed) work();
    });
}
API cuGraphExecDestroy(void* executable) {
    delete &at<Graph>(executable);
    return OK;
}
API cuGraphDestroy(void* graph) {
    delete &at<Graph>(graph);
    return OK;
}
