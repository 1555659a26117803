#version 430
// Geometry only: shadow maps, and small depth images that judge a camera.
in vec3 position;
in vec4 row0, row1, row2, finish;

uniform mat4 view_projection;

flat out float object;

void main() {
    vec4 p = vec4(position, 1.0);
    object = finish.w;
    gl_Position = view_projection * vec4(dot(row0, p), dot(row1, p), dot(row2, p), 1.0);
}
