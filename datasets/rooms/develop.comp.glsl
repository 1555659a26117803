#version 430
// From radiance at twice the size to photographs: crevices darkened, exposed, balanced, filtered, encoded.
layout(local_size_x = 8, local_size_y = 8) in;

layout(binding = 0) uniform sampler2D scene;  // radiance and depth, tiles of 2 x 2 samples a pixel, top row first
layout(std430, binding = 2) readonly buffer Cameras { vec4 cameras[]; };    // 4 each, see camera_rays
layout(std430, binding = 3) readonly buffer Gradings { vec4 gradings[]; };  // 2 for each row of tiles, see below
layout(std430, binding = 4) readonly buffer Readings { vec4 readings[]; };  // of the light meter, for each row
layout(rgba8, binding = 0) writeonly uniform image2D photo;
layout(r16f, binding = 1) writeonly uniform image2D metres;

uniform ivec2 grid;            // tiles in a row, pixels of an image's side
uniform bool raw;              // encode the radiance as it is

ivec2 origin;                  // of the tile, samples

vec4 at(ivec2 sample_position) {
    return texelFetch(scene, origin + clamp(sample_position, ivec2(0), ivec2(2 * grid.y - 1)), 0);
}

vec3 camera_point(ivec2 s, float z, float f) {
    vec2 ndc = (vec2(s) + 1.0) / float(grid.y) - 1.0;
    return vec3(ndc * z / f, z);
}

float crevices(ivec2 s, float z, float f, float darkness, vec2 pixel) {
    vec3 p = camera_point(s, z, f);
    float zx0 = at(s - ivec2(2, 0)).a, zx1 = at(s + ivec2(2, 0)).a, zy0 = at(s - ivec2(0, 2)).a, zy1 = at(s + ivec2(0, 2)).a;
    vec3 dx = abs(zx1 - z) < abs(z - zx0) ? camera_point(s + ivec2(2, 0), zx1, f) - p : p - camera_point(s - ivec2(2, 0), zx0, f);
    vec3 dy = abs(zy1 - z) < abs(z - zy0) ? camera_point(s + ivec2(0, 2), zy1, f) - p : p - camera_point(s - ivec2(0, 2), zy0, f);
    vec3 n = normalize(cross(dx, dy));
    if (dot(n, p) > 0.0) n = -n;
    float reach = clamp(0.4 * f * float(grid.y) / z, 3.0, 0.25 * float(grid.y));
    float turn = 6.2831853 * fract(52.9829189 * fract(dot(pixel, vec2(0.06711056, 0.00583715))));
    float occlusion = 0.0;
    for (int i = 0; i < 14; i++) {
        float angle = 2.39996323 * float(i) + turn;
        float radius = reach * sqrt((float(i) + 0.5) / 14.0);
        ivec2 q = s + ivec2(radius * vec2(cos(angle), sin(angle)));
        vec3 d = camera_point(q, at(q).a, f) - p;
        float distance = length(d) + 1e-4;
        occlusion += max(dot(d, n) / distance - 0.12, 0.0) * smoothstep(1.0, 0.2, distance);
    }
    return 1.0 - darkness * min(occlusion / 14.0 * 1.3, 0.7);
}

vec3 tone(vec3 x, float contrast) {
    x = max(x, 0.0);
    vec3 shoulder = x * (1.0 + x * 0.12) / (1.0 + 0.78 * x);  // soft highlights that clip near 7
    vec3 display = pow(clamp(shoulder, 0.0, 1.0), vec3(1.0 / 2.2));
    vec3 s = display * display * (3.0 - 2.0 * display);
    display = mix(display, s, contrast) - 0.03 * contrast;
    return clamp(display, 0.0, 1.0);
}

void main() {
    ivec2 at_photo = ivec2(gl_GlobalInvocationID.xy);
    if (any(greaterThanEqual(at_photo, imageSize(photo)))) return;
    ivec2 tile = at_photo / grid.y;
    origin = tile * 2 * grid.y;
    ivec2 s = 2 * (at_photo - tile * grid.y);
    vec4 grading = gradings[2 * tile.y];    // stops of exposure, contrast, saturation
    vec4 gains = gradings[2 * tile.y + 1];  // of red, green, blue; darkness of crevices
    vec4 reading = readings[tile.y];
    float depth = at(s).a, focal_length = cameras[4 * (tile.y * grid.x + tile.x)].w;
    // a camera also takes some of what it sees, not only of the light, for a cast
    vec3 balance = pow(dot(reading.rgb, vec3(0.333)) / max(reading.rgb, 0.01), vec3(0.15)) * gains.rgb;
    float gain = exp2(grading.x - reading.a) * 0.3;
    float shade = raw ? 1.0 : crevices(s, depth, focal_length, gains.a, vec2(at_photo) + 0.5);
    vec3 sum = vec3(0.0);
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= 1; j++) {
            vec3 c = at(s + ivec2(i, j)).rgb;
            vec3 developed = raw ? pow(clamp(c, 0.0, 1.0), vec3(1.0 / 2.2)) : tone(c * gain * balance * shade, grading.y);
            sum += developed * float((2 - abs(i)) * (2 - abs(j)));
        }
    sum /= 16.0;
    if (!raw) sum = mix(vec3(dot(sum, vec3(0.2126, 0.7152, 0.0722))), sum, grading.z);
    imageStore(photo, at_photo, vec4(clamp(sum, 0.0, 1.0), 1.0));
    imageStore(metres, at_photo, vec4(depth));
}
