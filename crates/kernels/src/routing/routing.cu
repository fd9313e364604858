// The formulas are those of routing/mod.rs. A warp has one token: lane l has the experts l, l + 32, … of the scores and
// of what the choice is made by, in shared memory. Sums over experts have the order of the warp's lanes.

struct RoutingRule {
    u32 tokens;
    u32 experts;
    u32 top_k;
    u32 groups;
    u32 groups_chosen;
    u32 group_best;
    // 0 softmax, 1 sigmoid, 2 SparseMixer.
    u32 scoring;
    u32 normalised;
    float scale;
    float tolerance;
};

#define MINUS_INFINITY __uint_as_float(0xff800000u)
#define FOR_EXPERTS(e, rule) for (u32 e = threadIdx.x % 32; e < (rule).experts; e += 32)

constexpr float LEAST_SUM = 1e-20f;

// The first of the largest of n values, and 0 if all are NaN.
INLINE u32 largest(const float* values, u32 n) {
    float best = MINUS_INFINITY;
    u32 place = n;
    for (u32 i = threadIdx.x % 32; i < n; i += 32) {
        if (values[i] > best || (place == n && values[i] == best)) {
            best = values[i];
            place = i;
        }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
        float other = __shfl_xor_sync(ALL_LANES, best, step);
        u32 other_place = __shfl_xor_sync(ALL_LANES, place, step);
        if (other > best || (other == best && other_place < place)) {
            best = other;
            place = other_place;
        }
    }
    return place < n ? place : 0;
}

INLINE void softmax(const RoutingRule& p, const float* z, float* s) {
    float top = MINUS_INFINITY, sum = 0.0f;
    FOR_EXPERTS(e, p) top = fmaxf(top, z[e]);
    top = warp_max(top);
    FOR_EXPERTS(e, p) {
        s[e] = expf(z[e] - top);
        sum += s[e];
    }
    sum = warp_sum(sum);
    FOR_EXPERTS(e, p) s[e] /= sum;
    __syncwarp();
}

INLINE void score(const RoutingRule& p, const float* z, float* s) {
    if (p.scoring == 0) return softmax(p, z, s);
    FOR_EXPERTS(e, p) s[e] = p.scoring == 1 ? 1.0f / (1.0f + expf(-z[e])) : z[e];
    __syncwarp();
}

// Takes the experts outside of the best groups out of the choice; `worth` has a place for each group.
INLINE void keep_groups(const RoutingRule& p, float* choice, float* worth) {
    u32 size = p.experts / p.groups;
    for (u32 group = threadIdx.x % 32; group < p.groups; group += 32) {
        float first = MINUS_INFINITY, second = MINUS_INFINITY;
        for (u32 i = 0; i < size; i++) {
            float value = choice[group * size + i];
            if (value > first) {
                second = first;
                first = value;
            } else {
                second = fmaxf(second, value);
            }
        }
        worth[group] = p.group_best == 2 ? first + second : first;
    }
    __syncwarp();
    for (u32 i = 0; i < p.groups_chosen; i++) {
        u32 best = largest(worth, p.groups);
        __syncwarp();
        // What is chosen is marked by NaN, which is never the largest.
        if (threadIdx.x % 32 == 0) worth[best] = __uint_as_float(0x7fc00000u);
        __syncwarp();
    }
    FOR_EXPERTS(e, p) {
        float mark = worth[e / size];
        if (mark == mark) choice[e] = MINUS_INFINITY;
    }
    __syncwarp();
}

// Of the experts that are left: whether z comes within the distance of the best.
INLINE bool is_near(const RoutingRule& p, float choice, float z, float top) {
    return choice > MINUS_INFINITY && (top - z) / fmaxf(fabsf(z), top) <= p.tolerance;
}

INLINE float sum_of_near(const RoutingRule& p, const float* choice, const float* z, float top) {
    float sum = 0.0f;
    FOR_EXPERTS(e, p) {
        if (is_near(p, choice[e], z[e], top)) sum += expf(z[e] - top);
    }
    return warp_sum(sum);
}

struct RoutingForward {
    RoutingRule rule;
    const float* logits;
    const float* correction;
    float* weights;
    u32* index;
};

