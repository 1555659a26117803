#version 430
// The surfaces' radiance: lamps and windows with soft shadows, bounced light, occlusion, mirrored panels.
layout(local_size_x = 8, local_size_y = 8) in;

layout(std430, binding = 2) readonly buffer Cameras { vec4 cameras[]; };  // 4 each, see camera_rays
layout(binding = 0) uniform sampler2D albedo_and_gloss;
layout(binding = 1) uniform sampler2D normal_and_emission;
layout(binding = 2) uniform sampler2D window_depth;
layout(binding = 3) uniform sampler2D shadow_atlas;   // four tiles side by side, depth in 0..1
layout(rgba16f, binding = 0) writeonly uniform image2D scene;  // radiance, metres along the optical axis

uniform ivec2 grid;               // tiles in a row, samples of a tile's side
uniform vec2 clip_range;          // near, far
uniform int light_count;
uniform vec4 light_position[8];   // xyz, radius
uniform vec4 light_direction[8];  // xyz, exponent (negative: the sun)
uniform vec4 light_intensity[8];  // rgb, shadow slot or -1
uniform mat4 shadow_matrix[4];    // world to clip; slot 3 looks straight down
uniform vec4 shadow_range[4];     // near, far, light radius over tangent, tangent of the half angle (0: parallel)
uniform int panel_count;
uniform vec4 panel_centre[6];
uniform vec4 panel_half_width[6];
uniform vec4 panel_half_height[6];
uniform vec4 panel_radiance[6];
uniform vec3 ambient[6];          // radiance from +x, -x, +y, -y, +z, -z
uniform float ceiling;             // height in metres
uniform bool unlit;

const vec2 DISC[8] = vec2[8](  // a sunflower's seeds in the unit disc
    vec2(0.2500, 0.0000), vec2(-0.3193, 0.2925), vec2(0.0489, -0.5569), vec2(0.4024, 0.5249),
    vec2(-0.7385, -0.1306), vec2(0.6996, -0.4450), vec2(-0.2340, 0.8705), vec2(-0.4463, -0.8593)
);

float stored_distance(int slot, vec2 uv) {
    int side = textureSize(shadow_atlas, 0).y;
    float z = texelFetch(shadow_atlas, ivec2(vec2(uv.x + float(slot), uv.y) * float(side)), 0).r;
    vec4 range = shadow_range[slot];
    if (range.w == 0.0) return mix(range.x, range.y, z);
    return range.x * range.y / (range.y - z * (range.y - range.x));
}

// Percentage-closer soft shadows: the nearer the blocker to the surface, the sharper the edge. Taps are compared
// with the surface's own plane, whose inverse depth is linear over the map, lest slanted surfaces shade themselves.
float lit(int slot, vec3 p, vec3 n, mat2 turn) {
    mat4 m = shadow_matrix[slot];
    vec4 range = shadow_range[slot];
    bool parallel = range.w == 0.0;
    vec3 across = vec3(m[0].x, m[1].x, m[2].x), up = vec3(m[0].y, m[1].y, m[2].y), ahead = vec3(m[0].w, m[1].w, m[2].w);
    float texel = parallel ? 0.01 : 0.006 * (dot(ahead, p) + m[3].w);
    vec4 clip = m * vec4(p + (0.01 + texel) * n, 1.0);
    if (clip.w <= 0.0) return 1.0;
    vec3 ndc = clip.xyz / clip.w;
    if (any(greaterThan(abs(ndc), vec3(1.0)))) return 1.0;
    vec2 uv = ndc.xy * 0.5 + 0.5;
    vec2 slope = parallel ? vec2(0.0) : range.w * range.w * vec2(dot(n, across), dot(n, up));
    float level = parallel ? 1.0 : dot(slope, ndc.xy) + dot(n, ahead);
    slope *= 2.0 / (abs(level) < 1e-4 ? 1e-4 : level);  // relative change of inverse depth for each unit of uv
    float here = parallel ? mix(range.x, range.y, ndc.z * 0.5 + 0.5) : clip.w;
    float bias = 0.02 + 0.006 * here;
    float search = parallel ? 0.02 : clamp(0.35 * range.z / here, 0.004, 0.08);
    float blocker = 0.0, blockers = 0.0;
    for (int i = 1; i < 8; i += 2) {
        vec2 offset = search * (turn * DISC[i]);
        float z = stored_distance(slot, clamp(uv + offset, 0.002, 0.998));
        if (z < here / max(1.0 + dot(slope, offset), 1.0) - bias) { blocker += z; blockers += 1.0; }
    }
    if (blockers < 0.5) return 1.0;
    blocker /= blockers;
    float width = parallel ? clamp(0.002 * (here - blocker), 0.0015, 0.02)
                           : clamp(0.5 * range.z * (here - blocker) / (blocker * here), 0.002, 0.09);
    float sum = 0.0;
    for (int i = 0; i < 8; i++) {
        vec2 offset = width * (turn * DISC[i]);
        float z = stored_distance(slot, clamp(uv + offset, 0.002, 0.998));
        sum += z < here / max(1.0 + dot(slope, offset), 1.0) - bias ? 0.0 : 1.0;
    }
    return sum / 8.0;
}

