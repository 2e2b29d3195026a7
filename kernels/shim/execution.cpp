#include "execution.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

#include "context_switch.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace shim {

Thread* current;
uint3 block_index;
dim3 block_size, grid_size;
char* dynamic_shared;

namespace {

constexpr unsigned BARRIERS = 16;

struct Warp {
    unsigned live;    // lanes that have not exited
    unsigned arrived; // lanes that wait in a warp operation
};

// What runs. Kept between launches: its allocations and stacks are used again.
struct Machine {
    const char* kernel_name = nullptr;
    const std::function<void()>* kernel = nullptr;
    std::vector<Thread> threads; // whole warps
    std::vector<Warp> warps;
    std::vector<unsigned> warp_order, lane_order;
    unsigned threads_live = 0;
    unsigned at_barrier[BARRIERS] = {};
    int barrier_sum[BARRIERS] = {};
    void* scheduler = nullptr; // its stack pointer while a thread runs
    Warp* warp = nullptr;      // the one that runs
    unsigned cursor = 0;       // the place in `lane_order` of the lane that runs
    std::vector<char*> free_stacks, all_stacks;
};
Machine machine;
std::mutex running;
std::atomic<std::thread::id> runner; // the OS thread that holds `running`

// --- stacks

constexpr size_t STACK_BYTES = 64 << 10;

// Stacks begin at different places of their pages: what the threads of a warp use most would else meet in a few lines of
// the processor's first cache.
constexpr size_t STAGGER_BYTES = 576, STAGGERED = 32;

char* top_of(char* stack) {
    size_t number = reinterpret_cast<uintptr_t>(stack) / STACK_BYTES;
    return stack + STACK_BYTES - number % STAGGERED * STAGGER_BYTES;
}

char* take_stack() {
    Machine& m = machine;
    if (m.free_stacks.empty()) {
        size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
        void* memory = mmap(nullptr, STACK_BYTES + page, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) fail("no memory for a thread's stack");
        mprotect(memory, page, PROT_NONE); // what runs over faults
        m.free_stacks.push_back(static_cast<char*>(memory) + page);
        m.all_stacks.push_back(m.free_stacks.back());
    }
    char* stack = m.free_stacks.back();
    m.free_stacks.pop_back();
    return stack;
}

void forget_redzones() {
#if defined(__SANITIZE_ADDRESS__)
    // Threads end without unwinding, and what the sanitizer fenced off in their frames would stay so.
    for (char* stack : machine.all_stacks) __asan_unpoison_memory_region(stack, STACK_BYTES);
#endif
}

// --- waiting

void entry();

// The next lane in order that can go on, or start; null where the scheduler has to look on.
Thread* next_lane() {
    Machine& m = machine;
    Thread* first = &m.threads[(m.warp - m.warps.data()) * 32];
    while (++m.cursor < 32) {
        Thread& next = first[m.lane_order[m.cursor]];
        if (next.state != Thread::READY) continue;
        if (!next.stack_pointer) {
            next.stack = take_stack();
            next.stack_pointer = prepare_stack(top_of(next.stack), entry);
        }
        return &next;
    }
    return nullptr;
}

// Gives the processor to the next lane, or back, until somebody makes the thread ready again.
void park(Thread::State state) {
    Thread* me = current;
    me->state = state;
    Thread* next = next_lane();
    if (next) current = next;
    shim_switch(&me->stack_pointer, next ? next->stack_pointer : machine.scheduler);
}

void open_barrier(unsigned id) {
    Machine& m = machine;
    for (Thread& thread : m.threads) {
        if (thread.state != Thread::AT_BARRIER || thread.barrier != id) continue;
        thread.barrier_result = m.barrier_sum[id];
        thread.state = Thread::READY;
    }
    m.at_barrier[id] = 0;
    m.barrier_sum[id] = 0;
}

// Exited threads hold no barrier (sm_70 and later), and must not be waited for by their warp.
void retire(Thread& thread) {
    Machine& m = machine;
    Warp& warp = *m.warp;
    unsigned lane = thread.linear % 32;
    warp.live &= ~(1u << lane);
    m.threads_live--;
    thread.state = Thread::DONE;
    for (unsigned other = 0; other < 32 && warp.arrived >> other; other++) {
        Thread& waiting = m.threads[thread.linear - lane + other];
        if ((warp.arrived >> other & 1) && (waiting.mask >> lane & 1))
            fail("thread %u exited while its warp waits for it in %s", thread.linear, waiting.waits_for);
    }
    if (m.threads_live > 0 && m.at_barrier[0] == m.threads_live) open_barrier(0);
}

// --- running

// The next lane in order, where it has not started: it needs no stack of its own yet.
Thread* next_fresh_lane() {
    Machine& m = machine;
    Thread* first = &m.threads[(m.warp - m.warps.data()) * 32];
    for (unsigned at = m.cursor + 1; at < 32; at++) {
        Thread& next = first[m.lane_order[at]];
        if (next.state != Thread::READY) continue;
        if (next.stack_pointer) return nullptr;
        m.cursor = at;
        return &next;
    }
    return nullptr;
}

// Where a stack begins. A thread that ends hands its stack to the next one at once, so a block without barriers runs
// on one stack and switches once a warp.
void entry() {
    for (;;) {
        (*machine.kernel)();
        Thread* done = current;
        retire(*done);
        Thread* next = next_fresh_lane();
        if (!next) {
            machine.free_stacks.push_back(done->stack);
            void* nowhere;
            shim_switch(&nowhere, machine.scheduler);
            __builtin_unreachable();
        }
        next->stack = done->stack;
        next->stack_pointer = next->stack;
        current = next;
    }
}

// Runs a warp until none of its lanes can go on; whether any could.
bool run_warp(unsigned index) {
    Machine& m = machine;
    m.warp = &m.warps[index];
    bool ran = false, again = true;
    while (again) {
        again = false;
        m.cursor = ~0u; // before the first
        while (Thread* next = next_lane()) {
            ran = again = true;
            current = next;
            shim_switch(&m.scheduler, next->stack_pointer);
        }
    }
    return ran;
}

void reset_block(size_t shared_bytes) {
    Machine& m = machine;
    unsigned threads = block_size.x * block_size.y * block_size.z;
    m.threads_live = threads;
    for (unsigned i = 0; i < BARRIERS; i++) m.at_barrier[i] = 0, m.barrier_sum[i] = 0;
    for (unsigned i = 0; i < m.warps.size(); i++) {
        unsigned lanes = threads - i * 32;
        m.warps[i] = {lanes >= 32 ? ~0u : (1u << lanes) - 1, 0};
    }
    for (unsigned i = 0; i < m.threads.size(); i++) {
        Thread& thread = m.threads[i];
        thread.state = i < threads ? Thread::READY : Thread::DONE;
        thread.stack_pointer = nullptr;
        thread.copies.clear();
        thread.copy_group = 0;
    }
    forget_redzones();
    memset(dynamic_shared, 0xff, shared_bytes); // no number until somebody wrote one
}

void run_block() {
    Machine& m = machine;
    while (m.threads_live > 0) {
        bool ran = false;
        for (unsigned warp : m.warp_order) ran |= run_warp(warp);
        if (!ran) fail("deadlock: %u threads are alive, %u at __syncthreads", m.threads_live, m.at_barrier[0]);
    }
}

// 0 .. n, shuffled where FAKECUDA_SEED asks for it.
std::vector<unsigned> order(unsigned n) {
    static const uint64_t seed = getenv("FAKECUDA_SEED") ? strtoull(getenv("FAKECUDA_SEED"), nullptr, 10) : 0;
    std::vector<unsigned> order(n);
    for (unsigned i = 0; i < n; i++) order[i] = i;
    uint64_t random = seed * 0x9E3779B97F4A7C15ull + n;
    for (unsigned i = n; seed && i > 1; i--) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(order[i - 1], order[(random >> 33) % i]);
    }
    return order;
}

} // namespace

