#version 430
// What a camera's light meter reads over each group of views. One work group for each of them.
layout(local_size_x = 64) in;

layout(binding = 0) uniform sampler2D scene;   // radiance, a row of tiles for each group
layout(std430, binding = 4) writeonly buffer Readings { vec4 readings[]; };  // mean colour (compressed), mean log luminance

uniform ivec2 grid;   // tiles in a row, samples of a tile's side

shared vec4 sums[64];

void main() {
    int row = int(gl_WorkGroupID.x), worker = int(gl_LocalInvocationID.x);
    vec4 sum = vec4(0.0);
    for (int i = worker; i < 144 * grid.x; i += 64) {
        int view = i / 144, j = i % 144;
        ivec2 at = ivec2(view, row) * grid.y + ivec2(j % 12, j / 12) * grid.y / 12 + grid.y / 24;
        vec3 c = texelFetch(scene, at, 0).rgb;
        float luminance = dot(c, vec3(0.2126, 0.7152, 0.0722));
        sum += vec4(c / (luminance + 0.05), log2(luminance + 0.002));
    }
    sums[worker] = sum;
    for (int half_count = 32; half_count > 0; half_count /= 2) {
        memoryBarrierShared();
        barrier();
        if (worker < half_count) sums[worker] += sums[worker + half_count];
    }
    if (worker == 0) readings[row] = sums[0] / float(144 * grid.x);
}
