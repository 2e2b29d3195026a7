// Tests of the shim itself: what kernels do right comes out right, and what they do wrong is found.
// Built and run by `cargo xtask fake-driver --test`.
#include "cuda_shim.h"

#include <sys/wait.h>
#include <unistd.h>

#include <string>

// What kernels read and write.
static int numbers[4096];
static float floats[4096];
static uint32_t words[4096];

static void run(const char* name, unsigned grid, unsigned block, size_t shared_bytes, std::function<void()> kernel) {
    shim::launch(name, grid, block, shared_bytes, kernel);
}
static void expect(bool holds, const char* what) {
    if (holds) return;
    fprintf(stderr, "does not hold: %s\n", what);
    _exit(1);
}
#define EXPECT(condition) expect(condition, #condition)

// --- what is right

static void barriers_order_shared_memory() {
    auto reverse = [] {
        DYN_SMEM(int, shared);
        shared[threadIdx.x] = static_cast<int>(threadIdx.x);
        __syncthreads();
        numbers[blockIdx.x * blockDim.x + threadIdx.x] = shared[blockDim.x - 1 - threadIdx.x];
    };
    run("reverse", 2, 100, 400, reverse);
    for (int i = 0; i < 200; i++) EXPECT(numbers[i] == 99 - i % 100);
}

static void exited_threads_hold_no_barrier() {
    run("some_leave", 1, 96, 0, [] {
        if (threadIdx.x >= 40) return;
        int count = __syncthreads_count(threadIdx.x < 7);
        numbers[threadIdx.x] = count + 100 * __syncthreads_or(threadIdx.x == 3) + 1000 * __syncthreads_and(threadIdx.x < 39);
    });
    for (int i = 0; i < 40; i++) EXPECT(numbers[i] == 107);
}

static void warps_meet_at_named_barriers() {
    run("two_warps_of_four", 1, 128, 0, [] {
        __shared__ int from_first, from_third;
        if (threadIdx.x == 0) from_first = 5;
        if (threadIdx.x == 64) from_third = 6;
        shim::bar_sync(threadIdx.x < 64 ? 1 : 2, 64);
        numbers[threadIdx.x] = threadIdx.x < 64 ? from_first : from_third;
    });
    for (int i = 0; i < 128; i++) EXPECT(numbers[i] == (i < 64 ? 5 : 6));
}

static void lanes_exchange_what_they_should() {
    run("exchange", 1, 64, 0, [] {
        int lane = static_cast<int>(threadIdx.x % 32), sum = lane;
        for (int bits = 16; bits; bits /= 2) sum += __shfl_xor_sync(~0u, sum, bits);
        EXPECT(sum == 496);
        EXPECT(__shfl_down_sync(~0u, lane, 4, 8) == (lane % 8 < 4 ? lane + 4 : lane));
        EXPECT(__shfl_up_sync(~0u, lane, 1) == (lane ? lane - 1 : 0));
        EXPECT(__shfl_sync(~0u, 2.5 * lane, 3, 16) == 2.5 * (lane / 16 * 16 + 3));
        EXPECT(__ballot_sync(~0u, lane % 2) == 0xaaaaaaaau);
        EXPECT(__any_sync(~0u, lane == 31) && !__all_sync(~0u, lane < 31));
        EXPECT(__reduce_max_sync(~0u, lane * 3) == 93);
        if (lane < 8) EXPECT(__shfl_sync(0xffu, lane, 7) == 7);
    });
}

static void atomics_lose_nothing() {
    numbers[0] = 0;
    floats[0] = 0;
    run("count", 7, 65, 0, [] {
        atomicAdd(&numbers[0], 1);
        atomicAdd(&floats[0], 0.5f);
        atomicMax(&numbers[1], static_cast<int>(blockIdx.x * 65 + threadIdx.x));
    });
    EXPECT(numbers[0] == 455 && floats[0] == 227.5f && numbers[1] == 454);
}