std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> kernels;
    return kernels;
}

int barrier(const char* name, unsigned id, unsigned count, int value) {
    Machine& m = machine;
    Thread* me = current;
    me->waits_for = name;
    me->barrier = id;
    m.barrier_sum[id] += value;
    m.at_barrier[id]++;
    if (m.at_barrier[id] < (count ? count : m.threads_live)) {
        park(Thread::AT_BARRIER);
        return me->barrier_result;
    }
    int sum = m.barrier_sum[id];
    open_barrier(id);
    park(Thread::READY); // the others first may go on as well: no order is promised
    return sum;
}

void converge(const char* name, unsigned mask, void* exchange, void (*all)(void** lanes, unsigned mask)) {
    Thread* me = current;
    unsigned lane = me->linear % 32;
    Warp& warp = *machine.warp;
    Thread* first = me - lane;
    if (!(mask >> lane & 1)) fail("%s: lane %u is not in its own mask %08x", name, lane, mask);
    if (mask & ~warp.live) fail("%s: mask %08x names lanes that do not exist any more (live: %08x)", name, mask, warp.live);
    me->waits_for = name;
    me->mask = mask;
    me->exchange = exchange;
    warp.arrived |= 1u << lane;
    if ((warp.arrived & mask) != mask) return park(Thread::IN_WARP);

    void* lanes[32] = {};
    for (unsigned i = 0; i < 32; i++) {
        if (!(mask >> i & 1)) continue;
        Thread& other = first[i];
        if (other.mask != mask || (other.waits_for != name && strcmp(other.waits_for, name) != 0))
            fail("warp %u: its lanes disagree: %s with mask %08x against %s with mask %08x", me->linear / 32,
                 other.waits_for, other.mask, name, mask);
        lanes[i] = other.exchange;
    }
    all(lanes, mask);
    for (unsigned i = 0; i < 32; i++)
        if ((mask >> i & 1) && first[i].state == Thread::IN_WARP) first[i].state = Thread::READY;
    warp.arrived &= ~mask;
}

