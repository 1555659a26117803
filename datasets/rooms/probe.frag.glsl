#version 430
flat in float object;
out vec2 depth_and_object;  // metres along the optical axis (the clip w), object number

void main() {
    depth_and_object = vec2(1.0 / gl_FragCoord.w, object);
}