static void bytes_multiply() {
    EXPECT(__dp4a(0x01ff7f80, 0x02030405, 7) == 7 + 2 - 3 + 127 * 4 - 128 * 5);
    EXPECT(__dp4a(0x01ff7f80u, 0x02030405u, 7u) == 7 + 2 + 255 * 3 + 127 * 4 + 128 * 5);
    EXPECT(__byte_perm(0x33221100, 0x77665544, 0x7531) == 0x77553311);
    EXPECT(__vsubss4(0x80000501, 0x01000302) == 0x800002ff);
}

// A [16, 16] and B [16, 8] of small whole numbers, through ldmatrix and the tensor cores' product.
static void tensor_cores_multiply_what_ldmatrix_loads() {
    run("product", 1, 32, 0, [] {
        __shared__ __align__(16) uint16_t a[16][16], b[16][8];
        auto bf16 = [](int x) { return static_cast<uint16_t>(__float_as_uint(static_cast<float>(x)) >> 16); };
        unsigned lane = threadIdx.x;
        for (unsigned i = lane; i < 256; i += 32) a[i / 16][i % 16] = bf16(static_cast<int>(i * 7 % 13) - 6);
        for (unsigned i = lane; i < 128; i += 32) b[i / 8][i % 8] = bf16(static_cast<int>(i * 5 % 11) - 5);
        __syncwarp();
        uint32_t fa[4], fb[2];
        shim::ldmatrix<4>(fa, &a[lane % 16][lane / 16 * 8]);
        shim::ldmatrix<2, true>(fb, &b[lane % 16][0]);
        float d[4] = {1, 1, 1, 1};
        shim::mma_m16n8k16_bf16(d, fa, fb);
        for (unsigned i = 0; i < 4; i++) floats[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = d[i];
    });
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 8; column++) {
            float sum = 1;
            for (int k = 0; k < 16; k++) sum += static_cast<float>(((row * 16 + k) * 7 % 13 - 6) * ((k * 8 + column) * 5 % 11 - 5));
            EXPECT(floats[row * 8 + column] == sum);
        }
}

static void bytes_multiply_on_tensor_cores() {
    run("byte_product", 1, 32, 0, [] {
        // Row r of A is r in all 32 columns, column c of B is c + 1 in all 32 rows.
        unsigned row = threadIdx.x / 4, column = threadIdx.x / 4;
        uint32_t a[4] = {row * 0x01010101, (row + 8) * 0x01010101, row * 0x01010101, (row + 8) * 0x01010101};
        uint32_t b[2] = {(column + 1) * 0x01010101, (column + 1) * 0x01010101};
        int d[4] = {};
        shim::mma_m16n8k32_s8(d, a, b);
        for (int i = 0; i < 4; i++) {
            int r = static_cast<int>(threadIdx.x / 4) + i / 2 * 8, c = static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
            EXPECT(d[i] == 32 * r * (c + 1));
        }
        shim::mma_m16n8k16_s8(d, {a[0], a[1]}, b[0]);
        for (int i = 0; i < 4; i++) {
            int r = static_cast<int>(threadIdx.x / 4) + i / 2 * 8, c = static_cast<int>(threadIdx.x % 4) * 2 + i % 2;
            EXPECT(d[i] == (32 + 16) * r * (c + 1));
        }
    });
}

static void copies_arrive_when_waited_for() {
    for (int i = 0; i < 8; i++) words[i] = static_cast<uint32_t>(i + 1);
    run("copy", 1, 1, 32, [] {
        DYN_SMEM(uint32_t, shared);
        shim::cp_async(shared, words, 16);
        shim::cp_async_commit();
        shim::cp_async(shared + 4, words + 4, 16, 8);
        shim::cp_async_commit();
        EXPECT(shared[0] == ~0u);
        shim::cp_async_wait(1);
        EXPECT(shared[0] == 1 && shared[3] == 4 && shared[4] == ~0u);
        shim::cp_async_wait(0);
        EXPECT(shared[5] == 6 && shared[6] == 0 && shared[7] == 0);
    });
}

// --- what is wrong

