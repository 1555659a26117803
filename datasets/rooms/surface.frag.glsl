#version 430
// What the light falls on: colour, gloss, normal, glow. light.comp.glsl lights it, once for each sample.
in vec3 local;
in vec3 local_normal;
in vec3 world_normal;
in vec2 mesh_uv;
in vec4 mesh_colour;
flat in float mesh_layer;
flat in vec4 part_tint, part_material, part_finish, part_offset;

layout(binding = 0) uniform sampler2DArray textures;

layout(location = 0) out vec4 albedo_and_gloss;
layout(location = 1) out vec4 normal_and_emission;

float hash(vec3 p) {
    p = fract(p * vec3(0.1031, 0.1030, 0.0973));
    p += dot(p, p.yxz + 33.33);
    return fract((p.x + p.y) * p.z);
}

float speckle(vec3 p, float grain) {
    float footprint = length(fwidth(p));
    float strength = clamp(1.5 * grain / max(footprint, 1e-5) - 0.3, 0.12, 1.0);
    return strength * (0.6 * hash(floor(p / grain)) + 0.4 * hash(floor(p / (2.7 * grain)) + 17.0) - 0.5);
}

float grooves(vec3 p, float period) {
    vec3 a = abs(local_normal);
    float x = period > 0.0 ? (a.x > a.z ? p.z : p.x) : p.y;
    float t = x / abs(period);
    float edge = clamp(fwidth(t) * 1.5, 0.06, 0.5);
    float wave = abs(fract(t) - 0.5);  // 0.5 in the groove
    float groove = smoothstep(0.5 - 0.06 - edge, 0.5 - 0.02, wave);
    return 1.0 - 0.75 * groove * min(1.0, 0.12 / edge);
}

vec3 surface_colour(out float gloss) {
    float layer = part_material.x > -1.5 ? part_material.x : mesh_layer;
    bool own = part_material.x < -1.5;
    vec3 colour = own ? mesh_colour.rgb : vec3(1.0);
    gloss = part_material.w >= 0.0 ? part_material.w : mesh_colour.a;
    vec2 coordinate = mesh_uv;
    if (part_material.y > 0.0) {
        vec3 a = abs(local_normal);
        vec2 flat_position = a.y > a.x && a.y > a.z ? local.xz : (a.x > a.z ? local.zy : local.xy);
        coordinate = flat_position / part_material.yz + part_offset.xy;
    }
    if (layer >= 0.0) colour *= texture(textures, vec3(coordinate, layer)).rgb;
    colour = pow(colour, vec3(2.2)) * part_tint.rgb;
    if (part_finish.x > 0.0) colour *= 1.0 + 2.0 * part_finish.x * speckle(local, part_finish.y);
    if (part_finish.z != 0.0) colour *= grooves(local, part_finish.z);
    return max(colour, 0.0);
}

void main() {
    float gloss;
    albedo_and_gloss.rgb = surface_colour(gloss);
    albedo_and_gloss.a = gloss;
    normal_and_emission = vec4(normalize(world_normal), part_tint.w);
}
