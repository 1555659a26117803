// The point network of `volume_field.py` for Hopper GPUs: a tile of points goes through all residual blocks
// without leaving the multiprocessor; weights are streamed past it.
//
// A thread block holds 128 points. Each of two warpgroups keeps the states of 64 of them in registers, as
// bfloat16 in the fragment layout that `wgmma` reads its left operand in; the hidden layer of a block lies in
// shared memory. A third warpgroup copies weights, cut into slabs of 128 outputs x 64 inputs, through a ring of
// shared-memory stages; every slab is used once per tile, in the order in which it lies in memory. Thread
// blocks of a cluster share what is read: each copies its part of a slab to all of them.
//
// A fragment holds, of each group of 32 channels, 8 neighbours in memory for each thread of four: channel
// 8 q + 4 i + 2 h + e of a group is column 16 i + 8 h + 2 q + e of the products. `fused_volume.CHANNELS` orders
// the weights accordingly.

typedef unsigned int u32;
typedef unsigned long long u64;

#ifndef CLUSTER
#define CLUSTER 2
#endif

constexpr int WIDTH = 512;
constexpr int TILE = 128;            // points of a thread block
constexpr int ROWS = 64;             // points of a warpgroup
constexpr int SLAB_ROWS = 128;       // outputs of a slab
constexpr int SLAB_BYTES = SLAB_ROWS * 64 * 2;
constexpr int STAGES = 6;
constexpr int CHUNKS = WIDTH / SLAB_ROWS;   // slabs beside each other: outputs of a layer
constexpr int DEPTH = WIDTH / 64;           // slabs behind each other: inputs of a layer
constexpr int HIDDEN_BYTES = ROWS * WIDTH * 2;
constexpr int HIDDEN_AT = STAGES * SLAB_BYTES;
constexpr int FULL_AT = HIDDEN_AT + 2 * HIDDEN_BYTES;  // barriers of the stages
constexpr int EMPTY_AT = FULL_AT + 8 * STAGES;
constexpr int CONSUMER_WARPS = 8;

enum Wanted { STATE = 0, DENSITY = 1, OUTPUTS = 2 };

struct Arguments {
    const uint4* input;      // (elements, points, WIDTH) bfloat16
    const uint4* told;       // the same, added after the view blocks, its elements `told_step` apart; or null
    const char* weights;     // for each element `stream` bytes: the slabs of the blocks, then of the outputs
    const float* biases;     // (elements, 2 blocks + 2, WIDTH): of the blocks, then two rows for the outputs
    void* output;
    long long stream, told_step;  // the latter in units of 8 channels
    int elements, points;
    int view_blocks, joint_blocks;
    int wanted;
    float share;             // factor of the state after `told` was added
    int samples, row, first; // point p is sample `first` + p % samples of the `row` of ray p / samples
    int columns;             // of the outputs, those that are written
};

__device__ __forceinline__ void wait(u32 barrier, u32 parity) {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@done bra finished;\nbra again;\nfinished:\n}"
        :: "r"(barrier), "r"(parity) : "memory");
}

__device__ __forceinline__ u32 cluster_rank() {
    u32 rank;
    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_sync() {
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
}

// Copies this thread block's part of a slab to the same place of every block in the cluster.
__device__ __forceinline__ void copy_slab(u32 stage, const char* slab, u32 barrier, u32 rank) {
    constexpr u32 part = SLAB_BYTES / CLUSTER;
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                 :: "r"(barrier), "n"(SLAB_BYTES) : "memory");
#if CLUSTER > 1
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
        "[%0], [%1], %2, [%3], %4;"
        :: "r"(stage + rank * part), "l"(slab + rank * part), "r"(part), "r"(barrier),
           "h"((unsigned short)((1 << CLUSTER) - 1)) : "memory");
#else
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
        :: "r"(stage), "l"(slab), "r"(part), "r"(barrier) : "memory");
#endif
}

// One warp needs a stage no longer; every block of the cluster writes into it.
__device__ __forceinline__ void release(u32 barrier) {
    if (threadIdx.x % 32 < CLUSTER)
        asm volatile(
            "{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
            "mbarrier.arrive.shared::cluster.b64 _, [there];\n}"
            :: "r"(barrier), "r"(threadIdx.x % 32) : "memory");
}