static void a_missing_barrier_shows() {
    setenv("FAKECUDA_SEED", "3", 1);
    run("no_barrier", 1, 64, 256, [] {
        DYN_SMEM(int, shared);
        shared[threadIdx.x] = static_cast<int>(threadIdx.x);
        numbers[threadIdx.x] = shared[63 - threadIdx.x];
    });
    for (int i = 0; i < 64; i++) EXPECT(numbers[i] == 63 - i);
}
static void a_barrier_in_one_branch() {
    run("branch", 1, 64, 0, [] {
        if (threadIdx.x < 32) __syncthreads();
        else shim::bar_sync(1, 128);
    });
}
static void an_absent_lane() {
    run("absent", 1, 16, 0, [] { __shfl_xor_sync(~0u, 1, 1); });
}
static void a_lane_outside_its_mask() {
    run("outside", 1, 32, 0, [] { __ballot_sync(0xffff, 1); });
}
static void lanes_that_disagree() {
    run("disagree", 1, 32, 0, [] {
        if (threadIdx.x % 2) __syncwarp();
        else __any_sync(~0u, 1);
    });
}
static void a_lane_that_leaves() {
    run("leaves", 1, 32, 0, [] {
        if (threadIdx.x != 31) __syncwarp();
    });
}
static void a_read_from_outside_the_mask() {
    run("read_outside", 1, 32, 0, [] {
        if (threadIdx.x < 16) __shfl_sync(0xffff, 1, 16);
    });
}
static void an_unaligned_copy() {
    run("unaligned", 1, 1, 64, [] {
        DYN_SMEM(uint32_t, shared);
        shim::cp_async(shared + 1, words, 16);
    });
}

// --- running them

struct Case {
    const char* name;
    void (*run)();
    const char* message; // of a fault that must be found; null where all must be well
};
#define RIGHT(name) {#name, name, nullptr}
#define WRONG(name, message) {#name, name, message}

static const Case CASES[] = {
    RIGHT(barriers_order_shared_memory),
    RIGHT(exited_threads_hold_no_barrier),
    RIGHT(warps_meet_at_named_barriers),
    RIGHT(lanes_exchange_what_they_should),
    RIGHT(atomics_lose_nothing),
    RIGHT(bytes_multiply),
    RIGHT(tensor_cores_multiply_what_ldmatrix_loads),
    RIGHT(bytes_multiply_on_tensor_cores),
    RIGHT(copies_arrive_when_waited_for),
    WRONG(a_missing_barrier_shows, "does not hold: numbers[i]"),
    WRONG(a_barrier_in_one_branch, "deadlock"),
    WRONG(an_absent_lane, "names lanes that do not exist"),
    WRONG(a_lane_outside_its_mask, "is not in its own mask"),
    WRONG(lanes_that_disagree, "its lanes disagree"),
    WRONG(a_lane_that_leaves, "exited while its warp waits"),
    WRONG(a_read_from_outside_the_mask, "reads lane 16, which is not in mask"),
    WRONG(an_unaligned_copy, "cp.async: an address is not a multiple of 16"),
};

// In a process of its own, as most faults end it; what it said on stderr.
static std::string run_apart(const Case& test, bool* succeeded) {
    int ends[2];
    if (pipe(ends) != 0) abort();
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        test.run();
        _exit(0);
    }
    close(ends[1]);
    std::string said;
    char buffer[4096];
    for (ssize_t n; (n = read(ends[0], buffer, sizeof buffer)) > 0;) said.append(buffer, static_cast<size_t>(n));
    close(ends[0]);
    int status = 0;
    waitpid(child, &status, 0);
    *succeeded = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    return said;
}

int main() {
    int failures = 0;
    for (const Case& test : CASES) {
        bool succeeded = false;
        std::string said = run_apart(test, &succeeded);
        bool as_expected = test.message ? !succeeded && said.find(test.message) != std::string::npos : succeeded;
        printf("%s ... %s\n", test.name, as_expected ? "ok" : "FAILED");
        if (!as_expected) printf("%s\n", said.c_str());
        failures += !as_expected;
    }
    return failures != 0;
}
