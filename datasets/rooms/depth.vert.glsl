#version 430
// Geometry only: shadow maps, and small depth images that judge a camera.
in vec3 position;
in ivec2 entry;  // tile, instance

layout(std430, binding = 0) readonly buffer Instances { vec4 instances[]; };  // 7 each, see Room
layout(std430, binding = 1) readonly buffer Tiles { vec4 tiles[]; };  // 5 each: world to clip, low and high edges

flat out float object;

void main() {
    int part = 7 * entry.y, tile = 5 * entry.x;
    vec4 p = vec4(position, 1.0);
    vec4 world = vec4(dot(instances[part], p), dot(instances[part + 1], p), dot(instances[part + 2], p), 1.0);
    object = instances[part + 5].w;
    gl_Position = vec4(
        dot(tiles[tile], world), dot(tiles[tile + 1], world), dot(tiles[tile + 2], world), dot(tiles[tile + 3], world)
    );
    vec4 edges = tiles[tile + 4];
    gl_ClipDistance[0] = gl_Position.x - edges.x * gl_Position.w;
    gl_ClipDistance[1] = gl_Position.y - edges.y * gl_Position.w;
    gl_ClipDistance[2] = edges.z * gl_Position.w - gl_Position.x;
    gl_ClipDistance[3] = edges.w * gl_Position.w - gl_Position.y;
}