__device__ __forceinline__ void fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void await() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" :: "n"(PENDING) : "memory");
}
// Nothing reads the sums before they have been waited for.
__device__ __forceinline__ void settle(float (&sums)[64]) {
    await<0>();
#pragma unroll
    for (int i = 0; i < 64; ++i) asm volatile("" : "+f"(sums[i]) :: "memory");
}
__device__ __forceinline__ void warpgroup_sync() {
    asm volatile("bar.sync %0, 128;" :: "r"(threadIdx.x / 128) : "memory");
}

// Matrices of 64 bfloat16 columns, rows of 128 bytes whose 16-byte parts are swizzled by the row.
__device__ __forceinline__ u64 describe(u32 address) {
    return (u64)((address & 0x3FFFF) >> 4) | ((u64)1 << 16) | ((u64)(1024 >> 4) << 32) | ((u64)1 << 62);
}

#define ACCUMULATORS \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
    "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
    "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
    "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define SIXTEEN(d, i) FOUR(d, i), FOUR(d, i + 4), FOUR(d, i + 8), FOUR(d, i + 12)
#define ALL(d) SIXTEEN(d, 0), SIXTEEN(d, 16), SIXTEEN(d, 32), SIXTEEN(d, 48)

// sums (+)= left x right^T, 64 x 128 with 16 columns each; left from registers, or from shared memory.
__device__ __forceinline__ void multiply(float (&sums)[64], const u32* left, u64 right, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATORS
        ", {%64, %65, %66, %67}, %68, add, 1, 1, 0;\n}"
        : ALL(sums) : "r"(left[0]), "r"(left[1]), "r"(left[2]), "r"(left[3]), "l"(right), "r"(add));
}

__device__ __forceinline__ void multiply(float (&sums)[64], u64 left, u64 right, int add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " ACCUMULATORS
        ", %64, %65, add, 1, 1, 0, 0;\n}"
        : ALL(sums) : "l"(left), "l"(right), "r"(add));
}

__device__ __forceinline__ u32 positive(u32 pair) {
    u32 result;  // volatile: computed ahead for all of a layer's chunks, it would not fit into registers
    asm volatile("max.bf16x2 %0, %1, %2;" : "=r"(result) : "r"(pair), "r"(0));
    return result;
}
__device__ __forceinline__ float low(u32 pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high(u32 pair) { return __uint_as_float(pair & 0xFFFF0000u); }
__device__ __forceinline__ u32 pack(float lower, float upper) {
    u32 result;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(upper), "f"(lower));
    return result;
}
__device__ __forceinline__ u32 pack_positive(float lower, float upper) {
    u32 result;
    asm("cvt.rn.relu.bf16x2.f32 %0, %1, %2;" : "=r"(result) : "f"(upper), "f"(lower));
    return result;
}

// The ring of stages, as seen by a reader.
struct Ring {
    u32 stages, index, parity;

    __device__ __forceinline__ u32 slab() const { return stages + index * SLAB_BYTES; }
    __device__ __forceinline__ void await_slab() const { wait(stages + FULL_AT + 8 * index, parity); }
    __device__ __forceinline__ void advance() {
        if (++index == STAGES) { index = 0; parity ^= 1; }
    }
    __device__ __forceinline__ u32 before() const {  // the barrier of the stage that was left last
        return stages + EMPTY_AT + 8 * (index == 0 ? STAGES - 1 : index - 1);
    }
};

// sums = relu(state) x 128 outputs of a layer; half a slab at a time, as registers are scarce.
__device__ __forceinline__ void read_state(float (&sums)[64], const u32 (&state)[128], Ring& ring) {
#pragma unroll
    for (int k = 0; k < DEPTH; ++k) {
        ring.await_slab();
        const u64 right = describe(ring.slab());
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            u32 left[8];
#pragma unroll
            for (int i = 0; i < 8; ++i) left[i] = positive(state[16 * k + 8 * half + i]);
            fence();
#pragma unroll
            for (int i = 0; i < 2; ++i)
                multiply(sums, left + 4 * i, right + 4 * half + 2 * i, k + half + i > 0);
            commit();
            if (half == 1 || k > 0) await<1>();
            if (half == 0 && k > 0) release(ring.before());
        }
        ring.advance();
    }
    settle(sums);
    release(ring.before());
}

