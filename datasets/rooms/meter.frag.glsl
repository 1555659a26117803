#version 430
// One pixel for each group of views: what a camera's light meter reads over all of them.
uniform sampler2D scene;   // radiance, a row of tiles for each group
uniform int tile, tiles;   // pixels of a tile's side, tiles in a row

out vec4 reading;          // mean of the colour (compressed), mean log of the luminance

void main() {
    int row = int(gl_FragCoord.x);
    vec3 colour = vec3(0.0);
    float level = 0.0;
    for (int view = 0; view < tiles; view++)
        for (int i = 0; i < 144; i++) {
            ivec2 at = ivec2(view * tile, row * tile) + ivec2(i % 12, i / 12) * tile / 12 + tile / 24;
            vec3 c = texelFetch(scene, at, 0).rgb;
            float luminance = dot(c, vec3(0.2126, 0.7152, 0.0722));
            colour += c / (luminance + 0.05);
            level += log2(luminance + 0.002);
        }
    reading = vec4(colour, level) / float(144 * tiles);
}
