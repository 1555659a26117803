#version 430
// One instanced mesh of a room, seen by one camera.
in vec3 position;
in vec3 normal;
in vec2 uv;
in vec4 colour;  // rgb sRGB, a gloss
in float layer;
in vec4 row0, row1, row2, tint, material, finish, offset;

uniform mat4 view_projection;

out vec3 world;
out vec3 world_normal;
out vec3 local;          // metres along the mesh's own axes
out vec3 local_normal;
out vec2 mesh_uv;
out vec4 mesh_colour;
flat out float mesh_layer;
flat out vec4 part_tint, part_material, part_finish, part_offset;

void main() {
    vec4 p = vec4(position, 1.0);
    world = vec3(dot(row0, p), dot(row1, p), dot(row2, p));
    mat3 m = transpose(mat3(row0.xyz, row1.xyz, row2.xyz));
    world_normal = mat3(cross(m[1], m[2]), cross(m[2], m[0]), cross(m[0], m[1])) * normal;
    local = position * vec3(length(m[0]), length(m[1]), length(m[2]));
    local_normal = normal;
    mesh_uv = uv;
    mesh_colour = colour;
    mesh_layer = layer;
    part_tint = tint;
    part_material = material;
    part_finish = finish;
    part_offset = offset;
    gl_Position = view_projection * vec4(world, 1.0);
}