// sums = hidden x 128 outputs of a layer.
__device__ __forceinline__ void read_hidden(float (&sums)[64], u32 hidden, Ring& ring) {
#pragma unroll 1
    for (int k = 0; k < DEPTH; ++k) {
        ring.await_slab();
        const u64 left = describe(hidden + k * ROWS * 128), right = describe(ring.slab());
        fence();
#pragma unroll
        for (int i = 0; i < 4; ++i) multiply(sums, left + 2 * i, right + 2 * i, k + i > 0);
        commit();
        if (k > 0) { await<1>(); release(ring.before()); }
        ring.advance();
    }
    settle(sums);
    release(ring.before());
}

__device__ __forceinline__ void residual_block(
    u32 (&state)[128], float (&sums)[64], u32 hidden, Ring& ring, const float* biases) {
    const int quad = threadIdx.x % 4, row = threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
#pragma unroll 1
    for (int n = 0; n < CHUNKS; ++n) {
        read_state(sums, state, ring);
        const float2* bias = reinterpret_cast<const float2*>(biases + n * SLAB_ROWS) + quad;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const float2 b = __ldg(bias + 4 * j);
            const u32 place = hidden + (2 * n + j / 8) * ROWS * 128 + row * 128
                + (((j % 8) ^ (row % 8)) << 4) + 4 * quad;
            asm volatile("st.shared.b32 [%0], %1;" :: "r"(place),
                         "r"(pack_positive(sums[4 * j] + b.x, sums[4 * j + 1] + b.y)) : "memory");
            asm volatile("st.shared.b32 [%0], %1;" :: "r"(place + 8 * 128),
                         "r"(pack_positive(sums[4 * j + 2] + b.x, sums[4 * j + 3] + b.y)) : "memory");
        }
    }
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    warpgroup_sync();
#pragma unroll
    for (int n = 0; n < CHUNKS; ++n) {
        read_hidden(sums, hidden, ring);
        const float2* bias = reinterpret_cast<const float2*>(biases + WIDTH + n * SLAB_ROWS) + quad;
#pragma unroll
        for (int j = 0; j < 16; ++j) {
            const float2 b = __ldg(bias + 4 * j);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                u32& pair = state[32 * n + 2 * j + half];
                pair = pack(low(pair) + (sums[4 * j + 2 * half] + b.x),
                            high(pair) + (sums[4 * j + 2 * half + 1] + b.y));
            }
        }
    }
    warpgroup_sync();  // all have read the hidden layer before it is written again
}

// The fragment's registers of 8 neighbouring channels: group g of 32, of the lower or the upper point.
#define PLACE(g, half) {8 * (g) + (half), 8 * (g) + 2 + (half), 8 * (g) + 4 + (half), 8 * (g) + 6 + (half)}

__device__ __forceinline__ void load_state(u32 (&state)[128], const uint4* lower, const uint4* upper) {
#pragma unroll
    for (int g = 0; g < WIDTH / 32; ++g)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place[4] = PLACE(g, half);
            const uint4 part = __ldcs((half ? upper : lower) + 4 * g);
            state[place[0]] = part.x; state[place[1]] = part.y;
            state[place[2]] = part.z; state[place[3]] = part.w;
        }
}

__device__ __forceinline__ u32 sum(u32 pair, u32 other, float share) {
    return pack((low(pair) + low(other)) * share, (high(pair) + high(other)) * share);
}

__device__ __forceinline__ void add_told(
    u32 (&state)[128], const uint4* lower, const uint4* upper, float share) {
#pragma unroll
    for (int g = 0; g < WIDTH / 32; ++g)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place[4] = PLACE(g, half);
            const uint4 part = __ldcs((half ? upper : lower) + 4 * g);
            state[place[0]] = sum(state[place[0]], part.x, share);
            state[place[1]] = sum(state[place[1]], part.y, share);
            state[place[2]] = sum(state[place[2]], part.z, share);
            state[place[3]] = sum(state[place[3]], part.w, share);
        }
}