unsigned live_lanes() { return machine.warp->live; }

void launch(const char* name, dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& kernel, unsigned first_x) {
    std::lock_guard guard(running);
    runner = std::this_thread::get_id();
    Machine& m = machine;
    unsigned warps = (block.x * block.y * block.z + 31) / 32;
    m.kernel_name = name;
    m.kernel = &kernel;
    m.threads.resize(warps * 32);
    m.warps.resize(warps);
    for (unsigned i = 0; i < warps * 32; i++) {
        m.threads[i].index = {i % block.x, i / block.x % block.y, i / (block.x * block.y)};
        m.threads[i].linear = i;
    }
    m.warp_order = order(warps);
    m.lane_order = order(32);
    // Anew each time, and no larger than asked for: the sanitizer watches its end.
    void* shared = nullptr;
    if (posix_memalign(&shared, 128, shared_bytes) != 0) fail("no memory for %zu bytes of shared memory", shared_bytes);
    dynamic_shared = static_cast<char*>(shared);
    block_size = block;
    grid_size = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = first_x; x < grid.x; x++) {
                block_index = {x, y, z};
                reset_block(shared_bytes);
                run_block();
            }
    free(shared);
    m.kernel_name = nullptr;
    current = nullptr;
    runner = std::thread::id();
}

std::string where() {
    if (runner.load() != std::this_thread::get_id()) return "";
    char text[256];
    snprintf(text, sizeof text, "%s, block (%u, %u, %u), thread %u", machine.kernel_name, block_index.x, block_index.y,
             block_index.z, current ? current->linear : 0);
    return text;
}

void fail(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "CUDA shim: %s: ", where().c_str());
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    unsigned shown = 0;
    for (const Thread& thread : machine.threads) {
        if (thread.state == Thread::DONE || thread.state == Thread::READY || shown++ >= 64) continue;
        fprintf(stderr, "  thread %u waits in %s\n", thread.linear, thread.waits_for);
    }
    abort();
}

} // namespace shim