// How much of the light from above and around arrives: horizons in the map of heights seen from the ceiling.
float openness(vec3 p, vec3 n, mat2 turn) {
    mat4 m = shadow_matrix[3];
    vec3 start = p + 0.06 * n;
    vec2 middle = (m * vec4(start, 1.0)).xy * 0.5 + 0.5;
    mat2 to_map = 0.5 * mat2(m[0].xy, m[2].xy);
    float occlusion = 0.0;
    for (int i = 0; i < 8; i++) {
        float radius = 0.04 + 0.9 * pow((float(i) + 0.5) / 8.0, 1.5);
        vec2 uv = middle + to_map * (turn * (radius * normalize(DISC[i])));
        float rise = max(ceiling - stored_distance(3, clamp(uv, 0.002, 0.998)) - start.y - 0.02, 0.0);
        occlusion += rise * rise / (rise * rise + radius * radius);
    }
    return 1.0 - 0.82 * occlusion / 8.0;
}

vec3 from_around(vec3 n) {
    vec3 s = n * n;
    return s.x * ambient[n.x > 0.0 ? 0 : 1] + s.y * ambient[n.y > 0.0 ? 2 : 3] + s.z * ambient[n.z > 0.0 ? 4 : 5];
}

// What a polished surface mirrors: the bounced light, and the panels blurred by roughness.
vec3 mirrored(vec3 p, vec3 r, float gloss) {
    vec3 light = from_around(r);
    float blur = mix(1.2, 0.06, gloss);
    for (int i = 0; i < panel_count; i++) {
        vec3 n = normalize(cross(panel_half_width[i].xyz, panel_half_height[i].xyz));
        float slope = dot(r, n);
        float t = dot(panel_centre[i].xyz - p, n) / (abs(slope) < 1e-4 ? 1e-4 : slope);
        if (t <= 0.0) continue;
        vec3 q = p + t * r - panel_centre[i].xyz;
        float w = length(panel_half_width[i].xyz), h = length(panel_half_height[i].xyz);
        vec2 d = abs(vec2(dot(q, panel_half_width[i].xyz) / w, dot(q, panel_half_height[i].xyz) / h)) - vec2(w, h);
        float soft = blur * t + 0.01;
        vec2 cover = smoothstep(soft, -soft, d);
        float spread = min(1.0, w / soft) * min(1.0, h / soft);
        light += 1.5 * panel_radiance[i].rgb * cover.x * cover.y * spread;
    }
    return light;
}