__device__ __forceinline__ void store_state(
    const u32 (&state)[128], uint4* lower, uint4* upper, bool keep_lower, bool keep_upper) {
#pragma unroll
    for (int g = 0; g < WIDTH / 32; ++g)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int place[4] = PLACE(g, half);
            const uint4 part = make_uint4(
                state[place[0]], state[place[1]], state[place[2]], state[place[3]]);
            if (half ? keep_upper : keep_lower) (half ? upper : lower)[4 * g] = part;
        }
}

// The one output that follows `weights` (WIDTH, in the products' order, then the bias), at least 0.
__device__ __forceinline__ void density_of(
    const u32 (&state)[128], const float* weights, int quad, float& lower, float& upper) {
    lower = upper = 0.0f;
    const float2* pairs = reinterpret_cast<const float2*>(weights) + quad;
#pragma unroll
    for (int j = 0; j < WIDTH / 8; ++j) {
        const float2 w = __ldg(pairs + 4 * j);
        const u32 a = positive(state[2 * j]), b = positive(state[2 * j + 1]);
        lower += low(a) * w.x + high(a) * w.y;
        upper += low(b) * w.x + high(b) * w.y;
    }
#pragma unroll
    for (int lane = 1; lane < 4; lane *= 2) {
        lower += __shfl_xor_sync(0xFFFFFFFFu, lower, lane);
        upper += __shfl_xor_sync(0xFFFFFFFFu, upper, lane);
    }
    const float bias = __ldg(weights + WIDTH);
    lower = fmaxf(lower + bias, 0.0f);
    upper = fmaxf(upper + bias, 0.0f);
}

__device__ __forceinline__ void store_outputs(
    const float (&sums)[64], const float* biases, float* lower, float* upper, int quad, int columns,
    bool keep_lower, bool keep_upper) {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
        const int column = 8 * j + 2 * quad;
        if (column < columns) {
            const float2 b = __ldg(reinterpret_cast<const float2*>(biases + column));
            if (keep_lower)
                *reinterpret_cast<float2*>(lower + column) = make_float2(sums[4 * j] + b.x, sums[4 * j + 1] + b.y);
            if (keep_upper)
                *reinterpret_cast<float2*>(upper + column) =
                    make_float2(sums[4 * j + 2] + b.x, sums[4 * j + 3] + b.y);
        }
    }
}

// Where a thread's two points are, computed anew whenever it is asked for: registers are scarce.
struct Points {
    int element, lower, upper, quad;
    bool keep_lower, keep_upper;

    __device__ __forceinline__ Points(const Arguments& given, int tile) {
        int thread = threadIdx.x;
        asm volatile("" : "+r"(tile), "+r"(thread));
        const int tiles = (given.points + TILE * CLUSTER - 1) / (TILE * CLUSTER) * CLUSTER;  // of an element
        element = tile / tiles;
        quad = thread % 4;
        lower = tile % tiles * TILE + (thread / 32 - 4) * 16 + thread % 32 / 4;
        upper = lower + 8;
        keep_lower = lower < given.points;
        keep_upper = upper < given.points;
    }
    __device__ __forceinline__ long long at(const Arguments& given, int point, long long step) const {
        return element * step + (long long)min(point, given.points - 1) * (WIDTH / 8) + quad;
    }
    __device__ __forceinline__ long long at(const Arguments& given, int point) const {
        return at(given, point, (long long)given.points * (WIDTH / 8));
    }
    __device__ __forceinline__ long long out(const Arguments& given, int point) const {
        const int rays = given.points / given.samples, ray = point / given.samples;
        return ((long long)element * rays + ray) * given.row + given.first + point - ray * given.samples;
    }
};