extern "C" __global__ void routing_forward(RoutingForward p) {
    DYNAMIC_SHARED(memory);
    const RoutingRule& rule = p.rule;
    u32 warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    u64 token = (u64)blockIdx.x * (blockDim.x / 32) + warp;
    if (token >= rule.tokens) return;
    float* scores = (float*)memory + warp * (2 * rule.experts + rule.groups);
    float* choice = scores + rule.experts;
    const float* z = p.logits + token * rule.experts;
    score(rule, z, scores);
    FOR_EXPERTS(e, rule) choice[e] = scores[e] + (p.correction ? p.correction[e] : 0.0f);
    __syncwarp();
    if (rule.groups_chosen < rule.groups) keep_groups(rule, choice, choice + rule.experts);
    float* weights = p.weights + token * rule.top_k;
    u32* index = p.index + token * rule.top_k;
    float sum = 0.0f;
    for (u32 j = 0; j < rule.top_k; j++) {
        u32 best = largest(choice, rule.experts);
        float weight = rule.scoring == 2 ? 1.0f / sum_of_near(rule, choice, z, z[best]) : scores[best];
        sum += weight;
        __syncwarp();
        if (lane == 0) {
            index[j] = best;
            weights[j] = weight;
            choice[best] = MINUS_INFINITY;
        }
        __syncwarp();
    }
    float factor = rule.normalised ? rule.scale / (sum + LEAST_SUM) : rule.scale;
    for (u32 j = lane; j < rule.top_k; j += 32) weights[j] *= factor;
}

struct RoutingBackward {
    RoutingRule rule;
    const float* logits;
    const u32* index;
    const float* dweights;
    const float* balance;
    float* dlogits;
};

// From the gradient d of a softmax s to that of its argument, added to dz.
INLINE void add_through_softmax(const RoutingRule& p, const float* s, const float* d, float* dz) {
    float mean = 0.0f;
    FOR_EXPERTS(e, p) mean += d[e] * s[e];
    mean = warp_sum(mean);
    FOR_EXPERTS(e, p) dz[e] += s[e] * (d[e] - mean);
}

// Of each choice of SparseMixer, in order; `choice` is workspace.
INLINE void gradient_of_mixer(const RoutingRule& p, const float* z, const u32* index, const float* dw, float* choice,
                              float* dz) {
    FOR_EXPERTS(e, p) choice[e] = z[e];
    __syncwarp();
    for (u32 j = 0; j < p.top_k; j++) {
        u32 best = index[j];
        float top = z[best], sum = sum_of_near(p, choice, z, top), weight = 1.0f / sum;
        FOR_EXPERTS(e, p) {
            if (is_near(p, choice[e], z[e], top)) dz[e] -= p.scale * dw[j] * weight * expf(z[e] - top) / sum;
            if (e == best) dz[e] += p.scale * dw[j] * weight;
        }
        __syncwarp();
        if (threadIdx.x % 32 == 0) choice[best] = MINUS_INFINITY;
        __syncwarp();
    }
}

// Of weights that are scores, or normalised ones; `g` is workspace for the gradient of the scores.
INLINE void gradient_of_scores(const RoutingRule& p, const float* s, const u32* index, const float* dw, float* g,
                               float* dz) {
    FOR_EXPERTS(e, p) g[e] = 0.0f;
    __syncwarp();
    float sum = 1.0f, shared = 0.0f;
    if (p.normalised) {
        sum = LEAST_SUM;
        for (u32 j = 0; j < p.top_k; j++) {
            sum += s[index[j]];
            shared += dw[j] * s[index[j]];
        }
        shared /= sum;
    }
    for (u32 j = threadIdx.x % 32; j < p.top_k; j += 32) g[index[j]] = p.scale * (dw[j] - shared) / sum;
    __syncwarp();
    if (p.scoring == 1) {
        FOR_EXPERTS(e, p) dz[e] = g[e] * s[e] * (1.0f - s[e]);
    } else {
        add_through_softmax(p, s, g, dz);
    }
}

extern "C" __global__ void routing_backward(RoutingBackward p) {
    DYNAMIC_SHARED(memory);
    const RoutingRule& rule = p.rule;
    u32 warp = threadIdx.x / 32;
    u64 token = (u64)blockIdx.x * (blockDim.x / 32) + warp;
    if (token >= rule.tokens) return;
    float* scores = (float*)memory + warp * (2 * rule.experts + rule.groups);
    float* other = scores + rule.experts;
    const float* z = p.logits + token * rule.experts;
    const float* dw = p.dweights + token * rule.top_k;
    const u32* index = p.index + token * rule.top_k;
    float* dz = p.dlogits + token * rule.experts;
    FOR_EXPERTS(e, rule) dz[e] = 0.0f;
    if (rule.scoring == 2) {
        gradient_of_mixer(rule, z, index, dw, other, dz);
    } else {
        score(rule, z, scores);
        gradient_of_scores(rule, scores, index, dw, other, dz);
    }
    if (p.balance) {
        __syncwarp();
        softmax(rule, z, scores);
        add_through_softmax(rule, scores, p.balance, dz);
    }
}