vec3 direct(vec3 p, vec3 n, vec3 v, float gloss, mat2 turn, out vec3 highlight) {
    vec3 sum = vec3(0.0);
    highlight = vec3(0.0);
    float shine = exp2(3.0 + 7.0 * gloss);
    for (int i = 0; i < light_count; i++) {
        vec3 towards = light_position[i].xyz - p;
        float radius = light_position[i].w, exponent = light_direction[i].w;
        bool sun = exponent < 0.0;
        float distance2 = dot(towards, towards);
        vec3 l = sun ? -light_direction[i].xyz : towards * inversesqrt(distance2);
        float facing = sun ? 1.0 : exponent == 0.0 ? 1.0 : pow(max(dot(-l, light_direction[i].xyz), 0.0), exponent);
        // a large light still reaches surfaces that are turned a little away from its middle
        float wrap = sun ? 0.0 : clamp(radius * inversesqrt(distance2), 0.0, 0.6) * 0.5;
        float cosine = max((dot(n, l) + wrap) / (1.0 + wrap), 0.0);
        if (cosine * facing <= 0.002) continue;
        float power = facing / (sun ? 1.0 : distance2 + radius * radius);
        int slot = int(light_intensity[i].w);
        if (slot >= 0) power *= lit(slot, p, n, turn);
        sum += light_intensity[i].rgb * power * cosine;
        float specular = pow(max(dot(n, normalize(l + v)), 0.0), shine) * (shine + 2.0) * 0.125;
        highlight += light_intensity[i].rgb * power * cosine * min(specular, 12.0);
    }
    return sum;
}

vec3 radiance(vec3 world, vec3 eye, vec3 albedo, float gloss, vec3 n, float emission, vec2 at) {
    vec3 v = normalize(eye - world);
    if (dot(n, v) < 0.0) n = -n;
    float turn = 6.2831853 * fract(52.9829189 * fract(dot(at, vec2(0.06711056, 0.00583715))));
    mat2 rotation = mat2(cos(turn), sin(turn), -sin(turn), cos(turn));
    float open = openness(world, n, rotation);
    vec3 highlight;
    vec3 light = direct(world, n, v, gloss, rotation, highlight);
    light += 3.14159 * from_around(n) * open;
    vec3 colour = albedo * light / 3.14159;
    float fresnel = 0.04 + 0.8 * gloss * pow(1.0 - max(dot(n, v), 0.0), 5.0);
    colour += min(1.0, 1.6 * gloss) * fresnel * (highlight + (0.3 + 0.7 * open) * mirrored(world, reflect(-v, n), gloss));
    return min(colour + emission * albedo, 500.0);
}

void main() {
    ivec2 at = ivec2(gl_GlobalInvocationID.xy);
    if (any(greaterThanEqual(at, imageSize(scene)))) return;
    float window = texelFetch(window_depth, at, 0).r;
    if (window >= 1.0) {  // nothing was drawn here
        imageStore(scene, at, vec4(0.0, 0.0, 0.0, clip_range.y));
        return;
    }
    ivec2 tile = at / grid.y;
    vec2 within = vec2(at - tile * grid.y);
    int camera = 4 * (tile.y * grid.x + tile.x);
    float depth = clip_range.x * clip_range.y / (clip_range.y - window * (clip_range.y - clip_range.x));
    vec3 eye = cameras[camera].xyz;
    vec3 ray = cameras[camera + 1].xyz + within.x * cameras[camera + 2].xyz + within.y * cameras[camera + 3].xyz;
    vec4 albedo = texelFetch(albedo_and_gloss, at, 0);
    vec4 normal = texelFetch(normal_and_emission, at, 0);
    vec3 colour = albedo.rgb;
    if (!unlit) {
        colour = radiance(eye + depth * ray, eye, albedo.rgb, albedo.a, normalize(normal.xyz), normal.w, vec2(at) + 0.5);
    }
    imageStore(scene, at, vec4(colour, depth));
}