// Everything that becomes of the points of a tile.
__device__ __forceinline__ void pass_tile(const Arguments& given, int tile, u32 hidden, Ring& ring) {
    const int blocks = given.view_blocks + given.joint_blocks;
    u32 state[128];
    float sums[64] = {};  // one for all products: they stay in the same registers
    {
        const Points points(given, tile);
        load_state(state, given.input + points.at(given, points.lower),
                   given.input + points.at(given, points.upper));
    }
    int layer = Points(given, tile).element * (2 * blocks + 2);
#pragma unroll 1
    for (int block = 0; block < blocks; ++block, layer += 2) {
        residual_block(state, sums, hidden, ring, given.biases + layer * WIDTH);
        if (block == given.view_blocks - 1 && given.told) {
            const Points points(given, tile);
            add_told(state, given.told + points.at(given, points.lower, given.told_step),
                     given.told + points.at(given, points.upper, given.told_step), given.share);
        }
    }
    const Points points(given, tile);
    const float* biases = given.biases + layer * WIDTH;
    if (given.wanted == STATE) {
        uint4* output = static_cast<uint4*>(given.output);
        store_state(state, output + points.at(given, points.lower), output + points.at(given, points.upper),
                    points.keep_lower, points.keep_upper);
        return;
    }
    float* output = static_cast<float*>(given.output);
    if (given.wanted == DENSITY) {
        float lower, upper;
        density_of(state, biases, points.quad, lower, upper);
        if (points.quad == 0 && points.keep_lower) output[points.out(given, points.lower)] = lower;
        if (points.quad == 0 && points.keep_upper) output[points.out(given, points.upper)] = upper;
        return;
    }
    read_state(sums, state, ring);
    store_outputs(sums, biases, output + points.out(given, points.lower) * given.columns,
                  output + points.out(given, points.upper) * given.columns, points.quad, given.columns,
                  points.keep_lower, points.keep_upper);
}

#if CLUSTER > 1
#define SHAPE __cluster_dims__(CLUSTER, 1, 1)
#else
#define SHAPE
#endif

extern "C" __global__ void SHAPE __launch_bounds__(384, 1) point_network(const Arguments given) {
    extern __shared__ unsigned char memory[];
    u32 start;
    asm("{\n.reg .u64 there;\ncvta.to.shared.u64 there, %1;\ncvt.u32.u64 %0, there;\n}"
        : "=r"(start) : "l"(memory));
    start = (start + 1023) & ~1023u;
    const u32 full = start + FULL_AT, empty = start + EMPTY_AT, rank = cluster_rank();
    if (threadIdx.x == 0) {
        for (int stage = 0; stage < STAGES; ++stage) {
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(full + 8 * stage), "r"(1) : "memory");
            asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;"
                         :: "r"(empty + 8 * stage), "r"(CONSUMER_WARPS * CLUSTER) : "memory");
        }
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    cluster_sync();

    const int layers = given.view_blocks + given.joint_blocks;
    const int slabs = layers * 2 * CHUNKS * DEPTH + (given.wanted == OUTPUTS ? DEPTH : 0);
    const int groups = (given.points + TILE * CLUSTER - 1) / (TILE * CLUSTER);  // of tiles, of an element
    const int step = gridDim.x / CLUSTER;
    const int warpgroup = threadIdx.x / 128;
    if (warpgroup == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == 0) {
            u32 stage = 0, parity = 1;
            for (int group = blockIdx.x / CLUSTER; group < groups * given.elements; group += step) {
                const char* slab = given.weights + (long long)(group / groups) * given.stream;
                for (int i = 0; i < slabs; ++i, slab += SLAB_BYTES) {
                    wait(empty + 8 * stage, parity);
                    copy_slab(start + stage * SLAB_BYTES, slab, full + 8 * stage, rank);
                    if (++stage == STAGES) { stage = 0; parity ^= 1; }
                }
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        Ring ring = {start, 0, 0};
        const u32 hidden = start + HIDDEN_AT + (warpgroup - 1) * HIDDEN_BYTES;
        for (int group = blockIdx.x / CLUSTER; group < groups * given.elements; group += step) {
            pass_tile(given, group * CLUSTER + rank, hidden, ring);
        }
    }
    __syncwarp();
    cluster_sync();  // no block leaves while others still write into it
}
