#version 430
// The instanced meshes of a room, each in the tile of a camera that sees it.
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 colour;  // rgb sRGB, a gloss
in float layer;
in ivec2 entry;  // tile, instance

layout(std430, binding = 0) readonly buffer Instances { vec4 instances[]; };  // 7 each, see Room
layout(std430, binding = 1) readonly buffer Tiles { vec4 tiles[]; };  // 5 each: world to clip, low and high edges

out vec3 local;          // metres along the mesh's own axes
out vec3 local_normal;
out vec3 world_normal;
out vec2 mesh_uv;
out vec4 mesh_colour;
flat out float mesh_layer;
flat out vec4 part_tint, part_material, part_finish, part_offset;

void main() {
    int part = 7 * entry.y, tile = 5 * entry.x;
    vec4 row0 = instances[part], row1 = instances[part + 1], row2 = instances[part + 2];
    vec4 p = vec4(position, 1.0);
    vec4 world = vec4(dot(row0, p), dot(row1, p), dot(row2, p), 1.0);
    mat3 m = transpose(mat3(row0.xyz, row1.xyz, row2.xyz));
    world_normal = mat3(cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])) * normal;
    local = position * vec3(length(m[0]), length(m[1]), length(m[2]));
    local_normal = normal;
    mesh_uv = uv;
    mesh_colour = colour;
    mesh_layer = layer;
    part_tint = instances[part + 3];
    part_material = instances[part + 4];
    part_finish = instances[part + 5];
    part_offset = instances[part + 6];
    gl_Position = vec4(
        dot(tiles[tile], world), dot(tiles[tile + 1], world), dot(tiles[tile + 2], world), dot(tiles[tile + 3], world)
    );
    vec4 edges = tiles[tile + 4];
    gl_ClipDistance[0] = gl_Position.x - edges.x * gl_Position.w;
    gl_ClipDistance[1] = gl_Position.y - edges.y * gl_Position.w;
    gl_ClipDistance[2] = edges.z * gl_Position.w - gl_Position.x;
    gl_ClipDistance[3] = edges.w * gl_Position.w - gl_Position.y;
}
